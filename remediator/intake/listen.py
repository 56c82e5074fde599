"""The listening socket: bounds on connections that aiohttp does not have, and a clean end.

A request's headers must be complete within a time, also a second request's on one connection,
and only so many connections are open at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web

from remediator.routing import STOPPING

_LINGER = 3.0
"""Seconds in which the rest of a body is read that was answered early, so that the sender sees
the answer and not a reset."""
_TURNS = 8
"""Turns of the event loop between what has arrived and its handler, with some to spare: when
this process itself is late, headers that are here must not be called late."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of the listening socket, in seconds."""

    header_timeout: float = 10.0
    """Time for the headers of a request, from its first byte; of the first, from the connect."""
    keepalive: float = 75.0
    """Time that an idle connection is kept."""
    max_connections: int = 1024
    """Connections open at once; further ones are closed."""
    stop_within: float = 10.0
    """Time for requests that are under way when the service stops."""


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    limits: ConnectionLimits = ConnectionLimits(),
) -> AsyncIterator[tuple[str, int]]:
    """Serve ``app`` inside the block; yields the bound address. Port 0 takes a free one.

    At the end nothing new is accepted, what starts new work answers 503, and requests under
    way are given ``stop_within``. Raises ``OSError`` when the address cannot be bound.
    """
    gate = _Gate(limits)
    app.middlewares.insert(0, gate.middleware())
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=limits.keepalive,
        lingering_time=_LINGER,
        shutdown_timeout=limits.stop_within,
    )
    await runner.setup()
    try:
        protocol = runner.server
        if protocol is None:
            raise RuntimeError("aiohttp made no server")
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _Connection(gate, protocol()), host, port, backlog=512
        )
        try:
            bound = server.sockets[0].getsockname()
            yield bound[0], bound[1]
        finally:
            app[STOPPING].set()
            server.close()
    finally:
        await runner.cleanup()


class _Gate:
    """The open connections, and which of them are in a request."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[asyncio.BaseTransport, _Connection] = {}
        self._said_full = float("-inf")

    def enter(self, transport: asyncio.BaseTransport, connection: _Connection) -> bool:
        if len(self._open) >= self.limits.max_connections:
            self._say_full()
            return False
        self._open[transport] = connection
        return True

    def _say_full(self) -> None:
        """Log at most once a second: many connections is what this is about."""
        now = asyncio.get_running_loop().time()
        if now - self._said_full >= 1:
            self._said_full = now
            _log.warning("connection_refused", reason="max_connections", open=len(self._open))

    def leave(self, transport: asyncio.BaseTransport) -> None:
        self._open.pop(transport, None)

    def middleware(self) -> Any:
        @web.middleware
        async def know_the_headers_are_here(request: web.Request, handler: Any) -> Any:
            connection = self._open.get(request.transport) if request.transport else None
            if connection is None:
                return await handler(request)
            connection.begin(request)
            try:
                return await handler(request)
            finally:
                connection.end()

        return know_the_headers_are_here


class _Connection(asyncio.Protocol):
    """Stands before aiohttp's protocol and closes the connection when headers are late."""

    def __init__(self, gate: _Gate, inner: asyncio.Protocol) -> None:
        self._gate = gate
        self._inner = inner
        self._transport: asyncio.BaseTransport | None = None
        self._deadline: asyncio.Handle | None = None
        self._request: web.Request | None = None
        self._early = False
        """Bytes of the next request came while this one was being handled."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._gate.enter(transport, self):
            transport.close()
            return
        self._transport = transport
        self._expect_headers()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        if self._request is None:
            self._expect_headers()
        elif self._request.content.is_eof():
            self._early = True
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._transport is not None else None

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return
        self._stop_waiting()
        self._gate.leave(self._transport)
        self._transport = None
        self._inner.connection_lost(exc)

    def begin(self, request: web.Request) -> None:
        self._request = request
        self._early = False
        self._stop_waiting()

    def end(self) -> None:
        self._request = None
        if self._early:
            self._expect_headers()

    def _expect_headers(self) -> None:
        if self._deadline is None and self._transport is not None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._gate.limits.header_timeout, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self, turns: int = _TURNS) -> None:
        if turns:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_soon(self._give_up, turns - 1)
            return
        self._deadline = None
        if self._transport is not None:
            _log.info("connection_closed", reason="the headers of a request did not arrive in time")
            self._transport.close()
