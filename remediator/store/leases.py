"""Rows as a queue: one claim at a time, fenced by an epoch. For incidents and what is told of them.

A claim is one statement over rows that are due and whose lease is over. It raises the row's
epoch; every later write of that claim says so and touches no row once somebody else claimed.

A lease that ends later than any that is given now is of a clock that was ahead and was put back: it
holds nobody off. Twice the longest, since the time of a claim is read a little before it is made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Table, Update, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.errors import OwnershipLost, StoreUnavailable

T = TypeVar("T")

AGED = 4
"""One in so many claims goes to what has been due longest, whatever its rank."""
GIVEN_BACK_WITHIN = 2.0
"""Seconds in which the store has to take a claim back; after them its lease runs out."""


def claim_due(  # noqa: PLR0913 - by keyword, each with a meaning of its own
    table: Table,
    now: datetime,
    lease: timedelta,
    limit: int,
    *,
    skip_locked: bool,
    where: ColumnElement[bool] | None = None,
    longest: timedelta | None = None,
    ranked: bool = False,
) -> Update:
    """Return the statement that claims up to ``limit`` due rows ``where``, oldest first.

    ``ranked``: by their rank, and the oldest first of the same one. ``longest`` is the longest lease that anybody is given, unless all are given ``lease``.
    """
    key, until = _key(table), table.c.lease_until
    is_due = (table.c.due_at <= now) & or_(until.is_(None), until <= now)
    was_due = until > _latest(now, longest or lease)
    due = (
        select(key)
        .where(table.c.due_at.is_not(None), or_(is_due, was_due))
        .where(true() if where is None else where)
        .order_by(*([table.c.rank] if ranked else []), table.c.due_at)
        .limit(limit)
    )
    if skip_locked:
        due = due.with_for_update(skip_locked=True)
    return (
        update(table)
        .where(key.in_(due.scalar_subquery()))
        .values(epoch=table.c.epoch + 1, lease_until=now + lease)
    )


class Turns:
    """Shares claims out between rank and age, so that nothing of a low rank waits for ever."""

    def __init__(self) -> None:
        self._given = 0

    def share(self, limit: int) -> list[tuple[int, bool]]:
        """Return how many of the next ``limit`` claims go by rank (True), and how many by age."""
        aged = (self._given + limit) // AGED - self._given // AGED
        return [(n, ranked) for n, ranked in ((limit - aged, True), (aged, False)) if n]

    def took(self, count: int) -> None:
        """Count claims that were made; those that found nothing use up nobody's turn."""
        self._given += count


def is_held(
    until: ColumnElement[datetime], now: datetime, longest: timedelta
) -> ColumnElement[bool]:
    """Return whether a lease ``until`` then holds others off now."""
    return until.is_not(None) & (until > now) & (until <= _latest(now, longest))


def _latest(now: datetime, longest: timedelta) -> datetime:
    return now + 2 * longest


async def write_claimed(
    connection: AsyncConnection, table: Table, row_id: str, epoch: int, values: dict[str, Any]
) -> None:
    """Change a claimed row; ``OwnershipLost`` when it was claimed or finished since."""
    mine = (_key(table) == row_id) & (table.c.epoch == epoch)
    done = await connection.execute(update(table).where(mine).values(**values))
    if done.rowcount != 1:
        raise OwnershipLost(f"{row_id} is no longer claimed by this worker")


async def release_claimed(
    connection: AsyncConnection, table: Table, row_id: str, epoch: int
) -> None:
    """Let whoever comes next claim the row at once; raises ``OwnershipLost`` as a write does."""
    await write_claimed(connection, table, row_id, epoch, {"lease_until": None})


@contextlib.asynccontextmanager
async def given_back(release: Callable[[T], Awaitable[None]], claim: T) -> AsyncIterator[None]:
    """Release ``claim`` when what is done with it is cancelled, because this process ends."""
    try:
        yield
    except asyncio.CancelledError:
        with contextlib.suppress(OwnershipLost, StoreUnavailable, TimeoutError):
            async with asyncio.timeout(GIVEN_BACK_WITHIN):
                await release(claim)
        raise


async def require_claimed(
    connection: AsyncConnection, table: Table, row_id: str, epoch: int
) -> None:
    """Raise ``OwnershipLost`` when a claimed row was claimed or finished since."""
    mine = (_key(table) == row_id) & (table.c.epoch == epoch)
    if (await connection.execute(select(_key(table)).where(mine))).first() is None:
        raise OwnershipLost(f"{row_id} is no longer claimed by this worker")


def _key(table: Table) -> Column[Any]:
    (key,) = table.primary_key.columns
    return key
