"""CircuitBreakerOpen resets one breaker whose upstream is proven healthy, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from playbooks.circuit_breaker_open import BreakerParameters, CircuitBreakerOpen
from remediator.adapters.breakers import BreakerLever, HttpBreakers, ShapeName
from remediator.adapters.http import HttpEndpoint
from remediator.model import (
    Assessment,
    FindingStatus,
    Incident,
    IncidentId,
    IncidentState,
    Mitigation,
    MitigationState,
    Phase,
    Sample,
    Target,
)
from remediator.playbook import Context, load_playbooks
from remediator.ports import Port
from remediator.testing import PlaybookRun, firing_alert, run_playbook
from tests.breaker_fixtures import READER, WRITER, BreakerService, breaker_service

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TARGETS = {
    role: Target(system="shop", service="pay", role=role, kind="http", name=f"pay-{role}")
    for role in ("admin", "upstream")
}
BOTH = pytest.mark.parametrize("shape", ["actuator", "admin"])
FIVE = dict.fromkeys(("a", "b", "c", "d", "e"), "OPEN")


def playbook_of(**parameters: Any) -> CircuitBreakerOpen:
    quick = {"upstreams": {"payments": {}, "search": {}}, "probe_gap": "1ms"}
    return CircuitBreakerOpen(BreakerParameters.model_validate(quick | parameters))


@dataclass
class Scene:
    """A service with breakers, its upstream, and our two ways to the service."""

    service: BreakerService
    lever: BreakerLever
    ports: dict[str, Port]
    labels: dict[str, str] = field(default_factory=dict)
    tried: tuple[Mitigation, ...] = ()

    async def look(self, **parameters: Any) -> PlaybookRun:
        return await run_playbook(
            playbook_of(**parameters),
            alert=firing_alert("CircuitBreakerOpen", self.labels, NOW),
            targets=TARGETS,
            ports=self.ports,
            now=lambda: NOW,
            tried=self.tried,
        )

    async def refused(self, **parameters: Any) -> str:
        """Look, see that nothing is proposed and nothing was sent, and return why."""
        run = await self.look(**parameters)
        assert run.proposal.mitigations == ()
        assert self.service.posts == []
        return run.proposal.reason

    async def pull(self, mitigation: Mitigation) -> MitigationState:
        preparation = await self.lever.prepare(mitigation)
        outcome = await self.lever.apply(preparation, "key")
        if outcome.state is MitigationState.UNKNOWN:
            outcome = await self.lever.observe(preparation, "key")
        return outcome.state

    async def verify(self, mitigation: Mitigation) -> Sample:
        incident = Incident(
            id=IncidentId("inc-1"),
            correlation_key="shop/pay",
            state=IncidentState.OPEN,
            phase=Phase.VERIFY,
            outcome=None,
            reason="",
            system="shop",
            service="pay",
            playbook="CircuitBreakerOpen",
            dry_run=False,
            replay_of=None,
            round=1,
            epoch=1,
            opened_at=NOW,
            closed_at=None,
            phase_since=NOW,
        )
        context = Context(incident=incident, alerts=(), targets=TARGETS, ports=self.ports, now=NOW)
        return await playbook_of().verify(context, mitigation)


@asynccontextmanager
async def scene_of(shape: ShapeName = "actuator", **breakers: str) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(breaker_service(**breakers))
        lever = BreakerLever(service.url, shape=shape, name="http pay", token=WRITER)
        reader = HttpBreakers(service.url, shape=shape, name="http pay", token=READER)
        upstream = HttpEndpoint(service.url, name="http bank")
        ports: dict[str, Port] = {
            "admin": await stack.enter_async_context(reader),
            "upstream": await stack.enter_async_context(upstream),
        }
        yield Scene(service, await stack.enter_async_context(lever), ports)


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
        assert "wait for the upstream" in await scene.refused()


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
        ("FORCED_OPEN", "forced open by a human"),
        ("DISABLED", "disabled by a human"),
        ("SOMETHING_NEW", "a state that we do not know"),
        ("CLOSED", "No circuit breaker is open"),
    ],
)
async def test_breaker_that_is_not_simply_open_is_left_alone(state: str, said: str) -> None:
    async with scene_of(payments=state) as scene:
        assert said in await scene.refused()
        assert scene.service.probes == 0


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


# --- what an alert may say --------------------------------------------------------------------


@pytest.mark.parametrize("label", ["breaker", "name", "pair"])
async def test_label_selects_among_the_listed_breakers(label: str) -> None:
    async with scene_of(payments="OPEN", search="OPEN") as scene:
        scene.labels = {label: "search"}
        run = await scene.look(multi_threshold=3)
    (plan,) = run.proposal.mitigations
    assert [item.key for item in plan.items] == ["search"]


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
        assert "search is closed" in await scene.refused()


# --- afterwards -------------------------------------------------------------------------------


async def test_breaker_that_opened_again_is_not_reset_again() -> None:
    async with scene_of(payments="OPEN") as scene:
        scene.tried = (await scene.look()).proposal.mitigations
        assert "opened again" in await scene.refused()


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
    [{"clean_probes": 1}, {"probe_gap": "13s"}, {"multi_threshold": 1}, {"force": True}],
)
def test_parameters_that_would_be_careless_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        playbook_of(**parameters)


def test_it_is_built_in_and_allows_one_reset_in_half_an_hour() -> None:
    cls = load_playbooks().get("CircuitBreakerOpen")
    assert cls is not None
    assert (cls.limits.budget, cls.limits.window.total_seconds()) == (1, 1800)
    assert cls.limits.cooldown.total_seconds() == 1800
