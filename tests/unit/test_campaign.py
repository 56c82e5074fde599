"""The campaign's own parts that need no server: its plans, its mutants and its judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from remediator.demo.slack import LocalSlack
from tests.campaign.judge import Facts, judge
from tests.campaign.mutants import MUTANTS, tree_of
from tests.campaign.plan import ALWAYS, WITH_HOLD, plan_of
from tests.campaign.replicas import ROOT
from tests.campaign.sender import Accepted
from tests.campaign.world import World

Row = Mapping[str, Any]
INCIDENT = {
    "id": "inc-1",
    "state": "closed",
    "phase": "done",
    "outcome": "no_match",
    "reason": "",
    "service": "orders",
}
ENTRY = {
    "effect_key": "k",
    "incident_id": "inc-1",
    "service": "orders",
    "state": "applied",
    "in_flight": False,
    "reserved_at": 1,
}


@pytest.mark.parametrize("postgres", [True, False])
def test_a_seed_always_gives_the_same_plan(*, postgres: bool) -> None:
    plans = [plan_of(seed, postgres=postgres) for seed in range(50)]
    assert plans == [plan_of(seed, postgres=postgres) for seed in range(50)]
    assert len({plan.happenings for plan in plans}) > 40


def test_every_named_point_is_in_a_plan_of_a_short_campaign() -> None:
    plans = [plan_of(seed, postgres=seed % 2 == 0) for seed in range(200)]
    named = {str(order.point) for plan in plans for order in plan.orders if order is not None}
    assert named == {str(point) for point in (*ALWAYS, *WITH_HOLD)}


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
    facts = _facts(accepted=[Accepted("dlv-1", ("a",))])
    found = {broken.what for broken in await judge(facts)}
    assert "dlv-1 was answered 202 and is not stored" in found
    assert "the alert a was answered 202 and is nowhere" in found


async def test_what_is_within_every_promise_is_not_called_broken() -> None:
    assert await judge(_facts()) == []


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
    found = await judge(_facts([], **{table: [row]}))
    assert {broken.kind for broken in found} == {kind}


async def test_two_closes_of_one_incident_and_two_patches_of_one_effect_are_called_doubled() -> (
    None
):
    close = {"incident_id": "inc-1", "event": "closed as mitigated", "id": 1, "at": 0}
    facts = _facts(journal=[close, close | {"id": 2}], mitigations=[ENTRY])
    facts.patches["k"] = 2
    assert [broken.kind for broken in await judge(facts)] == ["doubled", "doubled"]


async def test_more_changes_than_the_budget_are_called_past_a_bound() -> None:
    rows = [ENTRY | {"effect_key": str(n)} for n in range(11)]
    assert [broken.kind for broken in await judge(_facts(mitigations=rows))] == ["past a bound"]


async def test_a_reservation_in_a_pause_is_called_past_a_bound() -> None:
    lines = [
        {"id": n, "incident_id": None, "event": event, "at": at}
        for n, (event, at) in enumerate([("paused global", 10), ("resumed global", 20)])
    ]
    facts = _facts(journal=lines, mitigations=[ENTRY | {"state": "denied", "reserved_at": 15}])
    assert [broken.kind for broken in await judge(facts)] == ["past a bound"]


def _facts(accepted: Sequence[Accepted] = (), **rows: Sequence[Row]) -> Facts:
    plan = next(p for p in (plan_of(n, postgres=True) for n in range(99)) if p.budget == 10)
    facts = Facts(plan, World(), LocalSlack(), accepted, Counter())
    empty = ("deliveries", "incidents", "alerts", "mitigations", "obligations", "notices")
    facts.tables = {name: [*rows.get(name, ())] for name in (*empty, "journal")}
    return facts
