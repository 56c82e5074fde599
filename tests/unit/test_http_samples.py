"""HttpEndpoint.get_samples reads Prometheus text as it is written, or says that it cannot."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import respx
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from remediator.backends.http.client import HttpEndpoint
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.ports import Endpoint
from remediator.model.readings import Point
from tests.scripted_http import serving

BASE = "http://orders.internal:8080"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
async def endpoint() -> AsyncIterator[HttpEndpoint]:
    async with HttpEndpoint(BASE, name="orders-admin", token="t", now=lambda: NOW) as opened:
        yield opened


@pytest.fixture
def backend() -> Any:
    with respx.mock(assert_all_called=False) as router:
        yield router


async def read(endpoint: Endpoint, backend: respx.Router, body: bytes | str) -> tuple[Point, ...]:
    content = body.encode() if isinstance(body, str) else body
    backend.get(f"{BASE}/metrics").respond(content=content)
    return await endpoint.get_samples("/metrics")


async def test_what_a_real_registry_writes_is_read(
    endpoint: HttpEndpoint, backend: respx.Router
) -> None:
    registry = CollectorRegistry()
    Gauge("latency_p95", "In ms.", ["pair"], registry=registry).labels('BTC"\\USDT\n').set(18.5)
    Counter("http_requests", "Served.", registry=registry).inc(3)
    Histogram("latency", "In s.", buckets=(0.1, 1), registry=registry).observe(0.5)
    points = await read(endpoint, backend, generate_latest(registry))
    by_name = {(p.labels["__name__"], p.labels.get("le")): p.value for p in points}
    assert by_name["latency_p95", None] == 18.5
    assert by_name["http_requests_total", None] == 3
    assert by_name["latency_bucket", "0.1"] == 0
    assert by_name["latency_bucket", "+Inf"] == 1
    assert points[0].labels == {"__name__": "latency_p95", "pair": 'BTC"\\USDT\n'}
    sent = backend.calls.last.request.headers
    assert sent["Accept"].startswith("text/plain")
    assert sent["Authorization"] == "Bearer t"


async def test_a_counter_keeps_the_name_that_it_is_written_with(
    endpoint: HttpEndpoint, backend: respx.Router
) -> None:
    (point,) = await read(endpoint, backend, "# TYPE http_requests counter\nhttp_requests 7\n")
    assert point == Point(labels={"__name__": "http_requests"}, at=NOW, value=7)


async def test_a_sample_keeps_a_time_of_its_own(
    endpoint: HttpEndpoint, backend: respx.Router
) -> None:
    points = await read(endpoint, backend, "a 1 1767323045000\nb 2\r\n")
    assert [point.at for point in points] == [datetime.fromtimestamp(1767323045, UTC), NOW]


async def test_nan_and_infinite_values_are_left_out(
    endpoint: HttpEndpoint, backend: respx.Router
) -> None:
    points = await read(endpoint, backend, 'a NaN\nb{x="y"} 0\nc +Inf\nd -Inf\n')
    assert [(p.labels, p.value) for p in points] == [({"__name__": "b", "x": "y"}, 0)]


@pytest.mark.parametrize("body", ["", "\n\n", "# HELP a b\n# TYPE a gauge\n", "a NaN\n"])
async def test_nothing_left_is_unavailable_and_not_nothing(
    endpoint: HttpEndpoint, backend: respx.Router, body: str
) -> None:
    with pytest.raises(BackendUnavailable, match="has no samples"):
        await read(endpoint, backend, body)


@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        '{"a": 1}',
        "a",
        "a b",
        "a{",
        'a{x="1" 1',
        "a{x=1} 1",
        'a{x="1",x="2"} 1',
        "a 1 99999999999999999999",
        "a 1 NaN",
        "a " + "9" * 400,
        b"a \xff\xfe",
        'fine 1\na{x="' + "y" * 20_000 + '"} 1',
    ],
)
async def test_what_is_not_prometheus_text_is_unavailable(
    endpoint: HttpEndpoint, backend: respx.Router, body: bytes | str
) -> None:
    with pytest.raises(BackendUnavailable, match="/metrics is not Prometheus text"):
        await read(endpoint, backend, body)


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (307, BackendRefused, "redirects are not followed"),
        (401, BackendRefused, "check its token"),
        (404, BackendRefused, "HTTP 404"),
        (503, BackendUnavailable, "HTTP 503"),
    ],
)
async def test_a_status_but_2xx_is_an_error(
    endpoint: HttpEndpoint,
    backend: respx.Router,
    status: int,
    error: type[Exception],
    said: str,
) -> None:
    backend.get(f"{BASE}/metrics").respond(status, text="a 1\n", headers={"Location": "http://e/"})
    with pytest.raises(error, match=said):
        await endpoint.get_samples("/metrics")
    assert backend.calls.call_count == 1


async def test_a_path_that_leaves_the_url_is_refused_unsent(
    endpoint: HttpEndpoint, backend: respx.Router
) -> None:
    with pytest.raises(BackendRefused):
        await endpoint.get_samples("//evil/metrics")
    assert backend.calls.call_count == 0


async def test_an_answer_without_end_is_cut_off() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"a 1\n" * 10_000)
        except ConnectionError:
            return response

    async with serving(endless) as url, HttpEndpoint(url, timeout=10) as endpoint:
        with pytest.raises(BackendUnavailable, match="larger than 1048576 bytes"):
            await endpoint.get_samples("/metrics")


WORDS = st.lists(
    st.sampled_from(
        ["a", "_b:c", "{", "}", '"', "x", "=", ",", "\\", "1", "-", "NaN", " ", "\n", "#", "é"]
    )
    | st.text(st.characters(codec="utf-8"), max_size=3),
    max_size=30,
).map("".join)


@settings(max_examples=100, deadline=None)  # each makes a client
@given(WORDS.map(str.encode) | st.binary(max_size=60))
def test_whatever_is_answered_is_read_or_unavailable(body: bytes) -> None:
    async def get() -> tuple[Point, ...]:
        async with HttpEndpoint(BASE) as endpoint:
            return await endpoint.get_samples("/metrics")

    with respx.mock(assert_all_called=False) as router:
        router.route().respond(content=body)
        try:
            points = asyncio.run(get())
        except BackendUnavailable:
            return
    assert points
    assert all(math.isfinite(point.value) for point in points)
