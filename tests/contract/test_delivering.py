"""The outbox of what humans are told of an incident: what fails holds nothing else up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from remediator.errors import StoreUnavailable, TemporaryError
from remediator.ports import Handle
from remediator.report.deliver import DETAIL_ATTEMPTS, deliver
from remediator.store import tables as t
from remediator.testing import World
from remediator.views import IncidentView, Report
from tests.store_fixtures import Bench, OpenBench, a_service


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
    while await deliver(bench.store, chat, lambda result: counted.update([result]), note):
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
    assert notes.tries == 1 + DETAIL_ATTEMPTS


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
