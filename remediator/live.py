"""Live events: hints that something happened, for consoles and for the other replicas.

A hint names a thing and never shows it; whoever wants to know reads the store. A hint may be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from enum import StrEnum

from pydantic import AwareDatetime, Field

from remediator.model import Value

KEPT = 256
"""Events that wait for one listener; whoever is slower than that is let go."""
LISTENERS = 64
"""Listeners at the same time."""


class Happening(StrEnum):
    """What a live event is about."""

    DELIVERY = "delivery"
    """A delivery became durable."""
    OPENED = "opened"
    """An incident was opened."""
    CHANGED = "changed"
    """Something of an incident changed."""
    CLOSED = "closed"
    """An incident was closed."""
    PAUSED = "paused"
    """A stop switch was switched on."""
    RESUMED = "resumed"
    """A stop switch was switched off."""


class LiveEvent(Value):
    """One hint, without anything that needs protection."""

    kind: Happening
    id: str | None = Field(default=None, max_length=100)
    """The delivery or the incident."""
    scope: str | None = Field(default=None, max_length=200)
    """What was paused or resumed."""
    at: AwareDatetime
    """When, by the clock of the replica where it happened."""


Announce = Callable[[Happening, str], None]
"""Takes what happened, and the id or the scope that it happened to. Returns at once."""


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
