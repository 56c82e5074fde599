"""PrometheusMetrics against a real Prometheus, and against a server that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web

from remediator import quote_label
from remediator.backends.prometheus import PrometheusMetrics, PrometheusServer
from remediator.model.errors import BackendUnavailable, ConfigError
from remediator.model.finding import SenseState
from tests.monitoring_fixtures import MonitoringServer, Start
from tests.scripted_http import Handler, serving

CONFIG = """
global: {scrape_interval: 200ms, scrape_timeout: 200ms}
scrape_configs:
  - job_name: it"self\\
    static_configs: [{targets: ["127.0.0.1:PORT"]}]
"""
NOTHING_SCRAPED = "global: {scrape_interval: 1s}"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def answering(body: Any, status: int = 200) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status, content_type="application/json")

    return handle


def success(kind: str, result: Any, **more: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": kind, "result": result}, **more}


def sample(value: str, at: float = NOW.timestamp(), **labels: str) -> dict[str, Any]:
    return {"metric": labels, "value": [at, value]}


@asynccontextmanager
async def metrics_of(handler: Handler, **options: Any) -> AsyncIterator[PrometheusMetrics]:
    async with (
        serving(handler) as url,
        PrometheusMetrics(PrometheusServer(url, **options), now=lambda: NOW) as metrics,
    ):
        yield metrics


async def until_scraped(metrics: PrometheusMetrics) -> None:
    async with asyncio.timeout(20):
        while (await metrics.probe()).state is not SenseState.OK:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)


@pytest.fixture
async def prometheus(start_prometheus: Start) -> AsyncIterator[MonitoringServer]:
    async with start_prometheus(CONFIG) as server:
        yield server


# --- a real Prometheus ------------------------------------------------------------------------


@pytest.mark.real("prometheus")
async def test_a_scraping_prometheus_is_read_and_trusted(prometheus: MonitoringServer) -> None:
    async with PrometheusMetrics(PrometheusServer(prometheus.url + "/")) as metrics:
        await until_scraped(metrics)
        assert await metrics.scalar("sum(up)") == 1
        assert await metrics.scalar("scalar(sum(up))") == 1
        job = quote_label('it"self\\')
        (point,) = await metrics.instant(f"up{{job={job}}}")
        assert (point.value, point.labels["job"]) == (1, 'it"self\\')
        assert abs(point.at - datetime.now(UTC)) < timedelta(seconds=30)
        end = datetime.now(UTC)
        points = await metrics.range(
            "up", start=end - timedelta(seconds=60), end=end, step=timedelta(seconds=0.5)
        )
        assert {point.value for point in points} == {1}
        with pytest.raises(BackendUnavailable, match="no data for"):
            await metrics.instant("no_such_metric")
        with pytest.raises(BackendUnavailable, match="NaN"):
            await metrics.scalar("sum(up) * NaN")
        with pytest.raises(BackendUnavailable, match="infinite"):
            await metrics.instant("sum(up) / 0")
        with pytest.raises(BackendUnavailable, match=r"HTTP 400.*parse error"):
            await metrics.instant("up{")


@pytest.mark.real("prometheus")
async def test_samples_older_than_three_intervals_are_not_trusted(
    prometheus: MonitoringServer,
) -> None:
    moment = datetime.now(UTC)
    server = PrometheusServer(prometheus.url, scrape_interval=timedelta(seconds=10))
    async with PrometheusMetrics(server, now=lambda: moment) as metrics:
        await until_scraped(metrics)
        moment += timedelta(seconds=60)
        late = await metrics.probe()
        assert late.state is SenseState.IMPAIRED
        assert "s old" in late.reason
        moment -= timedelta(seconds=120)
        assert "ahead of ours" in (await metrics.probe()).reason


@pytest.mark.real("prometheus")
async def test_a_prometheus_that_scrapes_nothing_is_impaired(start_prometheus: Start) -> None:
    async with (
        start_prometheus(NOTHING_SCRAPED) as server,
        PrometheusMetrics(PrometheusServer(server.url, name="main")) as metrics,
    ):
        sense = await metrics.probe()
    assert (sense.name, sense.state) == ("main", SenseState.IMPAIRED)
    assert "no data for count(up)" in sense.reason


@pytest.mark.real("prometheus")
async def test_a_killed_prometheus_is_impaired(prometheus: MonitoringServer) -> None:
    async with PrometheusMetrics(PrometheusServer(prometheus.url)) as metrics:
        await until_scraped(metrics)
        prometheus.process.kill()
        await prometheus.process.wait()
        sense = await metrics.probe()
    assert sense.state is SenseState.IMPAIRED
    assert "cannot be reached" in sense.reason


# --- answers that are no data -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (success("vector", []), 200, "no data for up"),
        (success("vector", [sample("NaN")]), 200, "NaN"),
        (success("vector", [sample("1"), sample("+Inf", a="b")]), 200, "infinite"),
        (success("vector", [], warnings=["store 2 is down"]), 200, "store 2 is down"),
        (success("vector", [sample("1")], warnings=["store 2 is down"]), 200, "may be partial"),
        (success("matrix", []), 200, "a matrix, not a vector"),
        (success("string", [1, "x"]), 200, "a string, not a vector"),
        ({"status": "success"}, 200, "a None, not a vector"),
        ({"status": "error", "error": "boom"}, 200, "without a result"),
        ("<html>log in</html>", 200, "without a result"),
        ("[" * 100_000, 200, "without a result"),
        ("null", 200, "without a result"),
        (success("vector", [{"metric": {}}]), 200, "cannot be read"),
        (success("vector", [{"metric": {}, "value": [1, "one"]}]), 200, "cannot be read"),
        (success("vector", [{"metric": {}, "value": [1e40, "1"]}]), 200, "cannot be read"),
        (success("vector", {"metric": {}}), 200, "cannot be read"),
        (success("vector", None), 200, "cannot be read"),
        ({"status": "error", "error": "query timed out"}, 503, "HTTP 503: query timed out"),
        ("Bad Gateway", 502, "HTTP 502"),
        ("", 401, "check its token"),
    ],
)
async def test_an_answer_that_is_no_data_is_unavailable(body: Any, status: int, said: str) -> None:
    """T-17, T-18, T-19: an unparsable query, an empty vector and NaN are no health."""
    async with metrics_of(answering(body, status)) as metrics:
        with pytest.raises(BackendUnavailable, match=said) as caught:
            await metrics.instant("up")
    assert "prometheus (http://127.0.0.1:" in str(caught.value)


async def test_remarks_on_a_query_do_not_make_its_data_partial() -> None:
    body = success("vector", [sample("2")], warnings=["PromQL info: not a counter"])
    async with metrics_of(answering(body)) as metrics:
        assert await metrics.scalar("x") == 2


async def test_a_scalar_needs_exactly_one_series() -> None:
    body = success("vector", [sample("1", pod="a"), sample("2", pod="b")])
    async with metrics_of(answering(body)) as metrics:
        with pytest.raises(BackendUnavailable, match="2 series where one was expected"):
            await metrics.scalar("up")


async def test_a_range_must_be_answered_with_a_matrix() -> None:
    async with metrics_of(answering(success("vector", [sample("1")]))) as metrics:
        with pytest.raises(BackendUnavailable, match="a vector, not a matrix"):
            await metrics.range(
                "up", start=NOW - timedelta(minutes=1), end=NOW, step=timedelta(seconds=15)
            )


async def test_redirects_are_not_followed() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("http://127.0.0.1:1/elsewhere")

    async with metrics_of(handle) as metrics:
        with pytest.raises(BackendUnavailable, match="redirects are not followed"):
            await metrics.instant("up")


# --- credentials ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({"token": "tok-4711"}, "Bearer tok-4711"),
        ({"basic": ("ann", "pw-4711")}, "Basic " + base64.b64encode(b"ann:pw-4711").decode()),
        ({}, None),
    ],
)
async def test_credentials_are_sent_and_never_shown(
    options: dict[str, Any], header: str | None
) -> None:
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.Response(status=403)

    async with metrics_of(handle, **options) as metrics:
        with pytest.raises(BackendUnavailable) as caught:
            await metrics.instant("up")
    assert seen == [header]
    assert "4711" not in str(caught.value)
    assert "4711" not in repr(PrometheusServer("http://h", **options))


def test_credentials_in_the_url_are_refused_without_being_repeated() -> None:
    with pytest.raises(ConfigError, match="holds credentials") as caught:
        PrometheusServer("http://ann:pw-4711@prometheus:9090")
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "prometheus:9090", "file:///etc", "http://", "http://h?a=b"])
def test_a_url_that_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="prometheus: the url"):
        PrometheusServer(url)


# --- a server that hangs ----------------------------------------------------------------------


async def drip(request: web.Request) -> web.StreamResponse:
    """Send a byte now and then, so that no read of the client's ever times out."""
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)
    except (ConnectionError, asyncio.CancelledError):
        return response


async def test_a_hanging_server_costs_one_timeout_and_is_not_retried() -> None:
    calls = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        await asyncio.sleep(60)
        return web.Response()

    async with metrics_of(handle, timeout=0.3) as metrics:
        started = time.monotonic()
        with pytest.raises(BackendUnavailable, match=r"no answer within 0\.3 s"):
            await metrics.instant("up")
        assert time.monotonic() - started < 2
    assert calls == 1


async def test_while_all_threads_hang_the_answer_is_immediate() -> None:
    async with metrics_of(drip, timeout=0.3, threads=2) as metrics:
        first = await asyncio.gather(
            *(metrics.instant("up") for _ in range(5)), return_exceptions=True
        )
        assert all(isinstance(error, BackendUnavailable) for error in first)
        started = time.monotonic()
        with pytest.raises(BackendUnavailable, match="all 2 connections hang"):
            await metrics.instant("up")
        assert time.monotonic() - started < 0.2
        assert (await metrics.probe()).state is SenseState.IMPAIRED


async def test_a_hanging_server_does_not_starve_the_default_threads() -> None:
    async with metrics_of(drip, timeout=0.3, threads=4) as metrics:
        hanging = [asyncio.create_task(metrics.instant("up")) for _ in range(64)]
        await asyncio.sleep(0)
        async with asyncio.timeout(0.25):
            assert await asyncio.to_thread(lambda: "free") == "free"
        results = await asyncio.gather(*hanging, return_exceptions=True)
    assert all(isinstance(result, BackendUnavailable) for result in results)


async def test_a_server_that_answers_again_is_asked_again() -> None:
    well = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        if not well.is_set():
            return await drip_until(request, well)
        return await answering(success("vector", [sample("1")]))(request)

    async with metrics_of(handle, timeout=0.3, threads=1) as metrics:
        with pytest.raises(BackendUnavailable, match="no answer"):
            await metrics.instant("up")
        with pytest.raises(BackendUnavailable, match="hang"):
            await metrics.instant("up")
        well.set()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await metrics.scalar("up") == 1
                    break
                except BackendUnavailable:
                    await asyncio.sleep(0.02)


async def drip_until(request: web.Request, well: asyncio.Event) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while not well.is_set():
        await response.write(b" ")
        await asyncio.sleep(0.02)
    return response


async def test_a_cancelled_query_leaves_its_place_when_its_thread_ends() -> None:
    async with metrics_of(drip, timeout=5, threads=1) as metrics:
        query = asyncio.create_task(metrics.instant("up"))
        await asyncio.sleep(0.1)
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        with pytest.raises(BackendUnavailable, match="all 1 connections hang"):
            await metrics.instant("up")


async def test_more_queries_than_threads_are_all_answered() -> None:
    async with metrics_of(answering(success("vector", [sample("1")])), threads=2) as metrics:
        assert await asyncio.gather(*(metrics.scalar("up") for _ in range(20))) == [1.0] * 20
