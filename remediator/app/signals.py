"""How the system tells the service to end: SIGTERM, or SIGINT from a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

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
