"""The shop's database: a PostgreSQL of one's own with the accounts that a team would make."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from remediator.cli.demo.postgres import EmbeddedPostgres, ServerOptions, age_sessions
from remediator.cli.demo.sandbox import Site
from remediator.cli.demo.shop import APP_ROLE, SCHEMA

NAME = "shop"
READER, WRITER = "remediator_reader", "remediator_writer"
OLDER = 58
"""Seconds that the demo does not wait: no session is ended before it is idle for 60."""
ROLES = f"""
CREATE ROLE {APP_ROLE} LOGIN;
CREATE ROLE {READER} LOGIN IN ROLE pg_monitor;
CREATE ROLE {WRITER} LOGIN IN ROLE pg_monitor, pg_signal_backend;
"""
"""The application, and the remediator's two accounts with no right beyond what they need."""


@dataclass(frozen=True)
class ShopDatabase:
    """The database while it runs."""

    postgres: EmbeddedPostgres
    version: str
    backend: dict[str, str]
    """Its entry in the remediator's configuration."""

    @property
    def where(self) -> str:
        """Version and address, and what about it is not as everywhere."""
        return (
            f"PostgreSQL {self.version} on 127.0.0.1:{self.postgres.port} (so that you need not"
            f" wait, it says of idle sessions that they are {OLDER} s older)"
        )

    def dsn(self, role: str = APP_ROLE) -> str:
        """Return the DSN of ``role``."""
        return self.postgres.dsn(NAME, role)


@asynccontextmanager
async def open_database(
    site: Site, *, more: str = "", max_connections: int = 30
) -> AsyncIterator[ShopDatabase]:
    """Start the server with roles, tables and whatever SQL there is ``more``."""
    site.on_step("starting PostgreSQL")
    async with EmbeddedPostgres(ServerOptions(max_connections=max_connections)) as postgres:
        dsn = await postgres.create_database(NAME)
        version = await _prepare(dsn, more)
        await age_sessions(dsn, OLDER)
        backend = {
            "dsn_file": site.secret("reader.dsn", postgres.dsn(NAME, READER)),
            "writer_dsn_file": site.secret("writer.dsn", postgres.dsn(NAME, WRITER)),
        }
        site.on_step("opening the shop")
        yield ShopDatabase(postgres, version, backend)


async def _prepare(dsn: str, more: str) -> str:
    """Make the roles and the shop's tables; return the server's version."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(ROLES + SCHEMA + more)
        return str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close()
