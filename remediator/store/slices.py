"""Which alerts triage takes next: a slice of each waiting delivery, and how far each is taken."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import Alert, Delivery, Source
from remediator.model.base import DeliveryId, IncidentId
from remediator.model.correlation import Correlation
from remediator.store import tables as t
from remediator.store.columns import Instant, Json

SLICE = 500
"""Alerts of one delivery in one transaction."""
TURN = 1000
"""Alerts in one transaction, which has to end within the patience of whoever waits for the next."""
ATTEMPTS = 5
"""Times that triage of a delivery may fail, or end with the process, before it is a dead letter."""


@dataclass(frozen=True)
class Waiting:
    """A delivery that waits for triage, as it is stored."""

    id: DeliveryId
    alerts: int
    taken: int
    """Its first alerts, that triage has taken already."""
    attempts: int
    """Times since its last progress that its triage began and did not end."""

    @property
    def is_large(self) -> bool:
        """Whether it is taken in slices."""
        return self.alerts - self.taken > SLICE


@dataclass(frozen=True)
class Progress:
    """How far a waiting delivery is taken."""

    taken: int
    incidents: tuple[IncidentId, ...]
    """Those that it touched."""
    records: dict[str, IncidentId]
    """Those of them that gather more of its alerts, by what they are for."""


@dataclass(frozen=True)
class Read:
    """A waiting delivery with its alerts; without where only their fingerprints are at hand."""

    waiting: Waiting
    delivery: Delivery | None
    alerts: Sequence[Alert]
    prints: frozenset[str]
    """What its alerts are known by, as far as triage has not taken them."""

    @property
    def begin(self) -> int:
        """How many alerts were taken; none where the body is not read as it was, so none is lost."""
        return self.waiting.taken if len(self.alerts) == self.waiting.alerts else 0


@dataclass(frozen=True)
class Slice:
    """Alerts of one delivery that are taken together."""

    waiting: Waiting
    delivery: Delivery
    alerts: Sequence[Alert]
    end: int
    """How many of the delivery's alerts are taken with it."""
    total: int
    """How many there are."""

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after it."""
        return self.end == self.total

    @property
    def is_all(self) -> bool:
        """Whether it is the whole delivery."""
        return len(self.alerts) == self.total

    def is_next(self, progress: Progress | None) -> bool:
        """Say whether the delivery still stands where this slice goes on."""
        return progress is not None and progress.taken == self.waiting.taken


def prints_of(alerts: Iterable[Alert]) -> frozenset[str]:
    """Return what alerts are known by: a later word about the same one has to come later."""
    found = set()
    for alert in alerts:
        found.add(alert.fingerprint)
        if alert.source is Source.PAGERDUTY and alert.group_key is not None:
            found.add(alert.group_key)
    return frozenset(found)


def in_one_turn(rows: Sequence[Waiting]) -> list[Waiting]:
    """Return those of ``rows``, oldest first, that may be looked at together.

    One whose triage did not end before is looked at alone: whatever happens is its doing.
    """
    found: list[Waiting] = []
    alerts = 0
    for row in rows:
        small = 0 if row.is_large else row.alerts
        if found and (row.attempts or alerts + small > TURN):
            break
        found.append(row)
        alerts += small
        if row.attempts:
            break
    return found


def slices(read: Iterable[Read]) -> list[Slice]:
    """Choose what is taken now of the deliveries in ``read``, which are in their order."""
    chosen: list[Slice] = []
    ahead: set[str] = set()
    room, sliced = TURN, False
    for one in read:
        rest, large = one.alerts[one.begin :], one.waiting.is_large
        fits = not sliced if large else len(rest) <= room
        if one.delivery is None or not fits or not ahead.isdisjoint(one.prints):
            ahead |= one.prints
            continue
        now = rest[: min(SLICE, room)] if large else rest
        end = one.begin + len(now)
        chosen.append(Slice(one.waiting, one.delivery, now, end, len(one.alerts)))
        ahead |= prints_of(rest[len(now) :])
        room -= len(now)
        sliced = sliced or large
    return chosen


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
