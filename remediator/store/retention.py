"""What is old is deleted: closed incidents whole, then the deliveries that no kept one came from.

Nothing that is open, owed or still to be told goes, and no alert that fires. Of an incident's
journal its head stays, in the chain of the operators.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Delete, Table, delete, exists, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model import AlertStatus, IncidentState, format_duration
from remediator.store import tables as t
from remediator.store.database import Database
from remediator.store.journal import remove

BATCH = 100
"""Incidents, or deliveries, that are deleted in one transaction."""

_OF_INCIDENT = (t.mitigations, t.findings, t.alerts, t.notices, t.escalations, t.tellings)


class Retention:
    """Deletes what is older than it has to be kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def incidents(self, age: timedelta) -> int:
        """Delete some incidents that were closed longer than ``age`` ago; return how many."""

        async def operation(connection: AsyncConnection) -> int:
            now = await self._database.now(connection)
            query = select(t.incidents.c.id).where(_over(now - age))
            oldest = query.order_by(t.incidents.c.opened_at).limit(BATCH)
            gone = list(await connection.scalars(oldest))
            if gone:
                await _delete_incidents(connection, gone, age, now)
            return len(gone)

        # serial with triage and commands: nothing joins what is just being deleted
        return await self._database.write(operation, serial=True)

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
    owed = select(t.obligations.c.mitigation_id)
    busy = or_(t.mitigations.c.in_flight, t.mitigations.c.id.in_(owed))
    return (
        (t.incidents.c.state == IncidentState.CLOSED)
        & (t.incidents.c.closed_at < before)
        & (t.incidents.c.opened_at < before)  # is always so, and has an index
        & ~exists().where(t.alerts.c.incident_id == mine, firing)
        & ~exists().where(t.mitigations.c.incident_id == mine, busy)
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
    await connection.execute(delete(t.samples).where(t.samples.c.mitigation_id.in_(changes)))
    for table in _OF_INCIDENT:
        await connection.execute(_of(table, gone))
    await connection.execute(delete(t.incidents).where(t.incidents.c.id.in_(gone)))


def _of(table: Table, incidents: list[str]) -> Delete:
    return delete(table).where(table.c.incident_id.in_(incidents))
