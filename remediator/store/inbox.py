"""The durable inbox, and the transaction in which alerts become incidents.

Intake puts deliveries in; the pipeline takes them out through ``triage``, which applies what
the pure function it is given decides, in the transaction that marks the deliveries done.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Select, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model import Alert, DeadLetter, Delivery, DeliveryId, IncidentId, new_id
from remediator.store import tables as t
from remediator.store.database import Database
from remediator.store.episodes import Correlate, Correlation, Keys, apply, snapshot_of

HANDED_OVER = 256
"""Deliveries whose decoded alerts are kept in memory until triage takes them."""
EXCERPT = 64 * 1024
"""Bytes of a body that a dead letter keeps."""
TRIAGE_BATCH = 64
"""Deliveries in one triage transaction."""

Decode = Callable[[Delivery], Sequence[Alert]]
"""Reads the alerts of a stored delivery again."""


class Inbox:
    """Takes deliveries in and turns them into incidents."""

    def __init__(self, database: Database, arrived: Callable[[], None]) -> None:
        """Call ``arrived`` after each delivery is durable: the doorbell of triage."""
        self._database = database
        self._arrived = arrived
        self._decoded: OrderedDict[DeliveryId, tuple[Delivery, Sequence[Alert]]] = OrderedDict()

    async def put(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> None:
        """Make ``delivery`` durable, and hand its alerts to triage.

        Raises ``StoreUnavailable``; then nothing was taken.
        """
        await self._database.insert(
            {
                t.deliveries: [_row(delivery, len(alerts), len(dead))],
                t.dead_letters: _letters(delivery, dead),
            }
        )
        self._decoded[delivery.id] = delivery, alerts
        while len(self._decoded) > HANDED_OVER:
            self._decoded.popitem(last=False)
        self._arrived()

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

        async def operation(connection: AsyncConnection) -> Correlation | None:
            waiting = (await connection.execute(_untriaged(only))).scalars().all()
            if not waiting:
                return None
            now = await self._database.now(connection)
            batch = [await self._alerts(connection, found, decode) for found in waiting]
            snapshot = await snapshot_of(connection, batch, keys)
            correlation = correlate(batch, snapshot, now)
            await apply(connection, correlation, now)
            return correlation

        correlation = await self._database.write(operation, serial=True)
        for delivery in correlation.deliveries if correlation else ():
            self._decoded.pop(delivery, None)
        return correlation

    async def _alerts(
        self, connection: AsyncConnection, found: DeliveryId, decode: Decode
    ) -> tuple[Delivery, Sequence[Alert]]:
        """Return a delivery with its alerts, from memory where they are at hand."""
        known = self._decoded.get(found)
        if known is not None:
            return known
        query = select(t.deliveries).where(t.deliveries.c.id == found)
        delivery = delivery_of((await connection.execute(query)).mappings().one())
        return delivery, decode(delivery)

    async def incidents_of(self, delivery: DeliveryId) -> list[IncidentId]:
        """Return the incidents that a triaged delivery touched."""
        async with self._database.read() as connection:
            query = select(t.deliveries.c.incidents).where(t.deliveries.c.id == delivery)
            return [IncidentId(found) for found in (await connection.execute(query)).scalar_one()]

    async def waiting(self) -> list[DeliveryId]:
        """Return the ids of the oldest deliveries that wait for triage."""
        async with self._database.read() as connection:
            return [DeliveryId(found) for found in await connection.scalars(_untriaged(None))]

    async def bury(self, delivery: DeliveryId, reason: str) -> None:
        """Make a delivery that triage cannot digest a dead letter, so that it blocks nothing."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            mine = t.deliveries.c.id == delivery
            row = (await connection.execute(select(t.deliveries).where(mine))).mappings().one()
            await connection.execute(update(t.deliveries).where(mine).values(triaged_at=now))
            excerpt = bytes(row["body"][:EXCERPT]).decode(errors="replace").replace("\0", "")
            letter = DeadLetter(reason=reason, excerpt=excerpt)
            await connection.execute(insert(t.dead_letters), _letters(delivery_of(row), [letter]))

        await self._database.write(operation)


def _untriaged(only: DeliveryId | None) -> Select[Any]:
    query = select(t.deliveries.c.id).where(t.deliveries.c.triaged_at.is_(None))
    if only is not None:
        query = query.where(t.deliveries.c.id == only)
    return query.order_by(t.deliveries.c.received_at, t.deliveries.c.id).limit(TRIAGE_BATCH)


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
