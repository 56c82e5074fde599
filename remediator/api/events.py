"""The live events as a stream of server-sent events, for consoles."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from remediator.api.routing import STOPPING, Call, Nothing, Route, unavailable
from remediator.model.access import Permission
from remediator.model.events import LiveEvent

QUIET = 15.0
"""Seconds without an event after which a comment is sent, by which a dead connection is noticed."""
_LAST_WORDS = 1.0
"""Seconds for the end of a stream; whoever does not read is cut off."""
_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


def live_routes(hub: Hub) -> tuple[Route, ...]:
    """Return the route of the stream."""

    async def events(call: Call) -> web.StreamResponse:
        if call.stopping:
            raise unavailable("the service is stopping")
        if call.request.method == "HEAD":
            return web.Response(headers=_HEADERS)
        with hub.listening() as listener:
            if listener is None:
                raise unavailable("there are too many listeners already")
            return await _stream(call, listener)

    return (
        Route(
            "GET",
            "/api/v1/events",
            Permission.READ,
            events,
            "Follow what happens, as server-sent events: hints with ids, each a reason to read",
            query=Nothing,
            events=LiveEvent,
            errors=(503,),
        ),
    )


async def _stream(call: Call, listener: Listener) -> web.StreamResponse:
    """Write events until the caller goes, is too slow, or the service stops."""
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(call.request)
    with (
        _running(_write(response, listener)) as writing,
        _running(listener.dropped.wait()) as dropped,
        _running(call.request.app[STOPPING].wait()) as stopping,
    ):
        await asyncio.wait((writing, dropped, stopping), return_when=asyncio.FIRST_COMPLETED)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_LAST_WORDS):
            await response.write_eof()
            return response
    if call.request.transport is not None:
        call.request.transport.abort()
    return response


@contextlib.contextmanager
def _running(work: Any) -> Iterator[asyncio.Task[Any]]:
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()


async def _write(response: web.StreamResponse, listener: Listener) -> None:
    with contextlib.suppress(OSError):  # the caller has gone
        await response.write(b": listening\n\n")
        while True:
            try:
                async with asyncio.timeout(QUIET):
                    event = await listener.next()
            except TimeoutError:
                await response.write(b": quiet\n\n")
                continue
            said = event.model_dump_json(exclude_none=True)
            await response.write(f"event: {event.kind}\ndata: {said}\n\n".encode())


KEPT = 256
"""Events that wait for one listener; whoever is slower than that is let go."""
LISTENERS = 64
"""Listeners at the same time."""


class Listener:
    """One place where events are waited for."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[LiveEvent] = asyncio.Queue(KEPT)
        self.dropped = asyncio.Event()
        """Set when it was too slow: what it missed is not made up for."""

    def take(self, event: LiveEvent) -> None:
        """Keep an event for it, as long as there is room."""
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped.set()

    async def next(self) -> LiveEvent:
        """Wait for the next event."""
        return await self._waiting.get()


class Hub:
    """Hands every event to every listener of this process."""

    def __init__(self, most: int = LISTENERS) -> None:
        """Take ``most`` listeners at a time."""
        self._most = most
        self._listeners: set[Listener] = set()

    def publish(self, event: LiveEvent) -> None:
        """Hand ``event`` out; never waits."""
        for listener in tuple(self._listeners):
            listener.take(event)
            if listener.dropped.is_set():
                self._listeners.discard(listener)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Listener | None]:
        """Listen inside the block; None when there are too many listeners already."""
        if len(self._listeners) >= self._most:
            yield None
            return
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
