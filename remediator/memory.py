"""Whether the containers of a workload are short of memory: kills, use and growth. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Annotated

from pydantic import AwareDatetime, BeforeValidator, Field

from remediator.model import Value
from remediator.ports import Point
from remediator.workloads import Pod

STALE = timedelta(minutes=3)
"""Age from which on the newest sample says nothing of now."""
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


def recent_kills(pods: Iterable[Pod], oldest: datetime) -> Iterator[Kill]:
    """Yield the containers that the OOM killer ended since ``oldest``."""
    for pod in pods:
        for container in pod.containers:
            at = container.ended.finished_at if container.ended else None
            if container.oom_killed and at is not None and at >= oldest and not pod.terminating:
                yield Kill(
                    pod=pod.name,
                    container=container.name,
                    at=at,
                    restarts=container.restarts,
                    limit=container.memory_limit,
                )


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
    running = [c.memory_limit for c in pod.containers if not c.init]
    limit = sum(found for found in running if found) if all(running) else None
    return PodMemory(
        pod=pod.name, uid=pod.uid, used=int(mine[-1].value), limit=limit, growth=_growth(values)
    )


def _growth(values: list[float]) -> int | None:
    """Return the growth over ``values``; 0 unless it rises more often than it falls."""
    if len(values) < FEWEST:
        return None
    rises = sum(after > before for before, after in pairwise(values))
    third = len(values) // 3
    low, high = max(values[:third]), min(values[-third:])
    return int(max(high - low, 0.0)) if rises > len(values) / 2 else 0


def in_mebibytes(size: int | None) -> str:
    """Write bytes for a human; none for None."""
    if size is None:
        return "none"
    return f"{size / (1 << 20):.0f}Mi"
