"""The schema of a shared store: changed by one, waited for by the others, and other versions of it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest

from remediator.cli.output import USAGE
from remediator.store import open_store
from remediator.store.tables import metadata
from tests.postgres_fixtures import execute
from tests.replica_fixtures import Replica
from tests.store_fixtures import Bench, resolved

LATER = "9999"
"""A version of the schema that this program does not know."""


async def test_of_many_that_start_at_once_one_makes_the_schema_and_all_serve(
    postgres_database: str,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        opening = (
            open_store(postgres_database, owner=f"replica {number}", changed=lambda: None)
            for number in range(6)
        )
        stores = await asyncio.gather(*map(stack.enter_async_context, opening))
        assert sum("brought from nothing" in store.schema for store in stores) == 1
        assert sum("already" in store.schema for store in stores) == len(stores) - 1
        pings = [store.records.ping() for store in stores]
        await asyncio.gather(*pings, *(store.queue.claim(1) for store in stores))


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
async def test_one_that_runs_goes_on_beside_a_newer_schema(
    bench: Bench, postgres_database: str
) -> None:
    await bench.receive(bench.alert())
    await bench.step()
    added = [f"ALTER TABLE {table} ADD COLUMN later text DEFAULT 'x'" for table in metadata.tables]
    later = f"UPDATE alembic_version SET version_num = '{LATER}'"
    await execute(postgres_database, *added, later)
    await bench.settle(40)
    assert (await bench.incident()).phase == "settle"
    await bench.receive(resolved(bench.alert(), bench.clock))
    await bench.settle(40)
    assert (await bench.incident()).outcome == "mitigated"


async def test_a_schema_that_is_not_known_is_refused_with_what_to_do(
    postgres_database: str, tmp_path: Path
) -> None:
    async with open_store(postgres_database, owner="newer", changed=lambda: None):
        pass
    await execute(postgres_database, f"UPDATE alembic_version SET version_num = '{LATER}'")
    (tmp_path / "store.dsn").write_text(postgres_database)
    replica = Replica(tmp_path, {"listen": "127.0.0.1:0", "store": {"dsn_file": "store.dsn"}})
    await replica.start()
    assert await replica.end(signal.SIGTERM) == USAGE
    assert f"the store's schema is at version {LATER}" in replica.log()
    assert "start a newer version of the program" in replica.log()
    assert "Traceback" not in replica.log()
