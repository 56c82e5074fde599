"""CircuitBreakerOpen resets one breaker whose cause is proven gone, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from playbooks.circuit_breaker_open import BreakerParameters, CircuitBreakerOpen
from remediator.backends.http.breakers import BreakerMitigator, HttpBreakers, ShapeName
from remediator.backends.http.client import HttpEndpoint
from remediator.backends.http.migrations import HttpAdmin, MigrationMitigator
from remediator.backends.prometheus import PrometheusMetrics, PrometheusServer
from remediator.model.alert import AlertStatus
from remediator.model.errors import BackendUnavailable
from remediator.model.finding import FindingStatus, Sense, SenseState
from remediator.model.mitigation import Mitigation, MitigationState
from remediator.model.ports import Mitigator, Port
from remediator.model.readings import Point
from remediator.model.target import Target
from remediator.model.verdict import Assessment, Sample
from remediator.model.workloads import PodLog
from remediator.playbook.loader import load_playbooks
from remediator.testing import PlaybookRun, context_for, firing_alert, run_playbook
from tests.breaker_fixtures import READER, WRITER, BreakerService, breaker_service
from tests.monitoring_fixtures import Start

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TARGETS = {
    role: Target(system="shop", service="pay", role=role, kind="http", name=f"pay-{role}")
    for role in ("admin", "upstream")
}
BOTH = pytest.mark.parametrize("shape", ["actuator", "admin"])
PAIR = pytest.mark.parametrize("name", ["BTCUSDT", 'B"TC/USDT'])
FIVE: dict[str, Any] = dict.fromkeys(("a", "b", "c", "d", "e"), "OPEN")


def playbook_of(**parameters: Any) -> CircuitBreakerOpen:
    quick = {"upstreams": {"payments": {}, "search": {}}, "probe_gap": "100ms"}
    return CircuitBreakerOpen(BreakerParameters.model_validate(quick | parameters))


@dataclass
class Shares:
    """A Prometheus that knows shares of failed calls; sample ``n`` of a range is ``share(n)``."""

    share: Callable[[int], float | None] = lambda n: 0.0
    series: int = 1
    asked: list[str] = field(default_factory=list)

    async def probe(self) -> Sense:
        return Sense(name="prometheus", state=SenseState.OK)

    async def instant(self, query: str) -> tuple[Point, ...]:
        raise NotImplementedError

    async def scalar(self, query: str) -> float:
        raise NotImplementedError

    async def range(
        self, query: str, *, start: datetime, end: datetime, step: timedelta
    ) -> tuple[Point, ...]:
        self.asked.append(query)
        values = [(n, self.share(n)) for n in range((end - start) // step + 1)]
        points = tuple(
            Point(labels={"instance": str(number)}, at=start + n * step, value=value)
            for n, value in values
            for number in range(self.series)
            if value is not None
        )
        if not points:
            raise BackendUnavailable("no data")
        return points


@dataclass
class Scene:
    """A service with breakers, its upstream, and our two ways to the service."""

    service: BreakerService
    levers: dict[str, Mitigator]
    ports: dict[str, Port]
    labels: dict[str, str] = field(default_factory=dict)
    tried: tuple[Mitigation, ...] = ()
    targets: dict[str, Target] = field(default_factory=lambda: TARGETS)
    watched_for: timedelta = timedelta(minutes=5)
    """Time over which the last looks saw all breakers open and their upstreams healthy."""

    def noted(self, now: datetime) -> dict[str, Any]:
        """What they noted, the last of them half a minute ago."""
        last, since = now - timedelta(seconds=30), now - self.watched_for
        times = {"since": since.isoformat(), "last": last.isoformat()}
        seen = [f"{what} {name}" for name in self.service.breakers for what in ("open", "clean")]
        return {"watched": {"seen": dict.fromkeys(seen, times)}}

    async def look(self, now: datetime = NOW, **parameters: Any) -> PlaybookRun:
        return await run_playbook(
            playbook_of(**parameters),
            alert=firing_alert("CircuitBreakerOpen", self.labels, NOW),
            targets=self.targets,
            ports=self.ports,
            now=lambda: now,
            tried=self.tried,
            noted=self.noted(now),
        )

    async def refused(self, **parameters: Any) -> str:
        """Look, see that a human is called and nothing was sent, and return why."""
        run = await self.look(**parameters)
        assert run.proposal.mitigations == ()
        assert run.proposal.wait is None
        assert self.service.posts == self.service.moved == []
        return run.proposal.reason

    async def waits(self, **parameters: Any) -> str:
        """Look, see that it is looked at again and nothing was sent, and return why."""
        run = await self.look(**parameters)
        assert run.proposal.mitigations == ()
        assert run.proposal.wait == timedelta(seconds=30)
        assert self.service.posts == self.service.moved == []
        return run.proposal.reason

    async def pull(self, mitigation: Mitigation) -> MitigationState:
        lever = self.levers[mitigation.kind]
        preparation = await lever.prepare(mitigation)
        outcome = await lever.apply(preparation, "key")
        if outcome.state is MitigationState.UNKNOWN:
            outcome = await lever.observe(preparation, "key")
        return outcome.state

    async def verify(self, mitigation: Mitigation, **parameters: Any) -> Sample:
        playbook = playbook_of(**parameters)
        context = context_for(playbook, targets=TARGETS, ports=self.ports, now=NOW, since=NOW)
        return await playbook.verify(context, mitigation)


@asynccontextmanager
async def scene_of(
    shape: ShapeName = "actuator", migrations: dict[str, float] | None = None, **breakers: str
) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(breaker_service(**breakers))
        url, name = service.url, "http pay"
        service.migrations = dict(migrations or {})
        resets = BreakerMitigator(url, shape=shape, name=name, token=WRITER)
        moves = MigrationMitigator(url, name=name, token=WRITER)
        kind = HttpBreakers if migrations is None else HttpAdmin
        ports: dict[str, Port] = {
            "admin": await stack.enter_async_context(
                kind(url, shape=shape, name=name, token=READER)
            ),
            "upstream": await stack.enter_async_context(HttpEndpoint(url, name="http bank")),
        }
        levers: dict[str, Mitigator] = {
            "reset_breaker": await stack.enter_async_context(resets),
            "set_migration": await stack.enter_async_context(moves),
        }
        yield Scene(service, levers, ports)


# --- the order of a careful engineer ----------------------------------------------------------


@BOTH
async def test_open_breaker_with_a_clean_upstream_is_reset_exactly_once(shape: ShapeName) -> None:
    async with scene_of(shape, payments="OPEN", search="CLOSED") as scene:
        run = await scene.look()
        (plan,) = run.proposal.mitigations
        assert scene.service.probes == 2
        assert [item.key for item in plan.items] == ["payments"]
        assert await scene.pull(plan) is MitigationState.APPLIED
        assert scene.service.breakers == {"payments": "CLOSED", "search": "CLOSED"}
        assert (await scene.verify(plan)).assessment is Assessment.BETTER
    assert len(scene.service.posts) == 1


@BOTH
@pytest.mark.parametrize("health", [[503], [200, 503], [200, 500, 200]])
async def test_upstream_that_is_not_clean_every_time_means_no_reset(
    shape: ShapeName, health: list[int]
) -> None:
    async with scene_of(shape, payments="OPEN") as scene:
        scene.service.health = list(health)
        assert "wait for the upstream" in await scene.waits()


@pytest.mark.parametrize(
    ("shape", "seconds", "said"),
    [
        ("actuator", 119, "may close by itself: it is open for 119 s of 120 s"),
        ("actuator", 299, "its upstream is healthy for 299 s of 300 s"),
        ("admin", 299, "its upstream is healthy for 299 s of 300 s"),
        ("actuator", 300, ""),
        ("admin", 300, ""),
    ],
)
async def test_breaker_is_reset_only_once_its_cause_has_been_gone_for_long_enough(
    shape: ShapeName, seconds: int, said: str
) -> None:
    async with scene_of(shape, payments="OPEN") as scene:
        scene.watched_for = timedelta(seconds=seconds)
        if said:
            assert said in await scene.waits()
        else:
            assert len((await scene.look()).proposal.mitigations) == 1


async def test_what_the_last_look_noted_counts_only_if_it_can_be_read_and_is_recent() -> None:
    async with scene_of(payments="OPEN") as scene:
        for noted in ({}, {"watched": "nonsense"}, {"watched": {"seen": {"open payments": 1}}}):
            scene.noted = lambda now, noted=noted: noted  # type: ignore[method-assign, misc]
            assert "0 s of 120 s" in await scene.waits()


async def test_five_minutes_of_calls_that_succeed_do_not_replace_the_wait_for_half_open() -> None:
    async with scene_of(BTCUSDT="OPEN") as scene:
        scene.ports["prometheus"] = Shares()
        scene.watched_for = timedelta(seconds=60)
        assert "may close by itself" in await scene.waits(**GATE)
        scene.watched_for = timedelta(seconds=120)
        assert len((await scene.look(**GATE)).proposal.mitigations) == 1


# --- deadlocks --------------------------------------------------------------------------------


@dataclass
class Deadlocks(Shares):
    """A Prometheus that also counts deadlocks."""

    count: float | None = 0

    async def scalar(self, query: str) -> float:
        self.asked.append(query)
        if self.count is None:
            raise BackendUnavailable("no data")
        return self.count


@pytest.mark.parametrize("query", ["sum(increase(pg_stat_database_deadlocks[5m]))"])
async def test_deadlocks_that_are_counted_mean_no_reset(query: str) -> None:
    async with scene_of("admin", payments="OPEN") as scene:
        scene.ports["prometheus"] = seen = Deadlocks(count=1)
        assert "1 deadlocks" in await scene.refused(deadlock_query=query)
        seen.count = None
        said = "whether there are deadlocks is not known: no data"
        assert said in await scene.waits(deadlock_query=query)
        seen.count = 0
        assert len((await scene.look(deadlock_query=query)).proposal.mitigations) == 1
        assert set(seen.asked) == {query}


@dataclass
class Logs:
    """The logs of the service's pods."""

    written: tuple[PodLog, ...]

    async def probe(self) -> Sense:
        return Sense(name="workload", state=SenseState.OK)

    async def logs(self, target: Target, lines: int = 50) -> tuple[PodLog, ...]:
        return self.written


def wrote(*lines: str, previous: bool = False, missing: str = "") -> PodLog:
    return PodLog(pod="p", container="c", previous=previous, lines=lines, missing=missing)


@pytest.mark.parametrize(
    ("logs", "said"),
    [
        ((wrote("ERROR: Deadlock detected"),), "Deadlocks are in the log of p"),
        ((wrote(missing="forbidden"),), "not known: the logs cannot be read: p/c: forbidden"),
        ((), "not known: the logs cannot be read: no pods"),
        ((wrote("all is well"), wrote("deadlock", previous=True)), ""),
    ],
)
async def test_deadlocks_in_the_logs_of_the_workload_mean_no_reset(
    logs: tuple[PodLog, ...], said: str
) -> None:
    workload = Target(system="shop", service="pay", role="workload", kind="kubernetes", name="k")
    async with scene_of("admin", payments="OPEN") as scene:
        reader = Logs(logs)
        pods: Any = reader
        scene.ports["workload"] = pods
        scene.targets = TARGETS | {"workload": workload}
        run = await scene.look()
    assert (run.proposal.mitigations == ()) is bool(said)
    assert said in run.proposal.reason


@BOTH
async def test_five_open_breakers_are_for_a_human(shape: ShapeName) -> None:
    async with scene_of(shape, **FIVE) as scene:
        reason = await scene.refused(upstreams={name: {} for name in FIVE})
        assert "5 circuit breakers are open (a, b, c, d, e)" in reason
        assert "common cause" in reason
        assert scene.service.probes == 0


@BOTH
async def test_reset_whose_answer_is_lost_is_looked_up_and_not_repeated(shape: ShapeName) -> None:
    async with scene_of(shape, payments="OPEN") as scene:
        scene.service.drop = True
        run = await scene.look()
        assert await scene.pull(run.proposal.mitigations[0]) is MitigationState.APPLIED
    assert len(scene.service.posts) == 1


async def test_one_open_and_one_unknown_count_as_two() -> None:
    async with scene_of(payments="OPEN", search="SOMETHING_NEW") as scene:
        assert "unknown: search" in await scene.refused()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("HALF_OPEN", "heals itself"),
        ("CLOSED", "No circuit breaker is open"),
    ],
)
async def test_breaker_that_heals_or_has_healed_is_waited_for(state: str, said: str) -> None:
    async with scene_of(payments=state) as scene:
        assert said in await scene.waits()
        assert scene.service.probes == 0


async def test_one_that_a_human_must_see_is_not_waited_for_with_one_that_heals() -> None:
    async with scene_of(payments="HALF_OPEN", search="FORCED_OPEN") as scene:
        reason = await scene.refused()
    assert "payments is half-open" in reason
    assert "search counts as opened by a human" in reason


async def test_time_between_two_looks_can_be_set() -> None:
    async with scene_of(payments="HALF_OPEN") as scene:
        run = await scene.look(look_again="2m")
    assert run.proposal.wait == timedelta(minutes=2)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("FORCED_OPEN", "counts as opened by a human"),
        ("DISABLED", "disabled by a human"),
        ("SOMETHING_NEW", "a state that we do not know"),
    ],
)
async def test_breaker_that_is_not_simply_open_is_left_alone(state: str, said: str) -> None:
    async with scene_of(payments=state) as scene:
        assert said in await scene.refused()
        assert scene.service.probes == 0


@pytest.mark.parametrize(
    "reason",
    [
        "Manual activation by ann",
        "planned MAINTENANCE",
        "operator: do not touch",
        "activated",
        "",
        None,
    ],
)
async def test_breaker_that_a_human_opened_is_left_to_a_human(reason: str | None) -> None:
    """T-36: the admin's list marks it by its reason alone; without one nobody knows."""
    async with scene_of("admin") as scene:
        scene.service.listing = [
            {"pair": "payments", "open": True, "reason": reason},
            {"pair": "search", "open": False},
        ]
        refusal = await scene.refused()
    assert "payments counts as opened by a human" in refusal
    assert (reason or "no reason is given") in refusal
    assert scene.service.probes == 0


async def test_all_that_an_emergency_stop_opened_is_left_alone() -> None:
    async with scene_of("admin") as scene:
        scene.service.listing = [
            {"pair": pair, "open": True, "reason": "Manual activation: emergency"} for pair in FIVE
        ]
        assert "counts as opened by a human" in await scene.refused()


async def test_reasons_of_humans_can_be_set_and_count_at_the_lever_too() -> None:
    automatic = {"pair": "payments", "open": True, "reason": "error rate"}
    async with scene_of("admin", payments="OPEN") as scene:
        scene.service.listing = [automatic | {"reason": "Handbremse"}]
        assert "Handbremse" in await scene.refused(manual_reasons=["(?i)handbremse"])
        scene.service.listing = [automatic]
        (plan,) = (await scene.look()).proposal.mitigations
        preparation = await scene.levers["reset_breaker"].prepare(plan)
        scene.service.listing = [automatic | {"reason": "Manual activation by ann"}]
        outcome = await scene.levers["reset_breaker"].apply(preparation, "key")
        assert outcome.state is MitigationState.NOT_APPLIED
        assert "Manual activation by ann" in outcome.detail
    assert scene.service.posts == []


async def test_breaker_whose_upstream_is_not_configured_is_not_reset() -> None:
    async with scene_of(other="OPEN") as scene:
        assert "set upstreams.other" in await scene.refused()


async def test_upstream_that_cannot_be_probed_proves_nothing() -> None:
    async with scene_of(payments="OPEN") as scene:
        wrong = {"payments": {"role": "upstream", "path": "/nothing/here"}}
        assert "probe itself was refused" in await scene.refused(upstreams=wrong)
        missing = {"payments": {"role": "bank"}}
        assert "no http target in the role 'bank'" in await scene.refused(upstreams=missing)


async def test_breakers_that_cannot_be_read_mean_no_reset() -> None:
    async with scene_of(payments="OPEN") as scene:
        scene.service.listing = []
        assert "cannot be read" in await scene.refused()


async def test_service_without_configured_breakers_says_what_to_configure() -> None:
    async with scene_of(payments="OPEN") as scene:
        scene.ports["admin"] = scene.ports["upstream"]
        assert "set breakers for 'pay-admin'" in await scene.refused()


# --- the share of failed calls ----------------------------------------------------------------

GATE: dict[str, Any] = {"upstreams": {}, "error_query": "failed_share{pair={breaker}}"}


def _late(share: float) -> Callable[[int], float]:
    return lambda n: share if n == 20 else 0.0


@BOTH
@PAIR
async def test_calls_that_succeed_for_five_minutes_are_the_proof_without_an_upstream(
    shape: ShapeName, name: str
) -> None:
    breakers: dict[str, Any] = {name: "OPEN", "search": "CLOSED"}
    async with scene_of(shape, **breakers) as scene:
        scene.ports["prometheus"] = shares = Shares(lambda n: 0.01)
        run = await scene.look(**GATE)
        (plan,) = run.proposal.mitigations
        assert "1.0% of the calls" in plan.reason
        assert "in the last 5m" in plan.reason
        assert await scene.pull(plan) is MitigationState.APPLIED
    quoted = name.replace('"', '\\"')
    assert shares.asked == [f'failed_share{{pair="{quoted}"}}']
    assert len(scene.service.posts) == 1
    assert scene.service.probes == 0


@pytest.mark.parametrize(
    "share",
    [lambda n: 0.011, _late(0.5), lambda n: 0.5 if n == 0 else 0.0, lambda n: float("inf")],
    ids=["always", "at the end", "five minutes ago", "infinite"],
)
async def test_one_sample_above_the_limit_means_no_reset(share: Callable[[int], float]) -> None:
    async with scene_of(BTCUSDT="OPEN") as scene:
        scene.ports["prometheus"] = Shares(share)
        assert "wait until at most 1.0% of the calls fail" in await scene.waits(**GATE)


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        (Shares(lambda n: None), "no data"),
        (Shares(lambda n: None if n == 7 else 0.0), "20 of 21 samples"),
        (Shares(lambda n: None if n == 20 else 0.0), "20 of 21 samples"),
        (Shares(lambda n: -0.1), "negative"),
        (Shares(series=2), "aggregate it"),
    ],
    ids=["nothing", "a gap", "no newest", "negative", "two series"],
)
async def test_share_that_is_not_known_throughout_means_no_reset(shares: Shares, said: str) -> None:
    async with scene_of(BTCUSDT="OPEN") as scene:
        scene.ports["prometheus"] = shares
        assert said in await scene.waits(**GATE)


async def test_query_without_a_prometheus_is_for_a_human() -> None:
    async with scene_of(BTCUSDT="OPEN") as scene:
        assert "has no Prometheus" in await scene.refused(**GATE)


async def test_where_both_proofs_are_configured_both_must_hold() -> None:
    both = GATE | {"upstreams": {"payments": {}}}
    async with scene_of(payments="OPEN") as scene:
        scene.ports["prometheus"] = Shares(lambda n: 0.5)
        assert "of the calls fail" in await scene.waits(**both)
        scene.ports["prometheus"] = Shares()
        scene.service.health = [503]
        assert "wait for the upstream" in await scene.waits(**both)
        scene.service.health = [200]
        assert len((await scene.look(**both)).proposal.mitigations) == 1


async def test_limit_and_time_can_be_set() -> None:
    async with scene_of(BTCUSDT="OPEN") as scene:
        scene.ports["prometheus"] = Shares(lambda n: 0.004)
        stricter = GATE | {"error_limit": 0.005, "error_for": "5m10s"}
        (plan,) = (await scene.look(**stricter)).proposal.mitigations
        assert "in the last 5m15s" in plan.reason, "whole steps, never less than was asked for"
        scene.ports["prometheus"] = Shares(lambda n: 0.006)
        assert "wait until at most 0.5% of the calls fail" in await scene.waits(**stricter)


@pytest.mark.parametrize(
    ("share", "assessment"),
    [
        (0.01, Assessment.BETTER),
        (0.02, Assessment.NOT_BETTER),
        (None, Assessment.CANNOT_TELL),
    ],
)
async def test_closed_breaker_is_better_only_while_its_calls_succeed(
    share: float | None, assessment: Assessment
) -> None:
    async with scene_of(BTCUSDT="OPEN") as scene:
        scene.ports["prometheus"] = Shares()
        (plan,) = (await scene.look(**GATE)).proposal.mitigations
        await scene.pull(plan)
        scene.ports["prometheus"] = Shares(lambda n: share)
        assert (await scene.verify(plan, **GATE)).assessment is assessment


async def test_query_is_understood_by_a_real_prometheus(start_prometheus: Start) -> None:
    clean = "label_replace(vector(0.002), 'pair', {breaker}, '', '')"
    unknown = "vector(0) / vector(0)"
    bad = f"vector(0.5) and vector(time()) < vector({datetime.now(UTC).timestamp() - 200})"
    async with scene_of(BTCUSDT="OPEN") as scene, start_prometheus("global: {}") as server:
        metrics = PrometheusMetrics(PrometheusServer(url=server.url))
        scene.ports["prometheus"] = metrics
        async with metrics:
            now = datetime.now(UTC)
            gate = {"upstreams": {}, "error_query": clean}
            assert len((await scene.look(now=now, **gate)).proposal.mitigations) == 1
            nan = await scene.look(now=now, upstreams={}, error_query=unknown)
            assert "NaN" in nan.proposal.reason
            mixed = await scene.look(now=now, upstreams={}, error_query=f"{bad} or vector(0)")
            assert "of the calls fail" in mixed.proposal.reason
            gap = await scene.look(now=now, upstreams={}, error_query=bad)
            assert "samples" in gap.proposal.reason
    assert scene.service.posts == []


# --- migrations -------------------------------------------------------------------------------


@BOTH
async def test_migration_of_the_open_breakers_pair_is_stopped_before_any_reset(
    shape: ShapeName,
) -> None:
    moving = {"payments": 25.0, "search": 50.0}
    async with scene_of(shape, moving, payments="OPEN", search="CLOSED") as scene:
        scene.service.health = [503]
        (plan,) = (await scene.look()).proposal.mitigations
        assert (plan.kind, plan.parameters) == ("set_migration", {"percentage": 0})
        assert [item.identity for item in plan.items] == [{"pair": "payments", "percentage": 25}]
        assert await scene.pull(plan) is MitigationState.APPLIED
        assert scene.service.migrations == {"payments": 0, "search": 50}
        assert (await scene.verify(plan)).assessment is Assessment.NOT_BETTER, "it is still open"
        assert scene.service.posts == []
        scene.tried = (plan,)
        assert "wait for the upstream" in (await scene.look()).proposal.reason
        scene.service.health = [200]
        (reset,) = (await scene.look()).proposal.mitigations
        assert reset.kind == "reset_breaker"
        assert await scene.pull(reset) is MitigationState.APPLIED
    assert len(scene.service.posts) == len(scene.service.moved) == 1


async def test_migration_that_goes_on_again_is_for_a_human() -> None:
    async with scene_of(migrations={"payments": 25}, payments="OPEN") as scene:
        scene.tried = (await scene.look()).proposal.mitigations
        assert "is at 25 % again" in await scene.refused()


async def test_finished_migration_is_not_lowered_and_a_human_is_told() -> None:
    async with scene_of(migrations={"payments": 100, "search": 100}, payments="OPEN") as scene:
        proposal = (await scene.look()).proposal
        (plan,) = proposal.mitigations
        scene.service.health = [503]
        waiting = await scene.waits()
    assert plan.kind == "reset_breaker"
    for reason in (proposal.reason, waiting):
        assert "Migrated to 100 %, which only a human takes back: payments." in reason


@pytest.mark.parametrize("migrations", [{}, {"search": 50.0}, {"payments": 0.0}, {"PAYMENTS": 9.0}])
async def test_pair_that_is_not_migrated_is_no_hindrance(migrations: dict[str, float]) -> None:
    async with scene_of(migrations=migrations, payments="OPEN") as scene:
        (plan,) = (await scene.look()).proposal.mitigations
    assert plan.kind == "reset_breaker"


async def test_migrations_that_cannot_be_read_mean_no_reset() -> None:
    async with scene_of(migrations={"payments": 0}, payments="OPEN") as scene:
        scene.service.status_of_migrations = [{"pair": "payments", "current_percentage": None}]
        assert "Whether payments is being migrated cannot be read" in await scene.refused()


@pytest.mark.parametrize("state", ["CLOSED", "HALF_OPEN", "FORCED_OPEN", "DISABLED", "NEW"])
async def test_only_an_open_breaker_stops_a_migration(state: str) -> None:
    async with scene_of(migrations={"payments": 25}, payments=state) as scene:
        assert (await scene.look()).proposal.mitigations == ()


async def test_many_open_breakers_stop_no_migration() -> None:
    async with scene_of(migrations=dict.fromkeys(FIVE, 25.0), **FIVE) as scene:
        assert "common cause" in await scene.refused()


async def test_migration_is_stopped_before_another_breaker_is_reset() -> None:
    async with scene_of(migrations={"search": 25}, payments="OPEN", search="OPEN") as scene:
        (plan,) = (await scene.look(multi_threshold=3)).proposal.mitigations
    assert plan.kind == "set_migration"


@pytest.mark.parametrize(
    ("state", "status", "assessment"),
    [
        ("CLOSED", None, Assessment.BETTER),
        ("OPEN", None, Assessment.NOT_BETTER),
        ("HALF_OPEN", None, Assessment.NOT_BETTER),
        ("CLOSED", [{"pair": "payments", "current_percentage": 5}], Assessment.NOT_BETTER),
        ("CLOSED", [], Assessment.CANNOT_TELL),
        ("CLOSED", {"error": "no"}, Assessment.CANNOT_TELL),
        ("SOMETHING_NEW", None, Assessment.CANNOT_TELL),
    ],
)
async def test_stopped_migration_helped_only_if_it_stays_so_and_the_breaker_closed(
    state: str, status: Any, assessment: Assessment
) -> None:
    async with scene_of(migrations={"payments": 25}, payments="OPEN") as scene:
        (plan,) = (await scene.look()).proposal.mitigations
        await scene.pull(plan)
        scene.service.breakers["payments"] = state
        scene.service.status_of_migrations = status
        assert (await scene.verify(plan)).assessment is assessment


# --- what an alert may say --------------------------------------------------------------------


@pytest.mark.parametrize("label", ["breaker", "name", "pair"])
async def test_label_selects_among_the_listed_breakers(label: str) -> None:
    async with scene_of(payments="OPEN", search="OPEN") as scene:
        scene.labels = {label: "search"}
        run = await scene.look(multi_threshold=3)
    (plan,) = run.proposal.mitigations
    assert [item.key for item in plan.items] == ["search"]


async def test_breaker_is_named_by_a_firing_alert_only() -> None:
    async with scene_of(payments="OPEN", search="CLOSED") as scene:
        playbook = playbook_of()
        context = context_for(playbook, targets=TARGETS, ports=scene.ports, now=NOW, since=NOW)
        over = firing_alert("CircuitBreakerOpen", {"pair": "payments"}, NOW)
        over = over.model_copy(update={"status": AlertStatus.RESOLVED, "ends_at": NOW})
        live = firing_alert("CircuitBreakerOpen", {"pair": "search"}, NOW)
        for alerts, said in (((over, live), "search is closed"), ((over,), "No alert")):
            seen = replace(context, alerts=alerts)
            proposal = playbook.propose(seen, await playbook.diagnose(seen))
            assert proposal.mitigations == ()
            assert said in proposal.reason


@pytest.mark.parametrize("value", ["paymentz", "PAYMENTS", "../reset-all", "pay*"])
async def test_label_never_names_a_breaker_that_is_not_listed(value: str) -> None:
    async with scene_of(payments="OPEN") as scene:
        scene.labels = {"breaker": value}
        assert "does not list" in await scene.refused(upstreams={"payments": {}, value: {}})


async def test_name_label_of_something_else_is_no_matter() -> None:
    async with scene_of(payments="OPEN") as scene:
        scene.labels = {"name": "pay-service"}
        run = await scene.look()
    assert len(run.proposal.mitigations) == 1


async def test_named_breaker_that_is_closed_does_not_lead_to_another() -> None:
    async with scene_of(payments="OPEN", search="CLOSED") as scene:
        scene.labels = {"breaker": "search"}
        assert "search is closed" in await scene.waits()


# --- afterwards -------------------------------------------------------------------------------


async def test_breaker_that_opened_again_is_not_reset_again() -> None:
    async with scene_of(payments="OPEN") as scene:
        scene.tried = (await scene.look()).proposal.mitigations
        assert "opened again" in await scene.refused()
        scene.service.breakers["payments"] = "HALF_OPEN"
        assert "opened again" in await scene.refused(), "nor waited for"


async def test_only_one_breaker_is_reset_in_one_incident() -> None:
    async with scene_of(payments="OPEN", search="CLOSED") as scene:
        scene.tried = (await scene.look()).proposal.mitigations
        scene.service.breakers = {"payments": "CLOSED", "search": "OPEN"}
        assert "after another was reset" in await scene.refused()


@pytest.mark.parametrize(
    ("state", "health", "assessment"),
    [
        ("CLOSED", 200, Assessment.BETTER),
        ("CLOSED", 503, Assessment.NOT_BETTER),
        ("HALF_OPEN", 200, Assessment.NOT_BETTER),
        ("OPEN", 200, Assessment.NOT_BETTER),
        ("FORCED_OPEN", 200, Assessment.NOT_BETTER),
        ("SOMETHING_NEW", 200, Assessment.CANNOT_TELL),
    ],
)
async def test_only_closed_with_a_healthy_upstream_is_better(
    state: str, health: int, assessment: Assessment
) -> None:
    async with scene_of(payments="OPEN") as scene:
        (plan,) = (await scene.look()).proposal.mitigations
        scene.service.breakers["payments"] = state
        scene.service.health = [health]
        sample = await scene.verify(plan)
    assert sample.assessment is assessment
    assert "payments" in sample.evidence


async def test_breakers_that_cannot_be_read_afterwards_prove_nothing() -> None:
    async with scene_of(payments="OPEN") as scene:
        (plan,) = (await scene.look()).proposal.mitigations
        scene.service.listing = {"circuitBreakers": {}}
        assert (await scene.verify(plan)).assessment is Assessment.CANNOT_TELL
        scene.service.listing = {"circuitBreakers": {"other": {"state": "CLOSED"}}}
        assert (await scene.verify(plan)).assessment is Assessment.CANNOT_TELL


async def test_finding_tells_which_are_open_and_how_many_calls_failed() -> None:
    async with scene_of(payments="OPEN", search="CLOSED") as scene:
        finding = (await scene.look()).findings["breakers"]
    assert finding.status is FindingStatus.PROBLEM
    assert "1 of 2" in finding.summary
    assert "payments is open, 62% of calls failed" in finding.summary


@pytest.mark.parametrize(
    "parameters",
    [
        {"clean_probes": 1},
        {"probe_gap": "13s"},
        {"multi_threshold": 1},
        {"force": True},
        {"look_again": "0s"},
        {"manual_reasons": ["("]},
        {"error_for": "4m59s"},
        {"error_limit": 0.011},
        {"probe_gap": "0s"},
        {"wait_duration": "0s"},
        {"wait_duration": "5m"},
        {"clean_for": "0s"},
        {"error_query": 'x{pair="{breaker}"}'},
        {"error_query": "x{pair='{breaker}'}"},
        {"error_query": "x{pair=~{breaker}}"},
        {"error_query": "x{pair!~ {breaker}}"},
    ],
)
def test_parameters_that_would_be_careless_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        playbook_of(**parameters)


def test_it_is_built_in_and_allows_a_stop_and_a_reset_in_half_an_hour() -> None:
    cls = load_playbooks().get("CircuitBreakerOpen")
    assert cls is not None
    assert (cls.limits.budget, cls.limits.window.total_seconds()) == (2, 1800)
    assert cls.limits.cooldown.total_seconds() == 1800
    assert cls.senses == {"admin", "prometheus"}
    assert cls.levers == {"reset_breaker", "set_migration"}
