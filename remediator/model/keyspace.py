"""What a Redis server says of its memory, its slow commands and its keys. Values only."""

from __future__ import annotations

import re
from datetime import timedelta

from pydantic import AwareDatetime

from remediator.model.base import Value

NO_CACHE = (
    *("session", "sess", "token", "auth", "login", "jwt", "queue", "celery", "bull", "sidekiq"),
    *("resque", "kombu", "stream", "lock", "redlock", "cart", "basket"),
)
"""Words in the names of keys that cannot be built again: sessions, queues, locks, carts."""
NEVER_CACHED = frozenset({"list", "stream"})
"""Types of values that are queues and logs."""
SHORTEST = 2
"""Characters of a cache's prefix."""
_WORD = re.compile(r"[a-z]+")


def no_cache(prefix: str) -> str | None:
    """Say why ``prefix`` can be no cache's, or None.

    It is too short when it takes keys of another kind as well, and it is refused when one of its
    own words says that it holds sessions, queues or the like. The prefix itself is not repeated.
    """
    lower = prefix.lower()
    if len(lower) < SHORTEST:
        return f"a cache's prefix has at least {SHORTEST} characters: other keys begin with it too"
    words = {found.removesuffix("s") for found in _WORD.findall(lower)}
    for word in NO_CACHE:
        if word.startswith(lower):
            return f"is no cache's prefix: keys that begin with {word!r} begin with it too"
        if word in words:
            return f"is no cache's prefix: it names keys that cannot be built again ({word})"
    return None


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


class PrefixUse(Value):
    """What the keys of one prefix are, by a sample of them."""

    keys: int
    """Keys that begin with it, as far as a budget allowed to look."""
    complete: bool
    """Whether every key of the database was looked at; if not, ``keys`` is a lower bound."""
    sampled: int
    """Of these, keys whose type, time to live and memory were read."""
    by_type: dict[str, int]
    """Sampled keys by type: ``string``, ``hash``, ``list``..."""
    lasting: int
    """Sampled keys without a time to live."""
    bytes: int
    """Memory of the sampled keys."""

    @property
    def held(self) -> int:
        """Memory of all keys of the prefix in bytes, estimated by the sample."""
        return self.bytes * self.keys // self.sampled if self.sampled else 0

    @property
    def no_cache(self) -> str | None:
        """Say what it holds that no cache holds, or None."""
        for kind in sorted(NEVER_CACHED & self.by_type.keys()):
            return f"holds values of the type {kind}"
        if self.lasting:
            return f"holds keys without a time to live ({self.lasting} of {self.sampled} looked at)"
        return None

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.by_type.items()))
        least = "" if self.complete else "at least "
        return (
            f"{least}{self.keys} keys, {self.held / (1 << 20):.1f} MiB;"
            f" of {self.sampled} looked at: {kinds or 'none'}, {self.lasting} without a time to live"
        )
