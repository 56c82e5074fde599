"""Where a process of the model stops, and how its store fails: once, when a test says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any

from remediator.model.errors import StoreUnavailable
from remediator.store.database import Database
from tests.engine_world import Clock


class Point(StrEnum):
    """Where a process may be stopped."""

    CLAIMED = "after its claim, before the step"
    PREPARE = "before it looks at what it would change"
    RESERVE = "before the reservation"
    RESERVED = "after the reservation, before it asks for a pause"
    ASKED = "after it asked for a pause, before it looks at its clock"
    CALLING = "in the call, before anything changed"
    CHANGED = "in the call, after the change, before the answer"
    FINISH = "before it writes the result"


class Loss(StrEnum):
    """How the store fails once."""

    BEFORE = "it does not answer, and nothing was written"
    ANSWER = "what was written is durable, and its answer is lost"


class Door:
    """The way of one process to the database; it fails once when it is told to."""

    def __init__(self, database: Database) -> None:
        self._real = database
        self.fails: Loss | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def write(
        self, operation: Any, *, serial: bool = False, within: float | None = None, cost: int = 1
    ) -> Any:
        return await self._through(
            lambda: self._real.write(operation, serial=serial, within=within, cost=cost)
        )

    async def order(self, operation: Any, *, serial: bool = False) -> Any:
        return await self._through(lambda: self._real.order(operation, serial=serial))

    async def insert(self, rows: Any, within: float | None = None, cost: int = 1) -> None:
        await self._through(lambda: self._real.insert(rows, within, cost))

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        if self.fails is Loss.BEFORE:
            self._fail()
        async with self._real.read() as connection:
            yield connection

    async def _through(self, write: Callable[[], Awaitable[Any]]) -> Any:
        if self.fails is Loss.BEFORE:
            self._fail()
        result = await write()
        if self.fails is Loss.ANSWER:
            self._fail()
        return result

    def _fail(self) -> None:
        how, self.fails = self.fails, None
        raise StoreUnavailable(f"as the test says: {how}")


class Gate:
    """Lets its process through, or stops it once at the point that it is armed for."""

    def __init__(self, clock: Clock, door: Door, reached: Counter[str]) -> None:
        """Count in ``reached`` where it stopped, or let the store fail."""
        self._clock, self._door, self._reached = clock, door, reached
        self._armed: Point | None = None
        self._loses: Loss | None = None
        self._go = asyncio.Event()
        self.stopped = asyncio.Event()
        self.parked: Point | None = None
        self.since = 0.0
        """When it stopped, in seconds that really passed."""

    def arm(self, point: Point | None, loses: Loss | None = None) -> None:
        """Stop at ``point``; or, if it ``loses`` something, go on there with a store that fails."""
        self._armed, self._loses = point, loses
        self._go, self.stopped = asyncio.Event(), asyncio.Event()

    def open(self) -> None:
        self._armed = None
        self._go.set()

    async def pass_(self, point: Point) -> None:
        if self._armed is not point:
            return
        self._armed = None
        if self._loses is not None:
            self._door.fails = self._loses
            self._reached[f"at a gate, {self._loses}"] += 1
            return
        self._reached[f"stopped {point}"] += 1
        self.parked, self.since = point, self._clock.monotonic()
        self.stopped.set()
        try:
            await self._go.wait()
        finally:
            self.parked = None
