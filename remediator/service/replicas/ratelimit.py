"""The admission limit on webhooks: how often one credential may post, over all replicas."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.storage.redis import RedisStorage
from limits.aio.strategies import RateLimiter, SlidingWindowCounterRateLimiter

if TYPE_CHECKING:
    from remediator.service.replicas.redis import SharedRedis


LEAST = 1.0
"""Seconds after which somebody may come again, at least."""


class Admission:
    """Counts over all replicas where they share a Redis that answers, else in this process."""

    def __init__(self, rate: str, shared: SharedRedis | None = None) -> None:
        """Let each credential post at a ``rate`` such as ``600/minute``."""
        self._item = parse(rate)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared = shared
        self._common: RateLimiter | None = None
        if shared is not None:
            options: Any = {"connection_pool": shared.client.connection_pool}
            self._common = SlidingWindowCounterRateLimiter(
                RedisStorage(
                    "async+redis://",  # the pool is given
                    implementation="redispy",
                    key_prefix=f"{shared.namespace}:rate",
                    **options,
                )
            )

    async def wait(self, credential: str) -> float:
        """Return 0 where ``credential`` may post now, else the seconds until it may."""
        if self._shared is not None and self._common is not None:
            limiter = self._common
            answer = await self._shared.tried(lambda: self._ask(limiter, credential))
            if answer is not None:
                return answer
        return await self._ask(self._own, credential)

    async def _ask(self, limiter: RateLimiter, credential: str) -> float:
        if await limiter.hit(self._item, credential):
            return 0.0
        stats = await limiter.get_window_stats(self._item, credential)
        return max(stats.reset_time - time.time(), LEAST)
