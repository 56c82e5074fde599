"""What is due is taken by severity, then by age, with a share left for age, on both databases."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from remediator.model.base import IncidentId
from remediator.model.incident import IncidentOutcome
from remediator.model.notification import Handle, Word
from remediator.model.target import Mode
from remediator.model.views import IncidentView, Report
from remediator.notify.pace import Pace
from remediator.notify.sender import Telling, deliver
from remediator.remediation.step import close
from remediator.store.leases import AGED
from remediator.store.pages import GATHER
from remediator.store.paging import Message
from remediator.store.paging import Telling as Page
from tests.store_fixtures import Bench, OpenBench, a_service

WORDS = {1: "critical", 2: "high", 3: "warning", 4: "info"}
FORGED = 120


async def open_incidents(bench: Bench, severities: Sequence[int]) -> list[str]:
    """Open an incident of a service of its own for each severity, a second apart; their ids."""
    for number, severity in enumerate(severities):
        bench.clock.advance(timedelta(seconds=1))
        await bench.receive(bench.alert(service=f"s{number}", severity=WORDS[severity]))
    return [incident.id for incident in reversed(await bench.incidents())]


def services(count: int, mode: Mode = Mode.AUTO) -> list[Any]:
    return [a_service(f"s{number}", mode=mode) for number in range(count)]


# --- work -------------------------------------------------------------------------------------


async def test_the_most_severe_incident_is_worked_on_first_and_the_oldest_of_the_same(
    open_bench: OpenBench,
) -> None:
    async with open_bench(services=services(6)) as bench:
        await open_incidents(bench, [4, 3, 1, 2, 1, 4])
        claimed = [(await bench.store.queue.claim(1))[0].incident for _ in range(3)]
        assert [incident.service for incident in claimed] == ["s2", "s4", "s3"]


async def test_one_claim_in_four_goes_to_what_waits_longest(open_bench: OpenBench) -> None:
    async with open_bench(services=services(12)) as bench:
        await open_incidents(bench, [4, 3, *[1] * 10])
        claimed = [(await bench.store.queue.claim(1))[0].incident.service for _ in range(8)]
        assert claimed[AGED - 1] == "s0"
        assert claimed[2 * AGED - 1] == "s1"
        others = [service for n, service in enumerate(claimed, start=1) if n % AGED]
        assert others == [f"s{number}" for number in range(2, 8)]


async def test_a_claim_of_many_leaves_a_share_for_age(open_bench: OpenBench) -> None:
    async with open_bench(services=services(10)) as bench:
        await open_incidents(bench, [4, 4, *[1] * 8])
        claimed = {claim.incident.service for claim in await bench.store.queue.claim(8)}
        assert claimed == {"s0", "s1", *(f"s{number}" for number in range(2, 8))}


async def test_what_is_only_recorded_waits_for_what_may_act_or_asks(open_bench: OpenBench) -> None:
    modes = [Mode.SHADOW, Mode.APPROVE, Mode.AUTO]
    async with open_bench(
        services=[a_service(f"s{number}", mode=mode) for number, mode in enumerate(modes)]
    ) as bench:
        await open_incidents(bench, [1, 3, 3])
        claimed = [(await bench.store.queue.claim(1))[0].incident.service for _ in range(3)]
        assert claimed == ["s2", "s1", "s0"]


async def test_an_incident_that_became_worse_is_taken_as_that(open_bench: OpenBench) -> None:
    async with open_bench(services=services(2)) as bench:
        await open_incidents(bench, [2, 3])
        await bench.receive(bench.alert(service="s1", pod="2", severity="critical"))
        (claim,) = await bench.store.queue.claim(1)
        assert claim.incident.service == "s1"


# --- messages ---------------------------------------------------------------------------------


class Chat:
    """A chat with a channel for each service; keeps what was said."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        self.told.append(report.incident.service or "")
        return handle or Handle(channel=self.channel(report.incident), message="1", detailed=True)

    def channel(self, incident: IncidentView) -> str:
        return "ops" if incident.service == "s1" else "all"

    async def call(self, report: Report) -> None:
        raise NotImplementedError


async def test_a_request_for_an_approval_goes_before_all_other_messages(
    open_bench: OpenBench,
) -> None:
    asking = [a_service("s2", mode=Mode.APPROVE), a_service("s3", mode=Mode.APPROVE)]
    async with open_bench(services=[*services(2), *asking]) as bench:
        await open_incidents(bench, [1, 1, 4, 3])
        await bench.settle()
        chat = Chat()
        telling = Telling(chat, lambda _: None)
        for _ in range(3):
            await deliver(bench.store, telling)
        assert chat.told == ["s3", "s2", "s0"]


async def test_messages_go_by_severity_and_one_in_four_by_age(open_bench: OpenBench) -> None:
    async with open_bench(services=services(8, Mode.SHADOW)) as bench:
        await open_incidents(bench, [4, 3, 2, 2, 1, 1, 1, 1])
        async with bench.store.database.read() as connection:
            assert (await connection.exec_driver_sql("SELECT count(*) FROM notices")).scalar() == 0
        for _ in range(8):  # in the order of their age, so that the order of work is not theirs
            (claim,) = await bench.store.queue.claim(1)
            await bench.store.queue.release(claim)
        await bench.settle()
        chat = Chat()
        while await deliver(bench.store, Telling(chat, lambda _: None)):
            pass
        first = [int(service.removeprefix("s")) for service in chat.told[:3]]
        assert sorted(first) == first
        assert set(first) < {4, 5, 6, 7}
        assert len(set(chat.told)) == 8


async def test_a_busy_channel_holds_up_no_other_one(open_bench: OpenBench) -> None:
    async with open_bench(services=services(4, Mode.SHADOW)) as bench:
        await open_incidents(bench, [1, 4, 1, 1])
        await bench.settle()
        seconds = 0.0
        chat = Chat()
        pace = Pace(lambda: seconds)
        telling = Telling(chat, lambda _: None, pace=pace)
        while await deliver(bench.store, telling):
            pass
        assert sorted(chat.told) == ["s0", "s1"]
        seconds = 1.5
        while await deliver(bench.store, telling):
            pass
        assert sorted(chat.told) == ["s0", "s1", "s2"]


# --- pages ------------------------------------------------------------------------------------


async def page(bench: Bench, *incidents: str, level: int = 0) -> None:
    call = Message(channel="pager", word=Word.LEVEL, subject=str(level))
    for incident in incidents:
        await bench.store.escalations.ask(IncidentId(incident), [call])


async def claimed_page(bench: Bench) -> Page:
    found = await bench.store.escalations.claim("pager")
    assert found is not None
    return found


async def unmatched(bench: Bench, count: int, severity: int = 1, **labels: str) -> list[str]:
    """Have ``count`` alerts that no playbook takes, each in a body of its own; their ids."""
    known = {incident.id for incident in await bench.incidents()}
    for number in range(count):
        name = f"Forged{severity}-{number}"
        await bench.receive(bench.alert(alertname=name, severity=WORDS[severity], **labels))
    ids = [incident.id for incident in reversed(await bench.incidents())]
    return [found for found in ids if found not in known]


async def test_pages_go_by_severity(bench: Bench) -> None:
    for severity in (3, 4, 1, 2):
        await page(bench, *await unmatched(bench, 1, severity))
    told = []
    severities = {incident.id: incident.severity for incident in await bench.incidents()}
    for _ in range(3):
        found = await claimed_page(bench)
        told.append(severities[found.incident_id])
        await bench.store.escalations.told(found)
    assert told == [1, 2, 3]


async def test_many_pages_of_one_kind_are_one_page(bench: Bench) -> None:
    ids = await unmatched(bench, 5)
    await page(bench, *ids)
    found = await claimed_page(bench)
    assert {row.id.split("/")[0] for row in found.all} == set(ids)
    await bench.store.escalations.told(found)
    bench.clock.advance(2 * GATHER)
    assert await bench.store.escalations.claim("pager") is None
    for incident in await bench.incidents():
        assert [e.event for e in incident.timeline if e.step == "escalation"] == [
            "level 1 told to pager"
        ]


async def test_pages_that_follow_one_of_their_kind_are_gathered(bench: Bench) -> None:
    first, *others = await unmatched(bench, 4)
    await page(bench, first)
    await bench.store.escalations.told(await claimed_page(bench))
    await page(bench, *others)
    assert await bench.store.escalations.claim("pager") is None
    bench.clock.advance(GATHER + timedelta(seconds=1))
    found = await claimed_page(bench)
    assert {row.incident_id for row in found.all} == set(others)


async def test_a_flood_of_one_kind_delays_no_page_of_another(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(), a_service("carts")]) as bench:
        forged = await unmatched(bench, FORGED)
        (real,) = await unmatched(bench, 1, service="carts")
        await page(bench, *forged, real)
        told: list[str] = []
        for _ in range(2):
            found = await claimed_page(bench)
            await bench.store.escalations.told(found)
            told += [row.incident_id for row in found.all]
        assert real in told
        assert set(told) == {real, *forged}


async def test_pages_that_cannot_be_sent_stay_due_together(bench: Bench) -> None:
    ids = await unmatched(bench, 3)
    await page(bench, *ids)
    found = await claimed_page(bench)
    await bench.store.escalations.failed(found, "busy", timedelta(seconds=5))
    assert await bench.store.escalations.claim("pager") is None
    bench.clock.advance(timedelta(seconds=6))
    again = await claimed_page(bench)
    assert {row.incident_id for row in again.all} == set(ids)
    assert {row.attempts for row in again.all} == {1}


async def test_who_acknowledges_one_page_has_all_that_it_was_for(bench: Bench) -> None:
    ids = await escalated(bench, 3)
    await page(bench, *ids)
    found = await claimed_page(bench)
    await bench.store.escalations.told(found)
    await bench.store.commands.acknowledge(found.incident_id, "ann")
    await page(bench, *ids, level=1)
    assert await bench.store.escalations.claim("pager") is None  # dropped: somebody has them


async def escalated(bench: Bench, count: int) -> list[str]:
    """Have ``count`` incidents of one kind whose levels have begun."""
    found: list[str] = []
    for number in range(count):
        await bench.receive(bench.alert(pod=str(number), severity="critical"))
        (claim,) = await bench.claim()
        await bench.store.queue.finish(claim, close(claim, IncidentOutcome.ESCALATED, "no way"))
        found.append(claim.incident.id)
    return found
