"""The service catalogue: which systems exist, how each is reached, its limits and its mode.

Built once by ``settings``; pure lookups from then on. Nothing in an alert addresses a backend:
labels select among these services by exact match and name nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue

from remediator.model.base import Value
from remediator.model.duration import Duration
from remediator.model.incident import Incident
from remediator.model.kinds import ApprovalClass
from remediator.model.limits import Bound, Limits
from remediator.model.lookback import Safeguards
from remediator.model.maintenance import Plan, Window, scopes_of
from remediator.model.severity import APPROVAL_TIMES, Handling, Severities, Severity
from remediator.model.target import Mode, Risk, Target


class LimitsOverride(Value):
    """Bounds that one scope sets for itself; those left out stay as they are."""

    model_config = ConfigDict(use_attribute_docstrings=True, hide_input_in_errors=True)

    budget: Annotated[int, Field(ge=0, strict=True)] | None = None
    """Mitigations allowed in any `window`."""
    window: Annotated[Duration, Field(gt=timedelta(0), strict=True)] | None = None
    """Time over which the budget is counted."""
    cooldown: Annotated[Duration, Field(strict=True)] | None = None
    """Least time between mitigations of one target by different incidents."""
    concurrency: Annotated[int, Field(ge=0, strict=True)] | None = None
    """Mitigations in flight at the same time."""

    def over(self, base: Limits) -> Limits:
        """Return ``base`` with what is set here in its place."""
        return base.model_copy(update=dict(self.model_dump(exclude_none=True)))


class EnabledPlaybook(Value):
    """One playbook switched on for one service."""

    name: str
    modes: dict[Risk, Mode]
    """How far it may go, by the risk of what it proposes."""
    limits: LimitsOverride = LimitsOverride()
    """What this service sets over the playbook's own bounds: ``limits.over(playbook.limits)``."""
    alertnames: tuple[str, ...] = ()
    """Alert names that it takes here besides its own."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """As written in the file; the playbook's own model reads them."""

    @property
    def handling(self) -> Handling:
        """What it may do about an incident in the mode that goes furthest."""
        modes = set(self.modes.values())
        if Mode.AUTO in modes:
            return Handling.ACTS
        return Handling.ASKS if Mode.APPROVE in modes else Handling.RECORDS


class Level(Value):
    """One stage of an escalation."""

    after: Duration
    """Time since a human was needed."""
    notify: tuple[str, ...]
    """Names of the channels that are told."""


class Escalation(Value):
    """Who is told, and when, as long as nobody has an incident that needs a human."""

    levels: tuple[Level, ...] = ()
    """By their time; none: nobody is called."""
    acknowledged_for: Duration = timedelta(minutes=30)
    """Time after which an acknowledgement does not count any more."""


class Service(Value):
    """One service of one system."""

    system: str
    name: str
    match: dict[str, str]
    """Labels that an alert must carry, the system's and the service's together."""
    targets: dict[str, Target]
    """By role."""
    prometheus: str | None
    """Name of the Prometheus that watches it; None where none is configured."""
    alertmanager: str | None = None
    """Name of the Alertmanager that its alerts come from; None where none is configured."""
    silence: bool = False
    """Whether its alerts are silenced there while a mitigation is in flight."""
    escalation: Escalation = Escalation()
    pagerduty_resolve: bool = False
    """Whether an incident of PagerDuty's is resolved there once it is mitigated."""
    playbooks: dict[str, EnabledPlaybook]
    approvals: dict[Risk, int] = Field(default_factory=lambda: dict.fromkeys(Risk, 1))
    """How many different persons must approve, by the risk of what is proposed."""
    approvers: tuple[str, ...] | None = None
    """Names of those who may approve; None is everybody with the role for it."""
    approval_times: dict[Severity, Duration] = Field(default_factory=lambda: dict(APPROVAL_TIMES))
    """How long an approval is waited for, by the severity of the incident."""
    severities: Severities = Severities()
    """What the words of its alerts mean."""
    mitigations: dict[str, ApprovalClass] = Field(default_factory=dict)
    """Who has to agree to a kind of mitigation, besides what its mode asks for."""
    limits: Limits
    system_limits: Limits
    target_limits: Limits

    def approval(self, kind: str) -> ApprovalClass:
        """Return who has to agree to a mitigation of ``kind`` here."""
        return self.mitigations.get(kind, ApprovalClass.AUTO)

    def bounds(
        self, everywhere: Limits, playbook: str, own: Limits, target: Target
    ) -> tuple[Bound, ...]:
        """List what the file bounds of any mitigation on ``target``, widest first."""
        return (
            Bound(scope="global", limits=everywhere),
            Bound(scope=f"system/{self.system}", limits=self.system_limits),
            Bound(scope=f"service/{self.system}/{self.name}", limits=self.limits),
            Bound(scope=f"playbook/{self.system}/{self.name}/{playbook}", limits=own),
            Bound(scope=f"target/{target.key}", limits=self.target_limits),
        )


class Catalogue(Value):
    """Every service that the remediator may look at."""

    services: tuple[Service, ...] = ()
    limits: Limits
    """The global bounds."""
    safeguards: Safeguards = Safeguards()
    """The bounds that look back."""
    escalation: Escalation = Escalation()
    """For incidents of services that are not in the catalogue any more."""
    severities: Severities = Severities()
    """For alerts of no service."""
    maintenance: tuple[Plan, ...] = ()
    """When humans work on the systems themselves, of every scope."""

    def windows(self, incident: Incident, begin: datetime, end: datetime) -> list[Window]:
        """List the maintenance windows over ``incident`` from ``begin`` to ``end``."""
        over = scopes_of(incident)
        plans = (plan for plan in self.maintenance if plan.scope in over)
        return [window for plan in plans for window in plan.touching(begin, end)]

    def locate(self, labels: Mapping[str, str]) -> Service | None:
        """Return the service whose labels the alert carries; the most specific one wins.

        Services that match equally well are taken in the order of the file.
        """
        matching = [s for s in self.services if s.match.items() <= labels.items()]
        return max(matching, key=lambda s: len(s.match), default=None)

    def service(self, system: str | None, name: str | None) -> Service | None:
        """Return the service of that name."""
        return next((s for s in self.services if (s.system, s.name) == (system, name)), None)
