"""Time in which nobody could look or renew proves nothing: on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.errors import Refused
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.mitigation import MitigationState
from remediator.model.transition import Claim
from remediator.model.verdict import Assessment, Sample, Verdict, Verification
from remediator.remediation.pipeline import take_step
from remediator.remediation.step import Mitigators
from remediator.remediation.verify import verdict
from remediator.store import tables as t
from remediator.store.expirations import PendingRevert
from remediator.store.ledger import LATEST
from remediator.testing import World
from tests.store_fixtures import Bench, OpenBench, a_service, resolved

START = datetime(2026, 1, 1, tzinfo=UTC)
RULES = Verification()


async def _at(bench: Bench, phase: Phase) -> Claim:
    """Take steps until the only incident is claimed at ``phase``; return the claim."""
    while True:
        for claim in await bench.claim():
            if claim.incident.phase is phase:
                return claim
            await bench.store.queue.finish(claim, await take_step(bench.around, claim))
        bench.clock.advance(timedelta(seconds=1))


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


# --- closing while something is under way -----------------------------------------------------


async def test_what_is_being_put_back_is_not_cancelled_meanwhile(open_bench: OpenBench) -> None:
    async with open_bench(World(things={"lamp"}), undo=True) as bench:
        bench.eyes.assessment = Assessment.NOT_BETTER
        await bench.receive(bench.alert())
        claim = await _at(bench, Phase.REVERT)
        with pytest.raises(Refused, match="is being put back right now") as caught:
            await bench.store.commands.cancel(claim.incident.id, "ann", "mine")
        assert caught.value.status == 409
        bench.clock.advance(claim.lease)
        await bench.store.commands.cancel(claim.incident.id, "ann", "mine")
        assert (await bench.incident()).state is IncidentState.CLOSED


async def _landed(bench: Bench) -> Any:
    """Wait until no call can be on its way, and see that all is left as it is before."""
    await bench.settle((bench.store.ledger.apply_within + LATEST).total_seconds() - 1)
    incident = await bench.incident()
    assert incident.state is IncidentState.OPEN
    assert incident.mitigations[0].state is MitigationState.RESERVED
    await bench.settle(2)
    return await bench.incident()


async def test_a_call_has_the_time_to_land_before_the_lost_configuration_closes_its_incident(
    open_bench: OpenBench,
) -> None:
    world = World(things={"lamp"}, lose_answers=1)
    async with open_bench(world) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
    async with open_bench(world, services=[a_service("cart")], owner="later") as bench:
        assert (await _landed(bench)).outcome is IncidentOutcome.ESCALATED


async def test_a_call_has_the_time_to_land_when_its_writer_was_taken_away(
    open_bench: OpenBench,
) -> None:
    async with open_bench(World(things={"lamp"}, lose_answers=1)) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        object.__setattr__(bench.around, "levers", Mitigators({}))
        incident = await _landed(bench)
        assert incident.mitigations[0].state is MitigationState.UNKNOWN
        assert "no writer configured" in incident.reason


async def test_a_call_has_the_time_to_land_before_an_incident_that_cannot_be_read_is_closed(
    open_bench: OpenBench,
) -> None:
    async with open_bench(World(things={"lamp"}, lose_answers=1)) as bench:
        await bench.receive(bench.alert())
        await bench.settle()

        async def spoil(connection: AsyncConnection) -> None:
            await connection.execute(update(t.incidents).values(proposal=["of a later version"]))

        await bench.store.database.write(spoil)
        incident = await _landed(bench)
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert incident.mitigations[0].state is MitigationState.UNKNOWN


# --- a store's clock that was put back --------------------------------------------------------


@pytest.mark.parametrize("back", [timedelta(minutes=5), timedelta(hours=1)])
async def test_what_a_dead_process_had_claimed_is_taken_over_when_the_clock_was_put_back(
    open_bench: OpenBench, back: timedelta
) -> None:
    services = [a_service(parameters={"hold": "1m"})]
    async with (
        open_bench(World(things={"lamp"}), services, undo=True) as dead,
        open_bench(owner="two") as other,
    ):
        await dead.receive(dead.alert())
        await dead.settle(50)
        dead.clock.advance(timedelta(seconds=20))
        await dead.receive(dead.alert(pod="another"))
        assert len(await dead.claim()) == 1
        assert len(await dead.store.obligations.claim(1)) == 1
        assert await dead.store.notices.claim(1)
        assert (await other.claim(), await other.store.obligations.claim(1)) == ([], [])
        dead.clock.advance(-back)
        (claim,) = await other.claim()
        assert claim.incident.phase is Phase.SETTLE
        assert len(await other.store.obligations.claim(1)) == 1
        assert await other.store.notices.claim(1)


async def test_a_claim_that_was_made_to_last_long_is_left_alone_when_the_clock_was_put_back(
    open_bench: OpenBench,
) -> None:
    async with open_bench() as one, open_bench(owner="two") as two:
        await one.receive(one.alert())
        for _ in range(5):
            one.store.queue.outpaced()
        (claim,) = await one.claim()
        one.clock.advance(-claim.lease)
        assert await two.claim() == []


async def test_a_closed_incident_is_not_taken_up_when_the_clock_was_put_back(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "1m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await bench.receive(bench.alert())
        await bench.settle(50)
        bench.clock.advance(timedelta(seconds=20))
        (owed,) = await bench.store.obligations.claim(1)
        await bench.receive(bench.alert(pod="another"))
        assert len(await bench.claim()) == 1
        await bench.store.obligations.settled(owed, taken_back=False, reason="not ours any more")
        bench.clock.advance(timedelta(hours=-1))
        assert await bench.claim() == []


# --- what this version cannot read ------------------------------------------------------------


@pytest.mark.parametrize("what", ["incident", "temporary change"])
async def test_what_cannot_be_read_is_not_closed_while_somebody_triages(
    open_bench: OpenBench, store_url: str, what: str
) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("SQLite serves one process")
    services = [a_service(parameters={"hold": "1m"})]
    async with (
        open_bench(World(things={"lamp"}), services, undo=True) as one,
        open_bench(owner="two") as two,
    ):
        await one.receive(one.alert())
        await one.settle(50)
        one.clock.advance(timedelta(seconds=20))
        await one.receive(one.alert(pod="another"))
        begun, goes_on = asyncio.Event(), asyncio.Event()

        async def spoil(connection: AsyncConnection) -> None:
            table, column = (
                (t.incidents, "proposal") if what == "incident" else (t.mitigations, "before")
            )
            await connection.execute(update(table).values({column: ["of a later version"]}))

        async def triage(connection: AsyncConnection) -> None:
            begun.set()
            await goes_on.wait()

        async def claim() -> None:
            assert (await one.claim() if what == "incident" else await owed()) == []

        async def owed() -> list[PendingRevert]:
            return await one.store.obligations.claim(1)

        await one.store.database.write(spoil)
        triaging = asyncio.create_task(two.store.database.write(triage, serial=True))
        await begun.wait()
        claiming = asyncio.create_task(claim())
        await asyncio.sleep(0.5)
        assert await _states(two) == [IncidentState.OPEN]
        goes_on.set()
        await triaging
        await claiming
        assert await _states(two) == [IncidentState.CLOSED]


async def _states(bench: Bench) -> list[str]:
    async with bench.store.database.read() as connection:
        return list(await connection.scalars(select(t.incidents.c.state)))
