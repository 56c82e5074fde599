"""A prefix that is no cache, or that does not hold the memory, is not emptied, by Valkey's MONITOR.

``docs/careful.md`` is the table of it. The twin, a cache that holds the memory, is emptied.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remediator.backends.redis.mitigator import RedisMitigator
from remediator.backends.redis.reader import RedisReader
from remediator.model.mitigation import MitigationState
from tests.postgres_fixtures import eventually
from tests.redis_fixtures import READER, WRITER, RedisScene
from tests.slow_service import Slow

FILLER = "x" * 1000
KEYS = 1500
NO_CACHE: dict[str, tuple[str, ...]] = {
    "a queue under the cache's prefix": ("RPUSH", "cache:jobs", "1"),
    "a stream under the cache's prefix": ("XADD", "cache:log", "*", "k", "v"),
    "a cart under the cache's prefix": ("HSET", "cache:cart:7", "sku", "1"),
    "a lock under the cache's prefix": ("SET", "cache:lock:7", "owner"),
    "a session under the cache's prefix": ("SET", "cache:login:7", "ann"),
    "a hash whose fields alone expire": (
        *("HSETEX", "cache:profile:7", "EX", "3600"),
        *("FIELDS", "1", "name", "ann"),
    ),
}
"""Rows of the document, with what one command adds to a cache."""
ELSEWHERE = "the memory is held by keys outside of the prefix"
MANY = 60
"""So many that no sample misses them all: 500 of 1,500 keys do so once in 10**10 times."""
CACHE: dict[str, tuple[tuple[str, ...], ...]] = {
    "nothing else": (),
    "hashes that expire": (("HSET", "cache:hash", "a", "1"), ("EXPIRE", "cache:hash", "3600")),
}
"""What is still a cache with these, each in ``MANY`` keys."""


@contextlib.asynccontextmanager
async def evicting(scene: RedisScene, prefix: str) -> AsyncIterator[None]:
    """Fill the memory with keys of ``prefix`` that expire, so that some are evicted all the time."""
    client, filled = scene.client, asyncio.Event()
    await scene.cache({f"{prefix}{n}": FILLER for n in range(KEYS)})
    used = int((await client.info("memory"))["used_memory"])
    await client.config_set("maxmemory-policy", "volatile-lru")
    await client.config_set("maxmemory", used + 50_000)

    async def fill() -> None:
        for number in itertools.count(KEYS):
            if filled.is_set():
                return
            await client.set(f"{prefix}{number}", FILLER, ex=3600)
            await asyncio.sleep(0.005)

    async def evicts() -> bool:
        return int((await client.info("stats"))["evicted_keys"]) > before

    before = int((await client.info("stats"))["evicted_keys"])
    filling = asyncio.create_task(fill())
    try:
        await eventually(evicts, "keys are evicted")
        yield
    finally:
        filled.set()
        await filling
        await client.config_set("maxmemory", 0)
        await client.config_set("maxmemory-policy", "noeviction")


async def acted(scene: RedisScene) -> tuple[str, list[str]]:
    """Act as the service does in mode auto; return what it said and MONITOR's removing commands."""
    seen: list[str] = []
    async with scene.client.monitor() as monitor:

        async def watch() -> None:
            async for one in monitor.listen():
                seen.append(str(one["command"]))
                if "the end" in seen[-1]:
                    return

        watching = asyncio.create_task(watch())
        try:
            said = await _act(scene)
            await scene.client.echo("the end")
            await asyncio.wait_for(watching, 10)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    removing = [one for one in seen if re.match(r"(UNLINK|DEL|FLUSH|EXPIRE|EVAL)", one)]
    return said, removing


async def _act(scene: RedisScene) -> str:
    reader = RedisReader(await scene.user("watcher", *READER), name="cache")
    writer = await scene.user("writer", *WRITER)
    async with reader, RedisMitigator(writer, prefixes=("cache:",), name="cache") as lever:
        slow = Slow(database=None, workload=None, cache=reader)
        slow.parameters = {"cache_gap": "500ms", "cache_full": 0.8}
        proposal = await slow.proposed()
        for plan in proposal.mitigations:
            outcome = await lever.apply(await lever.prepare(plan), "key")
            assert outcome.state is MitigationState.APPLIED
    return proposal.reason


@pytest.mark.parametrize("command", NO_CACHE.values(), ids=NO_CACHE)
async def test_a_prefix_with_more_than_a_cache_in_it_is_not_emptied(
    redis_scene: RedisScene, command: tuple[str, ...]
) -> None:
    for number in range(MANY):
        await redis_scene.client.execute_command(command[0], f"{command[1]}:{number}", *command[2:])
    async with evicting(redis_scene, "cache:"):
        said, removing = await acted(redis_scene)
    assert removing == []
    assert "the prefix is no cache: it holds" in said


async def test_a_prefix_that_does_not_hold_the_memory_is_not_emptied(
    redis_scene: RedisScene,
) -> None:
    await redis_scene.cache({f"cache:{n}": "x" for n in range(100)})
    async with evicting(redis_scene, "page:"):
        said, removing = await acted(redis_scene)
    assert removing == []
    assert "the memory is elsewhere" in said


@pytest.mark.parametrize("commands", CACHE.values(), ids=CACHE)
async def test_the_twin_is_emptied(
    redis_scene: RedisScene, commands: tuple[tuple[str, ...], ...]
) -> None:
    for number in range(MANY):
        for name, key, *rest in commands:
            await redis_scene.client.execute_command(name, f"{key}:{number}", *rest)
    async with evicting(redis_scene, "cache:"):
        said, removing = await acted(redis_scene)
    assert removing, said
    assert all(re.match(r"UNLINK( cache:\S+)+$", one) for one in removing)


def test_every_situation_is_a_row_of_the_document() -> None:
    text = (Path(__file__).parents[2] / "docs" / "careful.md").read_text()
    rows = set(re.findall(r"^\| ([^|]+) \| ", text, re.MULTILINE))
    assert {*NO_CACHE, ELSEWHERE} <= rows
