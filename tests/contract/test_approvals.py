"""Approvals on both databases: bound to one plan, one time and as many persons as it needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from remediator.model.catalog import Escalation, Service
from remediator.model.errors import Refused
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.kinds import ApprovalClass
from remediator.model.mitigation import Consent, MitigationState
from remediator.model.target import Mode, Risk
from remediator.notify.escalation import next_step
from remediator.store import Store, open_store, tables
from remediator.testing import FrozenClock, World
from tests.store_fixtures import Bench, OpenBench, a_service, resolved

ANOTHER = "0123456789abcdef"


def asking(needed: int = 1) -> Service:
    """A service whose plans wait for so many persons."""
    return a_service(mode=Mode.APPROVE).model_copy(
        update={"approvals": dict.fromkeys(Risk, needed)}
    )


@contextlib.asynccontextmanager
async def waiting(open_bench: OpenBench, needed: int = 1) -> AsyncIterator[tuple[Bench, Any, Any]]:
    """Open a bench at whose only incident a plan waits; yield both as well."""
    async with open_bench(World(things={"lamp"}), services=[asking(needed)]) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        incident = await bench.incident()
        assert incident.phase is Phase.APPROVAL
        yield bench, incident, incident.mitigations[0]


async def standing(bench: Bench) -> tuple[Phase, list[str], list[Any]]:
    """Where the only plan stands, who agreed, and what was changed."""
    incident = await bench.incident()
    agreed = [one.by for one in incident.mitigations[0].approvals]
    return incident.phase, agreed, bench.world.applied


async def test_one_yes_is_enough_where_nothing_else_is_said(open_bench: OpenBench) -> None:
    async with waiting(open_bench) as (bench, incident, plan):
        assert (plan.approvals_needed, plan.approvals_missing) == (1, 1)
        consent = await bench.store.commands.approve(incident.id, plan.plan_hash, "ann")
        assert consent == Consent(given=1, needed=1)
        await bench.settle()
        (made,) = (await bench.incident()).mitigations
        assert (made.state, made.decided_by) == (MitigationState.APPLIED, "ann")
        assert made.approvals_missing == 0


async def test_two_persons_must_agree_before_anything_is_done(open_bench: OpenBench) -> None:
    async with waiting(open_bench, 2) as (bench, incident, plan):
        commands = bench.store.commands
        first = await commands.approve(incident.id, plan.plan_hash, "ann", via="slack")
        assert first.missing == 1
        first_at = bench.clock.now
        await bench.settle(5)
        (phase, agreed, applied) = await standing(bench)
        assert (phase, agreed, applied) == (Phase.APPROVAL, ["ann"], [])
        assert (await bench.incident()).mitigations[0].approvals_missing == 1
        second = await commands.approve(incident.id, plan.plan_hash, "bob")
        assert second.missing == 0
        await bench.settle()
        (made,) = (await bench.incident()).mitigations
        assert (made.state, made.decided_by) == (MitigationState.APPLIED, "ann, bob")
        assert [(one.by, one.via) for one in made.approvals] == [("ann", "slack"), ("bob", "api")]
        assert made.approvals[0].at == first_at
        assert len(bench.world.applied) == 1
        events = [line.event for line in (await bench.incident()).timeline]
        assert events.index("approved, 1 of 2") < events.index("approved, 2 of 2")


async def test_a_kind_that_needs_two_persons_waits_for_both_in_mode_auto(
    open_bench: OpenBench,
) -> None:
    by_kind = {"mitigations": {"switch_off": ApprovalClass.TWO}}
    service = a_service(mode=Mode.AUTO).model_copy(update=by_kind)
    async with open_bench(World(things={"lamp"}), services=[service]) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        incident = await bench.incident()
        (plan,) = incident.mitigations
        assert (incident.phase, plan.approvals_needed) == (Phase.APPROVAL, 2)
        assert "2 different persons have to approve switch_off" in plan.reason
        await bench.store.commands.approve(incident.id, plan.plan_hash, "ann")
        await bench.settle(5)
        assert bench.world.applied == []
        await bench.store.commands.approve(incident.id, plan.plan_hash, "bob")
        await bench.settle(5)
        assert len(bench.world.applied) == 1


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.APPROVE])
async def test_a_forbidden_kind_is_denied_and_handed_over_with_the_reason(
    open_bench: OpenBench, mode: Mode
) -> None:
    by_kind = {"mitigations": {"switch_off": ApprovalClass.NEVER}}
    service = a_service(mode=mode).model_copy(update=by_kind)
    async with open_bench(World(things={"lamp"}), services=[service]) as bench:
        await bench.receive(bench.alert())
        await bench.settle(5)
        incident = await bench.incident()
        assert (incident.outcome, bench.world.applied) == (IncidentOutcome.DENIED, [])
        assert incident.reason.startswith("forbidden: the configuration forbids switch_off")


async def test_what_was_approved_is_not_made_once_it_is_forbidden(open_bench: OpenBench) -> None:
    async with waiting(open_bench) as (bench, incident, plan):
        await bench.store.commands.approve(incident.id, plan.plan_hash, "ann")
        by_kind = {"mitigations": {"switch_off": ApprovalClass.NEVER}}
        catalogue = bench.around.catalogue
        forbidden = tuple(one.model_copy(update=by_kind) for one in catalogue.services)
        bench.around = replace(
            bench.around, catalogue=catalogue.model_copy(update={"services": forbidden})
        )
        await bench.settle(5)
        ended = await bench.incident()
        assert (ended.outcome, bench.world.applied) == (IncidentOutcome.DENIED, [])
        assert "forbids switch_off" in ended.reason


async def test_shadow_says_that_a_kind_is_forbidden(open_bench: OpenBench) -> None:
    by_kind = {"mitigations": {"switch_off": ApprovalClass.NEVER}}
    service = a_service(mode=Mode.SHADOW).model_copy(update=by_kind)
    async with open_bench(World(things={"lamp"}), services=[service]) as bench:
        await bench.receive(bench.alert())
        await bench.settle(5)
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.SHADOWED
        assert "would not have been applied: the configuration forbids" in incident.reason


async def test_the_same_person_counts_once_whichever_way_the_yes_comes(
    open_bench: OpenBench,
) -> None:
    async with waiting(open_bench, 2) as (bench, incident, plan):
        await bench.store.commands.approve(incident.id, plan.plan_hash, "ann", via="slack")
        with pytest.raises(Refused, match="ann has approved this plan already") as refused:
            await bench.store.commands.approve(incident.id, plan.plan_hash, "ann", via="api")
        assert refused.value.status == 409
        await bench.settle(5)
        assert await standing(bench) == (Phase.APPROVAL, ["ann"], [])


async def test_a_no_ends_it_whoever_agreed_before(open_bench: OpenBench) -> None:
    async with waiting(open_bench, 2) as (bench, incident, plan):
        await bench.store.commands.approve(incident.id, plan.plan_hash, "ann")
        await bench.store.commands.reject(incident.id, plan.plan_hash, "bob", "not now")
        with pytest.raises(Refused, match="closed"):
            await bench.store.commands.approve(incident.id, plan.plan_hash, "eve")
        await bench.settle(60)
        ended = await bench.incident()
        assert (ended.outcome, bench.world.applied) == (IncidentOutcome.DENIED, [])
        assert ended.mitigations[0].decided_by == "bob"


@pytest.mark.parametrize("verb", ["approve", "reject", "waits_for"])
async def test_another_plan_than_the_one_that_waits_is_refused(
    open_bench: OpenBench, verb: str
) -> None:
    async with waiting(open_bench) as (bench, incident, _):
        with pytest.raises(Refused, match="the plan has changed"):
            await ordered(bench, verb, incident.id, ANOTHER)
        assert await standing(bench) == (Phase.APPROVAL, [], [])


@pytest.mark.parametrize("verb", ["approve", "reject", "waits_for"])
async def test_an_expired_plan_is_refused(open_bench: OpenBench, verb: str) -> None:
    async with waiting(open_bench) as (bench, incident, plan):
        bench.clock.now = plan.expires_at
        with pytest.raises(Refused, match="expired"):
            await ordered(bench, verb, incident.id, plan.plan_hash)
        assert (await standing(bench))[1:] == ([], [])


@pytest.mark.parametrize("verb", ["approve", "reject", "waits_for"])
async def test_a_plan_that_was_decided_is_refused(open_bench: OpenBench, verb: str) -> None:
    async with waiting(open_bench) as (bench, incident, plan):
        await bench.store.commands.approve(incident.id, plan.plan_hash, "ann")
        with pytest.raises(Refused, match="is not waiting for an approval"):
            await ordered(bench, verb, incident.id, plan.plan_hash)
        await bench.settle()
        assert len(bench.world.applied) == 1


@pytest.mark.parametrize("verb", ["approve", "reject", "waits_for"])
async def test_an_incident_that_nobody_knows_is_refused(bench: Bench, verb: str) -> None:
    with pytest.raises(Refused) as refused:
        await ordered(bench, verb, "inc-0", ANOTHER)
    assert refused.value.status == 404


async def ordered(bench: Bench, verb: str, incident: str, plan: str) -> None:
    """Give one of the orders that are bound to a plan, as bob."""
    commands = bench.store.commands
    if verb == "approve":
        await commands.approve(incident, plan, "bob")
    elif verb == "reject":
        await commands.reject(incident, plan, "bob", "")
    else:
        await commands.waits_for(incident, plan)


async def test_a_plan_that_waits_says_whose_it_is(open_bench: OpenBench) -> None:
    async with waiting(open_bench) as (bench, incident, plan):
        assert await bench.store.commands.waits_for(incident.id, plan.plan_hash) == "shop/orders"


async def test_too_few_in_time_is_a_no_and_says_so(open_bench: OpenBench) -> None:
    async with waiting(open_bench, 2) as (bench, incident, plan):
        await bench.store.commands.approve(incident.id, plan.plan_hash, "ann")
        await bench.settle(3600)
        ended = await bench.incident()
        assert (ended.outcome, bench.world.applied) == (IncidentOutcome.ESCALATED, [])
        assert "1 of 2 approved the plan in time" in ended.reason


async def test_what_one_approved_is_not_done_once_the_file_wants_two(
    open_bench: OpenBench,
) -> None:
    async with waiting(open_bench) as (bench, incident, plan):
        await bench.store.commands.approve(incident.id, plan.plan_hash, "ann")
        world = bench.world
    async with open_bench(world, services=[asking(2)], owner="later") as bench:
        await bench.settle(10)
        ended = await bench.incident()
        assert (ended.outcome, world.applied) == (IncidentOutcome.DENIED, [])
        assert "configuration" in ended.reason


async def test_only_those_who_are_named_decide_about_a_service(
    open_bench: OpenBench, store_url: str, clock: FrozenClock
) -> None:
    async with (
        waiting(open_bench) as (bench, incident, plan),
        replica(store_url, clock, deciders={"shop/orders": ["ann"]}) as store,
    ):
        for order in (
            store.commands.approve(incident.id, plan.plan_hash, "bob"),
            store.commands.reject(incident.id, plan.plan_hash, "bob", ""),
            store.commands.cancel(incident.id, "bob", ""),
        ):
            with pytest.raises(Refused, match="those who may are: ann") as refused:
                await order
            assert refused.value.status == 403
        assert await standing(bench) == (Phase.APPROVAL, [], [])
        assert not (await store.commands.approve(incident.id, plan.plan_hash, "ann")).missing


@contextlib.asynccontextmanager
async def replica(url: str, clock: FrozenClock, **options: Any) -> AsyncIterator[Store]:
    """Open another process's store on the same database."""
    async with open_store(
        url, owner="another", changed=lambda: None, clock=clock, **options
    ) as store:
        yield store


@pytest.mark.parametrize("names", [("ann", "bob"), ("ann", "ann")])
async def test_yeses_at_the_same_moment_at_two_replicas_are_all_counted(
    open_bench: OpenBench, store_url: str, clock: FrozenClock, names: tuple[str, str]
) -> None:
    async with (
        waiting(open_bench, 2) as (bench, incident, plan),
        replica(store_url, clock) as other,
    ):
        results = await asyncio.gather(
            bench.store.commands.approve(incident.id, plan.plan_hash, names[0]),
            other.commands.approve(incident.id, plan.plan_hash, names[1]),
            return_exceptions=True,
        )
        given = sorted(one.given for one in results if isinstance(one, Consent))
        refused = [one for one in results if isinstance(one, Refused)]
        await bench.settle()
        if names[0] == names[1]:
            assert (given, len(refused)) == ([1], 1)
            assert await standing(bench) == (Phase.APPROVAL, ["ann"], [])
        else:
            assert (given, refused) == ([1, 2], [])
            assert len(bench.world.applied) == 1


async def test_more_yeses_than_needed_at_the_same_moment_make_it_once(
    open_bench: OpenBench, store_url: str, clock: FrozenClock
) -> None:
    async with (
        waiting(open_bench, 2) as (bench, incident, plan),
        replica(store_url, clock) as other,
    ):
        stores = (bench.store, other)
        results = await asyncio.gather(
            *(
                stores[n % 2].commands.approve(incident.id, plan.plan_hash, f"person-{n}")
                for n in range(8)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(one, Consent) for one in results) == 2
        assert sum(isinstance(one, Refused) for one in results) == 6
        await bench.settle()
        assert len((await standing(bench))[1]) == 2
        assert len(bench.world.applied) == 1


async def test_a_click_is_taken_once_over_all_replicas(
    bench: Bench, store_url: str, clock: FrozenClock
) -> None:
    async with replica(store_url, clock) as other:
        taken = await asyncio.gather(
            *(store.clicks.take("a" * 64) for store in (bench.store, other) for _ in range(3))
        )
        assert sorted(taken) == [False] * 5 + [True]
        assert await other.clicks.take("b" * 64)


async def test_clicks_are_forgotten_long_after_their_signature_is_of_no_use(bench: Bench) -> None:
    assert await bench.store.clicks.take("a" * 64)
    bench.clock.advance(timedelta(minutes=10))
    assert not await bench.store.clicks.take("a" * 64)
    bench.clock.advance(timedelta(hours=1))
    assert await bench.store.clicks.take("b" * 64)
    async with bench.store.database.read() as connection:
        kept = await connection.scalar(select(func.count()).select_from(tables.clicks))
    assert kept == 1


async def test_what_was_asked_for_in_a_chat_is_kept_with_its_result(
    open_bench: OpenBench,
) -> None:
    async with waiting(open_bench) as (bench, incident, plan):
        detail = {"via": "slack", "user": "U999", "plan": plan.plan_hash}
        for some_id in (incident.id, "inc-nobody-knows"):
            await bench.store.commands.note(some_id, "refused: approve", "eve", "why", **detail)
        line = (await bench.incident()).timeline[-1]
        assert (line.step, line.event, line.reason) == ("operator", "refused: approve", "eve: why")
        assert line.data == {"by": "eve", "incident": incident.id, **detail}
        async with bench.store.database.read() as connection:
            rows = await connection.execute(
                select(tables.journal.c.data).where(
                    tables.journal.c.incident_id.is_(None), tables.journal.c.step == "operator"
                )
            )
            assert [row["incident"] for row in rows.scalars()] == ["inc-nobody-knows"]


async def listed(bench: Bench) -> tuple[str, bool]:
    """Return what the list of incidents says of the only one: its alert, and that it needs you."""
    (row,) = (await bench.store.records.incidents()).items
    return row.alertname, row.needs_human


async def test_the_list_says_what_needs_a_person_now(open_bench: OpenBench) -> None:
    async with waiting(open_bench) as (bench, incident, plan):
        assert await listed(bench) == ("ThingsOn", True)
        await bench.store.commands.reject(incident.id, plan.plan_hash, "ann", "no")
        await bench.settle()
        assert await listed(bench) == ("ThingsOn", False)  # ann has it


async def test_what_nobody_approved_needs_a_person_until_somebody_has_it(
    open_bench: OpenBench,
) -> None:
    async with waiting(open_bench) as (bench, incident, _):
        await bench.settle(3700)
        assert await listed(bench) == ("ThingsOn", True)
        await bench.store.commands.acknowledge(incident.id, "ann")
        assert await listed(bench) == ("ThingsOn", False)


async def test_what_resolved_needs_nobody(open_bench: OpenBench) -> None:
    async with waiting(open_bench) as (bench, incident, _):
        await bench.settle(3700)
        (alert,) = incident.alerts
        await bench.receive(resolved(bench.alert(), bench.clock))
        await bench.store.escalations.advance(lambda now: next_step(now, Escalation(), None))
        assert await listed(bench) == (alert.labels["alertname"], False)
