"""What becomes of the store's connections to PostgreSQL when the network or a pooler is odd."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.errors import StoreUnavailable
from remediator.store import open_store
from tests.campaign.network import link_to


async def _one(connection: AsyncConnection) -> int:
    return int((await connection.execute(text("SELECT 1"))).scalar_one())


async def test_a_connection_that_falls_silent_fails_one_write_and_is_replaced(
    postgres_database: str,
) -> None:
    async with (
        link_to(postgres_database, random.Random(1)) as link,
        open_store(link.through(postgres_database), owner="one", changed=lambda: None) as store,
    ):
        await store.records.ping()
        link.freeze()
        with pytest.raises(StoreUnavailable):
            await store.database.write(_one)
        assert await store.database.write(_one) == 1
