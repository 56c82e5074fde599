"""Redis as a target: what it says of itself."""

from __future__ import annotations

import contextlib
from collections import Counter

from remediator.backends.redis.client import OutOfTime, RedisConnection
from remediator.backends.redis.mitigator import COUNT_KEYS, COUNT_WITHIN, SAMPLE
from remediator.backends.redis.sample import drawn, matches, slow_command
from remediator.model.errors import BackendUnavailable
from remediator.model.keyspace import KeyCount, MemoryUse, PrefixUse, SlowCommand


class RedisReader(RedisConnection):
    """Reads one database of one server (``ports.KeySpace``)."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "redis",
        most: int = COUNT_KEYS,
        within: float = COUNT_WITHIN,
    ) -> None:
        """Keep the secret ``url``; one count looks at ``most`` keys for ``within`` seconds."""
        super().__init__(url, name=name)
        self._most = most
        self._within = within

    async def info(self) -> MemoryUse:
        """Read memory, evictions, hits and clients."""
        found = await self._info()
        try:
            return MemoryUse(
                used=found["used_memory"],
                limit=found["maxmemory"],
                evicted=found["evicted_keys"],
                hits=found["keyspace_hits"],
                misses=found["keyspace_misses"],
                clients=found["connected_clients"],
            )
        except (KeyError, ValueError) as error:
            raise BackendUnavailable(f"{self._name}: INFO lacks what we need: {error!r}") from None

    async def slow_log(self, most: int = 20) -> tuple[SlowCommand, ...]:
        """List the newest slow commands, without their arguments."""
        found = await self._ask("SLOWLOG GET", most)
        return tuple(slow_command(entry) for entry in found)

    async def count(self, prefixes: tuple[str, ...]) -> KeyCount:
        """Count keys by prefix within the budget. A key may count twice while Redis resizes."""
        longest = sorted((prefix.encode() for prefix in prefixes), key=len, reverse=True)
        found: Counter[bytes | None] = Counter()
        complete = True
        try:
            async with contextlib.aclosing(self._keys(self._within)) as walk:
                async for keys in walk:
                    found.update(next(filter(key.startswith, longest), None) for key in keys)
                    if found.total() > self._most:
                        complete = False
                        break
        except OutOfTime:
            complete = False
        by_prefix = {prefix.decode(): found[prefix] for prefix in longest}
        return KeyCount(by_prefix=by_prefix, other=found[None], complete=complete)

    async def holds(self, prefix: str) -> PrefixUse:
        """Look at a sample of the keys of one prefix: types, times to live, memory."""
        start, found, complete = prefix.encode(), set[bytes](), True
        try:
            async with contextlib.aclosing(self._keys(self._within, matches(start))) as walk:
                async for keys in walk:
                    found.update(key for key in keys if key.startswith(start))
                    if len(found) > self._most:
                        complete = False
                        break
        except OutOfTime:
            complete = False
        looked = await self._looked_at(drawn(found, SAMPLE), "MEMORY USAGE")
        return looked.use(keys=len(found), complete=complete)
