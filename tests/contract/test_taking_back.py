"""Temporary changes: taken back at their hold time, in steps, by whom and when it is safe."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.errors import OwnershipLost
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.mitigation import MitigationState
from remediator.model.verdict import Assessment
from remediator.remediation.expire import UNSTABLE
from remediator.remediation.step import Mitigators
from remediator.store import tables as t
from remediator.store.ledger import insert_entry
from remediator.testing import World
from tests.store_fixtures import Bench, OpenBench, a_service, resolved


async def _mitigated_for_ten_minutes(bench: Bench) -> None:
    alert = bench.alert()
    await bench.receive(alert)
    await bench.settle(45)
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle()
    assert (await bench.incident()).outcome is IncidentOutcome.MITIGATED
    assert bench.world.things == set()


async def test_a_temporary_change_is_taken_back_at_its_hold_time_after_the_incident(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        await bench.settle(500)
        assert bench.world.things == set()
        await bench.settle(100)
        assert bench.world.things == {"lamp"}
        incident = await bench.incident()
        assert (incident.outcome, incident.mitigations[0].state) == (
            IncidentOutcome.MITIGATED,
            MitigationState.REVERTED,
        )
        assert incident.timeline[-1].event == "taken back"


async def test_a_temporary_change_that_cannot_be_taken_back_goes_to_a_human(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        bench.world.refuse = "somebody changed it since"
        await bench.settle(1300)
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert "not taken back" in incident.reason


async def test_what_somebody_else_has_changed_is_told_at_the_first_attempt(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        bench.world.changed_by = "kubectl"
        await bench.settle(560)
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert incident.reason.endswith("is not taken back: kubectl has changed it since")


async def test_what_cannot_be_taken_back_ends_an_incident_that_is_still_open(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "1m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await bench.receive(bench.alert())
        await bench.settle(50)
        assert (await bench.incident()).phase is Phase.SETTLE
        bench.clock.advance(timedelta(seconds=20))
        (owed,) = await bench.store.obligations.claim(1)
        await bench.store.obligations.settled(owed, taken_back=False, reason="not ours any more")
        incident = await bench.incident()
        assert (incident.state, incident.outcome) == (
            IncidentState.CLOSED,
            IncidentOutcome.ESCALATED,
        )
        await bench.settle(200)
        assert (await bench.incident()).outcome is IncidentOutcome.ESCALATED


async def test_a_pause_holds_the_taking_back_too(open_bench: OpenBench) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        await bench.store.commands.pause("global", "ann", "release")
        await bench.settle(700)
        assert bench.world.things == set()
        await bench.store.commands.resume("global", "ann")
        await bench.settle(60)
        assert bench.world.things == {"lamp"}


async def test_a_temporary_change_is_taken_back_in_steps(open_bench: OpenBench) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp", "oven", "fan"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        await bench.settle(600)
        assert bench.world.things == {"fan"}
        incident = await bench.incident()
        assert incident.mitigations[0].state is MitigationState.APPLIED
        assert incident.timeline[-1].event == "taken back in part"
        await bench.settle(500)
        assert bench.world.things == {"fan"}, "the steps have a pause between them"
        await bench.settle(100)
        assert bench.world.things == {"fan", "lamp"}
        await bench.settle(600)
        assert bench.world.things == {"fan", "lamp", "oven"}
        incident = await bench.incident()
        assert incident.mitigations[0].state is MitigationState.REVERTED
        assert incident.timeline[-1].event == "taken back"


async def test_what_did_not_help_is_put_back_at_once_and_whole(open_bench: OpenBench) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp", "oven"}), services, undo=True) as bench:
        bench.eyes.assessment = Assessment.NOT_BETTER
        await bench.receive(bench.alert())
        await bench.settle(80)
        assert bench.world.things == {"lamp", "oven"}
        assert (await bench.incident()).outcome is IncidentOutcome.REVERTED


async def test_nothing_is_taken_back_while_an_alert_of_the_service_fires(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "10m"}), a_service("cart")]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        back = bench.alert(alertname="Dim")
        await bench.receive(back, bench.alert(service="cart", alertname="Dim"))
        await bench.settle(1200)
        assert bench.world.things == set()
        await bench.receive(resolved(back, bench.clock))
        await bench.settle(40)
        assert bench.world.things == {"lamp"}, "what fires elsewhere does not matter"


async def test_what_is_never_stable_is_handed_to_a_human(open_bench: OpenBench) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        await bench.receive(bench.alert(alertname="Dim"))
        await bench.settle(1200)
        bench.clock.advance(UNSTABLE)
        await bench.settle(60)
        assert bench.world.things == set()
        first = min(await bench.incidents(), key=lambda incident: incident.opened_at)
        assert first.outcome is IncidentOutcome.ESCALATED
        assert "Dim is firing: the service is not stable" in first.reason


async def test_a_long_pause_does_not_use_up_the_attempts(open_bench: OpenBench) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        await bench.store.commands.pause("global", "ann", "release")
        await bench.settle(3600)
        await bench.store.commands.resume("global", "ann")
        await bench.settle(60)
        assert bench.world.things == {"lamp"}


async def test_an_outage_at_the_hold_time_is_no_refusal(open_bench: OpenBench) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        bench.world.unavailable = "the API does not answer"
        await bench.settle(3600)
        assert (await bench.incident()).outcome is IncidentOutcome.MITIGATED
        bench.world.unavailable = None
        await bench.settle(60)
        assert bench.world.things == {"lamp"}


async def test_a_second_temporary_change_of_a_kind_is_refused_while_the_first_is_held(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        bench.world.things = {"oven"}
        await bench.receive(bench.alert(pod="another"))
        await bench.settle(30)
        second = max(await bench.incidents(), key=lambda incident: incident.opened_at)
        assert second.outcome is IncidentOutcome.DENIED
        assert second.reason.startswith("held: ")
        assert bench.world.things == {"oven"}


async def test_a_temporary_change_that_cannot_be_read_blocks_no_other(
    open_bench: OpenBench,
) -> None:
    services = [
        a_service(parameters={"hold": "10m"}),
        a_service("cart", parameters={"hold": "11m"}),
    ]
    async with open_bench(World(things={"orders:lamp", "cart:lamp"}), services, undo=True) as bench:
        alerts = [bench.alert(), bench.alert(service="cart")]
        await bench.receive(*alerts)
        await bench.settle(45)
        await bench.receive(*(resolved(alert, bench.clock) for alert in alerts))
        await bench.settle()
        (orders,) = [i for i in await bench.incidents() if i.service == "orders"]

        async def spoil(connection: AsyncConnection) -> None:
            broken = update(t.mitigations).where(t.mitigations.c.incident_id == orders.id)
            await connection.execute(broken.values(before=["of a later version"]))

        await bench.store.database.write(spoil)
        await bench.settle(900)
        assert bench.world.things == {"cart:lamp"}
        by_service = {i.service: i for i in await bench.incidents()}
        assert by_service["orders"].outcome is IncidentOutcome.ESCALATED
        assert "cannot be read by this version" in by_service["orders"].reason


async def test_nothing_is_taken_back_beside_what_came_to_its_target_since_the_claim(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        bench.clock.advance(timedelta(minutes=10))
        (owed,) = await bench.store.obligations.claim(1)
        assert await bench.store.obligations.begin(owed)

        async def reserve(connection: AsyncConnection) -> None:  # one that was not seen yet
            await connection.execute(update(t.mitigations).values(in_flight=True))

        await bench.store.database.write(reserve)
        assert not await bench.store.obligations.begin(owed)


async def test_a_change_is_not_taken_back_by_whom_it_does_not_belong_any_more(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        bench.clock.advance(timedelta(minutes=10))
        (stale,) = await bench.store.obligations.claim(1)
        bench.clock.advance(timedelta(minutes=2))
        await bench.store.obligations.claim(1)
        with pytest.raises(OwnershipLost):
            await bench.store.obligations.begin(stale)


async def test_a_writer_that_is_missing_for_a_while_does_not_give_a_change_up(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        levers = bench.around.levers
        object.__setattr__(bench.around, "levers", Mitigators({}))
        await bench.settle(700)
        assert (await bench.incident()).outcome is IncidentOutcome.MITIGATED
        object.__setattr__(bench.around, "levers", levers)
        await bench.settle(60)
        assert bench.world.things == {"lamp"}


async def test_a_writer_that_stays_missing_is_a_humans_in_the_end(open_bench: OpenBench) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await _mitigated_for_ten_minutes(bench)
        object.__setattr__(bench.around, "levers", Mitigators({}))
        await bench.settle(1300)
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert "no writer configured" in incident.reason


async def test_giving_up_a_change_does_not_close_over_another_that_is_just_being_made(
    open_bench: OpenBench,
) -> None:
    services = [a_service(parameters={"hold": "1m"})]
    async with open_bench(World(things={"lamp"}), services, undo=True) as bench:
        await bench.receive(bench.alert())
        await bench.settle(50)
        bench.clock.advance(timedelta(seconds=20))
        (owed,) = await bench.store.obligations.claim(1)

        async def reserve(connection: AsyncConnection) -> None:  # another one of the incident
            entry = owed.entry.model_copy(
                update={"id": "mit-2", "effect_key": "2", "state": MitigationState.APPROVED}
            )
            await insert_entry(connection, entry, bench.clock.now)
            flies = {"state": MitigationState.RESERVED, "in_flight": True}
            mine = t.mitigations.c.id == "mit-2"
            await connection.execute(update(t.mitigations).where(mine).values(**flies))

        await bench.store.database.write(reserve)
        await bench.store.obligations.settled(owed, taken_back=False, reason="not ours any more")
        incident = await bench.incident()
        assert incident.state is IncidentState.OPEN
        assert incident.mitigations[1].state is MitigationState.RESERVED
        assert await bench.store.obligations.claim(1) == [], "it is owed, and looked at later"
        bench.clock.advance(timedelta(minutes=1))
        (again,) = await bench.store.obligations.claim(1)
        assert again.mitigation_id == owed.mitigation_id
