"""The room for more pods, counted on real nodes and quotas."""

from __future__ import annotations

from typing import Any

import pytest

from remediator.backends.kubernetes.headroom import demand_of, may_take
from remediator.backends.kubernetes.reader import KubernetesReader
from remediator.model.errors import BackendRefused
from remediator.model.workloads import Room
from tests.kubernetes_fixtures import QUOTAS, READ_ONLY, Cluster

CORE = "/api/v1"
IMAGE = "registry.invalid/app:1"


async def deploy(cluster: Cluster, replicas: int = 1, **spec: Any) -> None:
    """Deploy pods of half a core and 256 MiB that want this test's nodes."""
    requests = {"cpu": "500m", "memory": "256Mi"}
    container = {"name": "app", "image": IMAGE, "resources": {"requests": requests}}
    labels = {"metadata": {"labels": {"app": "orders"}}}
    whole = {"containers": [container], "nodeSelector": {"test": cluster.namespace}, **spec}
    await cluster.deploy(replicas, template={**labels, "spec": whole})


async def place(cluster: Cluster, pod: str, on: str, **requests: str) -> None:
    """Put somebody else's pod on a node."""
    container = {"name": "app", "image": IMAGE, "resources": {"requests": requests}}
    spec = {"nodeName": f"{on}-{cluster.namespace}", "containers": [container]}
    await cluster.create(CORE, "pods", {"metadata": {"name": pod}, "spec": spec})


async def room(cluster: Cluster) -> Room:
    async with KubernetesReader(cluster.kubeconfig, name="main") as reader:
        return await reader.room(cluster.target())


async def test_what_is_left_is_counted_on_each_node_and_never_summed(cluster: Cluster) -> None:
    """Three quarters of a core on two nodes are room for two pods, and not for three."""
    await deploy(cluster)
    for name in ("a", "b"):
        await cluster.node(name)
        await place(cluster, f"on-{name}", name, cpu="1250m")
    found = await room(cluster)
    assert (found.quota, found.nodes) == (None, 2)


async def test_the_memory_left_beside_one_more_pod_is_that_of_the_best_node_alone(
    cluster: Cluster,
) -> None:
    await deploy(cluster)
    for name, taken in (("a", "3Gi"), ("b", "3500Mi"), ("full", "0")):
        await cluster.node(name)
        await place(cluster, f"on-{name}", name, memory=taken, cpu="2" if name == "full" else "0")
    assert (await room(cluster)).spare_memory == (1024 - 256) << 20
    await place(cluster, "more-on-a", "a", cpu="2")
    await place(cluster, "more-on-b", "b", cpu="2")
    assert (await room(cluster)).spare_memory is None


async def test_the_scarcest_resource_of_a_node_counts(cluster: Cluster) -> None:
    await deploy(cluster)
    await cluster.node("a")
    assert (await room(cluster)).nodes == 4
    await place(cluster, "big", "a", memory="3600Mi")
    assert (await room(cluster)).nodes == 1
    await place(cluster, "bigger", "a", cpu="3")
    assert (await room(cluster)).nodes == 0


async def test_pods_that_have_ended_ask_for_nothing(cluster: Cluster) -> None:
    await deploy(cluster)
    await cluster.node("a")
    await place(cluster, "job", "a", cpu="2")
    assert (await room(cluster)).nodes == 0
    await cluster.report("job", {"phase": "Succeeded"})
    assert (await room(cluster)).nodes == 4


async def test_only_nodes_that_may_take_the_pods_are_counted(cluster: Cluster) -> None:
    toleration = {"key": "team", "operator": "Equal", "value": "shop", "effect": "NoSchedule"}
    await deploy(cluster, tolerations=[toleration])
    await cluster.node("down", ready=False)
    await cluster.node("cordoned", unschedulable=True)
    await cluster.node("other", taints=[{"key": "team", "value": "x", "effect": "NoSchedule"}])
    await cluster.node("drained", taints=[{"key": "off", "effect": "NoExecute"}])
    assert (await room(cluster)).nodes == 0
    await cluster.node("soft", taints=[{"key": "off", "effect": "PreferNoSchedule"}])
    await cluster.node("ours", taints=[{"key": "team", "value": "shop", "effect": "NoSchedule"}])
    assert (await room(cluster)).nodes == 8


async def test_a_node_of_another_label_has_no_room(cluster: Cluster) -> None:
    await deploy(cluster, nodeSelector={"test": cluster.namespace, "disk": "fast"})
    await cluster.node("a")
    assert (await room(cluster)).nodes == 0


async def test_the_quota_and_the_nodes_have_to_have_room(cluster: Cluster) -> None:
    await deploy(cluster, 2)
    await cluster.node("a")
    await cluster.quota({"requests.cpu": "2500m", "pods": "9"})
    found = await room(cluster)
    assert (found.quota, found.nodes, found.pods) == (3, 4, 3)
    await cluster.quota({"count/pods": "2"}, "tight")
    assert (await room(cluster)).pods == 0


async def test_a_quota_with_scopes_is_left_out(cluster: Cluster) -> None:
    await deploy(cluster)
    await cluster.node("a")
    await cluster.quota({"pods": "0"}, "scoped", "BestEffort")
    found = await room(cluster)
    assert (found.quota, found.nodes) == (None, 4)


async def test_without_a_right_the_room_is_refused_and_the_right_is_named(
    cluster: Cluster,
) -> None:
    await deploy(cluster)
    await cluster.node("a")
    kubeconfig = await cluster.account("reader", *READ_ONLY)
    async with KubernetesReader(kubeconfig, name="main") as reader:
        with pytest.raises(BackendRefused, match="our account may not list"):
            await reader.room(cluster.target())
        everything = {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["list"]}
        await cluster.everywhere("reader", everything)
        with pytest.raises(BackendRefused, match="may not list resourcequotas in the namespace"):
            await reader.room(cluster.target())
    kubeconfig = await cluster.account("whole", *READ_ONLY, QUOTAS)
    async with KubernetesReader(kubeconfig, name="main") as reader:
        with pytest.raises(BackendRefused, match=r"may not list (nodes|pods) in all namespaces"):
            await reader.room(cluster.target())
        await cluster.everywhere("whole", everything)
        assert (await reader.room(cluster.target())).nodes == 4


# --- what a pod asks for -------------------------------------------------------------------------


def asks(cpu: str, **more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": cpu}}, **more}


@pytest.mark.parametrize(
    ("spec", "cores"),
    [
        ({"containers": [asks("250m"), asks("1")]}, 1.25),
        ({"containers": [asks("1")], "initContainers": [asks("3"), asks("2")]}, 3),
        ({"containers": [asks("1")], "initContainers": [asks("1", restartPolicy="Always")]}, 2),
        (
            {
                "containers": [asks("1")],
                "initContainers": [asks("1", restartPolicy="Always"), asks("2")],
            },
            3,
        ),
        ({"containers": [asks("1")], "overhead": {"cpu": "250m"}}, 1.25),
        ({"containers": [asks("1")], **asks("4")}, 4),
        ({"containers": [{"resources": {"limits": {"cpu": "2"}}}]}, 2),
    ],
)
def test_a_pod_is_added_up_as_the_scheduler_does(spec: dict[str, Any], cores: float) -> None:
    assert float(demand_of([spec]).requests["cpu"]) == cores


def test_of_several_pods_the_most_demanding_counts() -> None:
    demand = demand_of([{"containers": [asks("1")]}, {"containers": [asks("2")]}])
    assert demand.requests["cpu"] == 2


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        ({"key": "zone", "operator": "In", "values": ["a", "b"]}, True),
        ({"key": "zone", "operator": "NotIn", "values": ["a"]}, False),
        ({"key": "zone", "operator": "Exists"}, True),
        ({"key": "zone", "operator": "DoesNotExist"}, False),
        ({"key": "size", "operator": "Gt", "values": ["4"]}, True),
        ({"key": "size", "operator": "Lt", "values": ["4"]}, False),
        ({"key": "gone", "operator": "In", "values": ["a"]}, False),
    ],
)
def test_a_node_affinity_that_is_required_holds(rule: dict[str, Any], taken: bool) -> None:
    found = {
        "metadata": {"name": "a", "labels": {"zone": "a", "size": "8"}},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    terms = {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    assert may_take(found, {"affinity": affinity}) is taken
