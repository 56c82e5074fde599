"""What every kind of mitigation may do at most: one declaration a kind, whoever makes it.

The file's ``limits`` narrow these bounds and never widen them. A kind that is not declared gets the
strictest bounds of all, in hindsight as well. Figures: the runbooks' list of mitigations.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from remediator.model.base import Value
from remediator.model.limits import Limits

_HOUR, _DAY, _HALF_HOUR = timedelta(hours=1), timedelta(days=1), timedelta(minutes=30)


class ApprovalClass(StrEnum):
    """Who has to agree to a kind of mitigation on one service. Ordered: each is stricter."""

    AUTO = "auto"
    """Nobody, where the mode is auto."""
    ONE = "one"
    TWO = "two"
    """Two different persons."""
    NEVER = "never"
    """It is not made at all: a human does it by hand."""

    @property
    def approvals(self) -> int:
        """How many different persons it asks for by itself."""
        return {ApprovalClass.ONE: 1, ApprovalClass.TWO: 2}.get(self, 0)


class Kind(Value):
    """The declaration of one kind."""

    backend: Literal["http", "kubernetes", "postgres", "redis"] | None = None
    """The kind of backend that it is made on; None where that is not known."""
    action: str = ""
    """What it does, in words that read on with "on" and its target: ``evict 1 pod``. Empty: its
    name stands for it."""
    actions: str = ""
    """The same for a number of things other than one, which stands at ``{}``; empty: as ``action``."""
    limits: tuple[Limits, ...] = Field(min_length=1)
    """Bounds of this kind on one target. All of them hold."""
    raises: bool = False
    """Whether it raises a figure; its lever says from what to what (``model.mitigation.Figure``)."""
    factor: float = 10.0
    """Times that all changes of this kind together may raise a figure; `growth` may say less."""
    touches: bool = False
    """Whether it ends running instances; its lever says how many (``model.mitigation.Instances``)."""
    share: float = 1.0
    """Share of a workload's instances that may be ended in a short time; `spread` may say less."""
    replaces: frozenset[str] = frozenset()
    """Kinds whose change it would undo with its own."""
    usual_risk: str = "unknown"
    """Risk that the built-in playbooks propose it with."""
    way_back: str = "unknown"
    """How it is taken back, in words."""


def _at_most(budget: int, window: timedelta, cooldown: timedelta = timedelta(0)) -> Limits:
    return Limits(budget=budget, window=window, cooldown=cooldown, concurrency=1)


STRICTEST = Kind(
    limits=(_at_most(1, _DAY, _HALF_HOUR),), raises=True, factor=2.0, touches=True, share=0.25
)
"""For a kind that is not declared: what it raises and what it ends has to be known, too."""

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "end_sessions": Kind(  # M-PG-02: at most 5 a time, by its lever; 3 for an incident
            backend="postgres",
            action="end 1 session",
            actions="end {} sessions",
            limits=(_at_most(3, _HOUR),),
            usual_risk="medium",
            way_back="none, what was not committed is rolled back",
        ),
        "cancel_queries": Kind(  # M-PG-01: at most 5 a time, by its lever, and 10 an hour
            backend="postgres",
            action="cancel 1 query",
            actions="cancel {} queries",
            limits=(_at_most(2, _HOUR),),
            usual_risk="low",
            way_back="none, the query may be sent again",
        ),
        "end_queries": Kind(  # M-PG-01
            backend="postgres",
            action="end 1 session whose query was cancelled before",
            actions="end {} sessions whose queries were cancelled before",
            limits=(_at_most(2, _HOUR),),
            usual_risk="medium",
            way_back="none, what was not committed is rolled back",
        ),
        "reset_breaker": Kind(  # M-AP-04, M-AP-10: 1 in 30 min
            backend="http",
            action="reset 1 circuit breaker",
            actions="reset {} circuit breakers",
            limits=(_at_most(1, _HALF_HOUR, _HALF_HOUR),),
            usual_risk="medium",
            way_back="none, the breaker opens again by itself if it must",
        ),
        "set_migration": Kind(  # M-AP-01: downwards only, by its lever
            backend="http",
            action="set 1 migration back",
            actions="set {} migrations back",
            limits=(_at_most(3, _HOUR),),
            usual_risk="low or medium",
            way_back="none, only a human sets it back",
        ),
        "scale": Kind(  # M-K8-01: 1 in 15 min; at most twice a step, by its lever
            backend="kubernetes",
            action="change the number of replicas",
            limits=(_at_most(1, timedelta(minutes=15), timedelta(minutes=15)),),
            raises=True,
            usual_risk="medium",
            way_back="in steps, after its hold time",
        ),
        "restart_rollout": Kind(  # M-K8-05: 1 in 30 min and 3 in 24 h
            backend="kubernetes",
            action="restart all pods, a few at a time",
            limits=(_at_most(1, _HALF_HOUR, _HALF_HOUR), _at_most(3, _DAY)),
            touches=True,
            usual_risk="medium",
            way_back="none",
        ),
        "undo_rollout": Kind(  # M-K8-07: 1 in 24 h
            backend="kubernetes",
            action="go back to the release before",
            limits=(_at_most(1, _DAY),),
            touches=True,
            replaces=frozenset({"set_memory", "restart_rollout"}),
            usual_risk="high",
            way_back="none, a release is made again by a human",
        ),
        "evict_pod": Kind(  # M-K8-06: one at a time, 25 % of the pods; 3 for an incident
            backend="kubernetes",
            action="evict 1 pod",
            actions="evict {} pods",
            limits=(_at_most(3, _HOUR),),
            touches=True,
            share=0.25,
            usual_risk="low",
            way_back="none, the pod is replaced",
        ),
        "set_memory": Kind(  # M-K8-09: at most twice; it replaces all pods, as a restart does
            backend="kubernetes",
            action="change the memory limit",
            limits=(_at_most(1, _HALF_HOUR), _at_most(3, _DAY)),
            raises=True,
            factor=2.0,
            touches=True,
            usual_risk="medium",
            way_back="the earlier limit, if it did not help",
        ),
        "unlink_prefix": Kind(  # M-RD-01: at most 100 000 keys, by its lever
            backend="redis",
            action="remove cached keys",
            limits=(_at_most(2, _HOUR),),
            usual_risk="medium",
            way_back="none, the cache refills by itself",
        ),
    }
)
"""Every kind that a lever of ours can make."""


def longest_look_back(kinds: Mapping[str, Kind] = KINDS) -> timedelta:
    """Return how far the bounds of any kind look back."""
    every = [limits for kind in (STRICTEST, *kinds.values()) for limits in kind.limits]
    return max(max(limits.window, limits.cooldown) for limits in every)
