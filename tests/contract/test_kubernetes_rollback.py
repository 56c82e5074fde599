"""Going back to an earlier revision on a real API server: pinned, whole, and never twice.

Trap T-28: the second ``rollout undo`` flips back to the bad revision, and none of them undoes what
a release migrated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from remediator.backends.kubernetes.mitigator import KubernetesMitigator
from remediator.backends.kubernetes.reader import KubernetesReader
from remediator.model.errors import BackendRefused
from remediator.model.mitigation import Item, Mitigation, MitigationState
from remediator.model.workloads import EFFECT, Revision
from tests.kubernetes_fixtures import WRITE, Cluster, prepared, until

APPS = "/apis/apps/v1"
KEY = "inc-1/ReleaseBroken/0/undo_rollout/shop/orders/workload"
NO_UNDO = "remediator.dev/no-undo"
NEWER: dict[str, Any] = {
    "metadata": {"annotations": {"release": "2"}, "labels": {"release": "2"}},
    "spec": {
        "containers": [
            {
                "name": "app",
                "image": "registry.invalid/app:2",
                "env": [{"name": "FLAG", "value": "on"}],
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            },
            {"name": "sidecar", "image": "registry.invalid/sidecar:1"},
        ],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "nodeSelector": {"disk": "fast"},
        "terminationGracePeriodSeconds": 5,
    },
}


@pytest_asyncio.fixture
async def lever(cluster: Cluster) -> AsyncIterator[KubernetesMitigator]:
    kubeconfig = await cluster.account("writer", *WRITE)
    async with KubernetesMitigator(kubeconfig, name="main") as lever:
        yield lever


async def release(cluster: Cluster, template: dict[str, Any]) -> None:
    """Roll a template out, in another second than the one before: timestamps are whole ones."""
    begun = datetime.now(UTC).replace(microsecond=0)

    async def later() -> bool:
        return datetime.now(UTC) - begun >= timedelta(seconds=1)

    await until(later, "the next second has begun")
    await cluster.patch(APPS, "deployments", "orders", {"spec": {"template": template}})
    await cluster.settle()


async def revisions(cluster: Cluster) -> dict[int, Revision]:
    async with KubernetesReader(cluster.kubeconfig, name="main") as reader:
        return {kept.number: kept for kept in await reader.revisions(cluster.target())}


async def undo(cluster: Cluster, to: int = 1, of: int = 2, **parameters: Any) -> Mitigation:
    kept = (await revisions(cluster))[to]
    identity = {"revision": to, "replica_set": kept.name, "uid": kept.uid}
    item = Item(key=f"revision {to}", identity={**identity})
    return cluster.plan("undo_rollout", item, from_revision=of, **parameters)


async def annotate(cluster: Cluster, **annotations: str) -> None:
    note = {"metadata": {"annotations": annotations}}
    await cluster.patch(APPS, "deployments", "orders", note)


async def test_the_whole_template_is_that_of_the_pinned_revision_again(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    """What only the newer one has is gone: container, variable, volume, labels, settings."""
    before = await cluster.deploy(2)
    await release(cluster, NEWER)
    preparation = await prepared(lever, await undo(cluster))
    assert preparation.undo is None
    assert (await lever.observe(preparation, KEY)).state is MitigationState.NOT_APPLIED
    outcome = await lever.apply(preparation, KEY)
    assert (outcome.state, outcome.detail) == (MitigationState.APPLIED, "back to revision 1")
    assert (await lever.observe(preparation, KEY)).state is MitigationState.APPLIED
    found = await cluster.deployment()
    assert found["spec"] == before["spec"]
    assert found["metadata"]["annotations"][EFFECT] == KEY
    await cluster.settle()
    kept = await revisions(cluster)
    assert sorted(kept) == [2, 3]
    assert (kept[3].ready, kept[3].images) == (2, ("registry.invalid/app:1",))


async def test_it_is_not_taken_back(cluster: Cluster, lever: KubernetesMitigator) -> None:
    await cluster.deploy(2)
    await release(cluster, NEWER)
    preparation = await prepared(lever, await undo(cluster))
    await lever.apply(preparation, KEY)
    with pytest.raises(BackendRefused, match="cannot be taken back"):
        await lever.revert(preparation, KEY)


async def test_preparing_changes_nothing_and_keeps_no_template(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    """Templates may hold secrets in variables, and a preparation is written to the ledger."""
    await cluster.deploy(2)
    await release(cluster, NEWER)
    before = await cluster.deployment()
    preparation = await prepared(lever, await undo(cluster))
    assert await cluster.deployment() == before
    assert "registry.invalid" not in preparation.model_dump_json()
    assert preparation.before["was"] == {"revision": 2}


async def test_there_is_no_flipping_back_to_the_revision_that_was_left(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    """Ours is seen by its annotation, anybody's by the ages of the revisions."""
    await cluster.deploy(2)
    await release(cluster, NEWER)
    preparation = await prepared(lever, await undo(cluster))
    await lever.apply(preparation, KEY)
    await cluster.settle()
    with pytest.raises(BackendRefused, match="to go back already"):
        await lever.prepare(await undo(cluster, to=2, of=3))
    await annotate(cluster, **{EFFECT: "inc-2/OOM/0/scale/shop/orders/workload"})
    with pytest.raises(BackendRefused, match="revision 3 is not the newest"):
        await lever.prepare(await undo(cluster, to=2, of=3))


async def test_a_second_or_late_application_is_refused_by_the_server(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await release(cluster, NEWER)
    preparation = await prepared(lever, await undo(cluster))
    await annotate(cluster, touched="yes")
    outcome = await lever.apply(preparation, KEY)
    assert (outcome.state, "modified" in outcome.detail) == (MitigationState.NOT_APPLIED, True)
    assert (await cluster.deployment())["spec"]["template"]["spec"]["nodeSelector"]


async def test_nothing_is_gone_back_to_where_that_would_stop_all_pods_at_once(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2, strategy={"type": "Recreate"})
    await release(cluster, NEWER)
    with pytest.raises(BackendRefused, match="Recreate would stop all pods at once"):
        await lever.prepare(await undo(cluster))


async def test_a_release_that_forbids_it_is_not_left(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await release(cluster, NEWER)
    for said in ("true", "schema 42", ""):
        await annotate(cluster, **{NO_UNDO: said})
        with pytest.raises(BackendRefused, match="forbids to go back"):
            await lever.prepare(await undo(cluster))
    await annotate(cluster, **{NO_UNDO: "false"})
    await lever.prepare(await undo(cluster))


async def test_an_old_release_is_not_left(cluster: Cluster, lever: KubernetesMitigator) -> None:
    await cluster.deploy(2)
    await release(cluster, NEWER)
    path = await cluster.account("later", *WRITE)
    clock = lambda: datetime.now(UTC) + timedelta(minutes=61)  # noqa: E731 - a clock
    async with KubernetesMitigator(path, name="main", clock=clock) as later:
        with pytest.raises(BackendRefused, match="beyond 3600 s"):
            await later.prepare(await undo(cluster))
        await later.prepare(await undo(cluster, max_age_s=7200))


async def test_only_the_revision_that_was_seen_running_is_left(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await release(cluster, NEWER)
    plan = await undo(cluster)
    await release(cluster, {"metadata": {"labels": {"release": "3"}}})
    with pytest.raises(BackendRefused, match="revision 3 runs, not 2"):
        await lever.prepare(plan)
    await lever.prepare(await undo(cluster, to=2, of=3))
    await lever.prepare(await undo(cluster, to=1, of=3))


async def test_only_the_revision_that_is_pinned_is_gone_back_to(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await release(cluster, NEWER)
    plan = await undo(cluster)
    (item,) = plan.items
    for wrong in ({"uid": "another"}, {"replica_set": "another"}, {"revision": 7}):
        other = item.model_copy(update={"identity": {**item.identity, **wrong}})
        with pytest.raises(BackendRefused, match="no longer kept"):
            await lever.prepare(plan.model_copy(update={"items": (other,)}))
    with pytest.raises(BackendRefused, match="exactly one item"):
        await lever.prepare(plan.model_copy(update={"items": ()}))
    with pytest.raises(BackendRefused, match="not before the one that runs"):
        await lever.prepare(await undo(cluster, to=2))
    with pytest.raises(BackendRefused, match="parameters of undo_rollout"):
        await lever.prepare(plan.model_copy(update={"parameters": {}}))


async def test_a_revision_that_is_gone_when_it_is_needed_is_not_applied(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await release(cluster, NEWER)
    preparation = await prepared(lever, await undo(cluster))
    await cluster.patch(APPS, "deployments", "orders", {"spec": {"revisionHistoryLimit": 0}})

    async def gone() -> bool:
        return 1 not in await revisions(cluster)

    await until(gone, "the first revision is no longer kept")
    outcome = await lever.apply(preparation, KEY)
    assert outcome.state is MitigationState.NOT_APPLIED
    assert "no longer kept" in outcome.detail


async def test_a_kept_template_that_was_changed_since_is_not_applied(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await release(cluster, NEWER)
    plan = await undo(cluster)
    preparation = await prepared(lever, plan)
    name = str(plan.items[0].identity["replica_set"])
    container = {"name": "app", "image": "registry.invalid/evil:1"}
    change = {"spec": {"template": {"spec": {"containers": [container]}}}}
    await cluster.patch(APPS, "replicasets", name, change)
    outcome = await lever.apply(preparation, KEY)
    assert outcome.state is MitigationState.NOT_APPLIED
    assert "has changed since" in outcome.detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spec": {"paused": True}}, "paused"),
        ({"spec": {"template": {"metadata": {"labels": {"v": "9"}}}}}, "rollout is in progress"),
    ],
)
async def test_a_deployment_that_is_not_steady_is_left_alone(
    cluster: Cluster, lever: KubernetesMitigator, change: dict[str, Any], reason: str
) -> None:
    await cluster.deploy(2)
    await release(cluster, NEWER)
    plan = await undo(cluster)
    await cluster.patch(APPS, "deployments", "orders", change)
    with pytest.raises(BackendRefused, match=reason):
        await lever.prepare(plan)
