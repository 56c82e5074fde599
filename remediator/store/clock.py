"""What a clock that was ahead has put off, at a start after it was put right.

Whatever is due at a time was given that time by the store's clock. Where the clock was a day ahead,
it would sleep for a day.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.mitigation import MitigationState
from remediator.store import tables as t
from remediator.store.approvals import unheard, until
from remediator.store.database import Database
from remediator.store.ledger import entry_of

LONGEST_WAIT = timedelta(hours=1)
"""Longest time until anything but a take-back is looked at again: what a chat or a pager may ask for.

A step that is taken too early waits again, so a longer approval is none the worse for it."""

_QUEUES = (t.incidents, t.events, t.notices, t.escalations, t.tellings)
_log = structlog.get_logger(__name__)


async def bring_forward(database: Database) -> int:
    """Make due now what no clock that is right can have put off so far; return how much there was.

    A temporary change is due after its hold time; the time for the answer to a plan, and that of a
    reservation, is over after its length: each counted from now.
    """

    async def operation(connection: AsyncConnection) -> int:
        now = await database.now(connection)
        count = await _bring_holds_forward(connection, now)
        count += await _bring_answers_forward(connection, now)
        count += await _bring_reservations_forward(connection, now)
        for table in _QUEUES:
            late = update(table).where(table.c.due_at > now + LONGEST_WAIT).values(due_at=now)
            count += (await connection.execute(late)).rowcount
        return count

    count = await database.write(operation, serial=True)
    if count:
        _log.warning("due_times_brought_forward", count=count, reason="a clock was ahead before")
    return count


async def _bring_holds_forward(connection: AsyncConnection, now: datetime) -> int:
    query = (
        select(t.mitigations, t.obligations.c.due_at)
        .join(t.obligations, t.obligations.c.mitigation_id == t.mitigations.c.id)
        .where(t.obligations.c.due_at > now + LONGEST_WAIT)
    )
    count = 0
    for row in (await connection.execute(query)).mappings().all():
        hold = _hold(row)
        if hold is not None and row["due_at"] > now + hold:
            mine = t.obligations.c.mitigation_id == row["id"]
            await connection.execute(update(t.obligations).where(mine).values(due_at=now + hold))
            count += 1
    return count


async def _bring_answers_forward(connection: AsyncConnection, now: datetime) -> int:
    """Count from now what was asked, or was to be asked, at a time that has not come yet."""
    plans = t.mitigations.c
    waits = plans.state == MitigationState.AWAITING_APPROVAL
    asked = update(t.mitigations).where(waits, plans.asked_at > now)
    count = (await connection.execute(asked.values(asked_at=now, expires_at=until(now)))).rowcount
    unasked = update(t.mitigations).where(unheard(), plans.created_at > now)
    return count + (await connection.execute(unasked.values(created_at=now))).rowcount


async def _bring_reservations_forward(connection: AsyncConnection, now: datetime) -> int:
    """Let the time of a call that may be on its way be over as long from now as it was to last.

    When it was reserved stays as it is: bounds count it as they did.
    """
    plans = t.mitigations.c
    reserved = plans.state == MitigationState.RESERVED
    query = select(plans.id, plans.reserved_at, plans.apply_before)
    rows = (await connection.execute(query.where(reserved, plans.reserved_at > now))).all()
    for row in rows:
        before = now + (row.apply_before - row.reserved_at)
        mine = plans.id == row.id
        await connection.execute(update(t.mitigations).where(mine).values(apply_before=before))
        looks = (t.samples.c.mitigation_id == row.id) & (t.samples.c.at > now)
        await connection.execute(update(t.samples).where(looks).values(at=now))
    return len(rows)


def _hold(row: object) -> timedelta | None:
    """Return the hold time of a stored change; None for one that this version cannot read."""
    try:
        return entry_of(row).mitigation.hold
    except ValueError:
        return None
