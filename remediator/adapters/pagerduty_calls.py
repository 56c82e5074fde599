"""One call to PagerDuty, and what its answer means for whoever made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

from remediator.adapters.http import seconds_of
from remediator.errors import PermanentError, TemporaryError
from remediator.redaction import redact_text

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
