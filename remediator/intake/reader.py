"""NORMALISE: Alertmanager bodies are read as configured, within a bound of memory for all of them.

A large body is read beside the event loop, and one at a time: what a body becomes takes several
times its size until it is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime

from remediator.api.routing import unavailable
from remediator.intake import alertmanager
from remediator.intake.alertmanager import MAX_ALERTS, Foreign, Parsed
from remediator.model.alert import Delivery

LARGE = 256 * 1024
"""Bytes of a body that is read beside the event loop, and in its turn."""
TURN_WITHIN = 2.0
"""Seconds that a large body waits for its turn; then its sender has to come again."""


def _anybodys(_credential: str | None) -> Foreign:
    return lambda _labels: None


@dataclass(frozen=True)
class Reader:
    """Reads bodies; the same for what comes, for what is replayed, and after a restart."""

    max_alerts: int = MAX_ALERTS
    foreign: Callable[[str | None], Foreign] = _anybodys
    """Returns what a credential may not speak of, by the credential's name."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @contextlib.asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Wait until a body of ``size`` bytes may be read and stored; raises the 503 if not soon."""
        if size <= LARGE:
            yield
            return
        try:
            async with asyncio.timeout(TURN_WITHIN):
                await self._turn.acquire()
        except TimeoutError:
            raise unavailable(
                "no more can be taken now: other large bodies are being read"
            ) from None
        try:
            yield
        finally:
            self._turn.release()

    async def read(self, body: bytes, received_at: datetime, credential: str | None) -> Parsed:
        """Read a body that ``credential`` sent; as ``alertmanager.parse`` does."""
        foreign = self.foreign(credential)
        if len(body) <= LARGE:
            return alertmanager.parse(body, received_at, self.max_alerts, foreign)
        parse = alertmanager.parse
        return await asyncio.to_thread(parse, body, received_at, self.max_alerts, foreign)

    async def again(self, delivery: Delivery) -> Parsed:
        """Read a stored body once more."""
        return await self.read(delivery.body, delivery.received_at, delivery.credential)
