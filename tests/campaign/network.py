"""The network between the service and one backend: a TCP proxy with weather."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

_LOOKS_EVERY = 0.1
"""Seconds between two looks whether this process runs."""
_STANDSTILL = 0.1
"""Seconds by which such a look is late when it does not."""


class Span(NamedTuple):
    """A time, by the clock that all servers of a campaign have."""

    begin: datetime
    end: datetime
    who: str = ""
    """Which replica it was that stood still."""
    written: frozenset[str] = frozenset()
    """Effects that are in the commit at which it stopped itself."""

    def meets(self, begin: datetime, end: datetime) -> bool:
        """Whether some of it is between the two."""
        return self.begin <= end and begin <= self.end

    def within(self, begin: datetime, end: datetime) -> timedelta:
        """Return how much of it is between the two."""
        return max(min(self.end, end) - max(self.begin, begin), timedelta(0))


@dataclass(frozen=True)
class Pause:
    """An operator's pause, from its answer until its end was asked for."""

    scope: str
    span: Span

    def covers(self, system: str, service: str) -> bool:
        return self.scope in {"global", system, f"{system}/{service}"}


@dataclass
class Weather:
    """How the network is right now. Shares are of the messages, from 0 to 1."""

    delay: float = 0.0
    """Seconds that each message is late."""
    reset: float = 0.0
    """Share after which the connection breaks, and the message never arrives."""
    lose: float = 0.0
    """Share of the requests that arrive, and whose answer is lost with the connection."""
    down: bool = False
    """Nobody can connect, and what is connected breaks."""
    hole: bool = False
    """Nothing arrives, and nobody is told."""


@dataclass
class Link:
    """Stands in front of one server."""

    host: str
    server_port: int
    chance: random.Random
    weather: Weather = field(default_factory=Weather)
    base_delay: float = 0.0
    """Seconds that each message is late in any weather."""
    port: int = 0
    frozen: int = 0
    """How often all that was connected fell silent for ever; new connections are not touched."""
    lost: int = 0
    """Answers that were lost."""
    _serving: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def turn(self, weather: Weather | None = None) -> None:
        """Let the weather change; None: it is fine."""
        self.weather = weather or Weather()
        self._changed.set()
        self._changed = asyncio.Event()
        if self.weather.down:
            self.cut()

    def freeze(self) -> None:
        """Let nothing arrive any more on the connections there are, as when a server vanishes."""
        self.frozen += 1

    def cut(self) -> None:
        """Break every connection."""
        for task in self._serving:
            task.cancel()

    def through(self, url: str) -> str:
        """Return ``url`` by way of this link."""
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        place = f"127.0.0.1:{self.port}"
        return parts._replace(netloc=f"{user}@{place}" if user else place).geturl()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(writer.transport.abort)
            if self.weather.down:
                return
            answers, requests = await asyncio.open_connection(self.host, self.server_port)
            stack.callback(requests.transport.abort)
            deaf = asyncio.Event()
            there = asyncio.create_task(self._pump(reader, requests, deaf, asking=True))
            back = asyncio.create_task(self._pump(answers, writer, deaf, asking=False))
            try:
                await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in (there, back):
                    pump.cancel()
                await asyncio.gather(there, back, return_exceptions=True)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        deaf: asyncio.Event,
        *,
        asking: bool,
    ) -> None:
        """Pass messages on until one side leaves, or the weather ends the connection."""
        born = self.frozen
        while data := await source.read(1 << 16):
            while self.weather.hole or self.frozen > born:
                await self._changed.wait()
            weather = self.weather
            if weather.delay or self.base_delay:
                await asyncio.sleep(weather.delay or self.base_delay)
            if not asking and deaf.is_set():
                self.lost += 1
                return
            if self.chance.random() < weather.reset:
                return
            if asking and self.chance.random() < weather.lose:
                deaf.set()
            sink.write(data)


async def note_standstills(standstills: list[Span]) -> None:
    """Note when this process, and with it all of its network, stood still; until cancelled."""
    clock = asyncio.get_running_loop().time
    while True:
        began, asleep_at = datetime.now(UTC), clock()
        await asyncio.sleep(_LOOKS_EVERY)
        if clock() - asleep_at > _LOOKS_EVERY + _STANDSTILL:
            standstills.append(Span(began, datetime.now(UTC)))


@contextlib.asynccontextmanager
async def link_to(url: str, chance: random.Random) -> AsyncIterator[Link]:
    """Stand in front of the server of ``url`` on a free port."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    link = Link(parts.hostname, parts.port, chance)
    server = await asyncio.start_server(link.accept, "127.0.0.1", 0)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        server.close()
        link.turn(Weather(down=True))
        await asyncio.gather(*link._serving, return_exceptions=True)


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
