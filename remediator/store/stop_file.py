"""The stop switch that works without the store: a pause that it does not take is kept in a file.

Every change looks here right before its call. The file was made at the start, with room for what
will stand in it, so that a full disk does not matter. What it holds goes into the store, and so to
all replicas, once that takes it again; until then it holds in this process alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from remediator.model.errors import Refused, StoreUnavailable
from remediator.model.events import Announce
from remediator.model.incident import Incident
from remediator.model.maintenance import Halt, scopes_of
from remediator.model.views import Kept, PauseView
from remediator.store.database import Database
from remediator.store.operator_commands import Commands

STOP_FILE = "stop"
"""Its name in the state folder."""
_SIZE = 16 * 1024
"""Bytes of it, written over in place: on a full disk nothing can become longer."""
_REASON = 200
"""Characters of a reason that it keeps."""
_WITHIN = 5.0
"""Seconds in which the store has to take a pause."""
_AGAIN = 2.0
"""Seconds between two attempts to hand a pause on to the store."""

_Pauses = TypeAdapter(tuple[PauseView, ...])
_log = structlog.get_logger(__name__)


class StopFile:
    """The pauses that the store has not taken yet, in memory and in a file."""

    def __init__(self, path: Path) -> None:
        """Read ``path`` when there is one. What cannot be read stops everything."""
        self._path = path
        self._pauses: dict[str, PauseView] = {p.scope: p for p in _read(path)}
        self._descriptor = _prepared(path)

    @property
    def pauses(self) -> list[PauseView]:
        """What is paused here alone."""
        return list(self._pauses.values())

    def halt(self, incident: Incident) -> Halt | None:
        """Say why nothing of ``incident`` may be changed now."""
        for scope in scopes_of(incident):
            pause = self._pauses.get(scope)
            if pause is not None:
                why = pause.reason or "no reason given"
                return Halt(reason=f"{scope} is paused by {pause.by}, here alone: {why}")
        return None

    def add(self, pause: PauseView) -> bool:
        """Pause at once; return whether that outlives this process."""
        self._pauses[pause.scope] = pause
        return self._write()

    def remove(self, pause: PauseView) -> None:
        """End a pause that is here alone, or that the store has taken; not one that came since."""
        if self._pauses.get(pause.scope) == pause:
            del self._pauses[pause.scope]
            self._write()

    def close(self) -> None:
        """Let the file go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self) -> bool:
        if self._descriptor is None:
            return False
        short = [p.model_copy(update={"reason": p.reason[:_REASON]}) for p in self._pauses.values()]
        content = _Pauses.dump_json(tuple(short)) if short else b""
        if len(content) > _SIZE:
            content = b"more is paused than fits here"  # which stops everything when it is read
        try:
            os.pwrite(self._descriptor, content.ljust(_SIZE), 0)
            os.fsync(self._descriptor)
        except OSError as error:
            _log.error("stop_file_not_written", file=str(self._path), reason=error.strerror)
            return False
        return True


def _read(path: Path) -> tuple[PauseView, ...]:
    try:
        content = path.read_bytes().strip(b" \0\n")
        return _Pauses.validate_json(content) if content else ()
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError):
        reason = f"the stop file {path} cannot be read; resume when that is understood"
        _log.error("stop_file_unreadable", file=str(path))
        return (PauseView(scope="global", by="stop file", reason=reason, since=datetime.now(UTC)),)


def _prepared(path: Path) -> int | None:
    """Open the file, with all its room; None where there is no room even for it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if os.fstat(descriptor).st_size < _SIZE:
            missing = _SIZE - os.fstat(descriptor).st_size
            os.pwrite(descriptor, b" " * missing, _SIZE - missing)
            os.fsync(descriptor)
    except OSError as error:
        _log.error("no_stop_file", file=str(path), reason=error.strerror)
        return None
    return descriptor


class SureCommands(Commands):
    """Operators' orders, with a pause that nothing can refuse but an unknown scope."""

    def __init__(  # noqa: PLR0913, PLR0917 - the last five are the base's
        self,
        stop: StopFile,
        stored: Callable[[], Awaitable[list[PauseView]]],
        database: Database,
        changed: Callable[[], None],
        scopes: Collection[str],
        deciders: Mapping[str, Collection[str]],
        announce: Announce = lambda *_: None,
    ) -> None:
        """Keep in ``stop`` what the store does not take; ``stored`` lists what it has."""
        super().__init__(database, changed, scopes, deciders, announce)
        self._stop = stop
        self._stored = stored
        self._one_at_a_time = asyncio.Lock()

    def held(self) -> list[PauseView]:
        """List the pauses that this process alone keeps."""
        return self._stop.pauses

    async def pause(self, scope: str, by: str, reason: str) -> PauseView:
        """Stop every change in ``scope``: by the store, or else in this process at once."""
        self._known(scope, "pause")
        try:
            # another order may hang, so its turn is waited for no longer than the store
            async with asyncio.timeout(_WITHIN), self._one_at_a_time:
                return await super().pause(scope, by, reason)
        except (StoreUnavailable, TimeoutError) as error:
            why = str(error) or f"the store has not taken it within {_WITHIN:g} s"
        now = datetime.now(UTC)
        view = PauseView(scope=scope, by=by, reason=reason, since=now, kept=Kept.REPLICA)
        lasts = self._stop.add(view)
        _log.error("paused_here_alone", scope=scope, by=by, reason=why, outlives_restart=lasts)
        return view

    async def resume(self, scope: str, by: str) -> None:
        """Allow changes in ``scope`` again; ``StoreUnavailable`` while that is the store's to say."""
        async with self._one_at_a_time:
            here = [pause for pause in self._stop.pauses if pause.scope == scope]
            try:
                await super().resume(scope, by)
            except Refused:
                if not here:
                    raise
            except StoreUnavailable:
                if not here or any(pause.scope == scope for pause in await self._stored()):
                    raise
            for pause in here:
                self._stop.remove(pause)

    async def hand_over(self) -> None:
        """Give the store what is kept here, once it takes it; for ever."""
        while True:
            for pause in self._stop.pauses:
                with contextlib.suppress(StoreUnavailable):
                    await self._hand_over(pause)
            await asyncio.sleep(_AGAIN)

    async def _hand_over(self, pause: PauseView) -> None:
        async with self._one_at_a_time:
            if pause not in self._stop.pauses:  # resumed meanwhile
                return
            with contextlib.suppress(Refused):  # a scope that the configuration has lost
                await super().pause(pause.scope, pause.by, pause.reason)
            self._stop.remove(pause)
            _log.info("pause_stored", scope=pause.scope, by=pause.by)
