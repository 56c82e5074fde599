"""The Slack notifiers against a local Slack that refuses what Slack refuses."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from remediator.cli.demo.slack import LocalSlack, SlackMessage, Trouble
from remediator.model.errors import PermanentError, TemporaryError
from remediator.model.finding import FindingStatus
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.mitigation import MitigationState
from remediator.model.notification import Handle, Notifier
from remediator.model.views import ChatPlace, Frame, IncidentView, Report
from remediator.notify.report import summarise
from remediator.notify.slack import SlackBot, SlackWebhook
from tests.incident_views import (
    ID,
    START,
    alert,
    closed_as,
    event,
    finding,
    mitigation,
    open_in,
    view,
)
from tests.scripted_http import serving

TOKEN = "xoxb-4711-secret"
GROUP = "<!subteam^S0123ABCD>"


def in_incidents(_incident: IncidentView) -> ChatPlace:
    return ChatPlace(channel="#incidents", mention=GROUP)


OPENED = summarise(open_in(Phase.DIAGNOSE))
PLANNED: dict[str, Any] = {
    "items": [],
    "expires_at": START + timedelta(minutes=15),
    "consequence": "Their uncommitted work is rolled back.",
}
WAITING = summarise(
    open_in(Phase.APPROVAL, mitigations=[mitigation(MitigationState.AWAITING_APPROVAL, **PLANNED)])
)
ACTING = summarise(open_in(Phase.ACT))
FINAL = summarise(closed_as(IncidentOutcome.MITIGATED))


@pytest.fixture
async def slack() -> AsyncIterator[LocalSlack]:
    async with LocalSlack(token=TOKEN, channel="#incidents") as running:
        yield running


@pytest.fixture
def bot(slack: LocalSlack) -> SlackBot:
    return SlackBot(TOKEN, in_incidents, slack.api_url, timeout=0.5)


@pytest.fixture
def webhook(slack: LocalSlack) -> SlackWebhook:
    return SlackWebhook(slack.webhook_url, in_incidents, timeout=0.5)


@pytest.fixture(params=["bot", "webhook"])
def notifier(request: pytest.FixtureRequest) -> Notifier:
    chosen: Notifier = request.getfixturevalue(request.param)
    return chosen


async def told(notifier: Notifier, report: Report, handle: Handle | None = None) -> Handle | None:
    """Send ``report`` until there is nothing more to post, as the outbox does."""
    handle = await notifier.send(report, handle)
    while handle is not None and handle.more:
        handle = await notifier.send(report, handle)
    return handle


def headline(message: SlackMessage) -> str:
    return message.lines[0]


def is_request(message: SlackMessage) -> bool:
    return any(line.startswith("Change: ") for line in message.lines)


# --- what every notifier does -----------------------------------------------------------------


async def test_a_first_report_becomes_one_message(notifier: Notifier, slack: LocalSlack) -> None:
    handle = await notifier.send(OPENED, None)
    assert handle is not None
    (message,) = slack.messages.values()
    assert headline(message) == OPENED.headline
    assert message.text.startswith(OPENED.headline)
    assert message.metadata == {
        "event_type": "remediator_incident",
        "event_payload": {"incident_id": ID},
    }


@pytest.mark.parametrize("trouble", [Trouble.RATE_LIMIT, Trouble.SERVER_ERROR, Trouble.HANG])
async def test_a_passing_failure_is_temporary_and_the_next_try_tells(
    notifier: Notifier, slack: LocalSlack, trouble: Trouble
) -> None:
    slack.fail(trouble)
    with pytest.raises(TemporaryError) as caught:
        await notifier.send(OPENED, None)
    assert caught.value.retry_after == (7 if trouble is Trouble.RATE_LIMIT else None)
    assert not slack.messages
    assert await notifier.send(OPENED, None) is not None
    assert len(slack.calls) == 2


async def test_a_lost_answer_is_temporary_and_never_repeated_from_within(
    notifier: Notifier, slack: LocalSlack
) -> None:
    slack.fail(Trouble.DROP)
    with pytest.raises(TemporaryError, match="cannot be reached"):
        await notifier.send(OPENED, None)
    assert len(slack.messages) == len(slack.calls) == 1


async def test_a_hang_ends_at_the_timeout(notifier: Notifier, slack: LocalSlack) -> None:
    slack.fail(Trouble.HANG)
    started = time.monotonic()
    with pytest.raises(TemporaryError, match=r"no answer within 0\.5 s"):
        await notifier.send(OPENED, None)
    assert time.monotonic() - started < 3


async def test_a_report_of_any_size_is_taken(notifier: Notifier, slack: LocalSlack) -> None:
    long = "<é&" * 3_000
    huge = summarise(
        view(
            findings=[finding(f"f{n}", FindingStatus.PROBLEM, long) for n in range(200)],
            timeline=[event("act", "x", f"{n} {long}") for n in range(200)],
            reason=long,
        )
    )
    await told(notifier, huge)
    assert any("…" in line for line in slack.posted[0].lines)
    assert len(slack.posted[0].lines[0]) <= 150


async def test_mentions_in_labels_reach_nobody(notifier: Notifier, slack: LocalSlack) -> None:
    hostile = alert(
        labels={"alertname": "<!channel>"}, annotations={"summary": "<https://evil|your bank>"}
    )
    await told(notifier, summarise(view(alerts=[hostile], service=None, system=None)))
    for message in slack.messages.values():
        assert "<" not in message.text
        assert not any("<" in str(block) for block in message.blocks)
        assert any("<!channel>" in line for line in slack.posted[0].lines)


# --- the bot ----------------------------------------------------------------------------------


async def test_the_bot_edits_its_one_message_and_details_it_once(
    bot: SlackBot, slack: LocalSlack
) -> None:
    handle: Handle | None = None
    for report in (OPENED, ACTING, FINAL, FINAL):
        handle = await told(bot, report, handle)
    (message,) = slack.posted
    assert (headline(message), message.edits) == (FINAL.headline, 2)
    assert handle is not None
    assert (handle.channel, handle.message, handle.detailed) == ("C0LOCAL", message.ts, True)
    whole, detail = slack.replies(message)
    assert "*What was done*" in whole.lines
    assert whole.edits == 2
    assert "1. disk: fine. 40 % full" in detail.lines
    assert "03:04:16 act, applied: two sessions ended" in detail.lines


@pytest.mark.parametrize("code", ["message_not_found", "cant_update_message", "edit_window_closed"])
async def test_a_message_that_cannot_be_edited_is_posted_anew(
    bot: SlackBot, slack: LocalSlack, code: str
) -> None:
    first = await told(bot, OPENED)
    slack.fail(code)
    second = await told(bot, ACTING, first)
    assert first is not None
    assert second is not None
    assert second.message != first.message
    assert [headline(message) for message in slack.posted] == [OPENED.headline, ACTING.headline]


async def test_a_deleted_message_is_posted_anew_with_its_detail(
    bot: SlackBot, slack: LocalSlack
) -> None:
    handle = await told(bot, OPENED)
    slack.messages.clear()
    await told(bot, FINAL, handle)
    (message,) = slack.posted
    assert len(slack.replies(message)) == 2


async def test_a_handle_of_the_version_before_is_edited_and_detailed_once(
    bot: SlackBot, slack: LocalSlack
) -> None:
    for detailed in (False, True):
        slack.messages.clear()
        first = await bot.send(OPENED, None)
        assert first is not None
        old = Handle(channel=first.channel, message=first.message, detailed=detailed)
        await told(bot, FINAL, await told(bot, FINAL, old))
        (message,) = slack.posted
        assert message.edits == 1
        assert len(slack.replies(message)) == (1 if detailed else 2)


@pytest.mark.parametrize("trouble", [Trouble.SERVER_ERROR, Trouble.HANG])
async def test_each_call_posts_one_message_at_most_so_that_none_is_lost(
    bot: SlackBot, slack: LocalSlack, trouble: Trouble
) -> None:
    first = await bot.send(FINAL, None)
    assert first is not None
    assert first.more
    slack.fail(trouble)
    with pytest.raises(TemporaryError):
        await bot.send(FINAL, first)
    last = await told(bot, FINAL, first)
    assert last is not None
    assert last.detailed
    assert (len(slack.posted), len(slack.replies(slack.posted[0]))) == (1, 2)


# --- requests for an approval -----------------------------------------------------------------


async def test_an_approval_is_asked_for_by_a_new_message_once_because_an_edit_wakes_nobody(
    notifier: Notifier, slack: LocalSlack
) -> None:
    handle = await told(notifier, OPENED)
    handle = await told(notifier, WAITING, handle)
    await told(notifier, WAITING, handle)
    first, asked = slack.posted
    assert headline(asked) == "▲ Approval needed: shop/orders, PoolExhausted"
    assert asked.edits == 0
    assert handle is not None
    assert handle.asked(WAITING.requests[0].id)
    said = "\n".join(asked.lines)
    assert "Change: end sessions on postgres/orders-db (medium risk)" in asked.lines
    assert "Effect: Their uncommitted work is rolled back." in asked.lines
    assert f"remediator approve {ID}" in said
    assert GROUP in said
    assert GROUP not in "\n".join(first.lines)


async def test_the_request_is_in_the_thread_of_its_incident_and_in_the_channel(
    bot: SlackBot, slack: LocalSlack
) -> None:
    await told(bot, WAITING)
    incident, asked = slack.posted
    assert (asked.thread_ts, asked.broadcast) == (incident.ts, True)


async def test_the_deadline_is_in_the_readers_own_time_zone(
    notifier: Notifier, slack: LocalSlack
) -> None:
    ends = int((START + timedelta(minutes=15)).timestamp())
    berlin = summarise(WAITING.incident, Frame(timezone="Europe/Berlin"))
    await told(notifier, berlin)
    assert f"before <!date^{ends}^{{time}}|04:19 CET>." in slack.posted[-1].lines[1]
    assert "before 04:19 CET" in slack.posted[0].text


async def test_approving_asks_once_more_with_what_the_change_does(
    slack: LocalSlack,
) -> None:
    bot = SlackBot(TOKEN, in_incidents, slack.api_url, buttons=True)
    await told(bot, WAITING)
    incident, asked = slack.posted
    assert not incident.buttons
    confirm = asked.buttons["Approve"]["confirm"]
    assert confirm["text"]["text"].endswith("Their uncommitted work is rolled back.")
    assert "confirm" not in asked.buttons["Reject"]


@pytest.mark.parametrize(
    ("state", "by", "outcome", "said"),
    [
        (MitigationState.APPROVED, "ann", None, "Approved by ann"),
        (MitigationState.APPLIED, "ann, bob", None, "Approved by ann, bob"),
        (MitigationState.REJECTED, "bob", IncidentOutcome.DENIED, "Rejected by bob"),
        (
            MitigationState.EXPIRED,
            None,
            IncidentOutcome.ESCALATED,
            "Expired, not approved in time",
        ),
        (
            MitigationState.EXPIRED,
            None,
            IncidentOutcome.RESOLVED_BY_ITSELF,
            "No longer needed",
        ),
    ],
)
async def test_a_request_is_edited_once_it_is_decided_and_mentions_nobody_any_more(
    slack: LocalSlack,
    state: MitigationState,
    by: str | None,
    outcome: IncidentOutcome | None,
    said: str,
) -> None:
    bot = SlackBot(TOKEN, in_incidents, slack.api_url, buttons=True)
    handle = await told(bot, WAITING)
    decided = {"mitigations": [mitigation(state, decided_by=by, **PLANNED)]}
    now = closed_as(outcome, **decided) if outcome else open_in(Phase.ACT, **decided)
    await told(bot, summarise(now), handle)
    _, asked = slack.posted
    assert headline(asked) == f"{said}: shop/orders, PoolExhausted"
    assert not asked.buttons
    assert GROUP not in "\n".join(asked.lines)


async def test_a_second_plan_of_an_incident_is_asked_for_anew(
    notifier: Notifier, slack: LocalSlack
) -> None:
    handle = await told(notifier, WAITING)
    first = mitigation(MitigationState.EXPIRED, **PLANNED)
    second = mitigation(
        MitigationState.AWAITING_APPROVAL,
        id="mit-2",
        created_at=START + timedelta(minutes=20),
        **PLANNED,
    )
    again = summarise(open_in(Phase.APPROVAL, mitigations=[first, second]))
    await told(notifier, again, handle)
    assert sum(is_request(m) for m in slack.posted) == 2


async def test_a_lost_answer_to_a_request_may_repeat_it_and_nothing_else(
    notifier: Notifier, slack: LocalSlack
) -> None:
    handle = await notifier.send(WAITING, None)
    slack.fail(Trouble.DROP)
    with pytest.raises(TemporaryError):
        await notifier.send(WAITING, handle)
    await told(notifier, WAITING, handle)
    assert sum(is_request(m) for m in slack.posted) == 2
    assert len(slack.posted) == 3


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        ("invalid_auth", "check the bot token"),
        ("token_revoked", "check the bot token"),
        ("channel_not_found", "check slack.channel"),
        ("not_in_channel", "invite the bot"),
        ("missing_scope", "chat:write"),
        ("is_archived", "archived"),
        ("no_permission", "Slack's documentation"),
    ],
)
async def test_what_no_retry_cures_is_permanent_and_names_the_cure(
    bot: SlackBot, slack: LocalSlack, code: str, cure: str
) -> None:
    slack.fail(code)
    with pytest.raises(PermanentError, match=cure) as caught:
        await bot.send(OPENED, None)
    assert code in str(caught.value)


@pytest.mark.parametrize("code", ["internal_error", "ratelimited", "service_unavailable"])
async def test_slacks_own_troubles_are_temporary(
    bot: SlackBot, slack: LocalSlack, code: str
) -> None:
    slack.fail(code)
    with pytest.raises(TemporaryError, match=code):
        await bot.send(OPENED, None)


async def test_a_wrong_token_or_channel_is_permanent(slack: LocalSlack) -> None:
    with pytest.raises(PermanentError, match="invalid_auth"):
        await SlackBot("xoxb-wrong", in_incidents, slack.api_url).send(OPENED, None)
    with pytest.raises(PermanentError, match="channel_not_found"):
        await SlackBot(TOKEN, lambda _: ChatPlace(channel="#nowhere"), slack.api_url).send(
            OPENED, None
        )


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("Welcome", "text/plain"),
        ("<html>log in</html>", "text/html"),
        ("{not json", "application/json"),
        ("[1]", "application/json"),
        ('"ok"', "application/json"),
        ('{"ok": true}', "application/json"),
        ('{"ok": false}', "application/json"),
        ('{"ok": false, "error": "<!channel> xoxb-4711-secret"}', "application/json"),
    ],
)
async def test_an_answer_that_is_not_slacks_is_an_error_of_ours(body: str, kind: str) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body, content_type=kind)

    async with serving(handle) as url:
        with pytest.raises((TemporaryError, PermanentError), match="the answer") as caught:
            await SlackBot(TOKEN, in_incidents, url).send(OPENED, None)
    assert "4711" not in str(caught.value)


# --- the webhook ------------------------------------------------------------------------------


async def test_a_webhook_tells_the_start_and_the_end_only(
    webhook: SlackWebhook, slack: LocalSlack
) -> None:
    handle: Handle | None = None
    for report in (OPENED, ACTING, FINAL, FINAL):
        handle = await told(webhook, report, handle)
    assert handle is not None
    assert handle.detailed
    assert [headline(m) for m in slack.posted] == [OPENED.headline, FINAL.headline]


async def test_a_webhook_tells_an_incident_that_is_over_at_once_in_one_message(
    webhook: SlackWebhook, slack: LocalSlack
) -> None:
    await told(webhook, FINAL, await told(webhook, FINAL))
    assert len(slack.posted) == 1


async def test_a_webhook_that_was_removed_is_permanent(slack: LocalSlack) -> None:
    gone = slack.origin + "/services/T0/B0/secret-4711"
    with pytest.raises(PermanentError, match="HTTP 404") as caught:
        await SlackWebhook(gone, in_incidents).send(OPENED, None)
    assert "4711" not in str(caught.value)


# --- secrets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [Trouble.RATE_LIMIT, Trouble.SERVER_ERROR, Trouble.DROP, Trouble.NONSENSE, "invalid_auth", ""],
)
async def test_neither_token_nor_webhook_url_are_said_or_logged(
    slack: LocalSlack, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = slack.webhook_url
    for notifier in (SlackBot(TOKEN, in_incidents, slack.api_url), SlackWebhook(url, in_incidents)):
        slack.fail(trouble)
        said = await complaint(notifier, OPENED)
        for secret in (TOKEN, "local-secret"):
            assert secret not in said
            assert secret not in repr(notifier)
            assert secret not in caplog.text


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/services/secret-4711", "hooks/secret-4711", "ftp://h/secret-4711", ""],
)
async def test_a_webhook_url_that_leads_nowhere_is_not_repeated(url: str) -> None:
    said = await complaint(SlackWebhook(url, in_incidents), OPENED)
    assert "Slack: incoming webhook" in said
    assert "4711" not in said


async def complaint(notifier: Notifier, report: Report) -> str:
    """Return all that a traceback of the failure would show."""
    try:
        await notifier.send(report, None)
    except (TemporaryError, PermanentError) as error:
        return "".join(traceback.format_exception(error))
    return ""
