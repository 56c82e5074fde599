"""NORMALISE: fetches what a webhook lacks, outside of its request and with patience that ends.

A PagerDuty event waits in the store until the alerts of its incident are known. When they cannot
be had it goes on with what the webhook itself says, and with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Protocol

import structlog

from remediator.intake.pagerduty_details import REFUSED, with_labels
from remediator.model.alert import Alert
from remediator.model.errors import OwnershipLost, PermanentError, StoreUnavailable, TemporaryError
from remediator.store.database import patiently
from remediator.store.leases import given_back
from remediator.store.sender_events import Waiting

AT_ONCE = 16
"""Events that one process fetches at the same time."""
PATIENCE = timedelta(seconds=60)
"""Time after its receipt in which an event is fetched; then it goes on without."""
ATTEMPTS = 8
FETCH_WITHIN = 8.0
"""Seconds for one incident; less than the lease of its event."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 15.0

Fetch = Callable[[str], Awaitable[Sequence[object]]]
"""Returns what the sender tells of the alerts of its incident, as the wire has it."""

_log = structlog.get_logger(__name__)


class Queue(Protocol):
    """Where events wait."""

    async def claim(self, limit: int) -> list[Waiting]:
        """Claim what is to be fetched now."""
        ...

    async def settle(
        self, waiting: Waiting, alerts: Sequence[Alert] | None, reason: str = ""
    ) -> None:
        """Let it go on."""
        ...

    async def later(self, waiting: Waiting, reason: str, again_in: timedelta) -> None:
        """Let it be tried again."""
        ...

    async def release(self, waiting: Waiting) -> None:
        """Let whoever comes next fetch it."""
        ...


class Fetching:
    """Fetches what waits. Without ``fetch`` all goes on as it is: nobody could fetch it."""

    def __init__(self, queue: Queue, fetch: Fetch | None) -> None:
        self._queue = queue
        self._fetch = fetch

    async def look(self) -> bool:
        """Fetch what is due; return whether there may be more."""
        claimed = await self._queue.claim(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for waiting in claimed:
                group.create_task(self._bring(waiting), name=f"fetch {waiting.incident}")
        return len(claimed) == AT_ONCE

    async def _bring(self, waiting: Waiting) -> None:
        try:
            async with given_back(self._queue.release, waiting):
                await self._try(waiting)
        except OwnershipLost as error:
            _log.warning("fetch_lost", reason=str(error))
        except StoreUnavailable as error:  # its lease runs out and it is fetched again
            _log.warning("fetch_not_stored", reason=str(error))

    async def _try(self, waiting: Waiting) -> None:
        try:
            alerts = await self._alerts(waiting)
        except TemporaryError as error:
            await self._later(waiting, str(error), error.retry_after)
        except PermanentError as error:
            await self._give_up(waiting, str(error))
        except Exception as error:  # noqa: BLE001 - one odd answer must not hold its incident up
            _log.exception("fetch_failed", incident=waiting.incident)
            await self._give_up(waiting, f"it cannot be read: {type(error).__name__}")
        else:
            doubt = next((a.annotations[REFUSED] for a in alerts if REFUSED in a.annotations), "")
            if doubt:
                _log.warning("labels_refused", incident=waiting.incident, reason=doubt)
            await patiently(lambda: self._queue.settle(waiting, alerts, doubt))

    async def _alerts(self, waiting: Waiting) -> tuple[Alert, ...]:
        if self._fetch is None:
            raise PermanentError("no API token is configured any more")
        if waiting.attempts and waiting.waited > PATIENCE:
            raise PermanentError(f"not within {PATIENCE.total_seconds():g} s")
        return await fetched(self._fetch, waiting.incident, waiting.alert)

    async def _later(self, waiting: Waiting, reason: str, after: float | None) -> None:
        backoff = min(_FIRST_PAUSE * 2.0**waiting.attempts, _LONGEST_PAUSE)
        again_in = timedelta(seconds=backoff if after is None else max(after, _FIRST_PAUSE))
        if waiting.attempts + 1 >= ATTEMPTS or waiting.waited + again_in > PATIENCE:
            await self._give_up(waiting, reason)
            return
        _log.warning("fetch_delayed", incident=waiting.incident, reason=reason)
        await patiently(lambda: self._queue.later(waiting, reason, again_in))

    async def _give_up(self, waiting: Waiting, reason: str) -> None:
        _log.warning("labels_not_fetched", incident=waiting.incident, reason=reason)
        alone = without_labels(waiting.alert, reason)
        await patiently(lambda: self._queue.settle(waiting, (alone,), reason))


async def fetched(fetch: Fetch, incident: str, alert: Alert) -> tuple[Alert, ...]:
    """Return the alerts that the sender's ``incident`` stands for; ``alert`` is what it said.

    Raises ``TemporaryError`` and ``PermanentError``.
    """
    try:
        async with asyncio.timeout(FETCH_WITHIN):
            listed = await fetch(incident)
    except TimeoutError:
        raise TemporaryError(f"no answer within {FETCH_WITHIN:g} s") from None
    return await asyncio.to_thread(with_labels, alert, listed)


def without_labels(alert: Alert, reason: str) -> Alert:
    """Return ``alert`` with the reason for which it has no more labels than the webhook says."""
    said = alert.annotations | {"labels_not_fetched": reason[:1000]}
    return alert.model_copy(update={"annotations": said})
