"""Live events from replica to replica, by publish and subscribe. Lost ones are not made up for."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from pydantic import Field, ValidationError

from remediator.model.base import Value
from remediator.model.events import LiveEvent
from remediator.service.replicas.redis import AGAIN, SharedRedis, reason_of

WAITING = 1000
"""Events that wait to be sent; further ones are dropped."""
TOGETHER = 100
"""Events in one message, so that a storm of deliveries is not a storm of messages."""
LARGEST = 64 * 1024
"""Characters of a message that is read."""
QUIET = 10.0
"""Seconds without a message after which the server is asked whether it is still there."""

_log = structlog.get_logger(__name__)


class Message(Value):
    """What one replica tells the others."""

    origin: str
    """Who sent it, so that nobody hears itself."""
    events: tuple[LiveEvent, ...] = Field(max_length=TOGETHER)


class SharedEvents:
    """Tells the other replicas, and hears them. Use ``shared_events``."""

    def __init__(
        self, shared: SharedRedis, origin: str, heard: Callable[[LiveEvent], None]
    ) -> None:
        """Call ``heard`` for every event of another replica than ``origin``, which is ours."""
        self._shared = shared
        self._origin = origin
        self._heard = heard
        self._channel = f"{shared.namespace}:events"
        self._waiting: asyncio.Queue[LiveEvent] = asyncio.Queue(WAITING)

    def send(self, event: LiveEvent) -> None:
        """Tell the others soon, unless the server is lost or slower than we are."""
        if not self._shared.is_lost:
            with contextlib.suppress(asyncio.QueueFull):
                self._waiting.put_nowait(event)

    async def run_sending(self) -> None:
        """Send what waits, for ever."""
        while True:
            events = [await self._waiting.get()]
            while len(events) < TOGETHER and not self._waiting.empty():
                events.append(self._waiting.get_nowait())
            said = Message(origin=self._origin, events=tuple(events)).model_dump_json()
            await self._shared.tried(functools.partial(self._publish, said))

    async def _publish(self, said: str) -> None:
        await self._shared.client.publish(self._channel, said)

    async def run_hearing(self) -> None:
        """Hear the others, for ever; begin anew when the connection is gone."""
        while True:
            try:
                async with self._shared.client.pubsub() as subscription:
                    await subscription.subscribe(self._channel)
                    await self._hear(subscription)
            except Exception as error:  # noqa: BLE001 - whatever is wrong here may harm nobody
                _log.debug("live_events_not_heard", reason=reason_of(error))
            await asyncio.sleep(AGAIN)

    async def _hear(self, subscription: Any) -> None:
        asked = False
        while True:
            found = await subscription.get_message(timeout=QUIET)
            if found is None and asked:
                return
            asked = found is None
            if asked:
                await subscription.ping()
            elif found["type"] == "message":
                self._take(found["data"])

    def _take(self, said: str) -> None:
        try:
            message = Message.model_validate_json(said[:LARGEST])
        except ValidationError:  # of another version, or not ours
            _log.debug("live_message_unreadable", size=len(said))
            return
        if message.origin != self._origin:
            for event in message.events:
                self._heard(event)


@contextlib.asynccontextmanager
async def shared_events(
    shared: SharedRedis, origin: str, heard: Callable[[LiveEvent], None]
) -> AsyncIterator[SharedEvents]:
    """Send and hear inside the block."""
    events = SharedEvents(shared, origin, heard)
    async with asyncio.TaskGroup() as group:
        loops = (
            group.create_task(events.run_sending(), name="events-sending"),
            group.create_task(events.run_hearing(), name="events-hearing"),
        )
        try:
            yield events
        finally:
            for loop in loops:
                loop.cancel()
