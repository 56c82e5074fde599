"""One fault for each kind of mitigation: a backend that has it, a service that may cure it.

Each counts, from the backend's own records, how often the backend was really changed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
from aiohttp import web

from remediator.backends.kubernetes.client import Change, KubernetesClient
from tests.breaker_fixtures import READER, WRITER, breaker_service
from tests.kubernetes_fixtures import Cluster, until
from tests.lossy_proxy import LossyDatabase, LossyProxy
from tests.monitoring_fixtures import running_prometheus
from tests.postgres_fixtures import Scene, dsn_of, execute
from tests.scripted_http import serving
from tests.service_fixtures import pool_alert

MI = 1 << 20
LEASE = "3s"
"""Longer than a busy machine holds a process up, so that a trial is about its kill alone."""
QUICK = {
    "interval": "200ms",
    "hold": "300ms",
    "hold_resolved": "200ms",
    "deadline": "30s",
    "resolve_within": "60s",
}
_SCRAPE = """
global: {scrape_interval: 1s}
scrape_configs: [{job_name: pods, static_configs: [{targets: ['ADDRESS']}]}]
"""


@dataclass
class Fault:
    """A fault that is there, and what a service needs to know of it."""

    kind: str
    """Of the mitigation that cures it."""
    config: dict[str, Any]
    labels: dict[str, str]
    """Of the alert."""
    changes: Callable[[], Awaitable[int]]
    """How often the backend was changed, by its own records."""
    harm: Callable[[], Awaitable[str]]
    """What was changed besides; empty when nothing was."""
    environ: dict[str, str] = field(default_factory=dict)
    conditional: bool = True
    """Whether the backend itself refuses a second change, so that it may be tried again."""
    times: Sequence[datetime] = ()
    """When the backend was asked for the changes, where it says so."""

    def alert(self, status: str = "firing") -> dict[str, Any]:
        """Make the alert as Alertmanager would deliver it."""
        return pool_alert(status, service="orders", **self.labels)


Arrange: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Fault]]
"""Makes a fault of its own, with its files in a folder."""


def configuration(
    playbook: str, targets: dict[str, str | dict[str, str]], **backends: dict[str, Any]
) -> dict[str, Any]:
    """Let one playbook act by itself on one service."""
    orders = {"match": {"service": "orders"}, "targets": targets, "playbooks": {playbook: {}}}
    return {
        "listen": "127.0.0.1:0",
        "store": {"lease": LEASE},
        "backends": backends,
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": orders}}},
    }


def parameters(config: dict[str, Any], **given: Any) -> None:
    """Set what the one playbook may do and how."""
    enabled = config["systems"]["shop"]["services"]["orders"]["playbooks"]
    for name in enabled:
        enabled[name] = {"mode": "auto", "verification": QUICK, **given}


# --- PostgreSQL --------------------------------------------------------------------------------


def leaked_session(server: str, *, proxy: LossyDatabase | None = None) -> Arrange:
    """A session forgot its transaction and blocks another one, which is innocent."""

    @asynccontextmanager
    async def arrange(folder: Path) -> AsyncIterator[Fault]:
        name = f"test_{secrets.token_hex(6)}"
        await execute(server, f"CREATE DATABASE {name}")
        scene = Scene(dsn_of(server, database=name))
        try:
            await scene.build()
            fault = await _leaking(scene, folder, name)
            if proxy is not None:
                (folder / "lever.dsn").write_text(proxy.through(scene.dsn_as("lever")))
            yield fault
        finally:
            await scene.clear()
            await execute(server, f"DROP DATABASE {name} WITH (FORCE)")

    return arrange


async def _leaking(scene: Scene, folder: Path, database: str) -> Fault:
    leak = (await scene.leak()).get_server_pid()
    victim = (await scene.victim()).get_server_pid()
    await scene.until(leak, "now() - state_change > interval '60.2 seconds'")

    async def changes() -> int:
        watcher = await asyncpg.connect(scene.dsn, timeout=10)
        try:
            count = "SELECT sessions_killed FROM pg_stat_database WHERE datname = $1"
            return int(await watcher.fetchval(count, database))
        finally:
            await watcher.close()

    async def harm() -> str:
        return "" if await scene.is_(victim) else "the innocent session was ended"

    for role in ("reader", "lever"):
        (folder / f"{role}.dsn").write_text(scene.dsn_as(role))
    backend = {"dsn_file": "reader.dsn", "writer_dsn_file": "lever.dsn"}
    config = configuration("PoolExhausted", {"database": "main"}, postgres={"main": backend})
    parameters(config, idle_tx_s=60, app_roles=[scene.app])
    return Fault(
        "end_sessions", config, {"alertname": "DatabaseConnectionPoolExhausted"}, changes, harm
    )


# --- a service with circuit breakers -----------------------------------------------------------


def open_breaker(
    *, effective: bool = True, closes_after: float = 0.0, proxy: LossyProxy | None = None
) -> Arrange:
    """A breaker is open and its upstream is well; not ``effective``, no reset closes it.

    One that closes some seconds after its reset takes another reset meanwhile.
    """

    @asynccontextmanager
    async def arrange(_folder: Path) -> AsyncIterator[Fault]:
        async with breaker_service(payments="OPEN", search="CLOSED") as breakers:
            breakers.effective = effective
            breakers.closes_after = closes_after
            url = breakers.url
            if proxy is not None:
                proxy.upstream, url = url, proxy.url

            async def changes() -> int:
                return len(breakers.posts)

            async def harm() -> str:
                touched = breakers.created or breakers.breakers["search"] != "CLOSED"
                return "another breaker was touched" if touched else ""

            tokens = {"token_env": "READER", "writer_token_env": "WRITER"}
            admin = {"url": url, "breakers": "actuator", **tokens}
            backends = {"admin": admin, "bank": {"url": url}}
            targets: dict[str, Any] = {"admin": "admin", "bank": "bank"}
            config = configuration("CircuitBreakerOpen", targets, http=backends)
            quick = {"probe_gap": "100ms", "look_again": "1s"}
            quick |= {"wait_duration": "1s", "clean_for": "1s"}
            parameters(config, upstreams={"payments": {"role": "bank"}}, **quick)
            labels = {"alertname": "CircuitBreakerOpen", "breaker": "payments"}
            environ = {"READER": READER, "WRITER": WRITER}
            times = breakers.posted_at
            yield Fault(
                "reset_breaker",
                config,
                labels,
                changes,
                harm,
                environ,
                conditional=False,
                times=times,
            )

    return arrange


# --- Kubernetes --------------------------------------------------------------------------------


@dataclass
class Monitoring:
    """A real Prometheus that knows how the faulty services are."""

    url: str = ""
    readings: dict[str, Callable[[], dict[str, float]]] = field(default_factory=dict)
    """By scope: what gives its series, each with its labels, and their values at every scrape."""

    async def metrics(self, _request: web.Request) -> web.StreamResponse:
        """Answer what is scraped."""
        lines = [
            f"{series} {value}\n"
            for reading in self.readings.values()
            for series, value in reading().items()
        ]
        return web.Response(text="".join(lines))

    async def knows(self, query: str) -> bool:
        """Whether there is an answer to ``query`` yet."""
        async with httpx.AsyncClient(base_url=self.url, verify=False) as client:
            answer = await client.get("/api/v1/query", params={"query": query})
        return bool(answer.json()["data"]["result"])


@asynccontextmanager
async def monitoring(folder: Path) -> AsyncIterator[Monitoring]:
    """Run Prometheus."""
    known = Monitoring()
    async with serving(known.metrics) as target:
        config = _SCRAPE.replace("ADDRESS", target.removeprefix("http://"))
        async with running_prometheus(config, folder) as server:
            known.url = server.url
            yield known


@dataclass
class Pods:
    """A deployment, and the kubelet and the application that are played for it."""

    cluster: Cluster
    wanted: int = 2
    """Replicas that it should have in the end."""
    first: list[dict[str, Any]] = field(default_factory=list)
    """The pods that it began with."""
    running: list[str] = field(default_factory=list)
    """Names of the pods that run now."""
    generation: int = 0
    follows: Callable[[], Awaitable[int]] | None = None
    """Gives the least replicas, where an autoscaler is to be played."""

    async def begin(self) -> None:
        """Deploy, and note what is there before anything is changed."""
        await self.cluster.deploy(2)
        self.first = await self.cluster.pods()
        self.generation = (await self.cluster.deployment())["metadata"]["generation"]

    async def killed(self) -> None:
        """Report that the first pod was killed for want of memory."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        ended = {"exitCode": 137, "reason": "OOMKilled", "startedAt": now, "finishedAt": now}
        state = {
            "name": "app",
            "image": "app",
            "imageID": "",
            "ready": True,
            "restartCount": 1,
            "state": {"running": {"startedAt": now}},
            "lastState": {"terminated": ended},
        }
        name = self.first[0]["metadata"]["name"]
        await self.cluster.report(name, {"containerStatuses": [state]})

    async def changes(self) -> int:
        """Count the changes of the deployment's specification."""
        found = await self.cluster.deployment()
        return int(found["metadata"]["generation"]) - self.generation

    async def evictions(self) -> int:
        """Count the first pods that are gone."""
        left = {pod["metadata"]["uid"] for pod in await self.cluster.pods()}
        return sum(pod["metadata"]["uid"] not in left for pod in self.first)

    async def harm(self) -> str:
        """Say whether the deployment was left as somebody would not wish."""
        replicas = (await self.cluster.deployment())["spec"]["replicas"]
        return "" if replicas == self.wanted else f"{replicas} replicas are wanted"

    def series(self) -> dict[str, float]:
        """Return what its metrics say: two pods are too few, and the first one is full."""
        scope, slow = f'scope="{self.cluster.namespace}"', len(self.running) < 3
        first = self.first[0]["metadata"]["name"]
        memory = {
            f'memory_used{{{scope},pod="{name}"}}': (250.0 if name == first else 50.0) * MI
            for name in self.running
        }
        latency, cpu = (0.9, 0.95) if slow else (0.1, 0.5)
        return memory | {f"latency{{{scope}}}": latency, f"cpu{{{scope}}}": cpu}

    async def play(self, over: asyncio.Event) -> None:
        """Play the kubelet until ``over``: what waits runs and is ready."""
        while not over.is_set():
            await self.cluster.run_pods()
            self.running = [pod["metadata"]["name"] for pod in await self.cluster.pods()]
            await self._autoscale()
            await asyncio.sleep(0.3)

    async def _autoscale(self) -> None:
        if self.follows is None:
            return
        replicas = await self.follows()
        if replicas > (await self.cluster.deployment())["spec"]["replicas"]:
            body = {"spec": {"replicas": replicas}}
            await self.cluster.patch("/apis/apps/v1", "deployments", "orders", body)


@asynccontextmanager
async def deployed(kubeconfig: Path, folder: Path, known: Monitoring) -> AsyncIterator[Pods]:
    """Deploy two pods in a namespace of their own, until the end of the block."""
    async with KubernetesClient(kubeconfig, "admin") as admin:
        cluster = Cluster(admin, kubeconfig, folder)
        body = {"metadata": {"name": cluster.namespace}}
        await admin.send(Change("POST", "/api/v1/namespaces", body), dry_run=False)
        await cluster.node("roomy")
        pods, over = Pods(cluster), asyncio.Event()
        await pods.begin()
        known.readings[cluster.namespace] = pods.series
        kubelet = asyncio.create_task(pods.play(over))
        try:
            query = f'memory_used{{scope="{cluster.namespace}"}}'
            await until(lambda: known.knows(query), "the pods are scraped", 60)
            yield pods
        finally:
            over.set()  # not cancelled: a connection that is being made would be left open
            await kubelet
            del known.readings[cluster.namespace]
            name = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments/orders"
            stop = Change("PATCH", name, {"spec": {"replicas": 0}})
            await admin.send(stop, dry_run=False)


def in_cluster(
    pods: Pods, kubeconfig: Path, known: Monitoring, playbook: str, **given: Any
) -> dict[str, Any]:
    """Let ``playbook`` look after the deployment, by way of ``kubeconfig``."""
    cluster = {"kubeconfig": str(kubeconfig), "writer_kubeconfig": str(kubeconfig)}
    workload = {"cluster": "main", "namespace": pods.cluster.namespace, "deployment": "orders"}
    config = configuration(
        playbook,
        {"workload": workload},
        kubernetes={"main": cluster},
        prometheus={"main": {"url": known.url, "scrape_interval": "20s"}},
    )
    config["systems"]["shop"]["services"]["orders"]["prometheus"] = "main"
    if playbook == "OOM":  # no kubelet runs there that could tell what its containers wrote
        given |= {"evidence": "optional"}
    parameters(config, **given)
    return config


def _memory(pods: Pods) -> str:
    return f'memory_used{{scope="{pods.cluster.namespace}"}}'


def killed_container(kubeconfig: Path, known: Monitoring, reached: Path) -> Arrange:
    """A container was killed at its limit, which may be raised; the service goes by ``reached``."""

    @asynccontextmanager
    async def arrange(folder: Path) -> AsyncIterator[Fault]:
        async with deployed(kubeconfig, folder, known) as pods:
            await pods.killed()
            given = {"memory_query": _memory(pods), "memory_max": "1Gi"}
            config = in_cluster(pods, reached, known, "OOM", **given)
            labels = {"alertname": "PodOOMKilled"}
            yield Fault("set_memory", config, labels, pods.changes, pods.harm)

    return arrange


def full_pod(kubeconfig: Path, known: Monitoring, reached: Path) -> Arrange:
    """A pod uses almost all of its memory and is evicted."""

    @asynccontextmanager
    async def arrange(folder: Path) -> AsyncIterator[Fault]:
        async with deployed(kubeconfig, folder, known) as pods:
            config = in_cluster(pods, reached, known, "OOM", memory_query=_memory(pods))
            labels = {"alertname": "HighMemoryUsage"}
            yield Fault("evict_pod", config, labels, pods.evictions, pods.harm)

    return arrange


def restarted_pods(kubeconfig: Path, known: Monitoring, reached: Path) -> Arrange:
    """A pod uses almost all of its memory, and all are restarted in turn."""

    @asynccontextmanager
    async def arrange(folder: Path) -> AsyncIterator[Fault]:
        async with deployed(kubeconfig, folder, known) as pods:
            given = {"memory_query": _memory(pods), "recycle": "restart", "restart_gap": "0s"}
            config = in_cluster(pods, reached, known, "OOM", **given)
            labels = {"alertname": "HighMemoryUsage"}
            yield Fault("restart_rollout", config, labels, pods.changes, pods.harm)

    return arrange
