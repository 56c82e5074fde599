"""Plans that wait for people: who is asked, who agreed, and how long there is time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    delete,
    insert,
    literal,
    literal_column,
    select,
    type_coerce,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.base import IncidentId
from remediator.model.errors import Refused
from remediator.model.incident import IncidentState
from remediator.model.mitigation import Approval, Consent, Mitigation, MitigationState
from remediator.store import tables as t
from remediator.store.columns import micros_of
from remediator.store.database import Database
from remediator.store.journal import append

_REMEMBERED = timedelta(hours=1)
"""Longer than a signed request is accepted."""
_LONGEST = 200
"""Characters of the names of those who decided, in the store."""


class Clicks:
    """Remembers the requests of a chat for an hour, so that a repeated one is seen."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, click: str) -> bool:
        """Keep the digest of a signed request; False when it was taken before."""

        async def operation(connection: AsyncConnection) -> bool:
            now = await self._database.now(connection)
            await connection.execute(delete(t.clicks).where(t.clicks.c.at < now - _REMEMBERED))
            known = await connection.scalar(select(t.clicks.c.id).where(t.clicks.c.id == click))
            if known is None:
                await connection.execute(insert(t.clicks), {"id": click, "at": now})
            return known is None

        return await self._database.order(operation, serial=True)


async def open_incident(connection: AsyncConnection, incident_id: str) -> Any:
    """Return the row of an open incident, locked; ``Refused`` (404, 409) for any other."""
    query = select(t.incidents).where(t.incidents.c.id == incident_id)
    # lines of the journal about it may be written meanwhile
    locked = query.with_for_update(key_share=True)
    row = (await connection.execute(locked)).mappings().first()
    if row is None:
        raise Refused(404, f"Incident {incident_id} not found")
    if row["state"] != IncidentState.OPEN:
        raise Refused(409, f"incident {incident_id} is closed: {row['outcome']}, {row['reason']}")
    return row


async def waiting_plan(
    connection: AsyncConnection, incident_id: str, plan_hash: str | None, now: datetime
) -> Any:
    """Return the row of the plan that waits; ``Refused`` when it is over, or is another one."""
    incident = await open_incident(connection, incident_id)
    query = select(t.mitigations).where(
        t.mitigations.c.incident_id == incident_id,
        t.mitigations.c.state == MitigationState.AWAITING_APPROVAL,
    )
    row = (await connection.execute(query)).mappings().first()
    if row is None:
        raise Refused(
            409,
            f"incident {incident_id} is not waiting for an approval: its phase is {incident['phase']}",
        )
    unheard = row["answer_within"] is not None and row["asked_at"] is None
    if row["expires_at"] is not None and row["expires_at"] <= now and not unheard:
        raise Refused(409, f"the plan expired at {row['expires_at'].isoformat()}")
    if plan_hash is not None and plan_hash != row["plan_hash"]:
        raise Refused(409, f"the plan has changed: it is {row['plan_hash']} now; look at it again")
    return row


async def agree(connection: AsyncConnection, plan: Any, approval: Approval) -> Consent:
    """Add one person's yes; enough of them let the plan go ahead.

    ``Refused`` for a person who has agreed already: the next one must be somebody else.
    """
    given = [Approval.model_validate(one) for one in plan["approvals"]]
    needed = plan["approvals_needed"]
    if approval.by in {one.by for one in given}:
        left = needed - len(given)
        raise Refused(409, f"{approval.by} has approved this plan already; {left} more must agree")
    given.append(approval)
    consent = Consent(given=len(given), needed=needed)
    values: dict[str, Any] = {"approvals": [one.model_dump(mode="json") for one in given]}
    if not consent.missing:
        names = ", ".join(one.by for one in given)
        values |= {"state": MitigationState.APPROVED, "decided_by": names[:_LONGEST]}
    await _write(connection, plan, values)
    return consent


async def turn_down(connection: AsyncConnection, plan: Any, by: str, now: datetime) -> None:
    """End the plan: one person's no is enough, whoever agreed before."""
    values = {"state": MitigationState.REJECTED, "decided_by": by[:_LONGEST], "finished_at": now}
    await _write(connection, plan, values)


def said_of(consent: Consent) -> str:
    """Say how far it has come, for the journal: ``approved``, or ``approved, 1 of 2``."""
    many = consent.needed > 1
    return f"approved, {consent.given} of {consent.needed}" if many else "approved"


async def _write(connection: AsyncConnection, plan: Any, values: dict[str, Any]) -> None:
    this = t.mitigations.c.id == plan["id"]
    await connection.execute(update(t.mitigations).where(this).values(**values))


_WAITING = (MitigationState.AWAITING_APPROVAL, MitigationState.APPROVED)


async def asked_elsewhere(
    connection: AsyncConnection, incident: IncidentId, mitigation: Mitigation
) -> IncidentId | None:
    """Return another open incident whose plan for the same things of the target waits."""
    plans = t.mitigations.c
    query = (
        select(plans.incident_id, plans.mitigation)
        .join(t.incidents, t.incidents.c.id == plans.incident_id)
        .where(t.incidents.c.state == literal_column("'open'"))  # as the index has it
        .where(plans.incident_id != incident, plans.target_key == mitigation.target.key)
        .where(plans.state.in_(_WAITING))
        .order_by(plans.created_at, plans.id)
    )
    for other, plan in (await connection.execute(query)).all():
        if _same_things(mitigation, plan):
            return IncidentId(other)
    return None


def _same_things(mitigation: Mitigation, other: Mapping[str, Any]) -> bool:
    """Whether both name one item; a plan without items is about the whole target."""
    ours = {item.key for item in mitigation.items}
    theirs = {item["key"] for item in other.get("items", ())}
    return not ours or not theirs or bool(ours & theirs)


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
