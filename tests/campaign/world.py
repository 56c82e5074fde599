"""The faulty backends of one seed, and one configuration for a service that may cure them all."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis
import yaml

from tests.campaign.ground import Ground, Slot, Valkey
from tests.campaign.network import Link, link_to
from tests.campaign.plan import Plan
from tests.fault_rigs import (
    Arrange,
    Fault,
    configuration,
    full_pod,
    killed_container,
    leaked_session,
    open_breaker,
    parameters,
)
from tests.latency_rigs import too_few_replicas
from tests.redis_fixtures import READER, WRITER, RedisScene
from tests.service_fixtures import pool_alert

HOLD: dict[str, Any] = {"hold": "3s", "step_down": 1.0, "step_pause": "1s"}
ANSWERED_WITHIN = "6s"
"""Time for which an approval is waited for, from the delivery of its request."""
SLUGGISH = 4.0
"""Seconds after its reset for which a breaker may be reset once more."""
_CACHED, _FILLER = 600, "x" * 1000


@dataclass
class Part:
    """One service with one fault."""

    service: str
    kind: str
    fault: Fault
    folder: Path
    backends: str
    """Begin of the names of its backends; a twin has those of another part."""
    fires: float = 0.0
    """When its alert fires, in seconds since the beginning."""
    asks: bool = False
    """Whether a human has to agree to each change."""

    @property
    def namespace(self) -> str | None:
        """Where its workload is; None where it has none."""
        targets = self.fault.config["systems"]["shop"]["services"]["orders"]["targets"]
        found: str | None = targets.get("workload", {}).get("namespace")
        return found

    async def cured(self) -> bool:
        """Whether the fault is gone, by the backend's own record."""
        return await self.fault.changes() > 0

    def alert(self, status: str, started: str) -> dict[str, Any]:
        """Make its alert as Alertmanager would deliver it."""
        alert = pool_alert(status, service=self.service, **self.fault.labels)
        return {**alert, "startsAt": started}


@dataclass
class World:
    """All of it, with the network between."""

    parts: list[Part] = field(default_factory=list)
    links: dict[str, Link] = field(default_factory=dict)
    """By what they lead to: ``store``, ``slack``, ``prometheus``, ``cluster``, and each service."""
    backends: dict[str, Link] = field(default_factory=dict)
    """Those of ``links`` that lead to what is looked after."""


@dataclass
class _Making:
    """What it takes to make the parts."""

    stack: AsyncExitStack
    ground: Ground
    chance: random.Random
    world: World

    async def link(self, name: str, url: str) -> Link:
        if name not in self.world.links:
            link = await self.stack.enter_async_context(link_to(url, self.chance))
            self.world.links[name] = link
        return self.world.links[name]

    async def backend(self, name: str, url: str) -> Link:
        self.world.backends[name] = await self.link(name, url)
        return self.world.links[name]


@asynccontextmanager
async def the_world(plan: Plan, ground: Ground, slot: Slot, folder: Path) -> AsyncIterator[World]:
    """Make every fault of ``plan``."""
    async with AsyncExitStack() as stack:
        world = World()
        making = _Making(stack, ground, random.Random(f"network {plan.seed}"), world)
        reached = await _kubeconfig(making, folder)
        await making.link("prometheus", ground.known.url)
        for number, kind in enumerate(plan.faults):
            own = folder / f"{kind}-{number}"
            own.mkdir()
            fault = await stack.enter_async_context(_arrange(kind, ground, reached)(own))
            name = f"{kind}{number}"
            asks = number in plan.asked
            part = Part(name, kind, fault, own, name, plan.fires[number], asks)
            await _go_by_links(making, part)
            world.parts.append(part)
            if number == plan.twin:
                world.parts.append(replace(part, service=f"{part.service}-too"))
        yield world


def _arrange(kind: str, ground: Ground, reached: Path) -> Arrange:
    in_cluster = ground.cluster.kubeconfig, ground.known, reached
    arranges: dict[str, Callable[[], Arrange]] = {
        "breaker": open_breaker,
        "sluggish": lambda: open_breaker(closes_after=SLUGGISH),
        "session": lambda: leaked_session(ground.targets.dsn()),
        "memory": lambda: killed_container(*in_cluster),
        "evicted": lambda: full_pod(*in_cluster),
        "scale": lambda: too_few_replicas(*in_cluster, wanted=2, given=HOLD),
        "cache": lambda: full_cache,
    }
    return arranges[kind]()


async def _kubeconfig(making: _Making, folder: Path) -> Path:
    content = yaml.safe_load(making.ground.cluster.kubeconfig.read_text())
    (cluster,) = content["clusters"]
    link = await making.link("cluster", cluster["cluster"]["server"])
    cluster["cluster"]["server"] = link.through(cluster["cluster"]["server"])
    path = folder / "cluster.kubeconfig"
    path.write_text(yaml.safe_dump(content))
    return path


async def _go_by_links(making: _Making, part: Part) -> None:
    """Let the service reach the part's backends through the network."""
    backends = part.fault.config["backends"]
    for backend in backends.get("http", {}).values():
        backend["url"] = (await making.backend(part.service, backend["url"])).through(
            backend["url"]
        )
    for backend in backends.get("prometheus", {}).values():
        backend["url"] = making.world.links["prometheus"].through(backend["url"])
    for name, kind in (("dsn", "postgres"), ("url", "redis")):
        for backend in backends.get(kind, {}).values():
            for key in (f"{name}_file", f"writer_{name}_file"):
                file = part.folder / backend[key]
                url = file.read_text()
                file.write_text((await making.backend(part.service, url)).through(url))
                backend[key] = str(file)
    if "kubernetes" in backends:
        making.world.backends["cluster"] = making.world.links["cluster"]


def merged(world: World, plan: Plan) -> dict[str, Any]:
    """Put the configurations of all parts together: one system, a service for each."""
    services: dict[str, Any] = {}
    backends: dict[str, dict[str, Any]] = {}
    for part in world.parts:
        config = part.fault.config
        for kind, named in config["backends"].items():
            for name, backend in named.items():
                backends.setdefault(kind, {})[f"{part.backends}-{name}"] = backend
        service = config["systems"]["shop"]["services"]["orders"]
        services[part.service] = _renamed(service, part)
    wide = {"budget": 20, "concurrency": 10, "cooldown": "0s"}
    own = {**wide, "budget": plan.budget, "concurrency": plan.concurrency}
    shop = {"match": {"system": "shop"}, "limits": own, "services": services}
    return {
        "limits": {"global": wide, "spread": {"services": 1.0}},
        "backends": backends,
        "systems": {"shop": shop},
    }


def _renamed(service: dict[str, Any], part: Part) -> dict[str, Any]:
    """Call the service and its backends by names of their own."""
    name = part.backends

    def target(value: Any) -> Any:
        if isinstance(value, str):
            return f"{name}-{value}"
        return {**value, "cluster": f"{name}-{value['cluster']}"}

    targets = {role: target(value) for role, value in service["targets"].items()}
    renamed = {**service, "match": {"service": part.service}, "targets": targets}
    if part.asks:
        playbooks = service["playbooks"].items()
        renamed["playbooks"] = {key: {**given, "mode": "approve"} for key, given in playbooks}
        renamed["approvals"] = {"within": ANSWERED_WITHIN}
    if "prometheus" in service:
        renamed["prometheus"] = f"{name}-{service['prometheus']}"
    return renamed


# --- a cache that evicts ------------------------------------------------------------------------


@asynccontextmanager
async def full_cache(folder: Path) -> AsyncIterator[Fault]:
    """The memory of a Valkey is used up by a cache, which makes its service slow."""
    server = Valkey(folder)
    await server.start()
    client: Any = aioredis.Redis.from_url(server.url)
    scene = RedisScene(server.url, client)
    over, filling = asyncio.Event(), list[asyncio.Task[None]]()
    try:
        await scene.fill(cached=1, sessions=50)
        before = {key for key in await scene.keys() if not key.startswith("cache:")}
        for n in range(_CACHED):
            await client.set(f"cache:item:{n}", _FILLER, ex=3600)
        used = int((await client.info("memory"))["used_memory"])
        await client.config_set("maxmemory-policy", "volatile-lru")
        await client.config_set("maxmemory", used + 50_000)
        filling.append(asyncio.create_task(_keep_filling(scene, over)))

        async def changes() -> int:
            return int(await client.dbsize() < _CACHED // 2)

        async def harm() -> str:
            left = {key for key in await scene.keys() if not key.startswith("cache:")}
            return "" if left == before else f"{len(before - left)} other keys are gone"

        (folder / "reader.url").write_text(await scene.user("watcher", *READER))
        (folder / "writer.url").write_text(await scene.user("writer", *WRITER))
        cache = {
            "url_file": "reader.url",
            "writer_url_file": "writer.url",
            "cache_prefixes": ["cache:"],
        }
        config = configuration("HighLatency", {"cache": "cache"}, redis={"cache": cache})
        parameters(config, cache_prefix="cache:", cache_full=0.8)
        yield Fault("unlink_prefix", config, {"alertname": "HighLatencyP95"}, changes, harm)
    finally:
        over.set()  # not cancelled: the client may take that for an answer
        await asyncio.gather(*filling)
        await client.aclose()
        server.kill()


async def _keep_filling(scene: RedisScene, over: asyncio.Event) -> None:
    """Play the application: it caches more than there is room for, until it finds room."""
    for number in itertools.count(_CACHED):
        key = f"cache:item:{number}"
        room = not await scene.client.eval(_FILL, 1, key, _CACHED // 2, _FILLER)
        if room or over.is_set():
            return
        await asyncio.sleep(0.02)


_FILL = """
if redis.call('dbsize') <= tonumber(ARGV[1]) then return 0 end
redis.call('set', KEYS[1], ARGV[2], 'EX', 3600)
return 1
"""
