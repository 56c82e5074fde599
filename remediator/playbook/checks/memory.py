"""Whether the containers of a workload are short of memory, and what may be done about it. Pure.

Kills, use and growth of the pods, how they stand, and what keeps a deployment from being changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Annotated, NamedTuple

from pydantic import AwareDatetime, BeforeValidator, Field

from remediator.model.base import Value
from remediator.model.readings import Point
from remediator.model.workloads import (
    ContainerResources,
    ContainerState,
    Pod,
    PodUsage,
    Room,
    Workload,
    effect_of,
)

STALE = timedelta(minutes=3)
"""Age from which on the newest sample says nothing of now."""
SHOWN = 10
FEWEST = 10
"""Samples without a restart in between that tell growth from noise."""
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def _bytes(value: object) -> object:
    """Read ``512Mi`` as bytes; a number passes unchanged."""
    if not isinstance(value, str):
        return value
    number, unit = value[:-2], _UNITS.get(value[-2:])
    if unit is None or not number.isdecimal():
        raise ValueError(f"{value!r} is not an amount of memory; write it like 512Mi or 4Gi")
    return int(number) * unit


Memory = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=str), Field(gt=0)]
"""Bytes, written ``512Mi`` or ``4Gi`` in files."""


class Kill(Value):
    """A container that the OOM killer ended."""

    pod: str
    container: str
    at: AwareDatetime
    restarts: int
    limit: int | None
    """Its own as it runs, or that of its whole pod."""
    of_pod: bool = False
    """Whether the limit is that of the whole pod."""

    @property
    def at_its_limit(self) -> str:
        """Say that it was killed, and at which limit."""
        return f"{self.container} was killed at its limit of {in_mebibytes(self.limit)}"


class Kills(Value):
    """The recent kills, newest first."""

    kills: tuple[Kill, ...]

    @property
    def summary(self) -> str:
        """Name the newest with time, limit and restarts."""
        named = "; ".join(
            f"{kill.container} of {kill.pod} at {kill.at:%H:%M:%S},"
            f" limit {in_mebibytes(kill.limit)}, {kill.restarts} restarts"
            for kill in self.kills[:SHOWN]
        )
        return f"Killed for want of memory: {named}." if named else "Nothing was killed."


class PodMemory(Value):
    """The memory that one pod uses, and how it grew since it started."""

    pod: str
    uid: str
    used: int
    limit: int | None
    growth: int | None
    """Bytes in the time looked at; None with too few samples to tell."""

    @property
    def share(self) -> float:
        """Used share of the limit; 0 where there is none."""
        return self.used / self.limit if self.limit else 0.0


class MemoryOfPods(Value):
    """The pods' memory, the fullest first."""

    pods: tuple[PodMemory, ...]

    @property
    def tells_growth(self) -> bool:
        """Whether there are enough samples of any pod to see a leak."""
        return any(use.growth is not None for use in self.pods)

    def above(self, share: float) -> list[PodMemory]:
        """Return the pods that use at least this share of their limit."""
        return [use for use in self.pods if use.share >= share]

    def leaking(self, share: float) -> list[PodMemory]:
        """Return the pods that grew by at least this share of their limit."""
        return [
            use
            for use in self.pods
            if use.growth is not None and use.growth >= share * (use.limit or use.used)
        ]

    def remark(self, growth: float) -> str:
        """Say what growth means for a limit that is raised; empty where it means nothing."""
        if not self.tells_growth:
            return "; growth is not known, so a leak cannot be seen"
        leaks = len(self.leaking(growth))
        return f"; {leaks} pods grow steadily, so it only buys time" if leaks else ""

    def summary(self, limit: float, growth: float) -> str:
        """Say what the fullest pod uses, how many are above ``limit`` and how many leak."""
        worst, high = self.pods[0], len(self.above(limit))
        leaks = f"{len(self.leaking(growth))} grow steadily"
        return (
            f"{worst.pod} uses most: {in_mebibytes(worst.used)} of {in_mebibytes(worst.limit)}"
            f" ({worst.share:.0%}); {high} of {len(self.pods)} pods are above {limit:.0%},"
            f" {leaks if self.tells_growth else 'growth is not known'}."
        )


class Standing(Value):
    """How the pods of a deployment stand; those that are going or gone do not count."""

    count: int
    ready: int
    unready: dict[str, str]
    """The others by name, with how their containers are."""
    restarts: int
    oldest: AwareDatetime | None
    """When the oldest was made; None where there is no pod."""
    revisions: int = 1
    """Templates that they were made from: more than one while a rollout is under way."""
    limits: dict[str, tuple[int | None, ...]] = Field(default_factory=dict)
    """Memory limits that they have as they run, all that differ, by container."""

    @property
    def summary(self) -> str:
        """Count them and their restarts, and name those that are not ready."""
        named = "; ".join(f"{name} ({how})" for name, how in list(self.unready.items())[:SHOWN])
        return f"{self.count} pods, {self.restarts} restarts; not ready: {named or 'none'}."


class Hindrance(NamedTuple):
    """Why a deployment may not be changed now."""

    reason: str
    passes: bool
    """Whether it passes by itself, so that waiting makes sense."""


def hindrance(workload: Workload, *, allow_gitops: bool) -> Hindrance | None:
    """Return what forbids a change; what does not pass by itself comes first."""
    if workload.replicas == 0:
        return Hindrance("it is scaled to 0", passes=False)
    if workload.gitops and not allow_gitops:
        reason = f"{workload.gitops} owns it and would undo the change"
        return Hindrance(reason, passes=False)
    if workload.paused:
        return Hindrance("its rollout is paused", passes=True)
    if workload.rollout and workload.refused:
        return Hindrance(f"its new pods are refused ({workload.refused})", passes=False)
    if workload.rollout:
        return Hindrance(f"a rollout is in progress ({workload.rollout})", passes=True)
    return None


def memory_was_raised(workload: Workload) -> bool:
    """Say whether a memory limit of the deployment that we raised has not been put back."""
    effect = workload.annotations.get(effect_of("set_memory"))
    return effect is not None and not effect.endswith("/reverted")


def limit_to_raise(
    killed: Kill, workload: Workload, pods: Standing
) -> ContainerResources | Hindrance:
    """Return the container of the template whose limit killed it, or why there is none to raise.

    It is the pods that count: a LimitRange, an admission webhook, an autoscaler of their size or a
    resize in place may have given them another limit than the template has.
    """
    if killed.limit is None:
        return Hindrance(
            f"{killed.container} was killed without a limit: its node is short", passes=False
        )
    container = next((c for c in workload.containers if c.name == killed.container), None)
    declared = container.memory_limit if container else None
    if killed.limit != declared and pods.revisions > 1:
        said = "but the limit has changed since: the new pods are waited for"
        return Hindrance(f"{killed.at_its_limit}, {said}", passes=True)
    why = _not_its_own(killed, declared, pods.limits.get(killed.container, ()))
    if container is None:
        why = "it is not in the template: something injects it"
    if container is None or why:
        return Hindrance(f"{killed.at_its_limit}; it is not raised: {why}", passes=False)
    return container


def _not_its_own(killed: Kill, declared: int | None, had: Iterable[int | None]) -> str | None:
    if killed.of_pod:
        return "it is that of its whole pod (spec.resources), which is a human's to raise"
    if declared is None:
        return (
            "the template names none, so a LimitRange or a webhook has set it;"
            " name it in the manifest, then it can be raised"
        )
    if {killed.limit, *had} == {declared}:
        return None
    named = ", ".join(in_mebibytes(size) for size in had)
    return (
        f"the pods have {named or in_mebibytes(killed.limit)}, the template has"
        f" {in_mebibytes(declared)}: somebody resized them in place, or an autoscaler sets it"
    )


def raised(container: ContainerResources, wanted: int) -> str:
    """Say what raising the limit of a container means, also for whoever releases it next."""
    follows = container.memory_request == container.memory_limit
    return (
        f"it is raised to {in_mebibytes(wanted)}, once"
        f"{', and so is the request, which equals it' if follows else ''};"
        " put that into the manifest or chart, or the next release undoes it"
    )


def cramped(container: ContainerResources, wanted: int, room: Room) -> str | None:
    """Say why no pod would find a place whose ``container`` has this limit, or None."""
    if room.pods < 1:
        return f"{'the nodes' if room.nodes < 1 else 'the quotas'} have no room for one more pod"
    # without a request of its own, a container asks for its limit
    follows = container.memory_request in (None, container.memory_limit)
    more = wanted - (container.memory_limit or 0) if follows else 0
    if room.spare_memory is not None and room.spare_memory < more:
        return f"no node has room for one pod of the new size: {in_mebibytes(more)} more"
    return None


def standing(pods: Iterable[Pod]) -> Standing:
    """Count the pods that are not going, nor kept as a record of what ended (evicted by a node)."""
    staying = [pod for pod in pods if pod.stays]
    return Standing(
        count=len(staying),
        ready=sum(pod.ready for pod in staying),
        unready={pod.name: _states(pod) for pod in staying if not pod.ready},
        restarts=sum(container.restarts for pod in staying for container in pod.containers),
        oldest=min((pod.created_at for pod in staying), default=None),
        revisions=len({pod.revision for pod in staying}),
        limits=_limits(staying),
    )


def _limits(pods: Iterable[Pod]) -> dict[str, tuple[int | None, ...]]:
    """Return the memory limits of the containers by name, the largest first."""
    found: dict[str, set[int | None]] = {}
    for pod in pods:
        for container in pod.containers:
            found.setdefault(container.name, set()).add(container.memory_limit)
    return {name: tuple(sorted(of, key=lambda size: -(size or 0))) for name, of in found.items()}


def _states(pod: Pod) -> str:
    bad = (c for c in pod.containers if c.stays and not c.ready)
    return ", ".join(f"{container.name} {container.reason or container.state}" for container in bad)


def troubles_since(pod: Pod, since: datetime) -> Iterator[str]:
    """Say which containers of a pod ended badly since then, or are in a crash loop."""
    for container in pod.containers:
        trouble = _trouble(container, since)
        if trouble:
            yield f"{container.name} of {pod.name} {trouble}"


def _trouble(container: ContainerState, since: datetime) -> str | None:
    ended = container.ended
    if container.state == "waiting" and container.reason == "CrashLoopBackOff":
        return "is in a crash loop"
    if ended is None or ended.finished_at is None or ended.finished_at < since:
        return None
    if ended.reason == "Completed":
        return None
    return f"ended: {ended.reason} ({ended.exit_code})"


def recent_kills(pods: Iterable[Pod], oldest: datetime) -> Kills:
    """Find the containers that the OOM killer ended since ``oldest``."""
    found = (
        Kill(
            pod=pod.name,
            container=container.name,
            at=container.ended.finished_at,
            restarts=container.restarts,
            limit=container.memory_limit or pod.whole.memory_limit,
            of_pod=container.memory_limit is None and pod.whole.memory_limit is not None,
        )
        for pod in pods
        for container in pod.containers
        if container.oom_killed
        and container.ended is not None
        and container.ended.finished_at is not None
        and container.ended.finished_at >= oldest
        and not pod.terminating
    )
    return Kills(kills=tuple(sorted(found, key=lambda kill: kill.at, reverse=True)))


def points_of(usage: Iterable[PodUsage]) -> tuple[Point, ...]:
    """Write what a cluster measured as the samples that ``pod_memory`` reads: one a pod."""
    return tuple(
        Point(labels={"pod": use.pod}, at=use.at, value=float(use.memory)) for use in usage
    )


def memory_of(pods: Iterable[Pod], points: Iterable[Point], now: datetime) -> MemoryOfPods:
    """Read the memory of all pods that have a recent sample."""
    known = tuple(points)
    used = [use for pod in pods if (use := pod_memory(pod, known, now)) is not None]
    used.sort(key=lambda use: (use.share, use.used), reverse=True)
    return MemoryOfPods(pods=tuple(used))


def pod_memory(pod: Pod, points: Iterable[Point], now: datetime) -> PodMemory | None:
    """Read one pod's memory; growth counts from its last restart, so that a saw is no leak."""
    if pod.terminating:
        return None
    mine = sorted((p for p in points if p.labels.get("pod") == pod.name), key=lambda p: p.at)
    if not mine or now - mine[-1].at > STALE:
        return None
    ends = [c.ended.finished_at for c in pod.containers if c.ended and c.ended.finished_at]
    since = max([pod.created_at, *ends])
    values = [point.value for point in mine if point.at > since]
    return PodMemory(
        pod=pod.name,
        uid=pod.uid,
        used=int(mine[-1].value),
        limit=pod.memory_limit,
        growth=_growth(values),
    )


def _growth(values: list[float]) -> int | None:
    """Return the growth over ``values``; 0 unless it rises more often than it falls."""
    if len(values) < FEWEST:
        return None
    rises = sum(after > before for before, after in pairwise(values))
    third = len(values) // 3
    low, high = max(values[:third]), min(values[-third:])
    return int(max(high - low, 0.0)) if rises > len(values) / 2 else 0


def whole_mebibytes(size: float) -> int:
    """Round bytes down to mebibytes, which can be read in a manifest; less than one stays."""
    return int(size) >> 20 << 20 or int(size)


def in_mebibytes(size: int | None) -> str:
    """Write bytes for a human; none for None."""
    if size is None:
        return "none"
    return f"{size / (1 << 20):.0f}Mi"
