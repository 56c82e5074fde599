"""The guards that nothing else covers when one of them is missing: each alone, on both databases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.limits import Bound
from remediator.model.lookback import Allowance, Safeguards, Spread
from remediator.model.mitigation import (
    Effect,
    LedgerEntry,
    Mitigation,
    MitigationState,
    Preparation,
)
from remediator.model.transition import Settlement, Transition
from remediator.remediation.step import Mitigators
from remediator.store import Store
from remediator.store.database import open_database
from remediator.store.ledger import Ledger
from remediator.testing import World, WorldMitigator, items
from tests.store_fixtures import (
    WIDE,
    Bench,
    OpenBench,
    a_service,
    allowing,
    reserve,
    resolved,
)

HOUR = timedelta(hours=1)


async def deciding_to_act(bench: Bench) -> None:
    """Let an alert fire and come as far as the step that acts."""
    await bench.receive(bench.alert())
    while (await bench.incident()).phase is not Phase.ACT:
        await bench.step()


# --- between the reservation and the call -------------------------------------------------------


@dataclass
class PausedInBetween(Ledger):
    """A ledger whose operator pauses a scope right after a reservation was committed."""

    store: Store
    scope: str
    reserved: list[LedgerEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.store.database, self.store.ledger.apply_within)

    async def reserve(self, *given: Any, **options: Any) -> Any:
        decision, entry = await super().reserve(*given, **options)
        if entry is not None:
            self.reserved.append(entry)
            await self.store.commands.pause(self.scope, "ann", "release")
        return decision, entry


@pytest.mark.parametrize("scope", ["global", "shop", "shop/orders"])
async def test_a_pause_of_every_scope_stops_a_call_that_is_reserved(
    open_bench: OpenBench, scope: str
) -> None:
    async with open_bench() as bench:
        await deciding_to_act(bench)
        ledger = PausedInBetween(bench.store, scope)
        bench.around = replace(bench.around, ledger=ledger)
        await bench.step()
        assert len(ledger.reserved) == 1, "it was reserved before the pause"
        assert bench.world.applied == []
        (entry,) = (await bench.incident()).mitigations
        assert entry.state is MitigationState.NOT_APPLIED


# --- what is reserved ---------------------------------------------------------------------------


async def test_nothing_is_reserved_once_the_alert_has_resolved(bench: Bench) -> None:
    await bench.receive(bench.alert())
    (claim,) = await bench.claim()
    assert claim.firing
    await bench.receive(resolved(bench.alert(), bench.clock))
    decision, entry = await reserve(bench, claim, "lamp")
    assert entry is None
    assert (decision.effect, decision.code) == (Effect.DENY, "resolved")


class Greedy(WorldMitigator):
    """Prepares more than was proposed."""

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        preparation = await super().prepare(mitigation)
        more = (*preparation.mitigation.items, *items("oven"))
        grown = preparation.mitigation.model_copy(update={"items": more})
        return preparation.model_copy(update={"mitigation": grown})


async def test_nothing_is_changed_that_was_not_proposed(open_bench: OpenBench) -> None:
    world = World(things={"lamp"})
    async with open_bench(world) as bench:
        levers = Mitigators({("world", "world-of-orders"): (Greedy(world),)})
        bench.around = replace(bench.around, levers=levers)
        await bench.receive(bench.alert())
        await bench.settle(30)
        assert world.applied == []
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert "something else than was proposed" in incident.reason


# --- what counts --------------------------------------------------------------------------------


async def two_claims(bench: Bench, *services: str) -> tuple[Any, Any]:
    await bench.receive(*(bench.alert(service=name) for name in services))
    claims = {claim.incident.service: claim for claim in await bench.claim()}
    first, second = (claims[name] for name in services)
    return first, second


@pytest.mark.parametrize(
    ("limits", "code"),
    [({"budget": 1}, "budget"), ({"cooldown": HOUR}, "cooldown")],
)
async def test_a_change_of_which_nobody_knows_whether_it_was_made_counts(
    open_bench: OpenBench, limits: dict[str, Any], code: str
) -> None:
    async with open_bench(services=sharing("orders", "billing")) as bench:
        first, second = await two_claims(bench, "orders", "billing")
        bounds = allowing(**limits)
        _, entry = await reserve(bench, first, "lamp", bounds)
        assert entry is not None
        unknown = Settlement(id=entry.id, state=MitigationState.UNKNOWN, in_flight=False)
        await bench.store.queue.finish(first, Transition(phase=Phase.ACT, settlement=unknown))
        decision, entry = await reserve(bench, second, "lamp", bounds)
        assert entry is None
        assert (decision.effect, decision.code) == (Effect.DENY, code)


async def test_a_cooldown_holds_for_every_service_that_shares_the_target(
    open_bench: OpenBench,
) -> None:
    async with open_bench(services=sharing("orders", "billing")) as bench:
        first, second = await two_claims(bench, "orders", "billing")
        bounds = allowing(cooldown=HOUR)
        await reserve(bench, first, "lamp", bounds)
        decision, entry = await reserve(bench, second, "oven", bounds)
        assert entry is None
        assert decision.code == "cooldown"
        assert decision.effect is Effect.DENY


async def test_the_budget_of_a_system_counts_all_its_services(open_bench: OpenBench) -> None:
    services = [a_service("orders"), a_service("billing")]
    async with open_bench(services=services) as bench:
        first, second = await two_claims(bench, "orders", "billing")
        bounds = allowing("system/shop", budget=1)
        await reserve(bench, first, "lamp", bounds)
        decision, entry = await reserve(bench, second, "oven", bounds)
        assert entry is None
        assert (decision.effect, decision.code) == (Effect.DENY, "budget")
        assert "system/shop" in decision.reason


async def test_a_bound_is_one_for_all_processes(open_bench: OpenBench) -> None:
    services = [a_service("orders"), a_service("billing")]
    async with (
        open_bench(services=services) as one,
        open_bench(services=services, owner="two") as two,
    ):
        first, second = await two_claims(one, "orders", "billing")
        for bounds, code in (
            (allowing(budget=1), "budget"),
            (allowing(concurrency=1), "concurrency"),
        ):
            await reserve(one, first, "lamp", bounds)
            decision, entry = await reserve(two, second, "oven", bounds)
            assert entry is None
            assert decision.code == code


async def test_a_change_in_flight_counts_as_spread_however_old_it_is(
    open_bench: OpenBench,
) -> None:
    one_service = Safeguards(spread=Spread(services=0.1, at_least=1))
    wide = (Bound(scope="global", limits=WIDE),)
    bounds = Allowance(bounds=wide, safeguards=one_service, services=2)
    services = [a_service("orders"), a_service("billing")]
    async with open_bench(services=services) as bench:
        first, second = await two_claims(bench, "orders", "billing")
        _, entry = await reserve(bench, first, "lamp", bounds)
        assert entry is not None
        bench.clock.advance(one_service.spread.window + HOUR)
        decision, entry = await reserve(bench, second, "oven", bounds)
        assert entry is None
        assert (decision.effect, decision.code) == (Effect.DENY, "blast_radius")


def sharing(*names: str) -> Sequence[Any]:
    """Services that share one target."""
    first, *others = (a_service(name) for name in names)
    shared = first.targets["world"]
    moved = [
        one.model_copy(
            update={"targets": {"world": shared.model_copy(update={"service": one.name})}}
        )
        for one in others
    ]
    return [first, *moved]


# --- time ---------------------------------------------------------------------------------------


async def test_the_time_of_sqlite_does_not_follow_a_clock_that_is_put(tmp_path: Path) -> None:
    began = datetime(2020, 1, 1, tzinfo=UTC)
    wall = [began]
    async with (
        open_database(f"sqlite:///{tmp_path / 'state.db'}", wall=lambda: wall[0]) as database,
        database.read() as connection,
    ):
        first = await database.now(connection)
        for jump in (timedelta(days=1), timedelta(days=-1)):
            wall[0] = began + jump
            later = await database.now(connection)
            assert first <= later < first + HOUR
            first = later
