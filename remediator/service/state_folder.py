"""The state folder: one process at a time, and nobody else reads what is in it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

from remediator.model.errors import ConfigError
from remediator.service.audit_keys import STORE_FILE
from remediator.service.disk import RESERVE_FILE
from remediator.store.stop_file import STOP_FILE

LOCK_FILE = "lock"
_OWNERS = 0o077
"""Bits of a mode that belong to everybody but the owner; also the umask in which files are made."""
_FILES = (
    *(f"{STORE_FILE}{end}" for end in ("", "-wal", "-shm", "-journal")),
    *(LOCK_FILE, STOP_FILE, RESERVE_FILE),
)
"""Those whose mode is set right. A secret that others could read is refused by who reads it."""

_log = structlog.get_logger(__name__)


@contextlib.contextmanager
def state_folder(folder: Path) -> Iterator[None]:
    """Own ``folder`` inside the block; whatever is made there is for its owner alone.

    Raises ``ConfigError`` when it cannot be used, or another process uses it.
    """
    before = os.umask(_OWNERS)
    try:
        with _locked(folder):
            wide = openness(folder)
            if wide is not None:
                _log.warning("state_folder_open", folder=str(folder), reason=wide)
            yield
    finally:
        os.umask(before)


def openness(folder: Path) -> str | None:
    """Say who but the owner can look into ``folder``, and what to do; None for nobody."""
    try:
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError:
        return None
    if not mode & _OWNERS:
        return None
    return (
        f"the state folder {folder} has mode {mode & 0o777:04o}: others on this machine can look"
        f" into it; chmod 700 {folder}"
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        lock.acquire(blocking=False)
        _close_to_others(folder)
    except Timeout:
        raise ConfigError(
            f"another process uses the state folder {folder}; stop it, or set"
            " REMEDIATOR_STATE_DIR to another folder"
        ) from None
    except OSError as error:
        raise ConfigError(f"the state folder {folder} cannot be used: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _close_to_others(folder: Path) -> None:
    """Set right what an earlier version, or another umask, made readable."""
    for name in _FILES:
        file = folder / name
        try:
            mode = stat.S_IMODE(file.stat().st_mode)
            if mode & _OWNERS:
                file.chmod(mode & ~_OWNERS)
                _log.warning("state_file_closed", file=str(file), was=f"{mode:04o}")
        except FileNotFoundError:
            continue
        except PermissionError:  # another user's, who lets us write it
            _log.warning("state_file_open", file=str(file))
