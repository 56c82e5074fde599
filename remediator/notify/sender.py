"""REPORT: tell humans how an incident stands, without ever holding a remediation up.

Notices have their own rows, leases and retries: a chat that is slow, limiting or down makes
messages late and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from remediator.model.errors import OwnershipLost, PermanentError, StoreUnavailable, TemporaryError
from remediator.model.notification import Handle, Notifier, Post, request_key
from remediator.model.views import IncidentView, Report
from remediator.notify.pace import Pace
from remediator.notify.report import summarise
from remediator.store import Store
from remediator.store.database import patiently
from remediator.store.leases import given_back
from remediator.store.outbox import Notice

SEND_TIMEOUT = 30.0
"""Seconds that a notifier may take; less than the lease of a notice."""
NOTE_ATTEMPTS = 5
"""Times that a note is tried again when only it failed."""
_NOTE_AGAIN = timedelta(seconds=30)
_SHORTEST, _LONGEST = 1.0, 300.0
"""Seconds between two attempts, whatever the chat asks for."""
_LOG = "log"
"""The channel of a handle of the log's."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Telling:
    """How humans are told of incidents."""

    notifier: Notifier
    count: Callable[[str], None]
    """Takes ``sent``, ``delayed`` or ``failed``."""
    compose: Callable[[IncidentView], Report] = summarise
    note: Callable[[IncidentView], Awaitable[None]] | None = None
    """Sees every incident of which humans are told, whatever becomes of the message."""
    pace: Pace = field(default_factory=lambda: Pace(time.monotonic, 0.0))
    """Keeps a channel from being written to too often; by default as often as there is something."""


async def deliver(store: Store, telling: Telling) -> bool:
    """Send the first message that is due to a channel that is free; return whether there was one."""
    notices = await store.notices.claim(1, telling.pace.busy)
    for notice in notices:
        try:
            async with given_back(store.notices.release, notice):
                await _deliver(store, telling, notice)
        except OwnershipLost as error:
            _log.warning("notice_lost", reason=str(error))
    return bool(notices)


async def _deliver(store: Store, telling: Telling, notice: Notice) -> None:
    note, count = telling.note, telling.count
    try:
        view = await _ready(store, telling, notice)
        if view is None:
            return
        noted = note is None or await _noted(note, view)
        async with asyncio.timeout(SEND_TIMEOUT):
            report = telling.compose(view)
            handle = await _send(store, telling, notice, report)
    except TimeoutError:
        await _later(store, notice, f"no answer within {SEND_TIMEOUT:g} s", None)
        count("delayed")
    except (OwnershipLost, StoreUnavailable):
        raise
    except TemporaryError as error:
        await _later(store, notice, str(error), error.retry_after)
        count("delayed")
    except PermanentError as error:
        _log.error("notice_refused", reason=str(error), incident_id=notice.incident_id)
        await store.notices.failed(notice, str(error), timedelta(seconds=_LONGEST))
        count("failed")
    except Exception as error:  # noqa: BLE001 - a fault of ours may not silence all messages
        _log.exception("notice_failed", incident_id=notice.incident_id)
        await _later(store, notice, f"failed: {type(error).__name__}", None)
        count("failed")
    else:
        again = None if noted or notice.attempts >= NOTE_ATTEMPTS else _NOTE_AGAIN
        await patiently(lambda: store.notices.sent(notice, handle, again))
        count("sent")


async def _ready(store: Store, telling: Telling, notice: Notice) -> IncidentView | None:
    """Return what is to be told now; None where it is gone, or its channel is busy."""
    view = await store.records.incident(notice.incident_id)
    if view is None:
        await store.notices.sent(notice, notice.handle)
        return None
    channel = telling.notifier.channel(view)
    if channel in telling.pace.busy:
        await store.notices.put_back(notice, channel)
        return None
    telling.pace.used(channel)
    return view


async def _send(store: Store, telling: Telling, notice: Notice, report: Report) -> Handle | None:
    """Send ``report``, keeping where each new message is before the next one is posted.

    A channel that asks for a pause is left alone for it, whatever is to be told there.
    """
    notifier = telling.notifier
    try:
        handle = await notifier.send(report, notice.handle)
        while handle is not None and handle.more:
            await store.notices.keep(notice, handle)
            handle = await notifier.send(report, handle)
    except TemporaryError as error:
        if error.retry_after is not None:
            pause = min(error.retry_after, _LONGEST)
            telling.pace.used(notifier.channel(report.incident), pause)
        raise
    return handle


async def _noted(note: Callable[[IncidentView], Awaitable[None]], view: IncidentView) -> bool:
    """Take notes; return whether that worked. If not, the message comes first all the same."""
    try:
        await note(view)
    except Exception:  # noqa: BLE001 - a fault of ours may not silence all messages
        _log.exception("note_failed", incident_id=view.id)
        return False
    return True


async def _later(store: Store, notice: Notice, reason: str, after: float | None) -> None:
    seconds = 2.0 ** min(notice.attempts, 10) if after is None else after
    seconds = min(max(seconds, _SHORTEST), _LONGEST)
    _log.warning("notice_delayed", reason=reason, again_in=seconds)
    await store.notices.failed(notice, reason, timedelta(seconds=seconds))


class LogNotifier:
    """Tells the log, where no chat is configured."""

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        """Write the headline and the next step as one line, and a request for an approval as one."""
        if handle is None or handle.channel != _LOG:
            handle = Handle(channel=_LOG, message="")
        for request in report.requests:
            key = request_key(request.id)
            if request.waits and handle.post(key) is None:
                self._tell(report, request.headline)
                handle = handle.having(Post(key=key, message="", digest=""))
        self._tell(report, report.headline)
        return handle

    def channel(self, incident: IncidentView) -> str:
        """Everything is written to the same log."""
        return _LOG

    async def call(self, report: Report) -> None:
        """Write it as a line."""
        self._tell(report, report.headline)

    def _tell(self, report: Report, headline: str) -> None:
        _log.info(
            "report",
            incident_id=report.incident.id,
            headline=headline,
            urgent=report.urgent,
            next_step=report.next_step,
        )
