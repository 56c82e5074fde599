"""Who has to be told that a human is needed: one row an incident, one more for each message.

The incident's row says which level comes next and who has acknowledged. It is decided about in
one transaction, so that no level begins twice. A message to one channel is a row of its own,
claimed and fenced as notices are: a channel that fails holds up no other one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import Select, and_, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import AlertStatus, Source
from remediator.model.base import IncidentId
from remediator.model.incident import Incident, IncidentState
from remediator.model.notification import Word
from remediator.store import tables as t
from remediator.store.acknowledgements import HOLD, NOT_TAKEN_BACK
from remediator.store.approvals import delivered, renew
from remediator.store.claims import incident_of
from remediator.store.corrupt_rows import stand_in
from remediator.store.database import Database
from remediator.store.journal import append
from remediator.store.leases import Turns, claim_due, is_held, release_claimed, write_claimed
from remediator.store.maintenance import windows_over
from remediator.store.pages import TOGETHER, place_of, told_again, told_lately, what_it_is
from remediator.store.paging import (
    Companion,
    Due,
    EscalationState,
    Message,
    Reported,
    Step,
    Telling,
)

LEASE = timedelta(seconds=60)
"""Longer than a channel may take; what is claimed and never finished is sent again after it."""
AT_ONCE = 50
"""Escalations that are decided about in one transaction."""
_MOST_ALERTS = 500
"""Alerts of one incident that are asked whether they fire."""
_STEP = "escalation"
_log = structlog.get_logger(__name__)


class Escalations:
    """Decides who is told next, hands out what is to be told, takes what became of it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)

    async def due(self) -> Due:
        """Say what there is to do; reads only, and little where nobody is called."""
        async with self._database.read() as connection:
            now = await self._database.now(connection)
            # the condition is what lets the index of what is due serve it
            first = select(func.min(t.escalations.c.due_at)).where(
                t.escalations.c.due_at.is_not(None)
            )
            at = (await connection.execute(first)).scalar()
            channels = select(t.tellings.c.channel).where(t.tellings.c.due_at <= now).distinct()
            return Due(
                deciding=at is not None and at <= now,
                channels=frozenset(await connection.scalars(channels)),
            )

    async def advance(self, decide: Callable[[EscalationState], Step]) -> int:
        """Decide about what is due, and write it; return how many there were."""

        async def operation(connection: AsyncConnection) -> int:
            now = await self._database.now(connection)
            due = select(t.escalations).where(t.escalations.c.due_at <= now)
            due = due.order_by(t.escalations.c.due_at).limit(AT_ONCE)
            due = due.with_for_update(skip_locked=True)
            rows = (await connection.execute(due)).mappings().all()
            for row in rows:
                step = decide(await _standing(connection, row, now))
                await _write_step(connection, row["incident_id"], step, now)
            return len(rows)

        return await self._database.write(operation)

    async def reported(self, incident: IncidentId, label: str) -> Reported:
        """Say which incidents of PagerDuty's, by their ``label``, the incident came from.

        A label of that name in an alert of another sender names nothing.
        """
        mine = t.alerts.c.incident_id == incident
        theirs = t.alerts.c.source == Source.PAGERDUTY
        fires = mine & ~theirs & (t.alerts.c.status == AlertStatus.FIRING)
        query = select(t.alerts.c.labels).where(mine, theirs).limit(_MOST_ALERTS)
        async with self._database.read() as connection:
            every = (await connection.scalars(query)).all()
            others = (await connection.execute(select(exists().where(fires)))).scalar()
        named = sorted({labels[label] for labels in every if labels.get(label)})
        return Reported(incidents=tuple(named), alone=not others)

    async def ask(self, incident: IncidentId, messages: Collection[Message]) -> None:
        """Have ``messages`` sent, each once however often it is asked for."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            await _ask(connection, incident, messages, now)

        await self._database.write(operation)

    async def claim(self, channel: str) -> Telling | None:
        """Claim what comes next to ``channel``, of incidents with nothing under way to it.

        Pages by severity, then age, then all else; one in four is the oldest. A page takes those of
        its kind along. What nobody needs to be told any more, because somebody has the incident, is
        dropped.
        """
        turns = self._turns[channel]

        async def operation(connection: AsyncConnection) -> Telling | None:
            now = await self._database.now(connection)
            await connection.execute(_drop(channel, now))
            postgres = self._database.is_postgres
            free = (t.tellings.c.channel == channel) & ~_under_way(now)
            said = list(await connection.scalars(told_lately(channel, now)))
            fresh = t.tellings.c.kind.not_in(said)
            ((_, ranked),) = turns.share(1)
            claim = claim_due(
                t.tellings, now, LEASE, 1, skip_locked=postgres, where=free & fresh, ranked=ranked
            )
            columns = (t.tellings.c[name] for name in _COLUMNS)
            row = (await connection.execute(claim.returning(*columns))).mappings().first()
            if row is None:
                return None
            telling = Telling.model_validate(dict(row))
            if telling.word is Word.LEVEL:
                await renew(connection, [telling.incident_id], now)
            if not telling.kind:
                return telling
            like = free & (t.tellings.c.kind == telling.kind)
            along = claim_due(
                t.tellings, now, LEASE, TOGETHER - 1, skip_locked=postgres, where=like
            ).returning(*(t.tellings.c[name] for name in Companion.model_fields))
            rows = (await connection.execute(along)).mappings()
            others = tuple(Companion.model_validate(dict(other)) for other in rows)
            return telling.model_copy(update={"others": others})

        telling = await self._database.write(operation)
        turns.took(telling is not None)
        return telling

    async def told(self, telling: Telling) -> None:
        """Record that it was sent, and with it those that it stands for."""

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            sent = {"state": "told", "last_error": "", "due_at": None, "told_at": now}
            event = _event(telling, "told to" if telling.word is Word.LEVEL else "sent to")
            for row in telling.all:
                with_it = None if row is telling else telling.incident_id
                await _write(connection, row, sent | {"told_with": with_it})
                if telling.word is Word.LEVEL:
                    await delivered(connection, row.incident_id, now, telling.channel)
                reason = "" if row is telling else f"in one page with that of {telling.incident_id}"
                _journal(connection, row.incident_id, [(event, reason)], now)

        await self._database.write(operation)

    async def given_up(self, telling: Telling, reason: str) -> None:
        """Record that it cannot be sent, for humans to see where they look anyway."""
        values = {"state": "failed", "last_error": reason, "attempts": telling.attempts + 1}
        await self._finish(telling, values, _event(telling, "not told to"), reason)

    async def failed(
        self, telling: Telling, reason: str, again_in: timedelta, *, loudly: bool = False
    ) -> None:
        """Record why it was not sent, and when it is tried again.

        ``loudly`` tells humans as well, where they look anyway: once for each reason.
        """

        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            values = {"last_error": reason, "due_at": now + again_in}
            for row in telling.all:
                await _write(connection, row, values | {"attempts": row.attempts + 1})
                if loudly and reason != telling.last_error:
                    lines = [(_event(telling, "not told to"), reason)]
                    _journal(connection, row.incident_id, lines, now)

        await self._database.write(operation)

    async def release(self, telling: Telling) -> None:
        """Give a message back at once, for whoever comes next."""

        async def operation(connection: AsyncConnection) -> None:
            for row in telling.all:
                await release_claimed(connection, t.tellings, row.id, row.epoch)

        await self._database.write(operation)

    async def _finish(
        self, telling: Telling, values: dict[str, Any], event: str, reason: str
    ) -> None:
        async def operation(connection: AsyncConnection) -> None:
            now = await self._database.now(connection)
            for row in telling.all:
                await _write(connection, row, values | {"due_at": None})
                _journal(connection, row.incident_id, [(event, reason)], now)

        await self._database.write(operation)


_COLUMNS = tuple(name for name in Telling.model_fields if name != "others")


def _event(telling: Telling, how: str) -> str:
    what = f"level {int(telling.subject) + 1}" if telling.word is Word.LEVEL else telling.word
    return f"{what} {how} {telling.channel}"[:60]


# --- one decision ------------------------------------------------------------------------------


async def _standing(connection: AsyncConnection, row: Any, now: datetime) -> EscalationState:
    query = select(t.incidents).where(t.incidents.c.id == row["incident_id"])
    found = (await connection.execute(query)).mappings().one()
    try:
        incident = incident_of(found)
    except ValidationError as error:  # it holds up no other one, and a human comes all the same
        _log.error("incident_unreadable", incident_id=found["id"], reason=str(error))
        incident = stand_in(found, now)
    fires, successor = await _alerts(connection, incident)
    told = select(t.tellings.c.channel).where(
        t.tellings.c.incident_id == incident.id,
        t.tellings.c.word == Word.LEVEL,
        t.tellings.c.told_with.is_(None),
    )
    given_up = t.journal.c.incident_id == incident.id, t.journal.c.step == HOLD
    stays = select(exists().where(*given_up, t.journal.c.event == NOT_TAKEN_BACK))
    return EscalationState(
        incident=incident,
        **{name: row[name] for name in ("since", "level", "echoed")},
        acknowledged_at=row["acknowledged_at"],
        acknowledged_by=row["acknowledged_by"],
        fires=fires,
        successor=successor,
        stays=bool((await connection.execute(stays)).scalar()),
        told=frozenset(await connection.scalars(told)),
        windows=tuple(await windows_over(connection, incident, now, now)),
        now=now,
    )


async def _alerts(
    connection: AsyncConnection, incident: Incident
) -> tuple[bool, IncidentId | None]:
    """Say whether the incident's alerts fire, and if not, which later incident has one of them."""
    later: IncidentId | None = None
    for row in (await connection.execute(_latest_of(incident))).mappings():
        if row["status"] == AlertStatus.RESOLVED:
            continue
        elsewhere = row["incident_id"] not in (None, incident.id) and incident.replay_of is None
        if not (elsewhere and (row["state"] == IncidentState.OPEN or row["escalated"])):
            return True, None
        later = later or row["incident_id"]
    return False, later


def _latest_of(incident: Incident) -> Select[Any]:
    """Read the latest episode of each alert that fires in ``incident``, and who has it."""
    mine, latest = t.alerts.alias("mine"), t.alerts.alias("latest")
    of_it = and_(latest.c.fingerprint == mine.c.fingerprint, latest.c.latest)
    escalated = t.escalations.c.since.is_not(None).label("escalated")
    return (
        select(latest.c.status, latest.c.incident_id, t.incidents.c.state, escalated)
        .select_from(
            mine.outerjoin(latest, of_it)
            .outerjoin(t.incidents, t.incidents.c.id == latest.c.incident_id)
            .outerjoin(t.escalations, t.escalations.c.incident_id == latest.c.incident_id)
        )
        .where(mine.c.incident_id == incident.id, mine.c.status == AlertStatus.FIRING)
        .limit(_MOST_ALERTS)
    )


async def _write_step(
    connection: AsyncConnection, incident: IncidentId, step: Step, now: datetime
) -> None:
    values: dict[str, Any] = {"level": step.level, "since": step.since, "due_at": step.due_at}
    if step.lapsed:
        values |= {"acknowledged_at": None, "acknowledged_by": None, "echoed": False}
    if step.ended:
        values |= {"ended_at": now, "due_at": None}
        await connection.execute(told_again(incident, now))
    row = update(t.escalations).where(t.escalations.c.incident_id == incident)
    await connection.execute(row.values(**values))
    await _ask(connection, incident, step.messages, now)
    _journal(connection, incident, step.events, now)


# --- messages ----------------------------------------------------------------------------------


async def _ask(
    connection: AsyncConnection, incident: str, messages: Iterable[Message], now: datetime
) -> None:
    places: Counter[str] = Counter()
    about = (await connection.execute(what_it_is(incident))).mappings().first()
    for message in messages:
        key = f"{incident}/{message.channel}/{message.word}/{message.subject}"
        known = select(t.tellings.c.id).where(t.tellings.c.id == key)
        if (await connection.execute(known)).first() is not None:
            continue
        row = message.model_dump() | {"id": key, "incident_id": incident, "state": "waiting"}
        # to each channel in this order, where nothing fails
        due = now + timedelta(microseconds=places[message.channel])
        places[message.channel] += 1
        row |= {"due_at": due, "epoch": 0, "attempts": 0, "last_error": ""}
        row |= place_of(message.word, message.subject, about)
        await connection.execute(insert(t.tellings), row)


def _drop(channel: str, now: datetime) -> Any:
    """Return what takes out levels of ``channel`` that are due and not wanted any more."""
    over = or_(t.escalations.c.ended_at.is_not(None), t.escalations.c.acknowledged_at.is_not(None))
    settled = exists().where(t.escalations.c.incident_id == t.tellings.c.incident_id, over)
    idle = ~is_held(t.tellings.c.lease_until, now, LEASE)
    return (
        update(t.tellings)
        .where(t.tellings.c.channel == channel, t.tellings.c.word == Word.LEVEL)
        .where(t.tellings.c.due_at <= now, idle, settled)
        .values(due_at=None, state="dropped", epoch=t.tellings.c.epoch + 1)
    )


def _under_way(now: datetime) -> Any:
    """Say whether another message about the same incident is being sent to the same channel."""
    other = t.tellings.alias("other")
    return exists().where(
        other.c.incident_id == t.tellings.c.incident_id,
        other.c.channel == t.tellings.c.channel,
        other.c.due_at.is_not(None),
        is_held(other.c.lease_until, now, LEASE),
    )


async def _write(
    connection: AsyncConnection, telling: Telling | Companion, values: dict[str, Any]
) -> None:
    # a higher epoch: a write whose answer was lost is not made twice
    finished = values | {"lease_until": None, "epoch": telling.epoch + 1}
    await write_claimed(connection, t.tellings, telling.id, telling.epoch, finished)


def _journal(
    connection: AsyncConnection, incident: str, lines: Iterable[tuple[str, str]], now: datetime
) -> None:
    for event, reason in lines:
        append(connection, incident, at=now, step=_STEP, event=event[:60], reason=reason)
