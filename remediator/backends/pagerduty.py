"""Reads an incident's alerts from PagerDuty's REST API, within the rate that it allows."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from remediator.backends.http.client import HttpEndpoint, seconds_of
from remediator.model.errors import (
    BackendRefused,
    BackendUnavailable,
    ConfigError,
    PermanentError,
    TemporaryError,
)
from remediator.model.redact import redact_text

MAX_BYTES = 8 << 20
"""Bytes of one page."""
PAGE = 100
PAGES = 2
"""Pages of one incident, at most."""
READ_TIMEOUT = 5.0
"""Seconds for one page."""
A_MINUTE = 900
"""Calls a minute at most; PagerDuty allows 960 a key, and others may use it too."""
_ACCEPT = "application/vnd.pagerduty+json;version=2"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class PagerDutyReader(HttpEndpoint):
    """Reads incidents. Use it as an async context manager."""

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        *,
        timeout: float = READ_TIMEOUT,
        a_minute: float = A_MINUTE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the base ``url``; ``token`` returns the REST API token that is live now.

        Raises ``ConfigError`` for a URL that is not plain http(s) or that holds credentials.
        """
        super().__init__(url, name="pagerduty", timeout=timeout, max_bytes=MAX_BYTES)
        self._token = token
        self._pause = 60.0 / a_minute
        self._monotonic = monotonic
        self._next = 0.0
        """When the next call may be made."""
        self._held_until = 0.0
        """When PagerDuty, which limited us, wants to hear of us again."""

    async def alerts(self, incident: str) -> tuple[Any, ...]:
        """Return the alerts of ``incident``, as the API lists them; 200 at most.

        Raises ``BackendUnavailable``, with ``retry_after`` where the API limits us, and
        ``BackendRefused``.
        """
        if not _ID.fullmatch(incident):
            raise BackendRefused(f"{self._where}: {incident[:100]!r} is no id of an incident")
        found: list[Any] = []
        for page in range(PAGES):
            answer = await self._page(incident, page * PAGE)
            listed = answer.get("alerts") if isinstance(answer, dict) else None
            if not isinstance(listed, list):
                raise BackendUnavailable(f"{self._where}: the answer has no list of alerts")
            found += listed
            if answer.get("more") is not True or not listed:
                break
        return tuple(found)

    async def _page(self, incident: str, offset: int) -> Any:
        await self._turn()
        asked = {"limit": str(PAGE), "offset": str(offset)}
        try:
            headers = {"Accept": _ACCEPT, "Authorization": f"Token token={self._token()}"}
        except ConfigError as error:
            raise BackendUnavailable(f"{self._where}: {error}") from None
        try:
            body = await self._get(f"/incidents/{incident}/alerts", asked, headers)
        except BackendUnavailable as error:
            if error.retry_after is not None:
                self._held_until = self._monotonic() + error.retry_after
            raise
        return self._decode(body)

    async def _turn(self) -> None:
        """Wait for this call's turn, so that a storm stays below the rate."""
        now = self._monotonic()
        if now < self._held_until:
            wait = self._held_until - now
            raise BackendUnavailable(f"{self._where}: limited for {wait:.0f} s more", wait)
        mine = max(now, self._next)
        self._next = mine + self._pause
        await asyncio.sleep(mine - now)


TIMEOUT = 10.0
"""Seconds for one call."""
_MOST = 512 * 1024
"""Bytes of an answer that are read; more is no answer of PagerDuty's."""
_SAID = 300
"""Characters of PagerDuty's own words that are repeated."""


async def call(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    what: str,
    *,
    body: Mapping[str, Any] | None = None,
    secret: str = "",
) -> Any:
    """Make one call and return the JSON of its 2xx answer; None where it has none.

    ``TemporaryError`` for 429 (with its seconds), 5xx and no answer; ``PermanentError`` with
    PagerDuty's words for every other answer. ``secret`` is masked, should it be repeated there.
    """
    try:
        async with client.stream(method, url, json=body) as answer:
            content = await _content(answer, what)
    except httpx.InvalidURL:
        raise PermanentError(f"PagerDuty: {what}: its url is no http url; correct it") from None
    except (httpx.HTTPError, OSError) as error:
        reason = f"cannot be reached ({type(error).__name__})"
        raise TemporaryError(f"PagerDuty: {what}: {reason}") from None
    status = answer.status_code
    if answer.is_success:
        return _json(content)
    said = f"PagerDuty: {what}: HTTP {status}"
    if status in {408, 429} or status >= 500:
        raise TemporaryError(said, _seconds(answer.headers))
    words = _words(content)
    if secret:
        words = words.replace(secret, "***")
    raise PermanentError(f"{said}: {redact_text(words)[:_SAID] or _CURES.get(status, 'no reason')}")


_CURES = {
    401: "check the token or key",
    403: "the token or key lacks the right",
    404: "there is no such thing in this account",
}


async def _content(answer: httpx.Response, what: str) -> bytes:
    content = b""
    async for chunk in answer.aiter_bytes():
        content += chunk
        if len(content) > _MOST:
            raise TemporaryError(f"PagerDuty: {what}: the answer is too long")
    return content


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _words(content: bytes) -> str:
    """Return what PagerDuty says is wrong: the Events API and REST write it differently."""
    told = _json(content)
    if not isinstance(told, dict):
        return ""
    inner = told.get("error")
    if isinstance(inner, dict):
        told = inner
    errors = told.get("errors")
    listed = errors if isinstance(errors, list) else [errors]
    words = [told.get("message"), *listed[:5], inner]
    return ": ".join(word.strip() for word in words if isinstance(word, str) and word.strip())


def _seconds(headers: httpx.Headers) -> float | None:
    """Return how long PagerDuty asks us to wait, an hour at most."""
    for name in ("retry-after", "ratelimit-reset"):
        found = seconds_of(headers.get(name))
        if found is not None:
            return found
    return None
