"""What a Redis server says of its memory, its slow commands and its keys. Values only."""

from __future__ import annotations

from datetime import timedelta

from pydantic import AwareDatetime

from remediator.model import Value


class MemoryUse(Value):
    """What a Redis server says of its memory, its hits and its clients."""

    used: int
    """Bytes."""
    limit: int
    """``maxmemory`` in bytes; 0 where there is none."""
    evicted: int
    """Keys evicted for want of memory since the server started."""
    hits: int
    """Lookups that found their key since the server started; compare two readings."""
    misses: int
    clients: int
    """Connected clients."""

    @property
    def ratio(self) -> float | None:
        """Used share of the limit; None where there is no limit."""
        return self.used / self.limit if self.limit else None

    @property
    def hit_ratio(self) -> float | None:
        """Share of the lookups that found their key, 0..1; None before the first lookup."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else None


class SlowCommand(Value):
    """One entry of the slow log: the command's name only, its arguments may be personal data."""

    command: str
    at: AwareDatetime
    took: timedelta


class KeyCount(Value):
    """How many keys begin with each of some prefixes, as far as a budget allowed to look."""

    by_prefix: dict[str, int]
    """Of two prefixes that fit a key, the longer one counts it."""
    other: int
    complete: bool
    """Whether every key was looked at; if not, the counts are lower bounds."""
