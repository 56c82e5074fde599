"""One database, two dialects: the readers' pool and the one writer with its group commit.

Every state change of the service goes through ``Database.write``. The writer takes what waits,
up to a bound, commits it in one transaction, answers, and repeats; there is no timer. What an
operator orders has a lane of its own, which goes first: it waits for one transaction at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import structlog
from sqlalchemy import Table, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.errors import DiskFull, StoreUnavailable
from remediator.store import journal
from remediator.store.audit.chain import Keys
from remediator.store.engines import (
    HELD_FOR,
    MIGRATED_WITHIN,
    MIGRATION_HELD_FOR,
    Pooling,
    engine_of,
    is_postgres,
    pooling_of,
)
from remediator.store.faults import Undone, before_the_commit, translated
from remediator.store.tables import metadata

T = TypeVar("T")
Operation = Callable[[AsyncConnection], Awaitable[T]]
"""A state change. May run more than once, so it touches nothing but its connection."""

Rows = Mapping[Table, Sequence[Mapping[str, Any]]]
"""Rows to insert, by table; a table's rows all have the same columns."""

BATCH = 256
"""Most operations in one commit, or what costs as much; bounds the time that the next one waits."""
SERIAL_LOCK = 0x52454D45
"""Advisory lock of PostgreSQL under which reservations, pauses and triage are serial."""
MIGRATION_LOCK = SERIAL_LOCK + 1
"""The one under which the schema is changed."""
TAKEN_WITHIN = 8.0
"""Seconds in which a sender that waits learns whether its delivery is taken: Alertmanager gives up
after 10 at the earliest."""

_AGAIN = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to write a result while the store is away."""
_log = structlog.get_logger(__name__)


def utc_now() -> datetime:
    """Return the time of this machine."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class _Job:
    done: asyncio.Future[Any]
    rows: Rows = field(default_factory=dict)
    operation: Operation[Any] | None = None
    serial: bool = False
    cost: int = 1


class Database:
    """Opens connections and owns the writer. Use ``open_database``."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], datetime] | None,
        keys: Keys | None = None,
        wall: Callable[[], datetime] = utc_now,
    ) -> None:
        self.full: Callable[[], bool] = lambda: False
        """Called when the disk is full; says whether that is over."""
        self._url = url
        self._pooled = False
        self._reader = engine_of(url, read_only=True)
        self._writer = engine_of(url, read_only=False)
        self._clock = clock
        self._keys = keys
        self._memory = journal.Memory()
        self._started, self._monotonic = wall(), time.monotonic()
        self._closed = False
        self._waiting: deque[_Job] = deque()
        self._orders: deque[_Job] = deque()
        """What operators ordered: taken before all else."""
        self._asked = asyncio.Event()
        self.is_postgres = is_postgres(url)

    @property
    def backlog(self) -> int:
        """Operations that wait for a commit."""
        return len(self._waiting)

    async def meet(self) -> Pooling:
        """Learn how the store is reached and get ready for that, before anything else is asked.

        Raises ``StoreUnavailable``.
        """
        if not self.is_postgres:
            return Pooling.NONE
        with translated(self._url):
            pooling = await pooling_of(self._url)
        if pooling is not Pooling.NONE:
            await self.dispose()
            self._pooled = True
            self._reader = engine_of(self._url, read_only=True, pooled=True)
            self._writer = engine_of(self._url, read_only=False, pooled=True)
        return pooling

    async def migrate(self, operation: Operation[T]) -> T:
        """Run ``operation`` alone among all replicas, for as long as it takes.

        Raises as ``write`` does.
        """
        # a pooler may be there or not: whatever is done once need not be fast
        engine = engine_of(self._url, read_only=False, pooled=True, patience=MIGRATED_WITHIN)
        try:
            with self._noticing():
                async with engine.begin() as connection:
                    await self._begin(
                        connection, pooled=True, lock=MIGRATION_LOCK, held=MIGRATION_HELD_FOR
                    )
                    return await operation(connection)
        finally:
            await engine.dispose()

    async def _begin(
        self,
        connection: AsyncConnection,
        *,
        pooled: bool,
        lock: int | None,
        held: str = HELD_FOR,
    ) -> None:
        """Set what a session of our own has from its start, and take the transaction's lock.

        First of all, so that no row lock is held while waiting for it.
        """
        wanted: list[str] = []
        given: dict[str, Any] = {}
        if pooled:
            wanted.append("set_config('idle_in_transaction_session_timeout', :held, true)")
            given["held"] = held
        if lock is not None:
            wanted.append("pg_advisory_xact_lock(:key)")
            given["key"] = lock
        if wanted and self.is_postgres:
            await connection.execute(text(f"SELECT {', '.join(wanted)}"), given)

    async def dispose(self) -> None:
        """Close every connection."""
        await self._reader.dispose()
        await self._writer.dispose()

    async def write(
        self,
        operation: Operation[T],
        *,
        serial: bool = False,
        within: float | None = None,
        cost: int = 1,
    ) -> T:
        """Run ``operation`` in a transaction shared with others; return once it is durable.

        ``serial`` operations never run at the same time as another replica's; a ``cost`` of
        ``BATCH`` leaves no room for others beside it. Raises what the operation raises (its changes
        are then undone), or ``StoreUnavailable``; when that is because of ``within``, in seconds,
        it may become durable all the same.
        """
        job = _Job(self._answer(), operation=operation, serial=serial, cost=cost)
        result: T = await self._ask(self._waiting, job, within)
        return result

    async def order(self, operation: Operation[T], *, serial: bool = False) -> T:
        """Run what an operator ordered, before all else that waits; as ``write`` does."""
        job = _Job(self._answer(), operation=operation, serial=serial)
        result: T = await self._ask(self._orders, job, None)
        return result

    async def insert(self, rows: Rows, within: float | None = None, cost: int = 1) -> None:
        """Insert rows together with everybody else's, a statement a table; as ``write`` does."""
        await self._ask(self._waiting, _Job(self._answer(), rows=rows, cost=cost), within)

    async def _ask(self, lane: deque[_Job], job: _Job, within: float | None) -> Any:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        lane.append(job)
        self._asked.set()
        try:
            async with asyncio.timeout(within):
                return await job.done
        except TimeoutError:
            raise StoreUnavailable(f"the store has not taken it within {within} s") from None

    def _answer(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a read-only connection with one consistent view; ``StoreUnavailable`` if down."""
        with self._noticing():
            async with self._reader.connect() as connection:
                yield connection

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        """Translate, and make room for the next attempt: reading makes files too, at a start."""
        try:
            with translated(self._url):
                yield
        except DiskFull:
            self.full()
            raise

    async def now(self, connection: AsyncConnection) -> datetime:
        """Return the store's time: the database's clock, so that all replicas agree."""
        if self._clock is not None:
            return self._clock()
        if not self.is_postgres:  # one process: a clock that no correction of the time moves
            return self._started + timedelta(seconds=time.monotonic() - self._monotonic)
        micros = text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        value = (await connection.execute(micros)).scalar_one()
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(value))

    async def run_writer(self) -> None:
        """Commit what waits, for ever. One task of the app."""
        while True:
            await self._asked.wait()
            batch = self._next()
            try:
                if batch:
                    await self._settle(batch)
                elif not (self._orders or self._waiting):
                    self._asked.clear()
            except asyncio.CancelledError:
                for job in batch:
                    _fail(job, StoreUnavailable("the store is closing"))
                raise

    def _next(self) -> list[_Job]:
        """Return what is committed together: of one lane, and not more than ``BATCH``."""
        lane, batch, cost = self._orders or self._waiting, list[_Job](), 0
        while lane and (not batch or cost + lane[0].cost <= BATCH):
            job = lane.popleft()
            if not job.done.done():
                batch.append(job)
                cost += job.cost
        return batch

    def refuse_waiting(self) -> None:
        """Answer everything that still waits, and all that comes: the writer has ended."""
        self._closed = True
        for lane in (self._orders, self._waiting):
            while lane:
                _fail(lane.popleft(), StoreUnavailable("the store is closing"))

    async def _settle(self, batch: list[_Job]) -> None:
        try:
            results = await self._commit_with_room(batch)
        except StoreUnavailable as error:
            for job in batch:
                _fail(job, error)
        except Exception as error:  # noqa: BLE001 - handed to whoever asked for the operation
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            for job in batch:  # one bad operation undid its neighbours: each on its own
                await self._settle([job])
        else:
            for job, result in zip(batch, results, strict=True):
                _answer(job, result)

    async def _commit_with_room(self, batch: list[_Job]) -> list[Any]:
        try:
            return await self._commit(batch)
        except DiskFull:
            if not self.full():
                raise
        except Undone as error:
            _log.warning("commit_repeated", reason=str(error))
        return await self._commit(batch)

    async def _commit(self, batch: list[_Job]) -> list[Any]:
        with translated(self._url):
            async with self._writer.begin() as connection:
                with before_the_commit():
                    results, heads = await self._work(connection, batch)
        self._memory.note(heads)
        return results

    async def _work(self, connection: AsyncConnection, batch: list[_Job]) -> tuple[list[Any], Any]:
        journal.forget(connection)
        serial = any(job.serial for job in batch)
        lock = SERIAL_LOCK if serial else None
        await self._begin(connection, pooled=self._pooled, lock=lock)
        for table, rows in _together(batch):
            await connection.execute(insert(table), rows)
        results = [job.operation and await job.operation(connection) for job in batch]
        return results, await journal.write(connection, self._keys, self._memory)


def _together(batch: list[_Job]) -> list[tuple[Table, list[Mapping[str, Any]]]]:
    """Return the rows of all jobs by table, tables that others refer to first."""
    merged: dict[Table, list[Mapping[str, Any]]] = {}
    for job in batch:
        for table, rows in job.rows.items():
            merged.setdefault(table, []).extend(rows)
    return [(t, merged[t]) for t in metadata.sorted_tables if merged.get(t)]


def _answer(job: _Job, result: object) -> None:
    if not job.done.done():
        job.done.set_result(result)


def _fail(job: _Job, error: Exception) -> None:
    if not job.done.done():
        job.done.set_exception(error)


async def patiently(write: Callable[[], Awaitable[T]]) -> T:
    """Write what must not be lost, a few times over some seconds while the store is away."""
    for pause in _AGAIN:
        try:
            return await write()
        except StoreUnavailable as error:
            _log.warning("result_not_stored_yet", reason=str(error))
            await asyncio.sleep(pause)
    return await write()


@contextlib.asynccontextmanager
async def open_database(
    url: str,
    *,
    clock: Callable[[], datetime] | None = None,
    keys: Keys | None = None,
    wall: Callable[[], datetime] = utc_now,
    full: Callable[[], bool] = lambda: False,
) -> AsyncIterator[Database]:
    """Open ``url`` (``sqlite:///PATH`` or a PostgreSQL DSN) and run its writer until exit.

    ``clock`` replaces the database's clock, for tests in which time is an argument; ``keys`` seal
    the journal, which is written without seals where there are none; ``wall`` is the machine's clock,
    from which the time of SQLite begins and which it does not follow; ``full`` is called when the disk
    is full, and says whether it is worth another attempt.
    """
    database = Database(url, clock, keys, wall)
    database.full = full
    task = asyncio.create_task(database.run_writer(), name="store-writer")
    try:
        yield database
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        database.refuse_waiting()
        await database.dispose()
