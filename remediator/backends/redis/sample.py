"""What a sample of a Redis server's keys says, and how the server's answers are read. Pure."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from remediator.model.keyspace import PrefixUse, SlowCommand

_GONE = -2
_LASTS = -1


@dataclass(frozen=True)
class Looked:
    """The answers about some keys, in the keys' order."""

    types: Sequence[Any]
    times: Sequence[Any]
    """Milliseconds to live; -1 for ever, -2 gone meanwhile."""
    sizes: Sequence[Any] = field(default=())
    """Bytes; none where they were not asked for."""

    def use(self, *, keys: int, complete: bool) -> PrefixUse:
        """Sum up what ``keys`` keys hold; those that are gone by now are left out."""
        there = [number for number, left in enumerate(self.times) if int(left) != _GONE]
        kinds = Counter(text_of(self.types[number]) for number in there)
        kinds.pop("none", None)
        return PrefixUse(
            keys=keys,
            complete=complete,
            sampled=len(there),
            by_type=dict(kinds),
            lasting=sum(int(self.times[number]) == _LASTS for number in there),
            bytes=sum(int(self.sizes[number] or 0) for number in there) if self.sizes else 0,
        )


def drawn(keys: Collection[bytes], most: int) -> list[bytes]:
    """Return ``most`` of ``keys``, each as likely as any other, or all where there are no more."""
    every = sorted(keys)
    return every if len(every) <= most else random.sample(every, most)


def text_of(answer: Any) -> str:
    """Return an answer as text."""
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)


def slow_command(entry: Any) -> SlowCommand:
    """Read one entry, as the client parses it: id, start_time, duration in us, command."""
    name = text_of(entry["command"]).partition(" ")[0]
    return SlowCommand(
        command=name.upper()[:40],
        at=datetime.fromtimestamp(entry["start_time"], UTC),
        took=timedelta(microseconds=entry["duration"]),
    )


_GLOB = re.compile(rb"[\\*?\[\]^-]")


def matches(start: bytes) -> bytes:
    """Return the pattern of the keys that begin with ``start``, whose every character is itself."""
    return _GLOB.sub(rb"\\\g<0>", start) + b"*"
