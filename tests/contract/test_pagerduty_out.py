"""What PagerDuty and the other channels are told, against a local one that answers as the real one may."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from remediator.cli.demo.slack import LocalSlack
from remediator.model.alert import Alert, Source
from remediator.model.catalog import Escalation, Level
from remediator.model.errors import ConfigError, PermanentError, TemporaryError
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.notification import Summons, Word
from remediator.model.severity import Severities, worst
from remediator.model.target import Mode
from remediator.model.verdict import Assessment
from remediator.model.views import ChatPlace
from remediator.notify.apprise import AppriseChannel
from remediator.notify.escalation import NOTES, compose
from remediator.notify.pagerduty import PagerDutyEvents
from remediator.notify.pagerduty_notes import MARK, PagerDutyNotes
from remediator.notify.paging import LABEL, ChatChannel, Escalating
from remediator.notify.slack import SlackBot
from remediator.store.paging import Telling
from remediator.testing import World
from tests.incident_views import ID, alert, closed_as
from tests.scripted_http import serving
from tests.store_fixtures import Bench, OpenBench, a_service, resolved

KEY = "R0123456789abcdef0123456789abcde"
TOKEN = "u+token-4711"
SECRET = "hunter2hunter2"


@dataclass
class LocalPagerDuty:
    """Takes events and REST calls, after the answers that the test put before them."""

    url: str = ""
    answers: list[tuple[int, Any, dict[str, str]]] = field(default_factory=list)
    silent: bool = False
    lost: int = 0
    """So many of the next writes are made, but never answered with success."""
    events: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    status: str = "triggered"
    notes: list[str] = field(default_factory=list)

    def fail(self, status: int, body: Any = None, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((status, body, named))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((request.method, request.path))
        self.headers = dict(request.headers)
        body = await request.json() if request.can_read_body else {}
        if self.silent:
            await asyncio.sleep(5)
        if self.answers:
            status, said, headers = self.answers.pop(0)
            return web.json_response(said, status=status, headers=headers)
        answer = self._answer(request.method, request.path, body)
        if self.lost and request.method != "GET":
            self.lost -= 1
            return web.Response(status=502)
        return answer

    def _answer(self, method: str, path: str, body: dict[str, Any]) -> web.Response:
        if path == "/v2/enqueue":
            self.events.append(body)
            return web.json_response({"status": "success"}, status=202)
        if path.endswith("/notes"):
            if method == "POST":
                self.notes.append(body["note"]["content"])
            return web.json_response({"notes": [{"content": text} for text in self.notes]})
        if method == "PUT":
            self.status = body["incident"]["status"]
        return web.json_response({"incident": {"id": "PD1", "status": self.status}})


@pytest.fixture
async def pagerduty() -> AsyncIterator[LocalPagerDuty]:
    local = LocalPagerDuty()
    async with serving(local.handle) as url:
        local.url = url
        yield local


@pytest.fixture
async def events(pagerduty: LocalPagerDuty) -> AsyncIterator[PagerDutyEvents]:
    async with PagerDutyEvents(KEY, pagerduty.url, timeout=1) as channel:
        yield channel


@pytest.fixture
async def notes(pagerduty: LocalPagerDuty) -> AsyncIterator[PagerDutyNotes]:
    async with PagerDutyNotes(TOKEN, "bot@example.com", pagerduty.url, timeout=1) as channel:
        yield channel


PLAN = Escalation(levels=(Level(after=timedelta(0), notify=("pagerduty",)),))


def summons(word: Word = Word.LEVEL, subject: str = "0", **changes: Any) -> Summons:
    view = closed_as(IncidentOutcome.ESCALATED, **changes)
    rating = worst(Severities().rate(shown.labels) for shown in view.alerts)
    rated = {"severity": rating.severity, "severity_word": rating.word}
    view = view.model_copy(update=rated)
    telling = Telling(
        id="x",
        incident_id=view.id,
        channel="pagerduty",
        word=word,
        subject=subject,
        epoch=1,
        attempts=0,
    )
    return compose(view, telling, PLAN, Severities())


# --- events -----------------------------------------------------------------------------------


async def test_a_level_triggers_an_incident_with_what_is_known(
    events: PagerDutyEvents, pagerduty: LocalPagerDuty
) -> None:
    labels = {"alertname": "PoolExhausted", "severity": "critical"}
    runbook = {"runbook_url": "https://wiki.example.com/pool"}
    await events.tell(summons(alerts=[alert(labels=labels, annotations=runbook)]))
    (event,) = pagerduty.events
    assert (event["routing_key"], event["event_action"]) == (KEY, "trigger")
    assert event["dedup_key"] == f"remediator/{ID}"
    payload = event["payload"]
    assert payload["severity"] == "critical"
    assert payload["source"] == "shop/orders"
    assert payload["class"] == "PoolExhausted"
    details = payload["custom_details"]
    assert details["reason"] == "the pool has free connections again"
    assert any("100 of 100 connections are in use" in line for line in details["found"])
    assert event["links"] == [{"href": "https://wiki.example.com/pool", "text": "runbook"}]


async def test_the_same_incident_is_acknowledged_and_resolved_by_its_key(
    events: PagerDutyEvents, pagerduty: LocalPagerDuty
) -> None:
    for word in (Word.LEVEL, Word.ACKNOWLEDGED, Word.RESOLVED):
        await events.tell(summons(word))
    assert [event["event_action"] for event in pagerduty.events] == [
        "trigger",
        "acknowledge",
        "resolve",
    ]
    assert {event["dedup_key"] for event in pagerduty.events} == {f"remediator/{ID}"}


async def test_a_summary_fits_and_holds_no_secret(
    events: PagerDutyEvents, pagerduty: LocalPagerDuty
) -> None:
    hostile = f"postgres://app:{SECRET}@db/orders password={SECRET} " + "x" * 5000
    labels = {"alertname": "PoolExhausted", "service": "y" * 3000}
    annotations = {"summary": hostile, "token": SECRET}
    await events.tell(
        summons(
            alerts=[alert(labels=labels, annotations=annotations)],
            reason=hostile,
            service="s" * 2000,
        )
    )
    (event,) = pagerduty.events
    assert len(event["payload"]["summary"]) <= 1024
    assert SECRET not in json.dumps(event)


@pytest.mark.parametrize(
    ("label", "severity"),
    [("page", "critical"), ("P2", "error"), ("warn", "warning"), ("none", "info"), ("?", "error")],
)
def test_a_severity_is_put_into_pagerdutys_words(label: str, severity: str) -> None:
    assert summons(alerts=[alert(labels={"severity": label})]).severity == severity


async def test_a_refusal_is_permanent_and_says_pagerdutys_words_but_no_key(
    events: PagerDutyEvents, pagerduty: LocalPagerDuty
) -> None:
    said = {
        "status": "invalid event",
        "message": "Event object is invalid",
        "errors": [f"routing_key {KEY} is wrong"],
    }
    pagerduty.fail(400, said)
    with pytest.raises(PermanentError) as caught:
        await events.tell(summons())
    assert "HTTP 400: Event object is invalid: routing_key *** is wrong" in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_refusal_is_temporary(
    events: PagerDutyEvents, pagerduty: LocalPagerDuty, status: int
) -> None:
    pagerduty.fail(status, {}, Retry_After="7")
    with pytest.raises(TemporaryError) as caught:
        await events.tell(summons())
    assert caught.value.retry_after == 7
    await events.tell(summons())
    assert len(pagerduty.events) == 1


async def test_no_answer_ends_at_the_timeout(
    events: PagerDutyEvents, pagerduty: LocalPagerDuty
) -> None:
    pagerduty.silent = True
    started = time.monotonic()
    with pytest.raises(TemporaryError, match="cannot be reached"):
        await events.tell(summons())
    assert time.monotonic() - started < 4


async def test_nobody_there_is_temporary() -> None:
    async with PagerDutyEvents(KEY, "http://127.0.0.1:9", timeout=1) as channel:
        with pytest.raises(TemporaryError, match="cannot be reached"):
            await channel.tell(summons())


# --- notes ------------------------------------------------------------------------------------


async def test_an_incident_is_acknowledged_as_a_user_of_pagerduty(
    notes: PagerDutyNotes, pagerduty: LocalPagerDuty
) -> None:
    await notes.tell(summons(Word.ACKNOWLEDGED, "PD1"))
    assert pagerduty.status == "acknowledged"
    assert pagerduty.headers["From"] == "bot@example.com"
    assert pagerduty.headers["Authorization"] == f"Token token={TOKEN}"


@pytest.mark.parametrize("status", ["acknowledged", "resolved"])
async def test_what_a_person_did_in_pagerduty_stands(
    notes: PagerDutyNotes, pagerduty: LocalPagerDuty, status: str
) -> None:
    pagerduty.status = status
    await notes.tell(summons(Word.ACKNOWLEDGED, "PD1"))
    assert pagerduty.calls == [("GET", "/incidents/PD1")]


async def test_a_note_begins_with_our_mark_and_is_written_once_though_its_answer_was_lost(
    notes: PagerDutyNotes, pagerduty: LocalPagerDuty
) -> None:
    pagerduty.lost = 1
    with pytest.raises(TemporaryError):
        await notes.tell(summons(Word.FOUND, "PD1"))
    await notes.tell(summons(Word.FOUND, "PD1"))
    await notes.tell(summons(Word.DONE, "PD1"))
    found, done = pagerduty.notes
    assert found.startswith(f"{MARK}{ID} found]")
    assert "100 of 100 connections are in use" in found
    assert done.startswith(f"{MARK}{ID} done]")
    assert "Did it help?" in done


async def test_a_label_that_is_no_id_reaches_no_other_path(
    notes: PagerDutyNotes, pagerduty: LocalPagerDuty
) -> None:
    with pytest.raises(PermanentError, match="is no id"):
        await notes.tell(summons(Word.RESOLVED, "../users/ME"))
    assert pagerduty.calls == []


@pytest.mark.parametrize(
    ("status", "error"), [(429, TemporaryError), (500, TemporaryError), (403, PermanentError)]
)
async def test_an_answer_of_rest_says_whether_to_try_again(
    notes: PagerDutyNotes,
    pagerduty: LocalPagerDuty,
    status: int,
    error: type[Exception],
) -> None:
    pagerduty.fail(status, {"error": {"message": f"no: {TOKEN}"}}, ratelimit_reset="30")
    with pytest.raises(error) as caught:
        await notes.tell(summons(Word.RESOLVED, "PD1"))
    assert TOKEN not in str(caught.value)


async def test_notes_that_cannot_be_read_are_not_taken_for_none(
    notes: PagerDutyNotes, pagerduty: LocalPagerDuty
) -> None:
    pagerduty.fail(200, {"nothing": "here"})
    with pytest.raises(TemporaryError, match="cannot be read"):
        await notes.tell(summons(Word.FOUND, "PD1"))
    assert pagerduty.notes == []


# --- from an incident of PagerDuty's to its end --------------------------------------------------


@dataclass
class Through:
    """The service's loops over one incident that came from PagerDuty."""

    bench: Bench
    escalating: Escalating

    async def come(self, **labels: str) -> Alert:
        came = self.bench.alert(**{LABEL: "PD1"} | labels)
        came = came.model_copy(update={"source": Source.PAGERDUTY})
        await self.bench.receive(came)
        return came

    async def turn(self) -> None:
        """Tell, as the loop of notices does, and let the channels send."""
        for view in await self.bench.incidents():
            await self.escalating.note(view)
        decide, *sends = self.escalating.loops
        for _ in range(5):
            await decide()
            for send in sends:
                await send()
            self.bench.clock.advance(timedelta(milliseconds=1))


@asynccontextmanager
async def through(
    open_bench: OpenBench, notes: PagerDutyNotes, mode: Mode = Mode.AUTO, *, resolves: bool = False
) -> AsyncIterator[Through]:
    service = a_service(mode=mode).model_copy(update={"pagerduty_resolve": resolves})
    async with open_bench(World(things={"lamp"}), [service]) as bench:
        channels = {NOTES: notes}
        escalating = Escalating(
            bench.store, bench.around.catalogue, bench.around.frame, channels, lambda *_: None
        )
        yield Through(bench, escalating)


async def test_the_incident_that_the_alert_came_from_is_followed_to_its_end(
    open_bench: OpenBench, notes: PagerDutyNotes, pagerduty: LocalPagerDuty
) -> None:
    async with through(open_bench, notes, resolves=True) as world:
        came = await world.come()
        await world.bench.settle()
        await world.turn()
        assert pagerduty.status == "acknowledged"
        assert [note.split("]")[0].split()[-1] for note in pagerduty.notes] == ["found"]
        await world.bench.settle(45)
        assert (await world.bench.incident()).phase is Phase.SETTLE
        await world.turn()
        assert pagerduty.status == "resolved", "it is verified, and nobody else would"
        await world.bench.receive(resolved(came, world.bench.clock))
        await world.bench.settle(5)
        assert (await world.bench.incident()).outcome is IncidentOutcome.MITIGATED
        await world.turn()
        assert [note.split("]")[0].split()[-1] for note in pagerduty.notes] == ["found", "done"]


async def test_nothing_is_resolved_in_pagerduty_unless_the_catalogue_says_so(
    open_bench: OpenBench, notes: PagerDutyNotes, pagerduty: LocalPagerDuty
) -> None:
    async with through(open_bench, notes) as world:
        came = await world.come()
        await world.bench.settle(45)
        await world.bench.receive(resolved(came, world.bench.clock))
        await world.bench.settle(5)
        await world.turn()
        assert pagerduty.status == "triggered"
        assert len(pagerduty.notes) == 2


async def test_nothing_is_resolved_in_pagerduty_while_another_sender_says_that_it_fires(
    open_bench: OpenBench, notes: PagerDutyNotes, pagerduty: LocalPagerDuty
) -> None:
    async with through(open_bench, notes, resolves=True) as world:
        other = world.bench.alert()
        await world.come()
        await world.bench.receive(other)
        await world.bench.settle(45)
        await world.turn()
        assert pagerduty.status == "acknowledged"
        await world.bench.receive(resolved(other, world.bench.clock))
        await world.turn()
        assert pagerduty.status == "resolved"


async def test_what_is_not_verified_is_not_resolved(
    open_bench: OpenBench, notes: PagerDutyNotes, pagerduty: LocalPagerDuty
) -> None:
    async with through(open_bench, notes, resolves=True) as world:
        world.bench.eyes.assessment = Assessment.CANNOT_TELL
        await world.come()
        await world.bench.settle(200)
        await world.turn()
        assert pagerduty.status != "resolved"


@pytest.mark.parametrize("mode", [Mode.SHADOW, Mode.APPROVE])
async def test_what_may_not_act_by_itself_acknowledges_nothing(
    open_bench: OpenBench, notes: PagerDutyNotes, pagerduty: LocalPagerDuty, mode: Mode
) -> None:
    async with through(open_bench, notes, mode) as world:
        await world.come()
        await world.bench.settle()
        await world.turn()
        assert pagerduty.status == "triggered"


async def test_a_label_of_another_sender_names_no_incident_of_pagerdutys(
    open_bench: OpenBench, notes: PagerDutyNotes, pagerduty: LocalPagerDuty
) -> None:
    async with through(open_bench, notes) as world:
        await world.bench.receive(world.bench.alert(**{LABEL: "PD1"}))
        await world.bench.settle()
        await world.turn()
        assert pagerduty.calls == []


# --- what apprise knows -------------------------------------------------------------------------


async def test_any_channel_of_apprises_is_told_once(pagerduty: LocalPagerDuty) -> None:
    heard: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.StreamResponse:
        heard.append(await request.json())
        return web.Response()

    async with serving(take) as url:
        channel = AppriseChannel("chat", f"{url.replace('http', 'json')}/hook")
        await channel.tell(summons())
        await channel.tell(summons(Word.RESOLVED))
    (message,) = heard
    assert message["title"].startswith(
        "Escalation level 1 of 1. ▲ Escalated, a human must take over: shop/orders"
    )
    assert "remediator acknowledge" in message["message"]


async def test_a_channel_that_takes_nothing_says_so_and_no_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    async def refuse(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=500)

    async with serving(refuse) as url:
        channel = AppriseChannel("chat", f"{url.replace('http://', f'json://bob:{SECRET}@')}/x")
        with pytest.raises(TemporaryError) as caught:
            await channel.tell(summons())
    assert SECRET not in f"{caught.value}{caught.value.__cause__}{caplog.text}{channel!r}"


async def test_a_channel_that_hangs_ends_at_the_timeout() -> None:
    async def hang(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(2)
        return web.Response()

    async with serving(hang) as url:
        channel = AppriseChannel("chat", f"{url.replace('http', 'json')}/x", timeout=0.3)
        with pytest.raises(TemporaryError, match="no answer within"):
            await channel.tell(summons())


@pytest.mark.parametrize("url", [f"nonsense://{SECRET}", SECRET, ""])
def test_a_url_that_apprise_cannot_read_is_an_error_that_does_not_repeat_it(url: str) -> None:
    with pytest.raises(ConfigError, match="channel mail: apprise cannot read") as caught:
        AppriseChannel("mail", url)
    assert SECRET not in str(caught.value)


# --- the chat ---------------------------------------------------------------------------------


async def test_a_level_is_a_new_message_in_slack_without_a_second_detail() -> None:
    async with LocalSlack() as slack:
        place = ChatPlace(channel=slack.channel, mention="<!here>")
        bot = SlackBot(slack.token, lambda _: place, slack.api_url)
        handle = None
        for _ in range(3):
            handle = await bot.send(summons().report, handle)
        channel = ChatChannel(bot)
        await channel.tell(summons())
        await channel.tell(summons(Word.RESOLVED))
        told, called = slack.posted
        assert called.lines[0].startswith(
            "Escalation level 1 of 1. ▲ Escalated, a human must take over: shop/orders"
        )
        assert called.lines[1] == "<!here>"
        assert "<!here>" not in told.lines
        assert (len(slack.replies(told)), len(slack.replies(called))) == (2, 0)
