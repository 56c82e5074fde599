"""Where an escalation begins, and who has it: written with what causes it, in one transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import AwareDatetime
from sqlalchemy import delete, exists, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import AlertStatus
from remediator.model.base import IncidentId, Value
from remediator.model.errors import Refused
from remediator.model.incident import NEEDS_A_HUMAN, IncidentOutcome, IncidentState
from remediator.model.notification import Word
from remediator.store import tables as t

HOLD, NOT_TAKEN_BACK = "hold", "not taken back"
"""Step and event of the journal's line that a temporary change of the incident stays."""
_LONGEST = 200
"""Characters of a person's name in the store."""


class Acknowledged(Value):
    """That somebody has an incident."""

    incident_id: IncidentId
    by: str
    at: AwareDatetime
    anew: bool
    """Whether this is news; what another system tells of it once more is not."""


async def begin_escalation(
    connection: AsyncConnection,
    incident: str,
    outcome: IncidentOutcome | None,
    now: datetime,
    by: str | None = None,
) -> None:
    """Let the levels begin where a closed incident needs a human and its alert fires.

    ``by`` has it from the beginning, such as who turned its plan down.
    """
    if outcome not in NEEDS_A_HUMAN or not await _wanted(connection, incident):
        return
    values: dict[str, Any] = {"since": now, "due_at": now}
    mine = t.escalations.c.incident_id == incident
    row = (await connection.execute(select(t.escalations).where(mine).with_for_update())).first()
    if row is not None and row.ended_at is not None:  # of a request that was not delivered
        values |= await _anew(connection, incident)
    if by is not None:
        values |= {"acknowledged_at": now, "acknowledged_by": by[:_LONGEST]}
    await _put(connection, incident, values)


async def begin_for_unmatched(connection: AsyncConnection, incident: str, now: datetime) -> None:
    """Let the levels begin for a record that no playbook took an alert, while that fires."""
    if await _wanted(connection, incident):
        await _put(connection, incident, {"since": now, "due_at": now})


async def begin_for_request(connection: AsyncConnection, incident: str, now: datetime) -> bool:
    """Let the levels begin for an open incident whose request for an approval reached nobody.

    Returns whether that is news. Whoever approves or rejects has the incident.
    """
    mine = t.escalations.c.incident_id == incident
    row = (await connection.execute(select(t.escalations).where(mine).with_for_update())).first()
    over = row is not None and row.ended_at is not None
    if row is not None and not over and (row.since is not None or row.acknowledged_at is not None):
        return False
    values: dict[str, Any] = {"since": now, "due_at": now}
    await _put(connection, incident, values | (await _anew(connection, incident) if over else {}))
    return True


async def take_over(connection: AsyncConnection, incident: str, by: str, now: datetime) -> None:
    """Note that ``by`` has the incident whose levels are under way, where nobody has it."""
    mine = t.escalations.c.incident_id == incident
    under_way = t.escalations.c.since.is_not(None) & t.escalations.c.ended_at.is_(None)
    nobody = t.escalations.c.acknowledged_at.is_(None)
    taken = {"acknowledged_at": now, "acknowledged_by": by[:_LONGEST], "due_at": now}
    row = update(t.escalations).where(mine, under_way, nobody)
    await connection.execute(row.values(**taken, echoed=False))


async def begin_for_what_stays(connection: AsyncConnection, incident: str, now: datetime) -> None:
    """Let the levels begin, whether or not an alert fires: a temporary change stays in production.

    Levels that are under way go on; what is over is told anew.
    """
    mine = t.escalations.c.incident_id == incident
    row = (await connection.execute(select(t.escalations).where(mine).with_for_update())).first()
    values: dict[str, Any] = {"since": now, "due_at": now}
    if row is not None and row.ended_at is not None:
        values |= await _anew(connection, incident)
    elif row is not None and row.since is not None and row.acknowledged_at is None:
        return
    await _put(connection, incident, values)


async def _anew(connection: AsyncConnection, incident: str) -> dict[str, Any]:
    """Forget what was told in levels that are over; return what the escalation's row begins with."""
    calls = or_(t.tellings.c.word == Word.LEVEL, t.tellings.c.subject == "")
    told = delete(t.tellings).where(t.tellings.c.incident_id == incident, calls)
    await connection.execute(told)
    nobody = {"acknowledged_at": None, "acknowledged_by": None, "echoed": False}
    return nobody | {"level": 0, "ended_at": None}


async def _wanted(connection: AsyncConnection, incident: str) -> bool:
    fires = exists().where(
        t.alerts.c.incident_id == t.incidents.c.id, t.alerts.c.status == AlertStatus.FIRING
    )
    query = select(t.incidents.c.id).where(
        t.incidents.c.id == incident, t.incidents.c.dry_run.is_(False), fires
    )
    return (await connection.execute(query)).scalar() is not None


async def _put(connection: AsyncConnection, incident: str, values: dict[str, Any]) -> None:
    row = update(t.escalations).where(t.escalations.c.incident_id == incident)
    if not (await connection.execute(row.values(**values))).rowcount:
        fresh = {"incident_id": incident, "level": 0}
        await connection.execute(insert(t.escalations).values(**fresh | values))


def _with_it(incident: str, values: dict[str, Any]) -> Any:
    """Return what lets the same person have what was told in one page with ``incident``."""
    told = select(t.tellings.c.incident_id).where(t.tellings.c.told_with == incident)
    nobody = t.escalations.c.acknowledged_at.is_(None) & t.escalations.c.ended_at.is_(None)
    return (
        update(t.escalations).where(t.escalations.c.incident_id.in_(told), nobody).values(**values)
    )


async def acknowledge(
    connection: AsyncConnection, incident_id: str, by: str, now: datetime, *, echo: bool
) -> Acknowledged:
    """Note that ``by`` has the incident; ``Refused`` when there is nothing that waits for anyone.

    An ``echo`` of what somebody did before, in another system, changes nothing.
    """
    query = select(t.incidents).where(t.incidents.c.id == incident_id)
    locked = query.with_for_update(key_share=True)
    incident = (await connection.execute(locked)).mappings().first()
    if incident is None:
        raise Refused(404, f"Incident {incident_id} not found")
    mine = t.escalations.c.incident_id == incident_id
    standing = select(t.escalations).where(mine).with_for_update()
    row = (await connection.execute(standing)).mappings().first()
    is_open = incident["state"] == IncidentState.OPEN
    if not is_open and (row is None or row["since"] is None or row["ended_at"] is not None):
        raise Refused(409, f"incident {incident_id} needs nobody: it is {incident['outcome']}")
    if row is not None and row["acknowledged_at"] is not None and echo:
        at, who = row["acknowledged_at"], row["acknowledged_by"]
        return Acknowledged(incident_id=IncidentId(incident_id), by=who, at=at, anew=False)
    who = by[:_LONGEST]
    values = {"acknowledged_at": now, "acknowledged_by": who, "echoed": echo}
    await _put(connection, incident_id, values | ({} if is_open else {"due_at": now}))
    await connection.execute(_with_it(incident_id, values | {"due_at": now}))
    return Acknowledged(incident_id=IncidentId(incident_id), by=who, at=now, anew=True)
