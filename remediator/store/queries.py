"""What is read for humans: pages of records and one incident whole, with every secret masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import structlog
from pydantic import ValidationError
from sqlalchemy import ColumnElement, Table, and_, false, func, literal, or_, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import Alert, AlertStatus, Delivery
from remediator.model.base import Value
from remediator.model.errors import Refused
from remediator.model.incident import NEEDS_A_HUMAN, IncidentState, Phase
from remediator.model.limits import Bound
from remediator.model.mitigation import CONSEQUENCE, Mitigation, MitigationState
from remediator.model.redact import redact
from remediator.model.views import (
    AlertView,
    DeadLetterView,
    DeliveryView,
    FindingView,
    IncidentSummary,
    IncidentView,
    LimitView,
    MitigationView,
    Page,
    PauseView,
    PlannedItem,
    TimelineEvent,
)
from remediator.store import tables as t
from remediator.store.claims import incident_alerts
from remediator.store.corrupt_rows import stand_in
from remediator.store.database import Database
from remediator.store.inbox import delivery_of
from remediator.store.journal import line_columns, line_of
from remediator.store.ledger import STEP as LEDGER
from remediator.store.ledger import Ledger
from remediator.store.truncation import SHOWN_ALERTS, shortened

V = TypeVar("V", bound=Value)

_log = structlog.get_logger(__name__)


class Backlog:
    """Figures for the service's own metrics."""

    def __init__(self, open_incidents: int, untriaged: int, paused: int, oldest_due: float) -> None:
        """Keep the counts; ``oldest_due`` is in seconds."""
        self.open_incidents = open_incidents
        self.untriaged = untriaged
        self.paused = paused
        self.oldest_due = oldest_due


class Records:
    """Reads, never writes. ``bounds`` are the ones that ``limits`` shows.

    ``sealing`` is whether this service has a key: lines without a seal are marked then.
    """

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        bounds: Sequence[Bound],
        *,
        sealing: bool = False,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._bounds = tuple(bounds)
        self._sealing = sealing

    async def ping(self) -> None:
        """Raise ``StoreUnavailable`` unless the store answers."""
        async with self._database.read() as connection:
            await connection.execute(text("SELECT 1"))

    async def incidents(
        self,
        *,
        state: str | None = None,
        service: str | None = None,
        system: str | None = None,
        outcome: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page[IncidentSummary]:
        """List incidents, newest first."""
        filters = {"state": state, "service": service, "system": system, "outcome": outcome}
        where = {name: value for name, value in filters.items() if value is not None}
        async with self._database.read() as connection:
            rows, following = await _page(
                connection,
                _Listing(t.incidents, "opened_at", IncidentSummary, _of_others()),
                after,
                limit,
                where,
            )
        return Page(items=[_masked(_summary(row)) for row in rows], next=following)

    async def incident(self, incident_id: str) -> IncidentView | None:
        """Return everything that is known of one incident; None when there is no such id."""
        async with self._database.read() as connection:
            extra = (column.label(name) for name, column in _of_others().items())
            query = select(t.incidents, *extra).where(t.incidents.c.id == incident_id)
            row = (await connection.execute(query)).mappings().first()
            if row is None:
                return None
            view = IncidentView(
                **_summary(row).model_dump(),
                alerts=await _alerts(connection, incident_id),
                findings=await _findings(connection, incident_id),
                mitigations=await _mitigations(connection, incident_id),
                timeline=await _timeline(connection, incident_id, marked=self._sealing),
            )
        return _masked(view)

    async def legible(self, incident_id: str) -> IncidentView | None:
        """Return ``incident``, or as much of it as a human has to know, if it cannot be read."""
        try:
            return await self.incident(incident_id)
        except ValidationError as error:
            _log.error("incident_unreadable", incident_id=incident_id, reason=str(error))
        async with self._database.read() as connection:
            query = select(t.incidents).where(t.incidents.c.id == incident_id)
            row = (await connection.execute(query)).mappings().first()
            if row is None:
                return None
            known = stand_in(row, await self._database.now(connection))
        shown = known.model_dump(include=set(IncidentSummary.model_fields))
        return IncidentView(**shown, alerts=[], findings=[], mitigations=[], timeline=[])

    async def deliveries(self, *, after: str | None = None, limit: int = 50) -> Page[DeliveryView]:
        """List deliveries without their bodies, newest first."""
        async with self._database.read() as connection:
            listing = _Listing(t.deliveries, "received_at", DeliveryView)
            rows, following = await _page(connection, listing, after, limit, {})
        return Page(items=[_view(DeliveryView, row) for row in rows], next=following)

    async def dead_letters(
        self, *, after: str | None = None, limit: int = 50
    ) -> Page[DeadLetterView]:
        """List what was received and could not be used, newest first."""
        async with self._database.read() as connection:
            listing = _Listing(t.dead_letters, "at", DeadLetterView)
            rows, following = await _page(connection, listing, after, limit, {})
        letters = [_masked(_view(DeadLetterView, row)) for row in rows]
        return Page(items=letters, next=following)

    async def delivery(self, delivery_id: str) -> Delivery | None:
        """Return one delivery with its body; None when there is no such id."""
        async with self._database.read() as connection:
            query = select(t.deliveries).where(t.deliveries.c.id == delivery_id)
            row = (await connection.execute(query)).mappings().first()
            return None if row is None else delivery_of(row)

    async def alerts_of(self, some_id: str) -> tuple[Alert, ...] | None:
        """Return the alerts of an incident, or the one alert, of that id; None if neither."""
        async with self._database.read() as connection:
            query = select(t.alerts).where(t.alerts.c.id == some_id)
            row = (await connection.execute(query)).mappings().first()
            if row is not None:
                return (_alert(row),)
            return await incident_alerts(connection, some_id) or None

    async def pauses(self) -> list[PauseView]:
        """List the stop switches that are on."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(t.pauses).order_by(t.pauses.c.since))
            return [PauseView.model_validate({**row}) for row in rows.mappings()]

    async def limits(self) -> list[LimitView]:
        """List every bound with how much of it is used now."""
        usages = await self._ledger.usage(self._bounds)
        return [
            LimitView(
                scope=bound.scope,
                limits=bound.limits,
                reserved=usage.reserved,
                in_flight=usage.in_flight,
            )
            for bound, usage in zip(self._bounds, usages, strict=True)
        ]

    async def backlog(self) -> Backlog:
        """Count what waits; each count reads a small partial index."""
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            is_open = t.incidents.c.state == IncidentState.OPEN
            waiting = t.deliveries.c.triaged_at.is_(None)
            due = select(func.min(t.incidents.c.due_at)).where(t.incidents.c.due_at.is_not(None))
            oldest: datetime | None = (await connection.execute(due)).scalar_one()
            late = max((now - oldest).total_seconds(), 0.0) if oldest is not None else 0.0
            return Backlog(
                open_incidents=await _count(connection, t.incidents, is_open),
                untriaged=await _count(connection, t.deliveries, waiting),
                paused=await _count(connection, t.pauses),
                oldest_due=late,
            )


async def _count(connection: AsyncConnection, table: Table, *where: Any) -> int:
    query = select(func.count()).select_from(table).where(*where)
    return int((await connection.execute(query)).scalar_one())


@dataclass(frozen=True)
class _Listing:
    """What a list shows: the columns of ``view``, in the order of the time ``at``."""

    table: Table
    at: str
    view: type[Value]
    others: Mapping[str, ColumnElement[Any]] = field(default_factory=dict)
    """Fields that are read from other tables."""


async def _page(
    connection: AsyncConnection,
    listing: _Listing,
    after: str | None,
    limit: int,
    where: dict[str, str],
) -> tuple[list[Any], str | None]:
    table, at = listing.table, listing.table.c[listing.at]
    own = (table.c[name] for name in listing.view.model_fields if name not in listing.others)
    others = (column.label(name) for name, column in listing.others.items())
    query = select(*own, *others).order_by(at.desc(), table.c.id.desc()).limit(limit + 1)
    for name, value in where.items():
        query = query.where(table.c[name] == value)
    if after is not None:
        found = await connection.execute(select(at).where(table.c.id == after))
        last = found.scalar_one_or_none()
        if last is None:
            raise Refused(400, f"there is no {after!r} to go on after; begin at the first page")
        bound = tuple_(literal(last, at.type), literal(after))
        query = query.where(tuple_(at, table.c.id) < bound)
    rows = list((await connection.execute(query)).mappings())
    return rows[:limit], rows[limit - 1]["id"] if len(rows) > limit else None


def _view(kind: Any, row: Any) -> Any:
    return kind.model_validate({name: row[name] for name in kind.model_fields})


def _masked(view: V) -> V:
    """Return ``view`` as it may be shown; labels and texts of others may hold secrets."""
    return type(view).model_validate(redact(view.model_dump(), whole=True))


def _summary(row: Any) -> IncidentSummary:
    labels = row["alertname"] or {}
    named = {**row, "alertname": str(labels.get("alertname", "unnamed")) if labels else ""}
    summary: IncidentSummary = _view(IncidentSummary, named)
    return summary


def _of_others() -> dict[str, ColumnElement[Any]]:
    """Read what a row of the list of incidents shows of other tables; each by an index."""
    labels = select(t.alerts.c.labels).where(t.alerts.c.incident_id == t.incidents.c.id).limit(1)
    return {"alertname": labels.scalar_subquery(), "needs_human": _needs_human()}


def _needs_human() -> ColumnElement[bool]:
    """Say whether a person is wanted; by scalar subqueries, which PostgreSQL never hashes whole."""
    incident, alert, escalation = t.incidents.c, t.alerts.c, t.escalations.c
    fires = select(alert.id).where(
        alert.incident_id == incident.id, alert.status == AlertStatus.FIRING, alert.latest
    )
    mine = escalation.incident_id == incident.id
    taken = select(escalation.acknowledged_at.is_not(None)).where(mine)
    called = select(and_(escalation.since.is_not(None), escalation.ended_at.is_(None))).where(mine)
    asks = and_(incident.state == IncidentState.OPEN, incident.phase == Phase.APPROVAL)
    wanted = func.coalesce(incident.outcome, "").in_(sorted(NEEDS_A_HUMAN))
    handed_over = or_(
        func.coalesce(called.scalar_subquery(), false()),
        and_(wanted, fires.limit(1).scalar_subquery().is_not(None)),
    )
    free = ~func.coalesce(taken.scalar_subquery(), false())
    return and_(incident.dry_run.is_(False), or_(asks, and_(handed_over, free)))


def _alert(row: Any) -> Alert:
    alert: Alert = _view(Alert, row)
    return alert


async def _alerts(connection: AsyncConnection, incident_id: str) -> list[AlertView]:
    firing_first = (
        t.alerts.c.status != AlertStatus.FIRING,
        t.alerts.c.first_seen_at,
        t.alerts.c.id,
    )
    rows = await connection.execute(
        select(t.alerts)
        .where(t.alerts.c.incident_id == incident_id)
        .order_by(*firing_first)
        .limit(SHOWN_ALERTS)
    )
    return shortened(_view(AlertView, row) for row in rows.mappings())


async def _findings(connection: AsyncConnection, incident_id: str) -> list[FindingView]:
    rows = await connection.execute(
        select(t.findings).where(t.findings.c.incident_id == incident_id).order_by(t.findings.c.id)
    )
    return [_view(FindingView, row) for row in rows.mappings()]


async def _mitigations(connection: AsyncConnection, incident_id: str) -> list[MitigationView]:
    rows = await connection.execute(
        select(t.mitigations)
        .where(t.mitigations.c.incident_id == incident_id)
        .order_by(t.mitigations.c.created_at, t.mitigations.c.id)
    )
    return [_mitigation(row) for row in rows.mappings()]


def _mitigation(row: Any) -> MitigationView:
    mitigation = Mitigation.model_validate(row["mitigation"])
    needed = row["approvals_needed"]
    waits = row["state"] == MitigationState.AWAITING_APPROVAL
    return MitigationView(
        id=row["id"],
        kind=mitigation.kind,
        target=mitigation.target.key,
        state=row["state"],
        effect_key=row["effect_key"],
        reason=row["reason"],
        mode=row["mode"],
        risk=mitigation.risk,
        plan_hash=row["plan_hash"],
        summary=mitigation.reason,
        planned=[PlannedItem(key=i.key, summary=i.summary) for i in mitigation.items],
        items=row["items"],
        verdict=row["verdict"],
        evidence=row["evidence"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        decided_by=row["decided_by"],
        approvals_needed=needed,
        approvals=row["approvals"],
        approvals_missing=needed - len(row["approvals"]) if waits else 0,
        consequence=_consequence(row["before"]),
    )


def _consequence(before: Any) -> str:
    """Read the lever's sentence; what another version wrote may have none."""
    said = before.get(CONSEQUENCE) if isinstance(before, dict) else None
    return said if isinstance(said, str) else ""


async def _timeline(
    connection: AsyncConnection, incident_id: str, *, marked: bool
) -> list[TimelineEvent]:
    rows = await connection.execute(
        select(*line_columns(connection))
        .where(t.journal.c.incident_id == incident_id, t.journal.c.step != LEDGER)
        .order_by(t.journal.c.id)
    )
    return [
        TimelineEvent(
            **{name: line[name] for name in ("at", "step", "event", "reason", "data")},
            unsealed=marked and line["mac"] is None,
        )
        for line in map(line_of, rows.mappings())
    ]
