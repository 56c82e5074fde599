"""What is still owed: temporary changes that have to be taken back, also after their incident.

A row is made in the transaction that records the change as applied, and goes away in the one
that records it as taken back, or as handed to a human. It is claimed as an incident is.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any

import structlog
from pydantic import AwareDatetime, ValidationError
from sqlalchemy import delete, func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import AlertStatus
from remediator.model.base import MitigationId, Value
from remediator.model.errors import OwnershipLost, StoreUnavailable
from remediator.model.incident import Incident, IncidentOutcome, IncidentState, Phase
from remediator.model.mitigation import LedgerEntry, MitigationState
from remediator.store import tables as t
from remediator.store.acknowledgements import HOLD, NOT_TAKEN_BACK, begin_for_what_stays
from remediator.store.claims import incident_of
from remediator.store.columns import Instant
from remediator.store.database import Database
from remediator.store.incidents import close_unread
from remediator.store.journal import append
from remediator.store.leases import claim_due, require_claimed, write_claimed
from remediator.store.ledger import close_entries, entry_of, lands_in, under_way
from remediator.store.outbox import request_notice

_log = structlog.get_logger(__name__)

LEASE = timedelta(seconds=60)
"""Longer than taking back may take."""
AGAIN = timedelta(seconds=10)
"""Time after which what could not be given up is looked at again."""


class PendingRevert(Value):
    """One temporary change whose hold time is over, claimed by this process."""

    mitigation_id: MitigationId
    epoch: int
    attempts: int
    entry: LedgerEntry
    incident: Incident
    firing: str | None
    """Name of an alert of the same service that fires now: it is not stable yet."""
    now: AwareDatetime


class PendingReverts:
    """Hands out what is to be taken back, and takes what became of it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, limit: int) -> list[PendingRevert]:
        """Claim up to ``limit`` changes whose hold time is over, oldest first."""
        unread: list[tuple[str, int]] = []

        async def operation(connection: AsyncConnection) -> list[PendingRevert]:
            unread.clear()
            now = await self._database.now(connection)
            postgres = self._database.is_postgres
            claim = claim_due(t.obligations, now, LEASE, limit, skip_locked=postgres)
            rows = (await connection.execute(claim.returning(t.obligations))).mappings().all()
            owed = []
            for row in rows:
                mitigation, epoch = row["mitigation_id"], row["epoch"]
                try:
                    owed.append(await _load(connection, mitigation, epoch, row["attempts"], now))
                except ValidationError as error:
                    _log.error("obligation_unreadable", mitigation=mitigation, reason=str(error))
                    unread.append((mitigation, epoch))
            return owed

        owed = await self._database.write(operation)
        for mitigation, epoch in unread:
            await self._hand_over(mitigation, epoch)
        return owed

    async def _hand_over(self, mitigation: str, epoch: int) -> None:
        """Give what this version cannot read to a human, once no call of its incident is on its way.

        Serial with triage, as every close is.
        """

        async def operation(connection: AsyncConnection) -> None:
            await require_claimed(connection, t.obligations, mitigation, epoch)
            mine = t.mitigations.c.id == mitigation
            query = select(t.mitigations.c.incident_id).where(mine)
            incident = str((await connection.execute(query)).scalar_one())
            now = await self._database.now(connection)
            landing = await lands_in(connection, incident, now)
            if landing > timedelta(0) or await under_way(connection, incident, now) is not None:
                later = {"due_at": now + max(landing, AGAIN), "lease_until": None}
                await write_claimed(connection, t.obligations, mitigation, epoch, later)
                return
            await _forget(connection, mitigation)
            reason = (
                "a temporary change of it cannot be read by this version, so it is not taken back"
            )
            await close_unread(connection, incident, now, reason)
            await _stays(connection, incident, reason, {}, now)

        with contextlib.suppress(OwnershipLost, StoreUnavailable):  # else when the lease is over
            await self._database.write(operation, serial=True)

    async def begin(self, owed: PendingRevert) -> bool:
        """Keep everybody else off the target from now on; False when somebody is at it.

        Serial with reservations: one that came first is seen here, one that comes later waits
        until the claim of ``owed`` has been given back. ``OwnershipLost`` when it is not ours.
        """

        async def operation(connection: AsyncConnection) -> bool:
            now = await self._database.now(connection)
            lease = {"lease_until": now + LEASE}
            await write_claimed(connection, t.obligations, owed.mitigation_id, owed.epoch, lease)
            return not await _is_busy(connection, owed.entry.mitigation.target.key)

        return await self._database.write(operation, serial=True)

    async def postpone(
        self, owed: PendingRevert, again_in: timedelta, *, attempts: int, step: str | None = None
    ) -> None:
        """Look again later; ``step`` says what was taken back of it so far."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            values = {
                "due_at": now + again_in,
                "attempts": attempts,
                "lease_until": None,
                "epoch": owed.epoch + 1,
            }
            await write_claimed(connection, t.obligations, owed.mitigation_id, owed.epoch, values)
            if step is not None:
                await _tell(connection, owed, "taken back in part", step, now)

        await self._database.write(operation)

    async def settled(self, owed: PendingRevert, *, taken_back: bool, reason: str) -> None:
        """Record that the change was taken back, or that a human has to: owed no more.

        The latter closes the incident, so it waits for what is under way in it.
        """

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            mine: dict[str, Any] = {"epoch": owed.epoch + 1}
            if not taken_back and await under_way(connection, owed.incident.id, now) is not None:
                mine |= {"due_at": now + AGAIN, "lease_until": None}
                await write_claimed(connection, t.obligations, owed.mitigation_id, owed.epoch, mine)
                return
            await write_claimed(connection, t.obligations, owed.mitigation_id, owed.epoch, mine)
            await _forget(connection, owed.mitigation_id)
            await _record(connection, owed, taken_back=taken_back, reason=reason, now=now)

        await self._database.write(operation, serial=True)


async def _forget(connection: AsyncConnection, mitigation: str) -> None:
    await connection.execute(
        delete(t.obligations).where(t.obligations.c.mitigation_id == mitigation)
    )


async def _load(
    connection: AsyncConnection, mitigation: str, epoch: int, attempts: int, now: datetime
) -> PendingRevert:
    row = (
        (await connection.execute(select(t.mitigations).where(t.mitigations.c.id == mitigation)))
        .mappings()
        .one()
    )
    of = t.incidents.c.id == row["incident_id"]
    incident = (await connection.execute(select(t.incidents).where(of))).mappings().one()
    return PendingRevert(
        mitigation_id=MitigationId(mitigation),
        epoch=epoch,
        attempts=attempts,
        entry=entry_of(row),
        incident=incident_of(incident),
        firing=await _firing(connection, row["system"], row["service"]),
        now=now,
    )


async def _is_busy(connection: AsyncConnection, target: str) -> bool:
    on_it = (t.mitigations.c.target_key == target) & t.mitigations.c.in_flight
    return (await connection.execute(select(t.mitigations.c.id).where(on_it))).first() is not None


async def _firing(connection: AsyncConnection, system: str, service: str) -> str | None:
    """Name an alert of the service that a playbook takes and that fires now."""
    query = (
        select(t.alerts.c.labels)
        .join(t.incidents, t.incidents.c.id == t.alerts.c.incident_id)
        .where(t.alerts.c.status == AlertStatus.FIRING, t.alerts.c.latest)
        .where(t.incidents.c.system == system, t.incidents.c.service == service)
        .where(t.incidents.c.playbook.is_not(None), t.incidents.c.replay_of.is_(None))
        .limit(1)
    )
    labels = (await connection.execute(query)).scalar()
    return None if labels is None else str(labels.get("alertname", "unnamed"))


async def _record(
    connection: AsyncConnection,
    owed: PendingRevert,
    *,
    taken_back: bool,
    reason: str,
    now: datetime,
) -> None:
    if taken_back:
        await connection.execute(
            update(t.mitigations)
            .where(t.mitigations.c.id == owed.mitigation_id)
            .values(state=MitigationState.REVERTED)
        )
        await _tell(connection, owed, "taken back", reason, now)
    else:
        await close_entries(connection, owed.incident.id, now)
        await connection.execute(
            update(t.incidents)
            .where(t.incidents.c.id == owed.incident.id)
            .values(
                state=IncidentState.CLOSED,
                phase=Phase.DONE,
                outcome=IncidentOutcome.ESCALATED,
                reason=reason,
                closed_at=func.coalesce(t.incidents.c.closed_at, literal(now, Instant)),
                due_at=None,
                epoch=t.incidents.c.epoch + 1,  # whoever works on it may not write any more
            )
        )
        effect = {"effect_key": owed.entry.effect_key}
        await _stays(connection, owed.incident.id, reason, effect, now)


async def _stays(
    connection: AsyncConnection, incident: str, reason: str, data: dict[str, str], now: datetime
) -> None:
    """Tell humans, and call one: the escalation reads this line and needs no alert that fires."""
    append(connection, incident, at=now, step=HOLD, event=NOT_TAKEN_BACK, reason=reason, data=data)
    await begin_for_what_stays(connection, incident, now)
    await request_notice(connection, incident, now)


async def _tell(
    connection: AsyncConnection, owed: PendingRevert, event: str, reason: str, now: datetime
) -> None:
    data = {"effect_key": owed.entry.effect_key}
    append(connection, owed.incident.id, at=now, step=HOLD, event=event, reason=reason, data=data)
    await request_notice(connection, owed.incident.id, now)
