"""Tells humans through Slack: a bot that edits one message an incident, or an incoming webhook.

Slack has no idempotency key: when the answer to a new message is lost, the next try makes a second
message. So nothing is retried in here; the caller decides, with the reason in its hand.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import structlog
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.models.metadata import Metadata
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.webhook.async_client import AsyncWebhookClient
from yarl import URL

from remediator.adapters.slack_blocks import Message, draw, draw_detail, draw_reply
from remediator.errors import PermanentError, TemporaryError
from remediator.ports import Handle
from remediator.views import Report

API_URL = "https://slack.com/api/"
HOOKS_HOST = "hooks.slack.com"
"""Where Slack takes replies to a click."""
EVENT_TYPE = "remediator_incident"
"""Message metadata by which an incident's message can be found."""
TIMEOUT = 8.0
"""Seconds for one call; one report takes three at most."""

_TOKEN = "check the bot token, and that the app is still installed"  # noqa: S105 - advice
_CHANNEL = "check slack.channel, and invite the bot to the channel"
_CURES = {
    "invalid_auth": _TOKEN,
    "not_authed": _TOKEN,
    "account_inactive": _TOKEN,
    "token_revoked": _TOKEN,
    "token_expired": _TOKEN,
    "missing_scope": "give the app the scope chat:write and install it again",
    "not_allowed_token_type": "use a bot token (xoxb-)",
    "channel_not_found": _CHANNEL,
    "not_in_channel": _CHANNEL,
    "is_archived": "the channel is archived; set slack.channel to another one",
    "no_service": "the webhook was removed; make a new one and set slack.webhook_url_file",
    "no_active_hooks": "the webhook was removed; make a new one and set slack.webhook_url_file",
    "invalid_token": "the webhook was removed; make a new one and set slack.webhook_url_file",
}
_LATER = frozenset(
    {
        "fatal_error",
        "internal_error",
        "ratelimited",
        "rate_limited",
        "request_timeout",
        "rollup_error",
        "service_unavailable",
        "team_added_to_org",
    }
)
_GONE = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})
"""Answers to an edit after which only a new message can help."""

_log = structlog.get_logger(__name__)


class SlackBot:
    """Implements ``ports.Notifier`` with a bot token: post once, edit, detail in the thread."""

    def __init__(
        self,
        token: str,
        channel: str,
        api_url: str = API_URL,
        *,
        timeout: float = TIMEOUT,
        buttons: bool = False,
    ) -> None:
        """Prepare for one channel, by name or id; ``timeout`` is seconds for one call.

        ``buttons`` says that somebody listens to what is pressed.
        """
        self._channel = channel
        self._buttons = buttons
        self._timeout = timeout
        self._client = AsyncWebClient(
            token=token, base_url=api_url, logger=_silent(), retry_handlers=[]
        )

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        """Post ``report`` or edit its message; a final one gets its detail, once.

        When the detail fails after a new message, the handle is returned with
        ``detailed=False``: send again with it, rather than without it.
        """
        posted = await self._edit(report, handle) if handle and handle.message else None
        if posted is not None:
            return await self._detail(report, posted)
        posted = await self._post(draw(report, buttons=self._buttons), report, None)
        try:
            return await self._detail(report, posted)
        except TemporaryError as error:  # raising would lose the handle and post a second message
            _log.warning("slack_detail_failed", incident_id=report.incident.id, reason=str(error))
            return posted

    async def _edit(self, report: Report, handle: Handle) -> Handle | None:
        """Edit the message; None when it cannot be edited any more."""
        message = draw(report, buttons=self._buttons)
        try:
            async with _translated(self._timeout, "chat.update"):
                await self._client.chat_update(
                    channel=handle.channel,
                    ts=handle.message,
                    text=message.text,
                    blocks=message.blocks,
                    metadata=_metadata(report),
                    link_names=False,
                    parse="none",
                )
        except _MessageGone:
            return None
        return handle

    async def _post(self, message: Message, report: Report, thread: Handle | None) -> Handle:
        async with _translated(self._timeout, "chat.postMessage"):
            answer = await self._client.chat_postMessage(
                channel=thread.channel if thread else self._channel,
                thread_ts=thread.message if thread else None,
                text=message.text,
                blocks=message.blocks,
                metadata=_metadata(report),
                link_names=False,
                mrkdwn=False,
                parse="none",
                unfurl_links=False,
                unfurl_media=False,
            )
            channel, ts = answer.get("channel"), answer.get("ts")
        if not (isinstance(channel, str) and isinstance(ts, str)):
            raise PermanentError("Slack: chat.postMessage: the answer names no message")
        return Handle(channel=channel, message=ts)

    async def _detail(self, report: Report, handle: Handle) -> Handle:
        if not report.final or handle.detailed:
            return handle
        await self._post(draw_detail(report), report, handle)
        return handle.model_copy(update={"detailed": True})


class SlackWebhook:
    """Implements ``ports.Notifier`` with an incoming webhook, whose messages cannot be edited.

    One message at the start, one at the end, and in between only one that asks a human for an
    approval; ``Handle.detailed`` says that the one at the end was sent, ``Handle.message`` that
    a human was asked.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT, buttons: bool = False) -> None:
        """Keep the ``url``, which is a secret; ``timeout`` is seconds for one call.

        ``buttons`` says that somebody listens to what is pressed; they stay on the message.
        """
        self._timeout = timeout
        self._buttons = buttons
        self._client = AsyncWebhookClient(url, logger=_silent(), retry_handlers=[])

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        """Post ``report`` when it is the first or the final one, or asks for a human."""
        asked = handle.message if handle is not None else ""
        asks = report.urgent and not asked
        if handle is not None and (handle.detailed or not (report.final or asks)):
            return handle
        message = draw(report, buttons=self._buttons)
        async with _translated(self._timeout, "incoming webhook"):
            answer = await self._client.send(
                text=message.text,
                blocks=message.blocks,
                metadata=_metadata(report).to_dict(),
                unfurl_links=False,
                unfurl_media=False,
            )
        if answer.status_code != 200:
            _refuse("incoming webhook", answer.status_code, answer.body, answer.headers)
        said = "asked" if report.urgent else asked
        return Handle(channel="webhook", message=said, detailed=report.final)


class SlackReplies:
    """Says something to the one person who clicked, at the address that came with the click.

    That address is Slack's word only as far as the signing secret is kept, so nothing is ever
    sent anywhere but to Slack itself, and no redirection is followed.
    """

    def __init__(self, api_url: str = API_URL, *, timeout: float = TIMEOUT) -> None:
        """Reply to Slack's hosts and that of ``api_url``; ``timeout`` is seconds for one call."""
        self._api = URL(api_url)
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    def draw(self, text: str) -> dict[str, Any]:
        """Return the message, visible to the one person only."""
        message = draw_reply(text)
        blocks = [block.to_dict() for block in message.blocks]
        shown = {"response_type": "ephemeral", "replace_original": False}
        return {**shown, "text": message.text, "blocks": blocks}

    def reaches(self, url: str) -> bool:
        """Whether ``url`` is at Slack, or where the API is configured to be."""
        try:
            asked = URL(url)
            if asked.user is not None or asked.password is not None:
                return False
            if asked.absolute and asked.origin() == self._api.origin():
                return True
        except ValueError:
            return False
        hosts = {HOOKS_HOST, f"hooks.{self._api.host}"}
        return asked.scheme == "https" and asked.host in hosts and asked.port == 443

    async def tell(self, url: str, text: str) -> None:
        """Send ``text``; what goes wrong is logged, without the address, which is a secret."""
        if not self.reaches(url):
            _log.warning("slack_reply_not_sent", reason="the address is not Slack's")
            return
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.post(url, json=self.draw(text), allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    _log.warning("slack_reply_failed", status=answer.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _log.warning("slack_reply_failed", reason=type(error).__name__)


class _MessageGone(PermanentError):
    """The message that should be edited cannot be edited any more."""


@asynccontextmanager
async def _translated(seconds: float, call: str) -> AsyncIterator[None]:
    """Turn what slack-sdk and aiohttp raise into our errors.

    ``from None``, because their texts can hold the webhook's URL, which is a secret.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except SlackApiError as error:
        _refuse_api(call, error)
    except TimeoutError:
        raise TemporaryError(f"Slack: {call}: no answer within {seconds:g} s") from None
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise PermanentError(f"Slack: {call}: its url is no http url; correct it") from None
    except (aiohttp.ClientError, OSError) as error:
        reason = f"cannot be reached ({type(error).__name__})"
        raise TemporaryError(f"Slack: {call}: {reason}") from None
    except (SlackClientError, ValueError, AttributeError):  # slack-sdk trips over other JSON, text
        raise TemporaryError(f"Slack: {call}: the answer cannot be read") from None


def _refuse_api(call: str, error: SlackApiError) -> None:
    """Raise what fits to an answer that says no."""
    answer = error.response
    status: int = getattr(answer, "status_code", 0) or getattr(answer, "status", 0)
    data = getattr(answer, "data", None)
    code = data.get("error") if isinstance(data, dict) else None
    _refuse(call, status, str(code or ""), getattr(answer, "headers", {}))


def _refuse(call: str, status: int, code: str, headers: Mapping[str, Any]) -> None:
    """Raise what fits to a status and Slack's word for what is wrong."""
    code = code if re.fullmatch(r"[a-z0-9_]{1,60}", code) else ""
    said = f"Slack: {call}: HTTP {status}" + (f", {code}" if code else "")
    if status == 429 or status >= 500 or code in _LATER:
        raise TemporaryError(said, _seconds(headers)) from None
    if code in _GONE:
        raise _MessageGone(said) from None
    if not code and status < 400:
        raise TemporaryError(f"{said}: the answer cannot be read") from None
    cure = _CURES.get(code, "see Slack's documentation of this error")
    raise PermanentError(f"{said}: {cure}") from None


def _seconds(headers: Mapping[str, Any]) -> float | None:
    value = next((v for k, v in headers.items() if k.lower() == "retry-after"), None)
    return float(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}", value) else None


def _metadata(report: Report) -> Metadata:
    return Metadata(event_type=EVENT_TYPE, event_payload={"incident_id": report.incident.id})


def _silent() -> logging.Logger:
    """Return a logger of slack-sdk's own that says nothing: at debug it logs webhook URLs."""
    return logging.Logger("slack-sdk", logging.CRITICAL + 1)  # noqa: LOG001 - not in the tree
