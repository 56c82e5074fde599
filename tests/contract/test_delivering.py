"""The outbox of what humans are told of an incident: what fails holds nothing else up."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from remediator.backends.http.breakers import BreakerMitigator
from remediator.backends.http.migrations import MigrationMitigator
from remediator.backends.kubernetes.mitigator import KubernetesMitigator
from remediator.backends.postgres.mitigator import PostgresMitigator
from remediator.backends.redis.mitigator import RedisMitigator
from remediator.model.alert import DeadLetter
from remediator.model.errors import StoreUnavailable, TemporaryError
from remediator.model.notification import Handle, Post, request_key
from remediator.model.target import Mode
from remediator.model.views import IncidentView, Report
from remediator.notify.report import summarise
from remediator.notify.sender import NOTE_ATTEMPTS, Telling, deliver
from remediator.store import tables as t
from remediator.testing import World
from tests.store_fixtures import Bench, OpenBench, a_delivery, a_service

SECRET = "Zx9Qw7Lm4Tn2Rb8Kp5Vd3Hs6"


@dataclass
class Heard:
    """A chat that remembers of which services it was told, and fails as the test says."""

    said: list[str] = field(default_factory=list)
    trouble: Exception | None = None

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        if self.trouble is not None:
            raise self.trouble
        self.said.append(report.incident.service or "")
        return handle

    def channel(self, incident: IncidentView) -> str:
        return incident.service or ""

    async def call(self, report: Report) -> None:
        await self.send(report, None)


@dataclass
class Notes:
    """What notes are asked of, and fails as the test says."""

    trouble: Exception | None = None
    tries: int = 0
    noted: int = 0

    async def note(self, _view: IncidentView) -> None:
        self.tries += 1
        if self.trouble is not None:
            raise self.trouble
        self.noted += 1


async def _all(bench: Bench, chat: Heard, notes: Notes | None = None) -> Counter[str]:
    counted: Counter[str] = Counter()
    note = (notes or Notes()).note
    telling = Telling(chat, lambda result: counted.update([result]), note=note)
    while await deliver(bench.store, telling):
        pass
    return counted


@pytest.mark.parametrize("trouble", [ValueError("a fault of ours"), StoreUnavailable("away")])
async def test_a_fault_in_the_notes_silences_no_chat_and_is_tried_again(
    bench: Bench, trouble: Exception
) -> None:
    chat, notes = Heard(), Notes(trouble)
    await bench.receive(bench.alert())
    await bench.settle()
    with capture_logs() as logs:
        assert await _all(bench, chat, notes) == {"sent": 1}
    assert chat.said == ["orders"]
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["note_failed"]
    notes.trouble = None
    bench.clock.advance(timedelta(minutes=1))
    await _all(bench, chat, notes)
    assert notes.noted == 1


async def test_notes_that_always_fail_are_not_tried_for_ever(bench: Bench) -> None:
    notes = Notes(ValueError("a fault of ours"))
    await bench.receive(bench.alert())
    await bench.settle()
    for _ in range(60):
        await _all(bench, Heard(), notes)
        bench.clock.advance(timedelta(minutes=1))
    assert notes.tries == 1 + NOTE_ATTEMPTS


async def test_an_incident_that_cannot_be_read_holds_up_the_notice_of_no_other(
    open_bench: OpenBench,
) -> None:
    async with open_bench(World(), [a_service(), a_service("cart")]) as bench:
        await bench.receive(bench.alert(), bench.alert(service="cart"))
        await bench.settle()

        async def spoil(connection: Any) -> None:
            later = t.incidents.update().where(t.incidents.c.service == "orders")
            await connection.execute(later.values(outcome="of a later version"))

        await bench.store.database.write(spoil)
        chat = Heard()
        assert await _all(bench, chat) == {"failed": 1, "sent": 1}
        assert chat.said == ["cart"]


async def test_a_chat_may_ask_for_a_pause_of_some_minutes_at_most(bench: Bench) -> None:
    chat = Heard(trouble=TemporaryError("not now", retry_after=86400))
    await bench.receive(bench.alert())
    await bench.settle()
    assert await _all(bench, chat) == {"delayed": 1}
    chat.trouble = None
    bench.clock.advance(timedelta(minutes=5))
    assert await _all(bench, chat) == {"sent": 1}


@dataclass
class Dying:
    """A chat with two messages to post, whose process ends at the second one."""

    sent: list[Handle | None] = field(default_factory=list)
    ends: bool = True

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        self.sent.append(handle)
        if handle is None:
            return Handle(channel="C1", message="1", more=True)
        if self.ends:
            raise asyncio.CancelledError
        post = Post(key=request_key("mit-1"), message="2", digest="d")
        return handle.having(post).model_copy(update={"more": False})

    def channel(self, incident: IncidentView) -> str:
        return incident.service or ""

    async def call(self, report: Report) -> None:
        raise NotImplementedError


async def test_a_process_that_ends_between_two_messages_repeats_neither(bench: Bench) -> None:
    chat = Dying()
    await bench.receive(bench.alert())
    await bench.settle()
    with pytest.raises(asyncio.CancelledError):
        await deliver(bench.store, Telling(chat, lambda result: None))
    chat.ends = False
    assert await deliver(bench.store, Telling(chat, lambda result: None))
    first = Handle(channel="C1", message="1")
    assert chat.sent == [None, first.model_copy(update={"more": True}), first]
    async with bench.store.database.read() as connection:
        row = (await connection.execute(t.notices.select())).mappings().one()
    assert row["handle"] == {"channel": "C1", "message": "1", "detailed": False}
    assert [post["key"] for post in row["posts"]] == ["request/mit-1"]


async def test_the_approver_reads_what_the_change_does_to_those_it_hits(
    open_bench: OpenBench,
) -> None:
    async with open_bench(World(things={"lamp"}), [a_service(mode=Mode.APPROVE)]) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        (request,) = summarise(await bench.incident()).requests
        assert (request.waits, request.consequence) == (True, "These things go dark.")


@pytest.mark.parametrize(
    "lever",
    [BreakerMitigator, KubernetesMitigator, MigrationMitigator, PostgresMitigator, RedisMitigator],
)
def test_every_kind_of_change_says_in_a_sentence_what_it_does(lever: Any) -> None:
    assert lever.consequences.keys() == lever.kinds
    for said in lever.consequences.values():
        assert said.endswith(".")
        assert len(said) <= 160


async def test_secrets_of_a_label_are_masked_in_the_api_and_in_dead_letters_as_in_the_chat(
    bench: Bench,
) -> None:
    await bench.receive(bench.alert(db_password=SECRET, note=f"ghp_{SECRET}"))
    letter = DeadLetter(reason="wrong", excerpt=f'{{"labels": {{"db_password": "{SECRET}"}}}}')
    await bench.store.inbox.put(a_delivery(bench.clock), [], [letter])
    await bench.settle()
    records = bench.store.records
    read = [await bench.incident(), await records.incidents(), await records.dead_letters()]
    assert SECRET not in "".join(page.model_dump_json() for page in read)
    (again,) = await records.alerts_of((await bench.incident()).id) or ()
    assert again.labels["db_password"] == SECRET, "a replay needs the alert as it came"
