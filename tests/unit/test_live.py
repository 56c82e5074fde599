"""Live events: who gets them, and how a stream of them ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from remediator.api.auth import Access
from remediator.api.events import KEPT, LISTENERS, Hub, live_routes
from remediator.api.listener import ConnectionLimits, listening
from remediator.api.openapi import describe
from remediator.api.routing import build_app
from remediator.model.access import Credential, Role
from remediator.model.events import EventType, LiveEvent
from tests.postgres_fixtures import eventually

NOW = datetime(2026, 11, 20, 16, tzinfo=UTC)
WALL = {"Authorization": "Bearer viewer-token"}
CREDENTIALS = (
    Credential("wall", Role.VIEWER, token="viewer-token"),
    Credential("am", Role.INGEST, token="ingest-token"),
)


def an_event(what: str, kind: EventType = EventType.OPENED) -> LiveEvent:
    return LiveEvent(kind=kind, id=what, at=NOW)


# --- the hub ----------------------------------------------------------------------------------


async def test_every_listener_gets_every_event_in_order() -> None:
    hub, sent = Hub(), [an_event(f"inc-{n}") for n in range(5)]
    with hub.listening() as one, hub.listening() as two:
        assert one is not None
        assert two is not None
        for event in sent:
            hub.publish(event)
        assert [await one.next() for _ in sent] == sent
        assert [await two.next() for _ in sent] == sent


async def test_a_listener_that_is_too_slow_is_let_go_and_the_others_are_not() -> None:
    hub = Hub()
    with hub.listening() as slow, hub.listening() as quick:
        assert slow is not None
        assert quick is not None
        for n in range(KEPT + 1):
            hub.publish(an_event(f"inc-{n}"))
            await quick.next()
        assert slow.dropped.is_set()
        assert not quick.dropped.is_set()


async def test_only_so_many_may_listen() -> None:
    hub = Hub()
    listening = [hub.listening() for _ in range(LISTENERS)]
    for one in listening:
        assert one.__enter__() is not None
    with hub.listening() as further:
        assert further is None
    listening.pop().__exit__(None, None, None)
    with hub.listening() as further:
        assert further is not None


# --- the stream -------------------------------------------------------------------------------


@dataclass
class Wall:
    """A console that follows the events of a server."""

    hub: Hub
    url: str
    client: httpx.AsyncClient
    stop: asyncio.Event
    """Stops the server."""
    stopped: asyncio.Event

    async def listeners(self, count: int) -> None:
        async def there() -> bool:
            return len(self.hub._listeners) == count

        await eventually(there, f"{count} listen", within=20)


@pytest.fixture
async def wall() -> AsyncIterator[Wall]:
    hub, stop, stopped = Hub(), asyncio.Event(), asyncio.Event()
    app = build_app(live_routes(hub), Access(CREDENTIALS))
    bound: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with listening(app, "127.0.0.1", 0, ConnectionLimits(stop_within=60)) as address:
            bound.set_result("http://{}:{}".format(*address))
            await stop.wait()
        stopped.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(serve())
        url = await bound
        async with httpx.AsyncClient(base_url=url, verify=False, timeout=20) as client:
            yield Wall(hub, url, client, stop, stopped)
        stop.set()


async def test_events_are_streamed_as_they_come_with_ids_only(wall: Wall) -> None:
    async with wall.client.stream("GET", "/api/v1/events", headers=WALL) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        await wall.listeners(1)
        wall.hub.publish(an_event("inc-1"))
        wall.hub.publish(LiveEvent(kind=EventType.PAUSED, scope="shop", at=NOW))
        lines = answer.aiter_lines()
        said = [line async for line in _until(lines, 8)]
    assert said[0] == ": listening"
    assert said[2] == "event: opened"
    data = [json.loads(line.removeprefix("data: ")) for line in said if line.startswith("data")]
    assert data == [
        {"kind": "opened", "id": "inc-1", "at": "2026-11-20T16:00:00Z"},
        {"kind": "paused", "scope": "shop", "at": "2026-11-20T16:00:00Z"},
    ]


async def _until(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    for _ in range(count):
        yield await anext(lines)


async def test_streams_end_when_the_service_stops_whether_or_not_they_are_read(wall: Wall) -> None:
    async with wall.client.stream("GET", "/api/v1/events", headers=WALL) as answer:
        host, _, port = wall.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\n")
        writer.write(f"Authorization: {WALL['Authorization']}\r\n\r\n".encode())
        await wall.listeners(2)
        wall.stop.set()
        async with asyncio.timeout(30):  # far less than stop_within
            assert [line async for line in answer.aiter_lines()] == [": listening", ""]
            await wall.stopped.wait()
        writer.close()


async def test_a_console_that_does_not_read_is_cut_off(wall: Wall) -> None:
    host, _, port = wall.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\n")
    writer.write(f"Authorization: {WALL['Authorization']}\r\n\r\n".encode())
    await wall.listeners(1)
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads

    async def cut_off() -> bool:
        for _ in range(KEPT):
            wall.hub.publish(an_event("x" * 100))
            await asyncio.sleep(0)
        return not wall.hub._listeners

    await eventually(cut_off, "it is let go", within=60)
    writer.transport.resume_reading()  # type: ignore[attr-defined]  # the same
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionResetError):  # an end is as good
            while await reader.read(1 << 20):
                pass
    writer.close()


async def test_whoever_asks_for_the_head_does_not_listen(wall: Wall) -> None:
    answer = await wall.client.head("/api/v1/events", headers=WALL)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 401), ({"Authorization": "Bearer ingest-token"}, 403)]
)
async def test_only_who_may_read_may_follow(
    wall: Wall, headers: dict[str, str], status: int
) -> None:
    assert (await wall.client.get("/api/v1/events", headers=headers)).status_code == status


async def test_one_listener_too_many_is_asked_to_come_again(wall: Wall) -> None:
    listening = [wall.hub.listening() for _ in range(LISTENERS)]
    for one in listening:
        one.__enter__()
    answer = await wall.client.get("/api/v1/events", headers=WALL)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0


def test_the_stream_is_described() -> None:
    described: dict[str, Any] = describe(live_routes(Hub()), "1")
    validate(described)
    operation = described["paths"]["/api/v1/events"]["get"]
    assert list(operation["responses"]["200"]["content"]) == ["text/event-stream"]
