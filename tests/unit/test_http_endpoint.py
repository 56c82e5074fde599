"""HttpEndpoint: stays on its host, bounds what it reads, keeps its token to itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import respx
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.backends.http.client import HttpEndpoint
from remediator.model.errors import BackendRefused, BackendUnavailable, ConfigError
from remediator.model.finding import SenseState
from tests.scripted_http import serving

BASE = "http://orders.internal:8080/admin"
TOKEN = "tok-4711"


@pytest.fixture
async def endpoint() -> AsyncIterator[HttpEndpoint]:
    async with HttpEndpoint(BASE + "/", name="orders-admin", token=TOKEN) as opened:
        yield opened


@pytest.fixture
def backend() -> Any:
    with respx.mock(assert_all_called=False) as router:
        yield router


# --- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/pool", "pool"])
async def test_json_is_read_below_the_base_url(
    endpoint: HttpEndpoint, backend: respx.Router, path: str
) -> None:
    route = backend.get(f"{BASE}/pool", params={"a": "b&c"}).respond(json={"active": 3})
    assert await endpoint.get_json(path, {"a": "b&c"}) == {"active": 3}
    assert route.calls.last.request.headers["Authorization"] == f"Bearer {TOKEN}"


async def test_without_a_token_no_credential_is_sent(backend: respx.Router) -> None:
    route = backend.get(f"{BASE}/pool").respond(json=1)
    async with HttpEndpoint(BASE) as endpoint:
        assert await endpoint.get_json("/pool") == 1
    assert "Authorization" not in route.calls.last.request.headers


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (301, BackendRefused, "redirects are not followed"),
        (307, BackendRefused, "redirects are not followed"),
        (401, BackendRefused, "check its token"),
        (403, BackendRefused, "check its token"),
        (404, BackendRefused, "HTTP 404 for /admin/pool"),
        (408, BackendUnavailable, "HTTP 408"),
        (429, BackendUnavailable, "HTTP 429"),
        (500, BackendUnavailable, "HTTP 500"),
        (503, BackendUnavailable, "HTTP 503"),
        (304, BackendRefused, "HTTP 304"),
    ],
)
async def test_a_status_but_2xx_is_an_error_that_says_what_to_do(
    endpoint: HttpEndpoint,
    backend: respx.Router,
    status: int,
    error: type[Exception],
    said: str,
) -> None:
    backend.get(f"{BASE}/pool").respond(status, headers={"Location": "http://evil/"}, json={})
    with pytest.raises(error, match=said) as caught:
        await endpoint.get_json("/pool")
    assert f"orders-admin ({BASE})" in str(caught.value)
    assert "4711" not in str(caught.value)
    assert backend.calls.call_count == 1


@pytest.mark.parametrize(
    ("said", "wait"),
    [("12", 12), ("86400", 3600), ("9" * 400, None), ("soon", None), ("-1", None)],
)
async def test_the_time_to_wait_is_handed_on_up_to_an_hour(
    endpoint: HttpEndpoint, backend: respx.Router, said: str, wait: float | None
) -> None:
    backend.get(f"{BASE}/pool").respond(503, headers={"Retry-After": said})
    with pytest.raises(BackendUnavailable) as caught:
        await endpoint.get_json("/pool")
    assert caught.value.retry_after == wait


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"a":', b"NaN", b'{"a": Infinity}', b"\xff\xfe\xff", b"[" * 100_000]
)
async def test_what_is_not_json_is_unavailable(
    endpoint: HttpEndpoint, backend: respx.Router, body: bytes
) -> None:
    backend.get(f"{BASE}/pool").respond(content=body)
    with pytest.raises(BackendUnavailable, match="not JSON"):
        await endpoint.get_json("/pool")


# --- where it goes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "//evil/pool",
        "///evil",
        "http://evil/pool",
        "https:evil",
        "/..",
        "../secret",
        "/a/../../secret",
        "/%2e%2e/secret",
        "/%252e%252e/secret",
        "/a%2f..%2f..%2fsecret",
        "/..;x=1/secret",
        "/%2fevil",
        "\\\\evil\\pool",
        "/..\\secret",
        "/%5c%5cevil",
        "/pool\r\nHost: evil",
        "/pool%0d%0a",
        "/pool%00",
        "/pool?all=1",
        "/pool#x",
        "/" + "a" * 70_000,
    ],
)
async def test_a_path_that_could_leave_the_base_url_is_refused_unsent(
    endpoint: HttpEndpoint, backend: respx.Router, path: str
) -> None:
    with pytest.raises(BackendRefused):
        await endpoint.get_json(path)
    assert backend.calls.call_count == 0


@settings(max_examples=60, deadline=None)  # each makes a client
@given(st.text(max_size=40) | st.text("/.%2eEfF5cC;:\\@?#a", max_size=40))
def test_whatever_the_path_the_request_stays_below_the_base_url(path: str) -> None:
    async def get() -> None:
        async with HttpEndpoint(BASE, token=TOKEN) as endpoint:
            await endpoint.get_json(path)

    with respx.mock(assert_all_called=False) as router:
        router.route().respond(json=1)
        try:
            asyncio.run(get())
        except BackendRefused:
            assert router.calls.call_count == 0
            return
        url = router.calls.last.request.url
    assert (url.scheme, url.netloc) == ("http", b"orders.internal:8080")
    assert url.path.startswith("/admin/")
    assert ".." not in url.path.split("/")


@pytest.mark.parametrize(
    "url", ["ftp://h", "h:80", "http://", "http://a:pw-4711@h", "http://h/?k=v", "http://h:x/"]
)
def test_a_url_that_is_no_base_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="orders-admin: the url") as caught:
        HttpEndpoint(url, name="orders-admin")
    assert "4711" not in str(caught.value)


# --- failures on the way ----------------------------------------------------------------------


async def test_a_connect_error_is_tried_once_more(
    endpoint: HttpEndpoint, backend: respx.Router
) -> None:
    route = backend.get(f"{BASE}/pool")
    route.side_effect = [httpx.ConnectError("refused"), httpx.Response(200, json=1)]
    assert await endpoint.get_json("/pool") == 1


async def test_two_connect_errors_are_unavailable(
    endpoint: HttpEndpoint, backend: respx.Router
) -> None:
    route = backend.get(f"{BASE}/pool").mock(side_effect=httpx.ConnectError("refused"))
    with pytest.raises(BackendUnavailable, match="cannot be reached"):
        await endpoint.get_json("/pool")
    assert route.call_count == 2


@pytest.mark.parametrize("failure", [httpx.ReadError("reset"), httpx.ReadTimeout("slow")])
async def test_a_failure_after_sending_is_not_repeated(
    endpoint: HttpEndpoint, backend: respx.Router, failure: Exception
) -> None:
    route = backend.get(f"{BASE}/pool").mock(side_effect=failure)
    with pytest.raises(BackendUnavailable):
        await endpoint.get_json("/pool")
    assert route.call_count == 1


async def test_an_answer_over_the_limit_is_not_read_to_its_end() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"[" * 65_536)
                sent += 65_536
        except ConnectionError:
            return response

    async with serving(endless) as url, HttpEndpoint(url, timeout=10) as endpoint:
        with pytest.raises(BackendUnavailable, match="larger than 1048576 bytes"):
            await endpoint.get_json("/")
    assert sent < 64 << 20


async def test_a_compressed_answer_is_not_unpacked() -> None:
    async def bomb(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        response = web.Response(text="1")
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with serving(bomb) as url, HttpEndpoint(url) as endpoint:
        with pytest.raises(BackendUnavailable, match="not JSON"):
            await endpoint.get_json("/")


async def test_an_answer_that_drips_ends_at_the_timeout() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.02)
        except ConnectionError:
            return response

    async with serving(drip) as url, HttpEndpoint(url, timeout=0.3) as endpoint:
        started = time.monotonic()
        with pytest.raises(BackendUnavailable, match=r"no full answer within 0\.3 s"):
            await endpoint.get_json("/")
        assert time.monotonic() - started < 2


# --- probe ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 302, 404, 500])
async def test_a_host_that_answers_http_at_all_is_ok(
    endpoint: HttpEndpoint, backend: respx.Router, status: int
) -> None:
    backend.get(BASE).respond(status)
    sense = await endpoint.probe()
    assert (sense.name, sense.state) == ("orders-admin", SenseState.OK)


async def test_a_host_that_cannot_be_reached_is_impaired(
    endpoint: HttpEndpoint, backend: respx.Router
) -> None:
    backend.get(BASE).mock(side_effect=httpx.ConnectError("refused"))
    sense = await endpoint.probe()
    assert sense.state is SenseState.IMPAIRED
    assert "cannot be reached (ConnectError)" in sense.reason
