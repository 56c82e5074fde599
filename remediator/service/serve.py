"""Serves until a signal ends it, and begins again with a new configuration on SIGHUP.

A new configuration is read and checked whole before anything is touched; one that is wrong is
refused, and the running one stays. Then the service drains as at its end and starts again in the
same process, so that a reload promises what a restart promises and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable

import structlog

from remediator.config.settings import Settings
from remediator.model.errors import ConfigError, StoreUnavailable
from remediator.service.loading import load
from remediator.service.run import Running, running

_log = structlog.get_logger(__name__)


async def serve(
    settings: Settings,
    *,
    on_ready: Callable[[Running, Settings], None],
    reread: Callable[[], Settings],
) -> None:
    """Run the service until SIGTERM or SIGINT, also while it starts; a second one ends it at once.

    SIGHUP has it begin again with what ``reread`` returns.
    """
    async with ended_by_signals(), _hangups() as hangup:
        before: Settings | None = None
        while True:
            ready = False
            try:
                async with running(settings) as service:
                    ready = True
                    on_ready(service, settings)
                    following = await _following(settings, reread, hangup)
                before, settings = settings, following
            except (ConfigError, StoreUnavailable) as error:
                if ready or before is None:
                    raise
                _log.error("reload_failed", reason=str(error), goes_on_with="the one before")
                settings, before = before, None


@contextlib.asynccontextmanager
async def _hangups() -> AsyncIterator[asyncio.Event]:
    """Let SIGHUP set an event inside the block, instead of ending the process."""
    loop, hangup = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    try:
        yield hangup
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # also while it ends


async def _following(
    current: Settings, reread: Callable[[], Settings], hangup: asyncio.Event
) -> Settings:
    """Wait for a SIGHUP with a configuration that can be served; return it."""
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            found = reread()
            found.check_listen()
            load(found)
        except ConfigError as error:
            _log.error("reload_refused", reason=str(error), goes_on_with="the one before")
            continue
        changed = current.changes(found)
        _log.info("reloading", changed=changed or "no key; secrets and playbooks are read again")
        return found


_STOPS = (signal.SIGTERM, signal.SIGINT)


@contextlib.asynccontextmanager
async def ended_by_signals() -> AsyncIterator[None]:
    """End the block by cancelling it, without an error; a second signal ends the process at once."""
    loop, inside, told = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()

    def end() -> None:
        for number in _STOPS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        told.set()
        if inside is not None:
            inside.cancel()

    for number in _STOPS:
        loop.add_signal_handler(number, end)
    try:
        yield
    except asyncio.CancelledError:
        if not told.is_set():
            raise
