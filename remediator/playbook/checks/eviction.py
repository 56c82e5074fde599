"""Whether a cache is full and pushes out keys that are still wanted."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import Field, field_validator

from remediator.model.duration import Duration
from remediator.model.finding import Finding, FindingStatus
from remediator.model.keyspace import MemoryUse, PrefixUse, no_cache
from remediator.model.mitigation import Item, Mitigation
from remediator.model.target import Target
from remediator.playbook.base import Context, Parameters

HELD = 0.25
"""Least share of the memory in use that the prefix holds where removing it is to help."""


class CacheBounds(Parameters):
    """Which keys of a cache may be removed, and when it counts as full."""

    cache_prefix: str | None = Field(default=None, min_length=1)
    """Prefix of the keys that are removed from a full cache; none: the cache is not touched."""
    cache_full: float = Field(default=0.9, gt=0, le=1)
    """Share of its memory from which on a cache is full."""
    cache_gap: Duration = Field(default=timedelta(seconds=2), le=timedelta(seconds=3))
    """Time between the two readings that show whether the cache evicts keys."""

    @field_validator("cache_prefix")
    @classmethod
    def _is_a_cache(cls, prefix: str | None) -> str | None:
        wrong = no_cache(prefix) if prefix else None
        if wrong:
            raise ValueError(wrong)
        return prefix

    def impossible(self) -> dict[str, str]:
        """No cache is emptied unless it is said of what."""
        found = super().impossible()
        return found if self.cache_prefix else found | {"unlink_prefix": "no cache_prefix"}

    async def cache_finding(self, context: Context) -> Finding:
        """Look twice: a problem is a cache that is full and evicts keys between the looks."""
        cache = context.keyspace()
        earlier = await cache.info()
        await asyncio.sleep(self.cache_gap.total_seconds())
        now = await cache.info()
        ratio, evicted = now.ratio, now.evicted - earlier.evicted
        full = ratio is not None and ratio >= self.cache_full and evicted > 0
        used = "has no limit" if ratio is None else f"is {ratio:.0%} full"
        return Finding(
            name="cache",
            status=FindingStatus.PROBLEM if full else FindingStatus.FINE,
            summary=f"The cache {used} and evicted {max(evicted, 0)} keys between two looks.",
            value=now,
        )

    async def prefix_finding(self, context: Context) -> Finding:
        """Look at a sample of what would be removed; ``fine`` where it is a cache."""
        use = await context.keyspace().holds(self.cache_prefix or "")
        return Finding(
            name="prefix",
            status=FindingStatus.PROBLEM if use.no_cache else FindingStatus.FINE,
            summary=f"The prefix has {use}.",
            value=use,
        )

    @staticmethod
    def prefix_doubt(memory: MemoryUse, use: PrefixUse) -> str | None:
        """Say why removing the prefix is not proven to be right and to help, or None."""
        if use.no_cache:
            return f"the prefix is no cache: it {use.no_cache}"
        if use.held < HELD * memory.used:
            return (
                f"the memory is elsewhere: the prefix holds {use.held / (1 << 20):.1f} of"
                f" {memory.used / (1 << 20):.1f} MiB"
            )
        return None

    def unlink_plan(self, target: Target, prefix: str, why: str) -> Mitigation:
        """Propose to remove the keys of one prefix; the cache refills by itself."""
        return Mitigation(
            kind="unlink_prefix",
            target=target,
            reason=f"{why} Keys that begin with {prefix!r} are removed.",
            items=(Item(key=prefix, identity={"prefix": prefix}),),
            parameters={"prefix": prefix},
        )
