"""Records that no playbook took, counted by sender and place, and the digests of what is over the bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from sqlalchemy import case, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.base import IncidentId
from remediator.model.unmatched import Digest, SenderRecords, place_of
from remediator.store import tables as t
from remediator.store.outbox import correct_notice


async def standings_of(
    connection: AsyncConnection, senders: Iterable[str], since: datetime
) -> dict[tuple[str, str], SenderRecords]:
    """Read what ``senders`` have recorded after ``since``, by sender and place.

    To be called in triage's own transaction, which is serial. Its cost follows the bound: no more
    than that many records, and one digest, are within its window, of each service.
    """
    of = t.incidents.c
    newest = func.max(case((of.gathered.is_not(None), of.id)))
    counted = (
        select(of.sender, of.system, of.service, func.count() - func.count(of.gathered), newest)
        .where(of.sender.in_(sorted(set(senders))), of.opened_at > since)
        .group_by(of.sender, of.system, of.service)
    )
    rows = (await connection.execute(counted)).all()
    gathered = await _gathered(connection, [row[4] for row in rows if row[4] is not None])
    return {
        (sender, place_of(system, service)): SenderRecords(
            records=records, digest=digest, gathered=gathered.get(digest, 0)
        )
        for sender, system, service, records, digest in rows
    }


async def _gathered(connection: AsyncConnection, digests: list[str]) -> dict[str, int]:
    if not digests:
        return {}
    query = select(t.incidents.c.id, t.incidents.c.gathered).where(t.incidents.c.id.in_(digests))
    return {row[0]: row[1] for row in await connection.execute(query)}


async def write_digests(
    connection: AsyncConnection, grown: Mapping[IncidentId, Digest], now: datetime
) -> None:
    """Write how many alerts digests took; who was told of one is told the new number."""
    for incident, digest in grown.items():
        row = update(t.incidents).where(t.incidents.c.id == incident)
        await connection.execute(row.values(gathered=digest.gathered, reason=digest.reason))
        await correct_notice(connection, incident, now)
