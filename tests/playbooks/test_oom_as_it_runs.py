"""What containers really may use, as a Kubernetes 1.36 with a kubelet said it of killed ones."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest

from playbooks.oom import OOM, OOMParameters
from remediator.backends.kubernetes.objects import REVISION, read_pod, read_workload
from remediator.backends.kubernetes.pods import read_usage
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.mitigation import Item, Mitigation, Proposal
from remediator.playbook.checks.cpu import used_cpu
from remediator.testing import context_for
from tests.recorded_cluster import (
    SEEN_AT,
    Recorded,
    deployment_of,
    sample,
    template_of,
)

MI = 1 << 20
Json = dict[str, Any]


def recorded(name: str, *defaulted: str) -> Recorded:
    """Serve recorded pods with the deployment that they were made by."""
    pods = sample(f"pods_{name}")["items"]
    return Recorded(deployment_of(pods, template_of(pods[-1], *defaulted)), pods)


async def proposed(cluster: Recorded, folder: Path) -> Proposal:
    playbook = OOM(OOMParameters.model_validate({"memory_max": "1Gi"}))
    async with cluster.reader(folder) as reader:
        context = context_for(
            playbook, targets={"workload": cluster.target}, ports={"workload": reader}, now=SEEN_AT
        )
        return playbook.propose(context, await playbook.diagnose(context))


# --- limits that the template does not have ------------------------------------------------------


async def test_a_limit_from_a_limit_range_is_named_and_the_node_is_not_blamed(
    tmp_path: Path,
) -> None:
    cluster = recorded("limitrange_default", "limits.memory", "requests.memory")
    proposal = await proposed(cluster, tmp_path)
    assert "app was killed at its limit of 24Mi" in proposal.reason
    assert "LimitRange" in proposal.reason
    assert "node is short" not in proposal.reason
    assert (proposal.mitigations, proposal.wait) == ((), None)


async def test_the_limit_of_the_whole_pod_is_named_and_the_node_is_not_blamed(
    tmp_path: Path,
) -> None:
    proposal = await proposed(recorded("podlevel"), tmp_path)
    assert "app was killed at its limit of 28Mi" in proposal.reason
    assert "whole pod (spec.resources)" in proposal.reason
    assert (proposal.mitigations, proposal.wait) == ((), None)


async def test_without_any_limit_its_node_is_short(tmp_path: Path) -> None:
    cluster = recorded("limitrange_default", "limits.memory", "requests.memory")
    for pod in cluster.pods:
        for holder in (*pod["spec"]["containers"], *pod["status"]["containerStatuses"]):
            holder["resources"].pop("limits")
    assert "without a limit: its node is short" in (await proposed(cluster, tmp_path)).reason


async def test_a_container_that_the_template_does_not_have_is_not_raised(tmp_path: Path) -> None:
    cluster = recorded("sidecar")
    del cluster.deployment["spec"]["template"]["spec"]["initContainers"]
    proposal = await proposed(cluster, tmp_path)
    assert "something injects it" in proposal.reason
    assert not proposal.mitigations


# --- sidecars ------------------------------------------------------------------------------------


async def test_a_sidecars_limit_counts_as_its_use_does(tmp_path: Path) -> None:
    cluster = recorded("scmem")
    cluster.uses("6m", "1Mi", "17Mi")  # the limits are 20Mi and 96Mi
    proposal = await proposed(cluster, tmp_path)
    assert not proposal.mitigations, proposal.reason
    assert "no other pod is short of memory" in proposal.reason
    cluster.uses("6m", "15Mi", "90Mi")
    (plan,) = (await proposed(cluster, tmp_path)).mitigations
    assert plan.kind == "evict_pod"


def test_a_sidecars_cpu_counts_as_its_use_does() -> None:
    cluster = recorded("scmem")
    cluster.uses("6m", "1Mi")  # each of both asks for 5m
    usage = [read_usage(found) for found in cluster.usage or ()]
    workload = read_workload(cluster.deployment)
    assert used_cpu(workload, usage, SEEN_AT).share == pytest.approx(0.6)
    assert used_cpu(workload, usage, SEEN_AT, map(read_pod, cluster.pods)).share == 0.6


def test_cpu_that_the_pods_have_got_besides_their_template_counts() -> None:
    cluster = recorded("resize")  # its pods ask for 50m each
    template = cluster.deployment["spec"]["template"]["spec"]["containers"][0]
    template["resources"] = {}
    cluster.uses("30m", "1Mi")
    usage = [read_usage(found) for found in cluster.usage or ()]
    pods = [read_pod(pod) for pod in cluster.pods]
    assert used_cpu(read_workload(cluster.deployment), usage, SEEN_AT, pods).share == 0.6


async def test_the_limit_of_a_killed_sidecar_is_raised_where_it_stands(tmp_path: Path) -> None:
    cluster = recorded("sidecar")
    (plan,) = (await proposed(cluster, tmp_path)).mitigations
    assert (plan.kind, plan.parameters["container"]) == ("set_memory", "proxy")
    async with cluster.lever(tmp_path) as lever:
        await lever.prepare(plan)
    (change,) = cluster.changes
    (container,) = change["spec"]["template"]["spec"]["initContainers"]
    assert container["name"] == "proxy"
    assert container["resources"]["limits"] == {"memory": "48Mi"}


# --- resized in place ----------------------------------------------------------------------------


async def test_pods_that_were_resized_in_place_are_told_of_and_not_waited_for(
    tmp_path: Path,
) -> None:
    cluster = recorded("resize")  # one of both was resized from 24Mi to 32Mi, and killed since
    proposal = await proposed(cluster, tmp_path)
    assert "the pods have 32Mi, 24Mi, the template has 24Mi" in proposal.reason
    assert "resized them in place" in proposal.reason
    assert (proposal.mitigations, proposal.wait) == ((), None)


async def test_where_all_pods_are_of_another_size_than_their_template_nothing_is_waited_for(
    tmp_path: Path,
) -> None:
    cluster = recorded("once")
    container = cluster.deployment["spec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = "20Mi"  # an autoscaler made it 24Mi
    proposal = await proposed(cluster, tmp_path)
    assert "the pods have 24Mi, the template has 20Mi" in proposal.reason
    assert (proposal.mitigations, proposal.wait) == ((), None)


def test_a_resize_counts_once_it_has_been_made() -> None:
    pod = copy.deepcopy(sample("pods_resize")["items"][0])
    pod["status"]["containerStatuses"][0]["resources"]["limits"]["memory"] = "24Mi"
    (container,) = read_pod(pod).containers
    assert container.memory_limit == 24 * MI, "the kubelet has deferred it"


def plan_of(cluster: Recorded, kind: str, *items: Item, **parameters: Any) -> Mitigation:
    return Mitigation(
        kind=kind, target=cluster.target, reason="a test", items=items, parameters=parameters
    )


async def test_no_limit_is_set_that_is_not_the_pods_own(tmp_path: Path) -> None:
    cluster = recorded("resize")
    raised = plan_of(cluster, "set_memory", container="app", limit=48 * MI, cap=64 * MI)
    async with cluster.lever(tmp_path) as lever:
        with pytest.raises(BackendRefused, match=r"has a memory limit of 32Mi, .* says 24Mi"):
            await lever.prepare(raised)
    assert not cluster.changes


async def test_a_pod_that_is_kept_as_a_record_only_stops_nothing(tmp_path: Path) -> None:
    cluster = recorded("resize")  # one of both was resized
    cluster.pods[0]["status"]["phase"] = "Failed"
    raised = plan_of(cluster, "set_memory", container="app", limit=48 * MI, cap=64 * MI)
    async with cluster.lever(tmp_path) as lever:
        await lever.prepare(raised)
    assert cluster.changes


@pytest.mark.parametrize("kind", ["evict_pod", "restart_rollout", "set_memory"])
async def test_a_pod_of_another_revision_is_waited_for_and_not_called_resized(
    tmp_path: Path, kind: str
) -> None:
    cluster = recorded("resize")
    left, pod = cluster.pods
    later = {**left["metadata"]["ownerReferences"][0], "uid": "later", "name": "app-2"}
    pod["metadata"]["ownerReferences"] = [later]
    cluster.deployment["metadata"]["annotations"] = {REVISION: "2"}
    cluster.replica_sets = [
        replica_set(cluster, owner, number)
        for number, owner in enumerate((left["metadata"]["ownerReferences"][0], later), start=1)
    ]
    meant = left["metadata"]
    items = {"evict_pod": [Item(key="it", identity={"pod": meant["name"], "uid": meant["uid"]})]}
    bounds = {"set_memory": {"container": "app", "limit": 48 * MI, "cap": 64 * MI}}
    plan = plan_of(cluster, kind, *items.get(kind, ()), **bounds.get(kind, {}))
    async with cluster.lever(tmp_path) as lever:
        with pytest.raises(BackendUnavailable, match="1 pods of another revision are there"):
            await lever.prepare(plan)
        assert not cluster.changes
        meant["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        with contextlib.suppress(BackendRefused):  # for what remains, the rollout is over
            await lever.prepare(plan)


def replica_set(cluster: Recorded, reference: Json, number: int) -> Json:
    owner = {"uid": cluster.deployment["metadata"]["uid"], "controller": True}
    metadata = {"name": reference["name"], "uid": reference["uid"], "ownerReferences": [owner]}
    return {"metadata": metadata | {"annotations": {REVISION: str(number)}}, "spec": {}}


async def test_a_pod_that_was_resized_in_place_is_not_replaced_by_a_smaller_one(
    tmp_path: Path,
) -> None:
    cluster = recorded("resize")
    resized, other = (pod["metadata"] for pod in cluster.pods)
    evictions = [
        plan_of(
            cluster,
            "evict_pod",
            Item(key=pod["name"], identity={"pod": pod["name"], "uid": pod["uid"]}),
        )
        for pod in (resized, other)
    ]
    async with cluster.lever(tmp_path) as lever:
        for plan in (evictions[0], plan_of(cluster, "restart_rollout")):
            with pytest.raises(BackendRefused, match="resized in place to 32Mi"):
                await lever.prepare(plan)
        await lever.prepare(evictions[1])
        resized["annotations"] = {"vpaUpdates": "Pod resources updated"}
        await lever.prepare(evictions[0])
