"""What the silences in an Alertmanager depend on: what is in flight, and the alerts it is about."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.alert import Alert, AlertStatus, Source
from remediator.model.base import IncidentId, Value
from remediator.model.incident import IncidentState
from remediator.store import tables as t
from remediator.store.database import Database
from remediator.store.journal import append

_CHUNK = 500
"""Values in one IN list, below every database's limit of bound parameters."""
_STEP = "silence"


class InFlight(Value):
    """An open incident with a change that is reserved, or applied and not yet judged."""

    id: IncidentId
    system: str
    service: str
    playbook: str
    alerts: tuple[Alert, ...]
    """Those of an Alertmanager that fire, oldest first."""


class Silenced:
    """Reads what is to be silenced, and writes into the journal that it was."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def in_flight(
        self, services: Collection[tuple[str, str]], most: int
    ) -> tuple[InFlight, ...]:
        """List the incidents of ``services`` with a change in flight, and ``most`` alerts of each.

        Services are pairs of system and name. Replays are left out: their alerts are not live.
        """
        changing = select(t.mitigations.c.incident_id).where(t.mitigations.c.in_flight)
        names = [name for name in InFlight.model_fields if name != "alerts"]
        query = (
            select(*(t.incidents.c[name] for name in names))
            .where(t.incidents.c.id.in_(changing), t.incidents.c.state == IncidentState.OPEN)
            .where(t.incidents.c.replay_of.is_(None), t.incidents.c.dry_run.is_(False))
            .order_by(t.incidents.c.id)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
            return tuple(
                [
                    InFlight(**row, alerts=await _firing(connection, row["id"], most))
                    for row in rows
                    if (row["system"], row["service"]) in services
                ]
            )

    async def alerts_of(
        self, incidents: Collection[IncidentId]
    ) -> dict[IncidentId, tuple[Alert, ...]]:
        """Return the latest episodes of the alerts of ``incidents``; ids that are not ours lack."""
        found: dict[IncidentId, list[Alert]] = {}
        ordered = sorted(set(incidents))
        async with self._database.read() as connection:
            for start in range(0, len(ordered), _CHUNK):
                some = ordered[start : start + _CHUNK]
                ids = select(t.incidents.c.id).where(t.incidents.c.id.in_(some))
                found |= {IncidentId(known): [] for known in await connection.scalars(ids)}
                query = _received().where(t.alerts.c.latest, t.alerts.c.incident_id.in_(some))
                for row in (await connection.execute(query)).mappings():
                    found[IncidentId(row["incident_id"])].append(_alert(row))
        return {incident: tuple(alerts) for incident, alerts in found.items()}

    async def note(self, incident: IncidentId, event: str, reason: str) -> None:
        """Write a line into the incident's journal, unless another replica just wrote the same."""

        async def operation(connection: AsyncConnection) -> None:
            mine = (t.journal.c.incident_id == incident) & (t.journal.c.step == _STEP)
            last = select(t.journal.c.event, t.journal.c.reason).where(mine)
            newest = last.order_by(t.journal.c.id.desc()).limit(1)
            said = (await connection.execute(newest)).first()
            if said is not None and tuple(said) == (event, reason):
                return
            at = await self._database.now(connection)
            append(connection, incident, at=at, step=_STEP, event=event, reason=reason)

        await self._database.write(operation)


def _received() -> Any:
    return (
        select(t.alerts)
        .where(t.alerts.c.source == Source.ALERTMANAGER)
        .order_by(t.alerts.c.first_seen_at, t.alerts.c.id)
    )


async def _firing(connection: AsyncConnection, incident: str, most: int) -> tuple[Alert, ...]:
    mine = (t.alerts.c.incident_id == incident) & (t.alerts.c.status == AlertStatus.FIRING)
    rows = await connection.execute(_received().where(mine, t.alerts.c.latest).limit(most))
    return tuple(_alert(row) for row in rows.mappings())


def _alert(row: Any) -> Alert:
    return Alert.model_validate({name: row[name] for name in Alert.model_fields})
