"""Speaks to one HTTP service of the catalogue, and to nothing else.

Reader and writer are two classes, for two tokens: the reader has no way to change anything.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from remediator.backends.http.tls import shared_context
from remediator.model.errors import BackendRefused, BackendUnavailable, ConfigError
from remediator.model.finding import Sense, SenseState
from remediator.model.readings import Point

MAX_BYTES = 1 << 20
LONGEST_LINE = 1 << 14
"""Characters of one line of metrics; the parser's time grows with the square of a line."""
_METRICS = {"Accept": "text/plain;version=0.0.4"}
_LATER = frozenset({408, 425, 429})
"""Client errors that another try may cure."""
_TIMED_OUT = 408


class HttpEndpoint:
    """Implements ``ports.Endpoint``. Use it as an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "http",
        token: str | None = None,
        timeout: float = 4.0,
        max_bytes: int = MAX_BYTES,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Keep the base ``url``; ``timeout`` is seconds for one whole read, body included.

        ``now`` is the time of samples that have none of their own.

        Raises ``ConfigError`` for a URL that is not plain http(s) or that holds credentials.
        """
        self._url = base_url(url, name)
        self._name = name
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._now = now
        # identity: a small compressed body can unpack to more than the limit
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.AsyncClient(
            headers=headers, timeout=timeout, follow_redirects=False, verify=shared_context()
        )

    async def __aenter__(self) -> Self:
        """Open the pool of connections."""
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection."""
        await self._client.__aexit__(kind, error, traceback)

    async def probe(self) -> Sense:
        """Say whether the host answers HTTP at all; any status will do."""
        try:
            async with self._answer(self._request(self._url)):
                return Sense(name=self._name, state=SenseState.OK)
        except BackendUnavailable as error:
            return Sense(name=self._name, state=SenseState.IMPAIRED, reason=str(error))

    async def get_json(self, path: str, params: dict[str, str] | None = None) -> Any:
        """GET ``path`` below the base URL; ``BackendRefused`` for a path that would leave it."""
        return self._decode(await self._get(path, params))

    async def get_samples(self, path: str) -> tuple[Point, ...]:
        """GET ``path`` as Prometheus text, with the same bounds; at least one finite sample.

        Metrics keep the names that they are written with. NaN and infinite values are left out.
        """
        body = await self._get(path, headers=_METRICS)
        try:
            points = await asyncio.to_thread(_samples, body, self._now())
        except (ValueError, OverflowError, LookupError, OSError) as error:
            raise BackendUnavailable(f"{self._where}: {path} is not Prometheus text") from error
        if not points:
            raise BackendUnavailable(f"{self._where}: {path} has no samples")
        return points

    @property
    def _where(self) -> str:
        return f"{self._name} ({self._url})"

    def _below(self, path: str) -> str:
        problem = _leaves(path)
        if problem:
            raise BackendRefused(f"{self._where}: path {path[:100]!r} refused: {problem}")
        return f"{self._url}/{path.removeprefix('/')}"

    async def _get(
        self,
        path: str,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        request = self._request(self._below(path), params, headers)
        async with self._answer(request) as response:
            self._check_status(response)
            return await self._read(response)

    def _request(
        self,
        url: str,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Request:
        try:
            return self._client.build_request("GET", url, params=params, headers=headers)
        except httpx.InvalidURL as error:
            raise BackendRefused(f"{self._where}: the path makes no url") from error

    @asynccontextmanager
    async def _answer(self, request: httpx.Request) -> AsyncIterator[httpx.Response]:
        """Hold one answer open, within the timeout; httpx's own bounds single reads only."""
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._send(request)
                try:
                    yield response
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            reason = f"no full answer within {self._timeout:g} s"
            raise BackendUnavailable(f"{self._where}: {reason}") from None
        except httpx.HTTPError as error:
            reason = f"cannot be reached ({type(error).__name__})"
            raise BackendUnavailable(f"{self._where}: {reason}") from error

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._client.send(request, stream=True)
        except httpx.ConnectError:  # nothing was sent yet: the one failure that is safe to repeat
            return await self._client.send(request, stream=True)

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if response.is_success:
            return
        if status in _LATER or response.is_server_error:
            raise BackendUnavailable(
                f"{self._where}: HTTP {status}", seconds_of(response.headers.get("Retry-After"))
            )
        if status in {401, 403}:
            raise BackendRefused(f"{self._where}: HTTP {status}: check its token and its rights")
        if response.is_redirect:
            raise BackendRefused(
                f"{self._where}: HTTP {status}: redirects are not followed; correct the url"
            )
        raise BackendRefused(f"{self._where}: HTTP {status} for {response.url.path}")

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self._max_bytes:
                raise BackendUnavailable(
                    f"{self._where}: the answer is larger than {self._max_bytes} bytes"
                )
        return bytes(body)

    def _decode(self, body: bytes) -> Any:
        try:
            return json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise BackendUnavailable(f"{self._where}: the answer is not JSON") from error


class AnswerLost(BackendUnavailable):
    """A change was sent, and whether it was made is not known. It must not be sent again."""


class HttpWriter(HttpEndpoint):
    """Changes things by POST, with a token of its own. Nothing is ever sent twice."""

    async def post(self, path: str, body: Any = None) -> None:
        """POST ``path`` with ``body`` as JSON once; a 2xx status or an error.

        Raises ``BackendRefused`` when the service said no, ``AnswerLost`` when it may have done
        it, and plain ``BackendUnavailable`` when it surely did not.
        """
        request = self._client.build_request("POST", self._below(path), json=body)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.send(request, stream=True)
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            reason = f"cannot be reached ({type(error).__name__}), nothing was sent"
            raise BackendUnavailable(f"{self._where}: {reason}") from error
        except (TimeoutError, httpx.HTTPError) as error:
            reason = f"the answer was lost ({type(error).__name__})"
            raise AnswerLost(f"{self._where}: {reason}") from error
        if response.is_server_error or response.is_redirect or response.status_code == _TIMED_OUT:
            reason = f"HTTP {response.status_code} does not say whether it was done"
            raise AnswerLost(f"{self._where}: {reason}")
        self._check_status(response)


def _leaves(path: str) -> str:
    """Say why ``path`` could lead away from the base URL, or nothing."""
    plain, before = path, ""
    while plain != before:  # servers and proxies may decode more than once
        plain, before = unquote(plain), plain
    if not plain.isprintable() or "\\" in plain:
        return "it holds backslashes or control characters"
    if plain.startswith("//") or ":" in plain.partition("/")[0]:
        return "it names a host"
    if "?" in path or "#" in path:
        return "give a query as parameters"
    if any(segment.partition(";")[0] in {".", ".."} for segment in plain.split("/")):
        return "it climbs with dots"
    return ""


def seconds_of(header: str | None) -> float | None:
    """Return how long a server asks us to wait, an hour at most."""
    if not header or re.fullmatch(r"[0-9]{1,9}", header) is None:
        return None
    return float(min(int(header), 3600))


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _samples(body: bytes, now: datetime) -> tuple[Point, ...]:
    """Parse Prometheus text; ``now`` is the time of samples without one.

    Comments are cut off first: by a metric's type the parser would rename its samples.
    """
    lines = [line.strip() for line in body.decode().split("\n")]
    if any(len(line) > LONGEST_LINE for line in lines):
        raise ValueError(f"a line is longer than {LONGEST_LINE} characters")
    text = "\n".join(line for line in lines if not line.startswith("#"))
    return tuple(
        Point(
            labels={**sample.labels, "__name__": sample.name},
            at=now if sample.timestamp is None else _at(float(sample.timestamp)),
            value=float(sample.value),
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if math.isfinite(sample.value)
    )


def _at(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)


def base_url(url: str, where: str) -> str:
    """Return ``url`` without its trailing slash, safe to be shown.

    Raises ``ConfigError`` unless it is plain http or https with a host, without credentials,
    query or fragment. The error never repeats the URL, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # a port that is no number shows only when asked for
    except ValueError as error:
        raise ConfigError(f"{where}: the url cannot be read; write http://host:port") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{where}: the url holds credentials; put them in a file of their own")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"{where}: the url must be http:// or https:// with a host")
    if parts.query or parts.fragment:
        raise ConfigError(f"{where}: the url must have neither a query nor a fragment")
    return url.rstrip("/")
