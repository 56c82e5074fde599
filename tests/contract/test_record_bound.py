"""Records that no playbook takes are bounded by sender and service, on both databases; none is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from remediator.model.alert import Alert, Delivery, Source
from remediator.model.incident import IncidentOutcome
from remediator.model.unmatched import RecordBound
from remediator.notify.report import summarise
from remediator.store import tables as t
from remediator.triage.correlate import correlate
from remediator.triage.match import Match, match
from tests.store_fixtures import Bench, OpenBench, a_delivery, read_again, resolved

BOUND = RecordBound(count=3)
BY_DEFAULT = RecordBound()


@pytest.fixture
async def bench(open_bench: OpenBench) -> AsyncIterator[Bench]:
    async with open_bench(records_by_sender=BOUND) as opened:
        yield opened


async def put(bench: Bench, name: str, credential: str = "forger", **labels: str) -> None:
    """Send an alert in a body of its own, which any process can read again."""
    everything = {"alertname": name, "system": "shop", "service": "orders"} | labels
    starts = bench.clock.now.isoformat()
    alert = {"status": "firing", "labels": everything, "startsAt": starts}
    body = json.dumps({"alerts": [alert]}).encode()
    delivery = a_delivery(bench.clock, body=body, size=len(body), credential=credential)
    await bench.store.inbox.put(delivery, await read_again(delivery), [])


async def triage(bench: Bench) -> None:
    def matching(alert: Alert, delivery: Delivery) -> Match:
        return match(alert, bench.around.catalogue, bench.around.playbooks, delivery.playbook)

    while await bench.store.inbox.waiting():
        await bench.store.inbox.triage(
            read_again,
            lambda alert, delivery: matching(alert, delivery).key(alert),
            lambda batch, snapshot, now: correlate(batch, snapshot, now, matching),
        )


async def flood(bench: Bench, alerts: int, prefix: str = "Forged", **labels: str) -> None:
    """Send alerts that no playbook takes, each with a name and a body of its own."""
    for number in range(alerts):
        await put(bench, f"{prefix}{number}", **labels)
    await triage(bench)


async def records(bench: Bench) -> tuple[list[Any], list[Any]]:
    """Return the ordinary records and the digests, newest first."""
    async with bench.store.database.read() as connection:
        query = select(t.incidents.c.id).where(t.incidents.c.gathered.is_not(None))
        digests = set((await connection.execute(query)).scalars())
    every = await bench.incidents()
    return [i for i in every if i.id not in digests], [i for i in every if i.id in digests]


async def counted(bench: Bench, table: Any, *where: Any) -> int:
    async with bench.store.database.read() as connection:
        query = select(func.count()).select_from(table).where(*where)
        return int((await connection.execute(query)).scalar_one())


async def digest_of(bench: Bench) -> Any:
    (only,) = (await records(bench))[1]
    return only


async def test_a_flood_by_one_sender_is_so_many_records_and_one_digest(
    open_bench: OpenBench,
) -> None:
    async with open_bench() as bench:
        await flood(bench, 120, severity="high")
        ordinary, (digest,) = await records(bench)
        assert len(ordinary) == BY_DEFAULT.count
        assert digest.outcome is IncidentOutcome.NO_MATCH
        said = "100 alerts that no playbook takes, beyond 20 records by forger in 10m"
        assert digest.reason == said
        assert len(digest.alerts) == 100
        assert await counted(bench, t.alerts) == 120
        assert len(await bench.store.notices.claim(200)) == BY_DEFAULT.count + 1


async def test_the_message_of_a_digest_carries_the_number_and_is_corrected(
    open_bench: OpenBench,
) -> None:
    async with open_bench(records_by_sender=RecordBound(count=1)) as bench:
        await flood(bench, 2, severity="high")
        notices = {n.incident_id: n for n in await bench.store.notices.claim(10)}
        for notice in notices.values():
            await bench.store.notices.sent(notice, None)
        digest = await digest_of(bench)
        assert "1 alert that no playbook takes" in " ".join(summarise(digest).brief)
        await flood(bench, 3, "More", severity="warning")
        (again,) = await bench.store.notices.claim(10)
        assert again.incident_id == digest.id
        shown = " ".join(summarise(await digest_of(bench)).brief)
        assert "4 alerts that no playbook takes" in shown


async def test_a_digest_of_what_is_only_recorded_sends_no_message(bench: Bench) -> None:
    await flood(bench, 6, severity="warning")
    assert await digest_of(bench)
    assert await bench.store.notices.claim(100) == []


async def test_other_senders_and_other_services_keep_records_of_their_own(
    bench: Bench,
) -> None:
    await flood(bench, 6)
    await flood(bench, 3, "Honest", credential="alertmanager")
    await flood(bench, 3, "Elsewhere", system="elsewhere")
    ordinary, digests = await records(bench)
    assert len(digests) == 1
    assert len(ordinary) == BOUND.count + 6


async def test_what_a_playbook_takes_opens_an_incident_of_its_own_and_is_acted_upon(
    bench: Bench,
) -> None:
    await flood(bench, 6)
    delivery = await bench.receive(bench.alert(), credential="forger")
    (mine,) = await bench.store.inbox.incidents_of(delivery.id)
    digest = await digest_of(bench)
    assert mine != digest.id
    await bench.settle(40)
    incident = await bench.store.records.incident(mine)
    assert incident is not None
    assert [plan.kind for plan in incident.mitigations] == ["switch_off"]
    assert bench.world.things == set()
    assert (await digest_of(bench)).mitigations == []


async def test_records_are_ordinary_again_once_the_time_has_passed(bench: Bench) -> None:
    await flood(bench, 6)
    bench.clock.advance(BOUND.window + timedelta(seconds=1))
    await flood(bench, 2, "Later")
    ordinary, digests = await records(bench)
    assert (len(ordinary), len(digests)) == (BOUND.count + 2, 1)
    await flood(bench, 2, "Again")
    ordinary, digests = await records(bench)
    assert (len(ordinary), len(digests)) == (2 * BOUND.count, 2)
    assert [digest.reason.split()[0] for digest in digests] == ["1", "3"]


async def test_the_bound_holds_over_a_restart_and_between_replicas(open_bench: OpenBench) -> None:
    given: dict[str, Any] = {"records_by_sender": BOUND}
    async with open_bench(**given) as bench:
        await flood(bench, 2)
    async with open_bench(owner="one", **given) as one, open_bench(owner="two", **given) as two:
        await asyncio.gather(flood(one, 4, "One"), flood(two, 4, "Two"))
    async with open_bench(**given) as bench:
        await flood(bench, 2, "Last")
        ordinary, (digest,) = await records(bench)
        assert len(ordinary) == BOUND.count
        assert len(digest.alerts) == 9
        assert digest.reason.startswith("9 alerts ")


async def test_a_worse_alert_raises_a_digest_and_pages(bench: Bench) -> None:
    await flood(bench, 6, severity="warning")
    assert not (await bench.store.escalations.due()).deciding
    alert = bench.alert(alertname="TheWorst", severity="P1")
    delivery = await bench.receive(alert, credential="forger")
    digest = await digest_of(bench)
    assert await bench.store.inbox.incidents_of(delivery.id) == [digest.id]
    assert (digest.severity, digest.severity_word) == (1, "P1")
    assert (await bench.store.escalations.due()).deciding
    assert [n.incident_id for n in await bench.store.notices.claim(100)] == [digest.id]


async def gathered(bench: Bench) -> Alert:
    """Send one alert that a digest takes, after its digest was opened."""
    await flood(bench, BOUND.count + 1)
    bench.clock.advance(timedelta(minutes=1))
    alert = bench.alert(alertname="Gathered")
    await bench.receive(alert, credential="forger")
    return alert


async def test_an_alert_in_a_digest_is_not_counted_twice_and_resolves(bench: Bench) -> None:
    alert = await gathered(bench)
    bench.clock.advance(timedelta(minutes=1))
    again = await bench.receive(alert, credential="forger")
    digest = await digest_of(bench)
    assert await bench.store.inbox.incidents_of(again.id) == [digest.id]
    assert digest.reason.startswith("2 alerts ")
    (mine,) = [a for a in digest.alerts if a.labels["alertname"] == "Gathered"]
    assert (mine.status, mine.notifications) == ("firing", 2)
    await bench.receive(resolved(alert, bench.clock), credential="forger")
    (mine,) = [a for a in (await digest_of(bench)).alerts if a.labels == mine.labels]
    assert mine.status == "resolved"


async def test_a_repeated_alert_of_an_ordinary_record_is_no_new_alert(bench: Bench) -> None:
    await bench.receive(bench.alert(alertname="Other", pod="1"))
    bench.clock.advance(timedelta(minutes=1))
    later = bench.alert(alertname="Other", pod="2")
    await bench.receive(later)
    await bench.receive(later)
    assert [a.notifications for a in (await bench.incident()).alerts] == [1, 2]


async def test_what_a_digest_holds_can_be_acted_upon_once_a_playbook_takes_it(
    open_bench: OpenBench,
) -> None:
    async with open_bench(records_by_sender=BOUND) as bench:
        alert = await gathered(bench)
        service = bench.around.catalogue.services[0]
        use = service.playbooks["SwitchOff"].model_copy(update={"alertnames": ("Gathered",)})
        wider = service.model_copy(update={"playbooks": {"SwitchOff": use}})
    async with open_bench(services=[wider]) as bench:
        delivery = await bench.receive(alert, credential="forger")
        (mine,) = await bench.store.inbox.incidents_of(delivery.id)
        incident = await bench.store.records.incident(mine)
        assert incident is not None
        assert incident.playbook == "SwitchOff"


async def test_replays_are_bounded_by_nobody(bench: Bench) -> None:
    await flood(bench, 6)
    replay: dict[str, Any] = {"source": Source.REPLAY, "replay_of": "manual"}
    alert = bench.alert(alertname="Other")
    delivery = await bench.receive(alert, credential="forger", **replay)
    assert await bench.store.inbox.incidents_of(delivery.id) != [(await digest_of(bench)).id]


@pytest.mark.parametrize(("count", "digests"), [(1, 1), (2, 0)])
async def test_the_bound_is_the_configurations(
    open_bench: OpenBench, count: int, digests: int
) -> None:
    async with open_bench(records_by_sender=RecordBound(count=count)) as bench:
        await flood(bench, 2)
        assert len((await records(bench))[1]) == digests
