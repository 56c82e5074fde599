"""What the store says, read past the service: by SQL of our own on either database."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

TABLES = ("deliveries", "incidents", "alerts", "mitigations", "obligations", "notices", "journal")
_JSON = {"mitigation", "before", "undo", "items", "handle", "data", "approvals"}


UNSEEN = (
    *(OSError, TimeoutError, sqlite3.OperationalError),
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
)
"""What a look of the campaign itself may raise on a machine that has much to do: look again."""


@dataclass(frozen=True)
class Book:
    """Where the store is: a file, or a DSN."""

    sqlite: Path | None
    dsn: str

    async def rows(self, table: str) -> list[dict[str, Any]]:
        """Read a whole table."""
        found = await self._read(f"SELECT * FROM {table}")
        return [{name: _value(name, row[name]) for name in row} for row in found]

    async def quiet(self) -> str:
        """Say what is still going on; empty when nothing is."""
        for what, query in _UNREST.items():
            (row,) = await self._read(query)
            if row["n"]:
                return f"{row['n']} {what}"
        return ""

    async def open_services(self) -> set[str]:
        """Return the services that have an open incident."""
        found = await self._read("SELECT service FROM incidents WHERE state = 'open'")
        return {str(row["service"]) for row in found}

    async def phases(self) -> Counter[str]:
        """Count the open incidents by playbook and phase."""
        found = await self._read("SELECT playbook, phase FROM incidents WHERE state = 'open'")
        return Counter(f"{row['playbook']} at {row['phase']}" for row in found)

    async def _read(self, query: str) -> list[dict[str, Any]]:
        if self.sqlite is not None:
            return await asyncio.to_thread(_rows_of, self.sqlite, query)
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            return [dict(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()


def _rows_of(path: Path, query: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
        file.row_factory = sqlite3.Row
        return [dict(row) for row in file.execute(query)]


_UNREST = {
    "deliveries wait for triage": "SELECT count(*) AS n FROM deliveries WHERE triaged_at IS NULL",
    "incidents are open": "SELECT count(*) AS n FROM incidents WHERE state = 'open'",
    "changes are in flight": "SELECT count(*) AS n FROM mitigations WHERE in_flight",
    "changes are reserved": "SELECT count(*) AS n FROM mitigations WHERE state = 'reserved'",
    "changes have to be taken back": "SELECT count(*) AS n FROM obligations",
    "messages wait": "SELECT count(*) AS n FROM notices WHERE due_at IS NOT NULL",
}


def _value(name: str, value: Any) -> Any:
    return json.loads(value) if name in _JSON and isinstance(value, str) else value
