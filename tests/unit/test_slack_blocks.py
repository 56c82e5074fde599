"""slack_blocks: within Slack's limits, and nothing foreign speaks mrkdwn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.model.finding import FindingStatus
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.mitigation import ItemOutcome, MitigationState
from remediator.model.views import Frame, IncidentView, PlannedItem
from remediator.notify.report import summarise
from remediator.notify.slack_blocks import (
    BLOCKS_LIMIT,
    HEADER_LIMIT,
    SECTION_LIMIT,
    TEXT_LIMIT,
    Message,
    draw,
    draw_detail,
    draw_report,
    draw_request,
    escape,
    fit,
)
from tests.incident_views import ID, alert, closed_as, event, finding, mitigation, open_in, view

TITLES = {
    "*What happened*",
    "*What was found*",
    "*What was done*",
    "*Did it help*",
    "*What to do next*",
    "*Findings*",
    "*Timeline (UTC)*",
}
TRICKS = (
    "<!channel>",
    "<!here|x>",
    "<@U123>",
    "<#C123|general>",
    "<!subteam^S1>",
    "<https://evil|bank>",
    "&lt;!channel&gt;",
    "*bold* _it_ ~no~ `x` ```y```",
    "> quote",
    ":bomb:",
    "@channel @here #general",
)


def messages(incident: IncidentView) -> list[Message]:
    report = summarise(incident)
    return [draw(report), draw_report(report), draw_detail(report)]


def texts(message: Message) -> list[dict[str, Any]]:
    return [block.to_dict()["text"] for block in message.blocks]


def assert_within_limits(message: Message) -> None:
    assert 0 < len(message.blocks) <= BLOCKS_LIMIT
    assert 0 < len(message.text) <= TEXT_LIMIT
    for block in message.blocks:
        drawn = block.to_dict()
        limit = HEADER_LIMIT if drawn["type"] == "header" else SECTION_LIMIT
        assert 0 < len(drawn["text"]["text"].encode()) <= limit
    assert sum(len(text["text"].encode()) for text in texts(message)) < 10_000


def foreign(text: str) -> IncidentView:
    """Put ``text`` wherever another system can put text."""
    return view(
        alerts=[alert(labels={"alertname": text}, annotations={"summary": text})],
        findings=[finding(text, FindingStatus.PROBLEM, text)],
        mitigations=[mitigation(MitigationState.APPLIED, reason=text, evidence=text)],
        timeline=[event("act", text, text)],
        reason=text,
        service=None,
        system=None,
    )


@pytest.mark.parametrize("trick", TRICKS)
def test_foreign_text_is_inert_wherever_it_stands(trick: str) -> None:
    for message in messages(foreign(f"before {trick} after")):
        for text in texts(message):
            if text["type"] == "mrkdwn":
                assert text["text"] in TITLES
                assert text["verbatim"] is True
            else:
                assert text["emoji"] is False
            assert "<" not in text["text"]
            assert ">" not in text["text"]
        assert "<" not in message.text


@given(st.text())
def test_an_escaped_text_reads_back_as_it_was(text: str) -> None:
    escaped = escape(text)
    assert "<" not in escaped
    assert ">" not in escaped
    assert escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == text


@given(st.text(max_size=400) | st.text("<&é😀a", max_size=400), st.integers(60, 300))
def test_a_fitted_text_keeps_the_limit_and_whole_entities(text: str, limit: int) -> None:
    fitted = fit(text, limit)
    assert len(fitted.encode()) <= limit
    kept, mark, _ = fitted.partition("… (")
    if fitted == escape(text):
        return
    assert mark
    left_out = int(fitted.rpartition("… (")[2].split()[0])
    kept = fitted.rpartition("… (")[0]
    assert kept == escape(text[: len(text) - left_out])


@pytest.mark.parametrize("size", [0, 1, 200, 5_000])
@pytest.mark.parametrize("character", ["x", "&", "é", "😀", "\n"])
def test_messages_keep_slacks_limits_however_much_there_is_to_say(
    size: int, character: str
) -> None:
    long = character * size
    many = view(
        alerts=[alert(annotations={"summary": long}) for _ in range(120)],
        findings=[finding(f"f{n}", FindingStatus.PROBLEM, long) for n in range(120)],
        mitigations=[mitigation(MitigationState.DENIED, reason=long) for _ in range(120)],
        timeline=[event("act", f"e{n}", f"{n} {long}") for n in range(120)],
        service=f"s{long}",
        reason=long,
    )
    for message in messages(many):
        assert_within_limits(message)


@settings(max_examples=50)
@given(st.lists(st.text(max_size=3_000), max_size=60))
def test_messages_keep_slacks_limits_for_any_text(reasons: list[str]) -> None:
    timeline = [event("act", "x", reason) for reason in reasons]
    findings = [finding("f", FindingStatus.UNKNOWN, reason) for reason in reasons]
    for message in messages(view(timeline=timeline, findings=findings)):
        assert_within_limits(message)


def test_what_is_left_out_is_counted() -> None:
    findings = [finding(f"f{n}", FindingStatus.PROBLEM, "x" * 100) for n in range(120)]
    drawn = [text["text"] for text in texts(messages(view(findings=findings))[1])]
    shown = sum(text.count("Problem: f") for text in drawn)
    assert any(f"… ({120 - shown} lines left out)" in text for text in drawn)


def test_the_thread_says_everything_that_the_report_says() -> None:
    report = summarise(open_in(Phase.APPROVAL))
    said = "\n".join(text["text"] for text in texts(draw_report(report)))
    for line in (*report.happened, *report.found, *report.done, report.helped, report.next_step):
        assert escape(line) in said
    message = draw(report)
    assert message.text == escape(f"{report.headline}\n{report.next_step}")
    assert f"remediator approve {ID}" in message.text


@pytest.mark.parametrize("state", [MitigationState.APPLIED, MitigationState.AWAITING_APPROVAL])
def test_the_thread_shows_each_sessions_statement_inert_masked_and_bounded(
    state: MitigationState,
) -> None:
    trick = "UPDATE \u202e<!channel> SET password=hunter2\n*x*"
    planned = [
        PlannedItem(key="pid 1", summary=f"orders_app (worker), idle; statement: {trick}"),
        *(PlannedItem(key=f"pid {n}", summary="y" * 10_000) for n in range(2, 9)),
    ]
    done = [ItemOutcome(key=item.key, state=state) for item in planned]
    items = done if state is MitigationState.APPLIED else []
    report = summarise(view(mitigations=[mitigation(state, planned=planned, items=items)]))
    message = draw_report(report)
    assert_within_limits(message)
    said = "\n".join(text["text"] for text in texts(message))
    assert (
        "pid 1: orders_app (worker), idle; statement:"
        " UPDATE &lt;!channel&gt; SET password=*** *x*\n"
    ) in said
    assert f"pid 4: {'y' * 399}…\n" in said
    assert "pid 5: " not in said
    assert "4 more items: " in said


@pytest.mark.parametrize(
    "incident", [closed_as(o) for o in IncidentOutcome] + [open_in(phase) for phase in Phase]
)
def test_a_message_is_short_and_says_what_fires_what_was_found_and_what_was_done(
    incident: IncidentView,
) -> None:
    said = "\n".join(text["text"] for text in texts(draw(summarise(incident))))
    assert len(said) <= 500
    assert "PoolExhausted" in said
    assert "Found: pool: 100 of 100 connections are in use" in said
    assert "end 2 sessions on postgres/orders-db" in said


def test_a_message_stays_short_whatever_there_is_to_say() -> None:
    long = "word " * 400
    incident = view(
        alerts=[alert(annotations={"summary": long}) for _ in range(90)],
        findings=[finding("f", FindingStatus.PROBLEM, long)],
        mitigations=[mitigation(MitigationState.DENIED, reason=long, summary=long)],
        reason=long,
    )
    waiting = mitigation(MitigationState.AWAITING_APPROVAL, summary=long, consequence=long[:150])
    asked = summarise(open_in(Phase.APPROVAL, mitigations=[waiting]))
    for message in (
        draw(summarise(incident)),
        draw_request(asked, asked.requests[0], "<!subteam^S0123ABCD>", buttons=True),
    ):
        said = [t["text"] for t in (b.to_dict().get("text") for b in message.blocks) if t]
        assert len("\n".join(said)) <= 600


LINKED = {
    "runbook_url": "https://runbooks.example.com/pool|x><!channel>",
    "dashboard": "https://grafana.example.com/d/orders?from=now-1h&to=now",
    "generatorURL": "http://prometheus.example.com/graph?g0.expr=up",
}


def test_links_are_shown_beside_the_text_and_cannot_be_ended_by_what_is_in_them() -> None:
    linked = view(alerts=[alert(annotations=LINKED)])
    report = summarise(linked, Frame(public_url="https://remediator.example.com"))
    shown = texts(draw(report))[-1]
    assert shown["text"] == (
        f"<https://remediator.example.com/api/v1/incidents/{ID}|Incident>"
        " · <https://runbooks.example.com/pool%7Cx%3E%3C!channel%3E|Runbook>"
        " · <https://grafana.example.com/d/orders?from=now-1h&amp;to=now|Dashboard>"
        " · <http://prometheus.example.com/graph?g0.expr=up|Source>"
    )


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "ftp://x/y", "https://x/ y", "http://", "file:///etc/passwd", "x"],
)
def test_only_web_addresses_become_links(url: str) -> None:
    report = summarise(view(alerts=[alert(annotations={"runbook_url": url})]))
    assert report.links == {}


def test_there_are_no_buttons() -> None:
    for message in messages(open_in(Phase.APPROVAL)):
        assert {block.to_dict()["type"] for block in message.blocks} <= {"header", "section"}


def test_the_detail_has_every_finding_and_event() -> None:
    said = "\n".join(t["text"] for t in texts(messages(closed_as(IncidentOutcome.MITIGATED))[2]))
    assert "1. disk: fine. 40 % full" in said
    assert "03:04:16 act, applied: two sessions ended" in said


def test_a_detail_without_anything_to_tell_is_still_a_message() -> None:
    for message in messages(view(findings=[], timeline=[], mitigations=[], alerts=[])):
        assert_within_limits(message)
