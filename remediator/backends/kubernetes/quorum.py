"""The members of a stateful set: they vote, or hold a copy each, so a majority has to stay. Pure.

Nothing is done to a member unless all others are ready and more than half of all are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from remediator.backends.kubernetes.objects import Object, read_pod, uid_of
from remediator.model.errors import BackendRefused
from remediator.model.workloads import Pod

MEMBERWISE = frozenset({"evict_pod", "restart_rollout", "set_memory"})
"""What can be done to one member after the other; anything else is a human's."""
RESTLESS = timedelta(minutes=30)
"""Time in which a member that died counts as one that may die again."""


def majority(members: int) -> int:
    """Return how many of so many make a decision, or keep the data."""
    return members // 2 + 1


def quorum_without(stateful: Object, pods: Sequence[Object], victim: str, now: datetime) -> None:
    """Refuse to end the member with the uid ``victim`` where that may cost the majority."""
    others = [read_pod(pod) for pod in pods if uid_of(pod) != victim]
    _all_ready(others, stateful["spec"].get("replicas", 1) - 1, "other members")
    _majority_left(stateful, restless(others, now))


def quorum_in_turn(
    stateful: Object, pods: Sequence[Object], now: datetime, *, cures: bool = False
) -> None:
    """Refuse to end all members, each in its turn, where that may cost the majority.

    The highest ordinal goes first, and is not made again while a lower one is not ready. One that
    dies now and then is counted as gone until its own turn, which helps it if the change ``cures``.
    """
    members = [read_pod(pod) for pod in pods]
    _all_ready(members, stateful["spec"].get("replicas", 1), "members")
    first = max(members, key=_ordinal, default=None)
    _majority_left(stateful, restless([m for m in members if not cures or m is not first], now))


def restless(members: Iterable[Pod], now: datetime) -> list[str]:
    """Name the members of which something died within ``RESTLESS``: they may die again."""
    return [
        pod.name
        for pod in members
        if any(
            container.stays
            and container.ended is not None
            and container.ended.finished_at is not None
            and now - container.ended.finished_at < RESTLESS
            for container in pod.containers
        )
    ]


def _all_ready(members: Sequence[Pod], wanted: int, which: str) -> None:
    ready = sum(pod.ready and not pod.terminating for pod in members)
    if ready < wanted:
        raise BackendRefused(f"{ready} of {wanted} {which} are ready: one after the other, wait")


def _majority_left(stateful: Object, dying: Sequence[str]) -> None:
    members = stateful["spec"].get("replicas", 1)
    left, needed = members - 1 - len(dying), majority(members)
    if left >= needed:
        return
    minutes = int(RESTLESS.total_seconds() / 60)
    also = f" while {', '.join(dying)} may die again, as in the last {minutes} min" if dying else ""
    raise BackendRefused(
        f"{left} of {members} members would be left{also}, and {needed} are a majority: a human's"
    )


def _ordinal(pod: Pod) -> int:
    return int(pod.name.rpartition("-")[2])


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
