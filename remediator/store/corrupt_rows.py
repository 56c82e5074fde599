"""What is told of a closed incident whose row this version cannot read: that, and whose it is."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from remediator.model.base import IncidentId
from remediator.model.incident import Incident, IncidentOutcome, IncidentState, Phase
from remediator.model.severity import SEVERITIES, UNKNOWN
from remediator.store.incidents import UNREADABLE


def stand_in(row: Any, now: datetime) -> Incident:
    """Keep of the incident's row what is plain text, for a human to be called to it."""
    return Incident(
        id=IncidentId(row["id"]),
        correlation_key=row["correlation_key"],
        state=IncidentState.CLOSED,
        phase=Phase.DONE,
        outcome=IncidentOutcome.ESCALATED,
        reason=UNREADABLE,
        system=row["system"],
        service=row["service"],
        playbook=None,
        dry_run=False,
        replay_of=row["replay_of"],
        round=0,
        epoch=0,
        opened_at=now,
        closed_at=now,
        phase_since=now,
        progressed_at=now,
        severity=row["severity"] if row["severity"] in SEVERITIES else UNKNOWN,
        severity_word=row["severity_word"],
    )
