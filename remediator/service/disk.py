"""The room on the disk of the store: what is kept back for when it is full, and what is said then.

A file of some megabytes is given up when SQLite finds the disk full. What that makes room for is the
end of what is under way and what operators order: webhooks are turned away until there is room again.
A PostgreSQL keeps its own room; here it is only noted when it has none.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from remediator.model.errors import DiskFull, StoreUnavailable
from remediator.service.metrics import Telemetry

RESERVE_FILE = "reserve"
"""File in the state folder that keeps the room."""
_LOOK_EVERY = 5.0
_FULL_FOR = 10.0
"""Seconds for which a PostgreSQL counts as full that has said so."""
_PROBED_EVERY = 2.0
"""Seconds for which the result of one written probe is good: anybody may ask."""
_ROOM = 2
"""Times the reserve that must be free before it is taken again: the rest is for the store."""

_log = structlog.get_logger(__name__)


class DiskRoom:
    """Keeps room for one store. ``folder`` is where SQLite is; None for a PostgreSQL."""

    def __init__(
        self,
        folder: Path | None,
        size: int,
        telemetry: Telemetry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._size = size
        self._telemetry = telemetry
        self._clock = clock
        self._full_at = float("-inf")
        self._held = False

    @property
    def problem(self) -> str | None:
        """Why no new work can be taken; None where there is room."""
        if self._folder is None:
            full = self._clock() - self._full_at < _FULL_FOR
            return "disk full: PostgreSQL has no room left" if full else None
        if self._held:
            return None
        return f"disk full: the reserve of {self._size} bytes in {self._folder} is in use"

    def begin(self) -> None:
        """Take the reserve, or note that there is no room for it."""
        if self._folder is None:
            return
        with_room = self._is_there() or self._take()
        if not with_room:
            _log.error("disk_full", reason=self.problem, free=self._free())
        self._tell()

    def give_way(self) -> bool:
        """Note that the disk is full; return whether that made room for another attempt."""
        self._full_at = self._clock()
        gave = self._held and self._folder is not None
        if gave and self._folder is not None:
            self._held = False
            (self._folder / RESERVE_FILE).unlink(missing_ok=True)
            _log.error(
                "disk_full",
                reason=self.problem,
                cure="make room in the state folder; webhooks get 503 until then",
                free=self._free(),
            )
        self._tell()
        return gave

    def look(self) -> None:
        """Take the reserve again once there is room."""
        missing = self._folder is not None and not self._held
        if missing and self._free() >= _ROOM * self._size and self._take():
            _log.info("disk_has_room", free=self._free(), reserve=self._size)
        self._tell()

    async def watch(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            self.look()

    def _is_there(self) -> bool:
        file = self._file()
        self._held = file.exists() and file.stat().st_blocks * 512 >= self._size
        return self._held

    def _take(self) -> bool:
        file = self._file()
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size)
            finally:
                os.close(descriptor)
        except OSError as error:
            file.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                _log.warning("no_reserve", reason=error.strerror)
            return False
        self._held = True
        return True

    def _file(self) -> Path:
        if self._folder is None:
            raise RuntimeError("a PostgreSQL has no reserve here")
        return self._folder / RESERVE_FILE

    def _free(self) -> int:
        return 0 if self._folder is None else shutil.disk_usage(self._folder).free

    def _tell(self) -> None:
        kept = self._size if self._held else 0
        self._telemetry.disk(full=self.problem is not None, reserve=kept, free=self._free())


class Readiness:
    """Says what keeps the service from taking work; tries a write, but not at everybody's word."""

    def __init__(
        self,
        room: DiskRoom,
        ping: Callable[[], Awaitable[None]],
        write: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask the store by ``ping`` and ``write``, which raise ``StoreUnavailable``."""
        self._room = room
        self._asks = (ping, write)
        self._clock = clock
        self._lock = asyncio.Lock()
        self._known: list[str] = []
        self._known_at = float("-inf")

    async def problems(self) -> list[str]:
        """Name every problem."""
        async with self._lock:
            if self._clock() - self._known_at >= _PROBED_EVERY:
                self._known = await self._store()
                self._known_at = self._clock()
        full = self._room.problem
        return self._known if full is None or self._known else [full]

    async def _store(self) -> list[str]:
        try:
            for ask in self._asks:
                await ask()
        except DiskFull as error:
            self._room.give_way()
            return [str(error)]
        except StoreUnavailable as error:
            return [str(error)]
        return []
