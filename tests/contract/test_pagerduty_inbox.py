"""PagerDuty's events in the store: once each, in their order, joined with Alertmanager's alerts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.backends.pagerduty import PagerDutyReader
from remediator.intake.pagerduty import parse
from remediator.intake.pagerduty_fetch import Fetching
from remediator.model.alert import Alert, Source
from remediator.model.base import DeliveryId
from remediator.model.errors import BackendRefused, BackendUnavailable, ConfigError
from remediator.model.fingerprint import fingerprint_of
from remediator.notify.report import summarise
from remediator.store import tables as t
from remediator.testing import FrozenClock
from tests.pagerduty_fixtures import (
    TOKEN,
    LocalPagerDuty,
    api_alert,
    local_pagerduty,
    seconds,
    webhook,
)
from tests.store_fixtures import Bench, OpenBench, a_delivery, a_service, resolved

LABELS = {"alertname": "ThingsOn", "system": "shop", "service": "orders"}


@dataclass
class Sender:
    """PagerDuty, with a clock that the test moves."""

    bench: Bench
    clock: FrozenClock

    def __post_init__(self) -> None:
        self.begin = self.clock.now

    async def say(
        self, kind: str, after: float = 0, *, webhook_id: str | None = None, **values: Any
    ) -> DeliveryId:
        """Deliver an event that happened ``after`` seconds, and triage it."""
        delivery = await self.send(kind, after, webhook_id=webhook_id, **values)
        await self.bench.triage()
        return delivery

    async def send(
        self,
        kind: str,
        after: float = 0,
        *,
        webhook_id: str | None = None,
        fetch: bool = False,
        **values: Any,
    ) -> DeliveryId:
        self.clock.advance(seconds(0.01))  # PagerDuty sends one after the other
        times = {"at": self.begin + seconds(after), "created_at": self.begin}
        told = webhook(f"incident.{kind}", **times | values)
        body = json.dumps(told).encode()
        read = parse(body, webhook_id, self.clock.now)
        assert read.event is not None
        delivery = a_delivery(self.clock, source=Source.PAGERDUTY, body=body)
        return await self.bench.store.events.put(delivery, read.event, read.alerts, fetch=fetch)

    async def kept(self) -> list[tuple[str, str, dict[str, str]]]:
        """The alerts with their source, status and labels, in the order in which they came."""
        async with self.bench.store.database.read() as connection:
            columns = (t.alerts.c.source, t.alerts.c.status, t.alerts.c.labels)
            rows = await connection.execute(select(*columns).order_by(t.alerts.c.first_seen_at))
            return [(row.source, row.status, row.labels) for row in rows]

    async def rows(self) -> list[Mapping[Any, Any]]:
        async with self.bench.store.database.read() as connection:
            query = select(t.events).order_by(t.events.c.delivery_id)
            return [dict(row) for row in (await connection.execute(query)).mappings()]


@pytest.fixture
async def bench(open_bench: OpenBench) -> AsyncIterator[Bench]:
    orders = a_service()
    plain = orders.model_copy(update={"match": {"pagerduty_service": "PF9KMXH"}})
    other = a_service("billing")
    async with open_bench(
        services=[plain, orders.model_copy(update={"name": "labelled"}), other]
    ) as b:
        yield b


@pytest.fixture
def sender(bench: Bench, clock: FrozenClock) -> Sender:
    return Sender(bench, clock)


@pytest.fixture
async def api() -> AsyncIterator[LocalPagerDuty]:
    async with local_pagerduty() as local:
        yield local


@pytest.fixture
async def reader(api: LocalPagerDuty) -> AsyncIterator[PagerDutyReader]:
    async with PagerDutyReader(api.url, lambda: TOKEN, a_minute=60_000) as opened:
        yield opened


def events_of(incident: Any) -> list[str]:
    return [line.event for line in incident.timeline]


def labelled(bench: Bench) -> Alert:
    """The alert that Alertmanager sends of the same condition."""
    return bench.alert().model_copy(update={"fingerprint": fingerprint_of(LABELS)})


# --- once ---------------------------------------------------------------------------------------


async def test_a_triggered_incident_opens_one_and_its_resolve_ends_it(sender: Sender) -> None:
    await sender.say("triggered")
    incident = await sender.bench.incident()
    assert (incident.service, incident.playbook, incident.state) == ("orders", "SwitchOff", "open")
    assert incident.alerts[0].labels["pagerduty_incident"] == "PGR0VU2"
    await sender.say("resolved", 60)
    (alert,) = (await sender.bench.incident()).alerts
    assert alert.status == "resolved"


async def test_an_event_is_taken_once_by_its_id_and_by_the_id_of_its_webhook(
    sender: Sender,
) -> None:
    first = await sender.say("triggered", webhook_id="w1", event_id="e1")
    assert await sender.say("triggered", webhook_id="w1", event_id="e1") == first
    assert await sender.say("triggered", webhook_id="w2", event_id="e1") == first
    assert await sender.say("resolved", webhook_id="w1", event_id="e2") == first
    assert len(await sender.rows()) == 1
    assert (await sender.bench.incident()).alerts[0].status == "firing"


async def test_of_many_copies_at_once_on_two_replicas_one_is_taken(
    open_bench: OpenBench, clock: FrozenClock, store_url: str
) -> None:
    async with open_bench() as one, open_bench(owner="two") as two:
        senders = [Sender(one, clock), Sender(two if "postgres" in store_url else one, clock)]
        said = await asyncio.gather(
            *(s.send("triggered", webhook_id="w", event_id="e") for s in senders * 10)
        )
        assert len(set(said)) == 1
        assert len(await senders[0].rows()) == 1


async def test_a_ping_and_our_own_escalation_are_recorded_and_wait_for_nothing(
    sender: Sender,
) -> None:
    await sender.say("annotated")
    await sender.say("triggered", incident_key="remediator/inc-1")
    assert [row["incident"] for row in await sender.rows()] == [None, None]
    assert await sender.bench.incidents() == []
    assert await sender.bench.store.inbox.waiting() == []


# --- in their order -----------------------------------------------------------------------------


async def test_a_late_trigger_after_the_resolve_opens_nothing(sender: Sender) -> None:
    await sender.say("resolved", 60)
    await sender.say("triggered")
    assert await sender.bench.incidents() == []
    _, late = await sender.rows()
    assert not late["applied"]
    assert "older" in late["reason"]


async def test_an_older_event_changes_nothing(sender: Sender) -> None:
    await sender.say("triggered")
    await sender.say("escalated", 120)
    await sender.say("resolved", 60)
    incident = await sender.bench.incident()
    assert incident.alerts[0].status == "firing"
    assert any("older than what is known" in line.reason for line in incident.timeline)


async def test_after_a_resolve_only_reopened_opens_again(
    sender: Sender, clock: FrozenClock
) -> None:
    await sender.say("triggered")
    await sender.say("resolved", 60)
    await sender.say("escalated", 90)
    assert len((await sender.bench.incident()).alerts) == 1
    await sender.say("reopened", 80)
    assert [status for _, status, _ in await sender.kept()] == ["resolved", "firing"]


async def test_reopened_and_resolved_in_one_batch_keep_their_order(sender: Sender) -> None:
    for kind, after in (("triggered", 0), ("resolved", 60), ("reopened", 80), ("resolved", 90)):
        await sender.send(kind, after)
    await sender.bench.triage()
    assert [status for _, status, _ in await sender.kept()] == ["resolved", "resolved"]


async def test_an_acknowledgement_is_a_line_with_who_and_opens_nothing(sender: Sender) -> None:
    await sender.say("acknowledged", -5)
    assert await sender.bench.incidents() == []
    await sender.say("triggered")
    await sender.say("acknowledged", 30)
    incident = await sender.bench.incident()
    assert "pagerduty PGR0VU2 acknowledged" in events_of(incident)
    last = incident.timeline[-1]
    assert last.data["agent"]["name"] == "Jo Doe"
    assert last.data["kind"] == "acknowledged"


async def test_two_incidents_of_one_service_with_one_cause_are_one_of_ours(sender: Sender) -> None:
    await sender.say("triggered")
    await sender.say("triggered", id="POTHER1")
    await sender.say("resolved", 60)
    statuses = {
        a.labels["pagerduty_incident"]: a.status for a in (await sender.bench.incident()).alerts
    }
    assert statuses == {"PGR0VU2": "resolved", "POTHER1": "firing"}


# --- joined with Alertmanager -------------------------------------------------------------------


async def fetched(sender: Sender, kind: str, after: float = 0, **values: Any) -> None:
    """Deliver an event whose incident's alerts carry Alertmanager's labels."""
    await sender.send(kind, after, fetch=kind != "resolved", **values)

    async def fetch(_: str) -> list[Any]:
        return [api_alert(LABELS)]

    await Fetching(sender.bench.store.events, fetch).look()
    await sender.bench.triage()


async def test_the_same_alert_by_both_ways_is_one_episode_of_one_incident(sender: Sender) -> None:
    alert = labelled(sender.bench)
    await sender.bench.receive(alert)
    await fetched(sender, "triggered", 1)
    assert await sender.kept() == [("alertmanager", "firing", LABELS)]
    incident = await sender.bench.incident()
    assert "pagerduty PGR0VU2 triggered" in events_of(incident)
    assert await sender.bench.store.events.incidents_of(incident.id) == ["PGR0VU2"]


async def test_what_pagerduty_reported_first_is_alertmanagers_once_it_reports_it(
    sender: Sender, clock: FrozenClock
) -> None:
    await fetched(sender, "triggered")
    ((source, _, labels),) = await sender.kept()
    assert (source, labels["pagerduty_service"]) == ("pagerduty", "PF9KMXH")
    await sender.bench.receive(labelled(sender.bench))
    assert await sender.kept() == [("alertmanager", "firing", LABELS)]
    await sender.say("resolved", 60)
    incident = await sender.bench.incident()
    assert incident.alerts[0].status == "firing"
    assert "alerts that Alertmanager reports end when it says so" in incident.timeline[-1].reason


async def test_a_click_in_pagerduty_does_not_end_what_alertmanager_holds(
    sender: Sender, clock: FrozenClock
) -> None:
    alert = labelled(sender.bench)
    await sender.bench.receive(alert)
    await fetched(sender, "triggered", 1)
    await sender.say("resolved", 60)
    assert (await sender.bench.incident()).alerts[0].status == "firing"
    clock.advance(seconds(90))
    await sender.bench.receive(resolved(alert, clock))
    assert (await sender.bench.incident()).alerts[0].status == "resolved"


async def test_both_ways_in_one_batch_are_one_episode(sender: Sender) -> None:
    alert = labelled(sender.bench)
    await sender.send("triggered", fetch=True)

    async def fetch(_: str) -> list[Any]:
        return [api_alert(LABELS)]

    await Fetching(sender.bench.store.events, fetch).look()
    await sender.bench.store.inbox.put(a_delivery(sender.clock), [alert], [])
    await sender.bench.triage()
    assert await sender.kept() == [("alertmanager", "firing", LABELS)]


async def test_a_late_trigger_after_alertmanagers_resolve_opens_nothing(
    sender: Sender, clock: FrozenClock
) -> None:
    alert = labelled(sender.bench)
    await sender.bench.receive(alert)
    clock.advance(seconds(600))
    await sender.bench.receive(resolved(alert, clock))
    clock.advance(seconds(600))
    await fetched(sender, "triggered", 30)
    (only,) = (await sender.bench.incident()).alerts
    assert only.status == "resolved"


async def test_what_a_human_resolved_and_alertmanager_says_fires_begins_anew(
    sender: Sender, clock: FrozenClock
) -> None:
    alert = labelled(sender.bench)
    await fetched(sender, "triggered")
    await sender.say("resolved", 20)
    clock.advance(seconds(30))
    await sender.bench.receive(alert)
    assert [status for _, status, _ in await sender.kept()] == ["resolved", "firing"]
    await sender.bench.incident()


# --- fetched ------------------------------------------------------------------------------------


async def test_what_is_being_fetched_waits_and_blocks_only_its_own_incident(
    sender: Sender,
) -> None:
    await sender.say("triggered", fetch=True)
    await sender.say("resolved", 60)
    await sender.say("triggered", id="POTHER1", title="[FIRING:1] Dim")
    (other,) = await sender.bench.incidents()
    assert other.alerts[0].labels["pagerduty_incident"] == "POTHER1"
    assert len(await sender.bench.store.inbox.waiting()) == 0


async def test_labels_are_fetched_page_by_page_and_used(
    sender: Sender, api: LocalPagerDuty, reader: PagerDutyReader
) -> None:
    api.alerts["PGR0VU2"] = [api_alert(LABELS | {"n": str(n)}, n) for n in range(120)]
    await sender.send("triggered", fetch=True)
    assert await Fetching(sender.bench.store.events, reader.alerts).look() is False
    await sender.bench.triage()
    assert len((await sender.bench.incident()).alerts) == 120
    assert [query for _, query in api.asked] == ["limit=100&offset=0", "limit=100&offset=100"]


async def test_a_limit_is_waited_for_as_long_as_pagerduty_says(
    sender: Sender, api: LocalPagerDuty, reader: PagerDutyReader, clock: FrozenClock
) -> None:
    api.alerts["PGR0VU2"] = [api_alert(LABELS)]
    api.trouble, api.retry_after = [429], "2"
    fetching = Fetching(sender.bench.store.events, reader.alerts)
    await sender.send("triggered", fetch=True)
    await fetching.look()
    await sender.send("triggered", id="POTHER1", fetch=True)
    await fetching.look()
    assert len(api.asked) == 1, "nothing is asked while it limits us"
    clock.advance(seconds(1))
    await fetching.look()
    assert len(api.asked) == 1
    clock.advance(seconds(10))
    await asyncio.sleep(2)
    await fetching.look()
    assert len(api.asked) == 3
    await sender.bench.triage()
    assert "shop" in {labels.get("system") for _, _, labels in await sender.kept()}


@pytest.mark.parametrize(("status", "calls"), [(500, 8), (404, 1), (401, 1), (302, 1)])
async def test_an_api_that_fails_for_good_lets_the_webhook_speak_for_itself(
    sender: Sender,
    api: LocalPagerDuty,
    reader: PagerDutyReader,
    clock: FrozenClock,
    status: int,
    calls: int,
) -> None:
    api.always = status
    await sender.send("triggered", fetch=True)
    fetching = Fetching(sender.bench.store.events, reader.alerts)
    for _ in range(70):
        await fetching.look()
        clock.advance(seconds(1))
    await sender.bench.triage()
    (alert,) = (await sender.bench.incident()).alerts
    assert alert.labels["pagerduty_service"] == "PF9KMXH"
    assert str(status) in alert.annotations["labels_not_fetched"]
    (row,) = await sender.rows()
    assert str(status) in row["reason"]
    assert row["applied"]
    assert len(api.asked) == calls


async def test_without_a_token_any_more_what_waits_goes_on(sender: Sender) -> None:
    await sender.send("triggered", fetch=True)
    await Fetching(sender.bench.store.events, None).look()
    await sender.bench.triage()
    assert (
        "no API token"
        in (await sender.bench.incident()).alerts[0].annotations["labels_not_fetched"]
    )


async def test_a_fetch_that_a_dead_process_began_is_taken_over(
    sender: Sender, clock: FrozenClock
) -> None:
    await sender.send("triggered", fetch=True)
    (lost,) = await sender.bench.store.events.claim(10)
    assert await sender.bench.store.events.claim(10) == []
    clock.advance(seconds(13))
    (taken,) = await sender.bench.store.events.claim(10)
    assert (taken.incident, taken.epoch) == (lost.incident, lost.epoch + 1)


async def test_our_own_escalation_that_only_the_api_tells_of_opens_nothing(
    sender: Sender, api: LocalPagerDuty, reader: PagerDutyReader
) -> None:
    api.alerts["PGR0VU2"] = [api_alert(LABELS, alert_key="remediator/inc-1")]
    await sender.send("triggered", fetch=True)
    await Fetching(sender.bench.store.events, reader.alerts).look()
    await sender.bench.triage()
    assert await sender.bench.incidents() == []
    assert await sender.bench.store.inbox.waiting() == []


async def test_the_reader_keeps_below_the_rate_and_says_what_is_wrong(api: LocalPagerDuty) -> None:
    async with PagerDutyReader(api.url, lambda: TOKEN, a_minute=600) as reader:
        await asyncio.gather(*(reader.alerts(f"P{n}") for n in range(6)))
        assert (api.at[-1] - api.at[0]).total_seconds() > 0.4
        with pytest.raises(BackendRefused, match="no id"):
            await reader.alerts("../users")
        api.trouble = [429]
        with pytest.raises(BackendUnavailable) as caught:
            await reader.alerts("P1")
        assert caught.value.retry_after == 1
        assert TOKEN not in str(caught.value)

    def gone() -> str:
        raise ConfigError("secret file t cannot be read")

    async with PagerDutyReader(api.url, gone) as reader:
        with pytest.raises(BackendUnavailable, match="cannot be read"):
            await reader.alerts("P1")


# --- whether our secrets are right --------------------------------------------------------------


async def test_a_set_of_secrets_is_remembered_and_told_of_once(bench: Bench) -> None:
    events = bench.store.events
    assert not await events.verified("a" * 64)
    assert await events.page("a" * 64, "PagerDuty's webhooks cannot be checked")
    assert not await events.page("a" * 64, "PagerDuty's webhooks cannot be checked")
    assert not await events.verified("a" * 64)
    await events.verify("a" * 64)
    await events.verify("a" * 64)
    assert await events.verified("a" * 64)
    assert not await events.verified("b" * 64)
    incident = await bench.incident()
    assert (incident.state, incident.outcome) == ("closed", "escalated")
    assert len(await bench.store.notices.claim(10)) == 1
    report = summarise(incident)
    assert report.urgent
    assert "cannot be checked" in report.model_dump_json()


async def test_an_event_that_this_version_cannot_read_is_buried_and_blocks_nobody(
    sender: Sender,
) -> None:
    unreadable = await sender.send("triggered", fetch=True)
    await sender.send("triggered", id="POTHER1", fetch=True)

    async def spoil(connection: AsyncConnection) -> None:
        mine = t.events.c.delivery_id == unreadable
        await connection.execute(update(t.events).where(mine).values(alerts=[{"of": "tomorrow"}]))

    await sender.bench.store.database.write(spoil)
    await Fetching(sender.bench.store.events, None).look()
    inbox = sender.bench.store.inbox
    assert len(await inbox.waiting()) == 2
    with pytest.raises(ValueError, match="validation error"):
        await sender.bench.triage()
    await inbox.bury(unreadable, "it cannot be read")
    await sender.bench.triage()
    (alert,) = [alert for one in await sender.bench.incidents() for alert in one.alerts]
    assert alert.labels["pagerduty_incident"] == "POTHER1"
