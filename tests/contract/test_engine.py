"""What the engine must not do in the corners: on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text, update

from remediator.model.alert import AlertStatus
from remediator.model.errors import OwnershipLost, Refused
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.mitigation import MitigationState
from remediator.model.target import Mode
from remediator.model.transition import Transition
from remediator.model.verdict import Assessment, Sample, Verification
from remediator.remediation.pipeline import take_step
from remediator.remediation.step import Mitigators
from remediator.remediation.verify import verdict
from remediator.store import tables as t
from remediator.testing import World
from tests.store_fixtures import Bench, OpenBench, a_delivery, a_service, resolved


async def _at(bench: Bench, phase: Phase) -> Any:
    """Take steps until the only incident is claimed at ``phase``; return the claim."""
    for _ in range(200):
        for claim in await bench.claim():
            if claim.incident.phase is phase:
                return claim
            result = await take_step(bench.around, claim)
            await bench.store.queue.finish(claim, result)
        bench.clock.advance(timedelta(seconds=1))
    raise AssertionError(f"never came to {phase}")


async def test_an_alert_that_joins_while_a_good_end_is_written_keeps_the_incident_open(
    bench: Bench,
) -> None:
    first = bench.alert()
    await bench.receive(first)
    await bench.settle(45)
    await bench.receive(resolved(first, bench.clock))
    claim = await _at(bench, Phase.SETTLE)
    good_end = await take_step(bench.around, claim)
    assert good_end.outcome is IncidentOutcome.MITIGATED
    await bench.receive(bench.alert(pod="another"))
    await bench.store.queue.finish(claim, good_end)
    assert (await bench.incident()).state is IncidentState.OPEN


async def test_what_a_database_cannot_hold_is_replaced_and_stops_nothing(bench: Bench) -> None:
    bench.world.things = {"lamp\0\ud800"}
    await bench.receive(bench.alert())
    await bench.settle(5)
    incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED, "no such thing is on"
    assert "lamp" in incident.findings[-1].summary


async def test_one_incident_that_cannot_be_read_goes_to_a_human_and_blocks_nobody(
    open_bench: OpenBench,
) -> None:
    async with open_bench(services=[a_service(), a_service("cart")]) as bench:
        await bench.receive(bench.alert(), bench.alert(service="cart"))

        async def spoil(connection: Any) -> None:
            broken = update(t.incidents).where(t.incidents.c.service == "cart")
            await connection.execute(broken.values(proposal={"of": "another version"}))

        await bench.store.database.write(spoil)
        await bench.settle()
        by_service = {i.service: i for i in await bench.incidents()}
        assert by_service["cart"].outcome is IncidentOutcome.ESCALATED
        assert by_service["orders"].phase is Phase.VERIFY


async def test_an_alert_that_a_playbook_takes_does_not_join_a_record_of_its_name(
    bench: Bench,
) -> None:
    stray = bench.alert(alertname="SwitchOff")  # named as the playbook, which does not take it
    await bench.receive(stray)
    await bench.receive(bench.alert())
    outcomes = {i.outcome for i in await bench.incidents()}
    assert outcomes == {IncidentOutcome.NO_MATCH, None}


async def test_an_alert_that_fires_anew_after_its_incident_closed_is_heard_without_a_resolve(
    bench: Bench,
) -> None:
    alert = bench.alert()
    await bench.receive(alert)
    await bench.settle(200)
    assert (await bench.incident()).outcome is IncidentOutcome.ESCALATED
    bench.clock.advance(timedelta(days=1))
    await bench.receive(alert)
    assert len(await bench.incidents()) == 1, "the same episode is still told"
    await bench.receive(alert.model_copy(update={"starts_at": bench.clock.now}))
    assert len(await bench.incidents()) == 2


async def test_a_change_that_is_pending_when_the_configuration_goes_is_said(
    open_bench: OpenBench,
) -> None:
    world = World(things={"lamp"}, lose_answers=1)
    async with open_bench(world) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
    async with open_bench(world, services=[a_service("cart")], owner="later") as bench:
        await bench.settle(20)
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert "a change may have been made" in incident.reason
        assert incident.mitigations[0].state is MitigationState.UNKNOWN


async def test_an_approved_plan_is_not_made_on_a_target_that_the_catalogue_has_lost(
    open_bench: OpenBench,
) -> None:
    world = World(things={"lamp"})
    async with open_bench(world, services=[a_service(mode=Mode.APPROVE)]) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        await bench.store.commands.approve((await bench.incident()).id, None, "ann")
    moved = a_service(mode=Mode.APPROVE)
    target = moved.targets["world"].model_copy(update={"name": "world-of-elsewhere"})
    moved = moved.model_copy(update={"targets": {"world": target}})
    async with open_bench(world, services=[moved], owner="later") as bench:
        await bench.settle(10)
        incident = await bench.incident()
        assert (incident.outcome, world.applied) == (IncidentOutcome.DENIED, [])
        assert "configuration" in incident.reason


async def test_a_symptom_waits_for_the_verdict_on_its_cause(bench: Bench) -> None:
    symptom, cause = bench.alert(alertname="Dim"), bench.alert()
    await bench.receive(symptom, cause)
    await bench.settle(45)
    by_name = {i.playbook: i for i in await bench.incidents()}
    assert by_name["SwitchOff"].phase is Phase.SETTLE
    assert (by_name["Dim"].phase, by_name["Dim"].mitigations) == (Phase.DIAGNOSE, [])
    assert "SwitchOff is working on this service" in by_name["Dim"].reason
    await bench.receive(resolved(cause, bench.clock), resolved(symptom, bench.clock))
    await bench.settle(15)
    outcomes = {i.playbook: i.outcome for i in await bench.incidents()}
    assert outcomes == {
        "SwitchOff": IncidentOutcome.MITIGATED,
        "Dim": IncidentOutcome.RESOLVED_BY_ITSELF,
    }


async def test_a_symptom_gives_the_alert_of_its_cause_a_moment_to_come(bench: Bench) -> None:
    symptom = bench.alert(alertname="Dim")
    await bench.receive(symptom)
    await bench.settle(8)
    assert bench.world.applied == [], "SwitchOff may explain it"
    await bench.receive(bench.alert())
    await bench.settle(10)
    by_name = {i.playbook: i for i in await bench.incidents()}
    assert by_name["Dim"].mitigations == []
    assert [m.state for m in by_name["SwitchOff"].mitigations] == [MitigationState.APPLIED]


async def test_a_symptom_whose_cause_never_fires_is_treated_after_that_moment(
    bench: Bench,
) -> None:
    await bench.receive(bench.alert(alertname="Dim"))
    await bench.settle(11)
    assert [m.state for m in (await bench.incident()).mitigations] == [MitigationState.APPLIED]


async def test_a_change_that_is_refused_for_the_same_reason_again_goes_to_a_human(
    bench: Bench,
) -> None:
    bench.eyes.world = World(things={"lamp"})
    bench.world.refuse = "our role may not switch anything off"
    await bench.receive(bench.alert())
    await bench.settle(5)
    incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED
    assert "our role may not" in incident.reason
    assert len(incident.mitigations) == 1


async def test_a_refusal_that_differs_in_its_figures_only_is_the_same(bench: Bench) -> None:
    """Somebody set it 0 minutes ago, then 1 minute ago: a human hears at the second refusal."""
    bench.eyes.world = World(things={"lamp"})
    bench.world.refuse = "kubectl set it 0 min ago"
    await bench.receive(bench.alert())
    while not (await bench.incident()).mitigations:
        await bench.step()
    bench.world.refuse = "kubectl set it 1 min ago"
    await bench.settle(5)
    incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED
    assert "kubectl set it 1 min ago" in incident.reason
    assert len(incident.mitigations) == 1


async def test_what_is_cancelled_after_a_change_is_a_humans_and_says_what_was_changed(
    bench: Bench,
) -> None:
    await bench.receive(bench.alert())
    await bench.settle(5)
    await bench.store.commands.cancel((await bench.incident()).id, "ann", "mine")
    incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED
    assert incident.mitigations[0].effect_key in incident.reason


async def test_a_plan_names_what_it_would_touch(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(mode=Mode.SHADOW)]) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        (plan,) = (await bench.incident()).mitigations
        assert [item.key for item in plan.planned] == ["lamp", "oven"]


async def test_a_target_without_a_writer_goes_to_a_human_at_once(bench: Bench) -> None:
    object.__setattr__(bench.around, "levers", Mitigators({}))
    await bench.receive(bench.alert())
    await bench.settle(5)
    incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED
    assert "no writer configured" in incident.reason


async def test_what_was_put_back_is_not_made_again(open_bench: OpenBench) -> None:
    async with open_bench(World(things={"lamp"}), undo=True) as bench:
        bench.eyes.assessment = Assessment.NOT_BETTER
        await bench.receive(bench.alert())
        await bench.settle(400)
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.REVERTED
        assert bench.world.applied == [(incident.mitigations[0].effect_key, "lamp")]


@pytest.mark.parametrize(("final", "after"), [(True, 10), (False, 60)])
async def test_what_cannot_come_to_help_any_more_is_put_back_at_once(
    open_bench: OpenBench, final: bool, after: int
) -> None:
    """The deadline is a minute, a look is taken every ten seconds."""
    async with open_bench(World(things={"lamp"}), undo=True) as bench:
        bench.eyes.assessment, bench.eyes.final = Assessment.NOT_BETTER, final
        await bench.receive(bench.alert())
        started = bench.clock.now
        while bench.clock.now - started < timedelta(seconds=after):
            assert (await bench.incident()).outcome is None
            await bench.settle(2)
        await bench.settle(15)
        assert (await bench.incident()).outcome is IncidentOutcome.REVERTED
        assert bench.world.things == {"lamp"}


async def test_what_is_better_is_never_final(open_bench: OpenBench) -> None:
    async with open_bench(World(things={"lamp"}), undo=True) as bench:
        bench.eyes.assessment, bench.eyes.final = Assessment.BETTER, True
        await bench.receive(bench.alert())
        await bench.settle(25)
        assert (await bench.incident()).phase is Phase.VERIFY


async def test_what_somebody_else_has_changed_reaches_a_human_at_once(
    open_bench: OpenBench,
) -> None:
    """And is not tried again for ten minutes, as what may pass is."""
    async with open_bench(World(things={"lamp"}), undo=True) as bench:
        bench.eyes.assessment = Assessment.NOT_BETTER
        await bench.receive(bench.alert())
        bench.world.changed_by = "kubectl"
        await bench.settle(75)
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert incident.reason == ("the change could not be reverted: kubectl has changed it since")


async def test_what_was_changed_last_is_judged_also_when_the_clock_was_put_back(
    bench: Bench,
) -> None:
    bench.world.things = {"lamp"}
    bench.eyes.assessment = Assessment.NOT_BETTER
    await bench.receive(bench.alert())
    await bench.settle(30)
    bench.world.things = {"oven"}
    while (await bench.incident()).phase is Phase.VERIFY:
        bench.clock.advance(timedelta(seconds=1))
        await bench.step()
    bench.clock.advance(timedelta(minutes=-5))
    await bench.receive(bench.alert(pod="another"))  # so that it is looked at at once
    await bench.settle(65)
    verdicts = {m.effect_key.split("/")[2]: m.verdict for m in (await bench.incident()).mitigations}
    assert verdicts == {"0": Assessment.NOT_BETTER, "1": Assessment.NOT_BETTER}


async def test_nothing_is_put_back_while_paused(open_bench: OpenBench) -> None:
    async with open_bench(World(things={"lamp"}), undo=True) as bench:
        bench.eyes.assessment = Assessment.NOT_BETTER
        await bench.receive(bench.alert())
        await bench.settle(30)
        await bench.store.commands.pause("global", "ann", "hands off")
        await bench.settle(60)
        assert bench.world.things == set()
        await bench.store.commands.resume("global", "ann")
        await bench.settle(15)
        assert bench.world.things == {"lamp"}


async def test_a_stale_owner_reserves_nothing_on_an_incident_that_is_being_closed(
    open_bench: OpenBench, store_url: str
) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("SQLite serves one process")
    async with open_bench() as one, open_bench(owner="two") as two:
        await one.receive(one.alert())
        claim = await _at(one, Phase.ACT)
        await two.store.commands.cancel(claim.incident.id, "ann", "mine")
        with pytest.raises(OwnershipLost):
            await take_step(one.around, claim)
        assert one.world.applied == []


async def test_deliveries_beyond_one_batch_are_all_triaged(bench: Bench) -> None:
    for n in range(5):
        pods = [bench.alert(pod=f"{n}-{m}") for m in range(900)]
        await bench.store.inbox.put(a_delivery(bench.clock), pods, [])
    assert len(await bench.store.inbox.waiting()) == 5
    await bench.triage()
    assert await bench.store.inbox.waiting() == []
    assert sum(a.status is AlertStatus.FIRING for a in (await bench.incident()).alerts) == 200


async def test_a_bad_operation_undoes_itself_and_not_its_neighbours(bench: Bench) -> None:
    good = [a_delivery(bench.clock) for _ in range(5)]
    twice = good[2]
    writes = [bench.store.inbox.put(d, [], []) for d in (*good, twice)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(isinstance(result, BaseException) for result in results) == 1
    assert len((await bench.store.records.deliveries()).items) == 5


async def test_an_unknown_place_to_go_on_from_is_said(bench: Bench) -> None:
    with pytest.raises(Refused) as caught:
        await bench.store.records.incidents(after="inc-of-nowhere")
    assert caught.value.status == 400


async def test_a_result_whose_answer_was_lost_is_not_written_twice(bench: Bench) -> None:
    await bench.receive(bench.alert())
    (claim,) = await bench.claim()
    result = await take_step(bench.around, claim)
    await bench.store.queue.finish(claim, result)
    with pytest.raises(OwnershipLost):
        await bench.store.queue.finish(claim, result)
    events = [e.event for e in (await bench.incident()).timeline]
    assert events.count("diagnosed") == 1


async def test_a_claim_that_is_given_back_is_due_at_once(bench: Bench) -> None:
    await bench.receive(bench.alert())
    (claim,) = await bench.claim()
    assert await bench.claim() == []
    await bench.store.queue.release(claim)
    assert len(await bench.claim()) == 1


async def test_a_step_that_failed_is_due_later_and_counted(bench: Bench) -> None:
    await bench.receive(bench.alert())
    (claim,) = await bench.claim()
    assert await bench.store.queue.retry_later(claim, timedelta(seconds=5)) == (1, False)
    assert await bench.claim() == []
    bench.clock.advance(timedelta(seconds=5))
    (claim,) = await bench.claim()
    assert await bench.store.queue.retry_later(claim, timedelta(seconds=5)) == (2, False)
    bench.clock.advance(timedelta(seconds=5))
    (claim,) = await bench.claim()
    await bench.store.queue.finish(claim, Transition(phase=Phase.DECIDE))


async def test_the_migrations_make_exactly_the_tables_that_are_declared(bench: Bench) -> None:
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415 - only here
    from alembic.migration import MigrationContext  # noqa: PLC0415 - only here

    def differences(connection: Any) -> Any:
        return compare_metadata(MigrationContext.configure(connection), t.metadata)

    async with bench.store.database.read() as connection:
        assert await connection.run_sync(differences) == []
        await connection.execute(text("SELECT 1"))


def test_a_gap_without_a_look_breaks_a_run_of_good_samples() -> None:
    rules = Verification(hold=timedelta(minutes=5), interval=timedelta(seconds=15))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    samples = [
        Sample(at=start, assessment=Assessment.BETTER, evidence="good"),
        Sample(at=start + timedelta(minutes=9), assessment=Assessment.BETTER, evidence="good"),
    ]
    now = start + timedelta(minutes=9)
    assert verdict(samples, rules, resolved=False, since=start, now=now) is None


@pytest.mark.parametrize(
    ("minutes", "shorter", "judged"),
    [(9, None, False), (10, None, True), (9, timedelta(minutes=2), True)],
)
def test_a_resolve_shortens_the_hold_only_where_that_is_configured(
    minutes: int, shorter: timedelta | None, *, judged: bool
) -> None:
    hold, minute = timedelta(minutes=10), timedelta(minutes=1)
    deadline = timedelta(minutes=12)
    rules = Verification(interval=minute, hold=hold, hold_resolved=shorter, deadline=deadline)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    samples = [
        Sample(at=start + n * minute, assessment=Assessment.BETTER, evidence="good")
        for n in range(minutes + 1)
    ]
    seen = verdict(samples, rules, resolved=True, since=start, now=samples[-1].at)
    assert (seen is not None) is judged


async def test_what_passes_by_itself_is_waited_for_and_looked_at_again(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"wait": "20s"})]
    async with open_bench(World(things=set()), services) as bench:
        await bench.receive(bench.alert())
        await bench.settle(45)
        incident = await bench.incident()
        assert incident.state is IncidentState.OPEN
        assert incident.reason == "waiting: nothing is on at 00:00:40", "with the latest figures"
        assert [line.event for line in incident.timeline].count("waiting: playbook") == 1
        bench.world.things = {"lamp"}
        await bench.settle(20)
        assert bench.world.things == set()


async def test_what_does_not_pass_is_handed_to_a_human_in_the_end(open_bench: OpenBench) -> None:
    services = [a_service(parameters={"wait": "20s"})]
    async with open_bench(World(things=set()), services) as bench:
        await bench.receive(bench.alert())
        await bench.settle(590)
        assert (await bench.incident()).state is IncidentState.OPEN
        await bench.settle(60)
        assert (await bench.incident()).outcome is IncidentOutcome.ESCALATED


async def test_in_shadow_nothing_is_waited_for(open_bench: OpenBench) -> None:
    services = [a_service(parameters={"wait": "20s"}, mode=Mode.SHADOW)]
    async with open_bench(World(things=set()), services) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        assert (await bench.incident()).outcome is IncidentOutcome.SHADOWED


async def test_a_playbook_sees_what_else_fires_on_its_service(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(), a_service("cart")]) as bench:
        dim, elsewhere = bench.alert(alertname="Dim"), bench.alert(service="cart")
        await bench.receive(bench.alert(), dim, elsewhere)
        claims = {(c.incident.service, c.incident.playbook): c for c in await bench.claim()}
        seen = claims["orders", "SwitchOff"].neighbours
        assert [alert.fingerprint for alert in seen] == [dim.fingerprint]
        assert claims["cart", "SwitchOff"].neighbours == ()
