"""Who may stay when there are too many connections, over real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from remediator.api.auth import Access
from remediator.api.connections import address_of
from remediator.api.listener import ConnectionLimits, listening
from remediator.api.routing import Call, Route, build_app
from remediator.model.access import Credential, Permission, Role

ONE, OTHER = "127.0.0.2", "127.0.0.3"
CREDENTIALS = (
    Credential("sender", Role.INGEST, token="sender"),
    Credential("ann", Role.OPERATOR, token="ann"),
)


@dataclass
class Wire:
    """A raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def ask(self, path: str = "/open", by: str = "") -> None:
        credential = f"Authorization: Bearer {by}\r\n" if by else ""
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n".encode())

    async def status(self) -> int:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        length = [h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")]
        await self.reader.readexactly(int(length[0].split(b":")[1]))
        return int(head.split(b" ")[1])

    async def closed(self, within: float = 5) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(), within) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


@dataclass
class Door:
    """A listener with a route of each kind."""

    port: int
    stack: AsyncExitStack
    release: asyncio.Event
    begun: asyncio.Queue[str]
    closed: asyncio.Queue[str]

    async def connect(self, address: str = ONE) -> Wire:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(address, 0)
        )
        self.stack.callback(writer.close)
        return Wire(reader, writer)

    async def used(self, address: str = ONE, by: str = "") -> Wire:
        """Connect, and have one request answered."""
        wire = await self.connect(address)
        wire.ask("/sender" if by == "sender" else "/open", by)
        assert await wire.status() == 200
        return wire

    async def busy(self, address: str = ONE, by: str = "sender") -> Wire:
        """Connect, and have a request under way."""
        wire = await self.connect(address)
        wire.ask("/slow", by)
        assert await asyncio.wait_for(self.begun.get(), 5) == by
        return wire


@asynccontextmanager
async def serving(limits: ConnectionLimits) -> AsyncIterator[Door]:
    release, begun, closed = asyncio.Event(), asyncio.Queue[str](), asyncio.Queue[str]()

    async def quick(_: Call) -> web.Response:
        return web.Response(text="ok")

    async def slow(call: Call) -> web.Response:
        begun.put_nowait("sender" if call.by == "sender" else call.by)
        await release.wait()
        return web.Response(text="done")

    async def large(_: Call) -> web.Response:
        return web.Response(body=b"x" * 50_000_000)

    routes = (
        Route("GET", "/open", None, quick, "Answer everybody"),
        Route("GET", "/sender", Permission.POST_ALERTS, quick, "Answer senders"),
        Route("GET", "/operator", Permission.OPERATE, quick, "Answer operators"),
        Route("GET", "/slow", Permission.POST_ALERTS, slow, "Answer when it is let"),
        Route("GET", "/large", None, large, "Answer at length"),
    )
    app = build_app(routes, Access(CREDENTIALS))
    async with (
        listening(app, "127.0.0.1", 0, limits, closed.put_nowait) as (_, port),
        AsyncExitStack() as stack,
    ):
        try:
            yield Door(port, stack, release, begun, closed)
        finally:
            release.set()


async def test_a_newcomer_gets_the_place_of_the_longest_idle_stranger() -> None:
    async with serving(ConnectionLimits(max_connections=3)) as door:
        sender = await door.used(by="sender")
        first, second = await door.connect(OTHER), await door.connect(ONE)
        newcomer = await door.used(OTHER)
        assert await first.closed()
        assert await door.closed.get() == "another_needs_the_place"
        for wire in (second, sender, newcomer):
            wire.ask()
            assert await wire.status() == 200


async def test_the_connections_of_one_address_take_nobody_elses_place() -> None:
    async with serving(ConnectionLimits(max_connections=100, per_address=3)) as door:
        elsewhere = await door.connect(OTHER)
        crowd = [await door.connect(ONE) for _ in range(10)]
        assert [await wire.closed() for wire in crowd[:7]] == [True] * 7
        for wire in (elsewhere, *crowd[7:]):
            wire.ask()
            assert await wire.status() == 200


async def test_an_idle_authenticated_connection_goes_only_when_no_stranger_is_left() -> None:
    async with serving(ConnectionLimits(max_connections=2)) as door:
        known = await door.used(by="sender")
        stranger = await door.used(OTHER)
        second = await door.used(by="sender")
        assert await stranger.closed()
        newcomer = await door.used(OTHER)
        assert await known.closed()
        for wire in (second, newcomer):
            wire.ask()
            assert await wire.status() == 200


async def test_a_request_under_way_is_never_ended_for_a_newcomer() -> None:
    async with serving(ConnectionLimits(max_connections=2, reserve=1)) as door:
        busy = [await door.busy(), await door.busy()]
        await door.used(OTHER)
        door.release.set()
        assert [await wire.status() for wire in busy] == [200, 200]


async def test_places_are_left_for_operators_and_probes_when_all_others_are_at_work() -> None:
    async with serving(ConnectionLimits(max_connections=2, reserve=2)) as door:
        for _ in range(2):
            await door.busy()
        operator, probe = await door.connect(OTHER), await door.connect(OTHER)
        operator.ask("/operator", "ann")
        probe.ask()
        assert (await operator.status(), await probe.status()) == (200, 200)
        sender = await door.connect(OTHER)  # in the place of the probe, which is idle now
        sender.ask("/sender", "sender")
        assert await sender.status() == 503
        assert await sender.closed()


async def test_a_connection_beyond_the_bounds_is_like_any_other_once_there_is_room() -> None:
    async with serving(ConnectionLimits(max_connections=1, reserve=1)) as door:
        busy = await door.busy()
        beyond = await door.used(OTHER)
        busy.writer.close()
        door.release.set()
        async with asyncio.timeout(5):
            while True:
                beyond.ask("/sender", "sender")
                if await beyond.status() == 200:
                    break
                beyond = await door.used(OTHER)


async def test_who_never_reads_the_answers_is_closed() -> None:
    async with serving(ConnectionLimits(write_timeout=0.3)) as door:
        wire = await door.connect()
        wire.ask("/large")
        assert await asyncio.wait_for(door.closed.get(), 5) == "the_answer_is_not_read"
        with pytest.raises(asyncio.IncompleteReadError):
            await wire.status()
        reading = await door.connect()
        reading.ask("/large")
        assert await reading.status() == 200


async def test_an_idle_stranger_is_closed_sooner_than_somebody_known() -> None:
    async with serving(ConnectionLimits(stranger_keepalive=0.2)) as door:
        known, stranger = await door.used(by="sender"), await door.used()
        assert await stranger.closed(within=3)
        known.ask("/sender", "sender")
        assert await known.status() == 200


async def test_what_is_not_http_is_a_short_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    with capture_logs() as logs, caplog.at_level(logging.DEBUG):
        async with serving(ConnectionLimits()) as door:
            for _ in range(20):
                wire = await door.connect()
                wire.writer.write(b"GET /open HTTP/1.1\r\nHost : x\r\n\x00\r\n\r\n")
                assert await wire.status() == 400
    lines = [line for line in logs if line["event"] == "request_malformed"]
    assert 1 <= len(lines) <= 3
    assert lines[0]["remote"] == ONE
    assert "exc_info" not in lines[0]
    assert [r for r in caplog.records if r.levelno > logging.DEBUG and r.name != "asyncio"] == []


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        (None, "unknown"),
    ],
)
def test_connections_are_counted_by_what_one_client_has_in_common(
    peer: object, address: str
) -> None:
    assert address_of(peer) == address
