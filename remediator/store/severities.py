"""How severe an incident is, by the alerts that join it, and who hears of what no playbook takes.

A later alert may make an incident worse; none makes it milder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.base import IncidentId
from remediator.model.incident import IncidentOutcome
from remediator.model.severity import Handling, Rating, Unmatched, rank
from remediator.store import tables as t
from remediator.store.acknowledgements import begin_for_unmatched
from remediator.store.journal import append
from remediator.store.outbox import request_notice

_CHUNK = 500
"""Values in one IN list, below every database's limit of bound parameters."""


async def raise_severities(
    connection: AsyncConnection,
    ratings: Mapping[IncidentId, Rating],
    fresh: Collection[IncidentId],
    now: datetime,
) -> None:
    """Let incidents be as severe as the worst alert that joins them; ``fresh`` ones are already.

    To be called in triage's own transaction, which is serial: nobody else writes severities.
    """
    known = sorted(ratings.keys() - set(fresh))
    for start in range(0, len(known), _CHUNK):
        query = select(t.incidents.c.id, t.incidents.c.severity, t.incidents.c.handling)
        chunk = t.incidents.c.id.in_(known[start : start + _CHUNK])
        for incident, severity, handling in (await connection.execute(query.where(chunk))).all():
            rating = ratings[incident]
            if rating.severity < severity:
                await _raise(connection, incident, rating, Handling(handling))
                _say(connection, incident, severity, rating, now)


async def _raise(
    connection: AsyncConnection, incident: str, rating: Rating, handling: Handling
) -> None:
    row = update(t.incidents).where(t.incidents.c.id == incident)
    raised = {"severity": rating.severity, "severity_word": rating.word}
    place = rank(rating.severity, handling)
    await connection.execute(row.values(**raised, rank=place))
    waits = (t.notices.c.incident_id == incident) & (t.notices.c.rank > place)
    await connection.execute(update(t.notices).where(waits).values(rank=place))


def _say(
    connection: AsyncConnection, incident: str, was: int, rating: Rating, now: datetime
) -> None:
    reason = (
        f"an alert of severity {rating.severity} ({rating.word or 'no word'}) joined; was {was}"
    )
    data = rating.model_dump(exclude={"unmatched"}) | {"was": was}
    event = "severity raised"
    append(connection, incident, at=now, step="triage", event=event, reason=reason, data=data)


async def tell_unmatched(
    connection: AsyncConnection, wanted: Mapping[IncidentId, Unmatched], now: datetime
) -> None:
    """Let humans hear of records that no playbook took an alert; of each once, as loudly as wanted.

    To be called once its alerts are written. Replays are nobody's alerts.
    """
    loud = sorted(incident for incident, how in wanted.items() if how is not Unmatched.RECORD)
    for start in range(0, len(loud), _CHUNK):
        query = (
            select(t.incidents.c.id, t.notices.c.incident_id, t.escalations.c.since)
            .outerjoin(t.notices, t.notices.c.incident_id == t.incidents.c.id)
            .outerjoin(t.escalations, t.escalations.c.incident_id == t.incidents.c.id)
            .where(t.incidents.c.id.in_(loud[start : start + _CHUNK]))
            .where(t.incidents.c.outcome == IncidentOutcome.NO_MATCH)
            .where(t.incidents.c.replay_of.is_(None))
        )
        for incident, told, since in (await connection.execute(query)).all():
            if wanted[incident] is Unmatched.PAGE and since is None:
                await begin_for_unmatched(connection, incident, now)
            if told is None:
                await request_notice(connection, incident, now)
