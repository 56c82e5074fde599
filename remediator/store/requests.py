"""Requests for an approval: the time for the answer counts from when people were asked."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import BigInteger, ColumnElement, literal, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model import IncidentState, MitigationState
from remediator.store import tables as t
from remediator.store.columns import micros_of
from remediator.store.journal import append


def unheard() -> ColumnElement[bool]:
    """Pick the plans whose request was not delivered yet."""
    plans = t.mitigations.c
    waits = plans.state == MitigationState.AWAITING_APPROVAL
    return waits & plans.asked_at.is_(None) & plans.answer_within.is_not(None)


def until(now: datetime) -> ColumnElement[int]:
    """Return the end of the time for an answer, for a request that is delivered ``now``."""
    moment = literal(micros_of(now), BigInteger)
    return moment + type_coerce(t.mitigations.c.answer_within, BigInteger)


async def renew(connection: AsyncConnection, incidents: Collection[str], now: datetime) -> None:
    """Let requests that are about to be sent name the time that they would have from now."""
    mine = t.mitigations.c.incident_id.in_(sorted(incidents))
    await connection.execute(
        update(t.mitigations).where(mine, unheard()).values(expires_at=until(now))
    )


async def delivered(
    connection: AsyncConnection,
    incident: str,
    now: datetime,
    to: str,
    only: Collection[str] | None = None,
) -> None:
    """Let the time for the answer begin: the request was delivered, and how; once for each plan.

    ``only`` are the mitigations that were asked for; None is whichever waits.
    """
    plans = update(t.mitigations).where(t.mitigations.c.incident_id == incident, unheard())
    if only is not None:
        plans = plans.where(t.mitigations.c.id.in_(sorted(only)))
    asked = plans.values(asked_at=now, expires_at=until(now)).returning(t.mitigations.c.plan_hash)
    for plan in list(await connection.scalars(asked)):
        data = {"plan": plan}
        reason = f"to {to}; the time for the answer counts from now"
        event = "approval request delivered"
        append(connection, incident, at=now, step="approval", event=event, reason=reason, data=data)
        waits = (t.incidents.c.id == incident) & (t.incidents.c.state == IncidentState.OPEN)
        await connection.execute(update(t.incidents).where(waits).values(due_at=now, poked=True))
