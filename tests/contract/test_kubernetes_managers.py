"""What somebody else set just now is not changed, as a real API server notes who set it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from remediator.backends.kubernetes.mitigator import KubernetesMitigator
from remediator.model.errors import BackendRefused
from remediator.model.mitigation import Figure, Instances, Item, MitigationState
from tests.kubernetes_fixtures import WRITE, Cluster, prepared

MI = 1 << 20
APPS = "/apis/apps/v1"
A_SECOND = 1.1
"""Seconds after which a change has another time than the creation: the server notes whole ones."""
HALF_AN_HOUR = timedelta(minutes=30)


@pytest_asyncio.fixture
async def writer(cluster: Cluster) -> Path:
    return await cluster.account("writer", *WRITE)


@contextlib.asynccontextmanager
async def looking(
    writer: Path, later: timedelta = timedelta(0)
) -> AsyncIterator[KubernetesMitigator]:
    """Open a lever whose clock is ``later`` than the server's."""
    lever = KubernetesMitigator(
        writer,
        name="main",
        clock=lambda: datetime.now(UTC) + later,
        hands_off=HALF_AN_HOUR,
    )
    async with lever:
        yield lever


def memory(limit: str) -> dict[str, Any]:
    container = {"name": "app", "resources": {"limits": {"memory": limit}}}
    return {"spec": {"template": {"spec": {"containers": [container]}}}}


async def test_replicas_that_a_human_set_just_now_are_left_alone(
    cluster: Cluster, writer: Path
) -> None:
    await cluster.deploy(2)
    await asyncio.sleep(A_SECOND)
    await cluster.patch(APPS, "deployments", "orders", {"spec": {"replicas": 3}}, "kubectl-edit")
    await cluster.settle()
    scale = cluster.plan("scale", replicas=4, cap=6)
    async with looking(writer, timedelta(minutes=12)) as lever:
        with pytest.raises(BackendRefused, match=r"kubectl-edit set it 1[12] min ago"):
            await lever.prepare(scale)
        await lever.prepare(cluster.plan("restart_rollout"))
        await lever.prepare(
            cluster.plan("set_memory", container="app", limit=300 * MI, cap=MI << 10)
        )
    async with looking(writer, timedelta(minutes=31)) as lever:
        await lever.prepare(scale)


async def test_memory_that_a_release_set_just_now_is_left_alone(
    cluster: Cluster, writer: Path
) -> None:
    await cluster.deploy(2)
    await asyncio.sleep(A_SECOND)
    await cluster.patch(APPS, "deployments", "orders", memory("300Mi"), "helm")
    await cluster.settle()
    raised = cluster.plan("set_memory", container="app", limit=400 * MI, cap=MI << 10)
    async with looking(writer) as lever:
        with pytest.raises(BackendRefused, match="helm set it"):
            await lever.prepare(raised)
        await lever.prepare(cluster.plan("scale", replicas=3, cap=6))
    async with looking(writer, timedelta(hours=1)) as lever:
        preparation = await prepared(lever, raised)
    figure = Figure.of(preparation.before)
    assert figure == Figure(name="memory of app", was=300 * MI, will=400 * MI)


async def test_a_restart_by_hand_is_not_followed_by_ours(cluster: Cluster, writer: Path) -> None:
    await cluster.deploy(2)
    await asyncio.sleep(A_SECOND)
    note = {"kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z"}
    template = {"spec": {"template": {"metadata": {"annotations": note}}}}
    await cluster.patch(APPS, "deployments", "orders", template, "kubectl-rollout")
    await cluster.settle()
    async with looking(writer) as lever:
        with pytest.raises(BackendRefused, match="kubectl-rollout set it"):
            await lever.prepare(cluster.plan("restart_rollout"))


async def test_what_stands_as_it_was_created_or_as_we_set_it_was_changed_by_nobody(
    cluster: Cluster, writer: Path
) -> None:
    await cluster.deploy(2)
    async with looking(writer) as lever:
        first = await prepared(lever, cluster.plan("scale", replicas=3, cap=6))
        assert (await lever.apply(first, "key")).state is MitigationState.APPLIED
        await cluster.settle()
        await lever.prepare(cluster.plan("scale", replicas=4, cap=6))


async def test_a_minimum_that_a_human_set_just_now_is_left_alone(
    cluster: Cluster, writer: Path
) -> None:
    await cluster.deploy(2)
    await cluster.autoscaler(minimum=1, maximum=6)
    await asyncio.sleep(A_SECOND)
    path = "/apis/autoscaling/v1"
    await cluster.patch(
        path, "horizontalpodautoscalers", "orders", {"spec": {"minReplicas": 2}}, "ann"
    )
    scale = cluster.plan("scale", replicas=4, cap=6)
    async with looking(writer) as lever:
        with pytest.raises(BackendRefused, match="ann set it"):
            await lever.prepare(scale)
    async with looking(writer, timedelta(hours=1)) as lever:
        preparation = await prepared(lever, scale)
    assert Figure.of(preparation.before) == Figure(name="replicas", was=2, will=4)


async def test_every_change_says_how_many_pods_it_ends_at_once(
    cluster: Cluster, writer: Path
) -> None:
    await cluster.deploy(4)
    pod = (await cluster.pods())[0]["metadata"]
    item = Item(key=pod["name"], identity={"pod": pod["name"], "uid": pod["uid"]})
    async with looking(writer) as lever:
        evict = await prepared(lever, cluster.plan("evict_pod", item))
        restart = await prepared(lever, cluster.plan("restart_rollout"))
    assert Instances.of(evict.before) == Instances(touched=1, of_all=4)
    assert Instances.of(restart.before) == Instances(touched=1, of_all=4), "maxUnavailable is 25 %"
