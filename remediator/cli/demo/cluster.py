"""An emulated Kubernetes API with one deployment: what the remediator asks, no more.

It answers over HTTP as an API server does: two accounts with their rights, versions that refuse a
late change, dry runs, strategic merge patches. There is no cluster behind it; ``kubelet`` plays
the pods.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from remediator.cli.demo.serving import serving

NAMESPACE, NAME = "shop", "orders"
READER_TOKEN, WRITER_TOKEN = "reader-of-the-demo", "writer-of-the-demo"
_READING = frozenset({"get", "list"})
_APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
_CORE = f"/api/v1/namespaces/{NAMESPACE}"
_DEPLOYMENT = f"{_APPS}/deployments/{NAME}"

Json = dict[str, Any]


@dataclass
class Cluster:
    """The objects, as the API serves them."""

    deployment: Json
    replica_sets: list[Json] = field(default_factory=list)
    pods: list[Json] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)
    metrics: list[Json] = field(default_factory=list)
    """What the pods use, as a metrics server measured it."""
    patches: int = 0
    """Changes of the deployment that were asked for and made; dry runs are none."""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1001))

    def write(self, found: Json) -> None:
        """Give an object that changed its new version."""
        found["metadata"]["resourceVersion"] = str(next(self.numbers))

    def collection(self, path: str) -> list[Json] | None:
        """Return the list at ``path``; None where nothing is served."""
        return {
            f"{_APPS}/deployments": [self.deployment],
            f"{_APPS}/replicasets": self.replica_sets,
            f"{_CORE}/pods": self.pods,
            f"{_CORE}/events": self.events,
            f"/apis/metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/pods": self.metrics,
            f"{_CORE}/resourcequotas": [],
            "/api/v1/nodes": [],
            f"/apis/autoscaling/v2/namespaces/{NAMESPACE}/horizontalpodautoscalers": [],
        }.get(path)

    def routes(self) -> list[web.RouteDef]:
        """Serve all of it."""
        review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return [
            web.post(review, _review),
            web.patch(_DEPLOYMENT, self._patch),
            web.route("*", "/{path:.*}", self._read),
        ]

    async def _read(self, request: web.Request) -> web.Response:
        found = self.collection(request.path)
        if not _allowed(request, "get"):
            return _status(401, "the token is not known")
        if request.method != "GET":
            return _status(405, f"{request.method} is not emulated")
        if found is not None:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": found})
        if request.path == "/apis/autoscaling":
            return web.json_response({"versions": [{"version": "v2"}, {"version": "v1"}]})
        folder, _, name = request.path.removesuffix("/log").rpartition("/")
        for each in self.collection(folder) or ():
            if each["metadata"]["name"] == name:
                is_log = request.path.endswith("/log")
                return _log(request, each) if is_log else web.json_response(each)
        return _status(404, f"{request.path} is not there")

    async def _patch(self, request: web.Request) -> web.Response:
        if not _allowed(request, "patch"):
            return _status(403, "this account may not patch deployments")
        asked, live = await request.json(), self.deployment["metadata"]
        meant = asked.get("metadata", {})
        for key in ("uid", "resourceVersion"):
            if meant.get(key, live[key]) != live[key]:
                return _status(409, f"the object has been modified: {key} is {live[key]}")
        changed = merged(copy.deepcopy(self.deployment), asked)
        if request.query.get("dryRun") != "All":
            self._replace(changed)
        return web.json_response(changed)

    def _replace(self, changed: Json) -> None:
        if changed["spec"] != self.deployment["spec"]:
            changed["metadata"]["generation"] += 1
        self.patches += 1
        self.deployment = changed
        self.write(changed)


def merged(base: Any, patch: Any) -> Any:
    """Merge as a strategic merge patch does: lists of named things by their names, None removes."""
    if isinstance(patch, dict):
        kept = dict(base) if isinstance(base, dict) else {}
        for key, value in patch.items():
            kept[key] = merged(kept.get(key), value)
        return {key: value for key, value in kept.items() if value is not None}
    if isinstance(patch, list) and all(isinstance(part, dict) and "name" in part for part in patch):
        named = {part["name"]: part for part in base or ()}
        named |= {part["name"]: merged(named.get(part["name"]), part) for part in patch}
        return list(named.values())
    return patch


def _allowed(request: web.Request, verb: str) -> bool:
    """Whether the account behind the token may: the writer all, the reader only look."""
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return token == WRITER_TOKEN or (token == READER_TOKEN and verb in _READING)


async def _review(request: web.Request) -> web.Response:
    review = await request.json()
    verb = review["spec"]["resourceAttributes"]["verb"]
    return web.json_response({**review, "status": {"allowed": _allowed(request, verb)}}, status=201)


def _log(request: web.Request, pod: Json) -> web.Response:
    """Answer what the pod's container wrote; a run before the present one must have been."""
    again = pod["status"]["containerStatuses"][0]["restartCount"]
    if "previous" in request.query and not again:
        return _status(400, "previous terminated container not found")
    return web.Response(text="orders starts\nthe catalogue is read into memory\n")


def _status(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message}
    return web.json_response({**body, "code": code}, status=code)


@asynccontextmanager
async def serve_cluster(cluster: Cluster) -> AsyncIterator[str]:
    """Serve ``cluster`` until the block is left; yield the URL of its API."""
    async with serving(cluster.routes()) as url:
        yield url


def kubeconfig(url: str, token: str) -> Json:
    """Return how a client connects to the API at ``url``."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "emulated", "cluster": {"server": url}}],
        "users": [{"name": "account", "user": {"token": token}}],
        "contexts": [{"name": "demo", "context": {"cluster": "emulated", "user": "account"}}],
        "current-context": "demo",
    }


def stamp() -> str:
    """Return the present time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
