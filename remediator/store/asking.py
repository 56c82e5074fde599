"""Plans that wait for a human's answer, or for their call after it: nobody is asked for one twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model import IncidentId, Mitigation, MitigationState
from remediator.store import tables as t

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
