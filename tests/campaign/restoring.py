"""A copy of the store that is made while the service runs, and is put in its place later.

As docs/upgrading.md says: SQLite's own copy or pg_dump, all processes stopped, the copy restored.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg

from remediator.cli.demo.postgres import EmbeddedPostgres
from tests.campaign.network import Span
from tests.campaign.records import UNSEEN, Book

T = TypeVar("T")
_AGAIN = 0.5
_TRIES = 60
"""Over half a minute: the server may be away for some seconds, as the plan has it."""


@dataclass(frozen=True)
class Forgotten:
    """What the store knew when it was replaced by its copy, and knows no more."""

    span: Span
    """From before the copy until every process had stopped."""
    deliveries: frozenset[str]
    reservations: Sequence[Mapping[str, Any]]
    """Rows of the ledger that had been reserved, as they were at last."""

    def covers(self, at: datetime) -> bool:
        """Whether what was done then is forgotten."""
        return self.span.begin <= at <= self.span.end


@dataclass
class Vault:
    """Copies and restores one store."""

    book: Book
    server: EmbeddedPostgres
    folder: Path

    @property
    def _copy(self) -> Path:
        return self.folder / "store.copy"

    async def copy(self) -> datetime:
        """Copy it; return when that began."""

        async def once() -> datetime:
            began = datetime.now(UTC)
            if self.book.sqlite is not None:
                await asyncio.to_thread(_sqlite_copy, self.book.sqlite, self._copy)
            else:
                await self._run("pg_dump", "-Fc", "-f", str(self._copy), self.book.dsn)
            return began

        return await _until_done(once)

    async def restore(self, copied: datetime) -> Forgotten:
        """Put the copy in its place; nothing uses the store."""
        stopped = datetime.now(UTC)
        before = await self._known()
        if self.book.sqlite is not None:
            await asyncio.to_thread(_sqlite_restore, self.book.sqlite, self._copy)
        else:
            await _until_done(self._postgres_restore)
        after = await self._known()
        kept = {(row["effect_key"], row["state"]) for row in after["mitigations"]}
        return Forgotten(
            Span(copied, stopped),
            frozenset(_ids(before["deliveries"]) - _ids(after["deliveries"])),
            [
                row
                for row in before["mitigations"]
                if row["reserved_at"] is not None and (row["effect_key"], row["state"]) not in kept
            ],
        )

    async def _known(self) -> dict[str, list[dict[str, Any]]]:
        async def once() -> dict[str, list[dict[str, Any]]]:
            return {name: await self.book.rows(name) for name in ("deliveries", "mitigations")}

        return await _until_done(once)

    async def _postgres_restore(self) -> None:
        name = urlsplit(self.book.dsn).path.removeprefix("/")
        admin = await asyncpg.connect(self.server.dsn(), timeout=10)
        try:
            await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            await admin.execute(f'CREATE DATABASE "{name}"')
        finally:
            await admin.close()
        await self._run("pg_restore", "-d", self.book.dsn, str(self._copy))

    async def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.server.program(program)), *arguments]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


def _ids(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    return {row["id"] for row in rows}


def _sqlite_copy(store: Path, copy: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


def _sqlite_restore(store: Path, copy: Path) -> None:
    for beside in ("-wal", "-shm"):  # of the newer file: what is in them is not the copy's
        store.with_name(store.name + beside).unlink(missing_ok=True)
    store.write_bytes(copy.read_bytes())


async def _until_done(what: Callable[[], Awaitable[T]]) -> T:
    for _ in range(_TRIES):
        with contextlib.suppress(*UNSEEN, subprocess.CalledProcessError):
            return await what()
        await asyncio.sleep(_AGAIN)
    return await what()
