"""Reads one Prometheus (or what speaks its API) through prometheus-api-client.

Data that is missing, partial or no number is an error here, so that no caller can take it for a
good sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import requests
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.util.retry import Retry

from remediator.backends.http.client import base_url
from remediator.backends.threads import BlockingCalls
from remediator.model.errors import BackendUnavailable, ConfigError, NoData
from remediator.model.finding import Sense, SenseState
from remediator.model.readings import Point

STALE_AFTER = 3
"""Scrape intervals without a new sample after which Prometheus is not believed."""
_INFO = "PromQL info:"
"""How Prometheus 2.48 and later mark remarks on a query among the warnings."""


@dataclass(frozen=True)
class PrometheusServer:
    """How one Prometheus is reached. A URL with credentials in it is a ``ConfigError``."""

    url: str
    name: str = "prometheus"
    token: str | None = field(default=None, repr=False)
    """Bearer token."""
    basic: tuple[str, str] | None = field(default=None, repr=False)
    """User name and password."""
    timeout: float = 4.0
    """Seconds for one query, the wait for a free thread included."""
    threads: int = 4
    scrape_interval: timedelta = timedelta(seconds=60)

    def __post_init__(self) -> None:
        """Check what can be checked without asking it."""
        object.__setattr__(self, "url", base_url(self.url, self.name))
        if self.token and self.basic:
            raise ConfigError(f"{self.name}: give a token or a user name and password, not both")


class PrometheusMetrics:
    """Implements ``ports.Metrics``. Use it as an async context manager."""

    def __init__(
        self,
        server: PrometheusServer,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare the client; ``now`` is the clock that samples' ages are measured by."""
        self._server = server
        self._now = now
        self._calls = BlockingCalls(self._where, server.threads)
        session = requests.Session()
        session.hooks["response"].append(self._check_response)
        options: dict[str, Any] = {  # its annotations are narrower than what it takes
            "auth": _auth(server),
            "timeout": server.timeout,
            "retry": Retry(total=0),
        }
        self._client = PrometheusConnect(server.url, session=session, **options)

    async def __aenter__(self) -> Self:
        """Nothing is opened: connections are made when they are needed."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close idle connections; a query that still hangs is left to its daemon thread."""
        self._client.close()

    async def probe(self) -> Sense:
        """Trust it when ``up`` has samples and the newest is fresh by our own clock."""
        try:
            series = await self.scalar("count(up)")
            newest = await self.scalar("max(timestamp(up))")
        except BackendUnavailable as error:
            return self._sense(str(error))
        age = self._now().timestamp() - newest
        bound = STALE_AFTER * self._server.scrape_interval.total_seconds()
        if age > bound:
            return self._sense(f"the newest of {series:g} `up` samples is {age:.0f} s old")
        if age < -bound:
            return self._sense(f"its clock is {-age:.0f} s ahead of ours")
        return self._sense("")

    async def instant(self, query: str) -> tuple[Point, ...]:
        """Evaluate ``query`` now; every point is a finite number."""
        result = await self._ask(lambda: self._client.custom_query(query))
        return self._points(query, _vector(result))

    async def scalar(self, query: str) -> float:
        """Evaluate ``query`` now and require exactly one point."""
        points = await self.instant(query)
        if len(points) != 1:
            raise BackendUnavailable(
                f"{self._where}: {len(points)} series where one was expected: {query[:200]}"
            )
        return points[0].value

    async def range(
        self, query: str, *, start: datetime, end: datetime, step: timedelta
    ) -> tuple[Point, ...]:
        """Evaluate ``query`` over a time; at least one point."""
        width = f"{step.total_seconds():g}"
        exact = {"start": start.timestamp(), "end": end.timestamp()}  # it would round to seconds
        result = await self._ask(
            lambda: self._client.custom_query_range(query, start, end, width, params=exact)
        )
        return self._points(query, _matrix(result))

    @property
    def _where(self) -> str:
        return f"{self._server.name} ({self._server.url})"

    def _sense(self, reason: str) -> Sense:
        state = SenseState.IMPAIRED if reason else SenseState.OK
        return Sense(name=self._server.name, state=state, reason=reason)

    async def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return await self._calls.run(call, self._server.timeout)
        except requests.Timeout as error:
            raise BackendUnavailable(
                f"{self._where}: no answer within {self._server.timeout:g} s"
            ) from error
        except requests.RequestException as error:
            raise BackendUnavailable(
                f"{self._where}: cannot be reached ({type(error).__name__})"
            ) from error
        except (PrometheusApiClientException, LookupError, TypeError, ValueError) as error:
            raise BackendUnavailable(f"{self._where}: the answer cannot be read") from error

    def _check_response(self, response: requests.Response, **_: Any) -> None:
        """Look at the whole answer, of which the client hands over the result only."""
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            answer = None
        if response.status_code != requests.codes.ok:
            raise BackendUnavailable(f"{self._where}: {_refusal(response.status_code, answer)}")
        if not isinstance(answer, dict) or answer.get("status") != "success":
            raise BackendUnavailable(f"{self._where}: answered 200 without a result; is this it?")
        ranged = urlsplit(response.url).path.endswith("/query_range")
        self._check_answer(answer, "matrix" if ranged else "vector")

    def _check_answer(self, answer: dict[str, Any], expected: str) -> None:
        warnings = [str(w) for w in answer.get("warnings") or () if not str(w).startswith(_INFO)]
        if warnings:
            raise BackendUnavailable(
                f"{self._where}: the data may be partial: {'; '.join(warnings)[:300]}"
            )
        data = answer.get("data")
        kind = data.get("resultType") if isinstance(data, dict) else None
        if kind not in {expected, "scalar" if expected == "vector" else expected}:
            raise BackendUnavailable(f"{self._where}: answered a {kind}, not a {expected}")

    def _points(self, query: str, samples: Iterable[tuple[Any, Any, Any]]) -> tuple[Point, ...]:
        try:
            points = tuple(_point(*sample) for sample in samples)
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise BackendUnavailable(
                f"{self._where}: a sample cannot be read: {query[:200]}"
            ) from error
        if not points:
            raise NoData(f"{self._where}: no data for {query[:200]}")
        if not all(math.isfinite(point.value) for point in points):
            raise NoData(f"{self._where}: NaN or infinite, so no data: {query[:200]}")
        return points


class _Bearer(AuthBase):
    """A bearer token that a netrc file does not override, unlike one in plain headers."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _auth(server: PrometheusServer) -> AuthBase | None:
    if server.token:
        return _Bearer(server.token)
    return HTTPBasicAuth(*server.basic) if server.basic else None


def _refusal(status: int, answer: object) -> str:
    if status in {401, 403}:
        return f"HTTP {status}: check its token or password"
    if status in range(300, 400):
        return f"HTTP {status}: redirects are not followed; correct the url"
    detail = answer.get("error") if isinstance(answer, dict) else None
    return f"HTTP {status}" + (f": {str(detail)[:300]}" if detail else "")


def _vector(result: Any) -> Iterable[tuple[Any, Any, Any]]:
    """Yield labels, time and value of a vector, or of a scalar as a vector of one."""
    if isinstance(result, list) and result and not isinstance(result[0], dict):
        result = [{"metric": {}, "value": result}]
    for series in result:
        yield series["metric"], *series["value"]


def _matrix(result: Any) -> Iterable[tuple[Any, Any, Any]]:
    for series in result:
        for at, value in series["values"]:
            yield series["metric"], at, value


def _point(labels: Any, at: Any, value: Any) -> Point:
    return Point(labels=labels, at=datetime.fromtimestamp(at, UTC), value=float(value))
