"""What pods use and what they write, as the API tells it, read into our values. Pure.

The last lines are asked for of every container and of its run before, since one container of one
pod is no evidence for the others. What is kept of them is bounded: they are written by strangers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from remediator.backends.kubernetes.objects import Object, amount
from remediator.model.workloads import PodLog, PodUsage

LINES = 1000
"""Lines of one run that are asked for at most."""
ASKED = 1 << 20
"""Bytes of one run that are read at most. They begin at the oldest of the lines asked for."""
KEPT, KEPT_TOGETHER = 64 << 10, 4 << 20
"""Bytes that are kept of one run, and of all."""
AT_ONCE = 8
"""Logs that are read at the same time."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
"""What steers a terminal: colours, the cursor, its title."""
_CONTROL = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Control characters but the tab, and those that turn the direction of writing."""


class Run(NamedTuple):
    """One run of one container that has written a log, or may have."""

    pod: str
    container: str
    previous: bool


def runs_of(pods: Iterable[Object]) -> list[Run]:
    """List what has a log: the present run where there is one, and the one before it."""
    return [run for pod in pods for run in _runs(pod)]


def _runs(pod: Object) -> Iterator[Run]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            # while it waits to be started again, the present log is that of the run before
            if {"running", "terminated"} & set(container.get("state") or {}):
                yield Run(name, container["name"], previous=False)
            if (container.get("lastState") or {}).get("terminated"):
                yield Run(name, container["name"], previous=True)


def read_log(run: Run, text: bytes, lines: int, share: int) -> PodLog:
    """Read the newest ``lines`` of a log, at most ``share`` bytes of them, free of controls."""
    kept = text[-share:]
    parts = kept.decode(errors="replace").split("\n")
    if len(kept) < len(text) and len(parts) > 1:  # the first one may be half of a line
        del parts[0]
    if parts and not parts[-1]:
        del parts[-1]
    shown = tuple(_CONTROL.sub("", _ESCAPES.sub("", line)) for line in parts[-lines:])
    return PodLog(pod=run.pod, container=run.container, previous=run.previous, lines=shown)


def read_usage(measured: Object) -> PodUsage:
    """Read what all containers of one pod use together, rounded up."""
    containers = [container.get("usage") or {} for container in measured["containers"]]
    return PodUsage(
        pod=measured["metadata"]["name"],
        at=measured["timestamp"],
        cpu=math.ceil(sum(amount(used["cpu"]) for used in containers) * 1000),
        memory=math.ceil(sum(amount(used["memory"]) for used in containers)),
    )
