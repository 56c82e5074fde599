"""What is old is deleted: closed incidents whole, then the deliveries that no kept one came from.

Nothing that is open, owed or still to be told goes, and no alert that fires. Of an incident's
journal its head stays, in the chain of the operators.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from sqlalchemy import ColumnElement, Delete, Table, delete, exists, select
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import AlertStatus
from remediator.model.duration import format_duration
from remediator.model.incident import IncidentState
from remediator.store import tables as t
from remediator.store.audit.chain import Entry, Head, Keys, Part
from remediator.store.audit.export import records
from remediator.store.audit.verify import Verifier
from remediator.store.database import Database
from remediator.store.journal import remove, unmoved

BATCH = 100
"""Incidents, or deliveries, that are deleted in one transaction."""

_OF_INCIDENT = (t.mitigations, t.findings, t.alerts, t.notices, t.escalations, t.tellings)

_log = structlog.get_logger(__name__)


class Retention:
    """Deletes what is older than it has to be kept."""

    def __init__(self, database: Database, keys: Keys | None = None) -> None:
        self._database = database
        self._keys = keys

    async def incidents(self, age: timedelta, after: str = "") -> tuple[int, str | None]:
        """Delete those of a batch of incidents that were closed longer than ``age`` ago.

        Returns how many, and the id to go on after; None when there are no more. One whose journal
        does not hold is kept, and that is logged: it is what would prove what was done to it.
        """
        async with self._database.read() as connection:
            before = await self._database.now(connection) - age
            old = select(t.incidents.c.id).where(_over(before), t.incidents.c.id > after)
            found = list(await connection.scalars(old.order_by(t.incidents.c.id).limit(BATCH)))
            sound = {one: await self._head(connection, one, before) for one in found}
        heads = {one: head for one, head in sound.items() if head is not None}

        async def operation(connection: AsyncConnection) -> int:
            now = await self._database.now(connection)
            still = select(t.incidents.c.id).where(_over(now - age), t.incidents.c.id.in_(heads))
            gone = list(await connection.scalars(still))
            if self._keys is not None:
                gone = await unmoved(connection, {one: heads[one] for one in gone})
            if gone:
                await _delete_incidents(connection, gone, age, now)
            return len(gone)

        # serial with triage and commands: nothing joins what is just being deleted
        deleted = await self._database.write(operation, serial=True) if heads else 0
        return deleted, found[-1] if len(found) == BATCH else None

    async def _head(
        self, connection: AsyncConnection, incident: str, before: datetime
    ) -> tuple[int, str] | None:
        """Return how far a chain goes that holds and was closed ``before``; (0, "") for unsealed."""
        if self._keys is None:
            return 0, ""
        head, closed, last = (0, ""), None, None
        verifier = Verifier(self._keys, part=Part(incident=incident))
        async for record in records(connection, Part(incident=incident)):
            match record:
                case Entry():
                    verifier.entry(record)
                    if record.mac is not None:
                        last = record.at
                        closed = record.at if record.event.startswith("closed as") else closed
                case Head():
                    verifier.head(record)
                    head = record.count, record.mac
        flaws = verifier.result().flaws
        at = closed or last
        if not flaws and (at is None or at < before):
            return head
        reason = flaws[0].detail if flaws else f"its journal says that it was closed at {at}"
        _log.error("retention_keeps_what_does_not_hold", incident_id=incident, reason=reason)
        return None

    async def deliveries(self, age: timedelta, after: str = "") -> str | None:
        """Delete those of a batch of old deliveries whose incidents are all gone.

        Returns the id to go on after; None when there are no more.
        """

        async def operation(connection: AsyncConnection) -> str | None:
            now = await self._database.now(connection)
            old = (
                select(t.deliveries.c.id, t.deliveries.c.incidents)
                .where(t.deliveries.c.received_at < now - age, t.deliveries.c.id > after)
                .where(t.deliveries.c.triaged_at.is_not(None), ~_fetching())
                .order_by(t.deliveries.c.id)
                .limit(BATCH)
            )
            rows = (await connection.execute(old)).all()
            kept = await _kept(connection, {i for _, incidents in rows for i in incidents})
            gone = [found for found, incidents in rows if kept.isdisjoint(incidents)]
            for table in (t.dead_letters, t.events):
                await connection.execute(delete(table).where(table.c.delivery_id.in_(gone)))
            await connection.execute(delete(t.deliveries).where(t.deliveries.c.id.in_(gone)))
            return rows[-1][0] if len(rows) == BATCH else None

        return await self._database.write(operation, serial=True)


def _over(before: datetime) -> ColumnElement[bool]:
    """Say that an incident was closed ``before``, and that nothing of it is still to be done."""
    mine = t.incidents.c.id
    firing = (t.alerts.c.status == AlertStatus.FIRING) & t.alerts.c.latest
    owed = t.mitigations.c.id == t.obligations.c.mitigation_id
    return (
        (t.incidents.c.state == IncidentState.CLOSED)
        & (t.incidents.c.closed_at < before)
        & (t.incidents.c.opened_at < before)  # is always so, and has an index
        & ~exists().where(t.alerts.c.incident_id == mine, firing)
        & ~exists().where(t.mitigations.c.incident_id == mine, t.mitigations.c.in_flight)
        & ~exists().where(t.mitigations.c.incident_id == mine, owed)
        & ~_due(t.notices)
        & ~_due(t.tellings)
        & ~_due(t.escalations)
    )


def _due(table: Table) -> ColumnElement[bool]:
    return exists().where(table.c.incident_id == t.incidents.c.id, table.c.due_at.is_not(None))


def _fetching() -> ColumnElement[bool]:
    return exists().where(
        t.events.c.delivery_id == t.deliveries.c.id, t.events.c.due_at.is_not(None)
    )


async def _kept(connection: AsyncConnection, incidents: set[str]) -> set[str]:
    query = select(t.incidents.c.id).where(t.incidents.c.id.in_(sorted(incidents)))
    return set(await connection.scalars(query)) if incidents else set()


async def _delete_incidents(
    connection: AsyncConnection, gone: list[str], age: timedelta, now: datetime
) -> None:
    many = f"{len(gone)} incident" + ("" if len(gone) == 1 else "s")
    reason = f"{many} closed more than {format_duration(age)} ago: deleted by retention"
    await remove(connection, gone, now, reason)
    changes = select(t.mitigations.c.id).where(t.mitigations.c.incident_id.in_(gone))
    made = list(await connection.scalars(changes))
    for start in range(0, len(made), BATCH):
        some = t.samples.c.mitigation_id.in_(made[start : start + BATCH])
        await connection.execute(delete(t.samples).where(some))
    for table in _OF_INCIDENT:
        await connection.execute(_of(table, gone))
    await connection.execute(delete(t.incidents).where(t.incidents.c.id.in_(gone)))


def _of(table: Table, incidents: list[str]) -> Delete:
    return delete(table).where(table.c.incident_id.in_(incidents))
