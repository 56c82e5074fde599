"""Tables, migrations, the one writer, the claim and the ledger."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from remediator.model import Bound
from remediator.store.commands import Commands
from remediator.store.database import Database, open_database
from remediator.store.inbox import Inbox
from remediator.store.ledger import Ledger
from remediator.store.notices import Notices
from remediator.store.queue import Queue
from remediator.store.records import Records
from remediator.store.schema import require_schema

__all__ = ["Store", "open_store"]


@dataclass(frozen=True)
class Store:
    """The durable state of the service, by who uses it."""

    database: Database
    inbox: Inbox
    queue: Queue
    ledger: Ledger
    notices: Notices
    records: Records
    commands: Commands


@contextlib.asynccontextmanager
async def open_store(
    url: str,
    *,
    owner: str,
    arrived: Callable[[], None],
    bounds: Sequence[Bound] = (),
    clock: Callable[[], datetime] | None = None,
) -> AsyncIterator[Store]:
    """Open the store at ``url`` (``sqlite:///PATH`` or a PostgreSQL DSN), its schema in place.

    ``owner`` names this process in claims; ``arrived`` is called when a delivery is durable;
    ``bounds`` are those that the operator's API shows. Raises ``ConfigError`` for a schema of
    another version and ``StoreUnavailable``.
    """
    async with open_database(url, clock=clock) as database:
        await require_schema(database)
        ledger = Ledger(database)
        yield Store(
            database=database,
            inbox=Inbox(database, arrived),
            queue=Queue(database, owner),
            ledger=ledger,
            notices=Notices(database),
            records=Records(database, ledger, bounds),
            commands=Commands(database),
        )
