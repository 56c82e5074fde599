"""The frozen nouns that flow through the service, in the order of the data.

    bytes -> Delivery -> [Alert] -> Incident -> Playbook -> [Finding] -> [Mitigation]
          -> Decision -> Outcome -> Verdict -> Report

Every room imports these and nothing here imports a room. All datetimes are aware.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, NewType, Self, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    SerializeAsAny,
    ValidationError,
)

DeliveryId = NewType("DeliveryId", str)
AlertId = NewType("AlertId", str)
IncidentId = NewType("IncidentId", str)
MitigationId = NewType("MitigationId", str)


def new_id(prefix: str, now: datetime) -> str:
    """Return an id that sorts by time: ``inc-0198c2f5a1b2-9f8e7d6c5b``."""
    return f"{prefix}-{int(now.timestamp() * 1000):012x}-{secrets.token_hex(5)}"


class Value(BaseModel):
    """Base of everything that flows: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")


def parse_duration(text: object) -> object:
    """Read ``1h30m``, ``45s``, ``250ms``; anything that is not a string passes unchanged.

    Raises ``ValueError`` naming the accepted form.
    """
    if not isinstance(text, str):
        return text
    match = _DURATION.fullmatch(text.strip())
    if not text.strip() or match is None:
        raise ValueError(f"{text[:80]!r} is not a duration; write it like 30s, 5m, 1h30m or 250ms")
    days, hours, minutes, seconds, millis = (float(part or 0) for part in match.groups())
    try:
        return timedelta(
            days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=millis
        )
    except OverflowError:
        raise ValueError(f"{text[:80]!r} is too long for a duration") from None


def format_duration(duration: timedelta) -> str:
    """Write a duration as ``parse_duration`` reads it, exact to the millisecond."""
    millis = round(duration.total_seconds() * 1000)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, millis = divmod(millis, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration, json_schema_input_type=str),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    Field(ge=timedelta(0)),
]
"""A length of time, written ``30s``, ``5m``, ``1h30m`` in files and JSON."""


# --- intake -----------------------------------------------------------------------------------


class Source(StrEnum):
    """The inbound system that a delivery came from."""

    ALERTMANAGER = "alertmanager"
    PAGERDUTY = "pagerduty"
    REPLAY = "replay"


class AlertStatus(StrEnum):
    """What the sender says of the condition."""

    FIRING = "firing"
    RESOLVED = "resolved"


class Alert(Value):
    """One notification about one condition, free of the vendor's field names."""

    source: Source
    fingerprint: str
    """Identity of the condition across notifications, replicas of the sender and restarts."""
    status: AlertStatus
    labels: dict[str, str]
    annotations: dict[str, str] = Field(default_factory=dict)
    starts_at: AwareDatetime
    ends_at: AwareDatetime | None = None
    group_key: str | None = None

    @property
    def name(self) -> str:
        """The ``alertname`` label, or ``unnamed``."""
        return self.labels.get("alertname", "unnamed")


class SenderEvent(Value):
    """What a sender of incidents, such as PagerDuty, says happened to one of them."""

    id: str
    """The sender's id of the event: the same one again is a duplicate."""
    webhook: str | None = None
    """The sender's id of the webhook, the same for every attempt to deliver it."""
    kind: str
    """The sender's word for it, such as ``triggered``, ``acknowledged``, ``annotated``."""
    status: AlertStatus | None = None
    """What it says of the condition; None for an event that neither opens nor ends anything."""
    again: bool = False
    """Whether a human opened an incident again that had resolved."""
    incident: str | None = None
    """The sender's id of its incident; None where the event is about none, or about our own."""
    key: str | None = None
    """The incident's deduplication key."""
    agent: dict[str, str] | None = None
    """Who did it: ``id``, ``type`` and ``name``; None when nobody is named."""
    at: AwareDatetime
    """When it happened, by the sender's clock."""

    @property
    def group_key(self) -> str:
        """The ``group_key`` of the alerts that its incident stands for."""
        return f"pagerduty/{self.incident}"

    @property
    def who(self) -> str:
        """The name of who did it."""
        return (self.agent or {}).get("name") or "nobody named"


class DeadLetter(Value):
    """Something received that could not be used, kept so that nothing is lost."""

    reason: str
    """What is wrong, where, and what to do."""
    position: int | None = None
    """Index in the body's ``alerts`` list; None when the whole body is meant."""
    excerpt: str = ""
    """At most 64 KiB of what was received."""


class Delivery(Value):
    """One HTTP call received: its raw body and what may be needed to read it again."""

    id: DeliveryId
    source: Source
    received_at: AwareDatetime
    credential: str | None
    """Name of the credential that it came with."""
    digest: str
    """SHA-256 of the body, in hex."""
    size: int
    """Bytes received; larger than ``len(body)`` when only the beginning was kept."""
    body: bytes
    replay_of: str | None = None
    """Id of what a replay repeats, or ``"manual"`` for a body given by hand."""
    dry_run: bool = False
    playbook: str | None = None
    """Playbook that a replay asks for, instead of the one that matches."""


# --- the catalogue's side of things -----------------------------------------------------------


class Mode(StrEnum):
    """How far the service may go. Ordered: each mode includes what the ones before it do."""

    OBSERVE = "observe"
    SHADOW = "shadow"
    APPROVE = "approve"
    AUTO = "auto"


class Risk(StrEnum):
    """How much a mitigation can hurt when it is the wrong one."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Limits(Value):
    """Bounds of one scope. All of them hold at every level; the narrowest does not win."""

    budget: int = Field(ge=0)
    """Mitigations allowed in any ``window``."""
    window: Duration
    cooldown: Duration
    """Least time between mitigations of one target by different incidents."""
    concurrency: int = Field(ge=0)
    """Mitigations in flight (reserved, or applied and not yet judged) at the same time."""


class Bound(Value):
    """The limits of one scope, as the reservation checks them."""

    scope: str
    """``global``, ``system/S``, ``service/S/T``, ``playbook/P`` or ``target/KEY``."""
    limits: Limits


class Usage(Value):
    """What the ledger counts in one scope."""

    scope: str
    reserved: int
    """Mitigations reserved within the scope's window."""
    in_flight: int


class Verification(Value):
    """How long a mitigation is watched before it is judged."""

    interval: Duration = timedelta(seconds=15)
    """Time between two samples."""
    hold: Duration = timedelta(minutes=5)
    """Time over which every sample must be better."""
    hold_resolved: Duration | None = None
    """The same, once the sender of the alert itself says that it resolved; None: as long as
    ``hold``. The runbooks' times do not become shorter because an alert resolved."""
    deadline: Duration = timedelta(minutes=10)
    """Time after which it is judged as it stands."""
    resolve_within: Duration = timedelta(minutes=15)
    """Time for the alert to resolve after a good verdict; then a human looks."""

    def held(self, *, resolved: bool) -> timedelta:
        """Return how long it has to be better, where the alert ``resolved`` or still fires."""
        shorter = self.hold_resolved if resolved else None
        return self.hold if shorter is None else shorter


class Target(Value):
    """One thing that may be acted on. Comes from the catalogue only, never from an alert."""

    system: str
    service: str
    role: str
    """The service's name for it: ``database``, ``workload``, ``admin``."""
    kind: str
    """Kind of backend: ``postgres``, ``http``, ``kubernetes``, ``redis``."""
    name: str
    """The backend's name in the configuration."""
    locator: dict[str, str] = Field(default_factory=dict)
    """What inside the backend is meant, such as namespace and deployment."""

    @property
    def key(self) -> str:
        """Identity for locks and budgets: two services that share a database share this key."""
        inner = ",".join(f"{k}={v}" for k, v in sorted(self.locator.items()))
        return f"{self.kind}/{self.name}" + (f"/{inner}" if inner else "")


# --- triage -----------------------------------------------------------------------------------


Severity = Annotated[int, Field(ge=1, le=4)]
"""1 is the worst, whatever the sender's own word for it is."""


class Handling(StrEnum):
    """What the service may do about an incident, by the modes that held when it was opened."""

    ACTS = "acts"
    """It may change something by itself."""
    ASKS = "asks"
    """It may change something once a human agrees."""
    RECORDS = "records"
    """It only records what it would do, or that nothing takes the alert."""


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


# --- diagnosis --------------------------------------------------------------------------------


class FindingStatus(StrEnum):
    """What a finding says. ``unknown`` is missing data: it is never ``fine``."""

    FINE = "fine"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


class Finding(Value):
    """One piece of evidence from one read-only check."""

    name: str
    status: FindingStatus
    summary: str
    """One sentence for a human, with the figures."""
    value: SerializeAsAny[Value] | None = None
    """The evidence itself, typed by the check that made it; None when unknown."""


class SenseState(StrEnum):
    """Whether a backend that we read can be trusted right now."""

    OK = "ok"
    IMPAIRED = "impaired"
    ABSENT = "absent"
    """Not configured, which is not impaired."""


class Sense(Value):
    """The result of probing one backend that a service's playbooks read."""

    name: str
    state: SenseState
    reason: str = ""


# --- mitigation -------------------------------------------------------------------------------


class Item(Value):
    """One of the 1..n things that a lever touches, with what identifies it beyond doubt."""

    key: str
    """Unique in its mitigation and readable: ``pid 4711``."""
    summary: str = ""
    identity: dict[str, JsonValue] = Field(default_factory=dict)
    """What the backend compares before it acts, such as pid, backend_start and state_change."""
    seen: dict[str, JsonValue] = Field(default_factory=dict)
    """What else was seen of it when it was chosen, for the report; free of secrets."""


class Mitigation(Value):
    """One lever on one target: what a playbook proposes. A value; only the engine acts."""

    kind: str
    """Name of the lever: ``end_sessions``."""
    target: Target
    reason: str
    """Why this lever, why now, with the figures."""
    items: tuple[Item, ...] = ()
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    risk: Risk = Risk.MEDIUM
    reversible: bool = False
    hold: Duration | None = None
    """When set, the change is temporary and is taken back after this time."""
    asks: str | None = None
    """Why a human has to agree first, whatever the mode is; None where the mode decides."""

    @property
    def plan_hash(self) -> str:
        """Digest of exactly what would be done; an approval is bound to it."""
        left_out: Any = {"reason": True, "asks": True, "items": {"__all__": {"seen"}}}
        content = self.model_dump(mode="json", exclude=left_out)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Proposal(Value):
    """What a playbook would do about its findings, in order of preference, and why."""

    mitigations: tuple[Mitigation, ...] = ()
    reason: str
    """Why these, or why nothing."""
    wait: Duration | None = None
    """With no mitigation: look again after this time, for what passes by itself. Not for ever."""
    noted: dict[str, JsonValue] = Field(default_factory=dict)
    """What the playbook wants to know at its next look at the same incident: ``Context.noted``."""
    impaired: tuple[str, ...] = ()
    """Filled by the engine: senses that could not be trusted when this was proposed."""


class Effect(StrEnum):
    """What policy says to a proposed mitigation."""

    ALLOW = "allow"
    DENY = "deny"
    SHADOW = "shadow"
    ASK = "ask"
    WAIT = "wait"
    """Not now, for a cause that passes (paused, the target is busy): decide again later."""


class Decision(Value):
    """Permission to change something, or the refusal of it. Always with its reason."""

    effect: Effect
    code: str
    """Stable word for machines: ``budget``, ``cooldown``, ``paused``, ``demoted``..."""
    reason: str
    again_in: Duration | None = None
    """Of a wait whose end is known: the time until then."""


class MitigationState(StrEnum):
    """Where a row of the ledger stands."""

    SHADOWED = "shadowed"
    DENIED = "denied"
    AWAITING_APPROVAL = "awaiting_approval"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    RESERVED = "reserved"
    """Counted against every bound and committed, before the call is made."""
    APPLIED = "applied"
    NOT_APPLIED = "not_applied"
    UNKNOWN = "unknown"
    REVERTED = "reverted"


class ItemOutcome(Value):
    """What became of one item of a mitigation."""

    key: str
    state: MitigationState
    detail: str = ""


class Figure(Value):
    """A number that a change raises or lowers, in the ledger beside what was ``before``."""

    name: str
    """Which one of its target's: ``replicas``, ``memory of app``."""
    was: int
    will: int

    def written(self, amount: int) -> str:
        """Write an amount of it for a human: memory is in bytes, which nobody reads."""
        return f"{amount / 1024**2:.0f} MiB" if self.name.startswith("memory of ") else str(amount)

    @classmethod
    def of(cls, before: Mapping[str, JsonValue]) -> Self | None:
        """Read it; None where none is noted that can be read."""
        return _noted(cls, before.get("figure"))


class Instances(Value):
    """How many running instances a change ends at once, noted as a ``Figure`` is."""

    touched: int = Field(ge=0)
    of_all: int = Field(ge=0)

    @classmethod
    def of(cls, before: Mapping[str, JsonValue]) -> Self | None:
        """Read it; None where none is noted that can be read."""
        return _noted(cls, before.get("instances"))


N = TypeVar("N", bound=Value)


def _noted(kind: type[N], noted: JsonValue) -> N | None:
    try:
        return kind.model_validate(noted)
    except ValidationError:
        return None


CONSEQUENCE = "consequence"
"""Key in ``Preparation.before`` of the lever's sentence for whoever approves."""


class Preparation(Value):
    """What ``prepare`` saw in the world before a change: the way back, and what is left to do."""

    mitigation: Mitigation
    """The mitigation cut down to what still holds; never more than was proposed."""
    before: dict[str, JsonValue] = Field(default_factory=dict)
    undo: dict[str, JsonValue] | None = None

    def noting(
        self, figure: Figure | None = None, instances: Instances | None = None
    ) -> Preparation:
        """Return it with what the bounds count, kept in ``before``."""
        notes = {"figure": figure, "instances": instances}
        found = {key: note.model_dump(mode="json") for key, note in notes.items() if note}
        return self.model_copy(update={"before": {**self.before, **found}})


class Outcome(Value):
    """Result of one attempt to pull a lever, or of looking whether it had been pulled."""

    state: MitigationState
    """``applied``, ``not_applied``, ``unknown`` or ``reverted``."""
    detail: str
    items: tuple[ItemOutcome, ...] = ()
    again_in: Duration | None = None
    """Time until the next step of what is taken back in steps; None when nothing is left."""
    final: bool = False
    """Whether a later attempt cannot come to anything else: somebody else has changed it since."""


class Approval(Value):
    """One person's yes to one plan."""

    by: str
    """Name of the person: the same one by chat and by command line counts once."""
    via: str
    """Way that it came by: ``api`` or ``slack``."""
    at: AwareDatetime


class Consent(Value):
    """How far the approval of a plan has come."""

    given: int
    needed: int

    @property
    def missing(self) -> int:
        """How many more persons must agree; at zero the plan goes ahead."""
        return max(self.needed - self.given, 0)


class LedgerEntry(Value):
    """A mitigation as the ledger has it: a row before it is a call."""

    id: MitigationId
    incident_id: IncidentId
    effect_key: str
    """``incident/playbook/round/kind/target``: unique for ever."""
    system: str
    service: str
    playbook: str
    mitigation: Mitigation
    mode: Mode
    state: MitigationState
    reason: str
    plan_hash: str
    before: dict[str, JsonValue] = Field(default_factory=dict)
    undo: dict[str, JsonValue] | None = None
    items: tuple[ItemOutcome, ...] = ()
    created_at: AwareDatetime
    reserved_at: AwareDatetime | None = None
    apply_before: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None
    """End of the time in which an approval is accepted."""
    answer_within: Duration | None = None
    """How long an answer is waited for, counted from when people were asked; None counts from when
    it was decided to ask them."""
    asked_at: AwareDatetime | None = None
    """When the request was delivered."""
    finished_at: AwareDatetime | None = None
    decided_by: str | None = None
    """Names of those who approved, or of the one who rejected."""
    approvals_needed: int = 1
    """How many different persons must agree before it is made."""
    approvals: tuple[Approval, ...] = ()
    """Who agreed so far, in their order."""


# --- verification -----------------------------------------------------------------------------


class Assessment(StrEnum):
    """Three-valued: missing data is neither success nor failure."""

    BETTER = "better"
    NOT_BETTER = "not_better"
    CANNOT_TELL = "cannot_tell"


FINAL = "final"
"""In the ``data`` of a sample: true where no later look can say otherwise."""


class Sample(Value):
    """One look at whether a mitigation helped, with the evidence."""

    at: AwareDatetime
    assessment: Assessment
    evidence: str
    data: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether no later look can say otherwise, as ``data`` notes: nothing is waited for then."""
        return self.data.get(FINAL) is True


class Verdict(Value):
    """What several samples, held over time, say together."""

    assessment: Assessment
    reason: str
