"""What may be signalled, and what became of it: the pure decisions of ``PostgresMitigator``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import AwareDatetime, Field, ValidationError

from remediator.model.base import Value
from remediator.model.connections import SPARED, Session
from remediator.model.errors import BackendRefused
from remediator.model.mitigation import Item, ItemOutcome, Mitigation, MitigationState, Outcome

MAX_ITEMS = 5
"""Sessions that one mitigation may signal, whatever its parameters say."""
GONE_WITHIN = 2.0
"""Seconds that a signalled session gets to go before the outcome is told."""


class _Bounds(Value):
    """What a mitigation's parameters have to say; without them nothing is done."""

    app_roles: tuple[str, ...] = ()
    min_age_s: float = Field(ge=0)
    max_items: int = Field(ge=1, le=MAX_ITEMS)
    spare_applications: tuple[str, ...] = SPARED

    @property
    def spared(self) -> list[str]:
        """``spare_applications`` as the server takes them."""
        return patterns(self.spare_applications)

    @property
    def min_age(self) -> timedelta:
        """``min_age_s`` as the server takes it."""
        return timedelta(seconds=self.min_age_s)


class Identity(Value):
    """Which session is meant, beyond doubt: a pid alone is soon another's."""

    pid: int = Field(ge=1, lt=2**31)
    backend_start: AwareDatetime
    since: AwareDatetime
    """``state_change`` or ``query_start``: still the same transaction or query."""


@dataclass(frozen=True)
class _Kind:
    """What tells one kind of mitigation from the others."""

    marker: str
    """The session's column that is the item's ``since``."""
    state: str
    age: str
    consequence: str
    """What it does to those it hits, for whoever approves it."""
    ends: bool
    """Whether the session itself is gone afterwards, or only its query."""


_ROLLED_BACK = (
    "These sessions are disconnected and their uncommitted work is rolled back; the application has"
    " to reconnect and retry."
)
KINDS: Mapping[str, _Kind] = {
    "end_sessions": _Kind(
        "state_change", "idle in transaction", "state_age", _ROLLED_BACK, ends=True
    ),
    "cancel_queries": _Kind(
        "query_start",
        "active",
        "query_age",
        "These queries fail with an error and their transactions are aborted; the sessions stay"
        " connected.",
        ends=False,
    ),
    "end_queries": _Kind("query_start", "active", "query_age", _ROLLED_BACK, ends=True),
}


@dataclass(frozen=True)
class Plan:
    """A mitigation that was read and is within the hard bounds."""

    name: str
    kind: _Kind
    bounds: _Bounds
    meant: Mapping[str, Identity]
    """By item key, in the mitigation's order."""

    @property
    def pids(self) -> list[int]:
        """The process ids of all items."""
        return [identity.pid for identity in self.meant.values()]


@dataclass(frozen=True)
class Live:
    """A session as it is now, and whether our role may signal it."""

    session: Session
    signable: bool


def patterns(applications: Iterable[str]) -> list[str]:
    """Write names of applications as LIKE patterns: ``*`` is any characters, the rest itself."""
    plain = (re.sub(r"([\\\\%_])", r"\\\1", name) for name in applications)
    return [name.replace("*", "%") for name in plain]


def read_plan(mitigation: Mitigation) -> Plan:
    """Read a mitigation, failing closed: what is not clear is refused."""
    kind = KINDS.get(mitigation.kind)
    if kind is None:
        raise BackendRefused(f"{mitigation.kind} is not something PostgreSQL can do here")
    try:
        bounds = _Bounds.model_validate(mitigation.parameters)
        meant = {item.key: _identity(item, kind) for item in mitigation.items}
    except (ValidationError, KeyError) as error:
        raise BackendRefused(
            f"{mitigation.kind}: the plan is not complete: {_problem(error)}"
        ) from error
    if not 1 <= len(mitigation.items) <= bounds.max_items:
        raise BackendRefused(
            f"{mitigation.kind}: {len(mitigation.items)} sessions; 1 to {bounds.max_items} allowed"
        )
    pids = {identity.pid for identity in meant.values()}
    if len(pids) < len(mitigation.items):
        raise BackendRefused(f"{mitigation.kind}: the plan names a session twice")
    return Plan(mitigation.kind, kind, bounds, meant)


def _identity(item: Item, kind: _Kind) -> Identity:
    names = {"pid": "pid", "backend_start": "backend_start", "since": kind.marker}
    return Identity.model_validate({ours: item.identity[name] for ours, name in names.items()})


def _problem(error: ValidationError | KeyError) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def mismatch(plan: Plan, key: str, found: Mapping[int, Live]) -> str | None:
    """Say why a session is no longer what was meant, or None when it still is."""
    meant = plan.meant[key]
    live = found.get(meant.pid)
    if live is None or live.session.backend_start != meant.backend_start:
        return "is gone"
    session, kind = live.session, plan.kind
    if session.protected:
        return f"is protected: {session.protected}"
    if session.blocked_by:
        return f"waits for pid {session.blocked_by[0]}"
    if not session.state.startswith(kind.state):
        return f"is {session.state} now, not {kind.state}"
    since: datetime | None = getattr(session, kind.marker)
    if since != meant.since:
        return "has moved on since it was seen"
    age: timedelta | None = getattr(session, kind.age)
    if age is None or age < plan.bounds.min_age:
        return f"is {kind.state} for less than {plan.bounds.min_age_s:g} s"
    return None


def same(plan: Plan, meant: Identity, now: Mapping[int, Mapping[str, Any]]) -> bool:
    """Say whether a session (or its query) is still the one that was meant."""
    row = now.get(meant.pid)
    if row is None or row["backend_start"] != meant.backend_start:
        return False
    if plan.kind.ends:
        return True
    return bool(row["query_start"] == meant.since and row["state"] == plan.kind.state)


def not_applied(key: str, detail: str) -> ItemOutcome:
    """Return the outcome of an item that was left alone."""
    return ItemOutcome(key=key, state=MitigationState.NOT_APPLIED, detail=detail)


def may_be_done(item: ItemOutcome) -> bool:
    """Say whether the server may have taken the item's signal."""
    return item.state in {MitigationState.APPLIED, MitigationState.UNKNOWN}


def lost(items: Mapping[str, ItemOutcome]) -> bool:
    """Say whether any answer so far was lost."""
    return any(item.state is MitigationState.UNKNOWN for item in items.values())


def settled(plan: Plan, item: ItemOutcome, remaining: set[str] | None) -> ItemOutcome:
    """Add to what was sent what was seen afterwards (None: nothing could be seen)."""
    if not may_be_done(item) or remaining is None:
        return item
    if item.key not in remaining:
        return observed(plan, item.key, remaining)
    if item.state is MitigationState.UNKNOWN:
        return item
    detail = f"the signal was sent; still there after {GONE_WITHIN:g} s"
    return item.model_copy(update={"detail": detail})


def observed(plan: Plan, key: str, remaining: set[str]) -> ItemOutcome:
    """Return what looking at the world says of an item."""
    if key in remaining:
        return not_applied(key, "is still there")
    detail = "the session has ended" if plan.kind.ends else "the query has ended"
    return ItemOutcome(key=key, state=MitigationState.APPLIED, detail=detail)


def outcome_of(items: Iterable[ItemOutcome]) -> Outcome:
    """Sum up: any unknown is unknown, else any applied is applied."""
    items = tuple(items)
    states = {item.state for item in items}
    order = (MitigationState.UNKNOWN, MitigationState.APPLIED, MitigationState.NOT_APPLIED)
    state = next(state for state in order if state in states)
    detail = listed({item.key: item.detail for item in items})
    return Outcome(state=state, detail=detail, items=items)


def listed(texts: Mapping[str, str | None]) -> str:
    """Join what is said of each item into one line."""
    return "; ".join(f"{key}: {text or 'signalled'}" for key, text in texts.items())
