"""Episodes of alerts: what triage needs to know of them, and the writing of what it decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, false, func, insert, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnElement

from remediator.model.alert import Alert, AlertStatus, Source
from remediator.model.base import AlertId, DeliveryId, IncidentId
from remediator.model.correlation import (
    Batch,
    Correlation,
    Episode,
    Joining,
    Keys,
    Opening,
    Snapshot,
)
from remediator.model.fingerprint import apart_from
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.severity import Rating, rank, worst
from remediator.model.unmatched import RecordBound, sender_of
from remediator.store import tables as t
from remediator.store.columns import Instant
from remediator.store.journal import append
from remediator.store.sender_events import events_of, reported
from remediator.store.severities import raise_severities, tell_unmatched
from remediator.store.unmatched import standings_of, write_digests

_CHUNK = 500
"""Values in one IN list, below every database's limit of bound parameters."""


def _chunks(values: Iterable[str]) -> Iterable[list[str]]:
    ordered = sorted(set(values))
    return (ordered[i : i + _CHUNK] for i in range(0, len(ordered), _CHUNK))


async def snapshot_of(
    connection: AsyncConnection,
    batch: Batch,
    *,
    keys: Keys,
    records: dict[DeliveryId, dict[str, IncidentId]],
    bound: RecordBound,
    now: datetime,
) -> Snapshot:
    """Read what the decision about ``batch`` depends on; cost follows the batch.

    ``records`` are the incidents that gather alerts of its deliveries already; ``bound`` is how many
    records each sender has.
    """
    episodes: dict[str, Episode] = {}
    for chunk in _chunks(print_ for _, alerts in batch for a in alerts for print_ in _prints(a)):
        episodes |= await _episodes(connection, t.alerts.c.fingerprint.in_(chunk))
    said = [delivery.id for delivery, _ in batch if delivery.source is Source.PAGERDUTY]
    events = await events_of(connection, said) if said else {}
    for chunk in _chunks(event.group_key for event in events.values()):
        theirs = t.alerts.c.source == literal_column("'pagerduty'")  # as the index has it
        episodes |= await _episodes(connection, t.alerts.c.group_key.in_(chunk) & theirs)
    known = await reported(connection, (e.incident for e in events.values() if e.incident))
    incidents: dict[str, IncidentId] = {}
    for chunk in _chunks(_new_keys(batch, episodes, keys)):
        still_open = (t.incidents.c.state == IncidentState.OPEN) & (
            t.incidents.c.replay_of.is_(None)
        )
        unmatched = (t.incidents.c.outcome == IncidentOutcome.NO_MATCH) & (
            select(t.alerts.c.id)
            .where(
                t.alerts.c.incident_id == t.incidents.c.id,
                t.alerts.c.latest,
                t.alerts.c.status == AlertStatus.FIRING,
            )
            .exists()
        )
        matching = select(t.incidents.c.correlation_key, t.incidents.c.id).where(
            t.incidents.c.correlation_key.in_(chunk), still_open | unmatched
        )
        rows = (await connection.execute(matching)).all()
        incidents |= {str(row[0]): IncidentId(row[1]) for row in rows}
    senders = {sender_of(delivery) for delivery, _ in batch}
    return Snapshot(
        episodes=episodes,
        open_incidents=incidents,
        replays=await _replays(connection),
        events=events,
        records=records,
        reported=known,
        bound=bound,
        standings=await standings_of(connection, senders, now - bound.window),
    )


def _prints(alert: Alert) -> tuple[str, str]:
    """Return the fingerprints under which an alert's episode may be."""
    return alert.fingerprint, apart_from(alert.fingerprint, alert.labels)


async def _replays(connection: AsyncConnection) -> dict[str, dict[AlertId, IncidentId]]:
    """Read what open replays for real are about: few, as humans ask for each."""
    replays = (
        select(t.incidents.c.id)
        .where(t.incidents.c.state == literal_column("'open'"))  # as the index has it
        .where(t.incidents.c.replay_of.is_not(None), t.incidents.c.dry_run.is_(False))
    )
    query = (
        select(t.alerts.c.fingerprint, t.alerts.c.id, t.alerts.c.incident_id)
        .where(t.alerts.c.incident_id.in_(replays))
        .where(t.alerts.c.status == AlertStatus.FIRING)
    )
    found: dict[str, dict[AlertId, IncidentId]] = {}
    for fingerprint, alert, incident in (await connection.execute(query)).all():
        found.setdefault(fingerprint, {})[AlertId(alert)] = IncidentId(incident)
    return found


async def _episodes(connection: AsyncConnection, which: ColumnElement[bool]) -> dict[str, Episode]:
    stored = set(Episode.model_fields) - {"closed_at", "unmatched"}
    unmatched = t.incidents.c.outcome == IncidentOutcome.NO_MATCH
    query = (
        select(
            *(t.alerts.c[name] for name in sorted(stored)),
            t.incidents.c.closed_at,
            func.coalesce(unmatched, false()).label("unmatched"),
        )
        .join(t.incidents, t.incidents.c.id == t.alerts.c.incident_id)
        .where(t.alerts.c.latest, which)
    )
    rows = (await connection.execute(query)).mappings()
    return {row["fingerprint"]: Episode.model_validate(dict(row)) for row in rows}


def _new_keys(batch: Batch, episodes: Mapping[str, Episode], keys: Keys) -> Iterable[str]:
    """Return the keys of alerts that may open something: no open incident has them."""
    for delivery, alerts in batch:
        for alert in alerts:
            episode = episodes.get(alert.fingerprint)
            if episode is None or not (episode.is_open and episode.is_of(alert)):
                yield keys(alert, delivery)


async def apply(connection: AsyncConnection, decided: Correlation, now: datetime) -> None:
    """Write what was decided; wake the open incidents that it touches."""
    ratings = _ratings(decided)
    if decided.opened:
        rows = [_opened(o, ratings.get(o.id, Rating()), now) for o in decided.opened]
        await connection.execute(insert(t.incidents), rows)
    await raise_severities(connection, ratings, {o.id for o in decided.opened}, now)
    touched = await _touched(connection, decided)
    await _write_alerts(connection, decided, now)
    await write_digests(connection, decided.gathered, now)
    await tell_unmatched(connection, {i: r.unmatched for i, r in ratings.items()}, now)
    for event in _events(decided, touched, ratings):
        append(connection, **event, at=now, step="triage")
    for opening in decided.opened:
        if opening.replayed_by is not None:
            _replayed(connection, opening, opening.replayed_by, now)
    for chunk in _chunks({*touched.values(), *(j.incident_id for j in decided.joined)}):
        await connection.execute(
            update(t.incidents)
            .where(t.incidents.c.id.in_(chunk), t.incidents.c.state == IncidentState.OPEN)
            .values(due_at=now, poked=True)
        )
    for delivery, ignored in decided.told.items():
        why = {} if ignored is None else {"reason": ignored}
        told = update(t.events).where(t.events.c.delivery_id == delivery)
        await connection.execute(told.values(applied=ignored is None, **why))


def _replayed(connection: AsyncConnection, opening: Opening, by: str, now: datetime) -> None:
    """Write down who had something played again: an act of an operator, like others."""
    kind = "a dry run" if opening.dry_run else "for real"
    reason = f"{by}: {opening.replay_of}, {kind}"
    data = {"by": by, "incident": opening.id, "dry_run": opening.dry_run}
    append(connection, None, at=now, step="operator", event="replayed", reason=reason, data=data)


async def _write_alerts(connection: AsyncConnection, decided: Correlation, now: datetime) -> None:
    again = {"last_seen_at": now, "notifications": t.alerts.c.notifications + 1}
    for chunk in _chunks(decided.superseded):
        await connection.execute(
            update(t.alerts).where(t.alerts.c.id.in_(chunk)).values(latest=False)
        )
    if decided.joined:
        await connection.execute(insert(t.alerts), [_joined(j, now) for j in decided.joined])
    for chunk in _chunks(decided.resent):
        await connection.execute(update(t.alerts).where(t.alerts.c.id.in_(chunk)).values(**again))
    for alert_id, alert in decided.adopted:
        says = alert.model_dump(include={"source", "group_key", "labels", "annotations"})
        adopted = update(t.alerts).where(t.alerts.c.id == alert_id)
        await connection.execute(adopted.values(**says, starts_at=alert.starts_at))
    if decided.left:
        resolved = {"status": AlertStatus.RESOLVED, "resolved_at": now}
        await connection.execute(
            update(t.alerts)
            .where(t.alerts.c.id == bindparam("resolving"))
            .values(**again, **resolved, ends_at=bindparam("ended", type_=Instant)),
            [{"resolving": alert_id, "ended": ends_at} for alert_id, ends_at in decided.left],
        )


async def _touched(connection: AsyncConnection, decided: Correlation) -> dict[AlertId, IncidentId]:
    found: dict[AlertId, IncidentId] = {}
    for chunk in _chunks(alert_id for alert_id, _ in decided.left):
        query = select(t.alerts.c.id, t.alerts.c.incident_id).where(t.alerts.c.id.in_(chunk))
        rows = await connection.execute(query)
        found |= {AlertId(alert): IncidentId(incident) for alert, incident in rows}
    return found


def _ratings(decided: Correlation) -> dict[IncidentId, Rating]:
    """Return the worst severity of the alerts that join, by incident."""
    found: dict[IncidentId, Rating] = {}
    for joining in decided.joined:
        known = found.get(joining.incident_id, joining.rating)
        found[joining.incident_id] = worst((known, joining.rating))
    return found


def _opened(opening: Opening, rating: Rating, now: datetime) -> dict[str, Any]:
    closed = opening.outcome is not None
    return opening.model_dump(exclude={"replayed_by"}) | {
        "severity": rating.severity,
        "severity_word": rating.word,
        "rank": rank(rating.severity, opening.handling),
        "state": IncidentState.CLOSED if closed else IncidentState.OPEN,
        "phase": Phase.DONE if closed else Phase.DIAGNOSE,
        "phase_since": now,
        "progressed_at": now,
        "round": 0,
        "opened_at": now,
        "closed_at": now if closed else None,
        "due_at": None if closed else now,
        "poked": False,
        "epoch": 0,
        "failures": 0,
    }


def _joined(joining: Joining, now: datetime) -> dict[str, Any]:
    alert = joining.alert
    resolved = alert.status is AlertStatus.RESOLVED
    return alert.model_dump() | {
        "id": joining.id,
        "incident_id": joining.incident_id,
        "latest": joining.latest,
        "first_seen_at": now,
        "last_seen_at": now,
        "resolved_at": now if resolved else None,
        "notifications": 1,
    }


def _events(
    decided: Correlation, touched: dict[AlertId, IncidentId], ratings: Mapping[IncidentId, Rating]
) -> list[dict[str, Any]]:
    def line(incident: IncidentId, event: str, reason: str) -> dict[str, Any]:
        return {"incident": incident, "event": event, "reason": reason}

    def counted(event: str, incidents: Iterable[IncidentId], reason: str) -> list[dict[str, Any]]:
        return [
            line(incident, event, f"{count} alert{'s' if count > 1 else ''} {reason}")
            for incident, count in Counter(incidents).items()
        ]

    opened = [
        line(o.id, "opened" if o.outcome is None else f"closed as {o.outcome}", o.reason)
        | {
            "data": ratings.get(o.id, Rating()).model_dump(exclude={"unmatched"})
            | {"handling": o.handling}
        }
        for o in decided.opened
    ]
    joined = counted("alerts joined", (j.incident_id for j in decided.joined), "began")
    left = counted("alerts resolved", touched.values(), "resolved, says the sender")
    notes = [line(n.incident_id, n.event, n.reason) | {"data": n.data} for n in decided.notes]
    return opened + joined + left + notes
