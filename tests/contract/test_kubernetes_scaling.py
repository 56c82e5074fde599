"""Scaling on a real API server: what the quota leaves, and taking it back in steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from remediator.backends.kubernetes.mitigator import KubernetesMitigator
from remediator.model.errors import BackendRefused
from remediator.model.mitigation import MitigationState, Preparation
from remediator.model.workloads import EFFECT, effect_of
from remediator.testing import FrozenClock
from tests.kubernetes_fixtures import QUOTAS, WRITE, Cluster, prepared

APPS = "/apis/apps/v1"
PAUSE = timedelta(minutes=10)
APPLIED, REVERTED = MitigationState.APPLIED, MitigationState.REVERTED


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


@pytest_asyncio.fixture
async def writer(cluster: Cluster) -> Path:
    return await cluster.account("writer", *WRITE)


@pytest_asyncio.fixture
async def lever(
    cluster: Cluster, writer: Path, clock: FrozenClock
) -> AsyncIterator[KubernetesMitigator]:
    async with KubernetesMitigator(writer, name="main", clock=clock) as lever:
        yield lever


async def scaled(
    cluster: Cluster, lever: KubernetesMitigator, replicas: int, **parameters: Any
) -> Preparation:
    plan = cluster.plan("scale", replicas=replicas, cap=20, **parameters)
    preparation = await prepared(lever, plan)
    assert (await lever.apply(preparation, "key")).state is APPLIED
    return preparation


async def replicas(cluster: Cluster) -> int:
    return int((await cluster.deployment())["spec"]["replicas"])


async def mark(cluster: Cluster) -> str:
    return str((await cluster.deployment())["metadata"]["annotations"][EFFECT])


# --- in steps ------------------------------------------------------------------------------------


async def test_replicas_go_down_by_a_quarter_a_step_and_never_below_the_old_figure(
    cluster: Cluster, lever: KubernetesMitigator, clock: FrozenClock
) -> None:
    await cluster.deploy(5)
    preparation = await scaled(cluster, lever, 10)
    for figure in (8, 6):
        outcome = await lever.revert(preparation, "key", in_steps=True)
        assert (outcome.state, outcome.again_in) == (APPLIED, PAUSE), outcome
        assert "on the way to 5" in outcome.detail
        assert await replicas(cluster) == figure
        assert (await mark(cluster)).startswith(f"key/lowered/{figure}@")
        assert (await lever.observe(preparation, "key")).state is APPLIED
        clock.advance(PAUSE)
    outcome = await lever.revert(preparation, "key", in_steps=True)
    assert (outcome.state, outcome.again_in) == (REVERTED, None)
    assert (await replicas(cluster), await mark(cluster)) == (5, "key/reverted")
    assert (await lever.revert(preparation, "key", in_steps=True)).state is REVERTED


async def test_an_autoscalers_minimum_goes_down_in_steps_too(
    cluster: Cluster, lever: KubernetesMitigator, clock: FrozenClock
) -> None:
    """Trap T-20: the autoscaler would override any other way."""
    await cluster.deploy(2)
    await cluster.autoscaler(minimum=2, maximum=6)
    preparation = await scaled(cluster, lever, 4)
    assert (await lever.revert(preparation, "key", in_steps=True)).state is APPLIED
    assert (await cluster.minimum(), await replicas(cluster)) == (3, 2)
    clock.advance(PAUSE)
    assert (await lever.revert(preparation, "key", in_steps=True)).state is REVERTED
    assert await cluster.minimum() == 2


async def test_the_share_and_the_pause_of_a_step_are_the_mitigations(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(5)
    preparation = await scaled(cluster, lever, 10, step_down=0.4, step_pause="90s")
    outcome = await lever.revert(preparation, "key", in_steps=True)
    assert outcome.again_in == timedelta(seconds=90)
    assert await replicas(cluster) == 6


async def test_a_step_before_its_time_waits_for_what_is_left_of_the_pause(
    cluster: Cluster, lever: KubernetesMitigator, clock: FrozenClock
) -> None:
    await cluster.deploy(5)
    preparation = await scaled(cluster, lever, 10)
    await lever.revert(preparation, "key", in_steps=True)
    clock.advance(timedelta(minutes=4))
    outcome = await lever.revert(preparation, "key", in_steps=True)
    assert (outcome.state, outcome.again_in) == (APPLIED, timedelta(minutes=6))
    assert await replicas(cluster) == 8


@pytest.mark.parametrize(
    ("ahead", "state"), [(timedelta(seconds=20), APPLIED), (timedelta(days=3), REVERTED)]
)
async def test_a_mark_of_a_clock_that_was_far_ahead_is_not_waited_for(
    cluster: Cluster,
    lever: KubernetesMitigator,
    clock: FrozenClock,
    ahead: timedelta,
    state: MitigationState,
) -> None:
    await cluster.deploy(4)
    preparation = await scaled(cluster, lever, 6)
    clock.advance(ahead)
    await lever.revert(preparation, "key", in_steps=True)
    clock.advance(-ahead)
    outcome = await lever.revert(preparation, "key", in_steps=True)
    assert (outcome.state, await replicas(cluster)) == (state, 5 if state is APPLIED else 4)


async def test_from_a_lowered_figure_all_is_put_back_at_once(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(5)
    preparation = await scaled(cluster, lever, 10)
    await lever.revert(preparation, "key", in_steps=True)
    assert (await lever.revert(preparation, "key")).state is REVERTED
    assert await replicas(cluster) == 5


@pytest.mark.parametrize("in_steps", [True, False])
@pytest.mark.parametrize("figure", [9, 4, 10])
async def test_what_a_human_set_between_two_steps_is_left_alone(
    cluster: Cluster, lever: KubernetesMitigator, clock: FrozenClock, figure: int, in_steps: bool
) -> None:
    await cluster.deploy(5)
    preparation = await scaled(cluster, lever, 10)
    await lever.revert(preparation, "key", in_steps=True)
    clock.advance(PAUSE)
    await cluster.patch(APPS, "deployments", "orders", {"spec": {"replicas": figure}})
    outcome = await lever.revert(preparation, "key", in_steps=in_steps)
    assert outcome.state is MitigationState.NOT_APPLIED
    assert "somebody else" in outcome.detail
    assert await replicas(cluster) == figure


async def test_another_change_of_ours_between_two_steps_is_left_alone(
    cluster: Cluster, lever: KubernetesMitigator, clock: FrozenClock
) -> None:
    await cluster.deploy(5)
    preparation = await scaled(cluster, lever, 10)
    await lever.revert(preparation, "key", in_steps=True)
    clock.advance(PAUSE)
    note = {"metadata": {"annotations": {effect_of("scale"): "key-of-another"}}}
    await cluster.patch(APPS, "deployments", "orders", note)
    outcome = await lever.revert(preparation, "key", in_steps=True)
    assert outcome.state is MitigationState.NOT_APPLIED


async def test_a_memory_limit_is_put_back_in_one_step(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    before = await cluster.deploy(2)
    plan = cluster.plan("set_memory", container="app", limit=1 << 29, cap=1 << 30)
    preparation = await prepared(lever, plan)
    await lever.apply(preparation, "key")
    assert (await lever.revert(preparation, "key", in_steps=True)).state is REVERTED
    assert (await cluster.deployment())["spec"]["template"] == before["spec"]["template"]


async def test_a_step_whose_answer_was_lost_is_seen_and_continued_from(
    cluster: Cluster, lever: KubernetesMitigator, writer: Path, clock: FrozenClock
) -> None:
    await cluster.deploy(5)
    preparation = await scaled(cluster, lever, 10)
    async with (
        losing(cluster, writer) as lossy,
        KubernetesMitigator(lossy, name="main", clock=clock) as far,
    ):
        await cluster.settle()  # a conflict with a controller's write would be what is lost
        lost = await far.revert(preparation, "key", in_steps=True)
        assert (lost.state, await replicas(cluster)) == (MitigationState.UNKNOWN, 8)
        clock.advance(timedelta(seconds=30))
        seen = await lever.revert(preparation, "key", in_steps=True)
        assert (seen.state, seen.again_in) == (APPLIED, PAUSE - timedelta(seconds=30))
        clock.advance(PAUSE)
        await lever.revert(preparation, "key", in_steps=True)
        clock.advance(PAUSE)
        await cluster.settle()
        last = await far.revert(preparation, "key", in_steps=True)
        assert (last.state, await replicas(cluster)) == (MitigationState.UNKNOWN, 5)
        assert (await far.revert(preparation, "key", in_steps=True)).state is REVERTED


async def test_steps_taken_at_the_same_time_are_one_step(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(5)
    preparation = await scaled(cluster, lever, 10)
    outcomes = await asyncio.gather(
        *(lever.revert(preparation, "key", in_steps=True) for _ in range(4))
    )
    assert {outcome.state for outcome in outcomes} == {APPLIED}
    assert await replicas(cluster) == 8


@contextlib.asynccontextmanager
async def losing(cluster: Cluster, kubeconfig: Path) -> AsyncIterator[Path]:
    """Pass every request on to the API server, and lose the answers to patches."""
    reached = cluster.reached(kubeconfig)
    async with aiohttp.ClientSession(reached.server, connector=reached.connector()) as session:

        async def passed(request: web.Request) -> web.StreamResponse:
            headers = {k: request.headers[k] for k in ("Authorization", "Content-Type")}
            body, path = await request.read(), request.rel_url
            async with session.request(request.method, path, data=body, headers=headers) as answer:
                text = await answer.read()
            if request.method == "PATCH" and request.transport is not None:
                request.transport.close()
            return web.Response(body=text, status=answer.status, content_type="application/json")

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", passed)
        async with cluster.serving(app, reached.user) as lossy:
            yield lossy


# --- other changes, and other people's ---


async def test_a_change_of_another_kind_in_between_keeps_neither_from_being_put_back(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    before = await cluster.deploy(4)
    scale = await scaled(cluster, lever, 6)
    await cluster.settle()
    memory = await raised(cluster, lever, "memory")
    await cluster.settle()
    annotations = (await cluster.deployment())["metadata"]["annotations"]
    marks = [annotations[name] for name in (EFFECT, effect_of("scale"), effect_of("set_memory"))]
    assert marks == ["memory", "key", "memory"]
    for preparation, key in ((scale, "key"), (memory, "memory")):
        assert (await lever.observe(preparation, key)).state is APPLIED
        assert (await lever.revert(preparation, key)).state is REVERTED
    found = (await cluster.deployment())["spec"]
    assert (found["replicas"], found["template"]) == (4, before["spec"]["template"])


async def raised(cluster: Cluster, lever: KubernetesMitigator, key: str) -> Preparation:
    plan = cluster.plan("set_memory", container="app", limit=1 << 29, cap=1 << 30)
    preparation = await prepared(lever, plan)
    assert (await lever.apply(preparation, key)).state is APPLIED
    return preparation


def template_of(**container: Any) -> dict[str, Any]:
    return {"template": {"spec": {"containers": [{"name": "app", **container}]}}}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"paused": True}, "its rollout is paused"),
        (template_of(image="registry.invalid/app:fixed"), "has changed the pod template"),
        ({"template": {"metadata": {"annotations": {"a": "b"}}}}, "has changed the pod template"),
        (template_of(resources={"limits": {"memory": "600Mi"}}), "somebody else has changed it"),
    ],
    ids=["paused", "release", "restart", "figure"],
)
async def test_memory_is_not_put_back_under_somebody_who_works_on_the_deployment(
    cluster: Cluster, lever: KubernetesMitigator, spec: dict[str, Any], reason: str
) -> None:
    await cluster.deploy(2)
    preparation = await raised(cluster, lever, "key")
    await cluster.settle()
    await cluster.patch(APPS, "deployments", "orders", {"spec": spec})
    left = (await cluster.deployment())["spec"]
    outcome = await lever.revert(preparation, "key")
    assert (outcome.state, reason in outcome.detail) == (MitigationState.NOT_APPLIED, True), outcome
    assert (await cluster.deployment())["spec"] == left


async def test_a_rollout_of_ours_that_is_stuck_is_put_back(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    """Nobody plays the kubelet: the new pods never run, which is why it has to be put back."""
    before = await cluster.deploy(2)
    preparation = await raised(cluster, lever, "key")
    assert (await lever.revert(preparation, "key")).state is REVERTED
    assert (await cluster.deployment())["spec"]["template"] == before["spec"]["template"]


async def test_without_knowing_the_template_a_rollout_in_progress_is_left_alone(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    """As a preparation of an earlier version of ours is."""
    await cluster.deploy(2)
    preparation = await raised(cluster, lever, "key")
    known = {k: v for k, v in preparation.before.items() if k != "template_after"}
    older = preparation.model_copy(update={"before": known})
    outcome = await lever.revert(older, "key")
    assert (outcome.state, "in progress" in outcome.detail) == (MitigationState.NOT_APPLIED, True)
    await cluster.settle()
    assert (await lever.revert(older, "key")).state is REVERTED


@pytest.mark.parametrize("scaler", [False, True], ids=["deployment", "autoscaler"])
async def test_a_figure_that_somebody_set_again_to_the_same_is_theirs(
    cluster: Cluster, lever: KubernetesMitigator, *, scaler: bool
) -> None:
    await cluster.deploy(2)
    where, field = (APPS, "deployments", "orders"), "replicas"
    if scaler:
        await cluster.autoscaler(minimum=2, maximum=6)
        where, field = ("/apis/autoscaling/v1", "horizontalpodautoscalers", "orders"), "minReplicas"
    preparation = await scaled(cluster, lever, 4)
    for figure in (5, 4):
        await cluster.patch(*where, {"spec": {field: figure}})
    outcome = await lever.revert(preparation, "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert outcome.detail == "left as it is: kubectl has set it since"


async def test_a_figure_that_somebody_set_before_us_is_put_back(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await cluster.patch(APPS, "deployments", "orders", {"spec": {"replicas": 3}})
    await cluster.settle()
    preparation = await scaled(cluster, lever, 6)
    await cluster.patch(APPS, "deployments", "orders", {"spec": {"minReadySeconds": 1}})
    assert (await lever.revert(preparation, "key")).state is REVERTED
    assert await replicas(cluster) == 3


# --- quotas --------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def seeing(cluster: Cluster) -> AsyncIterator[KubernetesMitigator]:
    """A lever whose account may also list quotas."""
    kubeconfig = await cluster.account("seeing", *WRITE, QUOTAS)
    async with KubernetesMitigator(kubeconfig, name="main") as lever:
        yield lever


@pytest.mark.parametrize(
    ("hard", "figures"),
    [
        ({"pods": "3"}, "quota quota: 2 of 3 pods are used: room for 1 more pods, not for 2"),
        ({"requests.memory": "400Mi"}, "256Mi of 400Mi requests.memory are used: room for 1"),
        ({"memory": "400Mi"}, "of 400Mi memory are used: room for 1"),
        ({"limits.memory": "1000Mi"}, "512Mi of 1000Mi limits.memory are used: room for 1"),
        ({"pods": "9", "requests.cpu": "10"}, "these pods do not say their requests.cpu"),
    ],
)
async def test_what_a_quota_leaves_no_room_for_is_refused_with_the_figures(
    cluster: Cluster, seeing: KubernetesMitigator, hard: dict[str, str], figures: str
) -> None:
    await cluster.deploy(2)
    await cluster.quota(hard)
    with pytest.raises(BackendRefused, match=figures):
        await seeing.prepare(cluster.plan("scale", replicas=4, cap=9))


@pytest.mark.parametrize(
    ("hard", "figures"),
    [
        ({"limits.memory": "1200Mi"}, "512Mi of 1200Mi limits.memory are used: .* 768Mi more"),
        ({"pods": "2"}, "2 of 2 pods are used: replacing the pods in turn needs 1 more"),
        ({"requests.memory": "300Mi"}, "256Mi of 300Mi requests.memory are used: .* 128Mi more"),
        ({"pods": "9", "requests.cpu": "10"}, "these pods do not say their requests.cpu"),
    ],
)
async def test_a_quota_that_is_too_small_for_the_larger_pods_is_said_before_any_is_lost(
    cluster: Cluster, seeing: KubernetesMitigator, hard: dict[str, str], figures: str
) -> None:
    """Twice the limit: two pods that grow by 256 MiB each, and one old one beside them."""
    await cluster.deploy(2)
    await cluster.quota(hard)
    plan = cluster.plan("set_memory", container="app", limit=1 << 29, cap=1 << 30)
    with pytest.raises(BackendRefused, match=figures):
        await seeing.prepare(plan)


async def test_what_a_quota_leaves_room_for_gets_its_memory(
    cluster: Cluster, seeing: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await cluster.quota({"pods": "3", "limits.memory": "1280Mi", "requests.memory": "384Mi"})
    preparation = await raised(cluster, seeing, "key")
    assert preparation.before.get("quota") is None
    await cluster.settle()


async def test_what_a_quota_leaves_room_for_is_scaled(
    cluster: Cluster, seeing: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await cluster.quota({"pods": "4", "limits.memory": "1Gi", "requests.memory": "512Mi"})
    assert (await scaled(cluster, seeing, 4)).before.get("quota") is None
    await cluster.settle()


async def test_a_quota_holds_for_what_the_autoscaler_would_add(
    cluster: Cluster, seeing: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await cluster.autoscaler(minimum=1, maximum=6)
    await cluster.quota({"pods": "3"})
    with pytest.raises(BackendRefused, match="room for 1 more"):
        await seeing.prepare(cluster.plan("scale", replicas=4, cap=9))


async def test_without_the_right_to_list_quotas_it_goes_on_and_says_so(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await cluster.quota({"pods": "2"})
    preparation = await scaled(cluster, lever, 4)
    assert "may not list resourcequotas" in str(preparation.before["quota"])


async def test_a_quota_with_scopes_is_not_counted_and_that_is_said(
    cluster: Cluster, seeing: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await cluster.quota({"pods": "0"}, "scoped", "BestEffort")
    preparation = await scaled(cluster, seeing, 4)
    assert str(preparation.before["quota"]).endswith("have scopes: scoped")
