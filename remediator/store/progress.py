"""How far each waiting delivery is taken, and how often that was tried: read and written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model import DeliveryId
from remediator.store import tables as t
from remediator.store.columns import Instant, Json
from remediator.store.episodes import Correlation
from remediator.store.turns import Progress, Slice


async def progress_of(
    connection: AsyncConnection, deliveries: Collection[DeliveryId]
) -> dict[DeliveryId, Progress]:
    """Return how far those of ``deliveries`` are taken that still wait."""
    waits = t.deliveries.c.id.in_(deliveries) & t.deliveries.c.triaged_at.is_(None)
    names = ("id", "taken", "incidents", "records")
    rows = await connection.execute(select(*(t.deliveries.c[name] for name in names)).where(waits))
    return {
        DeliveryId(found): Progress(taken, tuple(incidents), dict(records or {}))
        for found, taken, incidents, records in rows
    }


async def mark(
    connection: AsyncConnection,
    taken: Sequence[Slice],
    before: Mapping[DeliveryId, Progress],
    decided: Correlation,
    now: datetime,
) -> None:
    """Note that slices are taken, and what came of them."""
    rows = []
    for one in taken:
        known = before[one.delivery.id]
        touched = dict.fromkeys((*known.incidents, *decided.deliveries[one.delivery.id]))
        rows.append(
            {
                "marked": one.delivery.id,
                "end": one.end,
                "total": one.total,
                "done_at": now if one.is_last else None,
                "touching": list(touched),
                "gathering": decided.records.get(one.delivery.id) or None,
            }
        )
    await connection.execute(
        update(t.deliveries)
        .where(t.deliveries.c.id == bindparam("marked"))
        .values(
            taken=bindparam("end"),
            alerts=bindparam("total"),
            attempts=0,
            triaged_at=bindparam("done_at", type_=Instant),
            incidents=bindparam("touching", type_=Json),
            records=bindparam("gathering", type_=Json),
        ),
        rows,
    )


async def attempted(
    connection: AsyncConnection, deliveries: Collection[DeliveryId], *, ended: bool
) -> None:
    """Count that triage of ``deliveries`` begins, or note that it ``ended`` well."""
    if deliveries:
        still = t.deliveries.c.id.in_(deliveries) & t.deliveries.c.triaged_at.is_(None)
        attempts = 0 if ended else t.deliveries.c.attempts + 1
        await connection.execute(update(t.deliveries).where(still).values(attempts=attempts))
