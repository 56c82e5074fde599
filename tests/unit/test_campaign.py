"""The campaign's own parts that need no server: its plans, its mutants and its judge."""

from __future__ import annotations

import importlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.campaign.apiserver import Seen
from tests.campaign.approver import Answer
from tests.campaign.facts import KINDS
from tests.campaign.judge import excused, judge
from tests.campaign.mutants import BREAKS, MUTANTS, tree_of
from tests.campaign.network import Pause, Span
from tests.campaign.plan import ALWAYS, WITH_HOLD, WITH_PAUSE, plan_of
from tests.campaign.replicas import ROOT
from tests.campaign.report import untried
from tests.campaign.run import Result
from tests.campaign.sender import Accepted
from tests.campaign.zygote import PRELOADED
from tests.campaign_fixtures import AT, ENTRY, INCIDENT, LINE, Row, changed, micros, some_facts


@pytest.mark.parametrize("postgres", [True, False])
def test_a_seed_always_gives_the_same_plan(*, postgres: bool) -> None:
    plans = [plan_of(seed, postgres=postgres) for seed in range(50)]
    assert plans == [plan_of(seed, postgres=postgres) for seed in range(50)]
    assert len({plan.happenings for plan in plans}) > 40


def test_every_named_point_is_in_a_plan_of_a_short_campaign() -> None:
    plans = [plan_of(seed, postgres=seed % 2 == 0) for seed in range(200)]
    named = {str(order.point) for plan in plans for order in plan.orders if order is not None}
    assert named == {str(point) for point in (*ALWAYS, *WITH_HOLD, *WITH_PAUSE)}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_differs_from_the_service_only_where_it_is_cut(name: str, tmp_path: Path) -> None:
    tree = tree_of(name, tmp_path)
    changed = {
        str(path.relative_to(tree))
        for path in tree.rglob("*.py")
        if path.read_bytes() != (ROOT / path.relative_to(tree)).read_bytes()
    }
    assert changed == {cut.file for cut in MUTANTS[name]}


async def test_a_delivery_that_was_accepted_and_is_not_stored_is_called_lost() -> None:
    facts = some_facts(accepted=[Accepted("dlv-1", ("a",))])
    found = {broken.what for broken in await judge(facts)}
    assert "dlv-1 was answered 202 and is not stored" in found
    assert "the alert a was answered 202 and is nowhere" in found


async def test_what_is_within_every_promise_is_not_called_broken() -> None:
    assert await judge(some_facts()) == []


@pytest.mark.parametrize(
    ("table", "row", "kind"),
    [
        ("incidents", INCIDENT | {"state": "open", "phase": "act", "outcome": None}, "stuck"),
        ("incidents", INCIDENT | {"outcome": "escalated"}, "untold"),
        ("incidents", INCIDENT | {"phase": "verify"}, "wrong"),
        ("obligations", {"mitigation_id": "mit-1"}, "not taken back"),
        (
            "mitigations",
            ENTRY | {"state": "reserved", "in_flight": True},
            "stuck",
        ),
    ],
)
async def test_what_is_left_behind_is_called_by_its_name(table: str, row: Row, kind: str) -> None:
    found = await judge(some_facts([], **{table: [row]}))
    assert {broken.kind for broken in found} == {kind}


async def test_two_closes_of_one_incident_are_called_doubled() -> None:
    close = {"incident_id": "inc-1", "event": "closed as mitigated", "id": 1, "at": 0, "step": ""}
    found = await judge(some_facts(journal=[close, close | {"id": 2}], mitigations=[ENTRY]))
    assert [broken.kind for broken in found] == ["doubled"]


# --- against the backends' own records ----------------------------------------------------------


async def test_a_change_that_was_made_once_and_said_is_within_every_promise() -> None:
    assert await judge(changed(1, ENTRY)) == []


@pytest.mark.parametrize("rows", [[ENTRY], [ENTRY, ENTRY | {"effect_key": "other"}]])
async def test_a_backend_that_was_changed_twice_is_called_doubled_whatever_the_ledger_says(
    rows: list[Row],
) -> None:
    facts = changed(2, *rows)
    assert "doubled" in {broken.kind for broken in await judge(facts)}


async def test_a_change_that_is_only_said_is_called_wrong() -> None:
    assert {broken.kind for broken in await judge(changed(0, ENTRY))} == {"wrong"}


async def test_what_nobody_knows_and_no_human_got_is_called_untold() -> None:
    found = await judge(changed(1, ENTRY | {"state": "unknown"}))
    assert [broken.kind for broken in found] == ["untold"]


@pytest.mark.parametrize(
    "seen",
    [
        [Seen("ns", AT, effect="k"), Seen("ns", AT, effect="k")],
        [Seen("ns", AT, effect="unknown to the ledger")],
        [Seen("ns", AT, pod="one"), Seen("ns", AT, pod="two")],
    ],
)
async def test_what_the_api_server_saw_twice_or_nobody_noted_is_called_doubled(
    seen: list[Seen],
) -> None:
    facts = some_facts(mitigations=[ENTRY])
    facts.seen = seen
    assert {broken.kind for broken in await judge(facts)} == {"doubled"}


async def test_harm_to_a_bystander_is_wrong_also_where_a_human_got_the_incident() -> None:
    facts = changed(1, ENTRY, harm="the innocent session was ended")
    facts.tables["incidents"] = [INCIDENT | {"reason": "is unknown; it is not repeated"}]
    assert {broken.kind for broken in await judge(facts)} == {"wrong"}


@pytest.mark.parametrize(
    ("seconds", "spans", "kinds"),
    [
        (0.5, [], []),
        (3.5, [], []),
        (4.5, [], ["late"]),
        (12.5, ["kept"], []),
        (14.0, ["kept"], ["late"]),
        (100.0, ["stopped"], []),
        (4.5, ["stood_still"], []),
    ],
)
async def test_a_call_after_its_time_is_called_late_unless_something_outside_kept_it(
    seconds: float, spans: list[str], kinds: list[str]
) -> None:
    at = AT + timedelta(seconds=seconds)
    facts = changed(1, ENTRY, at=at)
    for name in spans:
        setattr(facts, name, [Span(AT, at, "replica-0")])
    assert [broken.kind for broken in await judge(facts)] == kinds


@pytest.mark.parametrize(
    ("who", "written", "judged"),
    [
        ("replica-0", {"k"}, True),
        ("replica-0", {"another"}, False),
        ("replica-1", set[str](), True),
    ],
)
async def test_only_a_process_that_stopped_after_its_last_look_at_the_clock_is_excused(
    who: str, written: set[str], *, judged: bool
) -> None:
    at = AT + timedelta(seconds=6)
    facts = changed(1, ENTRY, at=at)
    facts.stopped = [Span(AT, at, who, frozenset(written))]
    assert [broken.kind for broken in await judge(facts)] == ["late"] * judged
    assert excused(facts) == (not judged)


async def test_a_call_is_held_against_the_reservation_that_was_used_of_services_with_one_target() -> (
    None
):
    dropped = ENTRY | {"effect_key": "d", "incident_id": "inc-2", "state": "not_applied"}
    used = ENTRY | {"reserved_at": micros(8), "apply_before": micros(9), "service": "too"}
    facts = changed(1, dropped, used, at=AT + timedelta(seconds=9.5))
    (part,) = facts.world.parts
    facts.world.parts.append(replace(part, service="too"))
    facts.changes["too"] = 1
    assert await judge(facts) == []


async def test_a_later_reservation_does_not_excuse_an_earlier_call() -> None:
    later = {"reserved_at": micros(60), "apply_before": micros(61), "state": "not_applied"}
    facts = changed(1, ENTRY, ENTRY | later, at=AT + timedelta(seconds=50))
    assert [broken.kind for broken in await judge(facts)] == ["late"]


async def test_a_call_without_a_reservation_is_called_wrong() -> None:
    facts = changed(1, ENTRY, at=AT - timedelta(seconds=1))
    assert [broken.kind for broken in await judge(facts)] == ["wrong"]


# --- bounds -------------------------------------------------------------------------------------


async def test_more_changes_than_the_budget_are_called_past_a_bound() -> None:
    rows = [ENTRY | {"effect_key": str(n), "target_key": str(n)} for n in range(11)]
    assert [broken.kind for broken in await judge(some_facts(mitigations=rows))] == ["past a bound"]


@pytest.mark.parametrize(("targets", "concurrency"), [("ab", 1), ("aa", 10)])
@pytest.mark.parametrize("together", [True, False])
async def test_changes_that_were_in_flight_together_are_called_past_a_bound(
    targets: str, concurrency: int, *, together: bool
) -> None:
    rows = [
        ENTRY | {"effect_key": str(n), "target_key": target, "state": "not_applied"}
        for n, target in enumerate(targets)
    ]
    order = [(0, "reserved"), (1, "reserved"), (0, "not_applied"), (1, "not_applied")]
    if not together:
        order[1], order[2] = order[2], order[1]
    lines = [
        {**LINE, "id": at, "event": event, "step": "ledger", "data": {"effect_key": str(n)}}
        for at, (n, event) in enumerate(order)
    ]
    facts = some_facts(mitigations=rows, journal=lines)
    facts.plan = replace(facts.plan, concurrency=concurrency)
    assert ("past a bound" in {b.kind for b in await judge(facts)}) is together


async def test_another_incident_that_changes_a_target_too_soon_is_called_past_a_bound() -> None:
    soon = {"effect_key": "l", "incident_id": "inc-2", "reserved_at": micros(100)}
    found = await judge(some_facts(mitigations=[ENTRY, ENTRY | soon]))
    assert [broken.kind for broken in found] == ["past a bound"]


@pytest.mark.parametrize(
    ("scope", "covered"),
    [("global", True), ("shop", True), ("shop/orders", True), ("shop/billing", False)],
)
async def test_a_reservation_in_a_pause_of_its_scope_is_called_past_a_bound(
    scope: str, *, covered: bool
) -> None:
    facts = some_facts(mitigations=[ENTRY | {"state": "denied", "reserved_at": micros(5)}])
    facts.paused = [Pause(scope, Span(AT, AT + timedelta(seconds=10)))]
    assert [broken.kind for broken in await judge(facts)] == ["past a bound"] * covered


# --- approvals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ([], False),
        ([(True, -5, 200)], True),
        ([(True, -5, 0)], True),  # its answer was lost
        ([(True, -5, 409)], False),
        ([(True, 2, 200)], False),
        ([(True, -5, 200), (False, -4, 200)], False),
        ([(True, -5, 200), (False, -4, 409)], True),
    ],
)
async def test_a_change_that_no_human_agreed_to_in_time_is_called_unapproved(
    said: list[tuple[bool, float, int]], *, kept: bool
) -> None:
    facts = changed(1, ENTRY | {"plan_hash": "p", "expires_at": micros(1)})
    facts.world.parts[:] = [replace(part, asks=True) for part in facts.world.parts]
    facts.answers = [
        Answer("inc-1", "p", approves, AT + timedelta(seconds=at), status)
        for approves, at, status in said
    ]
    assert [broken.kind for broken in await judge(facts)] == ["unapproved"] * (not kept)


# --- whether enough was tried -------------------------------------------------------------------


def test_a_long_campaign_in_which_nothing_happened_says_what_was_not_tried() -> None:
    results = [Result(plan_of(seed, postgres=True)) for seed in range(30)]
    missing = untried(results)
    assert "a change for every seed" in missing
    assert "the cure of a fault of the kind sluggish" in missing
    assert untried(results[:5]) == []


@pytest.mark.parametrize(("changes", "missing"), [(0, ["a change in an upgraded seed"]), (1, [])])
def test_upgrades_in_which_nothing_was_changed_are_called_untried(
    changes: int, missing: list[str]
) -> None:
    plans = [plan_of(seed, postgres=True, upgrade=True) for seed in range(8)]
    results = [Result(plan) for plan in plans]
    results[0].changes = changes
    assert untried(results) == missing


def test_every_mutant_has_the_promise_that_it_breaks() -> None:
    assert BREAKS.keys() == MUTANTS.keys()
    assert set().union(*BREAKS.values()) <= set(KINDS) - {"harness"}


@pytest.mark.parametrize("name", PRELOADED)
def test_what_the_campaigns_processes_load_beforehand_is_there(name: str) -> None:
    assert importlib.import_module(name).__name__ == name
