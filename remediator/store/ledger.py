"""The ledger: every mitigation is a row before it is a call.

The reservation is serial: under one lock it reads what the bounds depend on, lets a pure
function judge, and inserts. Whatever was decided before is advice; this has the last word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, insert, or_, select, true, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import AlertStatus
from remediator.model.base import IncidentId
from remediator.model.errors import OwnershipLost
from remediator.model.incident import Incident, IncidentState, Phase
from remediator.model.limits import Bound, Usage
from remediator.model.lookback import Allowance
from remediator.model.maintenance import Halt, running, scopes_of
from remediator.model.mitigation import Decision, Effect, LedgerEntry, Mitigation, MitigationState
from remediator.model.transition import Judge, LimitUsage, Settlement
from remediator.store import tables as t
from remediator.store.approvals import asked_elsewhere
from remediator.store.database import Database
from remediator.store.journal import append
from remediator.store.leases import require_claimed
from remediator.store.ledger_history import COUNTED, hindsight
from remediator.store.maintenance import windows_over

_TOLD = (t.mitigations.c.id, t.mitigations.c.effect_key)

LATEST = timedelta(seconds=12)
"""Time past ``apply_before`` up to which a call that is not seen may still take effect."""
STEP = "ledger"
"""Step of the journal's lines that tell how the ledger changed, for the audit."""


class Ledger:
    """Reservations and their outcomes."""

    def __init__(self, database: Database, apply_within: timedelta) -> None:
        """Let a reserved call begin ``apply_within`` its reservation; later it is dropped."""
        self._database = database
        self.apply_within = apply_within

    def apply_deadline(self, started: float) -> float:
        """Return the monotonic second until which a call reserved from ``started`` may begin."""
        return started + self.apply_within.total_seconds()

    async def standing(
        self, incident: Incident, mitigation: Mitigation, allowance: Allowance
    ) -> LimitUsage:
        """Read how things stand, without any lock: good for a reason, not for a reservation."""
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            return await _standing(connection, incident, mitigation, allowance, now)

    async def reserve(
        self, incident: Incident, entry: LedgerEntry, allowance: Allowance, judge: Judge
    ) -> tuple[Decision, LedgerEntry | None]:
        """Count ``entry`` against all of ``allowance`` and commit it, or say why not.

        An entry whose id is already stored (an approved one) is moved to ``reserved``. Raises
        ``OwnershipLost`` when ``incident`` is no longer ours.
        """

        async def operation(
            connection: AsyncConnection,
        ) -> tuple[Decision, LedgerEntry | None]:
            await _own(connection, incident)
            now = await self._database.now(connection)
            plan = entry.mitigation
            decision = judge(await _standing(connection, incident, plan, allowance, now))
            if decision.effect is not Effect.ALLOW:
                return decision, None
            reserved = entry.model_copy(
                update={
                    "state": MitigationState.RESERVED,
                    "reserved_at": now,
                    "apply_before": now + self.apply_within,
                }
            )
            await _upsert_reserved(connection, reserved)
            _note(connection, reserved, now)
            return decision, reserved

        return await self._database.write(operation, serial=True)

    async def paused(
        self, incident: Incident, *, claimed: bool = True
    ) -> tuple[datetime, Halt | None]:
        """Return the time, and why nothing may be changed now: a pause or an ordered window.

        Raises ``OwnershipLost`` when ``incident`` was claimed and is no longer ours: no clock
        has to be trusted for that, neither one that stood still nor one that went back.
        """
        async with self._database.read() as connection:
            if claimed:
                await require_claimed(connection, t.incidents, incident.id, incident.epoch)
            now = await self._database.now(connection)
            return now, await _halt(connection, incident, now)

    async def asked_elsewhere(self, incident: Incident, plan: Mitigation) -> IncidentId | None:
        """Return another incident that waits for an answer about the same things, if any."""
        async with self._database.read() as connection:
            return await asked_elsewhere(connection, incident.id, plan)

    async def usage(self, bounds: Sequence[Bound]) -> list[Usage]:
        """Count what is used of ``bounds`` now."""
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            return [await _usage(connection, bound, now) for bound in bounds]


async def _own(connection: AsyncConnection, incident: Incident) -> None:
    mine = (
        (t.incidents.c.id == incident.id)
        & (t.incidents.c.epoch == incident.epoch)
        & (t.incidents.c.state == IncidentState.OPEN)
    )
    query = select(t.incidents.c.id).where(mine).with_for_update(key_share=True)
    if (await connection.execute(query)).first() is None:
        raise OwnershipLost(f"incident {incident.id} has been claimed or closed by another")


async def _standing(
    connection: AsyncConnection,
    incident: Incident,
    mitigation: Mitigation,
    allowance: Allowance,
    now: datetime,
) -> LimitUsage:
    firing = select(t.alerts.c.id).where(
        t.alerts.c.incident_id == incident.id, t.alerts.c.status == AlertStatus.FIRING
    )
    on_target = t.mitigations.c.target_key == mitigation.target.key
    owed = (
        select(t.mitigations.c.incident_id)
        .join(t.obligations, t.obligations.c.mitigation_id == t.mitigations.c.id)
        .where(on_target)
    )
    held = owed.where(t.mitigations.c.kind == mitigation.kind)
    # a claim that nobody gave back may still be at its call, whatever the clock says
    taken_back = owed.where(t.obligations.c.lease_until.is_not(None))
    busy = union_all(
        select(t.mitigations.c.incident_id).where(on_target, t.mitigations.c.in_flight), taken_back
    )
    last = select(func.max(t.mitigations.c.reserved_at)).where(
        on_target,
        t.mitigations.c.incident_id != incident.id,
        t.mitigations.c.state.in_(COUNTED),
    )
    return LimitUsage(
        now=now,
        incident=incident.id,
        system=incident.system,
        service=incident.service,
        paused=await _halt(connection, incident, now),
        firing=(await connection.execute(firing.limit(1))).first() is not None,
        usages=tuple([await _usage(connection, bound, now) for bound in allowance.bounds]),
        busy_with=(await connection.execute(busy)).scalar(),
        held_by=(await connection.execute(held)).scalar(),
        last_on_target=(await connection.execute(last)).scalar(),
        past=await hindsight(connection, incident, mitigation, allowance, now),
    )


async def _halt(connection: AsyncConnection, incident: Incident, now: datetime) -> Halt | None:
    window = running(await windows_over(connection, incident, now, now), now)
    if window is not None:
        return window.halt
    over = t.pauses.c.scope.in_(scopes_of(incident))
    query = select(t.pauses).where(over).order_by(t.pauses.c.since)
    row = (await connection.execute(query)).mappings().first()
    if row is None:
        return None
    why = row["reason"] or "no reason given"
    return Halt(reason=f"{row['scope']} is paused by {row['by']}: {why}")


async def _usage(connection: AsyncConnection, bound: Bound, now: datetime) -> Usage:
    within = _in_scope(bound.scope)
    reserved = select(func.count()).where(
        within,
        t.mitigations.c.reserved_at > now - bound.limits.window,
        t.mitigations.c.state.in_(COUNTED),
    )
    in_flight = select(func.count()).where(within, t.mitigations.c.in_flight)
    return Usage(
        scope=bound.scope,
        reserved=(await connection.execute(reserved)).scalar_one(),
        in_flight=(await connection.execute(in_flight)).scalar_one(),
    )


def _in_scope(scope: str) -> ColumnElement[bool]:
    kind, _, rest = scope.partition("/")
    if kind == "global":
        return true()
    if kind == "target":
        return t.mitigations.c.target_key == rest
    if kind == "lever":
        lever, _, target = rest.partition("/")
        return (t.mitigations.c.kind == lever) & (t.mitigations.c.target_key == target)
    columns = {
        "system": (t.mitigations.c.system,),
        "service": (t.mitigations.c.system, t.mitigations.c.service),
        "playbook": (t.mitigations.c.system, t.mitigations.c.service, t.mitigations.c.playbook),
    }[kind]
    clause: ColumnElement[bool] = true()
    for column, value in zip(columns, rest.split("/"), strict=True):
        clause = clause & (column == value)
    return clause


def _row(entry: LedgerEntry) -> dict[str, Any]:
    json_columns = {"mitigation", "before", "undo", "items", "approvals"}
    row = entry.model_dump(exclude=json_columns)
    row |= entry.model_dump(mode="json", include=json_columns)
    return row | {
        "target_key": entry.mitigation.target.key,
        "kind": entry.mitigation.kind,
        "in_flight": entry.state is MitigationState.RESERVED,
        "evidence": "",
    }


async def insert_entry(connection: AsyncConnection, entry: LedgerEntry, now: datetime) -> None:
    """Add a row that is not a reservation."""
    await connection.execute(insert(t.mitigations), _row(entry))
    _note(connection, entry, now)


def _note(connection: AsyncConnection, entry: LedgerEntry, now: datetime) -> None:
    """Tell the journal what stands in the ledger now, and who let it."""
    said = entry.model_dump(
        mode="json",
        include={"id", "effect_key", "playbook", "mode", "plan_hash", "decided_by", "approvals"},
    )
    plan = entry.mitigation
    what = {"kind": plan.kind, "target": plan.target.key, "items": [i.key for i in plan.items]}
    _tell(connection, entry.incident_id, now, entry.state, entry.reason, said | what)


def _tell(
    connection: AsyncConnection,
    incident: str,
    now: datetime,
    event: str,
    reason: str,
    data: Mapping[str, Any],
) -> None:
    append(connection, incident, at=now, step=STEP, event=event, reason=reason, data=data)


async def _upsert_reserved(connection: AsyncConnection, entry: LedgerEntry) -> None:
    row = _row(entry)
    changed = await connection.execute(
        update(t.mitigations)
        .where(
            t.mitigations.c.id == entry.id,
            t.mitigations.c.state == MitigationState.APPROVED,
        )
        .values(**row)
    )
    if changed.rowcount == 0:
        await connection.execute(insert(t.mitigations), row)


async def settle(
    connection: AsyncConnection, incident: IncidentId, settlement: Settlement, now: datetime
) -> None:
    """Write what became of a mitigation of ``incident``."""
    values: dict[str, Any] = {
        "state": settlement.state,
        "in_flight": settlement.in_flight,
        "finished_at": now,
    }
    for name in ("reason", "verdict", "evidence"):
        if getattr(settlement, name) is not None:
            values[name] = getattr(settlement, name)
    if settlement.items is not None:
        values["items"] = [item.model_dump(mode="json") for item in settlement.items]
    mine = (t.mitigations.c.id == settlement.id) & (t.mitigations.c.incident_id == incident)
    written = update(t.mitigations).where(mine).values(**values)
    row = (await connection.execute(written.returning(*_TOLD))).mappings().first()
    if row is not None:
        judged = f"judged {settlement.verdict}" if settlement.verdict else settlement.state
        reason = settlement.evidence or settlement.reason or ""
        items = {"items": {item.key: item.state for item in settlement.items or ()}}
        _tell(connection, incident, now, judged, reason, {**row} | items)


async def lands_in(connection: AsyncConnection, incident: str, now: datetime) -> timedelta:
    """Return the time until no call of the incident's can be on its way any more; 0 for none."""
    mine = (t.mitigations.c.incident_id == incident) & t.mitigations.c.in_flight
    being_made = t.mitigations.c.state == MitigationState.RESERVED
    query = select(func.max(t.mitigations.c.apply_before)).where(mine, being_made)
    before = (await connection.execute(query)).scalar()
    return timedelta(0) if before is None else max(before + LATEST - now, timedelta(0))


async def under_way(connection: AsyncConnection, incident: str, now: datetime) -> str | None:
    """Say which change of the incident is, or may be, just being made or put back."""
    mine = (t.mitigations.c.incident_id == incident) & t.mitigations.c.in_flight
    being_made = t.mitigations.c.state == MitigationState.RESERVED
    held = (t.incidents.c.phase == Phase.REVERT) & (t.incidents.c.lease_until > now)
    query = select(t.mitigations.c.effect_key).join(t.incidents).where(mine)
    made = (await connection.execute(query.where(being_made))).scalar()
    if made is not None:
        return f"{made} is being made right now"
    put_back = (await connection.execute(query.where(held))).scalar()
    return None if put_back is None else f"{put_back} is being put back right now"


async def close_entries(connection: AsyncConnection, incident: IncidentId, now: datetime) -> None:
    """Leave nothing of a closed incident in flight or waiting for an answer."""
    mine = t.mitigations.c.incident_id == incident
    pending = t.mitigations.c.state == MitigationState.RESERVED
    why = "the incident was closed before it was known whether this was done"
    lost = {"state": MitigationState.UNKNOWN, "evidence": why, "finished_at": now}
    told = update(t.mitigations).where(mine, pending).values(**lost).returning(*_TOLD)
    for row in (await connection.execute(told)).mappings():
        _tell(connection, incident, now, MitigationState.UNKNOWN, why, {**row})
    await connection.execute(
        update(t.mitigations).where(mine, t.mitigations.c.in_flight).values(in_flight=False)
    )
    waiting = or_(
        t.mitigations.c.state == MitigationState.AWAITING_APPROVAL,
        t.mitigations.c.state == MitigationState.APPROVED,
    )
    over = {"state": MitigationState.EXPIRED, "finished_at": now}
    told = update(t.mitigations).where(mine, waiting).values(**over).returning(*_TOLD)
    for row in (await connection.execute(told)).mappings():
        _tell(
            connection, incident, now, MitigationState.EXPIRED, "its incident was closed", {**row}
        )


def entry_of(row: Any) -> LedgerEntry:
    """Read a row of the ledger."""
    return LedgerEntry.model_validate({name: row[name] for name in LedgerEntry.model_fields})
