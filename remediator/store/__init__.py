"""Tables, migrations, the one writer, the claim and the ledger."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from remediator.model.events import Announce
from remediator.model.limits import Bound
from remediator.model.transition import LEASE
from remediator.model.unmatched import RecordBound
from remediator.store.approvals import Clicks
from remediator.store.audit.chain import Keys
from remediator.store.audit.export import Audit
from remediator.store.clock import bring_forward
from remediator.store.database import Database, open_database
from remediator.store.duplicates import NoRepeats, Repeats
from remediator.store.escalations import Escalations
from remediator.store.expirations import PendingReverts
from remediator.store.inbox import Inbox
from remediator.store.incidents import Queue
from remediator.store.ledger import Ledger
from remediator.store.maintenance import Windows
from remediator.store.migrate import require_schema
from remediator.store.operator_commands import Commands
from remediator.store.outbox import Notices
from remediator.store.probe import Probe
from remediator.store.queries import Records
from remediator.store.retention import Retention
from remediator.store.sender_events import Events
from remediator.store.silences import Silenced
from remediator.store.stop_file import StopFile, SureCommands

__all__ = ["Store", "open_store"]


@dataclass(frozen=True)
class Store:
    """The durable state of the service, by who uses it."""

    schema: str
    """What was done to the schema when it was opened."""
    database: Database
    inbox: Inbox
    events: Events
    queue: Queue
    ledger: Ledger
    notices: Notices
    obligations: PendingReverts
    records: Records
    commands: Commands
    clicks: Clicks
    silenced: Silenced
    windows: Windows
    escalations: Escalations
    audit: Audit
    retention: Retention
    probe: Probe


@contextlib.asynccontextmanager
async def open_store(  # noqa: PLR0913 - by keyword, each with a meaning of its own
    url: str,
    *,
    owner: str,
    changed: Callable[[], None],
    bounds: Sequence[Bound] = (),
    scopes: Collection[str] = ("global",),
    deciders: Mapping[str, Collection[str]] = MappingProxyType({}),
    clock: Callable[[], datetime] | None = None,
    lease: timedelta = LEASE,
    keys: Keys | None = None,
    announce: Announce = lambda *_: None,
    repeats: Repeats = NoRepeats(),  # noqa: B008 - it keeps nothing
    records_by_sender: RecordBound = RecordBound(),  # noqa: B008 - frozen
    wait: timedelta = timedelta(0),
    stop: StopFile | None = None,
    full: Callable[[], bool] = lambda: False,
) -> AsyncIterator[Store]:
    """Open the store at ``url`` (``sqlite:///PATH`` or a PostgreSQL DSN), its schema in place.

    ``owner`` names this process in claims; ``changed`` is called when a delivery is
    durable or an operator's order is; ``bounds`` are those that the operator's API shows and
    ``scopes`` those that may be paused; ``deciders`` names who may approve, by ``SYSTEM/SERVICE``
    where not everybody may. A claim, and the time in which a reserved change may
    begin, end after ``lease``. ``keys`` seal the journal, ``announce`` is told of what is durable,
    ``repeats`` may know a body that need not be stored once more. ``records_by_sender`` bounds
    the records of what no playbook takes. ``wait`` is the time for a store
    that is away. ``stop`` keeps a pause that the store does not take; ``full`` is called when its disk
    is full, and says whether there is room now. Raises ``ConfigError`` for a schema of another version and ``StoreUnavailable``.
    """
    async with open_database(url, clock=clock, keys=keys, full=full) as database:
        schema = await require_schema(database, wait)
        audit = Audit(database, keys)
        await audit.begin()
        await bring_forward(database)
        ledger = Ledger(database, lease)
        records = Records(database, ledger, bounds, sealing=keys is not None)
        orders = (database, changed, scopes, deciders, announce)
        commands = Commands(*orders)
        if stop is not None:
            commands = SureCommands(stop, records.pauses, *orders)
        yield Store(
            schema=schema,
            database=database,
            inbox=Inbox(database, changed, announce, repeats, records_by_sender),
            events=Events(database, changed, announce),
            queue=Queue(database, owner, lease, announce),
            ledger=ledger,
            notices=Notices(database),
            obligations=PendingReverts(database),
            records=records,
            clicks=Clicks(database),
            commands=commands,
            silenced=Silenced(database),
            windows=Windows(database),
            escalations=Escalations(database),
            audit=audit,
            retention=Retention(database, keys),
            probe=Probe(database, owner),
        )
