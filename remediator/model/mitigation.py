"""A mitigation on its way: proposed, decided, prepared, made, recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self, TypeVar

from pydantic import AwareDatetime, Field, JsonValue, ValidationError

from remediator.model.base import IncidentId, MitigationId, Value
from remediator.model.duration import Duration
from remediator.model.target import Mode, Risk, Target

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
