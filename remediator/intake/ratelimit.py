"""RECEIVE: who posts more often than is admitted is sent away, to come again."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable

import structlog

from remediator.api.routing import unavailable

_log = structlog.get_logger(__name__)


async def _at_once(_credential: str) -> float:
    return 0.0


class Turnstile:
    """Admits webhooks by credential. What it turns away is not stored, counted, and logged."""

    def __init__(
        self,
        wait: Callable[[str], Awaitable[float]] = _at_once,
        refused: Callable[[str], None] = lambda _reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``wait`` returns 0 for who may post now, else the seconds until they may."""
        self._wait = wait
        self._refused = refused
        self._clock = clock
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    async def admit(self, credential: str) -> None:
        """Let it pass, or raise the 503 after which the sender repeats it."""
        seconds = await self._wait(credential)
        if seconds:
            self._refused("over_limit")
            self._say(credential)
            limit = "it posts more often than admission.rate allows"
            raise unavailable(f"no more is taken of {credential!r} now: {limit}", seconds)

    def _say(self, credential: str) -> None:
        """Log at most once a second and credential: there are only those that are configured."""
        now = self._clock()
        if now - self._said.get(credential, -math.inf) < 1:
            self._unsaid[credential] = self._unsaid.get(credential, 0) + 1
            return
        self._said[credential] = now
        more = self._unsaid.pop(credential, 0)
        _log.warning("delivery_over_limit", credential=credential, more_since_last=more)
