"""OOM raises a limit once, recycles one pod, and proposes nothing that is not proven."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playbooks.oom import OOM, OOMParameters
from remediator.adapters.kubernetes import KubernetesLever, KubernetesReader
from remediator.adapters.kubernetes_objects import quantity, read_pod, read_workload, written
from remediator.errors import BackendUnavailable
from remediator.model import (
    Assessment,
    FindingStatus,
    Incident,
    IncidentId,
    IncidentState,
    Mitigation,
    MitigationState,
    Phase,
    Proposal,
    Sense,
    SenseState,
    Target,
)
from remediator.playbook import Context, load_playbooks
from remediator.ports import Point, Port
from remediator.workloads import (
    EFFECT,
    Autoscaler,
    ContainerResources,
    ContainerState,
    Pod,
    Revision,
    Termination,
    Workload,
    WorkloadEvent,
)
from tests.kubernetes_fixtures import Cluster

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
    incident = Incident(
        id=IncidentId("inc-1"),
        correlation_key="shop/orders",
        state=IncidentState.OPEN,
        phase=Phase.DIAGNOSE,
        outcome=None,
        reason="",
        system="shop",
        service="orders",
        playbook="OOM",
        dry_run=False,
        replay_of=None,
        round=1,
        epoch=1,
        opened_at=now - timedelta(minutes=5),
        closed_at=None,
        phase_since=now - timedelta(minutes=1),
    )
    return Context(
        incident=incident,
        alerts=(),
        targets={"workload": target},
        ports=ports,
        now=now,
        tried=tried,
    )


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
        ready=True,
        restarts=0 if ended is None else 1,
        ended=ended,
        memory_request=None,
        memory_limit=limit,
    )
    return Pod(
        name=name,
        uid=f"uid-{name}",
        phase="Running",
        ready=True,
        terminating=terminating,
        created_at=NOW - timedelta(hours=5),
        node="node-1",
        containers=(container,),
    )


@dataclass
class Given:
    """A deployment that is given, behind the port of a cluster."""

    seen: tuple[Pod, ...]
    found: Workload = field(default_factory=workload_of)
    broken: bool = False

    async def probe(self) -> Sense:
        return Sense(name="workload", state=SenseState.OK)

    async def workload(self, target: Target) -> Workload:
        return self.found

    async def pods(self, target: Target) -> tuple[Pod, ...]:
        if self.broken:
            raise BackendUnavailable("main: no answer")
        return self.seen

    async def autoscaler(self, target: Target) -> Autoscaler | None:
        return None

    async def events(self, target: Target) -> tuple[WorkloadEvent, ...]:
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


async def test_without_a_cap_no_limit_is_raised() -> None:
    proposal = await proposed(Given((pod_of("a", killed=RECENT),)), {}, memory_max=None)
    assert proposal.mitigations == ()
    assert "memory_max is not set" in proposal.reason


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
    marked = workload_of(annotations={EFFECT: "inc-0/OOM/0/set_memory/kubernetes/main"})
    pods = Given((pod_of("a", killed=RECENT), pod_of("b")), found=marked)
    assert (await proposed(pods, {"b": GROWING})).mitigations == ()
    assert (await proposed(pods, {"b": flat(0.3)})).mitigations


async def test_the_limit_of_a_rollout_that_was_meant_to_cure_it_is_waited_for() -> None:
    pods = Given((pod_of("a", killed=RECENT),), found=workload_of(limit=512 * MI))
    proposal = await proposed(pods, {})
    assert proposal.mitigations == ()
    assert "has changed since" in proposal.reason


async def test_without_a_limit_the_node_is_short_and_nothing_is_raised() -> None:
    pods = Given((pod_of("a", killed=RECENT, limit=None),), found=workload_of(limit=None))
    proposal = await proposed(pods, {})
    assert proposal.mitigations == ()
    assert "without a limit" in proposal.reason


async def test_the_fullest_pod_alone_is_evicted() -> None:
    pods = Given((pod_of("a"), pod_of("b"), pod_of("c")))
    series = {"a": flat(0.9), "b": flat(0.95), "c": flat(0.3)}
    (plan,) = (await proposed(pods, series)).mitigations
    assert plan.kind == "evict_pod"
    assert [item.identity for item in plan.items] == [{"pod": "b", "uid": "uid-b"}]
    (following,) = (await proposed(pods, series, plan)).mitigations
    assert [item.identity["pod"] for item in following.items] == ["a"]


async def test_all_pods_are_restarted_in_turn_where_that_is_wished() -> None:
    (plan,) = (
        await proposed(Given((pod_of("a"),)), {"a": flat(0.9)}, recycle="restart")
    ).mitigations
    assert plan.kind == "restart_rollout"


@pytest.mark.parametrize("series", [{}, {"another": flat(0.99)}, {"a": flat(0.5)}])
async def test_missing_or_low_usage_recycles_nothing(series: dict[str, list[float]]) -> None:
    assert (await proposed(Given((pod_of("a"),)), series)).mitigations == ()


async def test_growth_before_a_restart_is_no_leak() -> None:
    restarted = pod_of("a", killed=RECENT, reason="Error")
    fresh = await proposed(Given((restarted,)), {"a": [*GROWING[:-5], *flat(0.9)[:5]]})
    assert "grow steadily" not in fresh.reason
    leaking = await proposed(Given((pod_of("a"),)), {"a": [use * 1.05 for use in GROWING]})
    assert "1 pods grow steadily" in leaking.reason


async def test_without_a_query_nothing_is_recycled() -> None:
    proposal = await proposed(Given((pod_of("a"),)), {"a": flat(0.99)}, memory_query=None)
    assert proposal.mitigations == ()
    assert "set memory_query" in proposal.reason


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"rollout": "1 of 2 replicas are updated"}, "rollout is in progress"),
        ({"paused": True}, "paused"),
        ({"replicas": 0}, "scaled to 0"),
        ({"gitops": "argocd-controller"}, "argocd-controller owns it"),
    ],
)
async def test_what_somebody_else_works_on_is_left_alone(
    state: dict[str, Any], reason: str
) -> None:
    proposal = await proposed(Given((pod_of("a", killed=RECENT),), found=workload_of(**state)), {})
    assert proposal.mitigations == ()
    assert reason in proposal.reason


async def test_a_database_is_never_touched() -> None:
    locator = {"namespace": "shop", "statefulset": "orders-db"}
    target = TARGET.model_copy(update={"locator": locator})
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


def recorded() -> tuple[Pod, ...]:
    content = json.loads((SAMPLES / "k8s_1.20_pods_crashloop_oom.json").read_text())
    return tuple(read_pod(pod) for pod in content["items"])


async def test_what_a_real_kubelet_reported_is_understood() -> None:
    pods = recorded()
    kills = [c for pod in pods for c in pod.containers if c.oom_killed]
    assert [(c.restarts, c.memory_limit) for c in kills] == [(3, 16 * MI)]
    playbook = playbook_of(memory_query=None, memory_max="64Mi")
    given = Given(pods, found=workload_of(limit=16 * MI))
    at = datetime(2026, 11, 20, 16, 25, tzinfo=UTC)
    context = context_of(now=at, workload=given)
    findings = await playbook.diagnose(context)
    assert "app of oom" in findings["kills"].summary
    assert "CrashLoopBackOff" in findings["pods"].summary
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
            assert not pod.terminating
            assert pod.name in shares


async def test_a_killed_container_gets_its_memory_on_a_real_cluster(cluster: Cluster) -> None:
    """The whole way: seen by the reader, raised by the lever, judged by the playbook."""
    await cluster.deploy(2)
    name = (await cluster.pods())[0]["metadata"]["name"]
    content = json.loads((SAMPLES / "k8s_1.20_pods_crashloop_oom.json").read_text())
    killed = content["items"][1]["status"]["containerStatuses"][0]
    await cluster.report(name, {"containerStatuses": [killed]})
    at = datetime(2026, 11, 20, 16, 25, tzinfo=UTC)
    playbook = playbook_of(memory_query=None)
    async with (
        KubernetesReader(cluster.kubeconfig) as reader,
        KubernetesLever(cluster.kubeconfig) as lever,
    ):
        context = context_of(now=at, target=cluster.target(), workload=reader)
        findings = await playbook.diagnose(context)
        assert findings["kills"].status is FindingStatus.PROBLEM
        (plan,) = playbook.propose(context, findings).mitigations
        outcome = await lever.apply(await lever.prepare(plan), "inc-1/OOM/0/set_memory")
        assert outcome.state is MitigationState.APPLIED
        assert (await playbook.verify(context, plan)).assessment is Assessment.NOT_BETTER
        await cluster.settle()
        sample = await playbook.verify(context, plan)
        assert sample.assessment is Assessment.BETTER, sample.evidence
        assert {
            c.memory_limit for p in await reader.pods(cluster.target()) for c in p.containers
        } >= {512 * MI}
