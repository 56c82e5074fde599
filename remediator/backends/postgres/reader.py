"""PostgreSQL as a target: who is connected, and who blocks whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remediator.backends.postgres import statements as sql
from remediator.backends.postgres.client import PostgresClient
from remediator.backends.postgres.signals import patterns
from remediator.model.connections import SPARED, ConnectionUsage, Holder, Session


class PostgresReader(PostgresClient):
    """Reads the sessions of one database (``ports.Sessions``)."""

    async def usage(self) -> ConnectionUsage:
        """Count connections against the server's limit."""
        async with self._connection.transaction() as connection:
            await self._require_sight(connection)
            (total,) = await connection.fetch(sql.USAGE)
            states = await connection.fetch(sql.BY_STATE)
            holders = await connection.fetch(sql.HOLDERS)
        return ConnectionUsage(
            used=total["used"],
            available=total["available"],
            by_state={row["state"]: row["count"] for row in states},
            database=holders[0]["ours"],
            holders=tuple(_holder(dict(row)) for row in holders),
            standby=holders[0]["standby"],
        )

    async def sessions(
        self, *, app_roles: tuple[str, ...], spare_applications: tuple[str, ...] = SPARED
    ) -> tuple[Session, ...]:
        """List the client backends of the database, our own excluded."""
        spared = patterns(spare_applications)
        async with self._connection.transaction() as connection:
            await self._require_sight(connection)
            rows = await connection.fetch(sql.SESSIONS, list(app_roles), None, spared)
        return tuple(session_of(dict(row)) for row in rows)

    async def connect_once(self) -> float:
        """Open a new connection, run ``SELECT 1``, close it; return the seconds it took."""
        return await self._connection.connect_once()


def _holder(row: Mapping[str, Any]) -> Holder:
    return Holder.model_validate({name: row[name] for name in Holder.model_fields})


def session_of(row: Mapping[str, Any]) -> Session:
    """Read a row of ``SESSIONS``."""
    return Session.model_validate({name: row[name] for name in Session.model_fields})
