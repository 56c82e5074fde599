"""Many replicas on one PostgreSQL that all want to change something at the same moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from remediator.model.catalog import Service
from remediator.model.errors import StoreUnavailable
from remediator.model.incident import Phase
from remediator.model.limits import Limits
from remediator.model.transition import Claim
from remediator.remediation.pipeline import take_step
from remediator.service.worker import STEPS_AT_ONCE
from remediator.store import open_store
from remediator.testing import FrozenClock, World, firing_alert
from tests.pgbouncer_fixtures import pgbouncer
from tests.postgres_fixtures import Connection, eventually
from tests.store_fixtures import Bench, a_service, surroundings

pytestmark = pytest.mark.timeout(300)
BUDGET = 5


@dataclass
class Crowd:
    """Several replicas, each on connections of its own, and what they all look after."""

    replicas: list[Bench]
    world: World
    ledger: Connection
    answers: dict[str, tuple[int, int]] = field(default_factory=dict)
    """When a pause had answered, by scope, and how many reservations there were."""
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def receive(self, services: Sequence[Service]) -> None:
        """Let one replica open an incident for each service."""
        first = self.replicas[0]
        now = first.clock.now
        for some in _parts(services, 50):
            labels = ({"system": s.system, "service": s.name} for s in some)
            alerts = [firing_alert("ThingsOn", {**one}, now) for one in labels]
            await first.receive(*alerts)

    async def all_step(self, at_once: int) -> list[Claim]:
        """Let all replicas claim, and then all take their steps at the same time."""
        claimed = await asyncio.gather(*(r.store.queue.claim(at_once) for r in self.replicas))
        stepping = zip(self.replicas, claimed, strict=True)
        await asyncio.gather(*(_take_all(replica, claims) for replica, claims in stepping))
        return [claim for claims in claimed for claim in claims]

    async def reserved(self, where: str = "true") -> tuple[int, int]:
        """Count the reservations that were ever made; and when the last one was, in microseconds."""
        last = "coalesce(max(reserved_at), 0)"
        query = f"SELECT count(reserved_at), {last} FROM mitigations WHERE {where}"
        row = await self.ledger.fetchrow(query)
        assert row is not None
        return row[0], row[1]

    async def now(self) -> int:
        """Return the time by the clock of the database, in microseconds."""
        clock = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        return int(await self.ledger.fetchval(clock))


async def _take_all(replica: Bench, claims: Sequence[Claim]) -> None:
    """Take one step each, as many at a time as a process does."""
    free = asyncio.Semaphore(STEPS_AT_ONCE)

    async def take(claim: Claim) -> None:
        async with free:
            while not await _done(replica, claim):
                pass

    await asyncio.gather(*map(take, claims))


async def _done(replica: Bench, claim: Claim) -> bool:
    try:
        result = await take_step(replica.around, claim)
        await replica.store.queue.finish(claim, result)
    except StoreUnavailable:  # a machine that is busy with other things; the lease is long
        return False
    return True


def _parts(services: Sequence[Service], size: int) -> list[Sequence[Service]]:
    return [services[start : start + size] for start in range(0, len(services), size)]


@contextlib.asynccontextmanager
async def _crowd(
    dsn: str, number: int, services: Sequence[Service], scopes: Sequence[str], **options: Any
) -> AsyncIterator[Crowd]:
    world = World(things={f"{service.name}:lamp" for service in services})
    clock = FrozenClock()
    async with contextlib.AsyncExitStack() as stack:
        replicas = []
        for name in range(number):
            store = await stack.enter_async_context(
                open_store(
                    dsn,
                    owner=f"replica {name}",
                    changed=lambda: None,
                    scopes=scopes,
                    lease=timedelta(minutes=5),
                )
            )
            around, eyes = surroundings(store, services, world, clock, **options)
            replicas.append(Bench(store, around, clock, world, eyes))
        ledger = await asyncpg.connect(dsn, timeout=10, statement_cache_size=0)
        stack.push_async_callback(ledger.close)
        yield Crowd(replicas, world, ledger)


async def test_of_500_incidents_on_eight_replicas_exactly_the_budget_is_changed(
    postgres_database: str,
) -> None:
    await _exactly_the_budget(postgres_database, replicas=8, incidents=500)


async def test_the_budget_also_holds_behind_a_pooler_in_transaction_mode(
    postgres_database: str,
) -> None:
    async with pgbouncer(postgres_database, "transaction") as through:
        await _exactly_the_budget(through, replicas=4, incidents=60)


async def _exactly_the_budget(dsn: str, *, replicas: int, incidents: int) -> None:
    services = [a_service(f"s{number}") for number in range(incidents)]
    everywhere = Limits(
        budget=BUDGET, window=timedelta(hours=1), cooldown=timedelta(0), concurrency=incidents
    )
    opening = _crowd(dsn, replicas, services, ("global",), everywhere=everywhere)
    async with opening as crowd:
        await crowd.receive(services)
        for phase in (Phase.DIAGNOSE, Phase.DECIDE, Phase.ACT):
            # at the last one nobody has been told yet that the budget is used up
            stepped = await crowd.all_step(incidents // replicas + 1)
            assert Counter(claim.incident.phase for claim in stepped) == {phase: incidents}
        rows = await crowd.ledger.fetch("SELECT phase, outcome, reason, due_at FROM incidents")
        ends = Counter((row["phase"], row["outcome"]) for row in rows)
        assert ends == {("verify", None): BUDGET, ("done", "denied"): incidents - BUDGET}
        reasons = {row["reason"] for row in rows if row["outcome"] == "denied"}
        used_up = f"budget: the budget of global is used up: {BUDGET} of {BUDGET} mitigations in 1h"
        assert reasons == {used_up}
        assert len(crowd.world.applied) == BUDGET
        assert (await crowd.reserved())[0] == BUDGET


SERVICES = 80
EACH = [f"shop/s{number}" for number in range(0, SERVICES, 2)]
"""Scopes of every second service."""


@pytest.mark.parametrize("scopes", [["global"], ["shop"], EACH], ids=["all", "system", "services"])
async def test_after_a_pause_has_answered_no_replica_reserves_anything_in_its_scope(
    postgres_database: str, scopes: list[str]
) -> None:
    services = [a_service(f"s{number}") for number in range(SERVICES)]
    async with _crowd(postgres_database, 4, services, scopes) as crowd:
        await crowd.receive(services)
        for _ in (Phase.DIAGNOSE, Phase.DECIDE):
            assert len(await crowd.all_step(SERVICES)) == SERVICES
        paused = asyncio.Event()
        hammering = [asyncio.create_task(_hammer(r, paused)) for r in crowd.replicas]
        await _changed(crowd, 5)
        await asyncio.gather(*(_pause(crowd, *one) for one in enumerate(scopes)))
        paused.set()
        await asyncio.gather(*hammering)
        for scope, (answered, before) in crowd.answers.items():
            count, last = await crowd.reserved(_in(scope))
            assert count == before
            assert last < answered
        spared = SERVICES - (await crowd.reserved())[0]
        assert 0 < spared < SERVICES, "the pause came too early or too late"


def _in(scope: str) -> str:
    return f"service = '{scope.partition('/')[2]}'" if "/" in scope else "true"


async def _pause(crowd: Crowd, number: int, scope: str) -> None:
    replica = crowd.replicas[number % len(crowd.replicas)]
    await replica.store.commands.pause(scope, "ann", "enough")
    async with crowd.looking:
        answered = await crowd.now()
        count, _ = await crowd.reserved(_in(scope))
    crowd.answers[scope] = answered, count


async def _hammer(replica: Bench, paused: asyncio.Event) -> None:
    """Take every step that is due, a few at a time, and for a while after the pause."""
    rounds = SERVICES // 10
    while rounds:
        await _take_all(replica, await replica.store.queue.claim(3))
        rounds -= paused.is_set()


async def _changed(crowd: Crowd, number: int) -> None:
    async def enough() -> bool:
        return len(crowd.world.applied) >= number

    await eventually(enough, "changes are being made")
