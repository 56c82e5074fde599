"""A deployment in a real cluster, watched by a real Prometheus and Alertmanager and by the service.

The test plays the kubelet and the application: what its metrics say is a function of the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from remediator.backends.kubernetes.client import Right
from remediator.backends.kubernetes.mitigator import KubernetesMitigator
from remediator.backends.kubernetes.reader import KubernetesReader
from tests.kubernetes_fixtures import Cluster
from tests.monitoring_fixtures import Start
from tests.service_fixtures import Service

Reading = Callable[[], Awaitable[float]]
QUICK = {
    "interval": "500ms",
    "hold": "3s",
    "hold_resolved": "1s",
    "deadline": "20s",
    "resolve_within": "60s",
}
"""A verification that a test can wait for."""


@dataclass
class Shop:
    """Everything that a test of one incident in a cluster touches."""

    cluster: Cluster
    service: Service
    readings: dict[str, Reading] = field(default_factory=dict)
    """The application's metrics by name; read at every scrape."""
    rules: list[dict[str, Any]] = field(default_factory=list)
    """Alerting rules."""

    @property
    def orders(self) -> dict[str, Any]:
        """The service's entry in the configuration."""
        found: dict[str, Any] = self.service.config["systems"]["shop"]["services"]["orders"]
        return found

    def alert_when(self, name: str, expression: str) -> None:
        """Add an alerting rule about the shop's orders."""
        labels = {"system": "shop", "service": "orders", "severity": "critical"}
        self.rules.append({"alert": name, "expr": expression, "for": "1s", "labels": labels})

    async def memory_limit(self) -> str:
        """Return the memory limit of the deployment's first container."""
        template = (await self.cluster.deployment())["spec"]["template"]
        return str(template["spec"]["containers"][0]["resources"]["limits"]["memory"])

    async def replicas(self) -> int:
        """Return the number of replicas that are asked for."""
        return int((await self.cluster.deployment())["spec"]["replicas"])

    async def kill_for_memory(self) -> None:
        """Play the kubelet: one container of the first pod was killed for want of memory."""
        pod = (await self.cluster.pods())[0]["metadata"]["name"]
        ended = {"reason": "OOMKilled", "exitCode": 137, "finishedAt": _now()}
        container = {
            "name": "app",
            "image": "registry.invalid/app:1",
            "imageID": "",
            "ready": True,
            "restartCount": 1,
            "state": {"running": {"startedAt": _now()}},
            "lastState": {"terminated": ended},
        }
        await self.cluster.report(pod, {"containerStatuses": [container]})


OpenShop = Callable[[Shop], AbstractAsyncContextManager[None]]


@pytest.fixture
async def shop(cluster: Cluster, tmp_path: Path) -> Shop:
    """A shop that is configured, with nothing running yet but its cluster."""
    listen = f"127.0.0.1:{_free_port()}"
    reader = await cluster.account("reader", *rules_of(KubernetesReader.rights))
    writer = await cluster.account("writer", *rules_of(KubernetesMitigator.rights))
    orders = {
        "match": {"service": "orders"},
        "prometheus": "main",
        "targets": {
            "workload": {
                "cluster": "main",
                "namespace": cluster.namespace,
                "deployment": "orders",
            }
        },
        "playbooks": {},
    }
    config = {
        "listen": listen,
        "mode": "auto",
        "backends": {
            "kubernetes": {"main": {"kubeconfig": str(reader), "writer_kubeconfig": str(writer)}},
        },
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": orders}}},
    }
    folder = tmp_path / "service"
    folder.mkdir()
    service = Service(folder, config, url=f"http://{listen}")
    return Shop(cluster, service)


@pytest.fixture
def open_shop(start_prometheus: Start, start_alertmanager: Start) -> OpenShop:
    """Run it: ``async with open_shop(shop)``."""

    @asynccontextmanager
    async def opened(shop: Shop) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            kubelet = asyncio.create_task(_play_kubelet(shop.cluster))
            stack.push_async_callback(_cancelled, kubelet)
            exporter = await stack.enter_async_context(_exporter(shop))
            alertmanager = await stack.enter_async_context(
                start_alertmanager(deliver_to(shop.service))
            )
            prometheus = await stack.enter_async_context(
                start_prometheus(
                    scrape(exporter, alertmanager.url),
                    {"rules.yml": yaml.safe_dump(_groups(shop.rules))},
                )
            )
            shop.service.config["backends"]["prometheus"] = {
                "main": {"url": prometheus.url, "scrape_interval": "1s"}
            }
            await shop.service.start()
            stack.push_async_callback(shop.service.kill)
            yield

    return opened


def rules_of(rights: Iterable[Right]) -> list[dict[str, list[str]]]:
    """Write rights as the rules of a Role."""
    return [
        {"apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb]}
        for right in rights
    ]


async def _play_kubelet(cluster: Cluster) -> None:
    while True:
        await cluster.run_pods()
        await asyncio.sleep(0.2)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@asynccontextmanager
async def _exporter(shop: Shop) -> AsyncIterator[str]:
    async def metrics(_: web.Request) -> web.Response:
        lines = [f"{name} {await reading()}" for name, reading in shop.readings.items()]
        return web.Response(text="\n".join([*lines, ""]))

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def deliver_to(service: Service) -> str:
    """Configure an Alertmanager to deliver as a newcomer's would, with the generated token."""
    http = {"authorization": {"credentials_file": str(service.state / "token")}}
    url = f"{service.url}/webhooks/alertmanager"
    receiver = {
        "name": "remediator",
        "webhook_configs": [{"url": url, "send_resolved": True, "http_config": http}],
    }
    route = {
        "receiver": "remediator",
        "group_by": ["alertname", "system", "service"],
        "group_wait": "0s",
        "group_interval": "1s",
        "repeat_interval": "5s",
    }
    return yaml.safe_dump({"route": route, "receivers": [receiver]})


def scrape(target: str, alertmanager: str) -> str:
    """Configure a Prometheus to scrape ``target`` each second and to alert by ``rules.yml``."""
    there = {"targets": [alertmanager.removeprefix("http://")]}
    return yaml.safe_dump(
        {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "alerting": {"alertmanagers": [{"static_configs": [there]}]},
            "scrape_configs": [{"job_name": "orders", "static_configs": [{"targets": [target]}]}],
        }
    )


def _groups(rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"groups": [{"name": "orders", "interval": "1s", "rules": rules}]}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
