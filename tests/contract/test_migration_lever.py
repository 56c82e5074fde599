"""MigrationMitigator, HttpMigrations and HttpAdmin keep their contracts on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.backends.http.breakers import HttpBreakers
from remediator.backends.http.client import HttpEndpoint
from remediator.backends.http.migrations import HttpAdmin, HttpMigrations, MigrationMitigator
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.finding import SenseState
from remediator.model.mitigation import Item, Mitigation, MitigationState, Preparation
from remediator.model.ports import Breakers, Endpoint, Migrations
from remediator.model.readings import BreakerState, Migration
from remediator.model.target import Target
from tests.breaker_fixtures import READER, WRITER, BreakerService, breaker_service

TARGET = Target(system="shop", service="pay", role="admin", kind="http", name="pay-admin")
APPLIED, NOT_APPLIED = MitigationState.APPLIED, MitigationState.NOT_APPLIED
UNKNOWN = MitigationState.UNKNOWN


def stop_of(*pairs: str, **changes: Any) -> Mitigation:
    mitigation = Mitigation(
        kind="set_migration",
        target=TARGET,
        reason="a test",
        items=tuple(Item(key=p, identity={"pair": p, "percentage": 25}) for p in pairs),
        parameters={"percentage": 0},
    )
    return mitigation.model_copy(update=changes)


def reader_of(service: BreakerService) -> HttpMigrations:
    return HttpMigrations(service.url, name="http pay", token=READER)


@asynccontextmanager
async def lever_with(
    *, token: str = WRITER, **percentages: float
) -> AsyncIterator[tuple[BreakerService, MigrationMitigator]]:
    async with breaker_service() as service:
        service.migrations = dict(percentages)
        async with MigrationMitigator(service.url, name="http pay", token=token) as lever:
            yield service, lever


# --- reading ----------------------------------------------------------------------------------


async def test_pairs_are_read_with_their_percentages() -> None:
    async with breaker_service() as service, reader_of(service) as reader:
        assert await reader.migrations() == (), "nothing was ever migrated"
        service.migrations = {"BTCUSDT": 25, "ETHUSDT": 0.5}
        assert await reader.migrations() == (
            Migration(pair="BTCUSDT", percentage=25),
            Migration(pair="ETHUSDT", percentage=0.5),
        )
        assert (await reader.probe()).state is SenseState.OK
        endpoint: Endpoint = reader
        assert await endpoint.get_json("/health") == {"status": "UP"}
        assert isinstance(reader, Migrations)
        assert not isinstance(reader, Breakers)


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"error": "no"},
        "none",
        0,
        [[]],
        ["BTCUSDT"],
        [{"pair": "a"}],
        [{"pair": "a", "current_percentage": None}],
        [{"pair": "a", "current_percentage": "25"}],
        [{"pair": "a", "current_percentage": True}],
        [{"pair": "a", "current_percentage": -1}],
        [{"pair": "a", "current_percentage": 101}],
        [{"pair": 3, "current_percentage": 1}],
        [{"pair": "a", "current_percentage": 1}, {"pair": "a", "current_percentage": 0}],
    ],
)
async def test_nonsense_is_no_list_and_never_zero(status: Any) -> None:
    """T-38: null is no percentage."""
    async with breaker_service() as service, reader_of(service) as reader:
        service.status_of_migrations = status
        with pytest.raises(BackendUnavailable):
            await reader.migrations()
        assert (await reader.probe()).state is SenseState.IMPAIRED


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["pair", "current_percentage"]), inner)
    ),
    max_leaves=8,
)


async def test_any_answer_is_read_or_unavailable() -> None:
    answers: list[Any] = []

    @settings(max_examples=60, deadline=None)
    @given(JSON)
    def collect(answer: Any) -> None:
        answers.append(answer)

    collect()
    async with breaker_service() as service, reader_of(service) as reader:
        for answer in answers:
            service.status_of_migrations = answer
            try:
                found = await reader.migrations()
            except BackendUnavailable:
                continue
            assert all(0 <= one.percentage <= 100 for one in found)


async def test_one_reader_shows_breakers_and_migrations_and_is_impaired_by_either() -> None:
    async with breaker_service(BTCUSDT="OPEN") as service:
        service.migrations = {"BTCUSDT": 25}
        reader = HttpAdmin(service.url, shape="admin", name="http pay", token=READER)
        async with reader:
            assert isinstance(reader, Breakers)
            assert isinstance(reader, Migrations)
            assert (await reader.breakers())[0].state is BreakerState.OPEN
            assert (await reader.migrations())[0].percentage == 25
            assert (await reader.probe()).state is SenseState.OK
            service.status_of_migrations = {}
            assert "/admin/migration/status" in (await reader.probe()).reason
            service.status_of_migrations, service.listing = None, {}
            assert "/admin/circuit-breaker/status" in (await reader.probe()).reason


def test_what_is_not_configured_is_not_there() -> None:
    assert not isinstance(HttpBreakers("http://h", shape="admin", name="h"), Migrations)
    assert not isinstance(HttpEndpoint("http://h"), Migrations)


# --- changing ---------------------------------------------------------------------------------


async def test_exactly_the_named_pairs_are_set_with_one_call_each() -> None:
    """T-36: as JSON; a form would not be read."""
    async with lever_with(BTCUSDT=25, ETHUSDT=50, XRPUSDT=75) as (service, lever):
        preparation = await lever.prepare(stop_of("BTCUSDT", "ETHUSDT"))
        assert service.moved == []
        assert preparation.before == {"percentages": {"BTCUSDT": 25, "ETHUSDT": 50}}
        assert preparation.undo is None
        outcome = await lever.apply(preparation, "key")
        assert outcome.state is APPLIED
        assert "(before: BTCUSDT 25 %, ETHUSDT 50 %)" in outcome.detail
        assert service.migrations == {"BTCUSDT": 0, "ETHUSDT": 0, "XRPUSDT": 75}
        assert service.moved == [
            {"pair": "BTCUSDT", "percentage": 0},
            {"pair": "ETHUSDT", "percentage": 0},
        ]
        assert (await lever.observe(preparation, "key")).state is APPLIED
        again = await lever.apply(preparation, "key")
    assert again.state is NOT_APPLIED
    assert len(service.moved) == 2


async def test_pair_that_is_there_already_is_left_out_and_all_of_them_are_refused() -> None:
    async with lever_with(BTCUSDT=25, ETHUSDT=0) as (service, lever):
        preparation = await lever.prepare(stop_of("BTCUSDT", "ETHUSDT"))
        assert [item.key for item in preparation.mitigation.items] == ["BTCUSDT"]
        with pytest.raises(BackendRefused, match="already so: ETHUSDT is at 0 %"):
            await lever.prepare(stop_of("ETHUSDT"))
        with pytest.raises(BackendRefused, match="already so"):
            await lever.prepare(stop_of("BTCUSDT", parameters={"percentage": 30}))
    assert service.moved == []


async def test_finished_migration_is_never_lowered() -> None:
    async with lever_with(BTCUSDT=100, ETHUSDT=25) as (service, lever):
        with pytest.raises(BackendRefused, match="finished: BTCUSDT is at 100 %"):
            await lever.prepare(stop_of("BTCUSDT"))
        preparation = await lever.prepare(stop_of("BTCUSDT", "ETHUSDT"))
        assert [item.key for item in preparation.mitigation.items] == ["ETHUSDT"]
        service.migrations["ETHUSDT"] = 100
        assert (await lever.apply(preparation, "key")).state is NOT_APPLIED
    assert service.moved == []


async def test_after_five_seconds_no_further_pair_is_begun() -> None:
    async with breaker_service() as service:
        service.migrations = dict.fromkeys(("a", "b", "c", "d"), 25.0)

        def clock() -> float:
            return 3.0 * len(service.moved)

        token = {"name": "http pay", "token": WRITER}
        async with MigrationMitigator(service.url, **token, clock=clock) as lever:
            preparation = await lever.prepare(stop_of("a", "b", "c", "d"))
            outcome = await lever.apply(preparation, "key")
    assert [item.state for item in outcome.items] == [APPLIED, APPLIED, NOT_APPLIED, NOT_APPLIED]
    assert outcome.state is APPLIED
    assert "not begun: c, 5 s have passed" in outcome.detail
    assert service.migrations == {"a": 0, "b": 0, "c": 25, "d": 25}


async def test_what_a_human_lowered_meanwhile_is_never_raised() -> None:
    async with lever_with(BTCUSDT=25) as (service, lever):
        preparation = await lever.prepare(stop_of("BTCUSDT", parameters={"percentage": 10}))
        service.migrations["BTCUSDT"] = 5
        outcome = await lever.apply(preparation, "key")
    assert outcome.state is NOT_APPLIED
    assert service.migrations == {"BTCUSDT": 5}
    assert service.moved == []


async def test_pair_that_is_not_listed_is_refused_and_never_sent() -> None:
    async with lever_with(BTCUSDT=25) as (service, lever):
        with pytest.raises(BackendRefused, match="no migration is listed for DOGEUSDT"):
            await lever.prepare(stop_of("BTCUSDT", "DOGEUSDT"))
        direct = await lever.apply(Preparation(mitigation=stop_of("DOGEUSDT")), "key")
    assert direct.state is NOT_APPLIED
    assert service.moved == []


async def test_lost_answer_ends_it_is_looked_up_and_not_repeated() -> None:
    async with lever_with(BTCUSDT=25, ETHUSDT=50) as (service, lever):
        service.drop = True
        preparation = await lever.prepare(stop_of("BTCUSDT", "ETHUSDT"))
        outcome = await lever.apply(preparation, "key")
        assert outcome.state is UNKNOWN
        assert [item.state for item in outcome.items] == [UNKNOWN, NOT_APPLIED]
        observed = await lever.observe(preparation, "key")
        assert observed.state is UNKNOWN, "one is at 0 and one is not"
        assert "BTCUSDT is at 0 %; ETHUSDT is at 50 %" in observed.detail
        service.migrations["ETHUSDT"] = 0
        assert (await lever.observe(preparation, "key")).state is APPLIED
    assert len(service.moved) == 1
    assert lever.conditional is False, "so the engine never sends it a second time"


@pytest.mark.parametrize(
    ("now", "state"),
    [
        ({"BTCUSDT": 0}, APPLIED),
        ({"BTCUSDT": 1}, NOT_APPLIED),
        ({"ETHUSDT": 0}, UNKNOWN),
    ],
)
async def test_observe_says_only_what_the_status_proves(now: Any, state: MitigationState) -> None:
    async with lever_with(BTCUSDT=25) as (service, lever):
        preparation = await lever.prepare(stop_of("BTCUSDT"))
        service.migrations = now
        assert (await lever.observe(preparation, "key")).state is state


async def test_a_status_that_cannot_be_read_is_nothing_seen() -> None:
    async with lever_with(BTCUSDT=25) as (service, lever):
        preparation = await lever.prepare(stop_of("BTCUSDT"))
        service.status_of_migrations = "nonsense"
        with pytest.raises(BackendUnavailable):
            await lever.observe(preparation, "key")


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (204, APPLIED),
        (400, NOT_APPLIED),
        (404, NOT_APPLIED),
        (415, NOT_APPLIED),
        (429, NOT_APPLIED),
        (302, UNKNOWN),
        (408, UNKNOWN),
        (500, UNKNOWN),
    ],
)
async def test_the_answer_tells_whether_it_was_done(status: int, state: MitigationState) -> None:
    async with lever_with(BTCUSDT=25, ETHUSDT=25) as (service, lever):
        service.status = status
        preparation = await lever.prepare(stop_of("BTCUSDT", "ETHUSDT"))
        outcome = await lever.apply(preparation, "key")
    assert outcome.state is state
    assert len(service.moved) == (2 if state is APPLIED else 1), "the first failure ends it"


@pytest.mark.parametrize(
    "changes",
    [
        {"items": ()},
        {"items": (Item(key="BTCUSDT"),)},
        {"items": (Item(key="BTCUSDT", identity={"pair": "ETHUSDT"}),)},
        {"items": 2 * (Item(key="BTCUSDT", identity={"pair": "BTCUSDT"}),)},
        {"items": (Item(key="all", identity={"pair": "all"}),)},
        {"items": (Item(key="ALL", identity={"pair": "ALL"}),)},
        {"parameters": {"percentage": -1}},
        {"parameters": {"percentage": 101}},
        {"parameters": {"percentage": "0"}},
        {"parameters": {"percentage": True}},
        {"parameters": {"percentage": 0, "pair": "all"}},
        {"kind": "emergency_stop"},
    ],
)
async def test_unclear_plan_is_refused_and_all_is_no_pair(changes: dict[str, Any]) -> None:
    async with lever_with(BTCUSDT=25, all=25, ALL=25) as (service, lever):
        plan = stop_of("BTCUSDT", **changes)
        for attempt in (lever.prepare(plan), lever.apply(Preparation(mitigation=plan), "key")):
            with pytest.raises(BackendRefused):
                await attempt
    assert service.moved == []


async def test_figure_that_is_not_given_is_zero() -> None:
    async with lever_with(BTCUSDT=25) as (service, lever):
        await lever.apply(await lever.prepare(stop_of("BTCUSDT", parameters={})), "key")
    assert service.moved == [{"pair": "BTCUSDT", "percentage": 0}]


async def test_only_a_human_puts_it_back() -> None:
    async with lever_with(BTCUSDT=25) as (service, lever):
        preparation = await lever.prepare(stop_of("BTCUSDT"))
        await lever.apply(preparation, "key")
        with pytest.raises(BackendRefused, match=r"by a human only \(before: BTCUSDT 25 %\)"):
            await lever.revert(preparation, "key")
    assert service.migrations == {"BTCUSDT": 0}


async def test_readers_token_cannot_change_anything_and_is_not_told() -> None:
    async with lever_with(token=READER, BTCUSDT=25) as (service, lever):
        assert (await lever.probe()).state is SenseState.OK
        outcome = await lever.apply(await lever.prepare(stop_of("BTCUSDT")), "key")
    assert outcome.state is NOT_APPLIED
    assert "HTTP 403" in outcome.detail
    assert READER not in outcome.detail
    assert service.migrations == {"BTCUSDT": 25}


async def test_service_that_is_down_is_unavailable_and_nothing_is_sent() -> None:
    async with breaker_service() as service:
        pass
    async with MigrationMitigator(service.url, name="http pay", token=WRITER) as lever:
        with pytest.raises(BackendUnavailable):
            await lever.prepare(stop_of("BTCUSDT"))
        assert (await lever.probe()).state is SenseState.IMPAIRED
        outcome = await lever.apply(Preparation(mitigation=stop_of("BTCUSDT")), "key")
        assert outcome.state is NOT_APPLIED
        with pytest.raises(BackendUnavailable):
            await lever.observe(Preparation(mitigation=stop_of("BTCUSDT")), "key")
