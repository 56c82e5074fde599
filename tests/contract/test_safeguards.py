"""The bounds that look back hold through the engine: on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from remediator.model.alert import Alert, Source
from remediator.model.catalog import EnabledPlaybook
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.lookback import Relapses, Safeguards
from remediator.model.mitigation import (
    Figure,
    Instances,
    Mitigation,
    MitigationState,
    Preparation,
    Proposal,
)
from remediator.model.target import Mode, Risk
from remediator.model.verdict import Assessment
from remediator.playbook.base import Context, Findings, alertnames
from remediator.playbook.loader import PlaybookSet
from remediator.remediation.pipeline import take_step
from remediator.remediation.step import Mitigators
from remediator.testing import World, WorldMitigator
from tests.store_fixtures import Bench, OpenBench, SwitchOff, ThingsOn, a_service, resolved

HOUR = timedelta(hours=1)


class Kind(ThingsOn):
    """Which kind of change is proposed."""

    kind: str = "scale"


class Change(SwitchOff):
    """Proposes another kind of change than to switch off."""

    matches = (alertnames("Change"),)
    levers = frozenset({"scale", "evict_pod", "set_memory", "undo_rollout", "reboot"})
    parameters_type = Kind

    def propose(self, context: Context, findings: Findings) -> Proposal:
        proposal = super().propose(context, findings)
        kind = getattr(self.parameters, "kind", "")
        plans = tuple(plan.model_copy(update={"kind": kind}) for plan in proposal.mitigations)
        return proposal.model_copy(update={"mitigations": plans})


class Heal(Change):
    """Another playbook on the same service."""

    matches = (alertnames("Heal"),)


class NotingMitigator(WorldMitigator):
    """Says of every change what the bounds count."""

    kinds = Change.levers

    def __init__(self, world: World, *, undo: bool = False) -> None:
        super().__init__(world, undo=undo)
        self.figure: Figure | None = None
        self.instances: Instances | None = None

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        preparation = await super().prepare(mitigation)
        return preparation.noting(self.figure, self.instances)


@contextlib.asynccontextmanager
async def changing(
    open_bench: OpenBench, *, undo: bool = False, mode: Mode = Mode.AUTO, **kinds: str
) -> AsyncIterator[tuple[Bench, NotingMitigator]]:
    """A service with the playbooks ``kinds``, each with the kind of change it makes."""
    enabled = {
        name: EnabledPlaybook(name=name, modes=dict.fromkeys(Risk, mode), parameters={"kind": kind})
        for name, kind in kinds.items()
    }
    service = a_service().model_copy(update={"playbooks": enabled})
    async with open_bench(services=[service]) as bench:
        lever = NotingMitigator(bench.world, undo=undo)
        levers = Mitigators({("world", "world-of-orders"): (lever,)})
        playbooks = PlaybookSet([Change, Heal])
        bench.around = replace(bench.around, levers=levers, playbooks=playbooks)
        yield bench, lever


async def mitigated(bench: Bench, alertname: str = "ThingsOn", **labels: str) -> Alert:
    """Let an alert fire, be mitigated and resolve."""
    bench.world.things.add("lamp")
    alert = bench.alert(alertname=alertname, **labels)
    await bench.receive(alert)
    await bench.settle(45)
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle(15)
    last = (await bench.incidents())[0]
    assert last.outcome is IncidentOutcome.MITIGATED, last.reason
    return alert


async def fires(bench: Bench, alertname: str = "ThingsOn", **labels: str) -> Any:
    """Let an alert fire; return its incident as it stands then."""
    bench.world.things.add("lamp")
    await bench.receive(bench.alert(alertname=alertname, **labels))
    await bench.settle(5)
    return (await bench.incidents())[0]


async def relapses(bench: Bench, count: int, gap: timedelta = timedelta(minutes=10)) -> list[str]:
    """Mitigate so many incidents of which each comes back; return them, the oldest first."""
    for number in range(count):
        await mitigated(bench, pod=f"of-the-day-{number}")  # as pods come and go
        bench.clock.advance(gap)
    return [incident.id for incident in reversed(await bench.incidents())]


# --- successes that do not last -----------------------------------------------------------------


async def test_a_playbook_that_worked_three_times_in_vain_asks_first(bench: Bench) -> None:
    three = await relapses(bench, 3)
    assert len(bench.world.applied) >= 3
    before = len(bench.world.applied)
    incident = await fires(bench)
    assert incident.phase is Phase.APPROVAL
    (waiting,) = incident.mitigations
    assert waiting.state is MitigationState.AWAITING_APPROVAL
    assert all(one in waiting.reason for one in three)
    assert len(bench.world.applied) == before
    await bench.store.commands.approve(incident.id, None, "ann")
    await bench.settle(5)
    assert (await bench.incidents())[0].mitigations[0].state is MitigationState.APPLIED


async def test_two_relapses_are_not_three_and_what_lasted_is_none(bench: Bench) -> None:
    await relapses(bench, 2)
    assert (await fires(bench)).mitigations[0].state is MitigationState.APPLIED


async def test_a_new_alert_long_after_is_no_relapse(bench: Bench) -> None:
    await relapses(bench, 4, gap=HOUR + timedelta(minutes=1))
    assert (await fires(bench)).mitigations[0].state is MitigationState.APPLIED


async def test_once_the_window_has_passed_nothing_is_held_against_a_playbook(
    bench: Bench,
) -> None:
    await relapses(bench, 3)
    bench.clock.advance(timedelta(hours=24))
    assert (await fires(bench)).mitigations[0].state is MitigationState.APPLIED


async def test_another_service_is_not_demoted(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(), a_service("cart")]) as bench:
        await relapses(bench, 3)
        assert (await fires(bench, service="cart")).mitigations[0].state is MitigationState.APPLIED


async def test_replays_are_neither_successes_nor_relapses(bench: Bench) -> None:
    for number in range(4):
        bench.world.things.add("lamp")
        alert = bench.alert(pod=f"again-{number}")
        await bench.receive(alert, source=Source.REPLAY, replay_of="manual")
        await bench.settle(60)
        assert (await bench.incidents())[0].outcome is IncidentOutcome.MITIGATED
        bench.clock.advance(timedelta(minutes=5))
    assert (await fires(bench)).mitigations[0].state is MitigationState.APPLIED


async def test_the_reservation_does_not_let_through_what_decide_did_not_see(
    bench: Bench,
) -> None:
    await relapses(bench, 1)
    bench.world.things.add("lamp")
    await bench.receive(bench.alert())
    for _ in range(20):
        (claim,) = await bench.claim()
        if claim.incident.phase is Phase.ACT:
            break
        await bench.store.queue.finish(claim, await take_step(bench.around, claim))
    before = list(bench.world.applied)
    stricter = Safeguards(relapses=Relapses(count=1))
    catalogue = bench.around.catalogue.model_copy(update={"safeguards": stricter})
    bench.around = replace(bench.around, catalogue=catalogue)
    result = await take_step(bench.around, claim)
    assert result.phase is Phase.DECIDE
    await bench.store.queue.finish(claim, result)
    await bench.settle(5)
    assert (await bench.incidents())[0].phase is Phase.APPROVAL
    assert bench.world.applied == before


# --- growing for ever ---------------------------------------------------------------------------


async def test_a_figure_is_not_doubled_twice(open_bench: OpenBench) -> None:
    async with changing(open_bench, Change="scale") as (bench, lever):
        lever.figure = Figure(name="replicas", was=4, will=8)
        await mitigated(bench, "Change")
        bench.clock.advance(3 * HOUR)
        lever.figure = Figure(name="replicas", was=8, will=9)
        denied = await fires(bench, "Change")
        assert denied.outcome is IncidentOutcome.DENIED
        assert denied.reason.startswith("cumulative: ")
        assert "raise 4 to 9" in denied.reason
        bench.clock.advance(timedelta(days=7))
        await bench.receive(resolved(bench.alert(alertname="Change"), bench.clock))
        assert (await fires(bench, "Change")).mitigations[0].state is MitigationState.APPLIED


async def test_what_was_put_back_does_not_count_as_growth(open_bench: OpenBench) -> None:
    async with changing(open_bench, undo=True, Change="scale") as (bench, lever):
        lever.figure = Figure(name="replicas", was=4, will=8)
        bench.eyes.assessment = Assessment.NOT_BETTER
        bench.world.things = {"lamp"}
        alert = bench.alert(alertname="Change")
        await bench.receive(alert)
        await bench.settle(400)
        assert (await bench.incident()).mitigations[0].state is MitigationState.REVERTED
        await bench.receive(resolved(alert, bench.clock))
        bench.clock.advance(3 * HOUR)
        assert (await fires(bench, "Change")).mitigations[0].state is MitigationState.APPLIED


async def test_nobody_is_asked_for_what_would_be_refused(open_bench: OpenBench) -> None:
    async with changing(open_bench, mode=Mode.APPROVE, Change="scale") as (bench, lever):
        lever.figure = Figure(name="replicas", was=4, will=9)
        denied = await fires(bench, "Change")
        assert denied.outcome is IncidentOutcome.DENIED
        assert denied.reason.startswith("cumulative: ")


async def test_shadow_says_what_the_live_state_would_have_forbidden(
    open_bench: OpenBench,
) -> None:
    async with changing(open_bench, mode=Mode.SHADOW, Change="scale") as (bench, lever):
        lever.figure = Figure(name="replicas", was=4, will=9)
        shadowed = await fires(bench, "Change")
        assert shadowed.outcome is IncidentOutcome.SHADOWED
        assert "would not have been applied: our changes of replicas" in shadowed.reason


async def test_a_lever_that_does_not_say_what_it_raises_is_not_pulled(
    open_bench: OpenBench,
) -> None:
    async with changing(open_bench, Change="scale") as (bench, _):
        denied = await fires(bench, "Change")
        assert denied.reason.startswith("cumulative: ")
        assert bench.world.applied == []


async def test_no_configured_limit_widens_what_a_kind_may_do(open_bench: OpenBench) -> None:
    async with changing(open_bench, Change="undo_rollout") as (bench, lever):
        lever.instances = Instances(touched=0, of_all=4)
        await mitigated(bench, "Change")  # all that is configured lets a hundred through an hour
        bench.clock.advance(23 * HOUR)
        denied = await fires(bench, "Change")
        assert denied.outcome is IncidentOutcome.DENIED
        assert denied.reason.startswith("budget: the budget of lever/undo_rollout/")


async def test_a_kind_that_is_in_no_table_gets_the_strictest_bounds(open_bench: OpenBench) -> None:
    async with changing(open_bench, Change="reboot") as (bench, lever):
        lever.figure = Figure(name="reboots", was=1, will=2)
        silent = await fires(bench, "Change")
        assert silent.reason.startswith("blast_radius: "), "it does not say what it ends"
        await bench.receive(resolved(bench.alert(alertname="Change"), bench.clock))
        lever.instances = Instances(touched=1, of_all=4)
        await mitigated(bench, "Change")
        bench.clock.advance(23 * HOUR)
        denied = await fires(bench, "Change")
        assert denied.reason.startswith("budget: the budget of lever/reboot/")


# --- to and fro ---------------------------------------------------------------------------------


async def test_a_playbook_does_not_undo_what_another_one_changed_just_now(
    open_bench: OpenBench,
) -> None:
    async with changing(open_bench, Change="set_memory", Heal="undo_rollout") as (bench, lever):
        lever.figure = Figure(name="memory of app", was=256, will=512)
        lever.instances = Instances(touched=0, of_all=4)
        await mitigated(bench, "Change")
        denied = await fires(bench, "Heal")
        assert denied.outcome is IncidentOutcome.DENIED
        assert denied.reason.startswith("oscillation: Change ")
        await bench.receive(resolved(bench.alert(alertname="Heal"), bench.clock))
        bench.clock.advance(timedelta(minutes=30))
        assert (await fires(bench, "Heal")).mitigations[0].state is MitigationState.APPLIED


# --- at a stroke --------------------------------------------------------------------------------


async def test_all_playbooks_together_end_a_quarter_of_the_instances(
    open_bench: OpenBench,
) -> None:
    async with changing(open_bench, Change="evict_pod", Heal="evict_pod") as (bench, lever):
        lever.instances = Instances(touched=1, of_all=4)
        await mitigated(bench, "Change")
        denied = await fires(bench, "Heal")
        assert denied.outcome is IncidentOutcome.DENIED
        assert denied.reason.startswith("blast_radius: ")
        await bench.receive(resolved(bench.alert(alertname="Heal"), bench.clock))
        bench.clock.advance(timedelta(minutes=10))
        assert (await fires(bench, "Heal")).mitigations[0].state is MitigationState.APPLIED


async def test_a_signal_that_is_wrong_everywhere_changes_a_quarter_of_the_services(
    open_bench: OpenBench,
) -> None:
    services = [a_service(f"s{n}") for n in range(20)]
    world = World(things={f"s{n}:lamp" for n in range(20)})
    async with open_bench(world, services) as bench:
        await bench.receive(*(bench.alert(service=f"s{n}") for n in range(20)))
        await bench.settle(20)
        incidents = await bench.incidents()
        denied = [i for i in incidents if i.outcome is IncidentOutcome.DENIED]
        assert (len(world.applied), len(denied)) == (5, 15)
        assert all(i.reason.startswith("blast_radius: ") for i in denied)
        assert all("at most 5 of 20" in i.reason for i in denied)


async def test_four_services_at_once_are_three_and_a_human(open_bench: OpenBench) -> None:
    services = [a_service(f"s{n}") for n in range(4)]
    world = World(things={f"s{n}:lamp" for n in range(4)})
    async with open_bench(world, services) as bench:
        await bench.receive(*(bench.alert(service=f"s{n}") for n in range(4)))
        await bench.settle(20)
        open_ones = [i for i in await bench.incidents() if i.state is IncidentState.OPEN]
        assert (len(world.applied), len(open_ones)) == (3, 3)


async def test_replicas_that_race_change_no_more_services_than_one(
    open_bench: OpenBench, store_url: str
) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("SQLite serves one process")
    services = [a_service(f"s{n}") for n in range(12)]
    world = World(things={f"s{n}:lamp" for n in range(12)})
    async with (
        open_bench(world, services) as one,
        open_bench(world, services, owner="two") as two,
        open_bench(world, services, owner="three") as three,
    ):
        await one.receive(*(one.alert(service=f"s{n}") for n in range(12)))
        benches = (one, two, three)
        for _ in range(20):
            claims = [(bench, claim) for bench in benches for claim in await some(bench)]
            if not claims:
                break
            await asyncio.gather(*(taken(bench, claim) for bench, claim in claims))
        assert len(world.applied) == 3
        denied = [i for i in await one.incidents() if i.outcome is IncidentOutcome.DENIED]
        assert len(denied) == 9


async def some(bench: Bench) -> list[Any]:
    return await bench.store.queue.claim(4)


async def taken(bench: Bench, claim: Any) -> None:
    await bench.store.queue.finish(claim, await take_step(bench.around, claim))
