"""Slow services, as ``fault_rigs``: too few replicas, or a migration that goes wrong."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.breaker_fixtures import READER, WRITER, breaker_service
from tests.fault_rigs import (
    Arrange,
    Fault,
    Monitoring,
    Pods,
    configuration,
    deployed,
    in_cluster,
    parameters,
)
from tests.kubernetes_fixtures import until
from tests.lossy_proxy import LossyProxy

SLOW = {"alertname": "HighLatencyP95"}
AUTOSCALERS = "/apis/autoscaling/v1"


def too_few_replicas(
    kubeconfig: Path,
    known: Monitoring,
    reached: Path,
    *,
    wanted: int = 3,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Arrange:
    """Two replicas are too few; three would do. In the end there should be ``wanted``."""

    @asynccontextmanager
    async def arrange(folder: Path) -> AsyncIterator[Fault]:
        async with deployed(kubeconfig, folder, known) as pods:
            pods.wanted = wanted
            scaling = _scaling(pods) | dict(given)
            config = in_cluster(pods, reached, known, "HighLatency", **scaling)
            yield Fault("scale", config, SLOW, pods.changes, pods.harm)

    return arrange


def too_low_minimum(kubeconfig: Path, known: Monitoring, reached: Path) -> Arrange:
    """An autoscaler is content with two replicas; the test plays what it does with three."""

    @asynccontextmanager
    async def arrange(folder: Path) -> AsyncIterator[Fault]:
        async with deployed(kubeconfig, folder, known) as pods:
            cluster = pods.cluster
            await cluster.autoscaler(minimum=2, maximum=6)
            path = cluster.path(AUTOSCALERS, "horizontalpodautoscalers")
            since = (await cluster.admin.get(path))["metadata"]["resourceVersion"]
            pods.follows = cluster.minimum

            async def changes() -> int:
                watch = {"watch": "true", "resourceVersion": since, "timeoutSeconds": "1"}
                seen = await cluster.admin.read_text(path, 1 << 20, **watch)
                return sum(json.loads(line)["type"] == "MODIFIED" for line in seen.splitlines())

            async def harm() -> str:
                minimum = await cluster.minimum()
                return "" if minimum == 3 else f"the minimum is {minimum}"

            config = in_cluster(pods, reached, known, "HighLatency", **_scaling(pods))
            yield Fault("scale", config, SLOW, changes, harm)

    return arrange


def _scaling(pods: Pods) -> dict[str, Any]:
    scope = f'scope="{pods.cluster.namespace}"'
    return {
        "latency_query": f"latency{{{scope}}}",
        "latency_limit": 0.5,
        "settle": "0s",
        "cpu_query": f"cpu{{{scope}}}",
        "scale_cap": 4,
        "node_headroom": False,
    }


def slow_migration(known: Monitoring, *, proxy: LossyProxy | None = None) -> Arrange:
    """A pair that was moved to the new engine is slow there."""

    @asynccontextmanager
    async def arrange(_folder: Path) -> AsyncIterator[Fault]:
        async with breaker_service() as service:
            service.migrations = {"BTCUSDT": 25.0}
            url, scope = service.url, secrets.token_hex(4)
            if proxy is not None:
                proxy.upstream, url = url, proxy.url
            series = f'latency{{scope="{scope}"}}'
            known.readings[scope] = lambda: {series: 0.9 if service.migrations["BTCUSDT"] else 0.1}
            await until(lambda: known.knows(series), "the latency is scraped", 60)

            async def changes() -> int:
                return len(service.moved)

            async def harm() -> str:
                return "" if set(service.migrations) == {"BTCUSDT"} else str(service.migrations)

            tokens = {"token_env": "READER", "writer_token_env": "WRITER"}
            config = configuration(
                "HighLatency",
                {"admin": "admin"},
                http={"admin": {"url": url, "migrations": "admin", **tokens}},
                prometheus={"main": {"url": known.url, "scrape_interval": "20s"}},
            )
            config["systems"]["shop"]["services"]["orders"]["prometheus"] = "main"
            parameters(config, latency_query=series, latency_limit=0.5, settle="0s")
            environ = {"READER": READER, "WRITER": WRITER}
            try:
                yield Fault(
                    "set_migration", config, SLOW, changes, harm, environ, conditional=False
                )
            finally:
                del known.readings[scope]

    return arrange
