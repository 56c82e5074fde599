"""The post-incident report: complete, in order, and nothing in it is markup by accident."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from remediator.model.views import TimelineEvent
from remediator.notify.postmortem import markdown
from tests.incident_views import view

AT = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)


def told(**changes: Any) -> str:
    return markdown(view(**changes))


def test_it_has_every_part_in_the_order_of_what_happened() -> None:
    report = told()
    titles = [line for line in report.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Summary",
        "## Alerts",
        "## What was found",
        "## What was done",
        "## Timeline (UTC)",
        "## To be filled in",
    ]


def test_the_timeline_tells_each_event_with_its_time_and_reason() -> None:
    event = TimelineEvent(at=AT, step="act", event="scale: applied", reason="replicas 4 -> 6")
    report = told(timeline=[event, event.model_copy(update={"at": AT + timedelta(seconds=5)})])
    assert "| 2026-03-01 03:00:00 | act | scale: applied | replicas 4 -\\> 6 |" in report
    assert "| 2026-03-01 03:00:05 |" in report


def test_secrets_are_masked() -> None:
    report = told(reason="could not connect to postgres://app:hunter2@db/orders")
    assert "hunter2" not in report


@given(st.text(max_size=200))
def test_no_text_from_outside_becomes_markup(text: str) -> None:
    report = told(reason=text).splitlines()
    begins = ("# ", "## ", "- ", "  - ", "| ", "|-")
    assert all(not line or line.startswith(begins) for line in report)
    for line in report:
        assert "<" not in line.replace("\\<", "")


def test_an_incident_in_which_nothing_was_changed_says_so() -> None:
    assert "Nothing was changed." in told(mitigations=[])
