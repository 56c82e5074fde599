"""What a PostgreSQL server says of its connections and of the sessions of one database. Values only."""

from __future__ import annotations

from datetime import timedelta

from pydantic import AwareDatetime

from remediator.model.base import Value

SPARED = (
    "psql",
    "pgAdmin*",
    "DBeaver*",
    "DataGrip*",
    "postgres_fdw*",
    "*backup*",
    "*settle*",
    "*schedul*",
    "*cron*",
    "*migrat*",
    "flyway*",
    "liquibase*",
)
"""Applications that are spared unless a service says otherwise: people at work, other servers'
queries, and jobs that are known to run long or must not be cut in two."""


class Holder(Value):
    """How many of a server's connections one role holds in one database."""

    database: str
    role: str
    count: int


class ConnectionUsage(Value):
    """Use of a database server's connection slots and of one database's share of them."""

    used: int
    """Client backends of the whole server."""
    available: int
    """max_connections less the slots reserved for superusers."""
    by_state: dict[str, int]
    """Client backends of this database by state."""
    database: str = ""
    """The database that is looked at; empty where it is not known."""
    holders: tuple[Holder, ...] = ()
    """Who holds the server's connections, the most first; none where it is not known."""
    standby: bool = False
    """Whether the server is in recovery: a standby that replays another server's changes."""

    @property
    def ratio(self) -> float:
        """Used share of the server's slots, 0..1."""
        return self.used / self.available if self.available > 0 else 1.0

    def held_by(self, roles: tuple[str, ...]) -> int:
        """Count the connections that ``roles`` hold in the database that is looked at."""
        return sum(h.count for h in self.holders if h.database == self.database and h.role in roles)

    def hog(self, roles: tuple[str, ...]) -> Holder | None:
        """Return who holds more connections than ``roles`` do; None where they hold the most.

        Another database counts as a whole, under the role that holds the most of it.
        """
        others: dict[str, Holder] = {}
        for holder in self.holders:
            if holder.database == self.database and holder.role in roles:
                continue
            own = holder.database == self.database
            key = f"{holder.database}/{holder.role}" if own else holder.database
            before = others.setdefault(key, holder.model_copy(update={"count": 0}))
            total = before.count + holder.count
            others[key] = before.model_copy(update={"count": total})
        most = max(others.values(), key=lambda holder: holder.count, default=None)
        return most if most and most.count > self.held_by(roles) else None


class Session(Value):
    """One client backend of the target database, with what identifies it beyond doubt."""

    pid: int
    role: str
    application: str
    state: str
    """As pg_stat_activity has it: ``active``, ``idle``, ``idle in transaction``..."""
    backend_start: AwareDatetime
    state_change: AwareDatetime
    xact_start: AwareDatetime | None
    query_start: AwareDatetime | None
    state_age: timedelta
    """Time since ``state_change``, by the server's clock."""
    query_age: timedelta | None
    """Time since ``query_start``, by the server's clock."""
    statement: str
    """First keyword of the query."""
    text: str = ""
    """The beginning of the query without its literals and comments, which may hold personal data."""
    wait_event: str | None = None
    """What it waits for, as pg_stat_activity has it."""
    client: str | None = None
    """Address of the client; None for a local socket."""
    protected: str | None
    """Why it may never be ended (not an application's role, a dump, a replication...), or None."""
    blocked_by: tuple[int, ...]
    """pids that it waits for (pg_blocking_pids), of any backend type."""
