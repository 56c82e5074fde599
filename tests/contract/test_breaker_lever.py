"""BreakerMitigator and HttpBreakers keep their contracts on a real server, in both shapes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.backends.http.breakers import SHAPES, BreakerMitigator, HttpBreakers, ShapeName
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.finding import SenseState
from remediator.model.mitigation import Item, Mitigation, MitigationState, Preparation
from remediator.model.ports import Breakers, Endpoint
from remediator.model.readings import BreakerState
from remediator.model.target import Target
from tests.breaker_fixtures import READER, WRITER, BreakerService, breaker_service

TARGET = Target(system="shop", service="pay", role="admin", kind="http", name="pay-admin")
BOTH = pytest.mark.parametrize("shape", ["actuator", "admin"])


def reset_of(name: str, **changes: Any) -> Mitigation:
    mitigation = Mitigation(
        kind="reset_breaker",
        target=TARGET,
        reason="a test",
        items=(Item(key=name, identity={"name": name}),),
    )
    return mitigation.model_copy(update=changes)


@asynccontextmanager
async def lever_for(
    service: BreakerService, shape: ShapeName, token: str = WRITER
) -> AsyncIterator[BreakerMitigator]:
    async with BreakerMitigator(service.url, shape=shape, name="http pay", token=token) as lever:
        yield lever


@asynccontextmanager
async def reader_for(service: BreakerService, shape: ShapeName) -> AsyncIterator[HttpBreakers]:
    async with HttpBreakers(service.url, shape=shape, name="http pay", token=READER) as reader:
        yield reader


# --- reading ----------------------------------------------------------------------------------


async def test_actuators_states_are_read() -> None:
    """T-34: a map, with states in upper case."""
    states = ["CLOSED", "OPEN", "HALF_OPEN", "FORCED_OPEN", "DISABLED", "METRICS_ONLY", "NEW"]
    async with (
        breaker_service(**{state.lower(): state for state in states}) as service,
        reader_for(service, "actuator") as reader,
    ):
        found = {breaker.name: breaker for breaker in await reader.breakers()}
        assert isinstance(reader, Breakers)
        endpoint: Endpoint = reader
        assert await endpoint.get_json("/health") == {"status": "UP"}
    assert [b.state.value for b in found.values()] == [
        *(state.lower() for state in states[:5]),
        "disabled",
        "unknown",
    ]
    assert found["open"].failure_rate == pytest.approx(0.625)


async def test_admins_states_are_read() -> None:
    async with (
        breaker_service(BTCUSDT="OPEN", ETHUSDT="CLOSED") as service,
        reader_for(service, "admin") as reader,
    ):
        first, second = await reader.breakers()
    assert (first.name, first.state, first.reason) == ("BTCUSDT", BreakerState.OPEN, "error rate")
    assert second.state is BreakerState.CLOSED


async def test_admins_breaker_without_a_reason_counts_as_opened_by_a_human() -> None:
    async with breaker_service() as service, reader_for(service, "admin") as reader:
        service.listing = [{"pair": "a", "open": True}, {"pair": "b", "open": True, "reason": " "}]
        assert {b.state for b in await reader.breakers()} == {BreakerState.FORCED_OPEN}


async def test_state_that_is_not_told_is_unknown() -> None:
    async with breaker_service() as service, reader_for(service, "admin") as reader:
        service.listing = [{"pair": "BTCUSDT", "open": "no"}, {"pair": "ETHUSDT"}]
        assert {b.state for b in await reader.breakers()} == {BreakerState.UNKNOWN}


@pytest.mark.parametrize(
    ("shape", "listing"),
    [
        ("actuator", {"circuitBreakers": {}}),
        ("actuator", {"circuitBreakers": ["a", "b"]}),
        ("actuator", {"circuitBreakers": {"a": {}}}),
        ("actuator", {"circuitBreakers": {"a": {"state": ["OPEN"]}}}),
        ("actuator", []),
        ("admin", []),
        ("admin", {"error": "no"}),
        ("admin", [{"open": True}]),
        ("admin", [{"pair": 3, "open": True}]),
        ("admin", [{"pair": "a", "open": True}, {"pair": "a", "open": False}]),
        ("admin", 0),
    ],
)
async def test_nonsense_and_nothing_are_no_list(shape: ShapeName, listing: Any) -> None:
    """T-38: an empty answer does not mean that all are closed."""
    async with breaker_service() as service, reader_for(service, shape) as reader:
        service.listing = listing
        with pytest.raises(BackendUnavailable):
            await reader.breakers()
        assert (await reader.probe()).state is SenseState.IMPAIRED


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["circuitBreakers", "state", "pair", "open", "x"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["actuator", "admin"]), JSON)
def test_any_answer_is_read_or_refused(shape: ShapeName, answer: Any) -> None:
    try:
        found = list(SHAPES[shape].read(answer))
    except (KeyError, TypeError, ValueError, AttributeError):
        return
    assert all(breaker.state in BreakerState for breaker in found)


@BOTH
async def test_probe_says_whether_the_token_is_taken(shape: ShapeName) -> None:
    async with breaker_service(a="OPEN") as service:
        async with lever_for(service, shape) as lever:
            assert (await lever.probe()).state is SenseState.OK
        async with lever_for(service, shape, token="wrong") as lever:
            sense = await lever.probe()
    assert sense.state is SenseState.IMPAIRED
    assert "check its token" in sense.reason
    assert "wrong" not in sense.reason
    assert service.posts == []


# --- changing ---------------------------------------------------------------------------------


@BOTH
async def test_exactly_the_meant_breaker_is_reset_once(shape: ShapeName) -> None:
    async with (
        breaker_service(payments="OPEN", search="OPEN") as service,
        lever_for(service, shape) as lever,
    ):
        preparation = await lever.prepare(reset_of("payments"))
        assert service.posts == []
        assert preparation.before["state"] == "open"
        outcome = await lever.apply(preparation, "key")
        assert outcome.state is MitigationState.APPLIED
        assert service.breakers == {"payments": "CLOSED", "search": "OPEN"}
        assert len(service.posts) == 1
        assert (await lever.observe(preparation, "key")).state is MitigationState.APPLIED
        again = await lever.apply(preparation, "key")
    assert again.state is MitigationState.NOT_APPLIED
    assert len(service.posts) == 1


@BOTH
async def test_lost_answer_is_looked_up_and_not_repeated(shape: ShapeName) -> None:
    async with (
        breaker_service(payments="OPEN") as service,
        lever_for(service, shape) as lever,
    ):
        service.drop = True
        preparation = await lever.prepare(reset_of("payments"))
        outcome = await lever.apply(preparation, "key")
        assert outcome.state is MitigationState.UNKNOWN
        observed = await lever.observe(preparation, "key")
    assert observed.state is MitigationState.APPLIED
    assert len(service.posts) == 1
    assert lever.conditional is False


@pytest.mark.parametrize(
    ("now", "state"),
    [
        ("CLOSED", MitigationState.APPLIED),
        ("OPEN", MitigationState.NOT_APPLIED),
        ("HALF_OPEN", MitigationState.UNKNOWN),
        ("FORCED_OPEN", MitigationState.UNKNOWN),
        ("NEW", MitigationState.UNKNOWN),
    ],
)
async def test_observe_says_only_what_the_state_proves(now: str, state: MitigationState) -> None:
    async with breaker_service(a="OPEN") as service, lever_for(service, "actuator") as lever:
        preparation = await lever.prepare(reset_of("a"))
        service.breakers["a"] = now
        assert (await lever.observe(preparation, "key")).state is state
        service.breakers = {"b": "CLOSED"}
        assert (await lever.observe(preparation, "key")).state is MitigationState.UNKNOWN
        service.listing = "nonsense"
        with pytest.raises(BackendUnavailable):
            await lever.observe(preparation, "key")


@BOTH
@pytest.mark.parametrize(
    ("status", "state"),
    [
        (204, MitigationState.APPLIED),
        (400, MitigationState.NOT_APPLIED),
        (403, MitigationState.NOT_APPLIED),
        (404, MitigationState.NOT_APPLIED),
        (429, MitigationState.NOT_APPLIED),
        (302, MitigationState.UNKNOWN),
        (408, MitigationState.UNKNOWN),
        (500, MitigationState.UNKNOWN),
        (504, MitigationState.UNKNOWN),
    ],
)
async def test_the_answer_tells_whether_it_was_done(
    shape: ShapeName, status: int, state: MitigationState
) -> None:
    async with breaker_service(a="OPEN") as service, lever_for(service, shape) as lever:
        service.status = status
        preparation = await lever.prepare(reset_of("a"))
        outcome = await lever.apply(preparation, "key")
    assert outcome.state is state
    assert len(service.posts) == 1


@BOTH
async def test_unknown_name_is_never_posted(shape: ShapeName) -> None:
    """T-33: the actuator would create a breaker of that name."""
    async with breaker_service(payments="OPEN") as service, lever_for(service, shape) as lever:
        with pytest.raises(BackendRefused, match="not listed"):
            await lever.prepare(reset_of("paymentz"))
        gone = await lever.prepare(reset_of("payments"))
        service.breakers = {"other": "OPEN"}
        outcome = await lever.apply(gone, "key")
        assert outcome.state is MitigationState.NOT_APPLIED
        direct = await lever.apply(Preparation(mitigation=reset_of("paymentz")), "key")
        assert direct.state is MitigationState.NOT_APPLIED
    assert service.posts == service.created == []


@pytest.mark.parametrize("state", ["CLOSED", "HALF_OPEN", "FORCED_OPEN", "DISABLED", "NEW"])
async def test_what_is_not_open_is_refused_and_not_posted(state: str) -> None:
    async with breaker_service(a="OPEN") as service, lever_for(service, "actuator") as lever:
        preparation = await lever.prepare(reset_of("a"))
        service.breakers["a"] = state
        with pytest.raises(BackendRefused, match="breaker a "):
            await lever.prepare(reset_of("a"))
        outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert service.posts == []


@pytest.mark.parametrize("name", ["BTC/USDT", "a b", "50%", "ünïcode", "x?y#z", "a:b", "%41"])
async def test_name_reaches_the_service_as_it_is(name: str) -> None:
    async with breaker_service(**{name: "OPEN"}) as service, lever_for(service, "admin") as lever:
        outcome = await lever.apply(await lever.prepare(reset_of(name)), "key")
    assert outcome.state is MitigationState.APPLIED
    assert service.posts == [f"/admin/circuit-breaker/reset/{name}"]


@pytest.mark.parametrize("name", ["..", "../reset-all", "%2e%2e"])
async def test_name_that_leads_elsewhere_is_refused(name: str) -> None:
    async with breaker_service(**{name: "OPEN"}) as service, lever_for(service, "admin") as lever:
        outcome = await lever.apply(await lever.prepare(reset_of(name)), "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert service.posts == []


@pytest.mark.parametrize(
    "changes",
    [
        {"items": ()},
        {"items": (Item(key="a", identity={"name": "a"}), Item(key="b", identity={"name": "b"}))},
        {"items": (Item(key="a"),)},
        {"items": (Item(key="a", identity={"name": "b"}),)},
        {"parameters": {"updateState": "DISABLE"}},
        {"kind": "force_open"},
    ],
)
async def test_unclear_plan_is_refused(changes: dict[str, Any]) -> None:
    async with (
        breaker_service(a="OPEN", b="OPEN") as service,
        lever_for(service, "actuator") as lever,
    ):
        plan = reset_of("a", **changes)
        for attempt in (lever.prepare(plan), lever.apply(Preparation(mitigation=plan), "key")):
            with pytest.raises(BackendRefused):
                await attempt
    assert service.posts == []


async def test_readers_token_cannot_reset_and_a_reset_is_not_taken_back() -> None:
    async with (
        breaker_service(a="OPEN") as service,
        lever_for(service, "actuator", token=READER) as lever,
    ):
        preparation = await lever.prepare(reset_of("a"))
        outcome = await lever.apply(preparation, "key")
        assert outcome.state is MitigationState.NOT_APPLIED
        assert "HTTP 403" in outcome.detail
        with pytest.raises(BackendRefused):
            await lever.revert(preparation, "key")
    assert service.breakers == {"a": "OPEN"}


async def test_service_that_is_down_is_unavailable_and_nothing_is_sent() -> None:
    async with breaker_service(a="OPEN") as service:
        pass
    async with lever_for(service, "actuator") as lever:
        with pytest.raises(BackendUnavailable):
            await lever.prepare(reset_of("a"))
        outcome = await lever.apply(Preparation(mitigation=reset_of("a")), "key")
    assert outcome.state is MitigationState.NOT_APPLIED
