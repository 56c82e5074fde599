"""What becomes of the store's connections to PostgreSQL when the network or a pooler is odd."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.errors import StoreUnavailable
from remediator.store import open_store
from remediator.store.engines import Pooling, pooling_of
from tests.campaign.network import link_to
from tests.pgbouncer_fixtures import pgbouncer
from tests.postgres_fixtures import eventually, execute


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


_IDLES = text("SET LOCAL idle_in_transaction_session_timeout = '1ms'")
_WHO = text("SELECT pg_backend_pid()")


class _StandsStill:
    """A write during which the process stands still for too long, so many ``times``."""

    def __init__(self, dsn: str, times: int) -> None:
        self.dsn, self.times, self.runs = dsn, times, 0

    async def __call__(self, connection: AsyncConnection) -> int:
        self.runs += 1
        if self.runs <= self.times:
            pid = (await connection.execute(_WHO)).scalar_one()
            await connection.execute(_IDLES)
            await self._ended(pid)
        return await _one(connection)

    async def _ended(self, pid: int) -> None:
        watcher = await asyncpg.connect(self.dsn)
        try:

            async def gone() -> bool:
                found = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1"
                return not await watcher.fetchval(found, pid)

            await eventually(gone, "the server has ended the session")
        finally:
            await watcher.close()


async def test_a_write_whose_session_the_server_ended_is_made_anew_once(
    postgres_database: str,
) -> None:
    async with open_store(postgres_database, owner="one", changed=lambda: None) as store:
        once, twice = (_StandsStill(postgres_database, times) for times in (1, 2))
        assert await store.database.write(once) == 1
        assert once.runs == 2
        with pytest.raises(StoreUnavailable):
            await store.database.write(twice)
        assert twice.runs == 2
        assert await store.database.write(_one) == 1


async def test_a_write_whose_connection_is_lost_at_its_commit_is_not_made_anew(
    postgres_database: str,
) -> None:
    await execute(
        postgres_database,
        "CREATE TABLE last_words (said text)",
        "CREATE FUNCTION ends() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER at_the_commit AFTER INSERT ON last_words"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ends()",
    )
    runs: list[None] = []

    async def insert(connection: AsyncConnection) -> None:
        runs.append(None)
        await connection.execute(text("INSERT INTO last_words VALUES ('so be it')"))

    async with open_store(postgres_database, owner="one", changed=lambda: None) as store:
        with pytest.raises(StoreUnavailable):
            await store.database.write(insert)
        assert len(runs) == 1
        assert await store.database.write(_one) == 1


async def test_who_stands_still_while_it_reads_is_given_longer_than_who_writes(
    postgres_database: str,
) -> None:
    held = text("SHOW idle_in_transaction_session_timeout")
    async with open_store(postgres_database, owner="one", changed=lambda: None) as store:
        async with store.database.read() as connection:
            assert (await connection.execute(held)).scalar_one() == "1min"

        async def bound(connection: AsyncConnection) -> str:
            return str((await connection.execute(held)).scalar_one())

        assert await store.database.write(bound) == "5s"


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
