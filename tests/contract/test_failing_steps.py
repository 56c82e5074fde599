"""A step that fails for a reason of our own is tried again, and becomes a human's in the end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

from remediator.model.incident import IncidentOutcome, IncidentState
from remediator.model.mitigation import MitigationState, Outcome, Preparation
from remediator.notify.sender import LogNotifier
from remediator.remediation.step import Mitigators
from remediator.service.metrics import Telemetry, Watching
from remediator.service.worker import FAILURES, Doorbell, Worker
from remediator.store.ledger import LATEST
from remediator.testing import World, WorldMitigator
from tests.postgres_fixtures import eventually
from tests.store_fixtures import OpenBench, nothing


class Blind(WorldMitigator):
    """Has a fault where it looks whether a change was made."""

    looks = 0

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        self.looks += 1
        raise ZeroDivisionError("a fault of ours")


async def test_a_human_gets_what_nobody_can_look_up_once_its_call_has_landed(
    open_bench: OpenBench,
) -> None:
    lever = Blind(World(things={"lamp"}, lose_answers=1))
    async with open_bench(lever.world) as bench:
        await bench.receive(bench.alert())
        levers = Mitigators({("world", "world-of-orders"): (lever,)})
        around, bell = replace(bench.around, levers=levers), Doorbell()
        told = (LogNotifier(), Watching(Telemetry()), bell)
        worker = Worker(bench.store, around, nothing, *told)
        running = asyncio.create_task(worker.run())

        async def is_closed() -> bool:
            bench.clock.advance(timedelta(seconds=0.5))
            bell.ring()
            return bool((await bench.incident()).state is IncidentState.CLOSED)

        try:
            await eventually(is_closed, "a human has it", within=60)
        finally:
            await worker.drain(30.0)
            await running
        incident = await bench.incident()
        (change,) = incident.mitigations
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert f"failed {FAILURES} times (ZeroDivisionError: a fault of ours)" in incident.reason
        assert change.state is MitigationState.UNKNOWN
        assert incident.closed_at >= incident.opened_at + bench.store.ledger.apply_within + LATEST
        assert lever.looks == FAILURES
        assert len(lever.world.applied) == 1
