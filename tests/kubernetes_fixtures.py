"""A real Kubernetes control plane for the tests: one a worker, one namespace a test.

The convention is envtest's: ``KUBECONFIG`` names a cluster's administrator, else
``KUBEBUILDER_ASSETS`` the folder with etcd, kube-apiserver and kube-controller-manager, which are
started here. There is no kubelet there: a test plays it with ``run_pods``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from aiohttp import web

from remediator.backends.kubernetes.client import Change, Forbidden, KubernetesClient, NotFound
from remediator.model.errors import BackendUnavailable
from remediator.model.mitigation import Item, Mitigation, Preparation
from remediator.model.ports import Mitigator
from remediator.model.target import Target
from tests.postgres_fixtures import missing

READY_WITHIN = 60.0
_CONTROLLERS = (
    "deployment,replicaset,statefulset,namespace,garbagecollector,podgc,disruption,resourcequota,"
    "serviceaccount-token"
)
_CORE, _APPS = "/api/v1", "/apis/apps/v1"

READ_ONLY: tuple[dict[str, list[str]], ...] = (
    {"apiGroups": ["apps"], "resources": ["deployments", "replicasets"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
    {
        "apiGroups": ["autoscaling"],
        "resources": ["horizontalpodautoscalers"],
        "verbs": ["get", "list"],
    },
)
WRITE: tuple[dict[str, list[str]], ...] = (
    *READ_ONLY,
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["patch"]},
    {"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]},
)
"""Rules of a Role with exactly what the lever needs, without what it can do without."""
QUOTAS: dict[str, list[str]] = {
    "apiGroups": [""],
    "resources": ["resourcequotas"],
    "verbs": ["list"],
}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def control_plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """The kubeconfig of an administrator."""
    given = os.environ.get("KUBECONFIG")
    if given:
        yield Path(given)
        return
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS", ""))
    if not (assets / "kube-apiserver").exists():
        missing("neither KUBECONFIG nor KUBEBUILDER_ASSETS leads to a Kubernetes API")
    async with ControlPlane(assets, tmp_path_factory.mktemp("kubernetes")) as kubeconfig:
        yield kubeconfig


class ControlPlane:
    """etcd, API server and controllers on loopback, with their state in one folder."""

    def __init__(self, assets: Path, folder: Path, *options: str) -> None:
        """Start the programs in ``assets``; ``options`` are further ones of the API server."""
        self._assets, self._folder, self._options = assets, folder, options
        self._running: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Path:
        client, peer, secure, managing = _free_ports(4)
        try:
            await self._store(client, peer)
            kubeconfig = await self._api(client, secure)
            await self._controllers(managing, kubeconfig)
        except BaseException:
            await self.__aexit__()
            raise
        return kubeconfig

    async def __aexit__(self, *_: object) -> None:
        for process in reversed(self._running):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()

    async def _store(self, client: int, peer: int) -> None:
        here, there = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        await self._start(
            "etcd",
            f"--data-dir={self._folder}/etcd",
            "--unsafe-no-fsync",
            f"--listen-client-urls={here}",
            f"--advertise-client-urls={here}",
            f"--listen-peer-urls={there}",
            f"--initial-advertise-peer-urls={there}",
            f"--initial-cluster=default={there}",
        )

    async def _api(self, store: int, port: int) -> Path:
        key, tokens = self._folder / "sa.key", self._folder / "tokens.csv"
        generate = ["openssl", "genrsa", "-out", str(key), "2048"]
        await asyncio.to_thread(subprocess.run, generate, check=True, capture_output=True)
        token = secrets.token_hex(16)
        tokens.write_text(f'{token},admin,admin,"system:masters"\n')
        await self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{store}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            f"--cert-dir={self._folder}/certs",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            *self._options,
        )
        server = f"https://127.0.0.1:{port}"
        await _until_ready(server, token, self._folder / "kube-apiserver.log")
        reached = {"server": server, "insecure-skip-tls-verify": True}
        return write_kubeconfig(self._folder / "admin.kubeconfig", reached, {"token": token})

    async def _controllers(self, port: int, kubeconfig: Path) -> None:
        binary = self._assets / "kube-controller-manager"
        usage = await asyncio.to_thread(
            subprocess.run, [str(binary), "--help"], capture_output=True, text=True, check=False
        )
        insecure = ["--port=0"] if "--port int" in usage.stdout else []  # up to Kubernetes 1.23
        await self._start(
            binary.name,
            *insecure,
            f"--secure-port={port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self._folder}/certs-of-controllers",
            f"--kubeconfig={kubeconfig}",
            "--leader-elect=false",
            f"--controllers={_CONTROLLERS}",
            f"--service-account-private-key-file={self._folder}/sa.key",
        )

    async def _start(self, name: str, *options: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                str(self._assets / name),
                *options,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append(process)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


async def _until_ready(server: str, token: str, log: Path) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"}
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:

        async def ready() -> bool:
            try:
                async with session.get(f"{server}/readyz") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        try:
            await until(ready, "the API server is ready", READY_WITHIN)
        except AssertionError as error:
            raise AssertionError(f"{error}; see {log}") from None


def write_kubeconfig(path: Path, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> Path:
    """Write a kubeconfig of one context."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": dict(cluster)}],
        "users": [{"name": "user", "user": dict(user)}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "user"}}],
        "current-context": "local",
    }
    path.write_text(yaml.safe_dump(content))
    return path


async def prepared(lever: Mitigator, mitigation: Mitigation) -> Preparation:
    """Prepare as the engine does: look again where a controller changed the object meanwhile."""
    for _ in range(20):
        with contextlib.suppress(BackendUnavailable):
            return await lever.prepare(mitigation)
        await asyncio.sleep(0.1)
    return await lever.prepare(mitigation)


async def until(look: Callable[[], Awaitable[bool]], what: str, within: float = 20.0) -> None:
    """Wait until ``look`` is true, or fail."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + within
    while not await look():
        assert clock() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Reached:
    """Where a kubeconfig leads, and as whom."""

    server: str
    user: dict[str, Any]

    def connector(self) -> aiohttp.TCPConnector:
        """Make a connector that trusts the server."""
        return aiohttp.TCPConnector(ssl=False)


@contextlib.asynccontextmanager
async def served(
    folder: Path, app: web.Application, user: Mapping[str, Any]
) -> AsyncIterator[Path]:
    """Serve ``app`` as an API server on loopback; yield a kubeconfig that leads to it."""
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        path = folder / f"served-{port}.kubeconfig"
        yield write_kubeconfig(path, {"server": f"http://{host}:{port}"}, user)
    finally:
        await runner.cleanup()


@dataclass
class Cluster:
    """One namespace of a real cluster, an administrator's hands, and accounts to be made."""

    admin: KubernetesClient
    kubeconfig: Path
    folder: Path
    namespace: str = field(default_factory=lambda: f"test-{secrets.token_hex(4)}")
    ready_at: dict[str, int] = field(default_factory=dict)
    """Resource version of the last pod that was made ready, by workload."""

    def target(self, deployment: str = "orders") -> Target:
        """Return the target that the catalogue would have."""
        locator = {"namespace": self.namespace, "deployment": deployment}
        return Target(
            system="shop",
            service="orders",
            role="workload",
            kind="kubernetes",
            name="main",
            locator=locator,
        )

    def plan(self, kind: str, *items: Item, **parameters: Any) -> Mitigation:
        """Make a mitigation of the deployment as a playbook would."""
        return Mitigation(
            kind=kind, target=self.target(), reason="a test", items=items, parameters=parameters
        )

    async def quota(self, hard: dict[str, str], name: str = "quota", *scopes: str) -> None:
        """Create a quota and wait until it is counted."""
        spec: dict[str, Any] = {"hard": hard, **({"scopes": list(scopes)} if scopes else {})}
        await self.create(_CORE, "resourcequotas", {"metadata": {"name": name}, "spec": spec})

        async def counted() -> bool:
            found = await self.admin.get(self.path(_CORE, "resourcequotas", name))
            status = found.get("status") or {}
            return bool(status.get("hard") == hard and set(status.get("used") or ()) == set(hard))

        await until(counted, f"the quota {name} is counted")

    async def most_memory(self, limit: str) -> None:
        """Create a LimitRange that refuses containers with more, and wait until it holds."""
        most = {"type": "Container", "max": {"memory": limit}}
        body = {"metadata": {"name": "most"}, "spec": {"limits": [most]}}
        await self.create(_CORE, "limitranges", body)
        resources = {"limits": {"memory": "1Ti"}}
        container = {"name": "app", "image": "registry.invalid/app:1", "resources": resources}
        pod = {"metadata": {"name": "too-large"}, "spec": {"containers": [container]}}

        async def holds() -> bool:
            try:
                change = Change("POST", self.path(_CORE, "pods"), pod)
                await self.admin.send(change, dry_run=True)
            except Forbidden:
                return True
            return False

        await until(holds, "the LimitRange holds")

    async def everywhere(self, account: str, *rules: Mapping[str, list[str]]) -> None:
        """Give a service account rights in all namespaces, as a ClusterRole does."""
        api, name = "/apis/rbac.authorization.k8s.io/v1", f"{self.namespace}-{account}"
        body = {"metadata": {"name": name}, "rules": list(rules)}
        await self.admin.send(Change("POST", f"{api}/clusterroles", body), dry_run=False)
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        subject = {"kind": "ServiceAccount", "name": account, "namespace": self.namespace}
        binding = {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]}
        await self.admin.send(Change("POST", f"{api}/clusterrolebindings", binding), dry_run=False)

    def path(self, api: str, resource: str, name: str = "") -> str:
        """Return where something in the namespace is."""
        return f"{api}/namespaces/{self.namespace}/{resource}{f'/{name}' if name else ''}"

    async def create(self, api: str, resource: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create one object in the namespace."""
        change = Change("POST", self.path(api, resource), body)
        return await self.admin.send(change, dry_run=False)

    async def patch(
        self, api: str, resource: str, name: str, body: dict[str, Any], manager: str = "kubectl"
    ) -> None:
        """Change one object as somebody else would."""
        change = Change("PATCH", self.path(api, resource, name), body, manager)
        await self.admin.send(change, dry_run=False)

    async def deployment(self, name: str = "orders") -> dict[str, Any]:
        """Read the deployment as it is."""
        return await self.admin.get(self.path(_APPS, "deployments", name))

    async def deploy(
        self, replicas: int = 2, *, name: str = "orders", **spec: Any
    ) -> dict[str, Any]:
        """Create a deployment and play the kubelet until all its pods are ready."""
        container = {
            "name": "app",
            "image": "registry.invalid/app:1",
            "resources": {"limits": {"memory": "256Mi"}, "requests": {"memory": "128Mi"}},
        }
        template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
        selector = {"matchLabels": {"app": name}}
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {"replicas": replicas, "selector": selector, "template": template, **spec},
        }
        await self.create(_APPS, "deployments", body)
        await self.settle(name)
        return await self.deployment(name)

    def member_plan(self, kind: str, *items: Item, **parameters: Any) -> Mitigation:
        """Make a mitigation of the stateful set as a playbook would."""
        locator = {"namespace": self.namespace, "statefulset": "store"}
        target = self.target().model_copy(update={"locator": locator})
        plan = self.plan(kind, *items, **parameters)
        return plan.model_copy(update={"target": target})

    async def stateful(self, replicas: int = 3, **spec: Any) -> None:
        """Create the stateful set and play the kubelet until all its members are ready."""
        resources = {"limits": {"memory": "256Mi"}, "requests": {"memory": "128Mi"}}
        container = {"name": "app", "image": "registry.invalid/store:1", "resources": resources}
        labels = {"app": "store"}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
        body = {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": "store"},
            "spec": {
                "replicas": replicas,
                "serviceName": "store",
                "selector": {"matchLabels": labels},
                "template": template,
                **spec,
            },
        }
        await self.create(_APPS, "statefulsets", body)
        await self.settle_members()

    async def settle_members(self) -> None:
        """Play the kubelet until all members of the stateful set are ready and of one revision."""

        async def complete() -> bool:
            await self.run_pods("store")
            found = await self.admin.get(self.path(_APPS, "statefulsets", "store"))
            status, wanted = found.get("status", {}), found["spec"]["replicas"]
            counts = {status.get(k, 0) for k in ("replicas", "readyReplicas")}
            seen = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
            same = status.get("updateRevision") == status.get("currentRevision")
            return seen and same and counts == {wanted} and await self._all_ready(wanted)

        await until(complete, "all members are ready")

    async def _all_ready(self, wanted: int) -> bool:
        """Say whether the members themselves are there and ready: a status lags behind an eviction."""
        pods = await self.pods("store")
        ready = [
            any(c["type"] == "Ready" and c["status"] == "True" for c in found)
            for found in (pod["status"].get("conditions", []) for pod in pods)
        ]
        return len(pods) == wanted and ready == [True] * wanted

    async def settle(self, name: str = "orders") -> None:
        """Play the kubelet until the deployment's rollout is complete."""

        async def complete() -> bool:
            await self.run_pods(name)
            found = await self.deployment(name)
            status, wanted = found.get("status", {}), found["spec"]["replicas"]
            counts = {status.get(k, 0) for k in ("replicas", "updatedReplicas", "readyReplicas")}
            seen = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
            reasons = {c["reason"] for c in status.get("conditions", [])}
            done = seen and counts == {wanted} and "NewReplicaSetAvailable" in reasons
            same, looks[:] = found["metadata"]["resourceVersion"] in looks, []
            if done and await self._counted(name, wanted):
                looks.append(found["metadata"]["resourceVersion"])
            return bool(same and looks)

        looks: list[str] = []
        await until(complete, f"{name} is rolled out")

    async def _counted(self, name: str, wanted: int) -> bool:
        """Say whether the replica sets have counted what happened to the pods last.

        A status lags: it says the same for a while after a pod was evicted, or made by a replica
        set that is gone from the template already.
        """
        pods = await self.pods(name)
        made_from = {pod["metadata"]["labels"]["pod-template-hash"] for pod in pods}
        sets = await self.admin.get(self.path(_APPS, "replicasets"), labelSelector=f"app={name}")
        written = [int(found["metadata"]["resourceVersion"]) for found in sets["items"]]
        counted = max(written, default=0) > self.ready_at.get(name, 0) or not pods
        return counted and len(pods) == wanted and len(made_from) <= 1

    async def pods(self, name: str = "orders") -> list[dict[str, Any]]:
        """List the deployment's pods."""
        path = self.path(_CORE, "pods")
        found = (await self.admin.get(path, labelSelector=f"app={name}"))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    async def run_pods(self, name: str = "orders") -> None:
        """Play the kubelet: every pod that waits runs and is ready."""
        ready = {"type": "Ready", "status": "True"}
        for pod in await self.pods(name):
            if pod["status"].get("phase") != "Running":
                status = {"phase": "Running", "conditions": [ready]}
                path = self.path(_CORE, "pods", f"{pod['metadata']['name']}/status")
                with contextlib.suppress(NotFound):  # it has gone meanwhile
                    change = Change("PATCH", path, {"status": status}, "kubectl")
                    made = await self.admin.send(change, dry_run=False)
                    self.ready_at[name] = int(made["metadata"]["resourceVersion"])

    async def report(self, pod: str, status: dict[str, Any]) -> None:
        """Play the kubelet: report the status of one pod."""
        with contextlib.suppress(NotFound):  # it has gone meanwhile
            await self.patch(_CORE, "pods", f"{pod}/status", {"status": status})

    async def autoscaler(self, minimum: int = 2, maximum: int = 6, **metadata: Any) -> None:
        """Create an autoscaler for the deployment."""
        meant = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "orders"}
        spec = {"scaleTargetRef": meant, "minReplicas": minimum, "maxReplicas": maximum}
        body = {"metadata": {"name": "orders", **metadata}, "spec": spec}
        await self.create("/apis/autoscaling/v1", "horizontalpodautoscalers", body)

    async def node(
        self,
        name: str,
        *,
        taints: list[dict[str, str]] | None = None,
        ready: bool = True,
        **spec: Any,
    ) -> None:
        """Add a node of two cores and 4 GiB, with this namespace as its label ``test``."""
        called = f"{name}-{self.namespace}"
        size = {"cpu": "2", "memory": "4Gi", "pods": "10"}
        condition = {"type": "Ready", "status": "True" if ready else "Unknown"}
        condition |= {"reason": "", "message": ""}
        body = {
            "metadata": {"name": called, "labels": {"test": self.namespace}},
            "spec": spec,
            "status": {"allocatable": size, "capacity": size, "conditions": [condition]},
        }
        await self.admin.send(Change("POST", f"{_CORE}/nodes", body), dry_run=False)
        # the API server taints every new node, and no controller is there to take that back
        change = Change("PATCH", f"{_CORE}/nodes/{called}", {"spec": {"taints": taints or []}})
        await self.admin.send(change, dry_run=False)

    async def minimum(self) -> int:
        """Read the autoscaler's minimum."""
        path = self.path("/apis/autoscaling/v1", "horizontalpodautoscalers", "orders")
        return int((await self.admin.get(path))["spec"]["minReplicas"])

    async def account(self, name: str, *rules: Mapping[str, list[str]]) -> Path:
        """Make a service account with these rights and no others; return its kubeconfig."""
        api = "/apis/rbac.authorization.k8s.io/v1"
        await self.create(_CORE, "serviceaccounts", {"metadata": {"name": name}})
        await self.create(api, "roles", {"metadata": {"name": name}, "rules": list(rules)})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": self.namespace}
        binding = {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]}
        await self.create(api, "rolebindings", binding)
        answer = await self.create(_CORE, f"serviceaccounts/{name}/token", {"spec": {}})
        return self.as_user(name, {"token": answer["status"]["token"]})

    @contextlib.asynccontextmanager
    async def serving(
        self, app: web.Application, user: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Path]:
        """Serve ``app`` in place of the API server; yield a kubeconfig that leads to it."""
        async with served(self.folder, app, user or {}) as kubeconfig:
            yield kubeconfig

    def reached(self, kubeconfig: Path) -> Reached:
        """Return where a kubeconfig of ours leads, and as whom."""
        content = yaml.safe_load(kubeconfig.read_text())
        server = content["clusters"][0]["cluster"]["server"]
        return Reached(server, content["users"][0]["user"])

    def as_user(self, name: str, user: Mapping[str, Any], **cluster: Any) -> Path:
        """Return a kubeconfig that differs from the administrator's in this."""
        content = yaml.safe_load(self.kubeconfig.read_text())
        current = content["current-context"]
        context = next(c["context"] for c in content["contexts"] if c["name"] == current)
        reached = next(c["cluster"] for c in content["clusters"] if c["name"] == context["cluster"])
        path = self.folder / f"{name}.kubeconfig"
        return write_kubeconfig(path, {**reached, **cluster}, user)


@pytest_asyncio.fixture
async def cluster(control_plane: Path, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A new namespace in the cluster."""
    async with KubernetesClient(control_plane, "admin") as admin:
        cluster = Cluster(admin, control_plane, tmp_path)
        body = {"metadata": {"name": cluster.namespace}}
        await admin.send(Change("POST", f"{_CORE}/namespaces", body), dry_run=False)
        yield cluster
