"""Tells humans through Slack: a bot that edits its messages, or an incoming webhook.

Slack has no idempotency key: when the answer to a new message is lost, the next try makes a second
message. So nothing is retried in here and each call posts one new message at most; the caller keeps
where it is, and decides what to do about a failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import structlog
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.models.metadata import Metadata
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.webhook.async_client import AsyncWebhookClient

from remediator.model.errors import PermanentError, TemporaryError
from remediator.model.notification import Handle, Post, request_key
from remediator.model.views import ChatPlace, IncidentView, Report
from remediator.notify.slack_blocks import Message, draw, draw_detail, draw_report, draw_request

API_URL = "https://slack.com/api/"
EVENT_TYPE = "remediator_incident"
"""Message metadata by which an incident's message can be found."""
TIMEOUT = 8.0
"""Seconds for one call."""
_INCIDENT, _REPORT, _DETAIL = "incident", "report", "detail"
"""Keys of posts: the incident's own message, the whole report and the detail of a closed incident or,
of a webhook, its end."""
_WEBHOOK = "webhook"
"""The channel of a webhook's handle."""

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


@dataclass(frozen=True)
class _Draft:
    """One message as it should stand now."""

    key: str
    message: Message
    wanted: bool
    """Whether it is posted where there is none; else it is only edited."""
    threaded: bool = True
    broadcast: bool = False
    """Whether what is in the thread is shown in the channel as well."""

    @property
    def digest(self) -> str:
        """What tells whether an earlier one says the same."""
        said = [self.message.text, *(block.to_dict() for block in self.message.blocks)]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _requests(report: Report, mention: str, *, buttons: bool) -> Iterator[_Draft]:
    """Draft what asks people: a message of its own, because an edit of an old one wakes nobody."""
    for request in report.requests:
        message = draw_request(report, request, mention, buttons=buttons)
        key = request_key(request.id)
        yield _Draft(key, message, wanted=request.waits, broadcast=True)


class SlackBot:
    """Implements ``notification.Notifier`` with a bot token: one message an incident, edited in place.

    Requests for an approval are new messages in its thread, shown in the channel as well and edited
    once they are decided. The whole report is in the thread too, and the detail once it is closed.
    """

    def __init__(
        self,
        token: str,
        place: Callable[[IncidentView], ChatPlace],
        api_url: str = API_URL,
        *,
        timeout: float = TIMEOUT,
        buttons: bool = False,
    ) -> None:
        """Prepare; ``place`` says where an incident is told, ``timeout`` is seconds for one call.

        ``buttons`` says that somebody listens to what is pressed.
        """
        self._place = place
        self._buttons = buttons
        self._timeout = timeout
        self._client = AsyncWebClient(
            token=token, base_url=api_url, logger=_silent(), retry_handlers=[]
        )

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        """Post what is missing, one message a call, and edit what says something else by now."""
        drafts = self._drafts(report)
        if handle is None or not handle.message:
            return await self._begin(report, drafts[0])
        known = _known(handle)
        for draft in drafts:
            post = known.post(draft.key)
            if post is not None and post.digest != draft.digest and post.message:
                if await self._edit(draft, report, known.channel, post.message):
                    known = known.having(_post_of(draft, post.message))
                elif draft.threaded:
                    post = None
                else:
                    return await self._begin(report, draft)
            if post is None and draft.wanted:
                return await self._reply(draft, report, known)
        return known

    def channel(self, incident: IncidentView) -> str:
        """Name the channel that its place says."""
        return self._place(incident).channel

    async def call(self, report: Report) -> None:
        """Post a new message that mentions those who are to come."""
        place = self._place(report.incident)
        await self._post(draw(report, mention=place.mention), report, place.channel)

    def _drafts(self, report: Report) -> list[_Draft]:
        mention = self._place(report.incident).mention
        looked = bool(report.incident.findings)
        return [
            _Draft(_INCIDENT, draw(report), wanted=True, threaded=False),
            *_requests(report, mention, buttons=self._buttons),
            _Draft(_REPORT, draw_report(report), wanted=looked or report.final),
            _Draft(_DETAIL, draw_detail(report), wanted=report.final),
        ]

    async def _begin(self, report: Report, draft: _Draft) -> Handle:
        """Post the incident's own message; all others come into its thread."""
        channel = self._place(report.incident).channel
        channel, message = await self._post(draft.message, report, channel)
        handle = Handle(channel=channel, message=message, more=True)
        return handle.having(_post_of(draft, message))

    async def _reply(self, draft: _Draft, report: Report, handle: Handle) -> Handle:
        thread = {"thread_ts": handle.message, "reply_broadcast": draft.broadcast}
        _, message = await self._post(draft.message, report, handle.channel, **thread)
        detailed = handle.detailed or draft.key == _DETAIL
        more = handle.model_copy(update={"more": True, "detailed": detailed})
        return more.having(_post_of(draft, message))

    async def _edit(self, draft: _Draft, report: Report, channel: str, message: str) -> bool:
        """Edit the message; False when it cannot be edited any more."""
        try:
            async with _translated(self._timeout, "chat.update"):
                await self._client.chat_update(
                    channel=channel,
                    ts=message,
                    text=draft.message.text,
                    blocks=draft.message.blocks,
                    metadata=_metadata(report),
                    link_names=False,
                    parse="none",
                )
        except _MessageGone:
            return False
        return True

    async def _post(
        self, message: Message, report: Report, channel: str, **thread: Any
    ) -> tuple[str, str]:
        """Post a new message; return the channel's id and the message's timestamp."""
        async with _translated(self._timeout, "chat.postMessage"):
            answer = await self._client.chat_postMessage(
                channel=channel,
                text=message.text,
                blocks=message.blocks,
                metadata=_metadata(report),
                link_names=False,
                mrkdwn=False,
                parse="none",
                unfurl_links=False,
                unfurl_media=False,
                **thread,
            )
            there, ts = answer.get("channel"), answer.get("ts")
        if not (isinstance(there, str) and isinstance(ts, str)):
            raise PermanentError("Slack: chat.postMessage: the answer names no message")
        return there, ts


def _known(handle: Handle) -> Handle:
    """Return the handle with the posts that one of an earlier version does not name."""
    posts = {_INCIDENT: handle.message} | ({_DETAIL: ""} if handle.detailed else {})
    known = handle.model_copy(update={"more": False})
    for key, message in posts.items():
        if known.post(key) is None:
            known = known.having(Post(key=key, message=message, digest=""))
    return known


def _post_of(draft: _Draft, message: str) -> Post:
    return Post(key=draft.key, message=message, digest=draft.digest)


class SlackWebhook:
    """Implements ``notification.Notifier`` with an incoming webhook, whose messages cannot be edited.

    One message at the start, one at the end, and in between one for each request for an approval.
    """

    def __init__(
        self,
        url: str,
        place: Callable[[IncidentView], ChatPlace],
        *,
        timeout: float = TIMEOUT,
        buttons: bool = False,
    ) -> None:
        """Keep the ``url``, which is a secret; ``place`` says whom a message mentions.

        ``buttons`` says that somebody listens to what is pressed; they stay on the message.
        """
        self._timeout = timeout
        self._place = place
        self._buttons = buttons
        self._client = AsyncWebhookClient(url, logger=_silent(), retry_handlers=[])

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        """Post the first message that is missing."""
        known = handle if handle is not None and handle.channel == _WEBHOOK else None
        begun, ended = known is not None, known is not None and known.detailed
        mention = self._place(report.incident).mention
        drafts = [
            _Draft(_INCIDENT, draw(report), wanted=not begun and not report.final),
            *_requests(report, mention, buttons=self._buttons),
            _Draft(_DETAIL, draw(report), wanted=report.final and not ended),
        ]
        known = known or Handle(channel=_WEBHOOK, message="")
        for draft in drafts:
            if draft.wanted and known.post(draft.key) is None:
                await self._post(draft.message, report)
                told = {"more": True, "detailed": known.detailed or draft.key == _DETAIL}
                return known.model_copy(update=told).having(_post_of(draft, ""))
        return known.model_copy(update={"more": False})

    def channel(self, incident: IncidentView) -> str:
        """A webhook has one channel, whatever it is called."""
        return _WEBHOOK

    async def call(self, report: Report) -> None:
        """Post a new message that mentions those who are to come."""
        await self._post(draw(report, mention=self._place(report.incident).mention), report)

    async def _post(self, message: Message, report: Report) -> None:
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
