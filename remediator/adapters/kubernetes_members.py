"""The members of a stateful set: they vote, or hold a copy each, so a majority has to stay. Pure.

Nothing is done to a member unless all others are ready and more than half of all are left.
"""

from __future__ import annotations

from collections.abc import Sequence

from remediator.adapters.kubernetes_objects import Object, read_pod, uid_of
from remediator.errors import BackendRefused

MEMBERWISE = frozenset({"evict_pod", "restart_rollout", "set_memory"})
"""What can be done to one member after the other; anything else is a human's."""


def majority(members: int) -> int:
    """Return how many of so many make a decision, or keep the data."""
    return members // 2 + 1


def quorum(stateful: Object, pods: Sequence[Object], victim: str | None = None) -> None:
    """Refuse to end a member, the one with the uid ``victim`` or each in turn, without a majority."""
    members = stateful["spec"].get("replicas", 1)
    others = [read_pod(pod) for pod in pods if uid_of(pod) != victim]
    ready = sum(pod.ready and not pod.terminating for pod in others)
    wanted = members if victim is None else members - 1
    if ready < wanted:
        which = "members" if victim is None else "other members"
        raise BackendRefused(f"{ready} of {wanted} {which} are ready: one after the other, wait")
    left, needed = members - 1, majority(members)
    if left < needed:
        raise BackendRefused(
            f"{left} of {members} members would be left, and {needed} are a majority: a human's"
        )


def members_in_turn(stateful: Object) -> None:
    """Refuse what would not replace the members one after the other, and all of them."""
    strategy = stateful["spec"].get("updateStrategy") or {}
    kind, rolling = strategy.get("type", "RollingUpdate"), strategy.get("rollingUpdate") or {}
    if kind != "RollingUpdate":
        raise BackendRefused(f"its strategy {kind} would leave the members as they are")
    if rolling.get("partition"):
        raise BackendRefused("its partition would leave some members as they are")
    if str(rolling.get("maxUnavailable", 1)) != "1":
        raise BackendRefused("its maxUnavailable would end more than one member at once")
