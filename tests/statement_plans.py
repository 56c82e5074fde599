"""The statements that a block sends to the store, and how each database says it would run them.

PostgreSQL is asked without sequential scans, hash and merge joins: a test's small tables would be
read whole, whatever their indexes. SQLite chooses by the statement and the indexes alone.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import Engine, event

from remediator.store.tables import metadata

SMALL = frozenset({"pauses", "signing_secrets", "maintenance", "obligations", "clicks"})
"""Tables that do not grow with history: switches that are on, secrets, windows, what is held now,
the clicks of the last minutes."""
GROWING = frozenset(metadata.tables) - SMALL
PARTIAL = frozenset(
    str(index.name)
    for table in metadata.tables.values()
    for index in table.indexes
    if index.dialect_options["sqlite"]["where"] is not None
)
"""Indexes that hold only what is open, due or latest: reading one whole is no reading of history."""


@dataclass
class Recorder:
    """Keeps each statement once, with the values that it came with first."""

    statements: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Listen to every engine of this process."""

        def heard(*sent: Any) -> None:
            _, _, statement, values, _, executemany = sent
            if statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
                first = values[0] if executemany else values
                self.statements.setdefault(statement, first)

        event.listen(Engine, "before_cursor_execute", heard)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", heard)


def sqlite_scans(path: Path, statements: dict[str, Any]) -> Iterator[str]:
    """Name each statement that reads all of a growing table on SQLite."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement, values in statements.items():
            rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            for *_, step in rows:
                if _reads_all(str(step), statement):
                    yield f"{step} in: {statement}"


def _reads_all(step: str, statement: str) -> bool:
    # a search that uses nothing is how SQLite calls a scan for the least or the greatest
    found = re.match(r"(SCAN|SEARCH) (\S+)(?: USING (?:(?:COVERING )?INDEX )?(\S+))?", step)
    if found is None:
        return False
    how, named, index = found.groups()
    if how == "SEARCH" and index is not None:
        return False
    table = _table_called(named, statement)
    if table not in GROWING or index in PARTIAL:
        return False
    return index is None or "LIMIT" not in statement


def _table_called(name: str, statement: str) -> str:
    """Return the table behind an alias."""
    alias = re.search(rf"(\w+) AS {re.escape(name)}\b", statement)
    return alias.group(1) if alias else name


async def postgres_scans(dsn: str, statements: dict[str, Any]) -> list[str]:
    """Name each statement that no index serves on PostgreSQL."""
    found: list[str] = []
    connection = await asyncpg.connect(dsn)
    try:
        for way in ("seqscan", "hashjoin", "mergejoin"):
            await connection.execute(f"SET enable_{way} = off")
        await connection.execute("ANALYZE")
        for statement, values in statements.items():
            plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *values)
            limited = "LIMIT" in statement
            found += [
                f"{node['Node Type']} of {node['Relation Name']} in: {statement}"
                for node in _nodes(json.loads(plan)[0]["Plan"])
                if _is_scan(node, limited=limited)
            ]
    finally:
        await connection.close()
    return found


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def _is_scan(node: dict[str, Any], *, limited: bool) -> bool:
    if node.get("Relation Name") not in GROWING:
        return False
    if node["Node Type"] == "Seq Scan":
        return True
    whole = node["Node Type"].startswith("Index") and "Index Cond" not in node
    return whole and node["Index Name"] not in PARTIAL and not limited
