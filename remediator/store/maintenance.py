"""Maintenance windows that operators ordered. Those of the file are no concern of the store."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.incident import Incident
from remediator.model.maintenance import Plan, Window, running, scopes_of
from remediator.model.views import WindowView
from remediator.store import tables as t
from remediator.store.database import Database

END = func.coalesce(t.maintenance.c.ended_at, t.maintenance.c.until)
"""When a window really ended, or will."""


class Windows:
    """Reads of the windows; ordering and ending them is for ``Commands``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def over(self, incident: Incident, begin: datetime, end: datetime) -> list[Window]:
        """List the ordered windows over ``incident`` from ``begin`` to ``end``."""
        async with self._database.read() as connection:
            return await windows_over(connection, incident, begin, end)

    async def listed(self, planned: Iterable[Plan] = ()) -> list[WindowView]:
        """List what runs and what comes, also of ``planned``, in the order of their begin."""
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            rows = (await connection.execute(_columns().where(now < END))).mappings().all()
        views = [view_of(row, now) for row in rows]
        views += [
            WindowView(**window.model_dump(), running=window.covers(now), source="file")
            for plan in planned
            for window in (running(plan.touching(now, now), now), plan.coming(now))
            if window is not None
        ]
        return sorted(views, key=lambda view: (view.since, view.id))


async def windows_over(
    connection: AsyncConnection, incident: Incident, begin: datetime, end: datetime
) -> list[Window]:
    """List the ordered windows over ``incident`` of which any lies from ``begin`` to ``end``."""
    over = t.maintenance.c.scope.in_(scopes_of(incident))
    # one that began with its order runs, also when the clock was put back since
    at_once = t.maintenance.c.since <= t.maintenance.c.ordered_at
    begun = or_(t.maintenance.c.since <= end, at_once)
    query = _columns().where(over, begun, begin < END)
    windows = [
        Window.model_validate({name: row[name] for name in Window.model_fields})
        for row in (await connection.execute(query)).mappings()
    ]
    return [window.model_copy(update={"since": min(window.since, end)}) for window in windows]


def view_of(row: Any, now: datetime) -> WindowView:
    """Show a row, as ``_columns`` reads it."""
    names = ("id", "scope", "since", "until", "reason", "by")
    values = {name: row[name] for name in names}
    return WindowView(**values, running=row["since"] <= now < row["until"], source="api")


def _columns() -> Select[Any]:
    table = t.maintenance.c
    return select(*(table.id, table.scope, table.since, END.label("until"), table.reason, table.by))
