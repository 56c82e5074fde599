"""KubernetesReader reads a deployment, its pods and its past from a real API server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from remediator.backends.kubernetes.reader import KubernetesReader
from remediator.config.settings import load_settings
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.finding import SenseState
from remediator.service.backends import open_backends
from tests.kubernetes_fixtures import Cluster, until

MI = 1 << 20
APPS = "/apis/apps/v1"
KILLED = {
    "name": "app",
    "image": "registry.invalid/app:1",
    "imageID": "",
    "ready": False,
    "restartCount": 3,
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {
        "terminated": {
            "reason": "OOMKilled",
            "exitCode": 137,
            "startedAt": "2026-01-02T03:04:00Z",
            "finishedAt": "2026-01-02T03:04:05Z",
        }
    },
}
VIEW = (
    {"apiGroups": ["apps"], "resources": ["deployments", "replicasets"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["get", "list"]},
    {"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": ["list"]},
)


@pytest_asyncio.fixture
async def reader(cluster: Cluster) -> AsyncIterator[KubernetesReader]:
    kubeconfig = await cluster.account("reader", *VIEW)
    async with KubernetesReader(kubeconfig, name="main", namespaces=[cluster.namespace]) as reader:
        yield reader


async def test_a_steady_deployment_is_read(cluster: Cluster, reader: KubernetesReader) -> None:
    await cluster.deploy(2)
    workload = await reader.workload(cluster.target())
    assert (workload.replicas, workload.ready, workload.updated) == (2, 2, 2)
    assert (workload.rollout, workload.paused, workload.gitops) == (None, False, None)
    assert workload.containers[0].memory_limit == 256 * MI
    assert workload.containers[0].memory_request == 128 * MI


async def test_cores_are_read_in_thousandths(cluster: Cluster, reader: KubernetesReader) -> None:
    await cluster.deploy(1)
    resources = {"requests": {"cpu": "250m"}, "limits": {"cpu": "1.5"}}
    change = {"spec": {"containers": [{"name": "app", "resources": resources}]}}
    await cluster.patch(APPS, "deployments", "orders", {"spec": {"template": change}})
    (container,) = (await reader.workload(cluster.target())).containers
    assert (container.cpu_request, container.cpu_limit) == (250, 1500)


async def test_a_rollout_under_way_is_told(cluster: Cluster, reader: KubernetesReader) -> None:
    await cluster.deploy(2)
    change = {"spec": {"template": {"metadata": {"labels": {"v": "2"}}}}}
    await cluster.patch(APPS, "deployments", "orders", change)
    assert (await reader.workload(cluster.target())).rollout is not None
    await cluster.settle()
    assert (await reader.workload(cluster.target())).rollout is None
    revisions = await reader.revisions(cluster.target())
    assert [revision.number for revision in revisions] == [2, 1]
    assert revisions[0].images == ("registry.invalid/app:1",)
    path = cluster.path(APPS, "replicasets", revisions[1].name)
    assert (await cluster.admin.get(path))["metadata"]["uid"] == revisions[1].uid


async def test_pods_are_read_with_how_their_containers_ended(
    cluster: Cluster, reader: KubernetesReader
) -> None:
    await cluster.deploy(2)
    await cluster.deploy(1, name="cart")
    name = (await cluster.pods())[0]["metadata"]["name"]
    not_ready = {"type": "Ready", "status": "False"}
    await cluster.report(name, {"containerStatuses": [KILLED], "conditions": [not_ready]})
    pods = {pod.name: pod for pod in await reader.pods(cluster.target())}
    assert len(pods) == 2
    assert not pods[name].ready
    (container,) = pods[name].containers
    assert container.oom_killed
    assert (container.state, container.reason, container.restarts) == (
        "waiting",
        "CrashLoopBackOff",
        3,
    )
    assert container.ended is not None
    assert container.ended.finished_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


async def test_a_pod_that_only_shares_the_labels_is_left_out(
    cluster: Cluster, reader: KubernetesReader
) -> None:
    await cluster.deploy(1)
    body = {
        "metadata": {"name": "stray", "labels": {"app": "orders"}},
        "spec": {"containers": [{"name": "app", "image": "registry.invalid/app:1"}]},
    }
    await cluster.create("/api/v1", "pods", body)
    names = {pod.name for pod in await reader.pods(cluster.target())}
    assert "stray" not in names
    assert len(names) == 1


async def test_the_autoscaler_is_read_where_there_is_one(
    cluster: Cluster, reader: KubernetesReader
) -> None:
    await cluster.deploy(1)
    await cluster.deploy(1, name="cart")
    assert await reader.autoscaler(cluster.target()) is None
    await cluster.autoscaler(minimum=1, maximum=5)
    scaler = await reader.autoscaler(cluster.target())
    assert scaler is not None
    assert (scaler.minimum, scaler.maximum, scaler.managed_by) == (1, 5, None)
    assert await reader.autoscaler(cluster.target("cart")) is None


async def test_events_about_it_and_its_pods_are_listed(
    cluster: Cluster, reader: KubernetesReader
) -> None:
    await cluster.deploy(1)
    await cluster.deploy(1, name="cart")

    async def noted() -> bool:
        return bool(await reader.events(cluster.target()))

    await until(noted, "events are written")
    events = await reader.events(cluster.target())
    assert {event.reason for event in events} >= {"ScalingReplicaSet"}
    assert all("/orders" in event.about for event in events)


async def test_the_probe_names_the_rights_that_are_missing(
    cluster: Cluster, reader: KubernetesReader
) -> None:
    assert (await reader.probe()).state is SenseState.OK
    rules: dict[str, Any] = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    kubeconfig = await cluster.account("blind", rules)
    async with KubernetesReader(kubeconfig, namespaces=[cluster.namespace]) as blind:
        sense = await blind.probe()
        assert sense.state is SenseState.IMPAIRED
        assert "get deployments.apps" in sense.reason
        assert "list pods" not in sense.reason


async def test_what_is_not_there_and_what_names_no_deployment_is_refused(
    cluster: Cluster, reader: KubernetesReader
) -> None:
    """T-23: no deployment named never means all of the namespace."""
    with pytest.raises(BackendRefused, match="not found"):
        await reader.workload(cluster.target("nothing"))
    target = cluster.target()
    none = {"namespace": cluster.namespace, "pod": "db-0"}
    with pytest.raises(BackendRefused, match="names no deployment"):
        await reader.pods(target.model_copy(update={"locator": none}))
    two = {**target.locator, "statefulset": "db"}
    with pytest.raises(BackendRefused, match="both a deployment and a stateful set"):
        await reader.pods(target.model_copy(update={"locator": two}))


async def test_a_cluster_that_is_down_is_unavailable_and_impaired(cluster: Cluster) -> None:
    down = cluster.as_user("down", {}, server="https://127.0.0.1:1")
    async with KubernetesReader(down, namespaces=[cluster.namespace]) as reader:
        assert (await reader.probe()).state is SenseState.IMPAIRED
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await reader.pods(cluster.target())


async def test_a_configured_cluster_is_read_and_changed_only_with_a_writer(
    cluster: Cluster,
) -> None:
    viewer = await cluster.account("viewer", *VIEW)
    (cluster.folder / "remediator.yaml").write_text(
        f"""
        backends:
          kubernetes:
            main: {{kubeconfig: {viewer}, writer_kubeconfig: {viewer}}}
            other: {{kubeconfig: {viewer}}}
        systems:
          shop:
            match: {{system: shop}}
            services:
              orders:
                targets:
                  workload: {{cluster: main, namespace: {cluster.namespace}, deployment: orders}}
        """
    )
    settings = load_settings(None, {"HOME": "/home/ann"}, cluster.folder)
    await cluster.deploy(1)
    async with open_backends(settings, {}) as backends:
        assert list(backends.levers) == [("kubernetes", "main")]
        (service,) = settings.catalogue().services
        port = backends.ports(service)["workload"]
        assert isinstance(port, KubernetesReader)
        assert len(await port.pods(service.targets["workload"])) == 1
        (lever,) = backends.levers["kubernetes", "main"]
        sense = await lever.probe()
        assert f"patch deployments.apps in {cluster.namespace}" in sense.reason
