"""Tells a full disk from other faults of the store."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from remediator.model.errors import DiskFull, StoreUnavailable

_POSTGRES_FULL = "53100"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_OF_THE_FILES = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""What SQLite says, besides that it is full, where it cannot make its log or its index larger."""
_NEXT_TO_NOTHING = 64 * 1024
"""Bytes: with less than that free, a fault of the files is a full disk."""
_SQLITE = "sqlite:///"


def is_full(error: BaseException) -> bool:
    """Say whether ``error``, a driver's or SQLAlchemy's, comes from a full disk."""
    cause = _cause(error)
    if isinstance(cause, sqlite3.Error):
        return _code(cause) == sqlite3.SQLITE_FULL
    if isinstance(cause, OSError):
        return cause.errno in _NO_SPACE
    return getattr(cause, "sqlstate", None) == _POSTGRES_FULL


def unavailable(error: BaseException, said: str, url: str = "") -> StoreUnavailable:
    """Return what ``error`` of the store at ``url`` means for whoever asked.

    ``said`` is the reason where neither disk nor files fail.
    """
    cause = _cause(error)
    of_the_files = isinstance(cause, sqlite3.Error) and _code(cause) in _OF_THE_FILES
    if is_full(error) or (of_the_files and _has_next_to_nothing(url)):
        return DiskFull("disk full: the disk of the store has no room left")
    if of_the_files:
        return StoreUnavailable(f"the files of the store cannot be written: {cause}")
    return StoreUnavailable(said)


def _has_next_to_nothing(url: str) -> bool:
    if not url.startswith(_SQLITE):
        return False
    folder = Path(url.removeprefix(_SQLITE)).parent
    return folder.exists() and shutil.disk_usage(folder).free < _NEXT_TO_NOTHING


def _cause(error: BaseException) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # without what it says more exactly
