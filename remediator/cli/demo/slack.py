"""A Slack of our own on the loopback, for the demo and for tests.

It takes what Slack takes, refuses what Slack refuses (wrong token, unknown message, blocks that are
too long) and keeps the messages, so that they can be drawn or looked at. It can be told to fail.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from aiohttp import ClientSession, web

_LIMITS = {"header": 150, "section": 3_000}
_CONFIRM = {"title": 100, "text": 300, "confirm": 30, "deny": 30}


class Trouble(StrEnum):
    """What it can be told to do with a call; any other word is answered as Slack's error."""

    RATE_LIMIT = "429"
    """429 with Retry-After of ``LocalSlack.retry_after`` seconds; nothing is taken."""
    SERVER_ERROR = "500"
    HANG = "hang"
    """Never answer; nothing is taken."""
    DROP = "drop"
    """Take the message, then close the connection without an answer."""
    NONSENSE = "nonsense"
    """Answer 200 with a page that is no JSON."""


@dataclass
class SlackMessage:
    """One message as it stands now."""

    channel: str
    """The channel's id."""
    ts: str
    text: str
    blocks: list[dict[str, Any]]
    metadata: dict[str, Any] = field(default_factory=dict)
    thread_ts: str | None = None
    broadcast: bool = False
    """Whether a reply is shown in the channel as well."""
    edits: int = 0

    @property
    def lines(self) -> list[str]:
        """Everything that a reader sees, with Slack's entities decoded."""
        texts = [str(block.get("text", {}).get("text", "")) for block in self.blocks]
        return [_decoded(line) for text in texts or [self.text] for line in text.splitlines()]

    @property
    def buttons(self) -> dict[str, dict[str, Any]]:
        """What can be pressed, by its label."""
        elements = [one for block in self.blocks for one in block.get("elements", [])]
        return {_decoded(one["text"]["text"]): one for one in elements}


def sign(body: bytes, secret: str, at: float) -> dict[str, str]:
    """Return the headers that Slack sends with ``body`` at ``at``, in seconds since 1970."""
    signed = f"v0:{int(at)}:".encode() + body
    signature = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Slack-Request-Timestamp": str(int(at)),
        "X-Slack-Signature": f"v0={signature}",
    }


class LocalSlack:
    """Serves chat.postMessage, chat.update, one incoming webhook and the replies to clicks.

    An async context manager.
    """

    def __init__(self, token: str = "xoxb-local", channel: str = "#incidents") -> None:  # noqa: S107 - guards nothing
        """Keep the one token and the one channel that it knows."""
        self.token = token
        self.channel = channel
        self.channel_id = "C0LOCAL"
        self.messages: dict[tuple[str, str], SlackMessage] = {}
        """By (channel id, ts), in the order of posting."""
        self.signing_secret = "local-signing-secret"  # noqa: S105 - guards nothing
        self.told: list[str] = []
        """What was said to those who clicked, and to nobody else."""
        self.calls: list[str] = []
        """Names of the calls that arrived, those that failed included."""
        self.retry_after = 7
        self.origin = ""
        """``http://127.0.0.1:PORT``, once it listens."""
        self._numbers = itertools.count()
        self._troubles: deque[str] = deque()
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def api_url(self) -> str:
        """What a client takes for https://slack.com/api/."""
        return f"{self.origin}/api/"

    @property
    def webhook_url(self) -> str:
        """URL of the incoming webhook."""
        return f"{self.origin}/services/T0LOCAL/B0LOCAL/local-secret"

    @property
    def response_url(self) -> str:
        """Where replies to a click are taken."""
        return f"{self.origin}/actions/T0LOCAL/1/local-secret"

    def press(self, button: dict[str, Any], user: str) -> bytes:
        """Return what Slack posts when ``user`` presses ``button``; no two are the same."""
        payload = {
            "type": "block_actions",
            "user": {"id": user, "username": user.lower(), "team_id": "T0LOCAL"},
            "api_app_id": "A0LOCAL",
            "trigger_id": f"1.2.{next(self._numbers)}",
            "channel": {"id": self.channel_id, "name": self.channel},
            "response_url": self.response_url,
            "actions": [button | {"action_ts": f"{time.time():.6f}"}],
        }
        return urlencode({"payload": json.dumps(payload)}).encode()

    async def click(self, service: str, button: dict[str, Any], user: str) -> tuple[int, str]:
        """Press ``button`` as ``user``; return how the service at ``service`` answered."""
        body = self.press(button, user)
        return await self.send(service, body, sign(body, self.signing_secret, time.time()))

    async def send(self, service: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        """Post a click as it is; return status and text of the answer."""
        url = f"{service}/slack/interactions"
        async with (
            ClientSession() as session,
            session.post(url, data=body, headers=headers) as answer,
        ):
            return answer.status, await answer.text()

    def fail(self, *troubles: str) -> None:
        """Meet the next calls with these, one each: a ``Trouble``, a word of Slack's, or ``""`` for none."""
        self._troubles.extend(troubles)

    @property
    def posted(self) -> list[SlackMessage]:
        """Messages that the channel shows, without what is in the threads only."""
        return [m for m in self.messages.values() if m.thread_ts is None or m.broadcast]

    def replies(self, message: SlackMessage) -> list[SlackMessage]:
        """Messages in the thread of ``message`` only."""
        replies = (m for m in self.messages.values() if m.thread_ts == message.ts)
        return [reply for reply in replies if not reply.broadcast]

    async def wait_for(self, holds: Callable[[Self], bool], within: float) -> None:
        """Wait until ``holds`` is true after some change; ``TimeoutError`` after ``within`` s."""
        async with asyncio.timeout(within):
            while not holds(self):
                self._changed.clear()
                await self._changed.wait()

    async def __aenter__(self) -> Self:
        """Listen on a free port of the loopback."""
        app = web.Application()
        app.router.add_post("/api/chat.postMessage", self._api)
        app.router.add_post("/api/chat.update", self._api)
        app.router.add_post("/actions/T0LOCAL/1/local-secret", self._reply)
        app.router.add_post("/services/T0LOCAL/B0LOCAL/local-secret", self._hook)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.origin = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of callers that hang, and stop."""
        self._stopping.set()
        await self._runner.cleanup()

    async def _api(self, request: web.Request) -> web.StreamResponse:
        method = request.path.removeprefix("/api/")
        self.calls.append(method)
        trouble = self._troubles.popleft() if self._troubles else None
        refusal = await self._refusal(trouble)
        if refusal is not None:
            return refusal
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _error("invalid_auth")
        body = await request.json()
        answer = self._update(body) if method == "chat.update" else self._post(body)
        return _dropped(request) if trouble == Trouble.DROP else answer

    async def _hook(self, request: web.Request) -> web.StreamResponse:
        self.calls.append("webhook")
        trouble = self._troubles.popleft() if self._troubles else None
        refusal = await self._refusal(trouble)
        if refusal is not None:
            return refusal
        body = await request.json()
        problem = _problem(body)
        if problem:
            return web.Response(status=400, text=problem)
        self._keep(body, None)
        return _dropped(request) if trouble == Trouble.DROP else web.Response(text="ok")

    async def _reply(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("response_type") != "ephemeral" or _problem(body):
            return web.Response(status=400, text="invalid_payload")
        self.told.append(_decoded(body["text"]))
        self._changed.set()
        return web.Response(text="ok")

    async def _refusal(self, trouble: str | None) -> web.Response | None:
        match trouble:
            case None | "" | Trouble.DROP:
                return None
            case Trouble.RATE_LIMIT:
                headers = {"Retry-After": str(self.retry_after)}
                answer = {"ok": False, "error": "ratelimited"}
                return web.json_response(answer, status=429, headers=headers)
            case Trouble.SERVER_ERROR:
                return web.Response(status=500, text="<html>Server Error</html>")
            case Trouble.NONSENSE:
                return web.Response(text="Welcome to the airport's wireless network")
            case Trouble.HANG:
                await self._stopping.wait()
                return web.Response(status=503)
            case _:
                return _error(trouble)

    def _post(self, body: dict[str, Any]) -> web.Response:
        problem = _problem(body)
        if problem:
            return _error(problem)
        if body.get("channel") not in {self.channel, self.channel_id}:
            return _error("channel_not_found")
        message = self._keep(body, body.get("thread_ts"))
        return web.json_response({"ok": True, "channel": message.channel, "ts": message.ts})

    def _update(self, body: dict[str, Any]) -> web.Response:
        problem = _problem(body)
        if problem:
            return _error(problem)
        if body.get("channel") != self.channel_id:  # an edit wants the id, never the name
            return _error("channel_not_found")
        message = self.messages.get((self.channel_id, str(body.get("ts"))))
        if message is None:
            return _error("message_not_found")
        message.text, message.blocks = body.get("text", ""), body.get("blocks", [])
        message.metadata = body.get("metadata", message.metadata)
        message.edits += 1
        self._changed.set()
        return web.json_response({"ok": True, "channel": message.channel, "ts": message.ts})

    def _keep(self, body: dict[str, Any], thread_ts: str | None) -> SlackMessage:
        message = SlackMessage(
            channel=self.channel_id,
            ts=f"1700000000.{next(self._numbers):06d}",
            text=body.get("text", ""),
            blocks=body.get("blocks", []),
            metadata=body.get("metadata", {}),
            thread_ts=thread_ts,
            broadcast=bool(thread_ts and body.get("reply_broadcast")),
        )
        self.messages[message.channel, message.ts] = message
        self._changed.set()
        return message


def _problem(body: dict[str, Any]) -> str:
    """Return Slack's word for what is wrong with a message, or nothing."""
    blocks = body.get("blocks", [])
    rows = [block["elements"] for block in blocks if block["type"] == "actions"]
    if any(not 0 < len(row) <= 25 or any(_bad_button(one) for one in row) for row in rows):
        return "invalid_blocks"
    texts = [(b["type"], b["text"]["text"]) for b in blocks if b["type"] != "actions"]
    if len(blocks) > 50 or any(not 0 < len(t) <= _LIMITS.get(kind, 3_000) for kind, t in texts):
        return "invalid_blocks"
    if sum(len(text) for _, text in texts) > 11_000:
        return "msg_blocks_too_long"
    if len(body.get("text", "")) > 40_000:
        return "msg_too_long"
    return "" if blocks or body.get("text") else "no_text"


def _bad_button(button: dict[str, Any]) -> bool:
    sizes = (len(button["text"]["text"]), len(button["action_id"]))
    asks = button.get("confirm", {})
    if any(not 0 < len(asks[key]["text"]) <= limit for key, limit in _CONFIRM.items() if asks):
        return True
    return not 0 < sizes[0] <= 75 or not 0 < sizes[1] <= 255 or len(button["value"]) > 2_000


def _error(code: str) -> web.Response:
    return web.json_response({"ok": False, "error": code})


def _dropped(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _decoded(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
