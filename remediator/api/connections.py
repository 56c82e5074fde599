"""The open connections: who may stay when there are too many, and who reads or says too little.

Whose a connection is shows only with its first request. So a newcomer always gets in: the place is
taken from a connection that nobody has authenticated on, the longest idle first, and then from an
authenticated one that is idle. Where all are at work, a few places more are left, for operators and
for the open routes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import Counter as Counts
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web

from remediator.api.routing import AUTHENTICATED, CROWDED

_TURNS = 8
"""Turns of the event loop between what has arrived and its handler, with some to spare: when
this process itself is late, headers that are here must not be called late."""
_SWEEP = 1.0
"""Seconds between two looks at all connections, at most."""
_SITE = 64
"""Bits of an IPv6 address that one customer has in common: the rest is of his own choice."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of the listening socket, in seconds."""

    header_timeout: float = 10.0
    """Time for the headers of a request, from its first byte; of the first, from the connect."""
    keepalive: float = 75.0
    """Time that an idle connection is kept on which somebody has authenticated."""
    stranger_keepalive: float = 5.0
    """Time that any other idle connection is kept after a request."""
    write_timeout: float = 20.0
    """Time in which a client has to read some of what waits for it."""
    max_connections: int = 1024
    """Connections open at once; for a further one another has to go."""
    per_address: int = 128
    """The same for those of one address."""
    reserve: int = 16
    """Places beyond these bounds, for operators and open routes, while all others are at work."""
    stop_within: float = 10.0
    """Time for requests that are under way when the service stops."""


class Gate:
    """The open connections. What it closes is told to ``closed`` by its reason, and logged."""

    def __init__(self, limits: ConnectionLimits, closed: Callable[[str], None]) -> None:
        self.limits = limits
        self._closed = closed
        self._open: dict[asyncio.BaseTransport, Connection] = {}
        self._seldom = Seldom(structlog.get_logger(__name__))

    def enter(self, transport: asyncio.Transport, connection: Connection) -> bool:
        """Let a connection in, in another's place if need be; False when all are at work."""
        crowd = self._crowd(connection)
        if crowd and not self._make_room([one for one in crowd if not one.crowded]):
            connection.crowded = True
            beyond = [one for one in self._open.values() if one.crowded]
            if len(beyond) >= self.limits.reserve and not self._make_room(beyond):
                self.say("every_connection_is_at_work", connection)
                return False
        self._open[transport] = connection
        return True

    def leave(self, transport: asyncio.BaseTransport) -> None:
        """Forget a connection that has ended."""
        self._open.pop(transport, None)

    def at(self, transport: asyncio.BaseTransport | None) -> Connection | None:
        """Return the connection of a request."""
        return None if transport is None else self._open.get(transport)

    def is_crowded(self, connection: Connection) -> bool:
        """Say whether a connection still is beyond the bounds."""
        if connection.crowded:
            connection.crowded = bool(self._crowd(connection))
        return connection.crowded

    def say(self, reason: str, connection: Connection) -> None:
        """Count and log that a connection is closed."""
        self._closed(reason)
        self._seldom.warn("connection_closed", reason, address=connection.address)

    def sweep(self) -> None:
        """Close what has been idle or unread for too long."""
        now = asyncio.get_running_loop().time()
        for connection in tuple(self._open.values()):
            connection.look(now)

    def _crowd(self, connection: Connection) -> list[Connection]:
        """Return those of whom one has to go before ``connection`` fits in; none where it does."""
        others = [one for one in self._open.values() if one is not connection]
        if len(others) >= self.limits.per_address:
            mine = [one for one in others if one.address == connection.address]
            if len(mine) >= self.limits.per_address:
                return mine
        return others if len(others) >= self.limits.max_connections else []

    def _make_room(self, crowd: list[Connection]) -> bool:
        ranks = [(rank, one) for one in crowd if (rank := one.rank) is not None]
        if not ranks:
            return False
        victim = min(ranks, key=lambda pair: pair[0])[1]
        victim.end("another_needs_the_place")
        return True

    def middleware(self) -> Any:
        """Return what tells a connection that its request has begun, and has ended."""

        @web.middleware
        async def know_the_headers_are_here(request: web.Request, handler: Any) -> Any:
            connection = self.at(request.transport)
            if connection is None:
                return await handler(request)
            connection.begin(request)
            request[CROWDED] = self.is_crowded(connection)
            try:
                return await handler(request)
            finally:
                connection.finish()

        return know_the_headers_are_here


class Connection(asyncio.Protocol):
    """Stands before aiohttp's protocol, and closes the connection when the client keeps it for nothing."""

    def __init__(self, gate: Gate, inner: asyncio.Protocol) -> None:
        self.address = ""
        self.crowded = False
        """It is beyond the bounds: only operators and open routes are answered on it."""
        self._gate = gate
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.Handle | None = None
        self._request: web.Request | None = None
        self._early = False
        """Bytes of the next request came while this one was being handled."""
        self._known = False
        """Somebody has authenticated on it."""
        self._requests = 0
        self._since = 0.0
        """Time of the connect, or of the end of the last request."""
        self._unread = 0
        self._unread_since: float | None = None

    # --- what asyncio calls -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or close it."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a connection needs a transport that can be written to")
        self.address = address_of(transport.get_extra_info("peername"))
        if not self._gate.enter(transport, self):
            transport.abort()
            return
        self._transport = transport
        self._since = asyncio.get_running_loop().time()
        self._expect_headers()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Hand on what came."""
        if self._transport is None:
            return
        if self._request is None:
            self._expect_headers()
        elif self._request.content.is_eof():
            self._early = True
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Hand on that nothing more comes."""
        return self._inner.eof_received() if self._transport is not None else None

    def pause_writing(self) -> None:
        """Hand on that the client is behind."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Hand on that the client has read."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        if self._transport is None:
            return
        self._stop_waiting()
        self._gate.leave(self._transport)
        self._transport = None
        self._inner.connection_lost(exc)

    # --- what the gate calls ------------------------------------------------------------------

    @property
    def rank(self) -> tuple[bool, bool, float] | None:
        """Who has to go first has the least; None for who may not be made to go."""
        known = self._known or self._is_known_now
        if known and self._request is not None:
            return None
        return known, self._request is not None, self._since

    def begin(self, request: web.Request) -> None:
        """Note that the headers of a request are here."""
        self._request = request
        self._requests += 1
        self._early = False
        self._stop_waiting()

    def finish(self) -> None:
        """Note that a request has its answer, which may not have been sent yet."""
        self._known = self._known or self._is_known_now
        self._request = None
        self._since = asyncio.get_running_loop().time()
        if self._early:
            self._expect_headers()

    def end(self, reason: str) -> None:
        """Close it at once, whatever has not been sent yet."""
        if self._transport is not None:
            self._gate.say(reason, self)
            self._gate.leave(self._transport)
            self._transport.abort()

    def look(self, now: float) -> None:
        """Close it when it has been idle or unread for too long."""
        if self._transport is None:
            return
        limits = self._gate.limits
        if self._is_unread_for(now) >= limits.write_timeout:
            self.end("the_answer_is_not_read")
        elif self._is_idle_stranger and now - self._since >= limits.stranger_keepalive:
            self._transport.close()

    @property
    def _is_known_now(self) -> bool:
        return self._request is not None and bool(self._request.get(AUTHENTICATED))

    @property
    def _is_idle_stranger(self) -> bool:
        # before the first request, and inside of one, others keep the time
        waits = self._requests > 0 and self._request is None and self._deadline is None
        return waits and not self._known

    def _is_unread_for(self, now: float) -> float:
        """Return the seconds in which the client has taken nothing of what waits for it."""
        if self._transport is None:
            return 0.0
        unread = self._transport.get_write_buffer_size()
        if not unread or self._unread_since is None or unread < self._unread:
            self._unread_since = now if unread else None
        self._unread = unread
        return 0.0 if self._unread_since is None else now - self._unread_since

    # --- headers ------------------------------------------------------------------------------

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
            self._gate.say("the_headers_are_late", self)
            self._transport.close()


def address_of(peer: object) -> str:
    """Return what connections of one client have in common: its IPv4 address, or its IPv6 network."""
    host = peer[0] if isinstance(peer, tuple) and peer else ""
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _SITE), strict=False))


async def sweeping(gate: Gate) -> None:
    """Look at all connections again and again, for ever."""
    limits = gate.limits
    pause = min(_SWEEP, limits.write_timeout / 4, limits.stranger_keepalive / 4)
    while True:
        await asyncio.sleep(pause)
        gate.sweep()


class Seldom:
    """Writes what others can cause at will at most once a second for each reason, with a count."""

    def __init__(self, log: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to ``log``, a bound logger; ``clock`` is in seconds."""
        self._log = log
        self._clock = clock
        self._said: dict[tuple[str, str], float] = {}
        self._unsaid: Counts[tuple[str, str]] = Counts()

    def warn(self, event: str, reason: str, **keys: Any) -> None:
        """Write a warning, or count it for the next one; reasons are few and our own."""
        key, now = (event, reason), self._clock()
        if now - self._said.get(key, -math.inf) < 1:
            self._unsaid[key] += 1
            return
        self._said[key] = now
        more = self._unsaid.pop(key, 0)
        self._log.warning(event, reason=reason, more_since_last=more, **keys)
