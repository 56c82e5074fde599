"""An incident: what it is, where it stands, and how it ended."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime

from remediator.model.base import IncidentId, Value
from remediator.model.severity import Handling, Severity


class IncidentState(StrEnum):
    """Closed means that the service has nothing more to do; the alert may still be firing."""

    OPEN = "open"
    CLOSED = "closed"


class Phase(StrEnum):
    """The step that an open incident is at; the queue's claim hands it to that step."""

    DIAGNOSE = "diagnose"
    DECIDE = "decide"
    APPROVAL = "approval"
    ACT = "act"
    VERIFY = "verify"
    REVERT = "revert"
    SETTLE = "settle"
    """The measurements are good; the sender has not yet said that the alert resolved."""
    DONE = "done"


class IncidentOutcome(StrEnum):
    """How an incident ended."""

    MITIGATED = "mitigated"
    RESOLVED_BY_ITSELF = "resolved_by_itself"
    REVERTED = "reverted"
    ESCALATED = "escalated"
    SHADOWED = "shadowed"
    DENIED = "denied"
    NO_MATCH = "no_match"
    SUPPRESSED = "suppressed"


NEEDS_A_HUMAN = frozenset(
    {IncidentOutcome.ESCALATED, IncidentOutcome.DENIED, IncidentOutcome.REVERTED}
)
"""Outcomes after which a person has to act, as long as the alert fires."""


class Incident(Value):
    """The unit of work: the alerts of one service that have one cause."""

    id: IncidentId
    correlation_key: str
    state: IncidentState
    phase: Phase
    outcome: IncidentOutcome | None
    reason: str
    system: str | None
    service: str | None
    playbook: str | None
    dry_run: bool
    replay_of: str | None
    round: int
    """How many times it was diagnosed; each round may pull one lever."""
    epoch: int
    """Fencing token: raised by every claim, checked by every write of a step."""
    opened_at: AwareDatetime
    closed_at: AwareDatetime | None
    phase_since: AwareDatetime
    progressed_at: AwareDatetime
    """When it was opened, or last had to wait for the verdict on a possible cause."""
    severity: Severity = 3
    """The worst of its alerts."""
    severity_word: str = ""
    """The sender's own word for it; empty where it has none."""
    handling: Handling = Handling.RECORDS
