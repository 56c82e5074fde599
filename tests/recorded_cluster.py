"""An API server that answers with objects which a real Kubernetes 1.36 with a kubelet has given.

The pods are as they were recorded. Where their deployment was not recorded beside them, it is made
from the template that they were created with.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web

from remediator.backends.kubernetes.mitigator import KubernetesMitigator
from remediator.backends.kubernetes.reader import KubernetesReader
from remediator.model.target import Target
from tests.kubernetes_fixtures import served

SAMPLES = Path(__file__).parent / "samples"
SEEN_AT = datetime.fromisoformat("2026-11-30T21:10:51Z")
"""When the pods were recorded."""
Json = dict[str, Any]
_REVIEWS = "/apis/authorization.k8s.io/v1"


def sample(name: str) -> Json:
    """Read a recorded object or list."""
    found: Json = json.loads((SAMPLES / f"k8s_1.36_{name}.json").read_text())
    return found


def template_of(pod: Json, *defaulted: str) -> Json:
    """Return the template that a pod was made from: its spec, less what it got at admission.

    ``defaulted`` are the keys of ``resources`` that came from a LimitRange: ``limits.memory``.
    """
    spec = copy.deepcopy(pod["spec"])
    for key in ("nodeName", "serviceAccount", "serviceAccountName", "tolerations", "priority"):
        spec.pop(key, None)
    for container in spec["containers"]:
        for path in defaulted:
            kind, _, resource = path.partition(".")
            container["resources"][kind].pop(resource)
    return {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": spec}


def deployment_of(pods: list[Json], template: Json) -> Json:
    """Make the deployment of recorded pods, with its rollout complete."""
    owner, count = pods[0]["metadata"]["ownerReferences"][0], len(pods)
    ready = sum(
        condition["status"] == "True"
        for pod in pods
        for condition in pod["status"]["conditions"]
        if condition["type"] == "Ready"
    )
    return {
        "kind": "Deployment",
        "metadata": {
            "name": owner["name"].rpartition("-")[0],
            "namespace": pods[0]["metadata"]["namespace"],
            "uid": "deployment",
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": pods[0]["metadata"]["creationTimestamp"],
            "managedFields": [],
        },
        "spec": {
            "replicas": count,
            "selector": {"matchLabels": {"app": template["metadata"]["labels"]["app"]}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%"}},
            "template": template,
        },
        "status": {
            "observedGeneration": 1,
            "replicas": count,
            "updatedReplicas": count,
            "readyReplicas": ready,
            "conditions": [{"type": "Progressing", "reason": "NewReplicaSetAvailable"}],
        },
    }


@dataclass
class Recorded:
    """One deployment of a recorded cluster, behind an API server."""

    deployment: Json
    pods: list[Json] = field(default_factory=list)
    replica_sets: list[Json] = field(default_factory=list)
    usage: list[Json] | None = field(default_factory=list)
    """What the metrics API answers; None where there is none."""
    nodes: list[Json] | None = None
    """None where the account may not list them."""
    changes: list[Json] = field(default_factory=list)
    """Patches that were asked for, dry runs included."""

    @property
    def target(self) -> Target:
        """Return the target that the catalogue would have."""
        metadata = self.deployment["metadata"]
        locator = {"namespace": metadata["namespace"], "deployment": metadata["name"]}
        return Target(
            system="shop",
            service="orders",
            role="workload",
            kind="kubernetes",
            name="main",
            locator=locator,
        )

    @contextlib.asynccontextmanager
    async def reader(self, folder: Path) -> AsyncIterator[KubernetesReader]:
        """Serve it, and open a reader."""
        async with (
            served(folder, self.app(), {}) as kubeconfig,
            KubernetesReader(kubeconfig, name="main") as reader,
        ):
            yield reader

    @contextlib.asynccontextmanager
    async def lever(
        self, folder: Path, now: datetime = SEEN_AT, hands_off: timedelta = timedelta(0)
    ) -> AsyncIterator[KubernetesMitigator]:
        """Serve it, and open a lever whose clock shows ``now``."""
        async with (
            served(folder, self.app(), {}) as kubeconfig,
            KubernetesMitigator(
                kubeconfig, name="main", clock=lambda: now, hands_off=hands_off
            ) as lever,
        ):
            yield lever

    def uses(self, cpu: str, *memory: str) -> None:
        """Measure all pods: so many cores, and memory by container."""
        cores = (cpu, *("0" for _ in memory[1:]))
        used = [
            {"name": m, "usage": {"cpu": c, "memory": m}}
            for c, m in zip(cores, memory, strict=True)
        ]
        self.usage = [
            {
                "metadata": {"name": pod["metadata"]["name"]},
                "timestamp": SEEN_AT.isoformat(),
                "window": "30s",
                "containers": used,
            }
            for pod in self.pods
        ]

    def app(self) -> web.Application:
        """Return the API server."""
        metadata = self.deployment["metadata"]
        space, name = metadata["namespace"], metadata["name"]
        apps, core = f"/apis/apps/v1/namespaces/{space}", f"/api/v1/namespaces/{space}"
        scaling, measured = "/apis/autoscaling", "/apis/metrics.k8s.io/v1beta1"
        served_at = {"versions": [{"version": "v2"}]}
        scalers = f"{scaling}/v2/namespaces/{space}/horizontalpodautoscalers"
        app = web.Application()
        add = app.router.add_get
        add(f"{apps}/deployments/{name}", _says(lambda: self.deployment))
        add(f"{apps}/replicasets", _says(lambda: {"items": self._sets()}))
        add(f"{core}/pods/{{pod}}/log", _log)
        add(f"{core}/pods", _says(lambda: {"items": self.pods}))
        add(f"{core}/resourcequotas", _says(lambda: {"items": []}))
        add(f"{core}/events", _says(lambda: {"items": []}))
        add(scaling, _says(lambda: served_at))
        add(scalers, _says(lambda: {"items": []}))
        add(f"{measured}/namespaces/{space}/pods", _listed(lambda: self.usage, 404))
        add("/api/v1/nodes", _listed(lambda: self.nodes, 403))
        add("/api/v1/pods", _says(lambda: {"items": self.pods}))
        app.router.add_post(f"{_REVIEWS}/selfsubjectaccessreviews", _reviews)
        app.router.add_post(f"{core}/pods/{{pod}}/eviction", _allows)
        app.router.add_patch(f"{apps}/deployments/{name}", self._patch)
        return app

    async def _patch(self, request: web.Request) -> web.Response:
        self.changes.append(await request.json())
        return web.json_response(self.deployment)

    def _sets(self) -> list[Json]:
        """Return those that are given, else one for all the pods."""
        if self.replica_sets or not self.pods:
            return self.replica_sets
        reference = self.pods[0]["metadata"]["ownerReferences"][0]
        owner = {"uid": self.deployment["metadata"]["uid"], "controller": True}
        metadata = {"name": reference["name"], "uid": reference["uid"], "ownerReferences": [owner]}
        return [{"metadata": metadata, "spec": {"replicas": len(self.pods)}}]


def _listed(what: Callable[[], Any], instead: int) -> Callable[[web.Request], Any]:
    async def answer(request: web.Request) -> web.Response:
        found = what()
        return web.json_response({"items": found}, status=instead if found is None else 200)

    return answer


async def _reviews(request: web.Request) -> web.Response:
    return web.json_response({"status": {"allowed": True}}, status=201)


async def _allows(request: web.Request) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Success"}, status=201)


async def _log(request: web.Request) -> web.Response:
    return web.Response(text="allocated\n")


def _says(what: Callable[[], Any]) -> Callable[[web.Request], Any]:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(what())

    return answer
