"""The incident row as the queue: claim, renew, and the one write that ends a step.

A claim raises the row's epoch; every later write of that step says ``WHERE epoch = ...`` and
touches no row when somebody else has claimed since. A timer is a later ``due_at``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import case, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.base import IncidentId, MitigationId
from remediator.model.errors import OwnershipLost, StoreUnavailable
from remediator.model.events import Announce, EventType
from remediator.model.incident import Incident, IncidentOutcome, IncidentState, Phase
from remediator.model.mitigation import MitigationState
from remediator.model.transition import LEASE, Claim, Transition
from remediator.store import tables as t
from remediator.store.acknowledgements import begin_escalation, begin_for_request
from remediator.store.approvals import asked_elsewhere
from remediator.store.claims import read_claim
from remediator.store.columns import Instant
from remediator.store.database import Database
from remediator.store.journal import append
from remediator.store.leases import (
    Turns,
    claim_due,
    release_claimed,
    require_claimed,
    write_claimed,
)
from remediator.store.ledger import close_entries, entry_of, insert_entry, lands_in, settle
from remediator.store.outbox import correct_notice, request_notice

_GOOD_ENDS = (
    IncidentOutcome.MITIGATED,
    IncidentOutcome.RESOLVED_BY_ITSELF,
    IncidentOutcome.SUPPRESSED,
)
_log = structlog.get_logger(__name__)

LONGEST = 8.0
"""Times the lease that claims may last while the store is slower than the lease allows for."""
_EASES = 0.9
"""What each finished step leaves of that stretch."""


class Queue:
    """Hands out incidents that are due, and takes the results of steps."""

    def __init__(
        self,
        database: Database,
        owner: str,
        lease: timedelta = LEASE,
        announce: Announce = lambda *_: None,
    ) -> None:
        """Claim in the name of ``owner``, unique to this process, for ``lease`` at a time.

        Where claims are lost because the store is slow, they last longer, up to ``LONGEST`` times:
        replicas would otherwise take the same work from each other for ever. ``announce`` is told
        of every step that was written.
        """
        self._database = database
        self._announce = announce
        self._owner = owner
        self._lease = lease
        self._stretch = 1.0
        self._turns = Turns()

    async def claim(self, limit: int) -> list[Claim]:
        """Claim up to ``limit`` due incidents, each for one step: the most severe first.

        What may act or asks comes before what is only recorded; one in four is the oldest.
        """
        unread: list[tuple[str, int]] = []

        async def operation(connection: AsyncConnection) -> list[Claim]:
            unread.clear()
            now, lease = await self._database.now(connection), self._lease * self._stretch
            postgres = self._database.is_postgres
            rows: list[Any] = []
            for some, ranked in self._turns.share(limit):
                claim = claim_due(
                    t.incidents,
                    now,
                    lease,
                    some,
                    skip_locked=postgres,
                    longest=self._lease * LONGEST,
                    ranked=ranked,
                ).values(owner=self._owner, poked=False)
                rows += (await connection.execute(claim.returning(t.incidents))).mappings().all()
            claims = []
            for row in rows:
                try:
                    claims.append(await read_claim(connection, row, now, lease))
                except ValidationError as error:
                    reason = str(error)
                    _log.error("incident_unreadable", incident_id=row["id"], reason=reason)
                    unread.append((row["id"], row["epoch"]))
            return claims

        claims = await self._database.write(operation)
        self._turns.took(len(claims) + len(unread))
        for incident, epoch in unread:
            await self._close_unread(incident, epoch)
        return claims

    async def _close_unread(self, incident: str, epoch: int) -> None:
        """Hand what this version cannot read to a human, once no call of it can be on its way.

        Serial with triage, as every close is.
        """

        async def operation(connection: AsyncConnection) -> None:
            await require_claimed(connection, t.incidents, incident, epoch)
            now = await self._database.now(connection)
            landing = await lands_in(connection, incident, now)
            if landing > timedelta(0):
                later = {"due_at": now + landing, "lease_until": None}
                await write_claimed(connection, t.incidents, incident, epoch, later)
                return
            await close_unread(connection, incident, now)

        with contextlib.suppress(OwnershipLost, StoreUnavailable):  # else when the lease is over
            await self._database.write(operation, serial=True)

    async def renew(self, claim: Claim) -> None:
        """Keep ``claim`` for another lease; ``OwnershipLost`` when it is somebody else's."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            await _write(connection, claim, {"lease_until": now + claim.lease})

        with self._minding_losses():
            await self._database.write(operation)

    @contextlib.contextmanager
    def _minding_losses(self) -> Iterator[None]:
        try:
            yield
        except OwnershipLost:
            self.outpaced()
            raise

    def outpaced(self) -> None:
        """Let the next claims last longer: one was over before the store had renewed it."""
        self._stretch = min(self._stretch * 2, LONGEST)

    async def finish(self, claim: Claim, result: Transition) -> None:
        """End the step: write its whole result, release the lease, keep earlier wake-ups.

        A good end is not written when an event came while the step ran: it may not be good any
        more, so the step is taken again. So it is when another incident has asked for the same
        things meanwhile. Raises ``OwnershipLost`` and writes nothing when the
        incident was claimed or finished since.
        """

        async def operation(connection: AsyncConnection) -> bool:
            now = await self._database.now(connection)
            if await _overtaken(connection, claim, result):
                await _write(connection, claim, {"due_at": now, "lease_until": None})
                return False
            await _write(connection, claim, _columns(claim, result, now))
            await _write_details(connection, claim.incident, result, now)
            if result.outcome is not None:
                await close_entries(connection, claim.incident.id, now)
                await begin_escalation(connection, claim.incident.id, result.outcome, now)
            elif result.calls and await begin_for_request(connection, claim.incident.id, now):
                event, why = "approval request not delivered", "humans are called by the levels"
                append(
                    connection, claim.incident.id, at=now, step="approval", event=event, reason=why
                )
            if result.notify:
                await request_notice(connection, claim.incident.id, now)
            elif result.outcome is not None:
                await correct_notice(connection, claim.incident.id, now)
            return result.outcome is not None

        # a close is serial with triage, so that no alert joins what is just being closed; a
        # question with others, so that nobody is asked for the same things twice
        serial = result.outcome is not None or _asks(result)
        with self._minding_losses():
            closed = await self._database.write(operation, serial=serial)
        self._stretch = max(self._stretch * _EASES, 1.0)
        self._announce(EventType.CLOSED if closed else EventType.CHANGED, claim.incident.id)

    async def retry_later(self, claim: Claim, delay: timedelta) -> tuple[int, bool]:
        """Give a step that failed unexpectedly another chance.

        Returns how often it failed, and whether a call of its incident may be on its way still;
        the next chance is after that.
        """

        async def operation(connection: AsyncConnection) -> tuple[int, bool]:
            now = await self._database.now(connection)
            landing = await lands_in(connection, claim.incident.id, now)
            failures = t.incidents.c.failures + 1
            due = now + max(delay, landing)
            await _write(
                connection, claim, {"failures": failures, "due_at": due, "lease_until": None}
            )
            query = select(t.incidents.c.failures).where(t.incidents.c.id == claim.incident.id)
            failed = int((await connection.execute(query)).scalar_one())
            return failed, landing > timedelta(0)

        return await self._database.write(operation)

    async def release(self, claim: Claim) -> None:
        """Give an unfinished claim back at once, for whoever comes next.

        One that puts a change back is kept until its lease is over: the call may be on its way.
        """
        if claim.incident.phase is Phase.REVERT:
            return
        incident = claim.incident

        async def operation(connection: AsyncConnection) -> None:
            await release_claimed(connection, t.incidents, incident.id, incident.epoch)

        await self._database.write(operation)


async def _write(connection: AsyncConnection, claim: Claim, values: dict[str, Any]) -> None:
    incident = claim.incident
    await write_claimed(connection, t.incidents, incident.id, incident.epoch, values)


def _asks(result: Transition) -> bool:
    return result.entry is not None and result.entry.state is MitigationState.AWAITING_APPROVAL


async def _overtaken(connection: AsyncConnection, claim: Claim, result: Transition) -> bool:
    """Whether what happened meanwhile makes the step's result void: it is taken again."""
    if result.outcome in _GOOD_ENDS:
        return await _is_poked(connection, claim)
    if result.entry is None or not _asks(result):
        return False
    plan = result.entry.mitigation
    return await asked_elsewhere(connection, claim.incident.id, plan) is not None


async def _is_poked(connection: AsyncConnection, claim: Claim) -> bool:
    query = select(t.incidents.c.poked).where(t.incidents.c.id == claim.incident.id)
    return bool((await connection.execute(query)).scalar_one())


def _columns(claim: Claim, result: Transition, now: datetime) -> dict[str, Any]:
    closes = result.outcome is not None
    later = None if closes or result.due_in is None else now + result.due_in
    values: dict[str, Any] = {
        "phase": Phase.DONE if closes else result.phase,
        "lease_until": None,
        "failures": 0,
        # a write whose answer was lost is not made twice
        "epoch": claim.incident.epoch + 1,
    }
    if not closes and later != now:  # what goes on at once keeps its place in the queue
        # an event that came while the step ran is not lost: it stays due
        values["due_at"] = case(
            (t.incidents.c.poked, literal(now, Instant)), else_=literal(later, Instant)
        )
    if result.phase is not claim.incident.phase or result.next_round or closes:
        values["phase_since"] = now
    if result.reason:
        values["reason"] = result.reason
    if result.proposal is not None:
        values["proposal"] = result.proposal.model_dump(mode="json")
    if result.progress:
        values["progressed_at"] = now
    if result.next_round:
        values["round"] = claim.incident.round + 1
    return values | (_closing(result, now) if closes else {})


def _closing(result: Transition, now: datetime) -> dict[str, Any]:
    return {
        "state": IncidentState.CLOSED,
        "outcome": result.outcome,
        "closed_at": now,
        "due_at": None,
    }


async def _write_details(
    connection: AsyncConnection, incident: Incident, result: Transition, now: datetime
) -> None:
    mine = {"incident_id": incident.id}
    if result.findings:
        rows = [
            finding.model_dump(mode="json") | mine | {"round": incident.round, "at": now}
            for finding in result.findings
        ]
        await connection.execute(insert(t.findings), rows)
    if result.entry is not None:
        await insert_entry(connection, result.entry, now)
    if result.settlement is not None:
        await settle(connection, incident.id, result.settlement, now)
        if incident.phase is Phase.ACT and result.settlement.state is MitigationState.APPLIED:
            await owe(connection, result.settlement.id, now)
    if result.sample is not None:
        mitigation, sample = result.sample
        row = sample.model_dump() | {"mitigation_id": mitigation}
        await connection.execute(insert(t.samples), row)
    for event in result.events:
        line = event.model_dump(exclude={"unsealed"}) | {"at": now}
        append(connection, incident.id, **line)


CLOSED_FOR_HUMANS = f"closed as {IncidentOutcome.ESCALATED}"
UNREADABLE = "its stored state cannot be read by this version of the service; see the log"


async def close_unread(
    connection: AsyncConnection, incident: str, now: datetime, reason: str = UNREADABLE
) -> None:
    """Close, as escalated, an incident whose stored state cannot be read; or leave it closed so."""
    mine = t.incidents.c.id == incident
    is_open = select(t.incidents.c.id).where(mine, t.incidents.c.state == IncidentState.OPEN)
    closes = (await connection.execute(is_open)).first() is not None
    await close_entries(connection, IncidentId(incident), now)
    await connection.execute(
        update(t.incidents)
        .where(mine)
        .values(
            state=IncidentState.CLOSED,
            phase=Phase.DONE,
            outcome=IncidentOutcome.ESCALATED,
            reason=reason,
            closed_at=func.coalesce(t.incidents.c.closed_at, literal(now, Instant)),
            due_at=None,
            lease_until=None,
            epoch=t.incidents.c.epoch + 1,
        )
    )
    if closes:
        append(connection, incident, at=now, step="queue", event=CLOSED_FOR_HUMANS, reason=reason)
    await begin_escalation(connection, incident, IncidentOutcome.ESCALATED, now)
    await request_notice(connection, incident, now)


async def owe(connection: AsyncConnection, mitigation: MitigationId, now: datetime) -> None:
    """Note, where the change is temporary, that it has to be taken back at its hold time."""
    query = select(t.mitigations).where(t.mitigations.c.id == mitigation)
    entry = entry_of((await connection.execute(query)).mappings().one())
    if entry.mitigation.hold is not None and entry.undo is not None:
        due = now + entry.mitigation.hold
        row = {"mitigation_id": mitigation, "due_at": due, "epoch": 0, "attempts": 0}
        await connection.execute(insert(t.obligations), row)
