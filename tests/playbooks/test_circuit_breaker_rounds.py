"""What the engine makes of CircuitBreakerOpen over minutes, on a frozen clock and a real server."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from playbooks.circuit_breaker_open import CircuitBreakerOpen
from remediator.backends.http.breakers import BreakerMitigator, ShapeName
from remediator.backends.http.client import HttpEndpoint
from remediator.backends.http.migrations import HttpAdmin, MigrationMitigator
from remediator.model.alert import Alert
from remediator.model.catalog import Catalogue, EnabledPlaybook, Service
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.ports import Port
from remediator.model.target import Mode, Risk, Target
from remediator.playbook.loader import PlaybookSet
from remediator.remediation.step import Mitigators
from tests.breaker_fixtures import READER, WRITER, BreakerService, breaker_service
from tests.store_fixtures import WIDE, Bench, OpenBench, resolved

pytestmark = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
BOTH = pytest.mark.parametrize("shape", ["actuator", "admin"])
FIVE: dict[str, Any] = dict.fromkeys(("a", "b", "c", "d", "e"), "OPEN")
TARGETS = {
    role: Target(system="shop", service="pay", role=role, kind="http", name=f"pay-{role}")
    for role in ("admin", "upstream")
}
PARAMETERS = {"upstreams": {"payments": {}}, "probe_gap": "100ms"}


def pay(parameters: dict[str, Any]) -> Service:
    enabled = EnabledPlaybook(
        name="CircuitBreakerOpen",
        modes=dict.fromkeys(Risk, Mode.AUTO),
        parameters=PARAMETERS | parameters,
    )
    return Service(
        system="shop",
        name="pay",
        match={"system": "shop", "service": "pay"},
        targets=TARGETS,
        prometheus=None,
        playbooks={enabled.name: enabled},
        limits=WIDE,
        system_limits=WIDE,
        target_limits=WIDE,
    )


@asynccontextmanager
async def running(
    open_bench: OpenBench,
    shape: ShapeName = "actuator",
    *,
    parameters: dict[str, Any] | None = None,
    **breakers: str,
) -> AsyncIterator[tuple[Bench, BreakerService, Alert]]:
    """Run the engine beside a service whose alert has just come in."""
    async with (
        open_bench() as bench,
        breaker_service(**breakers) as service,
        HttpAdmin(service.url, shape=shape, name="http pay", token=READER) as admin,
        HttpEndpoint(service.url, name="http bank") as upstream,
        BreakerMitigator(service.url, shape=shape, name="http pay", token=WRITER) as resets,
        MigrationMitigator(service.url, name="http pay", token=WRITER) as moves,
    ):
        ports: dict[str, Port] = {"admin": admin, "upstream": upstream}
        bench.around = dataclasses.replace(
            bench.around,
            catalogue=Catalogue(services=(pay(parameters or {}),), limits=WIDE),
            playbooks=PlaybookSet([CircuitBreakerOpen]),
            ports=lambda service: ports,
            levers=Mitigators({("http", "pay-admin"): (resets, moves)}),
        )
        alert = bench.alert(alertname="CircuitBreakerOpen", service="pay")
        await bench.receive(alert)
        yield bench, service, alert


def minutes(number: float) -> float:
    return timedelta(minutes=number).total_seconds()


@BOTH
async def test_upstream_that_stays_down_is_waited_for_and_then_told_to_a_human(
    open_bench: OpenBench, shape: ShapeName
) -> None:
    async with running(open_bench, shape, payments="OPEN") as (bench, service, _):
        service.health = [503]
        await bench.settle(minutes(9))
        assert (await bench.incident()).outcome is None, "it waits"
        assert service.probes > 15
        await bench.settle(minutes(2))
        incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED
    assert "wait for the upstream" in incident.reason
    assert service.posts == service.moved == []
    waits = [line for line in incident.timeline if line.event.startswith("waiting")]
    assert len(waits) == 1, "said once"


@BOTH
async def test_upstream_that_comes_back_while_we_wait_leads_to_exactly_one_reset(
    open_bench: OpenBench, shape: ShapeName
) -> None:
    async with running(open_bench, shape, payments="OPEN", search="CLOSED") as parts:
        bench, service, alert = parts
        service.health = [503]
        await bench.settle(minutes(4))
        assert service.posts == []
        service.health = [200]
        await bench.settle(minutes(4.9))
        assert service.posts == [], "it has to be healthy for five minutes"
        await bench.settle(minutes(12))
        assert (await bench.incident()).phase is Phase.SETTLE
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle(5)
        assert (await bench.incident()).outcome is IncidentOutcome.MITIGATED
    assert len(service.posts) == 1
    assert service.breakers == {"payments": "CLOSED", "search": "CLOSED"}


@BOTH
async def test_look_that_fails_begins_the_five_minutes_anew(
    open_bench: OpenBench, shape: ShapeName
) -> None:
    async with running(open_bench, shape, payments="OPEN") as (bench, service, _):
        await bench.settle(minutes(3))
        service.health = [503, 200]
        await bench.settle(minutes(4.5))
        assert service.posts == []
        await bench.settle(minutes(1.5))
    assert len(service.posts) == 1


async def test_breaker_that_may_close_by_itself_gets_twice_its_wait_duration(
    open_bench: OpenBench,
) -> None:
    own = {"wait_duration": "2m", "clean_for": "1s"}
    async with running(open_bench, parameters=own, payments="OPEN") as (bench, service, _):
        await bench.settle(minutes(3.9))
        assert service.posts == []
        assert "may close by itself" in (await bench.incident()).reason
        await bench.settle(minutes(0.7))
    assert len(service.posts) == 1


async def test_no_parameter_shortens_the_five_minutes_where_no_breaker_is_ever_half_open(
    open_bench: OpenBench,
) -> None:
    own = {"wait_duration": "1s", "clean_for": "1s"}
    async with running(open_bench, "admin", parameters=own, payments="OPEN") as parts:
        bench, service, _ = parts
        await bench.settle(minutes(4.9))
        assert service.posts == []
        await bench.settle(minutes(0.7))
    assert len(service.posts) == 1


async def test_time_in_which_nobody_looked_proves_nothing(open_bench: OpenBench) -> None:
    async with running(open_bench, payments="OPEN") as (bench, service, _):
        await bench.settle(minutes(2))
        bench.clock.advance(timedelta(minutes=4))
        await bench.settle(1)
        assert service.posts == []


async def test_half_open_breaker_that_closes_by_itself_needs_no_human(
    open_bench: OpenBench,
) -> None:
    async with running(open_bench, payments="HALF_OPEN") as (bench, service, alert):
        await bench.settle(minutes(3))
        service.breakers["payments"] = "CLOSED"
        await bench.settle(minutes(2))
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle(5)
        assert (await bench.incident()).outcome is IncidentOutcome.RESOLVED_BY_ITSELF
    assert service.posts == []


@BOTH
async def test_reset_whose_answer_is_lost_is_looked_at_and_not_repeated(
    open_bench: OpenBench, shape: ShapeName
) -> None:
    async with running(open_bench, shape, payments="OPEN") as (bench, service, _):
        service.drop = True
        await bench.settle(minutes(17))
        incident = await bench.incident()
    assert incident.phase is Phase.SETTLE
    assert len(service.posts) == 1


@BOTH
async def test_five_open_breakers_are_told_to_a_human_at_once(
    open_bench: OpenBench, shape: ShapeName
) -> None:
    async with running(open_bench, shape, **FIVE) as (bench, service, _):
        service.migrations = dict.fromkeys(FIVE, 25)
        await bench.settle()
        assert (await bench.incident()).outcome is IncidentOutcome.ESCALATED
    assert service.posts == service.moved == []


async def test_breaker_that_opens_again_is_told_to_a_human_and_not_reset_again(
    open_bench: OpenBench,
) -> None:
    async with running(open_bench, payments="OPEN") as (bench, service, _):
        await bench.settle(minutes(6))
        assert len(service.posts) == 1
        service.breakers["payments"] = "OPEN"
        await bench.settle(minutes(11))
        incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED
    assert "opened again after its reset" in incident.reason
    assert len(service.posts) == 1


@BOTH
async def test_migration_is_stopped_first_and_the_reset_follows_in_a_later_round(
    open_bench: OpenBench, shape: ShapeName
) -> None:
    async with running(open_bench, shape, payments="OPEN") as (bench, service, alert):
        service.migrations = {"payments": 25, "search": 50}
        await bench.settle(minutes(10))
        assert service.moved == [{"pair": "payments", "percentage": 0}]
        assert service.posts == [], "the stop is judged first"
        await bench.settle(minutes(20))
        assert len(service.posts) == 1
        assert (await bench.incident()).phase is Phase.SETTLE
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle(5)
        incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.MITIGATED
    assert service.migrations == {"payments": 0, "search": 50}
    assert len(service.moved) == len(service.posts) == 1


async def test_stopped_migration_that_lets_the_breaker_close_needs_no_reset(
    open_bench: OpenBench,
) -> None:
    async with running(open_bench, payments="OPEN") as (bench, service, alert):
        service.migrations = {"payments": 25}
        await bench.settle(minutes(1))
        service.breakers["payments"] = "CLOSED"
        await bench.settle(minutes(12))
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle(5)
        assert (await bench.incident()).outcome is IncidentOutcome.MITIGATED
    assert service.posts == []
    assert len(service.moved) == 1


async def test_stop_whose_answer_is_lost_without_effect_is_not_sent_again(
    open_bench: OpenBench,
) -> None:
    async with running(open_bench, payments="OPEN") as (bench, service, _):
        service.migrations = {"payments": 25}
        service.drop, service.effective = True, False
        await bench.settle(minutes(15))
        incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED
    assert "it is not repeated" in incident.reason
    assert len(service.moved) == 1
    assert service.posts == []
