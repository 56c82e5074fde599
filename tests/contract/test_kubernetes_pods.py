"""What the pods use and write: a small server stands in for metrics-server and for kubelets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from remediator.backends.kubernetes.objects import amount, millicores, quantity
from remediator.backends.kubernetes.reader import KubernetesReader
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.finding import SenseState
from remediator.model.target import Target
from tests.kubernetes_fixtures import Cluster, served

SHOP = "/api/v1/namespaces/shop"
METRICS = "/apis/metrics.k8s.io/v1beta1/namespaces/shop/pods"
TARGET = Target(
    system="shop",
    service="orders",
    role="workload",
    kind="kubernetes",
    name="main",
    locator={"namespace": "shop", "deployment": "orders"},
)
RUNNING = {"running": {"startedAt": "2026-01-02T03:04:05Z"}}
ENDED = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
WAITING = {"waiting": {"reason": "CrashLoopBackOff"}}


def owned(name: str, uid: str, owner: str) -> dict[str, Any]:
    reference = {"kind": "any", "name": "any", "uid": owner, "controller": True}
    return {"name": name, "uid": uid, "ownerReferences": [reference]}


def pod_of(name: str, **containers: dict[str, Any]) -> dict[str, Any]:
    statuses = [{"name": key, **status} for key, status in containers.items()]
    status = {"phase": "Running", "containerStatuses": statuses}
    return {"metadata": owned(name, f"uid-{name}", "set"), "spec": {}, "status": status}


def measured(pod: str, *used: tuple[str, str]) -> dict[str, Any]:
    usage = [{"name": str(i), "usage": {"cpu": c, "memory": m}} for i, (c, m) in enumerate(used)]
    return {
        "metadata": {"name": pod},
        "timestamp": "2026-01-02T03:04:05Z",
        "window": "30s",
        "containers": usage,
    }


@dataclass
class Stand:
    """An API server that knows one deployment, with the pods and answers that a test gives it."""

    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[tuple[str, str, bool], bytes | int] = field(default_factory=dict)
    """Text or status by pod, container and whether of the previous run."""
    usage: list[dict[str, Any]] | int = 404
    asked: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    pause: float = 0

    def app(self) -> web.Application:
        apps = "/apis/apps/v1/namespaces/shop"
        selector = {"matchLabels": {"app": "orders"}}
        deployment = {"metadata": {"name": "orders", "uid": "dep"}, "spec": {"selector": selector}}
        sets = {"items": [{"metadata": owned("orders-1", "set", "dep")}]}
        app = web.Application()
        app.router.add_get(f"{apps}/deployments/orders", says(lambda: deployment))
        app.router.add_get(f"{apps}/replicasets", says(lambda: sets))
        app.router.add_get(f"{SHOP}/pods", says(lambda: {"items": self.pods}))
        app.router.add_get(METRICS, self._usage)
        app.router.add_get(f"{SHOP}/pods/{{pod}}/log", self._log)
        return app

    async def _usage(self, request: web.Request) -> web.Response:
        if isinstance(self.usage, int):
            return web.json_response({"message": "no"}, status=self.usage)
        return web.json_response({"items": self.usage})

    async def _log(self, request: web.Request) -> web.Response:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self.pause)
        self.in_flight -= 1
        query = dict(request.query)
        self.asked.append(query)
        key = request.match_info["pod"], query["container"], query.get("previous") == "true"
        answer = self.logs.get(key, 400)
        if isinstance(answer, int):
            return web.json_response({"message": "waiting to start"}, status=answer)
        return web.Response(body=answer, content_type="text/plain")


def says(what: Callable[[], Any]) -> Callable[[web.Request], Any]:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(what())

    return answer


@contextlib.asynccontextmanager
async def reading(stand: Stand, folder: Path) -> AsyncIterator[KubernetesReader]:
    async with (
        served(folder, stand.app(), {}) as kubeconfig,
        KubernetesReader(kubeconfig, name="main") as reader,
    ):
        yield reader


# --- logs ----------------------------------------------------------------------------------------


async def test_all_containers_of_all_pods_are_read_with_their_previous_runs(
    tmp_path: Path,
) -> None:
    """Traps T-21 and T-29: one pod is partial evidence, and a restart deletes what was written."""
    stand = Stand(
        pods=[
            pod_of("a", app={"state": RUNNING, "lastState": ENDED}, proxy={"state": RUNNING}),
            pod_of("b", app={"state": WAITING, "lastState": ENDED}),
        ],
        logs={
            ("a", "app", False): b"started\n",
            ("a", "app", True): b"one\ntwo\nkilled\n",
            ("a", "proxy", False): b"proxy\n",
            ("b", "app", True): b"gone\n",
        },
    )
    async with reading(stand, tmp_path) as reader:
        logs = await reader.logs(TARGET)
    found = {(log.pod, log.container, log.previous): log.lines for log in logs}
    assert found == {
        ("a", "app", False): ("started",),
        ("a", "app", True): ("one", "two", "killed"),
        ("a", "proxy", False): ("proxy",),
        ("b", "app", True): ("gone",),
    }
    assert {asked["tailLines"] for asked in stand.asked} == {"50"}


async def test_pods_of_others_are_left_out(tmp_path: Path) -> None:
    stranger = pod_of("stranger", app={"state": RUNNING})
    stranger["metadata"]["ownerReferences"][0]["uid"] = "another"
    async with reading(Stand(pods=[stranger]), tmp_path) as reader:
        assert await reader.logs(TARGET) == ()


async def test_a_container_without_a_log_is_left_out(tmp_path: Path) -> None:
    waiting = pod_of("a", app={"state": WAITING}, init={"state": RUNNING}, other={"state": RUNNING})
    stand = Stand(pods=[waiting], logs={("a", "init", False): b"", ("a", "other", False): 404})
    async with reading(stand, tmp_path) as reader:
        (log,) = await reader.logs(TARGET)
    assert (log.container, log.lines) == ("init", ())


async def test_lines_are_the_newest_ones_within_the_bounds(tmp_path: Path) -> None:
    long = b"".join(b"%06d %s\n" % (i, b"x" * 1000) for i in range(1000))
    logs: dict[tuple[str, str, bool], bytes | int] = {("a", "app", False): long}
    stand = Stand(pods=[pod_of("a", app={"state": RUNNING})], logs=logs)
    async with reading(stand, tmp_path) as reader:
        (log,) = await reader.logs(TARGET, 10_000)
        (few,) = await reader.logs(TARGET, 3)
    assert sum(len(line) + 1 for line in log.lines) <= 64 << 10
    assert log.lines[-1].startswith("000999 ")
    assert all(len(line) == 1007 for line in log.lines), "no line is cut"
    assert [line[:6] for line in few.lines] == ["000997", "000998", "000999"]
    assert [asked["tailLines"] for asked in stand.asked] == ["1000", "3"]


async def test_what_is_read_ends_also_where_the_server_does_not(tmp_path: Path) -> None:
    logs: dict[tuple[str, str, bool], bytes | int] = {("a", "app", False): b"x" * (3 << 20)}
    stand = Stand(pods=[pod_of("a", app={"state": RUNNING})], logs=logs)
    async with reading(stand, tmp_path) as reader:
        (log,) = await reader.logs(TARGET)
    assert [len(line) for line in log.lines] == [64 << 10]
    assert stand.asked[0]["limitBytes"] == str(1 << 20)


async def test_all_logs_together_are_bounded_and_few_are_read_at_once(tmp_path: Path) -> None:
    pods = [pod_of(str(i), app={"state": RUNNING}) for i in range(128)]
    text = b"".join(b"%099d\n" % i for i in range(1000))
    logs: dict[tuple[str, str, bool], bytes | int] = {
        (str(i), "app", False): text for i in range(128)
    }
    stand = Stand(pods=pods, logs=logs, pause=0.001)
    async with reading(stand, tmp_path) as reader:
        found = await reader.logs(TARGET, 1000)
    assert len(found) == 128
    assert sum(len(line) for log in found for line in log.lines) <= 4 << 20
    assert stand.most_in_flight <= 8


async def test_control_characters_are_removed(tmp_path: Path) -> None:
    text = b"\x1b[31mred\x1b[0m\ttab\r\n\x1b]0;title\x07\x00nul \xff \xe2\x80\xaeright\n"
    logs: dict[tuple[str, str, bool], bytes | int] = {("a", "app", False): text}
    stand = Stand(pods=[pod_of("a", app={"state": RUNNING})], logs=logs)
    async with reading(stand, tmp_path) as reader:
        (log,) = await reader.logs(TARGET)
    assert log.lines == ("red\ttab", "nul \ufffd right")


async def test_a_log_that_cannot_be_reached_is_told_and_the_others_are_kept(
    tmp_path: Path,
) -> None:
    pods = [pod_of("a", app={"state": RUNNING}), pod_of("b", app={"state": RUNNING})]
    stand = Stand(pods=pods, logs={("a", "app", False): 502, ("b", "app", False): b"here\n"})
    async with reading(stand, tmp_path) as reader:
        far, near = await reader.logs(TARGET)
        assert (far.lines, "waiting" in far.missing) == ((), True)
        assert (near.lines, near.missing) == (("here",), "")
        stand.logs = dict.fromkeys(stand.logs, 502)
        with pytest.raises(BackendUnavailable, match="no log can be read"):
            await reader.logs(TARGET)


async def test_without_the_right_to_read_logs_it_is_named(tmp_path: Path) -> None:
    logs: dict[tuple[str, str, bool], bytes | int] = {("a", "app", False): 403}
    stand = Stand(pods=[pod_of("a", app={"state": RUNNING})], logs=logs)
    async with reading(stand, tmp_path) as reader:
        with pytest.raises(BackendRefused, match="may not get pods/log in the namespace"):
            await reader.logs(TARGET)


# --- usage ---------------------------------------------------------------------------------------


async def test_usage_is_the_sum_of_the_containers_in_thousandths_and_bytes(tmp_path: Path) -> None:
    stand = Stand(
        pods=[pod_of("a"), pod_of("b")],
        usage=[
            measured("a", ("250m", "100Mi"), ("1500000n", "1Ki")),
            measured("stranger", ("9", "9Gi")),
        ],
    )
    async with reading(stand, tmp_path) as reader:
        (used,) = await reader.usage(TARGET)
    assert (used.pod, used.cpu, used.memory) == ("a", 252, (100 << 20) + 1024)
    assert used.at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


async def test_a_cluster_that_measures_nothing_is_refused_with_what_is_missing(
    tmp_path: Path, cluster: Cluster
) -> None:
    async with reading(Stand(pods=[pod_of("a")]), tmp_path) as reader:
        with pytest.raises(BackendRefused, match="measures nothing: metrics-server is not"):
            await reader.usage(TARGET)
    await cluster.deploy(1)
    async with KubernetesReader(cluster.kubeconfig, name="main") as reader:
        with pytest.raises(BackendRefused, match="measures nothing: metrics-server is not"):
            await reader.usage(cluster.target())


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        (503, "503"),
        ([], "none of its pods has been measured yet"),
        ([measured("a", ("lots", "1"))], "cannot be read"),
        ([{**measured("a", ("1", "1")), "timestamp": None}], "cannot be read"),
    ],
)
async def test_usage_that_is_not_there_is_never_none_used(
    tmp_path: Path, usage: list[dict[str, Any]] | int, reason: str
) -> None:
    async with reading(Stand(pods=[pod_of("a")], usage=usage), tmp_path) as reader:
        with pytest.raises(BackendUnavailable, match=reason):
            await reader.usage(TARGET)


async def test_wanting_rights_to_logs_usage_and_room_impair_nothing_and_can_be_listed(
    cluster: Cluster,
) -> None:
    kubeconfig = await cluster.account(
        "reader",
        {"apiGroups": ["apps"], "resources": ["*"], "verbs": ["get", "list"]},
        {"apiGroups": ["autoscaling"], "resources": ["*"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["list"]},
    )
    spaces = [cluster.namespace]
    async with KubernetesReader(kubeconfig, name="main", namespaces=spaces) as reader:
        assert (await reader.probe()).state is SenseState.OK
        assert await reader.lacking() == [
            "list nodes in all namespaces",
            "list pods in all namespaces",
            f"get pods/log in {cluster.namespace}",
            f"list pods.metrics.k8s.io in {cluster.namespace}",
            f"list resourcequotas in {cluster.namespace}",
        ]


# --- quantities ----------------------------------------------------------------------------------


@given(st.integers(0, 10**6))
def test_thousandths_of_cores_survive_any_way_of_writing(thousandths: int) -> None:
    assert millicores(f"{thousandths}m") == thousandths
    assert millicores(f"{thousandths * 1000}u") == thousandths
    assert millicores(f"{thousandths * 1_000_000}n") == thousandths
    assert millicores(str(thousandths / 1000)) == thousandths


@given(st.integers(0, 1 << 40), st.sampled_from(["", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_whole_quantities_are_exact(number: int, suffix: str) -> None:
    base, power = (
        (1024 if suffix.endswith("i") else 1000),
        " kMG".find(suffix[:1].replace("K", "k")),
    )
    times = base ** max(power, 0) if suffix else 1
    assert quantity(f"{number}{suffix}") == amount(f"{number}{suffix}") == number * times


@given(st.text())
def test_what_is_no_quantity_is_a_value_error_and_nothing_else(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert amount(text).is_finite()


def test_figures_of_cores_are_not_lost_to_rounding() -> None:
    assert (millicores("250m"), millicores("1"), millicores("0.1")) == (250, 1000, 100)
    assert (millicores(None), quantity(None), quantity("1e3")) == (None, None, 1000)
