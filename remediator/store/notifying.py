"""Asks for humans to be told of an incident: written with what causes it, in one transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model import Phase
from remediator.store import tables as t
from remediator.store.columns import Instant

_FIRST = 4
"""What is taken off the severity of a message that asks for an approval: it goes before all others."""


async def correct_notice(connection: AsyncConnection, incident: str, now: datetime) -> bool:
    """Ask for those who were told of the incident to be told how it stands, if there are any."""
    wanted = {
        "wanted": t.notices.c.wanted + 1,
        "due_at": func.coalesce(t.notices.c.due_at, literal(now, Instant)),
        "rank": _rank(incident),
    }
    found = await connection.execute(
        update(t.notices).where(t.notices.c.incident_id == incident).values(**wanted)
    )
    return bool(found.rowcount)


async def request_notice(connection: AsyncConnection, incident: str, now: datetime) -> None:
    """Ask for humans to be told how the incident stands; never waits for any of them."""
    if not await correct_notice(connection, incident, now):
        await connection.execute(
            insert(t.notices).values(
                incident_id=incident,
                wanted=1,
                sent=0,
                due_at=now,
                epoch=0,
                attempts=0,
                last_error="",
                rank=_rank(incident),
            )
        )


def _rank(incident: str) -> ColumnElement[Any]:
    """Return the place of a message about the incident as it stands: by severity."""
    asks = t.incidents.c.phase == Phase.APPROVAL
    place = case((asks, t.incidents.c.severity - _FIRST), else_=t.incidents.c.rank)
    return select(place).where(t.incidents.c.id == incident).scalar_subquery()
