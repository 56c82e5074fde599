"""A clock that was ahead at one start makes nothing sleep after the next."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import func, select

from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.mitigation import MitigationState
from remediator.store import tables as t
from remediator.store.ledger import LATEST
from remediator.testing import FrozenClock, World
from tests.store_fixtures import Bench, OpenBench, a_service, reserve, resolved

DAY = timedelta(days=1)


async def test_an_open_incident_goes_on_at_once_and_comes_to_its_end(
    open_bench: OpenBench, clock: FrozenClock
) -> None:
    began = clock.now  # by the sender's clock, which is right
    clock.advance(DAY)
    async with open_bench() as bench:
        alert = bench.alert().model_copy(update={"starts_at": began})
        await bench.receive(alert)
        await bench.settle(5)
        assert (await bench.incident()).phase is Phase.VERIFY
    clock.advance(-DAY)
    async with open_bench() as bench:
        assert len(await bench.step()) == 1
        await bench.settle(40)
        await bench.receive(resolved(alert, clock))
        await bench.settle(10)
        assert (await bench.incident()).outcome is IncidentOutcome.MITIGATED


async def test_a_temporary_change_is_taken_back_after_its_hold_time_and_not_before(
    open_bench: OpenBench, clock: FrozenClock
) -> None:
    service = a_service(parameters={"hold": "2h"})
    clock.advance(DAY)
    world = World(things={"lamp"})
    async with open_bench(world, [service], undo=True) as bench:
        await bench.receive(bench.alert())
        await bench.settle(45)
        await bench.receive(resolved(bench.alert(), clock))
        await bench.settle(10)
    clock.advance(-DAY)
    async with open_bench(world, [service], undo=True) as bench:
        await bench.settle(3600)
        assert world.things == set()
        await bench.settle(3700)
        assert world.things == {"lamp"}


async def test_a_call_that_nobody_knows_of_is_looked_for_once_its_time_is_over_from_the_start(
    open_bench: OpenBench, clock: FrozenClock
) -> None:
    world = World(things={"lamp"})
    clock.advance(DAY)
    async with open_bench(world) as bench:
        await bench.receive(bench.alert())
        while (await bench.incident()).phase is not Phase.ACT:
            await bench.step()
        (claim,) = await bench.claim()
        assert (await reserve(bench, claim, "lamp"))[1] is not None
    clock.advance(-DAY)
    async with open_bench(world) as bench:
        await bench.settle()
        (entry,) = (await bench.incident()).mitigations
        assert entry.state is MitigationState.RESERVED
        assert world.applied == []
        lasts = bench.store.ledger.apply_within + LATEST
        await bench.settle((2 * lasts).total_seconds())
        assert (await bench.incident()).mitigations[0].state is not MitigationState.RESERVED
        assert len(world.applied) == 1


async def test_what_was_put_off_by_a_right_clock_keeps_its_time(
    open_bench: OpenBench, clock: FrozenClock
) -> None:
    async with open_bench() as bench:
        await bench.receive(bench.alert())
        await bench.settle(5)
        before = await _due(bench)
    async with open_bench() as bench:
        assert await _due(bench) == before


async def test_messages_and_pages_are_sent_at_once(
    open_bench: OpenBench, clock: FrozenClock
) -> None:
    clock.advance(DAY)
    async with open_bench() as bench:
        await bench.receive(bench.alert())
        await bench.settle(5)
        (notice, *_) = await bench.store.notices.claim(1)
        await bench.store.notices.failed(notice, "it is busy", timedelta(minutes=5))
    clock.advance(-DAY)
    async with open_bench() as bench:
        assert await bench.store.notices.claim(1)


async def _due(bench: Bench) -> Any:
    async with bench.store.database.read() as connection:
        return await connection.scalar(select(func.min(t.incidents.c.due_at)))
