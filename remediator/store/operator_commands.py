"""What operators order: pauses, maintenance, approvals, cancels. Each is journalled with its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.base import IncidentId, new_id
from remediator.model.duration import format_duration
from remediator.model.errors import Refused
from remediator.model.events import Announce, EventType
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.maintenance import LONGEST, MaintenanceOrder
from remediator.model.mitigation import Approval, Consent, MitigationState
from remediator.model.views import PauseView, WindowView
from remediator.store import tables as t
from remediator.store.acknowledgements import Acknowledged, acknowledge, begin_escalation, take_over
from remediator.store.approvals import agree, open_incident, said_of, turn_down, waiting_plan
from remediator.store.database import Database, Operation
from remediator.store.journal import append
from remediator.store.ledger import close_entries, under_way
from remediator.store.maintenance import view_of
from remediator.store.outbox import correct_notice, request_notice

T = TypeVar("T")


class Commands:
    """Operators' orders, applied in one transaction each. ``by`` is a credential's name."""

    def __init__(
        self,
        database: Database,
        changed: Callable[[], None],
        scopes: Collection[str],
        deciders: Mapping[str, Collection[str]],
        announce: Announce = lambda *_: None,
    ) -> None:
        """Call ``changed`` after each order; ``scopes`` are those that may be paused.

        ``deciders`` names who may approve and reject, by ``SYSTEM/SERVICE``; a service that is
        not there leaves it to everybody with the role for it. ``announce`` is told of each order.
        """
        self._database = database
        self._announce = announce
        self._changed = changed
        self._scopes = frozenset(scopes)
        self._deciders = dict(deciders)

    async def _order(
        self, operation: Operation[T], about: tuple[EventType, str] | None = None
    ) -> T:
        result = await self._database.order(operation, serial=True)
        self._changed()
        if about is not None:
            self._announce(*about)
        return result

    def _known(self, scope: str, what: str) -> None:
        if scope not in self._scopes:
            known = ", ".join(sorted(self._scopes))
            raise Refused(404, f"there is nothing called {scope!r} to {what}; known are: {known}")

    def _may_decide(self, plan: Any, by: str) -> None:
        scope = f"{plan['system']}/{plan['service']}"
        named = self._deciders.get(scope)
        if named is not None and by not in named:
            who = ", ".join(sorted(named)) or "nobody"
            raise Refused(403, f"{by} may not decide about {scope}; those who may are: {who}")

    def held(self) -> list[PauseView]:
        """List the pauses that the store has not taken yet."""
        return []

    async def pause(self, scope: str, by: str, reason: str) -> PauseView:
        """Stop every mutation in ``scope``; no reservation is made after this returns."""
        self._known(scope, "pause")

        async def operation(connection: AsyncConnection) -> PauseView:
            now = await self._database.now(connection)
            await connection.execute(delete(t.pauses).where(t.pauses.c.scope == scope))
            view = PauseView(scope=scope, by=by, reason=reason, since=now)
            await connection.execute(insert(t.pauses), view.model_dump(exclude={"kept"}))
            _journal(connection, None, now, f"paused {scope}", by, reason)
            return view

        return await self._order(operation, (EventType.PAUSED, scope))

    async def resume(self, scope: str, by: str) -> None:
        """Allow mutations in ``scope`` again; ``Refused`` when it is not paused."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            gone = await connection.execute(delete(t.pauses).where(t.pauses.c.scope == scope))
            if gone.rowcount == 0:
                raise Refused(409, f"{scope} is not paused")
            _journal(connection, None, now, f"resumed {scope}", by, "")

        await self._order(operation, (EventType.RESUMED, scope))

    async def start_maintenance(self, order: MaintenanceOrder, by: str) -> WindowView:
        """Let nothing be changed in a scope for a time; no reservation is made in it from then on.

        ``Refused`` for an unknown scope and for times that make no window.
        """
        self._known(order.scope, "maintain")

        async def operation(connection: AsyncConnection) -> WindowView:
            now = await self._database.now(connection)
            row = _window(order, now) | {"by": by, "ordered_at": now}
            await connection.execute(insert(t.maintenance), row)
            said = f"{order.scope} from {row['since'].isoformat()} to {row['until'].isoformat()}"
            reason = f"{said}: {order.reason}" if order.reason else said
            _journal(connection, None, now, "maintenance ordered", by, reason)
            return view_of(row, now)

        return await self._order(operation)

    async def end_maintenance(self, window_id: str, by: str) -> WindowView:
        """End an ordered window now; what waits for its end goes on at once."""

        async def operation(connection: AsyncConnection) -> WindowView:
            now = await self._database.now(connection)
            this = t.maintenance.c.id == window_id
            query = select(t.maintenance).where(this).with_for_update()
            row = (await connection.execute(query)).mappings().first()
            if row is None:
                raise Refused(404, f"there is no maintenance window {window_id}")
            over = row["ended_at"] or row["until"]
            if over <= now:
                raise Refused(409, f"{window_id} is over since {over.isoformat()}")
            ended = {"ended_at": now, "ended_by": by}
            await connection.execute(update(t.maintenance).where(this).values(**ended))
            await _wake(connection, row["scope"], now)
            said = f"{row['scope']} ({window_id})"
            _journal(connection, None, now, "maintenance ended", by, said)
            return view_of({**row, "until": now}, now)

        return await self._order(operation)

    async def approve(
        self, incident_id: str, plan_hash: str | None, by: str, *, via: str = "api"
    ) -> Consent:
        """Count one person's yes to exactly the waiting plan; the last one lets it go ahead.

        ``by`` is a person's name, ``via`` the way that it came. ``Refused`` when the plan changed,
        expired or was decided, and for somebody who may not decide or has agreed already.
        """

        async def operation(connection: AsyncConnection) -> Consent:
            now = await self._database.now(connection)
            plan = await waiting_plan(connection, incident_id, plan_hash, now)
            self._may_decide(plan, by)
            consent = await agree(connection, plan, Approval(by=by, via=via, at=now))
            if consent.missing:
                await request_notice(connection, incident_id, now)
            else:
                await _move(connection, incident_id, now, phase=Phase.ACT, phase_since=now)
                await take_over(connection, incident_id, by, now)
            event, detail = said_of(consent), {"via": via, "plan": plan["plan_hash"]}
            reason = plan["plan_hash"]
            _act(connection, incident_id, now, event, by, reason, **detail)
            return consent

        return await self._order(operation, (EventType.CHANGED, incident_id))

    async def reject(
        self,
        incident_id: str,
        plan_hash: str | None,
        by: str,
        reason: str,
        *,
        via: str = "api",
    ) -> None:
        """Turn the waiting plan down; the incident closes and a human has it."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            plan = await waiting_plan(connection, incident_id, plan_hash, now)
            self._may_decide(plan, by)
            await turn_down(connection, plan, by, now)
            why = f"rejected by {by}: {reason or 'no reason given'}"
            await _close(connection, incident_id, now, IncidentOutcome.DENIED, why)
            await begin_escalation(connection, incident_id, IncidentOutcome.DENIED, now, by)
            detail = {"via": via, "plan": plan["plan_hash"]}
            _act(connection, incident_id, now, "rejected", by, reason, **detail)

        await self._order(operation, (EventType.CLOSED, incident_id))

    async def waits_for(self, incident_id: str, plan_hash: str) -> str:
        """Return ``SYSTEM/SERVICE`` of the plan as long as exactly it waits; else ``Refused``."""

        async def operation(connection: AsyncConnection) -> str:
            now = await self._database.now(connection)
            plan = await waiting_plan(connection, incident_id, plan_hash, now)
            return f"{plan['system']}/{plan['service']}"

        return await self._database.order(operation)

    async def note(self, incident_id: str, event: str, by: str, reason: str, **detail: str) -> None:
        """Keep what somebody asked for in a chat and what came of it, also when nothing did."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            query = select(t.incidents.c.id).where(t.incidents.c.id == incident_id)
            known = await connection.scalar(query)
            line = detail | {"incident": incident_id}
            _journal(connection, known, now, event, by, reason, **line)

        await self._database.order(operation)

    async def cancel(self, incident_id: str, by: str, reason: str) -> None:
        """Take the incident away from the service; ``Refused`` while it changes something."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            self._may_decide(await open_incident(connection, incident_id), by)
            at_work = await under_way(connection, incident_id, now)
            if at_work is not None:
                raise Refused(409, f"{at_work}; ask again when its outcome is known")
            why = f"cancelled by {by}: {reason or 'no reason given'}"
            unjudged = await _unjudged(connection, incident_id)
            outcome = IncidentOutcome.ESCALATED if unjudged else IncidentOutcome.SUPPRESSED
            if unjudged:
                why = f"{why}; changed before and not judged any more: {', '.join(unjudged)}"
            await _close(connection, incident_id, now, outcome, why)
            await begin_escalation(connection, incident_id, outcome, now, by)
            _act(connection, incident_id, now, "cancelled", by, reason)

        await self._order(operation, (EventType.CLOSED, incident_id))

    async def acknowledge(
        self, incident_id: str, by: str, *, from_pagerduty: bool = False
    ) -> Acknowledged:
        """Note that a person has the incident, so that the next level is not told for a time.

        An open incident may be acknowledged too: what is escalated later is then theirs. What
        comes ``from_pagerduty`` is not sent there again, and changes nothing where somebody has
        the incident already. ``Refused`` (404, 409) when there is nothing to acknowledge.
        """

        async def operation(connection: AsyncConnection) -> Acknowledged:
            now = await self._database.now(connection)
            taken = await acknowledge(connection, incident_id, by, now, echo=from_pagerduty)
            if taken.anew:
                _act(connection, incident_id, now, "acknowledged", by, "")
                await correct_notice(connection, incident_id, now)
            return taken

        return await self._order(operation, (EventType.CHANGED, incident_id))


def _window(order: MaintenanceOrder, now: datetime) -> dict[str, Any]:
    """Work the window's times out; ``Refused`` when they make none."""
    since = max(order.since or now, now)
    until = order.until if order.lasts is None else since + order.lasts
    if until is None or until <= since:
        raise Refused(422, f"a window that begins at {since.isoformat()} has to end after that")
    if until - since > LONGEST:
        raise Refused(422, f"a window lasts {format_duration(LONGEST)} at most; order another one")
    return {
        "id": new_id("mnt", now),
        "scope": order.scope,
        "since": since,
        "until": until,
        "reason": order.reason,
    }


async def _wake(connection: AsyncConnection, scope: str, now: datetime) -> None:
    """Let every open incident in ``scope`` look again, also one that is at a step right now."""
    system, _, service = scope.partition("/")
    within = t.incidents.c.state == IncidentState.OPEN
    if scope != "global":
        within &= t.incidents.c.system == system
    if service:
        within &= t.incidents.c.service == service
    await connection.execute(update(t.incidents).where(within).values(due_at=now, poked=True))


async def _unjudged(connection: AsyncConnection, incident_id: str) -> list[str]:
    """Return the changes of which nobody has said yet whether they helped."""
    query = select(t.mitigations.c.effect_key).where(
        t.mitigations.c.incident_id == incident_id,
        t.mitigations.c.state == MitigationState.APPLIED,
        t.mitigations.c.verdict.is_(None),
    )
    return list(await connection.scalars(query))


async def _close(
    connection: AsyncConnection,
    incident_id: str,
    now: datetime,
    outcome: IncidentOutcome,
    reason: str,
) -> None:
    await close_entries(connection, IncidentId(incident_id), now)
    await _move(
        connection,
        incident_id,
        now,
        state=IncidentState.CLOSED,
        phase=Phase.DONE,
        phase_since=now,
        outcome=outcome,
        reason=reason,
        closed_at=now,
        due_at=None,
    )


async def _move(
    connection: AsyncConnection, incident_id: str, now: datetime, **values: Any
) -> None:
    # a higher epoch: whoever works on the incident at this moment may not write any more
    columns: dict[str, Any] = {"due_at": now, "poked": False, "lease_until": None} | values
    await connection.execute(
        update(t.incidents)
        .where(t.incidents.c.id == incident_id)
        .values(epoch=t.incidents.c.epoch + 1, **columns)
    )
    await request_notice(connection, incident_id, now)


def _act(
    connection: AsyncConnection,
    incident_id: str,
    now: datetime,
    event: str,
    by: str,
    reason: str,
    **detail: str,
) -> None:
    """Write an act on an incident down twice: with it, and where all that people did is kept."""
    _journal(connection, incident_id, now, event, by, reason, **detail)
    _journal(connection, None, now, event, by, reason, **detail, incident=incident_id)


def _journal(
    connection: AsyncConnection,
    incident_id: str | None,
    now: datetime,
    event: str,
    by: str,
    reason: str,
    **detail: str,
) -> None:
    said = f"{by}: {reason}" if reason else by
    data = {"by": by} | detail
    append(connection, incident_id, at=now, step="operator", event=event, reason=said, data=data)
