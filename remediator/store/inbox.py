"""The durable inbox, and the transaction in which alerts become incidents.

Intake puts deliveries in; the pipeline takes them out through ``triage``, which applies what
the pure function it is given decides, in the transaction that notes how far each delivery is taken.

An attempt is counted before it begins, where it may be the last that this process does: for what
is read again (somebody died, or gave up), and for what is large.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import structlog
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import Alert, DeadLetter, Delivery, Source
from remediator.model.base import DeliveryId, IncidentId, new_id
from remediator.model.correlation import Correlate, Correlation, Keys
from remediator.model.errors import StoreUnavailable
from remediator.model.events import Announce, EventType
from remediator.model.unmatched import RecordBound
from remediator.store import tables as t
from remediator.store.alerts import apply, snapshot_of
from remediator.store.database import BATCH, TAKEN_WITHIN, Database
from remediator.store.delivery_cache import AtHand
from remediator.store.duplicates import NoRepeats, Repeats
from remediator.store.sender_events import not_fetched, read_alerts, tell
from remediator.store.slices import (
    ATTEMPTS,
    Read,
    Slice,
    Waiting,
    attempted,
    in_one_turn,
    mark,
    prints_of,
    progress_of,
    slices,
)

EXCERPT = 64 * 1024
"""Bytes of a body that a dead letter keeps."""
WINDOW = 64
"""Deliveries that one turn of triage looks at."""
_PIECE = 64 * 1024
"""Bytes of a body that cost the writer as much as one operation."""

Decode = Callable[[Delivery], Awaitable[Sequence[Alert]]]
"""Reads the alerts of a stored delivery again."""

_log = structlog.get_logger(__name__)


class Inbox:
    """Takes deliveries in and turns them into incidents."""

    def __init__(
        self,
        database: Database,
        arrived: Callable[[], None],
        announce: Announce = lambda *_: None,
        repeats: Repeats = NoRepeats(),  # noqa: B008 - it keeps nothing
        bound: RecordBound = RecordBound(),  # noqa: B008 - frozen
    ) -> None:
        """Call ``arrived`` after each delivery is durable: the doorbell of triage.

        ``announce`` is told of what is durable; ``repeats`` of all that comes and is triaged.
        ``bound`` is how many records each sender has of what no playbook takes.
        """
        self._database = database
        self._arrived = arrived
        self._announce = announce
        self._repeats = repeats
        self._bound = bound
        self._at_hand = AtHand()
        self._excused: set[DeliveryId] = set()
        """Whose counted attempt the store ended, so that the next one is the same."""

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
            await self._database.insert(rows, TAKEN_WITHIN, cost=1 + len(delivery.body) // _PIECE)
        except StoreUnavailable:  # its triage is not to be waited for
            await self._repeats.settle([(delivery, alerts, False)])
            raise
        self._at_hand.keep(delivery, alerts)
        self._arrived()
        self._announce(EventType.DELIVERY, delivery.id)
        return delivery.id

    async def triage(
        self,
        decode: Decode,
        keys: Keys,
        correlate: Correlate,
        only: DeliveryId | None = None,
    ) -> Correlation | None:
        """Take a part of what waits through ``correlate``; None when there is nothing.

        ``decode`` reads a stored body again where the alerts are not at hand (after a restart).
        With ``only`` it is that delivery alone.
        """
        rows = self._readable(in_one_turn(await self._due(only)))
        if not rows:
            return None
        if rows[0].attempts >= ATTEMPTS:
            await self.bury(rows[0].id, _given_up(rows[0]))
            return Correlation(deliveries={})
        tried = [row.id for row in rows if only or self._is_risky(row)]
        await self._count(tried)
        try:
            chosen = slices(await self._read(rows, decode))
            correlation = await self._take(chosen, tried, keys, correlate)
        except StoreUnavailable:  # that is no fault of what was tried
            self._excused.update(tried)
            raise
        if correlation is not None:
            await self._settled(chosen, correlation)
        else:
            for one in chosen:
                self._at_hand.drop(one.delivery.id)
        return correlation

    async def _take(
        self,
        chosen: Sequence[Slice],
        tried: Collection[DeliveryId],
        keys: Keys,
        correlate: Correlate,
    ) -> Correlation | None:
        async def operation(connection: AsyncConnection) -> Correlation | None:
            before = await progress_of(connection, [one.delivery.id for one in chosen])
            mine = [one for one in chosen if one.is_next(before.get(one.delivery.id))]
            if not mine:  # another replica has taken them
                return None
            now = await self._database.now(connection)
            batch = [(one.delivery, one.alerts) for one in mine]
            records = {found: progress.records for found, progress in before.items()}
            snapshot = await snapshot_of(
                connection, batch, keys=keys, records=records, bound=self._bound, now=now
            )
            correlation = correlate(batch, snapshot, now)
            await apply(connection, correlation, now)
            await mark(connection, mine, before, correlation, now)
            await attempted(connection, tried, ended=True)
            return correlation

        return await self._database.write(operation, serial=True, cost=BATCH)

    async def _settled(self, chosen: Sequence[Slice], correlation: Correlation) -> None:
        taken = [one for one in chosen if one.delivery.id in correlation.deliveries]
        again = correlation.repeatable
        for one in taken:
            self._excused.discard(one.delivery.id)
            if one.is_last:
                self._at_hand.drop(one.delivery.id)
        await self._repeats.settle(
            [(one.delivery, one.alerts, one.is_all and one.delivery.id in again) for one in taken]
        )
        self._say(correlation)

    def _say(self, correlation: Correlation) -> None:
        opened = {opening.id for opening in correlation.opened}
        for incident in opened:
            self._announce(EventType.OPENED, incident)
        joined = {joining.incident_id for joining in correlation.joined}
        for incident in sorted(joined - opened):
            self._announce(EventType.CHANGED, incident)

    def _readable(self, rows: Sequence[Waiting]) -> list[Waiting]:
        """Return the first of ``rows`` that fit into memory together: one large one at a time."""
        found: list[Waiting] = []
        for row in rows:
            another = row.is_large and any(one.is_large for one in found)
            if another and self._at_hand.prints(row.id) is None:
                break
            found.append(row)
        return found

    def _is_risky(self, row: Waiting) -> bool:
        """Say whether an attempt is counted before it begins."""
        begins = row.is_large and not row.taken
        return bool(row.attempts) or begins or self._at_hand.use(row.id) is None

    async def _count(self, tried: Sequence[DeliveryId]) -> None:
        counted = [found for found in tried if found not in self._excused]
        if counted:
            await self._database.write(lambda c: attempted(c, counted, ended=False))

    async def _read(self, rows: Sequence[Waiting], decode: Decode) -> list[Read]:
        """Return waiting deliveries with their alerts; of a second large one what it is about."""
        found: list[Read] = []
        for row in rows:
            prints = self._at_hand.prints(row.id)
            if prints is not None and row.is_large and any(o.waiting.is_large for o in found):
                found.append(Read(row, None, (), prints))
                continue
            delivery, alerts = await self._alerts(row.id, decode)
            replayed = delivery.replay_of is not None
            mine = frozenset[str]() if replayed else prints_of(alerts)
            found.append(Read(row, delivery, alerts, mine))
        return found

    async def _alerts(self, found: DeliveryId, decode: Decode) -> tuple[Delivery, Sequence[Alert]]:
        """Return a delivery with its alerts, from memory where they are at hand."""
        known = self._at_hand.use(found)
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
        if row["said"] is not None:
            return delivery, read_alerts(row["said"])
        alerts = await decode(delivery)
        self._at_hand.keep(delivery, alerts)
        return delivery, alerts

    async def incidents_of(self, delivery: DeliveryId) -> list[IncidentId]:
        """Return the incidents that a triaged delivery touched."""
        async with self._database.read() as connection:
            query = select(t.deliveries.c.incidents).where(t.deliveries.c.id == delivery)
            return [IncidentId(found) for found in (await connection.execute(query)).scalar_one()]

    async def waiting(self) -> list[DeliveryId]:
        """Return the oldest deliveries that wait for triage, as many as one turn looks at."""
        return [row.id for row in await self._due(None)]

    async def _due(self, only: DeliveryId | None) -> list[Waiting]:
        columns = (t.deliveries.c[name] for name in ("id", "alerts", "taken", "attempts"))
        query = (
            select(*columns)
            .outerjoin(t.events, t.events.c.delivery_id == t.deliveries.c.id)
            .where(t.deliveries.c.triaged_at.is_(None), not_fetched())
            .order_by(t.deliveries.c.received_at, t.deliveries.c.id)
            .limit(WINDOW)
        )
        if only is not None:
            query = query.where(t.deliveries.c.id == only)
        async with self._database.read() as connection:
            return [Waiting(*row) for row in await connection.execute(query)]

    async def bury(self, delivery: DeliveryId, reason: str) -> None:
        """Make a delivery that triage cannot digest a dead letter, and tell humans of it."""

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
            await tell(connection, f"delivery/{delivery}", f"{delivery}: {reason}", now)

        await self._database.write(operation, serial=True)
        _log.error("delivery_buried", delivery=delivery, reason=reason)
        self._at_hand.drop(delivery)
        self._arrived()


def _given_up(row: Waiting) -> str:
    left = f"{row.taken} of its {row.alerts} alerts were taken"
    why = f"its triage failed, or ended with the process, {row.attempts} times"
    return f"{why}; {left}; see the log, and replay it after a fix"


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
