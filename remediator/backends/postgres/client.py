"""One warm connection to a PostgreSQL server that is watched, and what its errors mean to us.

The warm connection keeps a place on a server that has no free one left. It is opened again when
it was lost. Works through PgBouncer in session and transaction pooling: nothing is prepared by name,
and settings are made for one transaction only, so that they never reach another client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeAlias

import asyncpg
import structlog

from remediator.backends.postgres import statements as sql
from remediator.model.errors import BackendRefused, BackendUnavailable, RemediatorError
from remediator.model.finding import Sense, SenseState

APPLICATION = "remediator"
"""Our ``application_name``: sessions of this name are our own, and never a target."""
CONNECT_WITHIN = 5.0
STATEMENT_WITHIN = 5.0
"""Seconds after which the server itself ends a statement of ours."""
BEGIN_WITHIN = 2.0
"""Seconds that the warm connection has to show that it is still alive."""
GRACE = 1.0
"""Seconds beyond the server's own limit after which its answer counts as lost."""

_BEGIN = (
    f"BEGIN READ ONLY; SET LOCAL statement_timeout = {STATEMENT_WITHIN * 1000:.0f};"
    " SET LOCAL search_path = pg_catalog"
)
"""The search path keeps functions that the application may define out of our statements."""

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_BROKEN = (asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What the driver says of a connection that broke while it was made or used."""
_LOST = (asyncpg.PostgresError, *_BROKEN, OSError, TimeoutError)

_log = structlog.get_logger(__name__)


class PostgresConnection:
    """The warm connection to one database, for one statement at a time.

    Raises only ``BackendUnavailable`` and ``BackendRefused``, with texts free of secrets.
    """

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn = dsn
        self._name = name
        self._warm: Connection | None = None
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"PostgresConnection({self._name!r})"

    async def open(self) -> None:
        """Connect if that is possible now; otherwise the first use tries again and says why not."""
        try:
            async with self.transaction():
                pass
        except RemediatorError as error:
            _log.warning("postgres_not_reached", database=self._name, reason=str(error))

    async def close(self) -> None:
        """Close the connection."""
        async with self._turn:
            connection, self._warm = self._warm, None
            if connection is not None and not connection.is_closed():
                try:
                    await connection.close(timeout=GRACE)
                except _LOST:
                    connection.terminate()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Yield the connection in a read-only transaction with the time limit set.

        What fails before the block is entered was not sent.
        """
        async with self._turn:
            with translated(self._name):
                connection = await self._begun()
                try:
                    yield connection
                    await connection.execute("COMMIT", timeout=BEGIN_WITHIN)
                except (asyncpg.PostgresError, RemediatorError):
                    await self._roll_back(connection)
                    raise
                except BaseException:
                    self._drop()  # its state is unknown, and a hanging server must not hold us
                    raise

    async def connect_once(self) -> float:
        """Open a new connection, run ``SELECT 1``, close it; return the seconds it took."""
        clock = asyncio.get_running_loop().time
        start = clock()
        with translated(self._name):
            connection = await self._connect()
            try:
                await connection.fetchval("SELECT 1", timeout=STATEMENT_WITHIN)
                await connection.close(timeout=GRACE)
            finally:
                connection.terminate()
        return clock() - start

    async def _begun(self) -> Connection:
        if self._warm is not None and not self._warm.is_closed():
            try:
                await self._warm.execute(_BEGIN, timeout=BEGIN_WITHIN)
                return self._warm
            except _LOST:
                self._drop()  # lost since its last use: a restart, a failover, a firewall
            except BaseException:
                self._drop()
                raise
        connection = await self._connect()
        try:
            await connection.execute(_BEGIN, timeout=STATEMENT_WITHIN)
        except BaseException:
            connection.terminate()
            raise
        self._warm = connection
        return connection

    async def _roll_back(self, connection: Connection) -> None:
        """Keep the warm connection, and with it our place on the server, if it still works."""
        try:
            await connection.execute("ROLLBACK", timeout=BEGIN_WITHIN)
        except BaseException:
            self._drop()
            raise

    async def _connect(self) -> Connection:
        return await asyncpg.connect(
            self._dsn,
            timeout=CONNECT_WITHIN,
            command_timeout=STATEMENT_WITHIN + GRACE,
            statement_cache_size=0,
            server_settings={"application_name": APPLICATION},
        )

    def _drop(self) -> None:
        connection, self._warm = self._warm, None
        if connection is not None:
            connection.terminate()


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn asyncpg's errors into ours. The DSN is in none of their texts."""
    where = f"postgres {name}"
    try:
        yield
    except asyncpg.PostgresError as error:
        raise _meaning(where, error) from error
    except asyncpg.ClientConfigurationError:
        raise BackendRefused(f"{where}: the DSN cannot be read; correct its file") from None
    except _BROKEN as error:
        raise BackendUnavailable(f"{where}: the connection was lost") from error
    except TimeoutError as error:
        raise BackendUnavailable(f"{where}: no answer in time") from error
    except OSError as error:
        raise BackendUnavailable(f"{where}: cannot be reached ({type(error).__name__})") from error
    except ValueError:  # asyncpg's reading of a DSN; its text may quote a password
        raise BackendRefused(f"{where}: the DSN cannot be read; correct its file") from None


_MEANINGS: tuple[tuple[type[asyncpg.PostgresError], type[RemediatorError], str], ...] = (
    (
        asyncpg.TooManyConnectionsError,
        BackendUnavailable,
        "no free connection slot is left for us (too many connections)",
    ),
    (asyncpg.PostgresConnectionError, BackendUnavailable, "the connection was lost"),
    (asyncpg.CannotConnectNowError, BackendUnavailable, "is starting up or shutting down"),
    (asyncpg.AdminShutdownError, BackendUnavailable, "ended our session (restart?)"),
    (asyncpg.CrashShutdownError, BackendUnavailable, "crashed and is recovering"),
    (asyncpg.QueryCanceledError, BackendUnavailable, "did not answer within the time limit"),
    (asyncpg.InvalidCatalogNameError, BackendRefused, "the database does not exist"),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        BackendRefused,
        "refused our credentials; check role, password and pg_hba.conf",
    ),
    (asyncpg.InsufficientPrivilegeError, BackendRefused, "our role lacks a right: {error}"),
    (
        asyncpg.SyntaxOrAccessError,
        BackendRefused,
        "does not understand our statement; PostgreSQL 13 or later is needed",
    ),
)
"""What the server's error classes mean, the most specific first."""


def _meaning(where: str, error: asyncpg.PostgresError) -> RemediatorError:
    for kind, ours, text in _MEANINGS:
        if isinstance(error, kind):
            return ours(f"{where}: {text.format(error=error)} [{error.sqlstate}]")
    return BackendUnavailable(f"{where}: {type(error).__name__} [{error.sqlstate}]")


class PostgresClient:
    """A client of one database that is an async context manager."""

    def __init__(self, dsn: str, *, name: str = "database") -> None:
        """Keep the secret ``dsn``; ``name`` is what errors and senses call the backend."""
        self._connection = PostgresConnection(dsn, name)
        self._name = name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Take a connection if the server gives one now; else the first use tries again."""
        await self._connection.open()

    async def close(self) -> None:
        """Give the connection back."""
        await self._connection.close()

    async def probe(self) -> Sense:
        """Say whether the server answers, and whether our role has the rights that it needs."""
        try:
            async with self._connection.transaction() as connection:
                await self._require_rights(connection)
        except RemediatorError as error:
            return Sense(name=self._name, state=SenseState.IMPAIRED, reason=str(error))
        return Sense(name=self._name, state=SenseState.OK)

    async def _require_rights(self, connection: Connection) -> None:
        await self._require_sight(connection)

    async def _require_sight(self, connection: Connection) -> Mapping[str, Any]:
        """Refuse to read half of the truth; return our role's rights."""
        (rights,) = await connection.fetch(sql.RIGHTS)
        problem = _blindness(dict(rights))
        if problem:
            raise BackendRefused(f"postgres {self._name}: {problem}")
        return dict(rights)


def _blindness(rights: Mapping[str, Any]) -> str | None:
    if not rights.get("sees_sessions"):
        return f"cannot see other sessions; GRANT pg_monitor TO {rights.get('role', 'our role')}"
    if not rights.get("tracked"):
        return "the sessions' states are not recorded; set track_activities = on"
    return None
