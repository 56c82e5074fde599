"""The outbox of what humans are to be told: one row an incident, so nothing is told twice.

A notice is claimed as an incident is: by due time, lease and epoch. It always tells how the
incident stands when it is sent, so a slow chat skips states and never shows a stale one.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, case, func, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.base import IncidentId, Value
from remediator.model.incident import Phase
from remediator.model.notification import Handle
from remediator.store import tables as t
from remediator.store.approvals import delivered, renew
from remediator.store.columns import Instant
from remediator.store.database import Database
from remediator.store.leases import Turns, claim_due, release_claimed, write_claimed

LEASE = timedelta(seconds=60)
"""Longer than a notifier may take; a claim that is never finished is sent again after it."""


class Notice(Value):
    """One incident of which humans are to be told."""

    incident_id: IncidentId
    epoch: int
    wanted: int
    attempts: int
    handle: Handle | None
    """With all its posts."""
    channel: str | None = None
    """Where it is told, by the last one who looked; None where nobody did."""


class Notices:
    """Hands out notices that are due, and takes what became of them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns = Turns()

    async def claim(self, limit: int, busy: Collection[str] = ()) -> list[Notice]:
        """Claim up to ``limit`` due notices: requests for an approval, then by severity, then age.

        One in four is the oldest. Those of the channels that are ``busy`` are left.
        """
        channel = t.notices.c.channel
        free = or_(channel.is_(None), channel.not_in(sorted(busy))) if busy else None

        async def operation(connection: AsyncConnection) -> list[Notice]:
            now = await self._database.now(connection)
            postgres = self._database.is_postgres
            columns = [t.notices.c[name] for name in (*Notice.model_fields, "posts")]
            found: list[Any] = []
            for some, ranked in self._turns.share(limit):
                claim = claim_due(
                    t.notices, now, LEASE, some, skip_locked=postgres, where=free, ranked=ranked
                )
                found += (await connection.execute(claim.returning(*columns))).mappings().all()
            await renew(connection, [row["incident_id"] for row in found], now)
            return [_notice(dict(row)) for row in found]

        claimed = await self._database.write(operation)
        self._turns.took(len(claimed))
        return claimed

    async def put_back(self, notice: Notice, channel: str) -> None:
        """Give a notice back for when its ``channel`` is free again; it keeps its place."""

        async def operation(connection: AsyncConnection) -> None:
            await _write(connection, notice, {"channel": channel})

        await self._database.write(operation)

    async def keep(self, notice: Notice, handle: Handle) -> None:
        """Record where the messages are by now; the claim goes on."""

        async def operation(connection: AsyncConnection) -> None:
            key, epoch = notice.incident_id, notice.epoch
            await write_claimed(connection, t.notices, key, epoch, _places(handle))
            await self._asked(connection, notice, handle)

        await self._database.write(operation)

    async def sent(
        self, notice: Notice, handle: Handle | None, again_in: timedelta | None = None
    ) -> None:
        """Record where the message is; what was asked for meanwhile stays due.

        ``again_in`` makes it due again: something of it is still missing.
        """

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            later = None if again_in is None else now + again_in
            due = case(
                (t.notices.c.wanted > notice.wanted, t.notices.c.due_at),
                else_=literal(later, Instant),
            )
            values = {
                "sent": notice.wanted,
                "attempts": 0 if again_in is None else notice.attempts + 1,
                **_places(handle),
                "last_error": "",
                "due_at": due,
            }
            await _write(connection, notice, values)
            await self._asked(connection, notice, handle)

        await self._database.write(operation)

    async def _asked(
        self, connection: AsyncConnection, notice: Notice, handle: Handle | None
    ) -> None:
        """Let the time of what was asked for with it begin."""
        if handle is not None and handle.asks:
            now = await self._database.now(connection)
            key, to = notice.incident_id, handle.channel
            await delivered(connection, key, now, to, handle.asks)

    async def failed(self, notice: Notice, reason: str, again_in: timedelta) -> None:
        """Record why it was not sent, and when it is tried again."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            attempts = notice.attempts + 1
            values = {"attempts": attempts, "last_error": reason, "due_at": now + again_in}
            await _write(connection, notice, values)

        await self._database.write(operation)

    async def release(self, notice: Notice) -> None:
        """Give a notice back at once, for whoever comes next."""

        async def operation(connection: AsyncConnection) -> None:
            await release_claimed(connection, t.notices, notice.incident_id, notice.epoch)

        await self._database.write(operation)


def _notice(row: dict[str, Any]) -> Notice:
    posts = row.pop("posts") or []
    if row["handle"] is not None:
        row["handle"] = {**row["handle"], "posts": posts}
    return Notice.model_validate(row)


def _places(handle: Handle | None) -> dict[str, Any]:
    if handle is None:
        return {"handle": None, "posts": None}
    stored = handle.model_dump(mode="json", exclude={"posts", "more"})
    return {"handle": stored, "posts": [post.model_dump(mode="json") for post in handle.posts]}


async def _write(connection: AsyncConnection, notice: Notice, values: dict[str, Any]) -> None:
    # a higher epoch: a write whose answer was lost is not made twice
    finished = values | {"lease_until": None, "epoch": notice.epoch + 1}
    await write_claimed(connection, t.notices, notice.incident_id, notice.epoch, finished)


_FIRST = 4
"""What is taken off the severity of a message that asks for an approval: it goes before all others."""


async def correct_notice(connection: AsyncConnection, incident: str, now: datetime) -> bool:
    """Ask for those who were told of the incident to be told how it stands, if there are any."""
    wanted = {
        "wanted": t.notices.c.wanted + 1,
        "due_at": func.coalesce(t.notices.c.due_at, literal(now, Instant)),
        "rank": _rank(incident),
    }
    found = await connection.execute(
        update(t.notices).where(t.notices.c.incident_id == incident).values(**wanted)
    )
    return bool(found.rowcount)


async def request_notice(connection: AsyncConnection, incident: str, now: datetime) -> None:
    """Ask for humans to be told how the incident stands; never waits for any of them."""
    if not await correct_notice(connection, incident, now):
        await connection.execute(
            insert(t.notices).values(
                incident_id=incident,
                wanted=1,
                sent=0,
                due_at=now,
                epoch=0,
                attempts=0,
                last_error="",
                rank=_rank(incident),
            )
        )


def _rank(incident: str) -> ColumnElement[Any]:
    """Return the place of a message about the incident as it stands: by severity."""
    asks = t.incidents.c.phase == Phase.APPROVAL
    place = case((asks, t.incidents.c.severity - _FIRST), else_=t.incidents.c.rank)
    return select(place).where(t.incidents.c.id == incident).scalar_subquery()
