"""The time of an approval counts from the delivery of its request, on both databases."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from remediator.model.errors import Refused, TemporaryError
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.mitigation import MitigationState
from remediator.model.notification import Handle, Post, Word, request_key
from remediator.model.target import Mode
from remediator.model.views import IncidentView, Report
from remediator.notify.sender import Telling, deliver
from remediator.remediation.decide import DELIVERED_WITHIN
from remediator.store.paging import EscalationState, Message, Step
from tests.store_fixtures import Bench, OpenBench, a_service, resolved

WITHIN = timedelta(minutes=5)
"""How long an approval of severity 1 is waited for."""
SECOND = timedelta(seconds=1)
LONG = timedelta(minutes=13)


class Chat:
    """A chat that may be away; keeps the deadlines that it was given."""

    def __init__(self) -> None:
        self.away = False
        self.deadlines: list[Any] = []

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        if self.away:
            raise TemporaryError("it is away", retry_after=1)
        handle = handle or Handle(channel="ops", message="1", detailed=True)
        for request in report.requests:
            if request.waits and not handle.asked(request.id):
                self.deadlines.append(request.expires_at)
                handle = handle.having(Post(key=request_key(request.id), message="2", digest=""))
        return handle

    def channel(self, incident: IncidentView) -> str:
        return "ops"

    async def call(self, report: Report) -> None:
        raise NotImplementedError


@asynccontextmanager
async def asking(open_bench: OpenBench) -> AsyncIterator[tuple[Bench, Chat]]:
    """A service in mode approve with a chat, and an incident of severity 1 that asks."""
    async with open_bench(services=[a_service(mode=Mode.APPROVE)]) as bench:
        bench.around = dataclasses.replace(bench.around, confirms=True)
        await bench.receive(bench.alert(severity="critical"))
        await bench.settle()
        yield bench, Chat()


async def say(bench: Bench, chat: Chat) -> None:
    while await deliver(bench.store, Telling(chat, lambda _: None)):
        pass


async def plan_of(bench: Bench) -> Any:
    return (await bench.incident()).mitigations[-1]


async def waits(bench: Bench, for_: timedelta) -> None:
    bench.clock.advance(for_)
    await bench.settle()


async def test_the_time_of_an_approval_counts_from_its_delivery(open_bench: OpenBench) -> None:
    async with asking(open_bench) as (bench, chat):
        await waits(bench, WITHIN)
        asked = bench.clock.now
        await say(bench, chat)
        assert (await plan_of(bench)).expires_at == asked + WITHIN
        assert chat.deadlines == [asked + WITHIN]
        await waits(bench, WITHIN - timedelta(seconds=1))
        assert (await bench.incident()).phase is Phase.APPROVAL
        await waits(bench, timedelta(seconds=2))
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert "nobody approved the plan in time" in incident.reason


async def test_the_time_counts_from_the_first_delivery_however_often_it_is_told(
    open_bench: OpenBench,
) -> None:
    async with asking(open_bench) as (bench, chat):
        asked = bench.clock.now
        await say(bench, chat)
        bench.clock.advance(timedelta(minutes=1))
        await bench.receive(bench.alert(pod="2"))
        await bench.settle()
        await say(bench, chat)
        assert (await plan_of(bench)).expires_at == asked + WITHIN


@pytest.mark.parametrize("delivered", [True, False])
async def test_after_a_clock_was_put_back_a_plan_waits_no_longer_than_its_time_from_the_start(
    open_bench: OpenBench, *, delivered: bool
) -> None:
    async with asking(open_bench) as (bench, chat):
        clock, incident_id = bench.clock, (await bench.incident()).id
        if delivered:
            await say(bench, chat)
    clock.advance(-timedelta(days=1))
    async with open_bench(services=[a_service(mode=Mode.APPROVE)]) as bench:
        await bench.settle()
        assert (await bench.incident()).phase is Phase.APPROVAL
        await waits(bench, WITHIN + (timedelta() if delivered else DELIVERED_WITHIN) - SECOND)
        assert (await bench.incident()).phase is Phase.APPROVAL
        await waits(bench, 2 * SECOND)
        with pytest.raises(Refused, match=r"closed|expired"):
            await bench.store.commands.approve(incident_id, None, "ann")
        assert (await bench.incident()).outcome is IncidentOutcome.ESCALATED


async def test_a_request_that_is_not_delivered_is_never_recorded_as_not_approved(
    open_bench: OpenBench,
) -> None:
    async with asking(open_bench) as (bench, chat):
        chat.away = True
        await say(bench, chat)
        await waits(bench, DELIVERED_WITHIN + WITHIN + timedelta(seconds=1))
        incident = await bench.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        assert "could not be delivered, so nobody was asked" in incident.reason
        said = [event.reason for event in incident.timeline]
        assert not any("nobody approved" in reason for reason in said)
        assert bench.world.applied == []


async def test_a_request_that_is_not_delivered_goes_to_the_levels_which_ask_instead(
    open_bench: OpenBench,
) -> None:
    async with asking(open_bench) as (bench, chat):
        chat.away = True
        await say(bench, chat)
        await waits(bench, DELIVERED_WITHIN - timedelta(seconds=1))
        assert not (await bench.store.escalations.due()).deciding
        await waits(bench, timedelta(seconds=1))
        assert await bench.store.escalations.advance(_call) == 1
        telling = await bench.store.escalations.claim("pager")
        assert telling is not None
        asked = bench.clock.now
        await bench.store.escalations.told(telling)
        await bench.settle()
        incident = await bench.incident()
        assert (incident.phase, incident.mitigations[-1].expires_at) == (
            Phase.APPROVAL,
            asked + WITHIN,
        )
        events = [event.event for event in incident.timeline if event.step == "approval"]
        assert "approval request not delivered" in events
        assert events[-1] == "approval request delivered"
        await bench.store.commands.approve(incident.id, None, "ann")
        await bench.settle()
        assert (await plan_of(bench)).state is MitigationState.APPLIED
        assert await bench.store.escalations.claim("pager") is None


def _call(standing: EscalationState) -> Step:
    message = Message(channel="pager", word=Word.LEVEL, subject="0")
    return Step(level=1, since=standing.since, due_at=None, messages=(message,))


async def test_what_was_seen_by_the_api_can_be_approved_before_it_is_told(
    open_bench: OpenBench,
) -> None:
    async with asking(open_bench) as (bench, _):
        await waits(bench, WITHIN + timedelta(seconds=1))
        incident = await bench.incident()
        await bench.store.commands.approve(incident.id, None, "ann")
        await bench.settle()
        assert (await plan_of(bench)).state is MitigationState.APPLIED


async def test_an_alert_that_resolves_meanwhile_ends_the_request(open_bench: OpenBench) -> None:
    async with asking(open_bench) as (bench, chat):
        chat.away = True
        alert = bench.alert(severity="critical")
        await waits(bench, DELIVERED_WITHIN)
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle()
        assert (await bench.incident()).outcome is IncidentOutcome.RESOLVED_BY_ITSELF


@pytest.mark.parametrize("confirms", [False])
async def test_without_a_chat_the_time_counts_from_the_decision(
    open_bench: OpenBench, confirms: bool
) -> None:
    async with open_bench(services=[a_service(mode=Mode.APPROVE)]) as bench:
        assert bench.around.confirms is confirms
        await bench.receive(bench.alert(severity="critical"))
        await bench.settle()
        assert (await plan_of(bench)).expires_at == bench.clock.now + WITHIN
        await waits(bench, LONG)
        assert "nobody approved" in (await bench.incident()).reason
