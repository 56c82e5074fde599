"""Tries whether the store takes a write, for those who ask whether work can be taken."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import delete, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.store import tables as t
from remediator.store.database import Database

_WITHIN = 4.0
"""Seconds in which the store has to take it."""


class Probe:
    """Writes a row and takes it back in the same transaction, so that nobody ever sees it."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._scope = f"~probe/{owner}"

    async def write(self) -> None:
        """Raise ``StoreUnavailable``, or ``DiskFull``, unless the store takes a write."""
        now = datetime.now(UTC)
        row = {"scope": self._scope, "by": "probe", "reason": "", "since": now}

        async def operation(connection: AsyncConnection) -> None:
            await connection.execute(insert(t.pauses), row)
            await connection.execute(delete(t.pauses).where(t.pauses.c.scope == self._scope))

        await self._database.write(operation, within=_WITHIN)
