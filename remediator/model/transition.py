"""What a step is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from pydantic import AwareDatetime, Field, JsonValue

from remediator.model.alert import Alert, AlertStatus
from remediator.model.base import IncidentId, MitigationId, Value
from remediator.model.duration import Duration
from remediator.model.finding import Finding
from remediator.model.incident import Incident, IncidentOutcome, Phase
from remediator.model.limits import Usage
from remediator.model.maintenance import Halt, Window
from remediator.model.mitigation import (
    Decision,
    Figure,
    Instances,
    ItemOutcome,
    LedgerEntry,
    MitigationState,
    Proposal,
)
from remediator.model.verdict import Assessment, Sample
from remediator.model.views import TimelineEvent

LEASE = timedelta(seconds=5)
"""Time after which a silent owner's incident is taken over; renewed at a third of it."""


class Claim(Value):
    """One incident to take one step with, and the right to write its result."""

    incident: Incident
    alerts: tuple[Alert, ...]
    proposal: Proposal | None
    entries: tuple[LedgerEntry, ...]
    """Its rows in the ledger, oldest first."""
    beside: tuple[str, ...]
    """Playbooks that are at work on other open incidents of the same service."""
    neighbours: tuple[Alert, ...]
    """Alerts of the same service that fire now, of other recent incidents; the newest."""
    samples: tuple[Sample, ...]
    """Looks at the mitigation that is in flight."""
    windows: tuple[Window, ...] = ()
    """Ordered maintenance windows over it since it was opened."""
    now: AwareDatetime
    """The store's time at the claim."""
    lease: Duration = LEASE
    """Time that it is ours, at the claim and after every renewal."""

    @property
    def firing(self) -> bool:
        """Whether any of its alerts still fires."""
        return any(alert.status is AlertStatus.FIRING for alert in self.alerts)


class Past(Value):
    """One change that we made, or may have made."""

    incident: IncidentId
    system: str
    service: str
    playbook: str
    target_key: str
    kind: str
    state: MitigationState
    at: AwareDatetime
    """When it was reserved."""
    before: dict[str, JsonValue]

    @property
    def stands(self) -> bool:
        """Whether it has not been taken back."""
        return self.state is not MitigationState.REVERTED

    @property
    def figure(self) -> Figure | None:
        """The figure that it changed; None where that cannot be read."""
        return Figure.of(self.before)

    @property
    def instances(self) -> Instances | None:
        """The instances that it touched; None where that cannot be read."""
        return Instances.of(self.before)


class Mended(Value):
    """An incident that a playbook mitigated, and whether its cause came back."""

    incident: IncidentId
    at: AwareDatetime
    """When it ended."""
    back_at: AwareDatetime | None
    """When the next incident of the same cause began; None where there was none."""


class LedgerHistory(Value):
    """What the past says about one more change."""

    on_target: tuple[Past, ...] = ()
    """Changes of the same target whose kind the safeguards know, oldest first."""
    lately: tuple[Past, ...] = ()
    """Changes of all targets within the window of ``Spread``, or in flight."""
    mended: tuple[Mended, ...] = ()
    """What the same playbook mitigated on the same service, oldest first."""


class Transition(Value):
    """The result of one step: what is written, in one transaction, and when to go on."""

    phase: Phase
    due_in: Duration | None = timedelta(0)
    """Time until the next step; None waits for an event."""
    outcome: IncidentOutcome | None = None
    """Set, with phase ``done``, to close the incident."""
    reason: str = ""
    """Becomes the incident's reason when it is not empty."""
    next_round: bool = False
    events: tuple[TimelineEvent, ...] = ()
    findings: tuple[Finding, ...] = ()
    proposal: Proposal | None = None
    entry: LedgerEntry | None = None
    """A row to add that is not a reservation: shadowed, denied, awaiting approval."""
    settlement: Settlement | None = None
    sample: tuple[MitigationId, Sample] | None = None
    progress: bool = False
    """Whether patience begins anew: the wait was for somebody else's work."""
    calls: bool = False
    """Whether the levels of the escalation begin although it is open: a request reached nobody."""
    notify: bool = Field(default=True)
    """Whether humans are told of the change; an end is told in any case to who knows of it."""


class LimitUsage(Value):
    """What the bounds depend on, read in one transaction."""

    now: AwareDatetime
    incident: IncidentId
    """Whose mitigation it is, of this system and service."""
    system: str | None
    service: str | None
    paused: Halt | None
    """Why nothing may be changed now: scope, who and why; None when nothing is paused."""
    firing: bool
    """Whether the incident's alert still fires; replays count as firing."""
    usages: tuple[Usage, ...]
    """One for each bound, in the same order."""
    busy_with: IncidentId | None
    """The incident whose mitigation of the same target is in flight, or just being taken back."""
    held_by: IncidentId | None
    """The incident whose temporary change of the same kind has not been taken back yet."""
    last_on_target: AwareDatetime | None
    """When another incident last reserved a mitigation of the same target."""
    past: LedgerHistory
    """What we changed before."""


class Settlement(Value):
    """What became of a reserved mitigation."""

    id: MitigationId
    state: MitigationState
    reason: str | None = None
    items: tuple[ItemOutcome, ...] | None = None
    in_flight: bool
    """False once it is judged, or known not to have happened."""
    verdict: Assessment | None = None
    evidence: str | None = None


Judge = Callable[[LimitUsage], Decision]
