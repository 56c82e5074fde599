"""What the store promises, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import select

from remediator.model.alert import AlertStatus, DeadLetter
from remediator.model.errors import OwnershipLost, Refused
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.limits import Limits
from remediator.model.mitigation import Effect, MitigationState
from remediator.model.target import Mode, Risk
from remediator.model.transition import LEASE, Transition
from remediator.model.verdict import Assessment
from remediator.remediation.pipeline import take_step
from remediator.store import tables
from remediator.testing import FrozenClock, World
from tests.store_fixtures import (
    ALL_AT_ONCE,
    WIDE,
    Bench,
    OpenBench,
    a_delivery,
    a_service,
    allowing,
    reserve,
    resolved,
)

HOUR = timedelta(hours=1)


# --- inbox and episodes -----------------------------------------------------------------------


async def test_a_delivery_is_kept_with_its_dead_letters(bench: Bench) -> None:
    delivery = a_delivery(bench.clock)
    dead = DeadLetter(reason="alerts[3]: no labels", position=3, excerpt="{}")
    await bench.store.inbox.put(delivery, [bench.alert()], [dead])
    (kept,) = (await bench.store.records.deliveries()).items
    (letter,) = (await bench.store.records.dead_letters()).items
    assert (kept.id, kept.alerts, kept.dead) == (delivery.id, 1, 1)
    assert (letter.delivery_id, letter.position, letter.reason) == (delivery.id, 3, dead.reason)


async def test_an_alert_opens_an_incident_and_its_copies_change_nothing(bench: Bench) -> None:
    alert = bench.alert()
    for _ in range(3):
        await bench.receive(alert)
    incident = await bench.incident()
    assert incident.state is IncidentState.OPEN
    assert [a.notifications for a in incident.alerts] == [3]
    assert len([e for e in incident.timeline if e.event == "alerts joined"]) == 1


async def test_a_thousand_alerts_of_one_cause_are_one_incident(bench: Bench) -> None:
    await bench.receive(*(bench.alert(pod=f"orders-{n}") for n in range(2000)))
    incident = await bench.incident()
    assert (incident.service, incident.playbook) == ("orders", "SwitchOff")
    assert (await bench.store.records.deliveries()).items[0].incidents == [incident.id]


async def test_alerts_of_two_services_in_one_body_are_two_incidents(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(), a_service("cart")]) as bench:
        await bench.receive(bench.alert(), bench.alert(service="cart"))
        assert {i.service for i in await bench.incidents()} == {"orders", "cart"}


async def test_two_replicas_of_prometheus_with_different_starts_are_one_episode(
    bench: Bench,
) -> None:
    alert = bench.alert()
    earlier = alert.model_copy(update={"starts_at": alert.starts_at - timedelta(seconds=7)})
    later = alert.model_copy(update={"starts_at": alert.starts_at + timedelta(seconds=7)})
    await bench.receive(alert)
    await bench.receive(earlier)
    await bench.receive(later)
    assert len((await bench.incident()).alerts) == 1


async def test_a_resolve_leaves_and_a_later_start_begins_a_new_episode(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert)
    bench.clock.advance(timedelta(minutes=1))
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle()
    assert (await bench.incident()).alerts[0].status is AlertStatus.RESOLVED
    bench.clock.advance(timedelta(minutes=1))
    await bench.receive(alert.model_copy(update={"starts_at": bench.clock.now}))
    first, second = sorted(await bench.incidents(), key=lambda i: i.opened_at)
    assert (first.outcome, second.state) == (
        IncidentOutcome.RESOLVED_BY_ITSELF,
        IncidentState.OPEN,
    )


async def test_a_late_copy_after_the_resolve_opens_nothing(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert)
    bench.clock.advance(timedelta(minutes=1))
    await bench.receive(resolved(alert, bench.clock))
    await bench.receive(alert)
    await bench.settle()
    assert (await bench.incident()).outcome is IncidentOutcome.RESOLVED_BY_ITSELF


async def test_the_same_start_long_after_the_resolve_is_taken_as_back_again(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert)
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle()
    bench.clock.advance(timedelta(minutes=6))
    await bench.receive(alert)
    assert len(await bench.incidents()) == 2


async def test_a_resolve_older_than_the_open_episode_is_ignored(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert)
    old = resolved(alert, bench.clock)
    old = old.model_copy(update={"ends_at": alert.starts_at - timedelta(seconds=1)})
    await bench.receive(old)
    assert (await bench.incident()).alerts[0].status is AlertStatus.FIRING


async def test_firing_and_resolved_of_one_alert_in_one_body_end_resolved(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert, resolved(alert, bench.clock))
    await bench.settle()
    assert (await bench.incident()).outcome is IncidentOutcome.RESOLVED_BY_ITSELF


async def test_an_alert_of_no_service_is_a_record_and_its_copies_add_none(bench: Bench) -> None:
    stray = bench.alert(system="elsewhere")
    await bench.receive(stray)
    await bench.receive(stray, bench.alert(system="elsewhere", pod="two"))
    incident = await bench.incident()
    assert (incident.state, incident.outcome) == (IncidentState.CLOSED, IncidentOutcome.NO_MATCH)
    assert "no service of the catalogue" in incident.reason


async def test_no_secret_of_a_label_is_sealed_into_the_journal(bench: Bench) -> None:
    secret = "AKIAIOSFODNN7EXAMPLE"
    await bench.receive(bench.alert(alertname="Unknown", service="nobody", api_key=secret))
    async with bench.store.database.read() as connection:
        lines = (await connection.execute(select(tables.journal))).mappings().all()
    assert any("no service of the catalogue matches" in line["reason"] for line in lines)
    assert not [line for line in lines if secret in str(dict(line))]


async def test_an_alert_with_a_very_long_name_is_taken(bench: Bench) -> None:
    name = "N" * 60_000
    await bench.receive(bench.alert(alertname=name), bench.alert(alertname=name + "2"))
    assert len((await bench.incident()).alerts) == 2


async def test_a_delivery_that_triage_cannot_digest_becomes_a_dead_letter(bench: Bench) -> None:
    delivery = a_delivery(bench.clock)
    await bench.store.inbox.put(delivery, [bench.alert()], [])
    assert await bench.store.inbox.waiting() == [delivery.id]
    await bench.store.inbox.bury(delivery.id, "triage failed on it")
    assert await bench.store.inbox.waiting() == []
    (letter,) = (await bench.store.records.dead_letters()).items
    assert letter.reason == "triage failed on it"
    assert "triage failed on it" in (await bench.incident()).reason  # told as an incident is


async def test_pages_follow_one_another_without_gap_or_repeat(bench: Bench) -> None:
    for n in range(7):
        await bench.receive(bench.alert(system=f"s{n}", alertname=f"A{n}"))
    seen: list[str] = []
    after = None
    while True:
        page = await bench.store.records.incidents(after=after, limit=3)
        seen += [item.id for item in page.items]
        if page.next is None:
            break
        after = page.next
    assert len(seen) == len(set(seen)) == 7


# --- the claim --------------------------------------------------------------------------------


async def test_a_claimed_incident_is_nobody_elses_until_its_lease_is_over(
    open_bench: OpenBench,
) -> None:
    async with open_bench() as one, open_bench(owner="two") as two:
        await one.receive(one.alert())
        (first,) = await one.claim()
        assert await two.claim() == []
        one.clock.advance(LEASE)
        (second,) = await two.claim()
        assert second.incident.epoch == first.incident.epoch + 1


async def test_a_stale_owner_writes_nothing(open_bench: OpenBench) -> None:
    async with open_bench() as one, open_bench(owner="two") as two:
        await one.receive(one.alert())
        (stale,) = await one.claim()
        one.clock.advance(LEASE)
        (fresh,) = await two.claim()
        with pytest.raises(OwnershipLost):
            await one.store.queue.renew(stale)
        with pytest.raises(OwnershipLost):
            await one.store.queue.finish(stale, Transition(phase=Phase.ACT))
        with pytest.raises(OwnershipLost):
            await reserve(one, stale, "late")
        await two.store.queue.finish(fresh, Transition(phase=Phase.DECIDE))
        incident = await one.incident()
        assert (incident.phase, incident.mitigations) == (Phase.DECIDE, [])


async def test_an_event_during_a_step_is_not_lost(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert)
    (claim,) = await bench.claim()
    await bench.receive(resolved(alert, bench.clock))
    await bench.store.queue.finish(claim, Transition(phase=Phase.SETTLE, due_in=HOUR))
    (again,) = await bench.claim()
    assert not again.firing


async def test_a_renewed_lease_holds(open_bench: OpenBench) -> None:
    async with open_bench() as one, open_bench(owner="two") as two:
        await one.receive(one.alert())
        (claim,) = await one.claim()
        one.clock.advance(LEASE - timedelta(seconds=1))
        await one.store.queue.renew(claim)
        one.clock.advance(timedelta(seconds=2))
        assert await two.claim() == []


async def test_claims_last_longer_while_the_store_is_too_slow_for_them_and_ease_again(
    open_bench: OpenBench,
) -> None:
    async with open_bench() as one, open_bench(owner="two") as two:
        await one.receive(one.alert())
        (lost,) = await one.claim()
        one.clock.advance(LEASE)
        (claim,) = await two.claim()
        with pytest.raises(OwnershipLost):
            await one.store.queue.renew(lost)
        await two.store.queue.finish(claim, Transition(phase=Phase.DECIDE))
        (longer,) = await one.claim()
        one.clock.advance(LEASE)
        assert await two.claim() == []
        await one.store.queue.finish(longer, Transition(phase=Phase.DECIDE))
        leases = []
        for _ in range(10):
            (claim,) = await one.claim()
            leases.append(claim.lease)
            await one.store.queue.finish(claim, Transition(phase=Phase.DECIDE))
        assert leases[0] > leases[1] > leases[-1] == LEASE


# --- the ledger -------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 3])
async def test_twelve_racing_for_a_budget_of_five_get_exactly_five(
    open_bench: OpenBench, store_url: str, processes: int
) -> None:
    if processes > 1 and store_url.startswith("sqlite"):
        pytest.skip("SQLite serves one process")
    services = [a_service(f"s{n}") for n in range(12)]
    async with (
        open_bench(services=services) as one,
        open_bench(services=services, owner="two") as two,
        open_bench(services=services, owner="three") as three,
    ):
        await one.receive(*(one.alert(service=f"s{n}") for n in range(12)))
        claims = await one.claim()
        benches = [one, two, three][:processes]
        bounds = allowing(budget=5)
        results = await asyncio.gather(
            *(
                reserve(benches[n % processes], claim, f"thing {n}", bounds)
                for n, claim in enumerate(claims)
            )
        )
        allowed = [entry for decision, entry in results if entry is not None]
        denied = [decision for decision, entry in results if entry is None]
        assert len(allowed) == 5
        assert len(denied) == 7
        assert all(d.effect is Effect.DENY and "5 of 5" in d.reason for d in denied)


async def test_twelve_incidents_and_a_budget_of_five_end_as_five_changes_and_seven_denials(
    open_bench: OpenBench,
) -> None:
    services = [a_service(f"s{n}") for n in range(12)]
    five = WIDE.model_copy(update={"budget": 5})
    world = World(things={f"s{n}:lamp" for n in range(12)})
    async with open_bench(world, services, everywhere=five, safeguards=ALL_AT_ONCE) as bench:
        await bench.receive(*(bench.alert(service=f"s{n}") for n in range(12)))
        await bench.settle(20)
        incidents = await bench.incidents()
        denied = [i for i in incidents if i.outcome is IncidentOutcome.DENIED]
        made = [m for i in incidents for m in i.mitigations if m.state is MitigationState.APPLIED]
        assert (len(made), len(denied), len(world.applied)) == (5, 7, 5)
        assert all("5 of 5 mitigations" in i.reason for i in denied)


async def test_a_target_has_one_mitigation_in_flight(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        await bench.receive(bench.alert())
        (claim,) = await bench.claim()
        await reserve(bench, claim, "first")
        decision, entry = await reserve(bench, claim, "second")
        assert entry is None
        assert (decision.effect, decision.code) == (Effect.WAIT, "target_busy")


async def test_another_incident_waits_out_the_cooldown_of_a_target(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert)
    await bench.settle(40)
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle()
    bench.world.things.add("lamp")
    await bench.receive(bench.alert(pod="next"))
    (claim,) = await bench.claim()
    bounds = allowing(cooldown=timedelta(minutes=5))
    decision, entry = await reserve(bench, claim, "lamp", bounds)
    assert entry is None
    assert (decision.effect, decision.code) == (Effect.WAIT, "cooldown")
    assert timedelta(0) < decision.again_in < timedelta(minutes=5)
    bench.clock.advance(timedelta(minutes=5))
    (claim,) = await bench.claim()
    _, entry = await reserve(bench, claim, "lamp", bounds)
    assert entry is not None


async def test_nothing_is_reserved_after_a_pause_returned(open_bench: OpenBench) -> None:
    async with open_bench() as one, open_bench(owner="two") as two:
        await one.receive(one.alert())
        (claim,) = await one.claim()
        await two.store.commands.pause("shop/orders", "ann", "release")
        decision, entry = await reserve(one, claim, "thing")
        assert entry is None
        assert (decision.effect, decision.code) == (Effect.WAIT, "paused")
        assert "ann: release" in decision.reason
        await two.store.commands.resume("shop/orders", "ann")
        _, entry = await reserve(one, claim, "thing")
        assert entry is not None


async def test_resuming_what_is_not_paused_is_refused(bench: Bench) -> None:
    with pytest.raises(Refused) as caught:
        await bench.store.commands.resume("global", "ann")
    assert caught.value.status == 409


# --- the pipeline on the store ----------------------------------------------------------------


async def test_the_main_job_ends_mitigated_with_everything_on_record(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert)
    await bench.settle(45)
    assert bench.world.things == set()
    assert (await bench.incident()).phase is Phase.SETTLE
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle()
    incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.MITIGATED
    (made,) = incident.mitigations
    assert (made.state, made.verdict) == (MitigationState.APPLIED, Assessment.BETTER)
    assert [item.key for item in made.items] == ["lamp", "oven"]
    assert len(bench.world.applied) == 2
    steps = [event.step for event in incident.timeline]
    assert steps == sorted(
        steps, key=["triage", "diagnose", "decide", "act", "verify", "settle"].index
    ) or "alerts resolved" in [e.event for e in incident.timeline]


async def test_nothing_is_called_fixed_while_its_alert_fires(bench: Bench) -> None:
    await bench.receive(bench.alert())
    await bench.settle(45 + 121)
    incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED
    assert "still fires" in incident.reason


async def test_shadow_changes_nothing_and_says_what_it_would_do(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(mode=Mode.SHADOW)]) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.SHADOWED
        assert bench.world.things == {"lamp", "oven"}
        (would,) = incident.mitigations
        assert would.state is MitigationState.SHADOWED
        assert "it would have been applied" in would.reason


async def test_approve_waits_and_then_makes_exactly_that_plan(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(mode=Mode.APPROVE)]) as bench:
        await bench.receive(bench.alert())
        await bench.settle(5)
        incident = await bench.incident()
        (plan,) = incident.mitigations
        assert (incident.phase, plan.state) == (Phase.APPROVAL, MitigationState.AWAITING_APPROVAL)
        assert bench.world.things == {"lamp", "oven"}
        bench.world.things.add("radio")
        with pytest.raises(Refused, match="changed"):
            await bench.store.commands.approve(incident.id, "another", "ann")
        await bench.store.commands.approve(incident.id, plan.plan_hash, "ann")
        await bench.settle()
        (plan,) = (await bench.incident()).mitigations
        assert (plan.state, plan.decided_by) == (MitigationState.APPLIED, "ann")
        assert bench.world.things == {"radio"}
        with pytest.raises(Refused) as caught:
            await bench.store.commands.approve(incident.id, plan.plan_hash, "ann")
        assert caught.value.status == 409


async def test_nobody_answers_an_approval_and_it_is_escalated(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(mode=Mode.APPROVE)]) as bench:
        await bench.receive(bench.alert(severity="critical"))
        await bench.settle(301)
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert incident.mitigations[0].state is MitigationState.EXPIRED
        assert bench.world.applied == []


async def test_a_rejected_plan_is_not_made(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(mode=Mode.APPROVE)]) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        incident = await bench.incident()
        await bench.store.commands.reject(incident.id, None, "ann", "not now")
        await bench.settle(60)
        incident = await bench.incident()
        assert (incident.outcome, bench.world.applied) == (IncidentOutcome.DENIED, [])
        assert "ann" in incident.reason


async def test_a_cancelled_incident_takes_no_further_step(bench: Bench) -> None:
    await bench.receive(bench.alert())
    (claim,) = await bench.claim()
    await bench.store.commands.cancel(claim.incident.id, "ann", "mine")
    result = await take_step(bench.around, claim)
    with pytest.raises(OwnershipLost):
        await bench.store.queue.finish(claim, result)
    await bench.settle(60)
    assert (await bench.incident()).outcome is IncidentOutcome.SUPPRESSED
    assert bench.world.applied == []


async def test_a_replay_opens_its_own_incident_and_a_dry_one_changes_nothing(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert, replay_of="manual", dry_run=True)
    await bench.settle()
    (dry,) = await bench.incidents()
    assert (dry.outcome, dry.replay_of) == (IncidentOutcome.SHADOWED, "manual")
    assert bench.world.applied == []
    await bench.receive(alert, replay_of=dry.id, dry_run=False)
    await bench.settle(45)
    real = next(i for i in await bench.incidents() if not i.dry_run)
    assert (real.outcome, real.replay_of) == (IncidentOutcome.MITIGATED, dry.id)


async def test_impaired_senses_change_nothing_and_are_said(bench: Bench) -> None:
    bench.eyes.impaired = "its newest sample is an hour old"
    await bench.receive(bench.alert())
    await bench.settle(30)
    incident = await bench.incident()
    assert (incident.state, incident.mitigations) == (IncidentState.OPEN, [])
    assert "an hour old" in incident.reason
    bench.eyes.impaired = ""
    await bench.settle(15)
    assert bench.world.things == set()


async def test_senses_impaired_for_too_long_are_a_denial(bench: Bench) -> None:
    bench.eyes.impaired = "gone"
    await bench.receive(bench.alert())
    await bench.settle(640)
    incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.DENIED
    assert bench.world.applied == []


async def test_missing_data_is_no_verdict_and_a_human_is_called(bench: Bench) -> None:
    bench.eyes.assessment = Assessment.CANNOT_TELL
    await bench.receive(bench.alert())
    await bench.settle(80)
    incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED
    assert incident.mitigations[0].verdict is Assessment.CANNOT_TELL


async def test_what_did_not_help_is_put_back(open_bench: OpenBench) -> None:
    async with open_bench(undo=True) as bench:
        bench.eyes.assessment = Assessment.NOT_BETTER
        await bench.receive(bench.alert())
        await bench.settle(75)
        made = (await bench.incident()).mitigations
        assert made[0].state is MitigationState.REVERTED


async def test_no_more_than_three_changes_are_made_for_one_incident(bench: Bench) -> None:
    bench.eyes.assessment = Assessment.NOT_BETTER
    await bench.receive(bench.alert())
    for n in range(300):
        bench.world.things = bench.world.things or {f"thing{n}"}
        await bench.settle(1)
    incident = await bench.incident()
    assert incident.outcome is IncidentOutcome.ESCALATED
    made = [m for m in incident.mitigations if m.state is MitigationState.APPLIED]
    assert len(made) == 3


async def test_a_resolved_alert_starts_no_change(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert)
    await bench.step()
    await bench.step()
    assert (await bench.incident()).phase is Phase.ACT
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle()
    assert (await bench.incident()).outcome is IncidentOutcome.RESOLVED_BY_ITSELF
    assert bench.world.applied == []


# --- crashes ----------------------------------------------------------------------------------


async def _crash_before_finish(bench: Bench, phase: Phase) -> None:
    """Take the step of ``phase`` with all its effects, and die before its result is stored."""
    while True:
        (claim,) = await bench.claim()
        result = await take_step(bench.around, claim)
        if claim.incident.phase is phase:
            return
        await bench.store.queue.finish(claim, result)
        if result.due_in:
            bench.clock.advance(result.due_in)


@pytest.mark.parametrize("phase", [Phase.DIAGNOSE, Phase.DECIDE, Phase.ACT, Phase.VERIFY])
async def test_a_crash_in_any_step_changes_nothing_twice(
    open_bench: OpenBench, phase: Phase, clock: FrozenClock
) -> None:
    world = World(things={"lamp", "oven"})
    async with open_bench(world) as dying:
        alert = dying.alert()
        await dying.receive(alert)
        await _crash_before_finish(dying, phase)
    async with open_bench(world, owner="successor") as successor:
        await successor.settle(60)
        await successor.receive(resolved(alert, clock))
        await successor.settle(5)
        incident = await successor.incident()
        assert incident.outcome is IncidentOutcome.MITIGATED
        assert sorted(thing for _, thing in world.applied) == ["lamp", "oven"]
        assert len(incident.mitigations) == 1


async def test_a_lost_answer_is_looked_up_and_not_repeated(bench: Bench) -> None:
    bench.world.lose_answers = 1
    await bench.receive(bench.alert())
    await bench.settle(20)
    incident = await bench.incident()
    assert incident.mitigations[0].state is MitigationState.APPLIED
    assert len(bench.world.applied) == 2
    assert any("the answer was lost" in e.reason for e in incident.timeline)


async def test_an_unconditional_change_that_is_not_seen_goes_to_a_human(
    open_bench: OpenBench, clock: FrozenClock
) -> None:
    world = World(things={"lamp"})
    async with open_bench(world, conditional=False) as dying:
        await dying.receive(dying.alert())
        await dying.step()
        await dying.step()
        (claim,) = await dying.claim()
        await reserve(dying, claim, "lamp")  # and dies before the call
    async with open_bench(world, owner="successor", conditional=False) as successor:
        await successor.settle(25)
        incident = await successor.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert incident.mitigations[0].state is MitigationState.UNKNOWN
        assert world.applied == []


async def test_a_conditional_change_that_is_not_seen_is_made_afresh(
    open_bench: OpenBench,
) -> None:
    world = World(things={"lamp"})
    async with open_bench(world) as dying:
        await dying.receive(dying.alert())
        await dying.step()
        await dying.step()
        (claim,) = await dying.claim()
        await reserve(dying, claim, "lamp")  # and dies before the call
    async with open_bench(world, owner="successor") as successor:
        await successor.settle(25)
        states = [m.state for m in (await successor.incident()).mitigations]
        assert states == [MitigationState.NOT_APPLIED, MitigationState.APPLIED]
        assert len(world.applied) == 1


async def test_a_call_is_dropped_when_its_time_is_over(
    open_bench: OpenBench, clock: FrozenClock
) -> None:
    async with open_bench() as bench:
        in_time = iter([0.0] * 4)  # three steps and the reservation; the call itself comes late
        object.__setattr__(bench.around, "monotonic", lambda: next(in_time, 100.0))
        await bench.receive(bench.alert())
        await bench.step()
        await bench.step()
        await bench.step()
        incident = await bench.incident()
        assert incident.mitigations[0].state is MitigationState.NOT_APPLIED
        assert bench.world.applied == []


async def test_a_denial_by_budget_closes_with_the_reason(open_bench: OpenBench) -> None:
    nothing = Limits(budget=0, window=HOUR, cooldown=timedelta(0), concurrency=1)
    async with open_bench(everywhere=nothing) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.DENIED
        assert "budget of global" in incident.reason
        assert incident.mitigations[0].state is MitigationState.DENIED


# --- notices ----------------------------------------------------------------------------------


async def test_one_notice_an_incident_and_later_changes_make_it_due_again(bench: Bench) -> None:
    await bench.receive(bench.alert())
    await bench.step()
    (notice,) = await bench.store.notices.claim(10)
    assert await bench.store.notices.claim(10) == []
    await bench.step()
    await bench.store.notices.sent(notice, None)
    (again,) = await bench.store.notices.claim(10)
    assert again.incident_id == notice.incident_id
    await bench.store.notices.sent(again, None)
    assert await bench.store.notices.claim(10) == []


async def test_a_notice_that_failed_is_due_later(bench: Bench) -> None:
    await bench.receive(bench.alert())
    await bench.step()
    (notice,) = await bench.store.notices.claim(10)
    await bench.store.notices.failed(notice, "429", timedelta(seconds=30))
    assert await bench.store.notices.claim(10) == []
    bench.clock.advance(timedelta(seconds=30))
    (again,) = await bench.store.notices.claim(10)
    assert again.attempts == 1


def test_risks_have_modes_in_order() -> None:
    assert list(Mode) == ["observe", "shadow", "approve", "auto"]
    assert set(Risk) == {"low", "medium", "high"}
