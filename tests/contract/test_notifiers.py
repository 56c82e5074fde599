"""The Slack notifiers against a local Slack that refuses what Slack refuses."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from remediator.adapters.slack import SlackBot, SlackWebhook
from remediator.demo.slack import LocalSlack, SlackMessage, Trouble
from remediator.errors import PermanentError, TemporaryError
from remediator.model import FindingStatus, IncidentOutcome, Phase
from remediator.ports import Handle, Notifier
from remediator.report.summary import summarise
from remediator.views import Report
from tests.incident_views import ID, alert, closed_as, event, finding, open_in, view
from tests.scripted_http import serving

TOKEN = "xoxb-4711-secret"
OPENED = summarise(open_in(Phase.DIAGNOSE))
WAITING = summarise(open_in(Phase.APPROVAL))
FINAL = summarise(closed_as(IncidentOutcome.MITIGATED))


@pytest.fixture
async def slack() -> AsyncIterator[LocalSlack]:
    async with LocalSlack(token=TOKEN, channel="#incidents") as running:
        yield running


@pytest.fixture
def bot(slack: LocalSlack) -> SlackBot:
    return SlackBot(TOKEN, "#incidents", slack.api_url, timeout=0.5)


@pytest.fixture
def webhook(slack: LocalSlack) -> SlackWebhook:
    return SlackWebhook(slack.webhook_url, timeout=0.5)


@pytest.fixture(params=["bot", "webhook"])
def notifier(request: pytest.FixtureRequest) -> Notifier:
    chosen: Notifier = request.getfixturevalue(request.param)
    return chosen


def headline(message: SlackMessage) -> str:
    return message.lines[0]


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
    await notifier.send(huge, None)
    assert "left out)" in "\n".join(next(iter(slack.messages.values())).lines)


async def test_mentions_in_labels_reach_nobody(notifier: Notifier, slack: LocalSlack) -> None:
    hostile = alert(
        labels={"alertname": "<!channel>"}, annotations={"summary": "<https://evil|your bank>"}
    )
    await notifier.send(summarise(view(alerts=[hostile], service=None, system=None)), None)
    for message in slack.messages.values():
        assert "<" not in message.text
        assert not any("<" in str(block) for block in message.blocks)
        assert any("<!channel>" in line for line in slack.posted[0].lines)


# --- the bot ----------------------------------------------------------------------------------


async def test_the_bot_edits_its_one_message_and_details_it_once(
    bot: SlackBot, slack: LocalSlack
) -> None:
    handle: Handle | None = None
    for report in (OPENED, WAITING, FINAL, FINAL):
        handle = await bot.send(report, handle)
    (message,) = slack.posted
    assert (headline(message), message.edits) == (FINAL.headline, 3)
    assert handle == Handle(channel=slack.channel_id, message=message.ts, detailed=True)
    (detail,) = slack.replies(message)
    assert "1. disk: fine. 40 % full" in detail.lines
    assert "03:04:16 act, applied: two sessions ended" in detail.lines


async def test_an_approval_says_how_to_approve(bot: SlackBot, slack: LocalSlack) -> None:
    await bot.send(WAITING, None)
    assert any(f"`remediator approve {ID}`" in line for line in slack.posted[0].lines)
    assert f"remediator approve {ID}" in slack.posted[0].text


@pytest.mark.parametrize("code", ["message_not_found", "cant_update_message", "edit_window_closed"])
async def test_a_message_that_cannot_be_edited_is_posted_anew(
    bot: SlackBot, slack: LocalSlack, code: str
) -> None:
    first = await bot.send(OPENED, None)
    slack.fail(code)
    second = await bot.send(WAITING, first)
    assert first is not None
    assert second is not None
    assert second.message != first.message
    assert [headline(message) for message in slack.posted] == [OPENED.headline, WAITING.headline]


async def test_a_deleted_message_is_posted_anew_with_its_detail(
    bot: SlackBot, slack: LocalSlack
) -> None:
    handle = await bot.send(FINAL, None)
    slack.messages.clear()
    handle = await bot.send(FINAL, handle)
    (message,) = slack.posted
    assert len(slack.replies(message)) == 1
    assert handle == Handle(channel=slack.channel_id, message=message.ts, detailed=True)


async def test_a_detail_that_fails_after_an_edit_is_asked_for_again(
    bot: SlackBot, slack: LocalSlack
) -> None:
    handle = await bot.send(OPENED, None)
    slack.fail("", Trouble.SERVER_ERROR)
    with pytest.raises(TemporaryError):
        await bot.send(FINAL, handle)
    handle = await bot.send(FINAL, handle)
    assert handle is not None
    assert handle.detailed
    assert len(slack.posted) == 1
    assert len(slack.replies(slack.posted[0])) == 1


async def test_a_detail_that_fails_after_a_new_message_does_not_lose_the_message(
    bot: SlackBot, slack: LocalSlack
) -> None:
    slack.fail("", Trouble.SERVER_ERROR)
    handle = await bot.send(FINAL, None)
    assert handle is not None
    assert not handle.detailed
    handle = await bot.send(FINAL, handle)
    assert handle is not None
    assert handle.detailed
    assert len(slack.posted) == 1
    assert len(slack.replies(slack.posted[0])) == 1


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
        await SlackBot("xoxb-wrong", "#incidents", slack.api_url).send(OPENED, None)
    with pytest.raises(PermanentError, match="channel_not_found"):
        await SlackBot(TOKEN, "#nowhere", slack.api_url).send(OPENED, None)


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
            await SlackBot(TOKEN, "#incidents", url).send(OPENED, None)
    assert "4711" not in str(caught.value)


# --- the webhook ------------------------------------------------------------------------------


async def test_a_webhook_tells_the_start_and_the_end_only(
    webhook: SlackWebhook, slack: LocalSlack
) -> None:
    first = await webhook.send(OPENED, None)
    assert await webhook.send(OPENED, first) is first
    last = await webhook.send(FINAL, first)
    assert last is not None
    assert last.detailed
    assert await webhook.send(FINAL, last) is last
    assert [headline(m) for m in slack.posted] == [OPENED.headline, FINAL.headline]


async def test_a_webhook_asks_for_an_approval_once(
    webhook: SlackWebhook, slack: LocalSlack
) -> None:
    first = await webhook.send(OPENED, None)
    asked = await webhook.send(WAITING, first)
    assert await webhook.send(WAITING, asked) is asked
    assert [headline(m) for m in slack.posted] == [OPENED.headline, WAITING.headline]


async def test_a_webhook_tells_an_incident_that_is_over_at_once_in_one_message(
    webhook: SlackWebhook, slack: LocalSlack
) -> None:
    handle = await webhook.send(FINAL, None)
    assert await webhook.send(FINAL, handle) is handle
    assert len(slack.posted) == 1


async def test_a_webhook_that_was_removed_is_permanent(slack: LocalSlack) -> None:
    gone = slack.origin + "/services/T0/B0/secret-4711"
    with pytest.raises(PermanentError, match="HTTP 404") as caught:
        await SlackWebhook(gone).send(OPENED, None)
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
    for notifier in (SlackBot(TOKEN, "#incidents", slack.api_url), SlackWebhook(url)):
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
    said = await complaint(SlackWebhook(url), OPENED)
    assert "Slack: incoming webhook" in said
    assert "4711" not in said


async def complaint(notifier: Notifier, report: Report) -> str:
    """Return all that a traceback of the failure would show."""
    try:
        await notifier.send(report, None)
    except (TemporaryError, PermanentError) as error:
        return "".join(traceback.format_exception(error))
    return ""
