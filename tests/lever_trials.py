"""Pulls every kind of change in a cluster, to see whether an account's rights suffice."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from remediator.backends.kubernetes.mitigator import KubernetesMitigator
from remediator.backends.kubernetes.reader import KubernetesReader
from remediator.model.errors import BackendRefused
from remediator.model.mitigation import Item, Mitigation, MitigationState
from tests.kubernetes_fixtures import Cluster, until

GI = 1 << 30
_APPS = "/apis/apps/v1"

Planning = Callable[[Cluster], Coroutine[Any, Any, Mitigation]]


async def refused(cluster: Cluster, kubeconfig: Path, kind: str) -> str:
    """Deploy two pods, plan a change of them and pull the lever; return why it was refused.

    Nothing is returned where all of it was done: prepared, applied, observed and taken back.
    """
    await cluster.deploy(2)
    mitigation = await PLANNING[kind](cluster)
    async with KubernetesMitigator(
        kubeconfig, name="main", namespaces=[cluster.namespace]
    ) as lever:
        try:
            preparation = await lever.prepare(mitigation)
            applied = await lever.apply(preparation, "key")
            seen = await lever.observe(preparation, "key")
            for outcome in (applied, seen):
                if outcome.state is not MitigationState.APPLIED:
                    return outcome.detail
            if preparation.undo is not None:
                undone = await lever.revert(preparation, "key")
                assert undone.state is MitigationState.REVERTED, undone.detail
        except BackendRefused as error:
            return str(error)
    quota = str(preparation.before.get("quota", ""))
    return quota if "our account may not" in quota else ""


async def _scale(cluster: Cluster) -> Mitigation:
    await cluster.autoscaler(minimum=1, maximum=6)
    return cluster.plan("scale", replicas=3, cap=6)


async def _restart(cluster: Cluster) -> Mitigation:
    return cluster.plan("restart_rollout")


async def _evict(cluster: Cluster) -> Mitigation:
    pod = (await cluster.pods())[0]["metadata"]
    item = Item(key=pod["name"], identity={"pod": pod["name"], "uid": pod["uid"]})
    return cluster.plan("evict_pod", item)


async def _set_memory(cluster: Cluster) -> Mitigation:
    return cluster.plan("set_memory", container="app", limit=GI // 2, cap=GI)


async def _undo(cluster: Cluster) -> Mitigation:
    begun = datetime.now(UTC).replace(microsecond=0)

    async def later() -> bool:
        return datetime.now(UTC) - begun >= timedelta(seconds=1)

    await until(later, "the next second has begun, since revisions are told apart by seconds")
    template = {"metadata": {"annotations": {"release": "2"}}}
    await cluster.patch(_APPS, "deployments", "orders", {"spec": {"template": template}})
    await cluster.settle()
    async with KubernetesReader(cluster.kubeconfig, name="main") as reader:
        new, old = await reader.revisions(cluster.target())
    identity = {"revision": old.number, "replica_set": old.name, "uid": old.uid}
    item = Item(key=f"revision {old.number}", identity={**identity})
    return cluster.plan("undo_rollout", item, from_revision=new.number)


PLANNING: dict[str, Planning] = {
    "scale": _scale,
    "restart_rollout": _restart,
    "evict_pod": _evict,
    "set_memory": _set_memory,
    "undo_rollout": _undo,
}
