"""What containers wrote and what the cluster noted of them, as it may be kept for humans.

Secrets are masked, its size is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from remediator.model.base import Value
from remediator.model.finding import Finding, FindingStatus
from remediator.model.redact import MASK, redact_text
from remediator.model.workloads import PodLog, WorkloadEvent
from remediator.playbook.base import Context

LONGEST = 400
"""Characters of one line that are kept."""
LOOKED_AT = 4 * LONGEST
"""Characters of one line that are looked through for secrets."""
KEPT = 64 * 1024
"""Characters of all lines that are kept, whatever the number of pods."""
EVENTS = 10
"""Events that are kept."""

_KEY = re.compile(r"-----(BEGIN|END) [A-Z ]*PRIVATE KEY-----")
_TELLING = re.compile(
    r"error|exception|fatal|panic|traceback|severe|critical|out of memory|cannot allocate",
    re.IGNORECASE,
)


class LogEvidence(Value):
    """The last lines of several containers; a restart would have deleted them.

    They may still hold personal data: show them to nobody who did not ask for them.
    """

    logs: tuple[PodLog, ...]
    """The previous runs first; of the rest as much as fits."""
    read: int
    """Runs of containers whose log was read."""
    previous: int
    """Of these, runs before the present one."""
    missing: int
    """Runs whose log could not be read."""
    lines: int
    """Lines that were read."""
    telling: int
    """Of these, lines that tell of an error."""

    @property
    def summary(self) -> str:
        """Say how much was read and kept, without a word of the text."""
        kept = sum(len(log.lines) for log in self.logs)
        lost = f"; {self.missing} could not be read" if self.missing else ""
        return (
            f"Read the last lines of {self.read} containers"
            f" ({self.previous} of a run before the present one): {self.telling} of {self.lines}"
            f" lines tell of errors; {kept} are kept{lost}."
        )


def log_evidence(logs: Iterable[PodLog]) -> LogEvidence:
    """Mask what looks like a secret, count what tells of errors, and keep what fits."""
    every = sorted(logs, key=lambda log: (not log.previous, log.pod, log.container))
    read = [log for log in every if not log.missing]
    lines = [line for log in read for line in log.lines]
    return LogEvidence(
        logs=tuple(_fitting(every)),
        read=len(read),
        previous=sum(log.previous for log in read),
        missing=len(every) - len(read),
        lines=len(lines),
        telling=sum(_TELLING.search(line) is not None for line in lines),
    )


def _fitting(logs: Iterable[PodLog]) -> Iterator[PodLog]:
    """Yield the logs with their newest lines, as long as there is room."""
    left = KEPT
    for log in logs:
        kept: list[str] = []
        secret = _of_keys(log.lines)
        for number, written in reversed(list(enumerate(log.lines))):
            # a line at a time: to mask what finds no room takes long
            line = MASK if number in secret else redact_text(_read(written))[:LONGEST]
            if len(line) > left:
                break
            left -= len(line)
            kept.append(line)
        yield log.model_copy(update={"lines": tuple(reversed(kept))})


def _read(line: str) -> str:
    """Return what is looked through of a line: no word is cut in two, lest a secret be missed."""
    if len(line) <= LOOKED_AT:
        return line
    words = line[:LOOKED_AT].rsplit(None, 1)
    return words[0] if words else ""


def _of_keys(lines: Sequence[str]) -> set[int]:
    """Return the numbers of the lines of private keys, which go over many."""
    found: set[int] = set()
    start, inside = 0, False  # without its beginning, a key may start anywhere before
    for number, line in enumerate(lines):
        edge = _KEY.search(line)
        if edge is None:
            continue
        inside = edge[1] == "BEGIN"
        if inside:
            start = number
        else:
            found.update(range(start, number + 1))
            start = number + 1
    if inside:
        found.update(range(start, len(lines)))
    return found


class Events(Value):
    """The newest events of a workload."""

    events: tuple[WorkloadEvent, ...]


async def events_finding(context: Context) -> Finding:
    """Name the newest warnings about the workload and its pods; any is a problem."""
    events = await context.workloads().events(context.targets["workload"])
    warnings = [event for event in events if event.warning]
    named = "; ".join(f"{e.reason} {e.about} ({e.count})" for e in warnings[:EVENTS])
    return Finding(
        name="events",
        status=FindingStatus.PROBLEM if warnings else FindingStatus.FINE,
        summary=f"Warnings: {named or 'none'}.",
        value=Events(events=tuple(events[:EVENTS])),
    )
