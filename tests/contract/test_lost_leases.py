"""A call ends with the time that it may take, and a step with its lease, whatever the store does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from selectors import DefaultSelector
from typing import Any

import pytest
from sqlalchemy import select

from remediator.model.base import IncidentId, MitigationId
from remediator.model.errors import StoreUnavailable
from remediator.model.incident import Phase
from remediator.model.mitigation import (
    LedgerEntry,
    Mitigation,
    MitigationState,
    Outcome,
    Preparation,
)
from remediator.model.target import Mode, Target
from remediator.model.transition import Claim
from remediator.notify.sender import LogNotifier
from remediator.remediation.call import SETTLE_TIME, pull
from remediator.remediation.step import Mitigators
from remediator.service.metrics import Telemetry, Watching
from remediator.service.worker import Doorbell, Worker
from remediator.store import tables as t
from remediator.store.incidents import Queue
from remediator.store.ledger import LATEST
from remediator.testing import World, WorldMitigator, items
from tests.postgres_fixtures import eventually
from tests.store_fixtures import Bench, OpenBench, nothing

LEASE = timedelta(seconds=2)


@dataclass
class Slow(WorldMitigator):
    """Takes its time before it changes anything."""

    seconds: float
    world: World = field(default_factory=lambda: World(things={"lamp"}))
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        super().__init__(self.world)

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        self.begun.set()
        try:
            await asyncio.sleep(self.seconds)
            return await super().apply(preparation, effect_key)
        finally:
            self.ended.set()


class Skipping(asyncio.SelectorEventLoop):
    """A loop for what waits for nothing but time: it does not wait, the time is over at once."""

    def __init__(self) -> None:
        self.skipped = 0.0
        loop = self

        class Selector(DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                loop.skipped += timeout or 0.0
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return super().time() + self.skipped


def _reserved() -> LedgerEntry:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    target = Target(system="shop", service="orders", role="world", kind="world", name="world")
    plan = Mitigation(kind="switch_off", target=target, reason="it is on", items=items("lamp"))
    return LedgerEntry(
        id=MitigationId("mit-1"),
        incident_id=IncidentId("inc-1"),
        effect_key="key",
        system="shop",
        service="orders",
        playbook="SwitchOff",
        mitigation=plan,
        mode=Mode.AUTO,
        state=MitigationState.RESERVED,
        reason="",
        plan_hash=plan.plan_hash,
        created_at=now,
    )


def test_a_change_is_not_made_later_than_whoever_looks_for_it_believes() -> None:
    lever = Slow(seconds=(LATEST - SETTLE_TIME).total_seconds() + 1)

    async def nothing_is_paused() -> None:
        return None

    async def call() -> Outcome:
        outcome = await pull(lever, _reserved(), 5.0, nothing_is_paused, lambda: 0.0)
        await asyncio.sleep(60)
        return outcome

    with asyncio.Runner(loop_factory=Skipping) as runner:
        outcome = runner.run(call())
    assert outcome.state is MitigationState.UNKNOWN
    assert lever.world.things == {"lamp"}


# --- the lease --------------------------------------------------------------------------------


class Unrenewed(Queue):
    """The queue of a process that cannot reach the store once it has a claim."""

    hangs = False

    async def renew(self, claim: Claim) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        raise StoreUnavailable("as the test says")


@contextlib.asynccontextmanager
async def _working(bench: Bench, lever: Slow, queue: Queue) -> AsyncIterator[Worker]:
    levers = Mitigators({("world", "world-of-orders"): (lever,)})
    store = replace(bench.store, queue=queue)
    around = replace(bench.around, levers=levers)
    watching = Watching(Telemetry())
    worker = Worker(store, around, nothing, LogNotifier(), watching, Doorbell())
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        await worker.drain(10.0)
        await running


async def _decided(bench: Bench) -> None:
    await bench.receive(bench.alert())
    while (await bench.incident()).phase is not Phase.ACT:
        await bench.step()


async def _row(bench: Bench) -> Any:
    async with bench.store.database.read() as connection:
        joined = select(t.mitigations.c.state, t.incidents.c.lease_until).join(t.incidents)
        return (await connection.execute(joined)).mappings().one()


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_step_whose_lease_could_not_be_renewed_ends_in_the_middle_of_its_call(
    open_bench: OpenBench, *, hangs: bool
) -> None:
    lever = Slow(seconds=1.5 * LEASE.total_seconds())
    async with open_bench(lever.world) as bench:
        await _decided(bench)
        queue = Unrenewed(bench.store.database, "one", LEASE)
        queue.hangs = hangs
        async with _working(bench, lever, queue):
            await asyncio.wait_for(lever.begun.wait(), 20)
            await asyncio.sleep(2 * LEASE.total_seconds())
            assert lever.world.things == {"lamp"}, "who takes over may have settled it"
            row = await _row(bench)
            assert row["state"] == MitigationState.RESERVED, "whoever comes next has to look"
            assert row["lease_until"] is not None
        bench.clock.advance(timedelta(hours=1))
        (claim,) = await queue.claim(1)
        assert (claim.lease > LEASE) is hangs, "a store that is slow gets more time"


async def test_a_step_whose_lease_is_renewed_takes_as_long_as_it_needs(
    open_bench: OpenBench,
) -> None:
    lever = Slow(seconds=1.5 * LEASE.total_seconds())
    async with open_bench(lever.world) as bench:
        await _decided(bench)
        async with _working(bench, lever, Queue(bench.store.database, "one", LEASE)):
            await asyncio.wait_for(lever.begun.wait(), 20)

            async def is_applied() -> bool:
                return bool((await _row(bench))["state"] == MitigationState.APPLIED)

            await eventually(is_applied, "the change is made", within=20)
            assert lever.world.things == set()


async def test_a_step_ends_in_the_middle_of_its_call_when_its_claim_was_taken_over(
    open_bench: OpenBench,
) -> None:
    lever = Slow(seconds=60)
    async with open_bench(lever.world) as bench:
        await _decided(bench)
        async with _working(bench, lever, Queue(bench.store.database, "one", LEASE)):
            await asyncio.wait_for(lever.begun.wait(), 20)
            bench.clock.advance(timedelta(hours=1))
            assert await Queue(bench.store.database, "two").claim(1)
            await asyncio.wait_for(lever.ended.wait(), 20)
            assert lever.world.things == {"lamp"}
