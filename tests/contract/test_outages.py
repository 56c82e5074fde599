"""Time in which nobody could look or renew proves nothing: on SQLite and on PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest

from remediator.mitigation.verify import verdict
from remediator.model import (
    Assessment,
    MitigationState,
    Phase,
    Sample,
    Verdict,
    Verification,
)
from remediator.testing import World
from tests.store_fixtures import Bench, OpenBench, resolved

START = datetime(2026, 1, 1, tzinfo=UTC)
RULES = Verification()


async def _changed(bench: Bench) -> None:
    await bench.receive(bench.alert())
    while (await bench.incident()).phase is not Phase.VERIFY:
        await bench.step()


# --- the verdict ------------------------------------------------------------------------------


@pytest.mark.parametrize("resolves", [False, True])
async def test_a_change_that_helped_is_not_put_back_after_an_outage(
    open_bench: OpenBench, *, resolves: bool
) -> None:
    async with open_bench(World(things={"lamp"}), undo=True) as bench:
        alert = bench.alert()
        await _changed(bench)
        bench.clock.advance(timedelta(hours=1))
        if resolves:
            await bench.receive(resolved(alert, bench.clock))
        await bench.settle(35)
        incident = await bench.incident()
        assert incident.mitigations[0].verdict is Assessment.BETTER
        assert incident.mitigations[0].state is MitigationState.APPLIED
        assert bench.world.things == set()


async def test_a_verdict_comes_in_time_when_the_clock_was_put_back(bench: Bench) -> None:
    await _changed(bench)
    await bench.settle(20)
    bench.clock.advance(timedelta(hours=-1))
    await bench.receive(bench.alert(pod="another"))  # so that it is looked at at once
    await bench.settle(45)
    assert (await bench.incident()).mitigations[0].verdict is Assessment.BETTER


def _judged(looks: Iterable[tuple[float, Assessment]]) -> tuple[float, Verdict] | None:
    """Look at these seconds, and return when it was judged and how."""
    samples: list[Sample] = []
    for second, assessment in looks:
        now = START + timedelta(seconds=second)
        samples.append(Sample(at=now, assessment=assessment, evidence="as the test says"))
        judged = verdict(samples, RULES, resolved=False, since=START, now=now)
        if judged is not None:
            return second, judged
    return None


B, N = Assessment.BETTER, Assessment.NOT_BETTER


def test_an_outage_when_less_than_the_hold_is_left_is_waited_out() -> None:
    before = [(15.0 * n, N) for n in range(1, 24)] + [(15.0 * n, B) for n in range(24, 41)]
    after = [(3600.0 + 15 * n, B) for n in range(60)]
    judged = _judged([*before, *after])
    assert judged is not None
    assert judged[0] == 3600 + RULES.hold.total_seconds()
    assert judged[1].assessment is B


def test_what_is_worse_after_an_outage_has_the_rest_of_its_time() -> None:
    after = [(3600.0 + 15 * n, N) for n in range(60)]
    judged = _judged([(15.0, N), *after])
    assert judged is not None
    assert judged[1].assessment is N
    assert judged[0] >= 3600 + RULES.deadline.total_seconds() - 60


def test_what_is_better_and_worse_by_turns_is_judged_at_the_deadline() -> None:
    judged = _judged((15.0 * n, B if n % 2 else N) for n in range(1, 200))
    assert judged is not None
    assert judged[1].assessment is N
    assert judged[0] <= RULES.deadline.total_seconds() + 30


def test_what_can_only_be_looked_at_now_and_then_is_a_humans_in_the_end() -> None:
    judged = _judged((300.0 * n, B) for n in range(1, 200))
    assert judged is not None
    assert judged[1].assessment is Assessment.CANNOT_TELL
