"""HttpWriter sends a change once, stays on its host, and says when an answer was lost."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from remediator.backends.http.client import AnswerLost, HttpWriter
from remediator.model.errors import BackendRefused, BackendUnavailable
from tests.scripted_http import serving


async def test_change_is_sent_once_as_json_with_the_writers_token() -> None:
    seen = []

    async def taken(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, await request.json()))
        assert request.headers["Authorization"] == "Bearer tok-4711"
        assert request.content_type == "application/json"
        return web.Response(status=204)

    async with serving(taken) as url, HttpWriter(url, token="tok-4711") as writer:
        await writer.post("/a/b", {"x": 1})
    assert seen == [("POST", "/a/b", {"x": 1})]


async def test_redirect_is_not_followed_and_does_not_say_whether_it_was_done() -> None:
    seen = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(status=307, headers={"Location": "/evil"})

    async with serving(elsewhere) as url, HttpWriter(url) as writer:
        with pytest.raises(AnswerLost, match="HTTP 307"):
            await writer.post("/a")
    assert seen == ["/a"]


async def test_answer_that_does_not_come_in_time_is_lost() -> None:
    calls = 0

    async def slow(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        await asyncio.sleep(30)
        return web.Response()

    async with serving(slow) as url, HttpWriter(url, timeout=0.2) as writer:
        with pytest.raises(AnswerLost):
            await writer.post("/a")
    assert calls == 1


async def test_change_that_was_surely_not_sent_is_not_called_lost() -> None:
    async def never(request: web.Request) -> web.Response:
        return web.Response()

    async with serving(never) as url:
        pass
    async with HttpWriter(url) as writer:
        with pytest.raises(BackendUnavailable, match="nothing was sent") as caught:
            await writer.post("/a")
    assert not isinstance(caught.value, AnswerLost)


@pytest.mark.parametrize("path", ["//evil/a", "http://evil/a", "/../a", "/a?b=c", "/%2e%2e/a"])
async def test_path_that_leaves_the_url_is_refused(path: str) -> None:
    async with HttpWriter("http://h") as writer:
        with pytest.raises(BackendRefused, match="refused"):
            await writer.post(path)


async def test_long_answer_is_not_read() -> None:
    async def long(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError:
            return response

    async with serving(long) as url, HttpWriter(url) as writer:
        await asyncio.wait_for(writer.post("/a"), 3)
