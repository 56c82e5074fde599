"""The events of senders of incidents, beside the deliveries that brought them.

An event is taken once, whatever its sender repeats. Where the labels of its alerts have to be
fetched, its row is claimed as an incident's is: by due time, lease and epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import Alert, Delivery, SenderEvent
from remediator.model.base import DeliveryId, IncidentId, Value, new_id
from remediator.model.correlation import Reported
from remediator.model.events import Announce, EventType
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.store import tables as t
from remediator.store.database import TAKEN_WITHIN, Database
from remediator.store.incidents import CLOSED_FOR_HUMANS
from remediator.store.journal import append
from remediator.store.leases import claim_due, release_claimed, write_claimed
from remediator.store.outbox import request_notice

LEASE = timedelta(seconds=12)
"""Longer than one fetch may take; a claim that is never finished is taken over after it."""
SAID = "pagerduty"
"""First word of the journal's events about what PagerDuty said."""
_MOST_LINES = 1000

_ALERTS = TypeAdapter(tuple[Alert, ...])


class Waiting(Value):
    """One event whose alerts are to be fetched before it is triaged."""

    delivery_id: DeliveryId
    incident: str
    """The sender's id of the incident."""
    alert: Alert
    """What is known of it without being fetched."""
    attempts: int
    """Fetches that failed before."""
    epoch: int
    waited: timedelta
    """Time since the event was received."""


class Events:
    """Takes events in, and hands out those that are to be fetched."""

    def __init__(
        self,
        database: Database,
        arrived: Callable[[], None],
        announce: Announce = lambda *_: None,
    ) -> None:
        """Call ``arrived`` when something is durable that a loop waits for.

        ``announce`` is told of each delivery.
        """
        self._database = database
        self._announce = announce
        self._arrived = arrived

    async def put(
        self, delivery: Delivery, event: SenderEvent, alerts: Sequence[Alert], *, fetch: bool
    ) -> DeliveryId:
        """Make it durable, and return the delivery under which this event came first.

        ``alerts`` is what it says by itself; with ``fetch`` it waits for more to be known.
        Raises ``StoreUnavailable``; then its sender has to come again.
        """
        row = _row(delivery, event, alerts)

        async def operation(connection: AsyncConnection) -> DeliveryId:
            known = await _first(connection, event)
            if known is not None:
                return known
            triaged_at = delivery.received_at if event.incident is None else None
            await connection.execute(
                insert(t.deliveries).values(
                    **{name: getattr(delivery, name) for name in Delivery.model_fields},
                    alerts=len(alerts),
                    dead=0,
                    incidents=[],
                    triaged_at=triaged_at,
                )
            )
            due_at = await self._database.now(connection) if fetch else None
            await connection.execute(insert(t.events).values(**row, due_at=due_at))
            return delivery.id

        try:
            first = await self._database.write(operation, within=TAKEN_WITHIN)
        except IntegrityError:  # another replica took it at the same moment
            first = await self._database.write(operation, within=TAKEN_WITHIN)
        self._arrived()
        if first == delivery.id:
            self._announce(EventType.DELIVERY, first)
        return first

    async def claim(self, limit: int) -> list[Waiting]:
        """Claim up to ``limit`` events that are to be fetched now, oldest first."""

        async def operation(connection: AsyncConnection) -> list[Waiting]:
            now = await self._database.now(connection)
            postgres = self._database.is_postgres
            claim = claim_due(t.events, now, LEASE, limit, skip_locked=postgres)
            rows = (await connection.execute(claim.returning(t.events))).mappings().all()
            received = await _received(connection, [row["delivery_id"] for row in rows])
            waiting = [_waiting(row, now - received[row["delivery_id"]]) for row in rows]
            unread = [r["delivery_id"] for r, w in zip(rows, waiting, strict=True) if w is None]
            if unread:  # for triage, which makes it a dead letter
                done = update(t.events).where(t.events.c.delivery_id.in_(unread))
                await connection.execute(done.values(due_at=None, reason="it cannot be read"))
            return [one for one in waiting if one is not None]

        return await self._database.write(operation)

    async def settle(
        self, waiting: Waiting, alerts: Sequence[Alert] | None, reason: str = ""
    ) -> None:
        """Let it be triaged, with the ``alerts`` that were found, or with what it said itself.

        Raises ``OwnershipLost`` when it was claimed by somebody else since.
        """
        values: dict[str, Any] = {"due_at": None, "reason": reason}
        if alerts is not None:
            values["alerts"] = _ALERTS.dump_python(tuple(alerts), mode="json")
        await self._write(waiting, lambda _: values)
        self._arrived()

    async def later(self, waiting: Waiting, reason: str, again_in: timedelta) -> None:
        """Record why it could not be fetched, and when it is tried again."""
        attempts = waiting.attempts + 1
        await self._write(
            waiting,
            lambda now: {"due_at": now + again_in, "reason": reason, "attempts": attempts},
        )

    async def release(self, waiting: Waiting) -> None:
        """Give an event back at once, for whoever comes next."""

        async def operation(connection: AsyncConnection) -> None:
            await release_claimed(connection, t.events, waiting.delivery_id, waiting.epoch)

        await self._database.write(operation)

    async def alerts(self, delivery: DeliveryId) -> tuple[Alert, ...]:
        """Return the alerts of a stored event; none where the delivery brought no event."""
        async with self._database.read() as connection:
            query = select(t.events.c.alerts).where(t.events.c.delivery_id == delivery)
            return read_alerts((await connection.execute(query)).scalar())

    async def incidents_of(self, incident: IncidentId) -> list[str]:
        """List the sender's incidents that spoke of our ``incident``, whoever reported it first."""
        mine = (t.journal.c.incident_id == incident) & (t.journal.c.step == "triage")
        said = select(t.journal.c.data).where(mine, t.journal.c.event.like(f"{SAID} %"))
        async with self._database.read() as connection:
            lines = await connection.scalars(said.limit(_MOST_LINES))
            return sorted({line["incident"] for line in lines if line.get("incident")})

    async def _write(self, waiting: Waiting, values: Callable[[datetime], dict[str, Any]]) -> None:
        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            # a higher epoch: a write whose answer was lost is not made twice
            ended = {"lease_until": None, "epoch": waiting.epoch + 1}
            await write_claimed(
                connection, t.events, waiting.delivery_id, waiting.epoch, values(now) | ended
            )

        await self._database.write(operation)

    # --- whether our signing secrets are the right ones ---------------------------------------

    async def verified(self, secrets: str) -> bool:
        """Say whether any signature was ever good by the set of secrets with this digest."""
        async with self._database.read() as connection:
            query = select(t.signing_secrets.c.verified_at)
            row = await connection.execute(query.where(t.signing_secrets.c.digest == secrets))
            return row.scalar() is not None

    async def verify(self, secrets: str) -> None:
        """Remember that a signature was good by the set of secrets with this digest."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            await _secrets(connection, secrets)
            mine = t.signing_secrets.c.digest == secrets
            never = t.signing_secrets.c.verified_at.is_(None)
            await connection.execute(
                update(t.signing_secrets).where(mine, never).values(verified_at=now)
            )

        await self._database.write(operation, serial=True)

    async def page(self, secrets: str, reason: str) -> bool:
        """Tell humans ``reason``, once for the set of secrets with this digest."""

        async def operation(connection: AsyncConnection) -> bool:
            now = await self._database.now(connection)
            await _secrets(connection, secrets)
            mine = t.signing_secrets.c.digest == secrets
            untold = t.signing_secrets.c.told_at.is_(None)
            told = await connection.execute(
                update(t.signing_secrets).where(mine, untold).values(told_at=now)
            )
            if told.rowcount:
                await tell(connection, f"pagerduty/{secrets[:12]}", reason, now)
            return bool(told.rowcount)

        told = await self._database.write(operation, serial=True)
        self._arrived()
        return told


async def events_of(
    connection: AsyncConnection, deliveries: Sequence[DeliveryId]
) -> dict[DeliveryId, SenderEvent]:
    """Return the events that ``deliveries`` brought."""
    columns = [t.events.c[name] for name in SenderEvent.model_fields]
    query = select(t.events.c.delivery_id, *columns)
    rows = await connection.execute(query.where(t.events.c.delivery_id.in_(deliveries)))
    return {
        DeliveryId(row["delivery_id"]): SenderEvent.model_validate(
            {name: row[name] for name in SenderEvent.model_fields}
        )
        for row in rows.mappings()
    }


async def reported(connection: AsyncConnection, incidents: Iterable[str]) -> dict[str, Reported]:
    """Return how far the sender's ``incidents`` are known; those never heard of lack."""
    query = (
        select(t.events.c.incident, t.events.c.at, t.events.c.status, t.deliveries.c.incidents)
        .join(t.deliveries, t.deliveries.c.id == t.events.c.delivery_id)
        .where(t.events.c.incident.in_(sorted(set(incidents))), t.events.c.applied)
        .where(t.events.c.status.is_not(None))
        .order_by(t.events.c.at, t.deliveries.c.received_at, t.deliveries.c.id)
    )
    return {
        incident: Reported(at=at, status=status, incidents=tuple(touched))
        for incident, at, status, touched in await connection.execute(query)
    }


def not_fetched() -> ColumnElement[bool]:
    """Return the condition on a delivery, outer joined with its event, that it need not wait.

    Later events of an incident wait with an earlier one, so that they keep their order.
    """
    waits = t.events.alias("waits")
    still = select(waits.c.incident).where(waits.c.due_at.is_not(None))
    return or_(t.events.c.incident.is_(None), t.events.c.incident.not_in(still))


def read_alerts(stored: Any) -> tuple[Alert, ...]:
    """Read the alerts of an event's row."""
    return _ALERTS.validate_python(stored or ())


def _row(delivery: Delivery, event: SenderEvent, alerts: Sequence[Alert]) -> dict[str, Any]:
    return event.model_dump() | {
        "delivery_id": delivery.id,
        "alerts": _ALERTS.dump_python(tuple(alerts), mode="json"),
        "reason": "",
        "applied": False,
        "epoch": 0,
        "attempts": 0,
    }


async def _first(connection: AsyncConnection, event: SenderEvent) -> DeliveryId | None:
    """Return the delivery that brought this event, or this webhook, before."""
    same = t.events.c.id == event.id
    if event.webhook is not None:
        same |= t.events.c.webhook == event.webhook
    query = select(t.events.c.delivery_id).where(same).order_by(t.events.c.delivery_id)
    found = (await connection.execute(query)).scalars().first()
    return None if found is None else DeliveryId(found)


async def _received(connection: AsyncConnection, deliveries: Sequence[str]) -> dict[str, datetime]:
    query = select(t.deliveries.c.id, t.deliveries.c.received_at)
    rows = await connection.execute(query.where(t.deliveries.c.id.in_(deliveries)))
    return {row.id: row.received_at for row in rows}


def _waiting(row: Any, waited: timedelta) -> Waiting | None:
    """Read a claimed row; None for one that this version cannot read, so that it blocks nobody."""
    try:
        (alert,) = read_alerts(row["alerts"])
    except ValueError:
        return None
    names = ("delivery_id", "incident", "attempts", "epoch")
    return Waiting(**{name: row[name] for name in names}, alert=alert, waited=waited)


async def _secrets(connection: AsyncConnection, digest: str) -> None:
    """Make sure that there is a row for the set of secrets."""
    query = select(t.signing_secrets.c.digest).where(t.signing_secrets.c.digest == digest)
    if (await connection.execute(query)).scalar() is None:
        await connection.execute(insert(t.signing_secrets).values(digest=digest))


async def tell(connection: AsyncConnection, key: str, reason: str, now: datetime) -> None:
    """Write a closed incident of no service, so that humans are told as of any other."""
    incident = IncidentId(new_id("inc", now))
    row = {
        "id": incident,
        "correlation_key": key,
        "state": IncidentState.CLOSED,
        "phase": Phase.DONE,
        "phase_since": now,
        "progressed_at": now,
        "outcome": IncidentOutcome.ESCALATED,
        "reason": reason,
        "dry_run": False,
        "round": 0,
        "opened_at": now,
        "closed_at": now,
        "poked": False,
        "epoch": 0,
        "failures": 0,
    }
    await connection.execute(insert(t.incidents).values(**row))
    append(connection, incident, at=now, step="queue", event=CLOSED_FOR_HUMANS, reason=reason)
    await request_notice(connection, incident, now)
