"""How connections are made: to SQLite, to PostgreSQL, and to PostgreSQL behind a pooler.

PgBouncer in transaction mode gives each transaction to any session that is free. So nothing is left
in a session: what a transaction needs it sets itself. Prepared statements, which are what makes
PostgreSQL fast, live in a session; they are given up where a pooler stands between.
"""

from __future__ import annotations

import contextlib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

STATEMENT_TIMEOUT = 10.0
"""Seconds after which a statement on PostgreSQL is given up: nothing may hang. Longer than a stopped
process may hold the serial lock."""
HELD_FOR = "5s"
"""Time that a process which stands still in a transaction keeps its locks in PostgreSQL."""
_LOOKS_FOR = "60s"
"""The same for a transaction that only reads: it keeps no lock that a write waits for."""
MIGRATION_HELD_FOR = "60s"
"""The same for a migration: it begins anew from nothing, and a machine may stand still for a while."""
MIGRATED_WITHIN = 600.0
"""Seconds that a statement may take which changes the schema, or waits until somebody else has."""
_CONNECTED_WITHIN = 5.0
_READERS = 4
_PREPARED = 100
"""Statements that a session of our own keeps."""
_LOOKS = 3
_GOODBYE_WITHIN = 1.0
"""Seconds for the end of one connection: a stopping service has several, and little time."""

if TYPE_CHECKING:
    _Driver = asyncpg.Connection[asyncpg.Record]
else:  # which knows no parameter
    _Driver = asyncpg.Connection

_Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Pooling(StrEnum):
    """What stands between the service and PostgreSQL."""

    NONE = "none"
    SESSION = "session"
    """A pooler; a connection keeps its session."""
    TRANSACTION = "transaction"
    """A pooler; each transaction may be in another session."""

    @property
    def meaning(self) -> str:
        """What an operator should know of it."""
        slower = "all works, but slower than on connections of its own: no statement is prepared"
        match self:
            case Pooling.NONE:
                return "PostgreSQL answers"
            case Pooling.SESSION:
                return f"PostgreSQL answers behind a pooler that keeps sessions; {slower}"
            case Pooling.TRANSACTION:
                return f"PostgreSQL answers behind a pooler in transaction mode; {slower}"


def is_postgres(url: str) -> bool:
    """Say whether ``url`` is a DSN of PostgreSQL."""
    return url.startswith(("postgres:", "postgresql:"))


def engine_of(
    url: str, *, read_only: bool, pooled: bool = False, patience: float = STATEMENT_TIMEOUT
) -> AsyncEngine:
    """Return the engine for ``url`` (``sqlite:///PATH`` or a PostgreSQL DSN), not connected yet.

    ``pooled`` for a PostgreSQL behind a pooler; ``patience`` is seconds for one statement on it.
    """
    if is_postgres(url):
        return _postgres_engine(url, read_only=read_only, pooled=pooled, patience=patience)
    return _sqlite_engine(url, read_only=read_only)


async def pooling_of(url: str) -> Pooling:
    """Look what stands before a PostgreSQL. Raises what asyncpg does, ``OSError`` for the rest.

    Who connects is told the id of the session. A pooler makes one up: it has none yet.
    """
    one = await _connect(url, STATEMENT_TIMEOUT, held=None)
    try:
        if await _session(one) == one.get_server_pid():
            return Pooling.NONE
        two = await _connect(url, STATEMENT_TIMEOUT, held=None)
        try:
            mine, other = set[int](), set[int]()
            for _ in range(_LOOKS):
                mine.add(await _session(one))
                other.add(await _session(two))
        finally:
            await two.close(timeout=_CONNECTED_WITHIN)
    finally:
        await one.close(timeout=_CONNECTED_WITHIN)
    return Pooling.TRANSACTION if mine & other or len(mine) > 1 else Pooling.SESSION


async def _session(connection: _Connection) -> int:
    async with connection.transaction():  # whose parts are in one session for certain
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


def _sqlite_engine(url: str, *, read_only: bool) -> AsyncEngine:
    path = Path(url.removeprefix("sqlite:///"))
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        pool_size=_READERS if read_only else 1,
        max_overflow=0,
        pool_timeout=STATEMENT_TIMEOUT,
    )

    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions, not the driver
        cursor = connection.cursor()
        for pragma in (
            "busy_timeout=5000",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"query_only={'ON' if read_only else 'OFF'}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    event.listen(engine.sync_engine, "connect", connected)
    event.listen(engine.sync_engine, "begin", begun)
    return engine


def _postgres_engine(url: str, *, read_only: bool, pooled: bool, patience: float) -> AsyncEngine:
    held = _LOOKS_FOR if read_only else HELD_FOR

    async def connect() -> _Connection:
        return await _connect(url, patience, held=None if pooled else held)

    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=_READERS if read_only else 1,
        max_overflow=0,
        pool_timeout=STATEMENT_TIMEOUT,
        pool_pre_ping=False,
        isolation_level="REPEATABLE READ" if read_only else "READ COMMITTED",
        execution_options={"postgresql_readonly": read_only},
    )


class _Session(_Driver):
    """A connection to PostgreSQL that ends soon, also when nobody is there to say goodbye to."""

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the driver's
        """Say goodbye, or end it without."""
        with contextlib.suppress(TimeoutError):  # it is broken off then
            await super().close(timeout=timeout or _GOODBYE_WITHIN)


async def _connect(url: str, patience: float, *, held: str | None) -> _Connection:
    """Connect; ``held`` is how long a transaction may stand still, None where a pooler may be."""
    settings = {"application_name": "remediator"}
    if held is not None:  # a pooler refuses what it does not know, or loses it
        settings["idle_in_transaction_session_timeout"] = held
    return await asyncpg.connect(
        url,
        timeout=_CONNECTED_WITHIN,
        command_timeout=patience,
        connection_class=_Session,
        server_settings=settings,
        # without it statements have no names: a name would stay behind in another's session
        statement_cache_size=0 if held is None else _PREPARED,
    )
