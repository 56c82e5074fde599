"""What the errors of a database mean to whoever asked it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import asyncpg
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from remediator.model.errors import StoreUnavailable
from remediator.store.disk import is_full, unavailable

_OF_THE_STATEMENT = ("0A", "21", "22", "23", "42", "44", "P0")
"""Begin of the SQLSTATEs that say that a statement would fail again. All others pass: connections
lost, read-only after a failover, deadlock, no resources, cancelled or shutting down."""

_DRIVER = (
    *(OSError, TimeoutError, asyncpg.PostgresError),
    *(asyncpg.InterfaceError, asyncpg.InternalClientError),
)
"""What the driver itself raises; the last also where a connection breaks while it is made or used."""


class Undone(StoreUnavailable):
    """The connection was lost before the commit was asked for, so the server has undone it all."""


@contextlib.contextmanager
def before_the_commit() -> Iterator[None]:
    """Tell a lost connection here from one at the commit, of which nobody knows what became.

    A session ends when this process stands still in a transaction (a machine that is suspended or
    short of CPU), when the server is restarted, and when an administrator ends it.
    """
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated and not is_full(error):
            raise Undone("the store's connection was lost before the commit") from error
        raise


@contextlib.contextmanager
def translated(url: str = "") -> Any:
    """Turn a lost or refusing database into ``StoreUnavailable``; let everything else through.

    ``url`` tells where a SQLite is, whose disk may be full.
    """
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        said = f"the store does not answer: {type(error).__name__}"
        raise unavailable(error, said, url) from error
    except DBAPIError as error:
        state = str(getattr(error.orig, "sqlstate", None) or "")
        again = isinstance(error, IntegrityError | ProgrammingError)
        if (again or state.startswith(_OF_THE_STATEMENT)) and not error.connection_invalidated:
            raise
        raise unavailable(error, f"the store cannot take it now ({state or 'lost'})") from error
    except _DRIVER as error:
        raise unavailable(error, f"the store cannot be reached: {type(error).__name__}") from error
