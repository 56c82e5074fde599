"""The members of a stateful set keep their majority, on a real API server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from remediator.backends.kubernetes.mitigator import KubernetesMitigator
from remediator.backends.kubernetes.reader import KubernetesReader
from remediator.model.errors import BackendRefused
from remediator.model.finding import SenseState
from remediator.model.mitigation import Figure, Instances, Item, Mitigation, MitigationState
from remediator.service.rbac import reader_rights, rules, writer_rights
from tests.kubernetes_fixtures import WRITE, Cluster, prepared, until

MI = 1 << 20
APPS, CORE = "/apis/apps/v1", "/api/v1"
ON_SETS: Mapping[str, list[str]] = {
    "apiGroups": ["apps"],
    "resources": ["statefulsets"],
    "verbs": ["get", "patch"],
}


@pytest_asyncio.fixture
async def writer(cluster: Cluster) -> Path:
    return await cluster.account("writer", *WRITE, ON_SETS)


@pytest_asyncio.fixture
async def lever(cluster: Cluster, writer: Path) -> AsyncIterator[KubernetesMitigator]:
    async with KubernetesMitigator(writer, name="main", hands_off=timedelta(minutes=30)) as lever:
        yield lever


def item_of(pod: dict[str, Any]) -> Item:
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    return Item(key=name, identity={"pod": name, "uid": uid})


async def unready(cluster: Cluster, pod: dict[str, Any]) -> None:
    """Let a member run without being ready, and let the controller see that."""
    conditions = [{"type": "Ready", "status": "False"}]
    await cluster.report(pod["metadata"]["name"], {"conditions": conditions})


async def died(cluster: Cluster, pod: dict[str, Any], ago: timedelta) -> None:
    """Let a member's container have been killed for want of memory, and be ready again."""
    ended = (datetime.now(UTC) - ago).isoformat(timespec="seconds")
    killed = {"reason": "OOMKilled", "exitCode": 137, "startedAt": ended, "finishedAt": ended}
    container = {
        "name": "app",
        "image": "registry.invalid/store:1",
        "imageID": "",
        "ready": True,
        "restartCount": 1,
        "state": {"running": {"startedAt": ended}},
        "lastState": {"terminated": killed},
    }
    await cluster.report(pod["metadata"]["name"], {"containerStatuses": [container]})


async def members(cluster: Cluster) -> list[dict[str, Any]]:
    return sorted(await cluster.pods("store"), key=lambda pod: str(pod["metadata"]["name"]))


async def test_one_of_three_members_is_evicted_and_comes_back(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.stateful(3)
    victim = (await members(cluster))[1]
    evict = await prepared(lever, cluster.member_plan("evict_pod", item_of(victim)))
    assert Instances.of(evict.before) == Instances(touched=1, of_all=3)
    assert (await lever.apply(evict, "key")).state is MitigationState.APPLIED
    assert (await lever.observe(evict, "key")).state is MitigationState.APPLIED
    await cluster.settle_members()
    uids = {pod["metadata"]["uid"] for pod in await members(cluster)}
    assert (len(uids), victim["metadata"]["uid"] in uids) == (3, False)


@pytest.mark.parametrize("replicas", [1, 2])
async def test_without_a_majority_left_a_human_decides(
    cluster: Cluster, lever: KubernetesMitigator, replicas: int
) -> None:
    await cluster.stateful(replicas)
    victim = (await members(cluster))[0]
    for plan in (
        cluster.member_plan("evict_pod", item_of(victim)),
        cluster.member_plan("restart_rollout", min_ready=1),
        cluster.member_plan("set_memory", container="app", limit=300 * MI, cap=512 * MI),
    ):
        with pytest.raises(BackendRefused, match="are a majority"):
            await lever.prepare(plan)


async def test_no_member_is_touched_while_another_is_not_ready(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.stateful(5)
    first, second, *_ = await members(cluster)
    await unready(cluster, first)
    with pytest.raises(BackendRefused, match="3 of 4 other members are ready"):
        await lever.prepare(cluster.member_plan("evict_pod", item_of(second)))
    with pytest.raises(BackendRefused, match="4 of 5 members are ready"):
        await lever.prepare(cluster.member_plan("restart_rollout"))
    await lever.prepare(cluster.member_plan("evict_pod", item_of(first)))


async def test_members_are_restarted_in_turn(cluster: Cluster, lever: KubernetesMitigator) -> None:
    await cluster.stateful(3)
    old = {pod["metadata"]["uid"] for pod in await members(cluster)}
    restart = await prepared(lever, cluster.member_plan("restart_rollout"))
    assert (await lever.apply(restart, "key")).state is MitigationState.APPLIED
    assert (await lever.observe(restart, "key")).state is MitigationState.APPLIED
    with pytest.raises(BackendRefused, match="rollout is in progress"):
        await lever.prepare(cluster.member_plan("restart_rollout"))
    await cluster.settle_members()
    assert old.isdisjoint({pod["metadata"]["uid"] for pod in await members(cluster)})


async def test_memory_of_the_members_is_raised_and_put_back(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.stateful(3)
    plan = cluster.member_plan("set_memory", container="app", limit=400 * MI, cap=512 * MI)
    raised = await prepared(lever, plan)
    assert Figure.of(raised.before) == Figure(name="memory of app", was=256 * MI, will=400 * MI)
    assert (await lever.apply(raised, "key")).state is MitigationState.APPLIED
    await cluster.settle_members()
    assert (await lever.revert(raised, "key")).state is MitigationState.REVERTED


def memory_plan(cluster: Cluster) -> Mitigation:
    return cluster.member_plan("set_memory", container="app", limit=400 * MI, cap=512 * MI)


async def test_memory_of_three_members_is_not_raised_while_the_first_of_them_keeps_dying(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    """Members 2 and 1 are replaced before it, and not made again while it is down."""
    await cluster.stateful(3)
    first, second, _ = await members(cluster)
    await died(cluster, first, timedelta(seconds=30))
    left = r"1 of 3 members would be left while store-0 may die again"
    for plan in (
        memory_plan(cluster),
        cluster.member_plan("restart_rollout"),
        cluster.member_plan("evict_pod", item_of(second)),
    ):
        with pytest.raises(BackendRefused, match=left):
            await lever.prepare(plan)
    await lever.prepare(cluster.member_plan("evict_pod", item_of(first)))


async def test_memory_is_raised_where_the_dying_member_is_replaced_first(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.stateful(3)
    *_, last = await members(cluster)
    await died(cluster, last, timedelta(seconds=30))
    await prepared(lever, memory_plan(cluster))
    with pytest.raises(BackendRefused, match="store-2 may die again"):  # which a restart leaves so
        await lever.prepare(cluster.member_plan("restart_rollout"))


async def test_a_member_that_died_long_ago_or_is_one_of_many_stops_nothing(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.stateful(5)
    first, second, *_ = await members(cluster)
    await died(cluster, first, timedelta(seconds=30))
    await died(cluster, second, timedelta(minutes=31))
    raised = await prepared(lever, memory_plan(cluster))
    assert Instances.of(raised.before) == Instances(touched=1, of_all=5)


async def test_a_member_that_is_refused_is_told_with_the_reason_until_it_is_made(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.stateful(3)
    await cluster.most_memory("300Mi")
    account = await cluster.account("reader", *rules(reader_rights(sets=True)))
    plan = memory_plan(cluster)
    raised = await prepared(lever, plan)
    await lever.apply(raised, "key")
    async with KubernetesReader(account, name="main") as reader:

        async def refused() -> bool:
            return (await reader.workload(plan.target)).refused is not None

        await until(refused, "member 2 is refused")
        assert "maximum memory usage" in str((await reader.workload(plan.target)).refused)
        assert (await lever.revert(raised, "key")).state is MitigationState.REVERTED
        await cluster.settle_members()
        assert not await refused()


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ({"type": "OnDelete"}, "OnDelete would leave the members"),
        ({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}, "partition would leave"),
    ],
)
async def test_a_strategy_that_does_not_replace_every_member_in_turn_is_refused(
    cluster: Cluster, lever: KubernetesMitigator, strategy: dict[str, Any], reason: str
) -> None:
    await cluster.stateful(3, updateStrategy=strategy)
    with pytest.raises(BackendRefused, match=reason):
        await lever.prepare(cluster.member_plan("restart_rollout"))


async def test_nothing_else_is_done_to_a_stateful_set(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.stateful(3)
    with pytest.raises(BackendRefused, match="scale is not made on a stateful set"):
        await lever.prepare(cluster.member_plan("scale", replicas=4, cap=6))
    with pytest.raises(BackendRefused, match="undo_rollout is not made on a stateful set"):
        await lever.prepare(cluster.member_plan("undo_rollout"))


async def test_a_member_is_not_reached_through_a_deployment_of_the_same_labels(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.stateful(1)
    await cluster.deploy(3, name="orders")
    member = (await members(cluster))[0]
    with pytest.raises(BackendRefused, match="gone or going"):
        await lever.prepare(cluster.plan("evict_pod", item_of(member)))


async def test_the_reader_reads_a_stateful_set_and_its_members(
    cluster: Cluster, writer: Path
) -> None:
    await cluster.stateful(3)
    account = await cluster.account("reader", *rules(reader_rights(sets=True)))
    target = cluster.member_plan("evict_pod").target
    spaces = [cluster.namespace]
    async with KubernetesReader(account, name="main", namespaces=spaces, sets_in=spaces) as reader:

        async def granted() -> bool:
            return (await reader.probe()).state is SenseState.OK

        await until(granted, "the reader has its rights")
        workload = await reader.workload(target)
        assert (workload.name, workload.replicas, workload.ready) == ("store", 3, 3)
        assert workload.rollout is None
        assert [pod.name for pod in await reader.pods(target)] == ["store-0", "store-1", "store-2"]
        assert await reader.autoscaler(target) is None
        with pytest.raises(BackendRefused, match="revisions of a stateful set"):
            await reader.revisions(target)


@pytest.mark.parametrize("kind", ["evict_pod", "restart_rollout", "set_memory"])
async def test_the_rights_for_a_stateful_set_suffice_and_are_asked_for(
    cluster: Cluster, kind: str
) -> None:
    await cluster.stateful(3)
    spaces = [cluster.namespace]
    changes = {cluster.namespace: frozenset({kind})}
    plans = {
        "evict_pod": cluster.member_plan("evict_pod", item_of((await members(cluster))[0])),
        "restart_rollout": cluster.member_plan("restart_rollout"),
        "set_memory": cluster.member_plan(
            "set_memory", container="app", limit=300 * MI, cap=512 * MI
        ),
    }
    enough = await cluster.account("enough", *rules(writer_rights([kind], sets=True)))
    few = await cluster.account("few", *rules(writer_rights([kind])))
    given: dict[str, Any] = {"namespaces": spaces, "sets_in": spaces, "changes": changes}
    async with contextlib.AsyncExitStack() as stack:
        able = await stack.enter_async_context(KubernetesMitigator(enough, name="main", **given))
        lacking = await stack.enter_async_context(KubernetesMitigator(few, name="main", **given))

        async def granted() -> bool:
            return (await able.probe()).state is SenseState.OK

        await until(granted, "the writer has its rights")
        await able.prepare(plans[kind])
        assert "statefulsets.apps" in (await lacking.probe()).reason
