"""A cache that evicts makes a service slow: its prefix is removed, and nothing beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.redis_fixtures import READER, WRITER, RedisScene
from tests.service_fixtures import FAST, Service, pool_alert

CACHED = 1500
FILLER = "x" * 1000


@pytest.fixture
async def full_cache(redis_scene: RedisScene) -> AsyncIterator[RedisScene]:
    """Sessions, a queue and a cache in one database whose memory is used up; only the cache
    may be evicted."""
    client = redis_scene.client
    await redis_scene.fill(cached=1)
    for n in range(CACHED):
        await client.set(f"cache:item:{n}", FILLER, ex=3600)
    used = int((await client.info("memory"))["used_memory"])
    await client.config_set("maxmemory-policy", "volatile-lru")
    await client.config_set("maxmemory", used + 50_000)
    filling = asyncio.create_task(_keep_filling(redis_scene))
    try:
        yield redis_scene
    finally:
        filling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await filling
        await client.config_set("maxmemory", 0)
        await client.config_set("maxmemory-policy", "noeviction")


async def _keep_filling(scene: RedisScene) -> None:
    """Play the application: it caches more than there is room for, until it finds room."""
    number = CACHED
    while (await scene.client.dbsize()) > CACHED // 2:
        await scene.client.set(f"cache:item:{number}", FILLER, ex=3600)
        number += 1
        await asyncio.sleep(0.005)


async def test_only_the_named_prefix_goes_from_a_cache_that_evicts(
    full_cache: RedisScene, tmp_path: Path
) -> None:
    """T-39, T-40: no FLUSHALL, no KEYS; the writer has the right to neither."""
    before = {key for key in await full_cache.keys() if not key.startswith("cache:")}
    service = await _service(full_cache, tmp_path)
    await service.start()
    try:
        alert = pool_alert(alertname="HighLatencyP95")
        assert (await service.post(alert)).status_code == 202
        await service.incident(within=60, phase="verify")
        await service.post({**alert, "status": "resolved", "endsAt": alert["startsAt"]})
        incident = await service.incident(within=60, state="closed")
    finally:
        await service.kill()
    assert incident["outcome"] == "mitigated", incident["reason"]
    (made,) = incident["mitigations"]
    assert (made["kind"], made["state"]) == ("unlink_prefix", "applied")
    after = await full_cache.keys()
    assert {key for key in after if not key.startswith("cache:")} == before
    assert sum(key.startswith("cache:") for key in after) < CACHED // 2
    assert "removed" in made["reason"]


async def _service(scene: RedisScene, folder: Path) -> Service:
    (folder / "reader.url").write_text(await scene.user("watcher", *READER))
    (folder / "writer.url").write_text(await scene.user("writer", *WRITER))
    cache = {
        "url_file": "reader.url",
        "writer_url_file": "writer.url",
        "cache_prefixes": ["cache:"],
    }
    playbook = {"cache_prefix": "cache:", "cache_full": 0.8, "verification": FAST}
    orders = {
        "match": {"service": "orders"},
        "targets": {"cache": "orders-cache"},
        "playbooks": {"HighLatency": playbook},
    }
    config = {
        "listen": "127.0.0.1:0",
        "mode": "auto",
        "backends": {"redis": {"orders-cache": cache}},
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": orders}}},
    }
    return Service(folder, config)
