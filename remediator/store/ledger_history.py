"""What the ledger knows of the past, as the bounds look back on it. Reads, never writes.

Called inside the reservation's transaction, so that what is read is what holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.incident import Incident, IncidentOutcome
from remediator.model.lookback import Allowance, Relapses
from remediator.model.mitigation import Mitigation, MitigationState
from remediator.model.transition import LedgerHistory, Mended, Past
from remediator.model.verdict import Assessment
from remediator.store import tables as t

COUNTED = (
    MitigationState.RESERVED,
    MitigationState.APPLIED,
    MitigationState.UNKNOWN,
    MitigationState.REVERTED,
)
"""States of a change that was made, or may have been."""


async def hindsight(
    connection: AsyncConnection,
    incident: Incident,
    mitigation: Mitigation,
    allowance: Allowance,
    now: datetime,
) -> LedgerHistory:
    """Read what the safeguards depend on."""
    target, safeguards = mitigation.target, allowance.safeguards
    replaced = (kind.replaces for kind in allowance.kinds.values())
    raising = (name for name, kind in allowance.kinds.items() if kind.raises)
    known = {mitigation.kind, *raising}.union(*replaced)
    longest = max(safeguards.growth.window, safeguards.hands_off)
    since = t.mitigations.c.reserved_at > now - longest
    same = (t.mitigations.c.target_key == target.key) & t.mitigations.c.kind.in_(sorted(known))
    recent = t.mitigations.c.reserved_at > now - safeguards.spread.window
    return LedgerHistory(
        on_target=await _pasts(connection, since & same),
        lately=await _pasts(connection, or_(recent, t.mitigations.c.in_flight)),
        mended=await _mended(connection, incident, safeguards.relapses, now),
    )


async def _pasts(connection: AsyncConnection, which: ColumnElement[bool]) -> tuple[Past, ...]:
    columns = t.mitigations.c
    query = (
        select(
            columns.incident_id.label("incident"),
            columns.reserved_at.label("at"),
            *(columns[name] for name in _SAME),
        )
        .where(which, columns.reserved_at.is_not(None), columns.state.in_(COUNTED))
        .order_by(columns.reserved_at, columns.id)
    )
    rows = (await connection.execute(query)).mappings()
    return tuple(Past.model_validate(dict(row)) for row in rows)


_SAME = ("system", "service", "playbook", "target_key", "kind", "state", "before")


async def _mended(
    connection: AsyncConnection, incident: Incident, rule: Relapses, now: datetime
) -> tuple[Mended, ...]:
    """Pair every success with the next incident of its cause; replays are neither."""
    since = now - rule.window
    ours, them = t.mitigations.c, t.incidents.c
    query = (
        select(them.id, them.correlation_key, them.closed_at)
        .join(t.mitigations, ours.incident_id == them.id)
        .where(ours.system == incident.system, ours.service == incident.service)
        .where(ours.playbook == incident.playbook, ours.verdict == Assessment.BETTER)
        .where(ours.reserved_at > since, them.closed_at > since)
        .where(them.outcome == IncidentOutcome.MITIGATED, them.replay_of.is_(None))
        .distinct()
        .order_by(them.closed_at)
    )
    ended = (await connection.execute(query)).all()
    begun = await _begun(connection, {key for _, key, _ in ended}, since)
    return tuple(_back(begun, *row) for row in ended)


async def _begun(
    connection: AsyncConnection, keys: set[str], since: datetime
) -> Sequence[tuple[str, datetime]]:
    if not keys:
        return ()
    them = t.incidents.c
    query = (
        select(them.correlation_key, them.opened_at)
        .where(them.correlation_key.in_(sorted(keys)), them.opened_at > since)
        .where(them.replay_of.is_(None))
        .where(or_(them.outcome.is_(None), them.outcome != IncidentOutcome.SUPPRESSED))
        .order_by(them.opened_at)
    )
    return [(key, at) for key, at in (await connection.execute(query)).all()]


def _back(begun: Iterable[tuple[str, datetime]], incident: Any, key: str, at: datetime) -> Mended:
    back_at = next((opened for cause, opened in begun if cause == key and opened >= at), None)
    return Mended(incident=incident, at=at, back_at=back_at)
