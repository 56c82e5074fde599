"""OOM keeps the evidence, raises a limit once, recycles what is full, and proves what it does."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playbooks.oom import OOM, OOMParameters
from remediator.backends.kubernetes.mitigator import KubernetesMitigator
from remediator.backends.kubernetes.objects import quantity, read_pod, read_workload, written
from remediator.backends.kubernetes.reader import KubernetesReader
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.finding import FindingStatus, Sense, SenseState
from remediator.model.mitigation import Mitigation, MitigationState, Proposal
from remediator.model.ports import Port
from remediator.model.readings import Point
from remediator.model.target import Risk, Target
from remediator.model.verdict import Assessment
from remediator.model.workloads import (
    EFFECT,
    Autoscaler,
    ContainerResources,
    ContainerState,
    Pod,
    PodLog,
    PodUsage,
    Revision,
    Room,
    Termination,
    Workload,
    WorkloadEvent,
    effect_of,
)
from remediator.playbook.base import Context
from remediator.playbook.checks.logs import KEPT, LOOKED_AT, LogEvidence
from remediator.playbook.loader import load_playbooks
from remediator.testing import context_for, firing_alert
from tests.kubernetes_fixtures import Cluster, until

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MI = 1 << 20
SAMPLES = Path(__file__).parent.parent / "samples"
TARGET = Target(
    system="shop",
    service="orders",
    role="workload",
    kind="kubernetes",
    name="main",
    locator={"namespace": "shop", "deployment": "orders"},
)


def context_of(
    *tried: Mitigation, now: datetime = NOW, target: Target = TARGET, **ports: Port
) -> Context:
    since = now - timedelta(minutes=1)
    context = context_for(
        playbook_of(), targets={"workload": target}, ports=ports, now=now, since=since
    )
    return replace(context, tried=tried)


def playbook_of(**parameters: Any) -> OOM:
    given: dict[str, Any] = {"memory_max": "1Gi", "memory_query": "used"}
    return OOM(OOMParameters.model_validate(given | parameters))


def workload_of(limit: int | None = 256 * MI, **state: Any) -> Workload:
    container = ContainerResources(name="app", init=False, memory_request=None, memory_limit=limit)
    given: dict[str, Any] = {
        "namespace": "shop",
        "name": "orders",
        "uid": "u",
        "resource_version": "1",
        "replicas": 2,
        "ready": 2,
        "updated": 2,
        "paused": False,
        "rollout": None,
        "gitops": None,
        "annotations": {},
        "containers": (container,),
    }
    return Workload.model_validate(given | state)


def pod_of(
    name: str,
    killed: timedelta | None = None,
    limit: int | None = 256 * MI,
    reason: str = "OOMKilled",
    *,
    terminating: bool = False,
    ready: bool = True,
    age: timedelta = timedelta(hours=5),
) -> Pod:
    ended = (
        None
        if killed is None
        else Termination(reason=reason, exit_code=137, finished_at=NOW - killed)
    )
    container = ContainerState(
        name="app",
        init=False,
        state="running",
        reason="",
        ready=ready,
        restarts=0 if ended is None else 1,
        ended=ended,
        memory_request=None,
        memory_limit=limit,
    )
    return Pod(
        name=name,
        uid=f"uid-{name}",
        phase="Running",
        ready=ready,
        terminating=terminating,
        created_at=NOW - age,
        node="node-1",
        containers=(container,),
    )


def wrote(pod: str, missing: str = "") -> PodLog:
    """The log of one container, or why it is missing."""
    lines = () if missing else ("it works",)
    return PodLog(pod=pod, container="app", previous=False, lines=lines, missing=missing)


@dataclass
class Given:
    """A deployment that is given, behind the port of a cluster."""

    seen: tuple[Pod, ...]
    found: Workload = field(default_factory=workload_of)
    broken: bool = False
    measured: dict[str, float] | None = None
    """Bytes by pod, as the cluster measures them; None where it measures nothing."""
    written: tuple[PodLog, ...] | None = ()
    """None where logs cannot be read; nothing given: every container wrote a line."""
    eventful: bool = True
    """Whether events can be read."""
    place: Room | None = field(default_factory=lambda: Room(quota=None, nodes=3))
    """None where nodes cannot be read."""

    async def probe(self) -> Sense:
        return Sense(name="workload", state=SenseState.OK)

    async def workload(self, target: Target) -> Workload:
        return self.found

    async def pods(self, target: Target) -> tuple[Pod, ...]:
        if self.broken:
            raise BackendUnavailable("main: no answer")
        return self.seen

    async def usage(self, target: Target) -> tuple[PodUsage, ...]:
        if self.measured is None:
            raise BackendRefused("main: nothing is measured")
        return tuple(
            PodUsage(pod=pod, at=NOW - timedelta(seconds=30), cpu=10, memory=int(used))
            for pod, used in self.measured.items()
        )

    async def logs(self, target: Target, lines: int = 50) -> tuple[PodLog, ...]:
        if self.written is None:
            raise BackendRefused("main: no right to get pods/log")
        return self.written or tuple(wrote(pod.name) for pod in self.seen)

    async def room(self, target: Target) -> Room:
        if self.place is None:
            raise BackendRefused("main: no right to list nodes")
        return self.place

    async def autoscaler(self, target: Target) -> Autoscaler | None:
        return None

    async def events(self, target: Target) -> tuple[WorkloadEvent, ...]:
        if not self.eventful:
            raise BackendRefused("main: no right to list events")
        return ()

    async def revisions(self, target: Target) -> tuple[Revision, ...]:
        return ()


@dataclass
class Samples:
    """A Prometheus with one given series a pod: bytes, a minute apart, the newest last."""

    series: dict[str, list[float]]

    async def probe(self) -> Sense:
        return Sense(name="prometheus", state=SenseState.OK)

    async def instant(self, query: str) -> tuple[Point, ...]:
        raise NotImplementedError

    async def scalar(self, query: str) -> float:
        raise NotImplementedError

    async def range(
        self, query: str, *, start: datetime, end: datetime, step: timedelta
    ) -> tuple[Point, ...]:
        points = [
            Point(labels={"pod": pod}, at=end - step * back, value=value)
            for pod, values in self.series.items()
            for back, value in enumerate(reversed(values))
        ]
        if not points:
            raise BackendUnavailable("the query returns nothing")
        return tuple(points)


def flat(share: float, limit: int = 256 * MI) -> list[float]:
    return [share * limit] * 30


GROWING = [(100 + 4.0 * minute) * MI for minute in range(30)]


async def proposed(
    workloads: Given, series: dict[str, list[float]], *tried: Mitigation, **parameters: Any
) -> Proposal:
    playbook = playbook_of(**parameters)
    context = context_of(*tried, workload=workloads, prometheus=Samples(series))
    return playbook.propose(context, await playbook.diagnose(context))


RECENT = timedelta(minutes=5)


async def test_a_container_that_was_killed_gets_twice_the_memory() -> None:
    pods = Given((pod_of("a", killed=RECENT), pod_of("b")))
    (plan,) = (await proposed(pods, {"a": flat(0.5), "b": flat(0.5)})).mitigations
    assert plan.kind == "set_memory"
    assert plan.parameters["limit"] == 512 * MI
    assert plan.reversible


async def test_the_cap_is_kept_and_at_the_cap_a_human_is_asked() -> None:
    pods = Given((pod_of("a", killed=RECENT),))
    (plan,) = (await proposed(pods, {}, memory_max="300Mi")).mitigations
    assert plan.parameters["limit"] == 300 * MI
    proposal = await proposed(pods, {}, memory_max="256Mi")
    assert proposal.mitigations == ()
    assert "cap of 256Mi already" in proposal.reason


async def test_a_new_limit_is_a_figure_that_can_be_read_in_a_manifest() -> None:
    limit = 500 * 1000 * 1000
    pods = Given((pod_of("a", killed=RECENT, limit=limit),), found=workload_of(limit=limit))
    (plan,) = (await proposed(pods, {})).mitigations
    assert plan.parameters["limit"] == 953 * MI
    assert "raised to 953Mi" in plan.reason


async def test_without_a_cap_no_limit_is_raised() -> None:
    proposal = await proposed(Given((pod_of("a", killed=RECENT),)), {}, memory_max=None)
    assert proposal.mitigations == ()
    assert "memory_max is not set" in proposal.reason


def room_of(nodes: int, spare: int | None, quota: int | None = None) -> Room:
    return Room(quota=quota, nodes=nodes, spare_memory=spare)


@pytest.mark.parametrize(
    ("request_", "room", "said"),
    [
        (None, room_of(0, None), "the nodes have no room for one more pod"),
        (128 * MI, room_of(0, None), "the nodes have no room for one more pod"),
        (None, room_of(5, 900 * MI, quota=0), "the quotas have no room for one more pod"),
        (None, room_of(2, 255 * MI), "no node has room for one pod of the new size: 256Mi more"),
        (256 * MI, room_of(2, 0), "no node has room for one pod of the new size"),
    ],
)
async def test_memory_is_not_raised_where_a_larger_pod_would_find_no_place(
    request_: int | None, room: Room, said: str
) -> None:
    pods = Given((pod_of("a", killed=RECENT),), found=asking_for(request_), place=room)
    proposal = await proposed(pods, {})
    assert proposal.mitigations == ()
    assert f"it is not raised: {said}" in proposal.reason


@pytest.mark.parametrize(
    ("request_", "room"),
    [(None, room_of(1, 256 * MI)), (128 * MI, room_of(1, 0)), (None, room_of(1, None, quota=1))],
)
async def test_memory_is_raised_where_one_larger_pod_has_a_place(
    request_: int | None, room: Room
) -> None:
    pods = Given((pod_of("a", killed=RECENT),), found=asking_for(request_), place=room)
    assert (await proposed(pods, {})).mitigations


async def test_where_the_room_is_unknown_memory_is_raised_and_that_is_said() -> None:
    (plan,) = (await proposed(Given((pod_of("a", killed=RECENT),), place=None), {})).mitigations
    assert "unknown room: main: no right to list nodes" in plan.reason


@pytest.mark.parametrize(("request_", "said"), [(256 * MI, True), (128 * MI, False)])
async def test_it_is_said_what_is_raised_and_that_the_next_release_undoes_it(
    request_: int, *, said: bool
) -> None:
    pods = Given((pod_of("a", killed=RECENT),), found=asking_for(request_))
    (plan,) = (await proposed(pods, {})).mitigations
    assert ("so is the request, which equals it" in plan.reason) == said
    assert "put that into the manifest or chart, or the next release undoes it" in plan.reason


def asking_for(memory: int | None) -> Workload:
    found = workload_of()
    (container,) = found.containers
    asking = container.model_copy(update={"memory_request": memory})
    return found.model_copy(update={"containers": (asking,)})


async def test_a_kill_of_long_ago_or_of_another_kind_raises_nothing() -> None:
    old = pod_of("a", killed=timedelta(hours=2))
    crashed = pod_of("b", killed=RECENT, reason="Error")
    proposal = await proposed(Given((old, crashed)), {"a": flat(0.2), "b": flat(0.2)})
    assert proposal.mitigations == ()


async def test_a_leak_is_given_memory_once_and_then_a_human() -> None:
    pods = Given((pod_of("a", killed=RECENT), pod_of("b")))
    series = {"b": GROWING}
    first = await proposed(pods, series)
    assert "only buys time" in first.reason
    assert [plan.kind for plan in first.mitigations] == ["set_memory"]
    second = await proposed(pods, series, first.mitigations[0])
    assert second.mitigations == ()
    assert "find the leak" in second.reason


async def test_a_leak_that_an_earlier_incident_gave_memory_to_gets_no_more() -> None:
    others = {EFFECT: "inc-1/HighLatency/0/scale/kubernetes/main"}  # a later one, of another kind
    marks = {effect_of("set_memory"): "inc-0/OOM/0/set_memory/kubernetes/main", **others}
    marked = workload_of(annotations=marks)
    pods = Given((pod_of("a", killed=RECENT), pod_of("b")), found=marked)
    assert (await proposed(pods, {"b": GROWING})).mitigations == ()
    assert (await proposed(pods, {"b": flat(0.3)})).mitigations


async def test_the_limit_of_a_rollout_that_was_meant_to_cure_it_is_waited_for() -> None:
    old = pod_of("a", killed=RECENT).model_copy(update={"revision": "old"})
    new = pod_of("b", limit=512 * MI).model_copy(update={"revision": "new"})
    proposal = await proposed(Given((old, new), found=workload_of(limit=512 * MI)), {})
    assert (proposal.mitigations, proposal.wait) == ((), timedelta(seconds=30))
    assert "new pods are waited for" in proposal.reason


async def test_without_a_limit_the_node_is_short_and_nothing_is_raised() -> None:
    pods = Given((pod_of("a", killed=RECENT, limit=None),), found=workload_of(limit=None))
    proposal = await proposed(pods, {})
    assert proposal.mitigations == ()
    assert "without a limit" in proposal.reason


FULL = {"a": flat(0.9), "b": flat(0.95), "c": flat(0.3)}


async def test_the_fullest_pod_alone_is_evicted() -> None:
    pods = Given((pod_of("a"), pod_of("b"), pod_of("c")))
    (plan,) = (await proposed(pods, FULL)).mitigations
    assert plan.kind == "evict_pod"
    assert [item.identity for item in plan.items] == [{"pod": "b", "uid": "uid-b"}]


async def test_an_incident_recycles_a_quarter_of_the_pods_and_one_at_least() -> None:
    few = Given((pod_of("a"), pod_of("b"), pod_of("c")))
    (first,) = (await proposed(few, FULL)).mitigations
    after = await proposed(few, FULL, first)
    assert after.mitigations == ()
    assert "1 of 3 pods were recycled: no more" in after.reason
    many = Given(tuple(pod_of(name) for name in "abcdefgh"))
    (second,) = (await proposed(many, FULL, first)).mitigations
    assert [item.identity["pod"] for item in second.items] == ["a"]


async def test_no_pod_is_evicted_while_another_one_is_not_ready() -> None:
    waiting = await proposed(Given((pod_of("a"), pod_of("b"), pod_of("c", ready=False))), FULL)
    assert (waiting.mitigations, waiting.wait) == ((), timedelta(seconds=30))
    assert "when these are ready: c" in waiting.reason
    itself = await proposed(Given((pod_of("a"), pod_of("b", ready=False), pod_of("c"))), FULL)
    assert [plan.kind for plan in itself.mitigations] == ["evict_pod"]


async def test_what_a_node_evicted_is_no_pod_to_wait_for() -> None:
    gone = pod_of("c", ready=False).model_copy(update={"phase": "Failed"})
    proposal = await proposed(Given((pod_of("a"), pod_of("b"), gone)), FULL)
    assert [plan.kind for plan in proposal.mitigations] == ["evict_pod"]


async def test_the_only_pod_is_left_to_a_human() -> None:
    only = await proposed(Given((pod_of("a"),)), {"a": flat(0.9)})
    assert (only.mitigations, only.wait) == ((), None)
    assert "only pod" in only.reason
    going = (pod_of("a"), pod_of("b", terminating=True))
    assert (await proposed(Given(going), {"a": flat(0.9)})).mitigations == ()


async def test_all_pods_are_restarted_in_turn_where_that_is_wished() -> None:
    pods = Given((pod_of("a"), pod_of("b")))
    series = {"a": flat(0.9)}
    (plan,) = (await proposed(pods, series, recycle="restart")).mitigations
    assert plan.kind == "restart_rollout"
    again = await proposed(pods, series, plan, recycle="restart")
    assert (again.mitigations, again.wait) == ((), None)
    one = await proposed(Given((pod_of("a"),)), series, recycle="restart")
    assert (one.mitigations, one.wait) == ((), None)
    unready = Given((pod_of("a"), pod_of("b", ready=False)))
    assert (await proposed(unready, series, recycle="restart")).wait is not None


LEAKING = [use * 1.05 for use in GROWING]
"""Above the limit of 85 %, and growing."""


async def test_where_most_pods_leak_all_are_restarted_in_turn() -> None:
    pods = Given((pod_of("a"), pod_of("b"), pod_of("c")))
    most = await proposed(pods, {"a": LEAKING, "b": LEAKING, "c": flat(0.3)})
    assert [plan.kind for plan in most.mitigations] == ["restart_rollout"]
    assert "2 pods grow steadily" in most.reason
    one = await proposed(pods, {"a": LEAKING, "b": flat(0.3), "c": flat(0.3)})
    assert [plan.kind for plan in one.mitigations] == ["evict_pod"]
    alone = Given((pod_of("a"), pod_of("b", ready=False)))
    assert (await proposed(alone, {"a": LEAKING, "b": LEAKING})).mitigations == ()


async def test_pods_that_have_just_been_restarted_are_not_restarted_again() -> None:
    young = timedelta(minutes=20)
    pods = Given((pod_of("a", age=young), pod_of("b", age=young)))
    proposal = await proposed(pods, {"a": LEAKING, "b": LEAKING})
    assert (proposal.mitigations, proposal.wait) == ((), None)
    assert "would not last" in proposal.reason


@pytest.mark.parametrize("series", [{}, {"another": flat(0.99)}, {"a": flat(0.5)}])
async def test_missing_or_low_usage_recycles_nothing(series: dict[str, list[float]]) -> None:
    assert (await proposed(Given((pod_of("a"), pod_of("b"))), series)).mitigations == ()


async def test_growth_before_a_restart_is_no_leak() -> None:
    restarted = pod_of("a", killed=RECENT, reason="Error")
    pods = Given((restarted, pod_of("b")))
    fresh = await proposed(pods, {"a": [*GROWING[:-5], *flat(0.9)[:5]]})
    assert "grow steadily" not in fresh.reason
    leaking = await proposed(Given((pod_of("a"), pod_of("b"))), {"a": LEAKING})
    assert "1 pods grow steadily" in leaking.reason


# --- without a query ------------------------------------------------------------------------------


async def test_without_a_query_the_use_that_the_cluster_measures_decides() -> None:
    measured = {"a": 0.9 * 256 * MI, "b": 0.2 * 256 * MI}
    pods = Given((pod_of("a"), pod_of("b")), measured=measured)
    (plan,) = (await proposed(pods, {}, memory_query=None)).mitigations
    assert [item.identity["pod"] for item in plan.items] == ["a"]
    findings = await playbook_of(memory_query=None).diagnose(context_of(workload=pods))
    assert "growth is not known" in findings["memory"].summary


async def test_without_a_query_and_a_measure_nothing_is_recycled() -> None:
    proposal = await proposed(Given((pod_of("a"), pod_of("b"))), {}, memory_query=None)
    assert proposal.mitigations == ()
    assert "memory_query is not set" in proposal.reason
    assert "nothing is measured" in proposal.reason


async def test_a_leak_that_cannot_be_seen_is_given_memory_once_an_incident() -> None:
    pods = Given((pod_of("a", killed=RECENT), pod_of("b")), measured={})
    first = await proposed(pods, {}, memory_query=None)
    assert "a leak cannot be seen" in first.reason
    (plan,) = first.mitigations
    again = await proposed(pods, {}, plan, memory_query=None)
    assert again.mitigations == ()
    assert "that did not help" in again.reason


# --- evidence -------------------------------------------------------------------------------------


def log_of(pod: str, *lines: str, previous: bool = False) -> PodLog:
    return PodLog(pod=pod, container="app", previous=previous, lines=lines)


async def evidence_of(*logs: PodLog) -> tuple[str, list[tuple[str, bool, tuple[str, ...]]]]:
    pods = Given((pod_of("a", killed=RECENT), pod_of("b")), written=logs)
    findings = await playbook_of().diagnose(context_of(workload=pods))
    kept = findings.evidence("logs", LogEvidence)
    assert kept is not None
    return findings["logs"].summary, [(log.pod, log.previous, log.lines) for log in kept.logs]


async def test_the_last_lines_are_kept_those_of_the_killed_run_first_and_not_told() -> None:
    summary, kept = await evidence_of(
        log_of("b", "fine", "still fine"),
        log_of("a", "starting"),
        log_of("a", "user ann@example.org", "java.lang.OutOfMemoryError", previous=True),
    )
    assert [(pod, previous) for pod, previous, _ in kept] == [
        ("a", True),
        ("a", False),
        ("b", False),
    ]
    assert "3 containers (1 of a run before the present one): 1 of 5 lines" in summary
    assert "ann" not in summary


async def test_what_looks_like_a_secret_is_masked_before_it_is_kept() -> None:
    _, [(_, _, lines)] = await evidence_of(
        log_of("a", "dsn=postgres://u:hunter2@db/x", "password: hunter2", "Bearer hunter2hunter2")
    )
    assert "hunter2" not in " ".join(lines)


KEY = ("-----BEGIN RSA PRIVATE KEY-----", "MIIEow", "-----END RSA PRIVATE KEY-----")


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (("a", *KEY, "b"), ("a", "***", "***", "***", "b")),
        (("a", *KEY[:2]), ("a", "***", "***")),
        ((*KEY[1:], "b"), ("***", "***", "b")),
        ((*KEY, "b", *KEY), ("***",) * 3 + ("b",) + ("***",) * 3),
    ],
)
async def test_a_private_key_is_masked_over_all_its_lines(
    lines: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    _, [(_, _, found)] = await evidence_of(log_of("a", *lines))
    assert found == kept


async def test_a_log_that_is_missing_is_said_and_not_counted_as_read() -> None:
    lost = PodLog(pod="b", container="app", previous=False, lines=(), missing="no answer")
    summary, _ = await evidence_of(log_of("a", "error"), lost)
    assert summary.startswith("Read the last lines of 1 containers")
    assert summary.endswith("1 could not be read.")


async def test_many_pods_that_write_much_do_not_fill_the_store() -> None:
    summary, kept = await evidence_of(
        *(log_of(f"p{number:03}", *(["x" * 10_000] * 50)) for number in range(100))
    )
    assert sum(len(line) for _, _, lines in kept for line in lines) <= KEPT
    assert "0 of 5000 lines" in summary


async def test_a_secret_is_masked_also_where_a_long_line_is_cut() -> None:
    token = "ghp_" + "a1B2" * 9
    for words in (f"{'x ' * (LOOKED_AT // 2 - 4)}{token}", f"{' ' * 2 * LOOKED_AT}{token}"):
        _, kept = await evidence_of(log_of("a", words))
        assert token[:8] not in str(kept)


@pytest.mark.parametrize(
    ("traces", "lost"),
    [
        ({"written": None}, "logs: main: no right to get pods/log"),
        ({"written": (wrote("a", "gone"),)}, "logs: no container's log can be read"),
        ({"eventful": False}, "events: main: no right to list events"),
    ],
)
async def test_nothing_is_replaced_before_its_logs_and_events_were_read(
    traces: dict[str, Any], lost: str
) -> None:
    pods = Given((pod_of("a", killed=RECENT), pod_of("b")), **traces)
    context = context_of(workload=pods, prometheus=Samples({}))
    findings = await playbook_of().diagnose(context)
    proposal = playbook_of().propose(context, findings)
    assert (proposal.mitigations, proposal.wait) == ((), timedelta(seconds=30))
    assert (
        f"Nothing is replaced until its logs and events have been read: {lost}" in proposal.reason
    )
    without = playbook_of(evidence="optional").propose(context, findings)
    assert [plan.kind for plan in without.mitigations] == ["set_memory"]


async def test_the_log_of_a_pod_that_is_evicted_must_have_been_read_itself() -> None:
    full = {name: flat(0.95) for name in ("a", "b", "c", "d")}
    for lost, evicted in (("a", 0), ("d", 1)):
        seen = tuple(pod_of(name) for name in full)
        logs = tuple(wrote(name, "timed out" if name == lost else "") for name in full)
        worst = full | {"a": flat(0.99)}
        context = context_of(workload=Given(seen, written=logs), prometheus=Samples(worst))
        proposal = playbook_of().propose(context, await playbook_of().diagnose(context))
        assert len(proposal.mitigations) == evicted, proposal.reason
        assert ("no log of a could be read" in proposal.reason) is (evicted == 0)


# --- what is left alone ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "reason", "passes"),
    [
        ({"rollout": "1 of 2 replicas are updated"}, "rollout is in progress", True),
        ({"rollout": "1 of 2", "refused": "forbidden: maximum 1Gi"}, "maximum 1Gi", False),
        ({"paused": True}, "paused", True),
        ({"replicas": 0}, "scaled to 0", False),
        ({"replicas": 0, "paused": True}, "scaled to 0", False),
        ({"gitops": "argocd-controller"}, "argocd-controller owns it", False),
    ],
)
async def test_what_somebody_else_works_on_is_left_alone(
    state: dict[str, Any], reason: str, *, passes: bool
) -> None:
    proposal = await proposed(Given((pod_of("a", killed=RECENT),), found=workload_of(**state)), {})
    assert proposal.mitigations == ()
    assert reason in proposal.reason
    assert (proposal.wait is not None) == passes


async def test_what_else_fires_on_the_service_is_named() -> None:
    pods = Given((pod_of("a", killed=RECENT),))
    beside = (firing_alert("HighLatency", {}, NOW), firing_alert("HighLatency", {"pod": "a"}, NOW))
    context = replace(context_of(workload=pods, prometheus=Samples({})), beside=beside)
    proposal = playbook_of().propose(context, await playbook_of().diagnose(context))
    (plan,) = proposal.mitigations
    assert plan.reason == proposal.reason
    assert proposal.reason.endswith("Also firing on this service: HighLatency.")


STATEFUL = TARGET.model_copy(update={"locator": {"namespace": "shop", "statefulset": "orders-db"}})


async def test_a_stateful_set_is_touched_only_where_that_is_allowed_and_with_a_high_risk() -> None:
    playbook = playbook_of(stateful=True)
    context = context_of(
        target=STATEFUL, workload=Given((pod_of("a", killed=RECENT),)), prometheus=Samples({})
    )
    (plan,) = playbook.propose(context, await playbook.diagnose(context)).mitigations
    assert (plan.kind, plan.risk) == ("set_memory", Risk.HIGH)


async def test_a_database_is_never_touched() -> None:
    target = STATEFUL
    playbook = playbook_of()
    context = context_of(
        target=target, workload=Given((pod_of("a", killed=RECENT),)), prometheus=Samples({})
    )
    proposal = playbook.propose(context, await playbook.diagnose(context))
    assert proposal.mitigations == ()
    assert "database" in proposal.reason


async def test_a_cluster_that_does_not_answer_is_unknown_and_nothing_is_done() -> None:
    proposal = await proposed(Given((pod_of("a", killed=RECENT),), broken=True), {"a": flat(0.9)})
    assert proposal.mitigations == ()
    assert "cannot be read" in proposal.reason


PLAN = Mitigation(kind="set_memory", target=TARGET, reason="a test")


async def verified(workloads: Given, share: float = 0.5) -> Assessment:
    series = {pod.name: flat(share) for pod in workloads.seen}
    context = context_of(workload=workloads, prometheus=Samples(series))
    return (await playbook_of().verify(context, PLAN)).assessment


async def test_it_helped_when_nothing_was_killed_since_and_all_is_ready() -> None:
    assert await verified(Given((pod_of("a", killed=RECENT),))) is Assessment.BETTER


async def test_it_did_not_help_when_something_was_killed_since() -> None:
    again = Given((pod_of("a", killed=timedelta(seconds=5)),))
    assert await verified(again) is Assessment.NOT_BETTER


async def test_it_has_not_helped_while_rolling_out_or_unready_or_still_full() -> None:
    pods = (pod_of("a"),)
    rolling = Given(pods, found=workload_of(rollout="1 of 2 replicas are updated"))
    assert await verified(rolling) is Assessment.NOT_BETTER
    assert await verified(Given(pods, found=workload_of(ready=1))) is Assessment.NOT_BETTER
    assert await verified(Given(pods), share=0.9) is Assessment.NOT_BETTER


async def test_it_cannot_be_told_without_an_answer() -> None:
    assert await verified(Given((pod_of("a"),), broken=True)) is Assessment.CANNOT_TELL


@pytest.mark.parametrize(
    ("kind", "used", "assessment"),
    [
        ("set_memory", None, Assessment.BETTER),
        ("set_memory", 0.9, Assessment.NOT_BETTER),
        ("evict_pod", None, Assessment.CANNOT_TELL),
        ("evict_pod", 0.5, Assessment.BETTER),
    ],
)
async def test_without_a_query_what_was_measured_before_is_needed_after(
    kind: str, used: float | None, assessment: Assessment
) -> None:
    measured = None if used is None else {"a": used * 256 * MI}
    context = context_of(workload=Given((pod_of("a"),), measured=measured))
    plan = PLAN.model_copy(update={"kind": kind})
    sample = await playbook_of(memory_query=None).verify(context, plan)
    assert sample.assessment is assessment


def recorded() -> tuple[Pod, ...]:
    content = json.loads((SAMPLES / "k8s_1.20_pods_crashloop_oom.json").read_text())
    return tuple(read_pod(pod) for pod in content["items"])


async def test_what_a_real_kubelet_reported_is_understood() -> None:
    pods = recorded()
    kills = [c for pod in pods for c in pod.containers if c.oom_killed]
    assert [(c.restarts, c.memory_limit) for c in kills] == [(3, 16 * MI)]
    playbook = playbook_of(memory_query=None, memory_max="64Mi")
    at = datetime(2026, 11, 20, 16, 25, tzinfo=UTC)
    everything = context_of(now=at, workload=Given(pods))
    assert "CrashLoopBackOff" in (await playbook.diagnose(everything))["pods"].summary
    killed = tuple(pod for pod in pods if pod.name == "oom")  # the others are not its own
    given = Given(killed, found=workload_of(limit=16 * MI))
    context = context_of(now=at, workload=given)
    findings = await playbook.diagnose(context)
    assert "app of oom" in findings["kills"].summary
    (plan,) = playbook.propose(context, findings).mitigations
    assert plan.parameters["limit"] == 32 * MI


def test_a_crash_loop_after_a_completed_rollout_is_no_rollout() -> None:
    content = json.loads((SAMPLES / "k8s_1.20_deployment.json").read_text())
    workload = read_workload(content)
    assert (workload.replicas, workload.ready, workload.rollout) == (1, 0, None)
    assert "last-applied-configuration" not in str(workload.annotations)


def test_it_is_found_by_its_alerts() -> None:
    found = load_playbooks().get("OOM")
    assert found is not None
    for name in ("PodOOMKilled", "MemoryLeakSuspected", "MemoryPressure", "HighMemoryUsage"):
        assert all(matcher.holds({"alertname": name}) for matcher in found.matches)


@pytest.mark.parametrize(
    "wrong", [{"memory_max": "4 GB"}, {"memory_max": 0}, {"memory_step": 3}, {"recycle": "delete"}]
)
def test_parameters_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        OOMParameters.model_validate(wrong)


@given(st.integers(0, 1 << 50))
def test_a_quantity_is_read_as_it_was_written(size: int) -> None:
    assert quantity(written(size)) == size


@given(st.text(max_size=12))
def test_a_quantity_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(quantity(text), int)


PODS = st.lists(
    st.builds(
        pod_of,
        st.sampled_from("abcdef"),
        killed=st.none() | st.timedeltas(timedelta(0), timedelta(hours=2)),
        limit=st.none() | st.integers(1, 2048).map(lambda n: n * MI),
        reason=st.sampled_from(["OOMKilled", "Error", "Completed", ""]),
        terminating=st.booleans(),
        ready=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda pod: pod.name,
)


@given(
    pods=PODS,
    limit=st.none() | st.integers(1, 2048).map(lambda n: n * MI),
    shares=st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 2), max_size=6),
    cap=st.none() | st.integers(1, 2048 * MI),
    recycle=st.sampled_from(["evict", "restart"]),
)
async def test_whatever_is_seen_the_bounds_hold(
    *,
    pods: list[Pod],
    limit: int | None,
    shares: dict[str, float],
    cap: int | None,
    recycle: str,
) -> None:
    given = Given(tuple(pods), found=workload_of(limit=limit))
    series = {name: flat(share) for name, share in shares.items()}
    proposal = await proposed(given, series, memory_max=cap, recycle=recycle)
    assert len(proposal.mitigations) <= 1
    assert proposal.reason
    for plan in proposal.mitigations:
        if plan.kind == "set_memory":
            wanted = plan.parameters["limit"]
            assert limit is not None
            assert cap is not None
            assert isinstance(wanted, int)
            assert limit < wanted <= min(cap, 2 * limit)
            assert any(c.oom_killed for pod in pods for c in pod.containers)
        for item in plan.items:
            (pod,) = [pod for pod in pods if pod.uid == item.identity["uid"]]
            others = [other for other in pods if other != pod and not other.terminating]
            assert not pod.terminating
            assert pod.name in shares
            assert others
            assert all(other.ready for other in others)
        if plan.kind == "restart_rollout":
            assert sum(pod.ready and not pod.terminating for pod in pods) >= 2


async def test_a_killed_container_gets_its_memory_on_a_real_cluster(cluster: Cluster) -> None:
    """The whole way: seen by the reader, raised by the lever, judged by the playbook."""
    await cluster.node("roomy")
    await cluster.deploy(2)
    name = (await cluster.pods())[0]["metadata"]["name"]
    content = json.loads((SAMPLES / "k8s_1.20_pods_crashloop_oom.json").read_text())
    killed = content["items"][1]["status"]["containerStatuses"][0]
    await cluster.report(name, {"containerStatuses": [killed]})
    at = datetime(2026, 11, 20, 16, 25, tzinfo=UTC)
    playbook = playbook_of(memory_query=None, evidence="optional")  # no kubelet has logs
    async with (
        KubernetesReader(cluster.kubeconfig) as reader,
        KubernetesMitigator(cluster.kubeconfig) as lever,
    ):
        context = context_of(now=at, target=cluster.target(), workload=reader)
        findings = await playbook.diagnose(context)
        assert findings["kills"].status is FindingStatus.PROBLEM
        proposal = playbook.propose(context, findings)
        assert proposal.mitigations, proposal.reason
        (plan,) = proposal.mitigations
        outcome = await lever.apply(await lever.prepare(plan), "inc-1/OOM/0/set_memory")
        assert outcome.state is MitigationState.APPLIED
        assert (await playbook.verify(context, plan)).assessment is Assessment.NOT_BETTER
        await cluster.settle()
        sample = await playbook.verify(context, plan)
        assert sample.assessment is Assessment.BETTER, sample.evidence
        assert {
            c.memory_limit for p in await reader.pods(cluster.target()) for c in p.containers
        } >= {512 * MI}


async def test_full_pods_are_recycled_on_a_real_cluster(cluster: Cluster) -> None:
    """The levers take what the playbook proposes: first one pod, then, where all leak, all."""
    await cluster.deploy(2)
    later = datetime.now(UTC) + timedelta(hours=1)
    async with (
        KubernetesReader(cluster.kubeconfig) as reader,
        KubernetesMitigator(cluster.kubeconfig) as lever,
    ):

        async def pulled(kind: str, series: list[float], pods: int) -> bool:
            await cluster.run_pods()
            names = [pod["metadata"]["name"] for pod in await cluster.pods()]
            samples = Samples(dict.fromkeys(names[:pods], series))
            ports: dict[str, Port] = {"workload": reader, "prometheus": samples}
            context = context_of(now=later, target=cluster.target(), **ports)
            playbook = playbook_of(evidence="optional")
            proposal = playbook.propose(context, await playbook.diagnose(context))
            if [plan.kind for plan in proposal.mitigations] != [kind]:
                return False  # the pod that took the other's place is not ready yet
            with contextlib.suppress(BackendRefused):
                preparation = await lever.prepare(proposal.mitigations[0])
                outcome = await lever.apply(preparation, "inc-1/OOM/0")
                return outcome.state is MitigationState.APPLIED
            return False

        await until(lambda: pulled("evict_pod", flat(0.95), 1), "one pod is evicted", 60)
        await until(lambda: pulled("restart_rollout", LEAKING, 2), "all are restarted", 60)
