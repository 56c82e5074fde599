"""What a step is given: a claimed incident, and all that is stored of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CursorResult, Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import Alert, AlertStatus
from remediator.model.incident import Incident, IncidentState
from remediator.model.mitigation import Proposal
from remediator.model.transition import Claim
from remediator.model.verdict import Sample
from remediator.store import tables as t
from remediator.store.ledger import entry_of
from remediator.store.maintenance import windows_over

RECENT = timedelta(days=1)
"""Age of an incident, at the opening of another, up to which its alerts are the other's matter."""
MOST_ALERTS = 1000
"""Most alerts of its own incident that a step sees: a storm's may have any number."""
NEIGHBOURS = 50
"""Most alerts of other incidents that a step sees."""


async def read_claim(
    connection: AsyncConnection, row: Any, now: datetime, lease: timedelta
) -> Claim:
    """Read all that belongs to a claimed row; ``ValidationError`` where this version cannot."""
    incident = incident_of(row)
    mine = t.mitigations.c.incident_id == incident.id
    entries = await connection.execute(
        select(t.mitigations).where(mine).order_by(t.mitigations.c.created_at, t.mitigations.c.id)
    )
    samples = await connection.execute(
        select(t.samples)
        .join(t.mitigations, t.mitigations.c.id == t.samples.c.mitigation_id)
        .where(mine, t.mitigations.c.in_flight)
        .order_by(t.samples.c.id)  # not by their time: the clock may have been put back
    )
    begin = min(incident.opened_at, now)  # the clock may have been put back since
    return Claim(
        incident=incident,
        alerts=await incident_alerts(connection, incident.id),
        beside=tuple(await connection.scalars(_beside(incident))),
        neighbours=_alerts(await connection.execute(_neighbours(incident))),
        proposal=None if row["proposal"] is None else Proposal.model_validate(row["proposal"]),
        entries=tuple(entry_of(entry) for entry in entries.mappings()),
        samples=tuple(
            Sample.model_validate({name: sample[name] for name in Sample.model_fields})
            for sample in samples.mappings()
        ),
        windows=tuple(await windows_over(connection, incident, begin, now)),
        now=now,
        lease=lease,
    )


def _beside(incident: Incident) -> Select[Any]:
    return (
        select(t.incidents.c.playbook)
        .where(t.incidents.c.state == IncidentState.OPEN, t.incidents.c.id != incident.id)
        .where(t.incidents.c.system == incident.system)
        .where(t.incidents.c.service == incident.service, t.incidents.c.playbook.is_not(None))
        .distinct()
        .order_by(t.incidents.c.playbook)
    )


def _neighbours(incident: Incident) -> Select[Any]:
    return (
        select(t.alerts)
        .join(t.incidents, t.incidents.c.id == t.alerts.c.incident_id)
        .where(t.alerts.c.status == AlertStatus.FIRING)
        .where(t.incidents.c.id != incident.id, t.incidents.c.replay_of.is_(None))
        .where(t.incidents.c.system == incident.system)
        .where(t.incidents.c.service == incident.service)
        .where(t.incidents.c.opened_at > incident.opened_at - RECENT)
        .order_by(t.alerts.c.first_seen_at.desc())
        .limit(NEIGHBOURS)
    )


async def incident_alerts(connection: AsyncConnection, incident: str) -> tuple[Alert, ...]:
    """Return the incident's alerts as they stand, oldest first; of many those that fire."""
    mine = t.alerts.c.incident_id == incident
    firing_first = (t.alerts.c.status != AlertStatus.FIRING, t.alerts.c.first_seen_at)
    most = select(t.alerts.c.id).where(mine).order_by(*firing_first, t.alerts.c.id)
    rows = await connection.execute(
        select(t.alerts)
        .where(t.alerts.c.id.in_(most.limit(MOST_ALERTS)))
        .order_by(t.alerts.c.first_seen_at, t.alerts.c.id)
    )
    return _alerts(rows)


def _alerts(rows: CursorResult[Any]) -> tuple[Alert, ...]:
    return tuple(
        Alert.model_validate({name: row[name] for name in Alert.model_fields})
        for row in rows.mappings()
    )


def incident_of(row: Any) -> Incident:
    """Read an incident's row."""
    return Incident.model_validate({name: row[name] for name in Incident.model_fields})
