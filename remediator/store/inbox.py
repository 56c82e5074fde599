"""The durable inbox, and the transaction in which alerts become incidents.

Intake puts deliveries in; the pipeline takes them out through ``triage``, which applies what
the pure function it is given decides, in the transaction that marks the deliveries done.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.errors import StoreUnavailable
from remediator.live import Announce, Happening
from remediator.model import Alert, DeadLetter, Delivery, DeliveryId, IncidentId, Source, new_id
from remediator.store import tables as t
from remediator.store.database import TAKEN_WITHIN, Database
from remediator.store.episodes import Correlate, Correlation, Keys, apply, snapshot_of
from remediator.store.events import not_fetched, read_alerts
from remediator.store.repeats import NoRepeats, Repeats

HANDED_OVER = 256
"""Deliveries whose decoded alerts are kept in memory until triage takes them."""
EXCERPT = 64 * 1024
"""Bytes of a body that a dead letter keeps."""
TRIAGE_BATCH = 64
"""Deliveries in one triage transaction, at most."""
TRIAGE_ALERTS = 2000
"""Alerts in one triage transaction, which has to end within the database's patience; a single
delivery may have more."""
DECODED_ALERTS = 20_000
"""Alerts that are kept in memory until triage takes them."""

Decode = Callable[[Delivery], Sequence[Alert]]
"""Reads the alerts of a stored delivery again."""


class Inbox:
    """Takes deliveries in and turns them into incidents."""

    def __init__(
        self,
        database: Database,
        arrived: Callable[[], None],
        announce: Announce = lambda *_: None,
        repeats: Repeats = NoRepeats(),  # noqa: B008 - it keeps nothing
    ) -> None:
        """Call ``arrived`` after each delivery is durable: the doorbell of triage.

        ``announce`` is told of what is durable; ``repeats`` of all that comes and is triaged.
        """
        self._database = database
        self._arrived = arrived
        self._announce = announce
        self._repeats = repeats
        self._decoded: OrderedDict[DeliveryId, tuple[Delivery, Sequence[Alert]]] = OrderedDict()

    async def put(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> DeliveryId:
        """Make ``delivery`` durable, and hand its alerts to triage.

        Returns its id, or that of the earlier delivery of which it is a mere repetition: then
        it is not stored once more. Raises ``StoreUnavailable``; then its sender has to come again.
        """
        if delivery.source is Source.ALERTMANAGER:
            earlier = await self._repeats.earlier(delivery, alerts, whole=not dead)
            if earlier is not None:
                return earlier
        rows = {
            t.deliveries: [_row(delivery, len(alerts), len(dead))],
            t.dead_letters: _letters(delivery, dead),
        }
        try:
            await self._database.insert(rows, TAKEN_WITHIN)
        except StoreUnavailable:  # its triage is not to be waited for
            await self._repeats.settle([(delivery, alerts, False)])
            raise
        self._decoded[delivery.id] = delivery, alerts
        held = sum(len(waiting) for _, waiting in self._decoded.values())
        while len(self._decoded) > HANDED_OVER or (
            held > DECODED_ALERTS and len(self._decoded) > 1
        ):
            _, (_, dropped) = self._decoded.popitem(last=False)
            held -= len(dropped)
        self._arrived()
        self._announce(Happening.DELIVERY, delivery.id)
        return delivery.id

    async def triage(
        self,
        decode: Decode,
        keys: Keys,
        correlate: Correlate,
        only: DeliveryId | None = None,
    ) -> Correlation | None:
        """Take a batch of deliveries through ``correlate``; None when there is none.

        ``decode`` reads a stored body again where the alerts are not at hand (after a restart).
        """
        waiting = await self.waiting() if only is None else [only]
        read = {found: await self._alerts(found, decode) for found in waiting}

        async def operation(connection: AsyncConnection) -> Correlation | None:
            still = t.deliveries.c.triaged_at.is_(None) & t.deliveries.c.id.in_(waiting)
            left = set(await connection.scalars(select(t.deliveries.c.id).where(still)))
            if not left:
                return None
            now = await self._database.now(connection)
            batch = [read[found] for found in waiting if found in left]
            snapshot = await snapshot_of(connection, batch, keys)
            correlation = correlate(batch, snapshot, now)
            await apply(connection, correlation, now)
            return correlation

        correlation = await self._database.write(operation, serial=True) if waiting else None
        for delivery in waiting:
            self._decoded.pop(delivery, None)
        if correlation is not None:
            again = correlation.repeatable
            await self._repeats.settle([(*read[d], d in again) for d in correlation.deliveries])
            self._say(correlation)
        return correlation

    def _say(self, correlation: Correlation) -> None:
        opened = {opening.id for opening in correlation.opened}
        for incident in opened:
            self._announce(Happening.OPENED, incident)
        joined = {joining.incident_id for joining in correlation.joined}
        for incident in sorted(joined - opened):
            self._announce(Happening.CHANGED, incident)

    async def _alerts(self, found: DeliveryId, decode: Decode) -> tuple[Delivery, Sequence[Alert]]:
        """Return a delivery with its alerts, from memory where they are at hand."""
        known = self._decoded.get(found)
        if known is not None:
            return known
        async with self._database.read() as connection:
            query = (
                select(t.deliveries, t.events.c.alerts.label("said"))
                .outerjoin(t.events, t.events.c.delivery_id == t.deliveries.c.id)
                .where(t.deliveries.c.id == found)
            )
            row = (await connection.execute(query)).mappings().one()
        delivery = delivery_of(row)
        return delivery, decode(delivery) if row["said"] is None else read_alerts(row["said"])

    async def incidents_of(self, delivery: DeliveryId) -> list[IncidentId]:
        """Return the incidents that a triaged delivery touched."""
        async with self._database.read() as connection:
            query = select(t.deliveries.c.incidents).where(t.deliveries.c.id == delivery)
            return [IncidentId(found) for found in (await connection.execute(query)).scalar_one()]

    async def waiting(self) -> list[DeliveryId]:
        """Return the oldest deliveries that wait for triage, as many as one batch may hold."""
        query = (
            select(t.deliveries.c.id, t.deliveries.c.alerts)
            .outerjoin(t.events, t.events.c.delivery_id == t.deliveries.c.id)
            .where(t.deliveries.c.triaged_at.is_(None), not_fetched())
            .order_by(t.deliveries.c.received_at, t.deliveries.c.id)
            .limit(TRIAGE_BATCH)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        sums = accumulate(alerts for _, alerts in rows)
        return [
            DeliveryId(found)
            for position, ((found, _), total) in enumerate(zip(rows, sums, strict=True))
            if position == 0 or total <= TRIAGE_ALERTS
        ]

    async def bury(self, delivery: DeliveryId, reason: str) -> None:
        """Make a delivery that triage cannot digest a dead letter, so that it blocks nothing."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            mine = (t.deliveries.c.id == delivery) & t.deliveries.c.triaged_at.is_(None)
            row = (await connection.execute(select(t.deliveries).where(mine))).mappings().first()
            if row is None:  # somebody else could digest it
                return
            await connection.execute(update(t.deliveries).where(mine).values(triaged_at=now))
            excerpt = bytes(row["body"][:EXCERPT]).decode(errors="replace").replace("\0", "")
            letter = DeadLetter(reason=reason, excerpt=excerpt)
            await connection.execute(insert(t.dead_letters), _letters(delivery_of(row), [letter]))

        await self._database.write(operation)


def _row(delivery: Delivery, alerts: int, dead: int) -> dict[str, Any]:
    row = {name: getattr(delivery, name) for name in Delivery.model_fields}
    triaged_at = None if alerts else delivery.received_at
    return row | {"alerts": alerts, "dead": dead, "incidents": [], "triaged_at": triaged_at}


def _letters(delivery: Delivery, dead: Sequence[DeadLetter]) -> list[dict[str, Any]]:
    common = {
        "delivery_id": delivery.id,
        "source": delivery.source,
        "at": delivery.received_at,
    }
    return [
        letter.model_dump() | common | {"id": new_id("dead", delivery.received_at)}
        for letter in dead
    ]


def delivery_of(row: Any) -> Delivery:
    """Read a stored delivery."""
    return Delivery.model_validate({name: row[name] for name in Delivery.model_fields})
