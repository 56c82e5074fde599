"""The journal as an audit: written out as it is sealed, and verified."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Table,
    exists,
    or_,
    select,
    text,
    type_coerce,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.audit import Verification
from remediator.model.errors import Refused, StoreUnavailable
from remediator.store import tables as t
from remediator.store.audit import chain
from remediator.store.audit.chain import Begin, End, Entry, Head, Keys, Part
from remediator.store.audit.verify import Verifier
from remediator.store.columns import instant_of
from remediator.store.database import Database
from remediator.store.journal import append, head_columns, head_of, line_columns, line_of, name_of

PAGE = 500
"""Rows that are read at a time."""
PATIENCE = 60
"""Seconds that a reader of the export may let us wait before it is ended."""
WITHIN = 600.0
"""Seconds that one export may take: it holds a connection, and an old state of the store."""

_log = structlog.get_logger(__name__)


class Audit:
    """Reads the journal in the order in which it was written; every read is of one moment.

    One at a time: slow readers may not take the connections that the service works with.
    """

    def __init__(self, database: Database, keys: Keys | None) -> None:
        self._database = database
        self._keys = keys
        self._reading = asyncio.Lock()

    async def begin(self) -> None:
        """Write the first entry of all, from which on lines are sealed; once.

        Where that entry was there before, as far as can be seen, its loss is written down instead.
        """
        if self._keys is None:
            return
        known = select(t.chains.c.chain).where(t.chains.c.chain == chain.OPERATORS)

        async def operation(connection: AsyncConnection) -> None:
            if await connection.scalar(known) is not None:
                return
            at = await self._database.now(connection)
            event, data = chain.BEGUN, dict[str, Any]()
            reason = "from here on, lines without a seal were not written by this version"
            if await connection.scalar(select(_was_sealed())):
                event, data = chain.BROKEN, {"count": 0, "mac": "", "seal": ""}
                reason = "how far this chain went is gone, in a store that was sealed before"
                _log.error("audit_head_not_known", chain=chain.OPERATORS, number=0)
            append(connection, None, at=at, step=chain.STEP, event=event, reason=reason, data=data)

        await self._database.write(operation, serial=True)

    async def verify(self) -> Verification:
        """Check every seal, and that each incident has its entries.

        ``Refused`` (409) where this service has no key.
        """
        if self._keys is None:
            reason = "this service has no key of the audit: set chain.key_file or chain.key_env"
            raise Refused(409, reason)
        verifier = Verifier(self._keys)
        opened = type_coerce(t.incidents.c.opened_at, BigInteger).label("opened_at")
        incidents = select(t.incidents.c.id, opened)
        async with self._moment() as connection:
            async with aclosing(records(connection, Part())) as every:
                async for record in every:
                    match record:
                        case Entry():
                            verifier.entry(record)
                        case Head():
                            verifier.head(record)
            async for row in _paged(connection, incidents, t.incidents, "id"):
                verifier.incident(name_of(row["id"]), _opened(row["opened_at"]))
        return verifier.result()

    async def export(self, part: Part) -> AsyncGenerator[Begin | Entry | Head | End, None]:
        """Yield the entries of ``part`` in their order, then how far each chain goes.

        Raises ``StoreUnavailable`` where another one is under way, and after ``WITHIN``.
        """
        async with self._moment() as connection:
            yield Begin(**dict(part), at=await self._database.now(connection))
            async with aclosing(records(connection, part)) as every:
                async for record in every:
                    yield record

    @contextlib.asynccontextmanager
    async def _moment(self) -> AsyncIterator[AsyncConnection]:
        if self._reading.locked():
            raise StoreUnavailable("the audit is being read already; try again when that is done")
        async with self._reading, self._database.read() as connection:
            if self._database.is_postgres:
                limit = f"SET LOCAL idle_in_transaction_session_timeout = '{PATIENCE}s'"
                await connection.execute(text(limit))
            yield connection


def _was_sealed() -> ColumnElement[bool]:
    """Say that a key was at work here: a store without one has none of this."""
    line = t.journal.c
    told = (chain.BEGUN, chain.OPENED, chain.CLOSED, chain.BROKEN)
    here = select(t.journal.c.id)
    incidents = select(t.incidents.c.id)
    return or_(
        exists(select(t.chains.c.chain)),
        exists(here.where(or_(line.number.is_not(None), line.mac.is_not(None)))),
        exists(
            here.where(line.incident_id.is_(None), line.step == chain.STEP, line.event.in_(told))
        ),
        exists(incidents.where(~exists().where(line.incident_id == t.incidents.c.id))),
    )


async def records(
    connection: AsyncConnection, part: Part
) -> AsyncGenerator[Entry | Head | End, None]:
    """Yield the entries of ``part`` in their order, then how far each chain goes."""
    clock = asyncio.get_running_loop().time
    end = clock() + WITHIN
    lines = select(*line_columns(connection))
    heads = select(*head_columns(connection))
    if part.since is not None:
        lines = lines.where(t.journal.c.at >= part.since)
    if part.incident is not None:
        lines = lines.where(t.journal.c.incident_id == part.incident)
        heads = heads.where(t.chains.c.chain == part.incident)
    entries = 0
    async for row in _paged(connection, lines, t.journal, "id"):
        entries += 1
        if clock() > end:
            raise StoreUnavailable(f"the export took longer than {WITHIN:g} s")
        line = line_of(row)
        yield Entry(chain=line.pop("incident_id") or chain.OPERATORS, **line)
    async for row in _paged(connection, heads, t.chains, "chain"):
        yield Head(**head_of(row))
    yield End(entries=entries)


def _opened(at: Any) -> datetime:
    """Read when an incident was opened; what cannot be read was not before sealing began."""
    try:
        return instant_of(at)
    except (TypeError, OverflowError):
        return datetime.max.replace(tzinfo=UTC)


async def _paged(
    connection: AsyncConnection, query: Select[Any], table: Table, key: str
) -> AsyncIterator[Any]:
    """Read a query in the order of ``key``, a page at a time."""
    column, after = table.c[key], None
    while True:
        following = query if after is None else query.where(column > after)
        page = await connection.execute(following.order_by(column).limit(PAGE))
        rows = page.mappings().all()
        for row in rows:
            yield row
        if len(rows) < PAGE:
            return
        after = rows[-1][key]
