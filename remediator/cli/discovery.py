"""Which services and alerts a Prometheus, an Alertmanager or a cluster knows; reads, bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from remediator.cli.client import LOOPBACK
from remediator.cli.output import UNREACHABLE, USAGE, Failure

WITHIN = 5.0
"""Seconds for one request."""
MOST_BYTES = 8 * 1024 * 1024
"""Of one answer."""
MOST = 200
"""Alerts, services and deployments that are looked at, of each kind."""
SYSTEM_LABELS = ("system", "namespace", "team", "env")
SERVICE_LABELS = ("service", "app", "deployment", "job")
OF_THE_CLUSTER = frozenset({"kube-system", "kube-public", "kube-node-lease"})

Labels = Mapping[str, str]


@dataclass
class Workload:
    """One deployment."""

    namespace: str
    name: str


@dataclass
class Found:
    """What there is, as far as it could be read."""

    alerts: list[Labels] = field(default_factory=list)
    """Labels of alerts and of alerting rules; at least the ``alertname``."""
    services: list[Labels] = field(default_factory=list)
    """One label each, of services that are scraped."""
    workloads: list[Workload] = field(default_factory=list)


def discover(prometheus: str | None, alertmanager: str | None, kubeconfig: Path | None) -> Found:
    """Read what was given. Raises ``Failure`` when one of them does not answer as it should."""
    found = Found()
    if prometheus is not None:
        _ask_prometheus(prometheus, found)
    if alertmanager is not None:
        alerts = _get(alertmanager, "/api/v2/alerts")
        found.alerts += [_labels(alert) for alert in _mappings(alerts)]
    if kubeconfig is not None:
        found.workloads += asyncio.run(_deployments(kubeconfig))
    found.alerts = [labels for labels in found.alerts if labels.get("alertname")][:MOST]
    return found


def _ask_prometheus(url: str, found: Found) -> None:
    rules = _get(url, "/api/v1/rules", type="alert")
    for group in _mappings(_inside(rules, "data", "groups")):
        for rule in _mappings(group.get("rules")):
            name = {"alertname": str(rule.get("name", ""))}
            active = [_labels(alert) for alert in _mappings(rule.get("alerts"))]
            found.alerts += active or [{**_labels(rule), **name}]
    for label in SERVICE_LABELS:
        values = _inside(_get(url, f"/api/v1/label/{label}/values"), "data")
        named = [str(value) for value in values if value] if isinstance(values, list) else []
        if named:
            found.services += [{label: value} for value in sorted(named)[:MOST]]
            return


def _get(url: str, path: str, **query: str) -> Any:
    """GET JSON from a server that was named on the command line."""
    base = url.rstrip("/")
    local = urlsplit(base).hostname in LOOPBACK
    try:
        with (
            httpx.Client(timeout=WITHIN, trust_env=not local) as client,
            client.stream("GET", f"{base}{path}", params=query) as answer,
        ):
            if answer.status_code != 200:
                what = "its API" if answer.status_code == 404 else "this"
                raise Failure(
                    UNREACHABLE, f"{base}{path} answers {answer.status_code}; is it {what}?"
                )
            return json.loads(_body(answer))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Failure(UNREACHABLE, f"{base} does not answer ({type(error).__name__})") from error
    except ValueError as error:
        raise Failure(UNREACHABLE, f"{base}{path} answers what is not JSON") from error


def _body(answer: httpx.Response) -> bytes:
    content = bytearray()
    for part in answer.iter_bytes():
        content += part
        if len(content) > MOST_BYTES:
            raise Failure(UNREACHABLE, f"{answer.url} answers more than {MOST_BYTES >> 20} MiB")
    return bytes(content)


async def _deployments(kubeconfig: Path) -> list[Workload]:
    from remediator.backends.kubernetes.client import KubernetesClient
    from remediator.model.errors import RemediatorError

    try:
        async with KubernetesClient(kubeconfig, "the cluster") as cluster:
            listed = await cluster.get("/apis/apps/v1/deployments", limit=str(MOST))
    except RemediatorError as error:
        raise Failure(USAGE, f"{kubeconfig}: {error}") from error
    found = (item.get("metadata") or {} for item in _mappings(listed.get("items")))
    workloads = (Workload(str(m.get("namespace")), str(m.get("name"))) for m in found)
    return [w for w in workloads if w.namespace not in OF_THE_CLUSTER]


def _labels(thing: Mapping[str, Any]) -> Labels:
    labels = thing.get("labels")
    pairs = labels.items() if isinstance(labels, Mapping) else ()
    return {str(name): str(value) for name, value in pairs}


def _mappings(values: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(values, Iterable):
        yield from (value for value in values if isinstance(value, Mapping))


def _inside(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
