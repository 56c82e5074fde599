"""What humans and machines outside are shown of an incident; the API's JSON shapes."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Literal, Self, TypeVar
from zoneinfo import ZoneInfo

from pydantic import AwareDatetime, ConfigDict, Field

from remediator.model.alert import AlertStatus, Source
from remediator.model.base import AlertId, DeliveryId, IncidentId, MitigationId, Value
from remediator.model.finding import FindingStatus
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.kinds import ApprovalClass
from remediator.model.limits import Limits
from remediator.model.mitigation import Approval, ItemOutcome, MitigationState
from remediator.model.severity import Handling, Severity
from remediator.model.target import Mode, Risk
from remediator.model.verdict import Assessment

T = TypeVar("T")


class TimelineEvent(Value):
    """One line of the journal."""

    at: AwareDatetime
    step: str
    event: str
    reason: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    unsealed: bool = False
    """Whether it has no seal, where the service has a key: anybody may have written it."""


class AlertView(Value):
    """An alert as the operator's API shows it: one episode."""

    id: AlertId
    fingerprint: str
    status: AlertStatus
    labels: dict[str, str]
    annotations: dict[str, str]
    starts_at: AwareDatetime
    last_seen_at: AwareDatetime
    resolved_at: AwareDatetime | None
    notifications: int


class FindingView(Value):
    """A finding as stored: its evidence is plain JSON."""

    round: int
    at: AwareDatetime
    name: str
    status: FindingStatus
    summary: str
    value: dict[str, Any] | None = None


class PlannedItem(Value):
    """One thing that a mitigation touches, or would."""

    key: str
    summary: str


class MitigationView(Value):
    """A ledger row as the operator's API shows it."""

    id: MitigationId
    kind: str
    target: str
    state: MitigationState
    effect_key: str
    reason: str
    """Why this lever was chosen, or why it was not pulled."""
    mode: Mode
    risk: Risk
    plan_hash: str
    summary: str
    """What it does, in the playbook's words."""
    planned: list[PlannedItem]
    """What it touches, or would touch."""
    items: list[ItemOutcome]
    """What became of each, once it is known."""
    verdict: Assessment | None = None
    evidence: str = ""
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    decided_by: str | None = None
    approvals_needed: int = 1
    """How many different persons must agree before it is made."""
    approvals: list[Approval] = Field(default_factory=list)
    """Who agreed so far, when, and by which way."""
    approvals_missing: int = 0
    """How many more must agree; 0 unless it waits."""
    consequence: str = ""
    """What making it does to those it hits; empty where that was not prepared."""


class IncidentSummary(Value):
    """A row of the list of incidents."""

    id: IncidentId
    state: IncidentState
    phase: Phase
    outcome: IncidentOutcome | None
    system: str | None
    service: str | None
    playbook: str | None
    reason: str
    dry_run: bool
    replay_of: str | None
    opened_at: AwareDatetime
    closed_at: AwareDatetime | None
    alertname: str = ""
    """The `alertname` of one of its alerts; empty where none is left."""
    needs_human: bool = False
    """Whether a person has to act now: its plan waits for approval, or it was handed to a human,
    its alert still fires and nobody has acknowledged it."""
    severity: Severity = 3
    """1 is the worst; the worst of its alerts."""
    severity_word: str = ""
    """The sender's own word for it, such as `P1`; empty where no label says it."""
    handling: Handling = Handling.RECORDS
    """What may be done about it: `acts`, `asks` a human first, or only `records`."""


class IncidentView(IncidentSummary):
    """Everything that is known of one incident."""

    alerts: list[AlertView]
    findings: list[FindingView]
    mitigations: list[MitigationView]
    timeline: list[TimelineEvent]


class ApprovalRequest(Value):
    """What people are asked to approve, or were, free of any chat's format."""

    id: MitigationId
    plan_hash: str
    waits: bool
    """Whether it can still be decided."""
    headline: str
    action: str
    """What would be done, to what."""
    consequence: str
    why: str
    who: str
    """Who has to decide: ``An operator``, or how many."""
    expires_at: AwareDatetime | None
    deadline: str
    """``expires_at`` in the time zone of those who read it; empty where there is none."""


class Frame(Value):
    """What all texts for humans have in common."""

    timezone: str = "UTC"
    """IANA name of the time zone that times are given in."""
    public_url: str | None = None
    """Address at which people reach this service; None where it has none for them."""

    def local(self, moment: datetime, form: str = "%Y-%m-%d %H:%M:%S") -> str:
        """Write ``moment`` in the time zone, with its name."""
        return moment.astimezone(ZoneInfo(self.timezone)).strftime(f"{form} %Z")


class ChatPlace(Value):
    """Where in a chat something is told, and to whom."""

    channel: str
    mention: str = ""
    """Whom a message mentions that somebody has to act on, as the chat writes it."""


class Report(Value):
    """What is said to humans about an incident, free of any chat's format."""

    incident: IncidentView
    headline: str
    happened: tuple[str, ...]
    found: tuple[str, ...]
    done: tuple[str, ...]
    helped: str
    next_step: str
    urgent: bool
    """A human is needed now."""
    final: bool
    """The incident is closed; nothing follows but corrections."""
    brief: tuple[str, ...] = ()
    """The same in a few short lines."""
    links: dict[str, str] = Field(default_factory=dict)
    """Web addresses worth a look, by their name; shown, never fetched."""
    requests: tuple[ApprovalRequest, ...] = ()
    """What people were asked to approve, the oldest first."""


class Button(StrEnum):
    """What a person may press at a plan that waits, with the id that a chat knows it by."""

    APPROVE = "remediator_approve"
    REJECT = "remediator_reject"
    PAUSE = "remediator_pause"
    TAKE_OVER = "remediator_take_over"

    @property
    def word(self) -> str:
        """What it asks for, as the journal says it: ``take over``."""
        return self.removeprefix("remediator_").replace("_", " ")


class PlanReference(Value):
    """Exactly one plan of one incident, as a button carries it."""

    incident_id: str
    plan_hash: str

    @property
    def written(self) -> str:
        """The text that ``read`` takes."""
        return f"{self.incident_id} {self.plan_hash}"

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what ``written`` gave; ``ValueError`` for anything else."""
        match = re.fullmatch(r"(inc-[0-9a-z-]{1,36}) ([0-9a-f]{16})", text)
        if match is None:
            raise ValueError("should be the id of an incident and the hash of a plan")
        return cls(incident_id=match[1], plan_hash=match[2])


# --- the rest of the operator's API ------------------------------------------------------------


class DeliveryView(Value):
    """One HTTP call received, without its body."""

    id: DeliveryId
    source: Source
    received_at: AwareDatetime
    credential: str | None
    size: int
    digest: str
    alerts: int
    dead: int
    triaged_at: AwareDatetime | None
    incidents: list[IncidentId]
    """Incidents that its alerts opened, joined or left."""


class DeadLetterView(Value):
    """Something received that could not be used."""

    id: str
    delivery_id: DeliveryId
    source: Source
    at: AwareDatetime
    position: int | None
    reason: str
    excerpt: str


class Page(Value, Generic[T]):
    """One page of a list; ``next`` is what to pass as ``after`` for the following one."""

    items: list[T]
    next: str | None = None


class PlaybookUse(Value):
    """One service that a playbook is switched on for."""

    system: str
    service: str
    modes: dict[Risk, Mode]
    limits: Limits
    parameters: dict[str, Any]
    mitigations: dict[str, ApprovalClass] = Field(default_factory=dict)
    """What the service says of kinds that the playbook may propose: who has to agree."""


class ParameterView(Value):
    """One key that a service may set for a playbook."""

    name: str
    type: str
    """In words: ``number``, ``evict | restart``, ``list of string``."""
    default: Any = None
    """As it would be written in the configuration; null where there is none."""
    description: str = ""
    """On one line; empty where the playbook says nothing."""


class PlaybookView(Value):
    """A loaded playbook and where it is used."""

    name: str
    summary: str
    """First line of its docstring."""
    matches: list[str]
    """Its matchers, as Alertmanager writes them: ``alertname=~"A|B"``."""
    targets: dict[str, str]
    levers: list[str]
    origin: str
    parameters: list[ParameterView] = Field(default_factory=list)
    services: list[PlaybookUse]


class LimitView(Value):
    """One bound and how much of it is used now."""

    scope: str
    limits: Limits
    reserved: int
    """Mitigations reserved in the last ``limits.window``."""
    in_flight: int


class WindowView(Value):
    """A maintenance window that runs or comes."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    id: str
    scope: str
    """``global``, ``SYSTEM`` or ``SYSTEM/SERVICE``."""
    since: AwareDatetime = Field(alias="from")
    until: AwareDatetime
    reason: str
    running: bool
    source: Literal["api", "file"]
    """Whether it was ordered, and may be ended by an order, or stands in the configuration."""
    by: str | None = None
    """Who ordered it."""


class Kept(StrEnum):
    """Where a stop switch is."""

    STORE = "store"
    """For all replicas."""
    REPLICA = "replica"
    """In the replica that answers alone, until the store takes it."""


class PauseView(Value):
    """A stop switch that is on."""

    scope: str
    """``global``, ``SYSTEM`` or ``SYSTEM/SERVICE``."""
    by: str
    reason: str
    since: AwareDatetime
    kept: Kept = Kept.STORE
