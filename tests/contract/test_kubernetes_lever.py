"""KubernetesMitigator keeps the contract of ``ports.Mitigator`` on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from remediator.backends.kubernetes.mitigator import KubernetesMitigator
from remediator.model.errors import BackendRefused, BackendUnavailable, ConfigError
from remediator.model.finding import SenseState
from remediator.model.mitigation import Item, Mitigation, MitigationState
from remediator.model.workloads import EFFECT
from tests.kubernetes_fixtures import READ_ONLY, WRITE, Cluster, prepared, until, write_kubeconfig

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GI = 1 << 30
APPS = "/apis/apps/v1"


@pytest_asyncio.fixture
async def lever(cluster: Cluster) -> AsyncIterator[KubernetesMitigator]:
    async with lever_of(cluster, await cluster.account("writer", *WRITE)) as lever:
        yield lever


def lever_of(cluster: Cluster, kubeconfig: Path) -> KubernetesMitigator:
    return KubernetesMitigator(
        kubeconfig, name="main", namespaces=[cluster.namespace], clock=lambda: NOW
    )


def plan(cluster: Cluster, kind: str, *items: Item, **parameters: Any) -> Mitigation:
    return cluster.plan(kind, *items, **parameters)


def item_of(pod: dict[str, Any]) -> Item:
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    return Item(key=name, identity={"pod": name, "uid": uid})


def memory_of(deployment: dict[str, Any]) -> Any:
    return deployment["spec"]["template"]["spec"]["containers"][0]["resources"]


def effect_of(found: dict[str, Any]) -> str | None:
    return (found["metadata"].get("annotations") or {}).get(EFFECT)


async def test_scaling_sets_the_replicas_and_marks_them_as_ours(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    preparation = await prepared(lever, plan(cluster, "scale", replicas=4, cap=6))
    assert (await lever.observe(preparation, "key")).state is MitigationState.NOT_APPLIED
    assert (await lever.apply(preparation, "key")).state is MitigationState.APPLIED
    assert (await lever.observe(preparation, "key")).state is MitigationState.APPLIED
    found = await cluster.deployment()
    assert (found["spec"]["replicas"], effect_of(found)) == (4, "key")


async def test_prepare_changes_nothing(cluster: Cluster, lever: KubernetesMitigator) -> None:
    before = await cluster.deploy(2)
    await lever.prepare(plan(cluster, "scale", replicas=4, cap=6))
    await lever.prepare(plan(cluster, "restart_rollout"))
    await lever.prepare(plan(cluster, "set_memory", container="app", limit=GI // 2, cap=GI))
    pods = await cluster.pods()
    await lever.prepare(plan(cluster, "evict_pod", item_of(pods[0])))
    after = await cluster.deployment()
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert await cluster.pods() == pods


async def test_a_change_is_put_back_once(cluster: Cluster, lever: KubernetesMitigator) -> None:
    await cluster.deploy(2)
    preparation = await prepared(lever, plan(cluster, "scale", replicas=3, cap=6))
    await lever.apply(preparation, "key")
    assert (await lever.revert(preparation, "key")).state is MitigationState.REVERTED
    assert (await cluster.deployment())["spec"]["replicas"] == 2
    assert (await lever.observe(preparation, "key")).state is MitigationState.NOT_APPLIED
    await cluster.patch(APPS, "deployments", "orders", {"spec": {"replicas": 5}})
    assert (await lever.revert(preparation, "key")).state is MitigationState.REVERTED
    assert (await cluster.deployment())["spec"]["replicas"] == 5


async def test_what_a_human_changed_since_is_not_put_back(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    preparation = await prepared(lever, plan(cluster, "scale", replicas=3, cap=6))
    await lever.apply(preparation, "key")
    await cluster.patch(APPS, "deployments", "orders", {"spec": {"replicas": 5}})
    outcome = await lever.revert(preparation, "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert "somebody else" in outcome.detail
    assert outcome.final, "so that a human hears of it at once"
    assert (await cluster.deployment())["spec"]["replicas"] == 5


async def test_a_deployment_that_changed_since_is_left_alone(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    preparation = await prepared(lever, plan(cluster, "scale", replicas=4, cap=6))
    note = {"metadata": {"annotations": {"touched": "yes"}}}
    await cluster.patch(APPS, "deployments", "orders", note)
    outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert "modified" in outcome.detail
    assert (await cluster.deployment())["spec"]["replicas"] == 2


async def test_a_second_application_is_refused_by_the_server(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    preparation = await prepared(lever, plan(cluster, "scale", replicas=4, cap=6))
    assert (await lever.apply(preparation, "key")).state is MitigationState.APPLIED
    assert (await lever.apply(preparation, "late")).state is MitigationState.NOT_APPLIED
    assert effect_of(await cluster.deployment()) == "key"


async def test_scaling_goes_through_the_autoscaler(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await cluster.autoscaler(minimum=1, maximum=6)
    preparation = await prepared(lever, plan(cluster, "scale", replicas=4, cap=6))
    assert (await lever.apply(preparation, "key")).state is MitigationState.APPLIED
    assert await cluster.minimum() == 4
    found = await cluster.deployment()
    assert (found["spec"]["replicas"], effect_of(found)) == (2, None)
    assert (await lever.observe(preparation, "key")).state is MitigationState.APPLIED
    assert (await lever.revert(preparation, "key")).state is MitigationState.REVERTED
    assert await cluster.minimum() == 1


async def test_an_autoscaler_is_never_taken_beyond_its_maximum(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await cluster.autoscaler(minimum=1, maximum=3)
    with pytest.raises(BackendRefused, match="maximum of 3"):
        await lever.prepare(plan(cluster, "scale", replicas=4, cap=6))


async def test_an_autoscaler_that_belongs_to_another_controller_is_left_alone(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    deployment = await cluster.deploy(2)
    owner = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "orders",
        "uid": deployment["metadata"]["uid"],
        "controller": True,
    }
    await cluster.autoscaler(minimum=1, maximum=6, ownerReferences=[owner])
    with pytest.raises(BackendRefused, match="managed by Deployment/orders"):
        await lever.prepare(plan(cluster, "scale", replicas=4, cap=6))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"replicas": 4, "cap": 3}, "cap of 3"),
        ({"replicas": 5, "cap": 9}, "more than twice"),
        ({"replicas": 2, "cap": 9}, "already so"),
        ({"replicas": 1, "cap": 9}, "already so"),
        ({"replicas": 0, "cap": 9}, "parameters of scale"),
        ({"replicas": 3}, "parameters of scale"),
        ({"replicas": 3, "cap": 9, "force": True}, "parameters of scale"),
    ],
)
async def test_scaling_keeps_its_bounds(
    cluster: Cluster, lever: KubernetesMitigator, parameters: dict[str, Any], reason: str
) -> None:
    await cluster.deploy(2)
    with pytest.raises(BackendRefused, match=reason):
        await lever.prepare(plan(cluster, "scale", **parameters))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spec": {"paused": True}}, "paused"),
        ({"spec": {"replicas": 0}}, "scaled to 0"),
        ({"spec": {"template": {"metadata": {"labels": {"v": "2"}}}}}, "rollout is in progress"),
    ],
)
async def test_a_deployment_that_somebody_works_on_is_left_alone(
    cluster: Cluster, lever: KubernetesMitigator, change: dict[str, Any], reason: str
) -> None:
    await cluster.deploy(2)
    await cluster.patch(APPS, "deployments", "orders", change)
    for mitigation in (plan(cluster, "scale", replicas=3, cap=6), plan(cluster, "restart_rollout")):
        with pytest.raises(BackendRefused, match=reason):
            await lever.prepare(mitigation)


async def test_what_a_gitops_controller_owns_is_left_alone_unless_allowed(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    body = {"metadata": {"labels": {"tracked": "yes"}}}
    await cluster.patch(APPS, "deployments", "orders", body, "argocd-controller")
    with pytest.raises(BackendRefused, match="managed by argocd-controller"):
        await lever.prepare(plan(cluster, "scale", replicas=3, cap=6))
    await lever.prepare(plan(cluster, "scale", replicas=3, cap=6, allow_gitops=True))


async def test_a_restart_replaces_the_pods_one_after_the_other(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    old = {pod["metadata"]["uid"] for pod in await cluster.pods()}
    preparation = await prepared(lever, plan(cluster, "restart_rollout"))
    assert preparation.undo is None
    assert (await lever.apply(preparation, "key")).state is MitigationState.APPLIED
    assert (await lever.observe(preparation, "key")).state is MitigationState.APPLIED
    await cluster.settle()
    assert old.isdisjoint({pod["metadata"]["uid"] for pod in await cluster.pods()})
    with pytest.raises(BackendRefused, match="cannot be taken back"):
        await lever.revert(preparation, "key")


async def test_a_restart_needs_two_ready_pods(cluster: Cluster, lever: KubernetesMitigator) -> None:
    await cluster.deploy(1)
    with pytest.raises(BackendRefused, match="a restart needs 2"):
        await lever.prepare(plan(cluster, "restart_rollout"))


async def test_a_restart_that_would_stop_all_pods_at_once_is_refused(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2, strategy={"type": "Recreate"})
    with pytest.raises(BackendRefused, match="Recreate would stop all pods at once"):
        await lever.prepare(plan(cluster, "restart_rollout"))


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ({"type": "Recreate"}, "Recreate would stop all pods at once"),
        ({"rollingUpdate": {"maxUnavailable": 2}}, "maxUnavailable 2 would stop all"),
        ({"rollingUpdate": {"maxUnavailable": "100%"}}, "maxUnavailable 100% would stop all"),
    ],
)
async def test_memory_is_not_raised_where_that_would_stop_all_pods_at_once(
    cluster: Cluster, lever: KubernetesMitigator, strategy: dict[str, Any], reason: str
) -> None:
    await cluster.deploy(2, strategy=strategy)
    for mitigation in (
        plan(cluster, "set_memory", container="app", limit=GI // 2, cap=GI),
        plan(cluster, "restart_rollout"),
    ):
        with pytest.raises(BackendRefused, match=reason):
            await lever.prepare(mitigation)


async def test_what_was_done_is_said_in_words(cluster: Cluster, lever: KubernetesMitigator) -> None:
    await cluster.deploy(2)
    scale = await prepared(lever, plan(cluster, "scale", replicas=4, cap=6))
    assert (await lever.apply(scale, "scaled")).detail == "replicas 2 -> 4"
    assert (await lever.revert(scale, "scaled")).detail == "put back: replicas 4 -> 2"
    await cluster.settle()
    memory = await prepared(
        lever, plan(cluster, "set_memory", container="app", limit=GI // 2, cap=GI)
    )
    assert (await lever.apply(memory, "raised")).detail == "app: memory limit 256Mi -> 512Mi"
    undone = await lever.revert(memory, "raised")
    assert undone.detail == "put back: app: memory limit 512Mi -> 256Mi"
    await cluster.settle()
    evict = await prepared(lever, plan(cluster, "evict_pod", item_of((await cluster.pods())[0])))
    assert (await lever.apply(evict, "evicted")).detail.endswith(" evicted")
    await cluster.settle()
    restart = await prepared(lever, plan(cluster, "restart_rollout"))
    assert (await lever.apply(restart, "restarted")).detail == "restarted in turn"
    assert (await lever.observe(restart, "restarted")).detail == "restarted in turn"
    await cluster.settle()
    await cluster.autoscaler(minimum=1, maximum=6)
    minimum = await prepared(lever, plan(cluster, "scale", replicas=4, cap=6))
    assert (await lever.apply(minimum, "key")).detail == "autoscaler orders: minimum 1 -> 4"


async def test_a_request_that_equals_the_limit_is_raised_with_it_and_that_is_said(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(1)
    resources = {"limits": {"memory": "256Mi"}, "requests": {"memory": "256Mi"}}
    container = {"name": "app", "resources": resources}
    template = {"template": {"spec": {"containers": [container]}}}
    await cluster.patch(APPS, "deployments", "orders", {"spec": template})
    await cluster.settle()
    raised = await prepared(
        lever, plan(cluster, "set_memory", container="app", limit=GI // 2, cap=GI)
    )
    said = "app: memory limit 256Mi -> 512Mi, request 256Mi -> 512Mi"
    assert (await lever.apply(raised, "key")).detail == said
    assert memory_of(await cluster.deployment())["requests"] == {"memory": "512Mi"}


async def test_one_pod_is_evicted_and_replaced(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    victim, other = await cluster.pods()
    preparation = await prepared(lever, plan(cluster, "evict_pod", item_of(victim)))
    assert (await lever.observe(preparation, "key")).state is MitigationState.NOT_APPLIED
    assert (await lever.apply(preparation, "key")).state is MitigationState.APPLIED
    assert (await lever.observe(preparation, "key")).state is MitigationState.APPLIED

    async def replaced() -> bool:
        uids = {pod["metadata"]["uid"] for pod in await cluster.pods()}
        kept = other["metadata"]["uid"] in uids
        return len(uids) == 2 and kept and victim["metadata"]["uid"] not in uids

    await until(replaced, "the victim is replaced and the other pod lives")


async def test_a_disruption_budget_says_no_before_anything_is_reserved(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    spec = {"minAvailable": 2, "selector": {"matchLabels": {"app": "orders"}}}
    versions = (await cluster.admin.get("/apis/policy"))["versions"]
    api = "/apis/policy/" + ("v1" if {"v1"} & {v["version"] for v in versions} else "v1beta1")
    await cluster.create(api, "poddisruptionbudgets", {"metadata": {"name": "b"}, "spec": spec})

    async def counted() -> bool:
        found = await cluster.admin.get(cluster.path(api, "poddisruptionbudgets", "b"))
        return bool(found.get("status", {}).get("expectedPods") == 2)

    await until(counted, "the budget is counted")
    pods = await cluster.pods()
    with pytest.raises(BackendRefused, match="disruption budget"):
        await lever.prepare(plan(cluster, "evict_pod", item_of(pods[0])))
    assert await cluster.pods() == pods


async def test_a_pod_that_is_another_by_now_lives(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    pod = (await cluster.pods())[0]
    preparation = await prepared(lever, plan(cluster, "evict_pod", item_of(pod)))
    forged = preparation.model_copy(update={"before": {**preparation.before, "uid": "another"}})
    assert (await lever.apply(forged, "key")).state is MitigationState.NOT_APPLIED
    assert pod["metadata"]["uid"] in {p["metadata"]["uid"] for p in await cluster.pods()}
    wrong = Item(key="pod", identity={"pod": pod["metadata"]["name"], "uid": "another"})
    with pytest.raises(BackendRefused, match="already so"):
        await lever.prepare(plan(cluster, "evict_pod", wrong))


async def test_a_pod_of_another_deployment_is_never_evicted(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    await cluster.deploy(2, name="cart")
    stranger = (await cluster.pods("cart"))[0]
    with pytest.raises(BackendRefused, match="gone"):
        await lever.prepare(plan(cluster, "evict_pod", item_of(stranger)))


async def test_the_next_pod_waits_until_the_one_that_replaces_the_last_is_ready(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    """Traps T-22 and T-31: all at once by label, and taking the old pod for the new one."""
    await cluster.deploy(3)
    first, second, _ = await cluster.pods()
    preparation = await prepared(lever, plan(cluster, "evict_pod", item_of(first)))
    assert (await lever.apply(preparation, "key")).state is MitigationState.APPLIED
    with pytest.raises(BackendRefused, match=r"in progress|1 of 2 other pods are ready, wait"):
        await lever.prepare(plan(cluster, "evict_pod", item_of(second)))

    async def goes_on() -> bool:
        await cluster.settle()
        try:
            await lever.prepare(plan(cluster, "evict_pod", item_of(second)))
        except BackendRefused:  # the controllers have not seen all of it yet
            return False
        return True

    await until(goes_on, "the next pod may go")


async def test_no_pod_is_evicted_while_another_one_is_not_ready(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(3)
    victim, other, _ = await cluster.pods()
    unready = {"conditions": [{"type": "Ready", "status": "False"}]}
    await cluster.report(other["metadata"]["name"], unready)
    with pytest.raises(BackendRefused, match="1 of 2 other pods are ready"):
        await lever.prepare(plan(cluster, "evict_pod", item_of(victim)))
    await lever.prepare(plan(cluster, "evict_pod", item_of(other)))


async def test_the_last_ready_pod_is_never_evicted(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(1)
    (pod,) = await cluster.pods()
    with pytest.raises(BackendRefused, match="0 other pods are ready"):
        await lever.prepare(plan(cluster, "evict_pod", item_of(pod)))


async def test_memory_is_raised_and_put_back_and_nothing_else_changes(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    """Traps T-25 and T-26: one rollout a change, and the rest of the container list stays."""
    before = await cluster.deploy(2)
    mitigation = plan(cluster, "set_memory", container="app", limit=400_000_000, cap=GI)
    preparation = await prepared(lever, mitigation)
    assert (await lever.apply(preparation, "key")).state is MitigationState.APPLIED
    found = await cluster.deployment()
    assert memory_of(found) == {"limits": {"memory": "390625Ki"}, "requests": {"memory": "128Mi"}}
    assert (await lever.revert(preparation, "key")).state is MitigationState.REVERTED
    found = await cluster.deployment()
    assert found["spec"]["template"] == before["spec"]["template"]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"container": "app", "limit": GI // 2, "cap": GI // 4}, "beyond the cap of 256Mi"),
        ({"container": "app", "limit": GI, "cap": GI}, "more than twice"),
        ({"container": "app", "limit": GI // 4, "cap": GI}, "already so"),
        ({"container": "db", "limit": GI // 2, "cap": GI}, "no such container"),
    ],
)
async def test_memory_keeps_its_bounds(
    cluster: Cluster, lever: KubernetesMitigator, parameters: dict[str, Any], reason: str
) -> None:
    await cluster.deploy(2)
    with pytest.raises(BackendRefused, match=reason):
        await lever.prepare(plan(cluster, "set_memory", **parameters))


async def test_missing_rights_are_named_before_anything_is_done(cluster: Cluster) -> None:
    await cluster.deploy(2)
    async with lever_of(cluster, await cluster.account("viewer", *READ_ONLY)) as viewer:
        sense = await viewer.probe()
        assert sense.state is SenseState.IMPAIRED
        assert f"patch deployments.apps in {cluster.namespace}" in sense.reason
        assert "create pods/eviction" in sense.reason
        assert "get pods" not in sense.reason
        with pytest.raises(BackendRefused, match='cannot patch resource "deployments"'):
            await viewer.prepare(plan(cluster, "scale", replicas=3, cap=6))


async def test_an_account_with_exactly_the_rights_is_enough(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    assert (await lever.probe()).state is SenseState.OK


async def test_an_account_without_any_right_is_refused(cluster: Cluster) -> None:
    await cluster.deploy(2)
    async with lever_of(cluster, await cluster.account("nobody")) as nobody:
        with pytest.raises(BackendRefused, match="forbidden"):
            await nobody.prepare(plan(cluster, "scale", replicas=3, cap=6))


async def test_a_refused_token_is_an_impaired_sense_and_is_never_shown(cluster: Cluster) -> None:
    kubeconfig = cluster.as_user("wrong", {"token": "hush-hush"})
    async with lever_of(cluster, kubeconfig) as wrong:
        sense = await wrong.probe()
        assert sense.state is SenseState.IMPAIRED
        assert "credentials are not accepted" in sense.reason
        assert "hush" not in f"{sense} {wrong!r}"


async def test_a_rotated_token_is_read_again(cluster: Cluster) -> None:
    good = (await cluster.account("rotated", *WRITE)).read_text()
    kubeconfig = cluster.as_user("expired", {"token": "old"})
    async with lever_of(cluster, kubeconfig) as lever:
        assert (await lever.probe()).state is SenseState.IMPAIRED
        kubeconfig.write_text(good)
        assert (await lever.probe()).state is SenseState.OK


async def test_a_deployment_that_is_not_there_is_refused(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    with pytest.raises(BackendRefused, match="not found"):
        await lever.prepare(plan(cluster, "scale", replicas=3, cap=6))


async def test_a_server_that_is_down_means_not_applied_and_unknown(
    cluster: Cluster, lever: KubernetesMitigator
) -> None:
    await cluster.deploy(2)
    preparation = await prepared(lever, plan(cluster, "scale", replicas=3, cap=6))
    down = cluster.as_user("down", {}, server="https://127.0.0.1:1")
    async with lever_of(cluster, down) as lost:
        assert (await lost.probe()).state is SenseState.IMPAIRED
        assert (await lost.apply(preparation, "key")).state is MitigationState.NOT_APPLIED
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await lost.observe(preparation, "key")
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await lost.prepare(preparation.mitigation)


@contextlib.contextmanager
def open_writers() -> Iterator[list[asyncio.StreamWriter]]:
    writers: list[asyncio.StreamWriter] = []
    try:
        yield writers
    finally:
        for writer in writers:
            writer.close()


async def test_a_lost_answer_is_unknown(cluster: Cluster, lever: KubernetesMitigator) -> None:
    await cluster.deploy(2)
    preparation = await prepared(lever, plan(cluster, "scale", replicas=3, cap=6))
    with open_writers() as writers:

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await reader.readuntil(b"\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        async with server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            path = write_kubeconfig(cluster.folder / "lost", {"server": address}, {})
            async with lever_of(cluster, path) as lost:
                outcome = await lost.apply(preparation, "key")
    assert outcome.state is MitigationState.UNKNOWN
    assert "answer lost" in outcome.detail


@pytest.mark.parametrize("content", [None, "users: [secret-words", "secret-words", "kind: Config"])
async def test_a_kubeconfig_that_cannot_be_used_stops_the_start_and_nothing_is_printed(
    tmp_path: Path,
    content: str | None,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="cannot connect") as caught:
        async with KubernetesMitigator(path, name="main"):
            pass
    assert "secret-words" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    if content is None:
        assert "there is no such file" in str(caught.value)


async def test_outside_of_a_cluster_a_kubeconfig_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="set kubeconfig"):
        async with KubernetesMitigator(None, name="main"):
            pass
