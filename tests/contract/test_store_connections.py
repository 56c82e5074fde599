"""What becomes of the store's connections to PostgreSQL when the network or a pooler is odd."""

from __future__ import annotations

import asyncio
import random

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.errors import StoreUnavailable
from remediator.store import open_store
from remediator.store.engines import Pooling, pooling_of
from tests.campaign.network import link_to
from tests.pgbouncer_fixtures import pgbouncer


async def _one(connection: AsyncConnection) -> int:
    return int((await connection.execute(text("SELECT 1"))).scalar_one())


async def test_a_connection_that_falls_silent_fails_one_write_and_is_replaced(
    postgres_database: str,
) -> None:
    async with (
        link_to(postgres_database, random.Random(1)) as link,
        open_store(link.through(postgres_database), owner="one", changed=lambda: None) as store,
    ):
        assert await store.database.write(_one) == 1
        link.freeze()
        with pytest.raises(StoreUnavailable):
            await store.database.write(_one)
        assert await store.database.write(_one) == 1


async def test_what_the_driver_cannot_make_sense_of_is_a_store_that_is_away() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        garbage = (10).to_bytes(4) + b"\xff\xfe\0\0"  # ways to authenticate that have no name
        writer.write(b"R" + (len(garbage) + 4).to_bytes(4) + garbage)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    dsn = f"postgresql://user:secret@127.0.0.1:{port}/store?sslmode=disable"
    async with server:
        with pytest.raises(StoreUnavailable, match="InternalClientError"):
            async with open_store(dsn, owner="one", changed=lambda: None):
                pass


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize("round_robin", [False, True])
async def test_a_pooler_and_its_mode_are_recognised(
    postgres_database: str, mode: str, *, round_robin: bool
) -> None:
    async with pgbouncer(postgres_database, mode, round_robin=round_robin) as through:
        assert await pooling_of(through) == mode


async def test_no_pooler_is_seen_where_there_is_none(postgres_database: str) -> None:
    assert await pooling_of(postgres_database) is Pooling.NONE


async def test_behind_a_pooler_readers_cannot_write_and_settings_stay_in_their_transaction(
    postgres_database: str,
) -> None:
    async with (
        pgbouncer(postgres_database, "transaction") as through,
        open_store(through, owner="one", changed=lambda: None) as store,
    ):
        held = text("SHOW idle_in_transaction_session_timeout")

        async def bound(connection: AsyncConnection) -> str:
            return str((await connection.execute(held)).scalar_one())

        assert await store.database.write(bound) == "5s"
        for _ in range(8):  # in every session that there is
            async with store.database.read() as connection:
                assert await bound(connection) == "0"
        async with store.database.read() as connection:
            with pytest.raises(DBAPIError, match="read-only transaction"):
                await connection.execute(text("DELETE FROM pauses"))


async def test_no_statement_is_left_behind_a_pooler(postgres_database: str) -> None:
    left = text("SELECT count(*) FROM pg_prepared_statements")

    async def statements(connection: AsyncConnection) -> int:
        return int((await connection.execute(left)).scalar_one())

    async with (
        pgbouncer(postgres_database, "transaction") as through,
        open_store(through, owner="one", changed=lambda: None) as store,
    ):
        # in every session there is, whose transactions are others' in between
        await asyncio.gather(*(store.records.incidents(limit=10) for _ in range(40)))
        assert {await store.database.write(statements) for _ in range(8)} == {0}


async def test_a_service_that_stops_does_not_wait_for_a_postgres_that_is_gone(
    postgres_database: str,
) -> None:
    async with link_to(postgres_database, random.Random(1)) as link:
        through = link.through(postgres_database)
        opening = open_store(through, owner="one", changed=lambda: None)
        store = await opening.__aenter__()
        await asyncio.gather(*(store.records.ping() for _ in range(8)))
        link.freeze()
        async with asyncio.timeout(20):  # below the half minute that a stopping service is given
            await opening.__aexit__(None, None, None)
