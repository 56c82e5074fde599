"""Replays an alert by hand: a stored one, a webhook's body, or a plain one.

A replay always opens new incidents; limits, mode and the live check hold as for any other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from remediator.api.body import Body, BodyLimits, receive
from remediator.api.routing import Call, FieldProblem, Problem, Route, Text, body_problem
from remediator.intake.alertmanager import Parsed, load_object, read_alert
from remediator.intake.pagerduty import FIRING
from remediator.intake.pagerduty import parse as parse_event
from remediator.intake.pagerduty_fetch import Fetch, fetched, without_labels
from remediator.intake.reader import Reader
from remediator.intake.webhooks import DELIVERY, Inbox, delivery_of, refuse_when_stopping, utc_now
from remediator.model.access import Permission
from remediator.model.alert import Alert, AlertStatus, DeadLetter, Source
from remediator.model.base import IncidentId, Value
from remediator.model.errors import PermanentError, RejectedDelivery, TemporaryError

BY_HAND = "manual"
"""``replay_of`` of a body that was given by hand."""

StoredAlerts = Callable[[str], Awaitable[tuple[Alert, ...] | None]]
"""Returns the alerts of a stored delivery, alert or incident; None when there is no such id."""


@dataclass(frozen=True)
class Replays:
    """What replaying needs."""

    inbox: Inbox
    stored_alerts: StoredAlerts
    playbooks: Collection[str]
    """Names of the playbooks that may be asked for."""
    limits: BodyLimits = field(default_factory=BodyLimits)
    reader: Reader = field(default_factory=Reader)
    now: Callable[[], datetime] = utc_now
    fetch: Fetch | None = None
    """Reads the alerts of a PagerDuty incident; None where that is not configured."""


class ReplayQuery(Value):
    """Query of a replay."""

    dry_run: bool = True
    """False acts as far as the configured mode goes, and no further."""
    playbook: Text | None = None
    """Playbook to use instead of the one that matches."""


class Replayed(Value):
    """Answer to a replay."""

    incidents: list[IncidentId]
    dry_run: bool


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class StoredBody(_Open):
    """Replays what is stored."""

    id: Annotated[str, Field(min_length=1, max_length=100)]
    """Id of a delivery, an alert or an incident."""


class PlainBody(_Open):
    """Replays an alert that is written by hand."""

    labels: dict[str, str]
    annotations: dict[str, str] = {}


class PagerDutyBody(_Open):
    """Replays the incident of a PagerDuty webhook."""

    event: dict[str, Any]


class AlertmanagerBody(_Open):
    """Replays the firing alerts of an Alertmanager webhook."""

    alerts: list[dict[str, Any]]


def replay_routes(replays: Replays) -> tuple[Route, ...]:
    """Return the route by which operators replay."""

    async def replay(call: Call) -> Replayed:
        return await _replay(replays, call)

    return (
        Route(
            "POST",
            "/api/v1/replay",
            Permission.OPERATE,
            replay,
            "Replay an alert; a dry run unless asked otherwise",
            query=ReplayQuery,
            request=StoredBody | PlainBody | AlertmanagerBody | PagerDutyBody,
            decodes=False,
            response=Replayed,
            status=202,
            errors=(400, 404, 408, 413, 503),
        ),
    )


async def _replay(replays: Replays, call: Call) -> Replayed:
    refuse_when_stopping(call)
    query: ReplayQuery = call.query
    if query.playbook is not None and query.playbook not in replays.playbooks:
        known = ", ".join(sorted(replays.playbooks)) or "none"
        message = f"there is no playbook {query.playbook[:100]!r}; known are: {known}"
        raise _unusable(message, "query.playbook")
    body = await receive(call.request, replays.limits)
    if body.fault is not None:
        raise body_problem(body.fault, body.reason)
    now = replays.now()
    async with replays.reader.turn(len(body.content)):
        origin, alerts, dead = await _read(replays, body, now)
        delivery = delivery_of(body, Source.REPLAY, call.by, now).model_copy(
            update={"replay_of": origin, "dry_run": query.dry_run, "playbook": query.playbook}
        )
        incidents = await replays.inbox.replay(delivery, alerts, dead)
    return Replayed(incidents=incidents, dry_run=query.dry_run)


async def _read(
    replays: Replays, body: Body, now: datetime
) -> tuple[str, tuple[Alert, ...], tuple[DeadLetter, ...]]:
    """Return what is repeated, the alerts that fire, and what could not be read."""
    content = load_object(body.content)
    match content:
        case {"id": str(stored)} if "alerts" not in content and "labels" not in content:
            return stored, await _stored(replays, stored), ()
        case {"alerts": _}:
            parsed = await replays.reader.read(body.content, now, None)
            return BY_HAND, _firing(parsed), parsed.dead
        case {"labels": _}:
            return BY_HAND, (_plain(content, now),), ()
        case {"event": _}:
            return BY_HAND, await _event(replays, body.content, now), ()
        case {"messages": _}:
            raise _unusable("a PagerDuty body of version 2; give one of version 3", "body")
    raise _unusable(
        'give {"id": ID} of a stored delivery, alert or incident, an Alertmanager or PagerDuty body, or'
        ' {"labels": {...}, "annotations": {...}}',
        "body",
    )


def _plain(content: dict[str, Any], now: datetime) -> Alert:
    try:
        return read_plain(content, now)
    except RejectedDelivery as error:
        raise _unusable(f"the alert cannot be used: {error}", "body") from error


async def _event(replays: Replays, content: bytes, now: datetime) -> tuple[Alert, ...]:
    told = parse_event(content, None, now)
    if told.dead:
        raise _unusable(told.dead[0].reason, "body.event")
    for alert in told.alerts:
        if alert.status is AlertStatus.FIRING and told.event is not None:
            return await _labelled(replays.fetch, told.event.incident or "", alert)
    kinds = ", ".join(sorted(FIRING))
    raise _unusable(f"only incident events of {kinds} start anything", "body.event")


async def _labelled(fetch: Fetch | None, incident: str, alert: Alert) -> tuple[Alert, ...]:
    if fetch is None:
        return (alert,)
    try:
        return await fetched(fetch, incident, alert)
    except (TemporaryError, PermanentError) as error:
        return (without_labels(alert, str(error)),)


async def _stored(replays: Replays, stored: str) -> tuple[Alert, ...]:
    alerts = await replays.stored_alerts(stored) if stored.isprintable() else None
    if alerts is None:
        raise Problem(404, f"there is no delivery, alert or incident {stored[:100]!r}")
    firing = tuple(alert for alert in alerts if alert.status is AlertStatus.FIRING)
    if firing:
        return firing
    if stored.startswith(f"{DELIVERY}-") or not alerts:
        raise _unusable(f"{stored} has no firing alert, and only those start anything", "body.id")
    # An incident's alerts have resolved since; what is repeated is that they fired.
    again = {"status": AlertStatus.FIRING, "ends_at": None}
    return tuple(alert.model_copy(update=again) for alert in alerts)


def _firing(parsed: Parsed) -> tuple[Alert, ...]:
    firing = tuple(alert for alert in parsed.alerts if alert.status is AlertStatus.FIRING)
    if firing:
        return firing
    if parsed.dead:
        raise _unusable(f"no alert can be used; the first: {parsed.dead[0].reason}", "body.alerts")
    what = "every alert in the body is resolved" if parsed.alerts else "the body holds no alert"
    raise _unusable(f"{what}, and only firing ones start anything", "body.alerts")


def _unusable(message: str, path: str) -> Problem:
    return Problem(422, message, (FieldProblem(path=path, message=message),))


_KNOWN = frozenset({"labels", "annotations"})


def read_plain(item: Mapping[str, Any], received_at: datetime) -> Alert:
    """Read ``{"labels": {...}, "annotations": {...}}`` as an alert that fires since now.

    Raises ``RejectedDelivery`` saying what is wrong and where.
    """
    notice = {name: item[name] for name in _KNOWN & item.keys()}
    notice |= {"status": "firing", "startsAt": received_at.isoformat()}
    alert = read_alert(notice, None, received_at)
    return alert.model_copy(update={"source": Source.REPLAY})
