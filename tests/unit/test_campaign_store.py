"""The campaign's judge of a store that was restored from a copy, and the clock that was put back."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.approver import Answer
from tests.campaign.clock import built
from tests.campaign.facts import facts_of
from tests.campaign.judge import judge
from tests.campaign.network import Pause, Span
from tests.campaign.records import Book
from tests.campaign.replicas import ROOT
from tests.campaign.sender import Accepted
from tests.campaign_fixtures import AT, ENTRY, changed, forgotten, some_facts


async def test_a_delivery_is_forgotten_by_a_restored_store_only_where_it_came_after_the_copy() -> (
    None
):
    facts = some_facts(accepted=[Accepted("dlv-1", ("a",)), Accepted("dlv-2", ("b",))])
    facts.forgotten = forgotten(deliveries={"dlv-1"})
    assert {b.what for b in await judge(facts)} == {
        "dlv-2 was answered 202 and is not stored",
        "the alert b was answered 202 and is nowhere",
    }


@pytest.mark.parametrize(
    ("conditional", "state", "kept"),
    [(False, "applied", True), (True, "applied", False), (True, "reverted", True)],
)
async def test_what_a_backend_recognises_is_not_made_again_though_the_store_forgot_it(
    state: str, *, conditional: bool, kept: bool
) -> None:
    facts = changed(2, ENTRY)
    (part,) = facts.world.parts
    part.fault.conditional = conditional
    facts.forgotten = forgotten(ENTRY | {"state": state})
    assert [broken.kind for broken in await judge(facts)] == ["doubled"] * (not kept)


async def test_a_third_change_is_doubled_where_the_store_forgot_one() -> None:
    facts = changed(3, ENTRY)
    facts.world.parts[0].fault.conditional = False
    facts.forgotten = forgotten(ENTRY)
    assert [broken.kind for broken in await judge(facts)] == ["doubled"]


@pytest.mark.parametrize(("ordered", "kept"), [(-5, True), (-20, False)])
async def test_a_pause_holds_after_a_restore_only_where_the_copy_has_it(
    ordered: float, *, kept: bool
) -> None:
    facts = some_facts(mitigations=[ENTRY | {"state": "denied"}])
    begin = AT + timedelta(seconds=ordered)
    facts.paused = [Pause("global", Span(begin, AT + timedelta(seconds=9)))]
    facts.forgotten = forgotten()
    assert [broken.kind for broken in await judge(facts)] == ["past a bound"] * (not kept)


async def test_a_refusal_that_a_restored_store_forgot_does_not_bind_it() -> None:
    facts = changed(1, ENTRY | {"plan_hash": "p", "expires_at": None})
    facts.world.parts[:] = [replace(part, asks=True) for part in facts.world.parts]
    yes = Answer("inc-1", "p", approves=True, at=AT - timedelta(seconds=1), status=200)
    facts.answers = [yes, yes._replace(approves=False, at=AT - timedelta(seconds=5))]
    assert [broken.kind for broken in await judge(facts)] == ["unapproved"]
    facts.forgotten = forgotten()
    assert await judge(facts) == []


@pytest.mark.parametrize("ahead", [0, 7200])
async def test_times_of_a_clock_that_was_ahead_are_read_by_the_right_one(ahead: int) -> None:
    facts = changed(1, ENTRY)
    facts.plan = replace(facts.plan, ahead=ahead)
    now = int(datetime.now(UTC).timestamp()) * 1_000_000
    wrong = ENTRY | {"reserved_at": now + ahead * 1_000_000, "apply_before": now}

    class Told(Book):
        async def rows(self, table: str) -> list[dict[str, Any]]:
            return [wrong] if table == "mitigations" else []

    (row,) = (await facts_of(facts, Told(None, ""))).tables["mitigations"]
    assert (row["reserved_at"], row["apply_before"]) == (now, now)


def test_a_process_whose_clock_is_ahead_reads_it_everywhere_but_in_the_monotonic_one(
    tmp_path: Path,
) -> None:
    library = built(tmp_path)
    if library is None:
        pytest.skip("there is no C compiler")
    told = subprocess.run(
        [sys.executable, "-c", _READS_THE_CLOCK],
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    monotonic, *wall = (round(float(word) / 600) for word in told.stdout.split())
    assert (monotonic, wall) == (0, [12, 12, 12])


_READS_THE_CLOCK = """
import sqlite3, time
from datetime import UTC, datetime
from tests.campaign.clock import set_ahead
def read():
    (at,) = sqlite3.connect(":memory:").execute("SELECT unixepoch()").fetchone()
    return time.monotonic(), time.time(), datetime.now(UTC).timestamp(), at
before = read()
set_ahead(7200)
print(*(b - a for a, b in zip(before, read())))
"""
