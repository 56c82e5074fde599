"""Whether a service is short of database connections by its own use, as it was measured.

Playbooks that touch sessions take their parameters from ``ConnectionBounds``.
"""

from __future__ import annotations

import asyncio

from pydantic import Field

from remediator.model.connections import ConnectionUsage, Holder, Session
from remediator.model.errors import BackendUnavailable
from remediator.model.finding import Finding
from remediator.model.ports import Sessions
from remediator.playbook.base import Context, Findings
from remediator.playbook.checks.connections import PoolSource, PoolUse
from remediator.playbook.checks.sessions import (
    Culprits,
    Reading,
    SessionBounds,
    judged,
    sessions_listed,
)

SHORT = 0.8
"""Share of the connections beyond which they are short, at the least (runbooks: 80 %)."""
SHARE = 0.25
"""Share of the connections in use that long queries hold where they are what is short of them."""


class ConnectionBounds(PoolSource, SessionBounds):
    """The same, and from where on the number of connections is a problem."""

    usage_limit: float = Field(default=0.8, gt=0, le=1)
    """Share of the connections from which on their number is a problem (runbooks: 80 %)."""

    async def server_finding(self, database: Sessions) -> Finding:
        """Look how much of the server's connections is used."""
        usage = await database.usage()
        states = ", ".join(f"{count} {state}" for state, count in sorted(usage.by_state.items()))
        short, hog = usage.ratio >= self.usage_limit, usage.hog(self.app_roles)
        most = f" Most are held by {_named(hog)}." if short and hog else ""
        return Finding(
            name="server",
            status=judged(problem=short),
            summary=f"The server uses {usage.used} of {usage.available} connections"
            f" ({usage.ratio:.0%}; this database: {states or 'none'}).{most}",
            value=usage,
        )

    def shortage(self, findings: Findings, beyond: float) -> str | None:
        """Say what was measured that makes this service short of connections, or None.

        A server that is full of others' connections is not this service's shortage.
        """
        pool = findings.evidence("pool", PoolUse)
        server = findings.evidence("server", ConnectionUsage)
        if pool and pool.ratio > beyond:
            return f"the pool is {pool.ratio:.0%} used"
        if server and server.ratio > beyond and server.holders:
            ours = server.hog(self.app_roles) is None
            return f"the server is {server.ratio:.0%} used, by this service most" if ours else None
        return None

    async def pool_finding(self, context: Context, reading: Reading | None) -> Finding:
        """Look how much of the application's pool is used; ``reading`` is of its database."""
        counted = not (self.pool_path or self.actuator or self.pool_active_query)
        if counted and reading is None:
            raise BackendUnavailable("pool_max is compared with sessions; there is no database")
        sessions = await asyncio.shield(reading) if reading and self.pool_max else ()
        use = await self.pool_use(context, sessions, self.app_roles)
        return Finding(
            name="pool",
            status=judged(problem=use.ratio >= self.usage_limit or bool(use.waiting)),
            summary=f"The pool uses {use}.",
            value=use,
        )

    def unproven(self, findings: Findings) -> tuple[Session, ...]:
        """List long queries that block nobody and are not what holds the short connections."""
        roots = Culprits(self, findings).roots
        found = sessions_listed(findings, "long_queries")
        queries = tuple(s for s in found if s.pid not in roots and s.protected is None)
        pool = findings.evidence("pool", PoolUse)
        server = findings.evidence("server", ConnectionUsage)
        used = pool.active if pool else server.used if server else 0
        holds_it = len(queries) >= SHARE * used
        return () if holds_it and self.shortage(findings, SHORT) else queries


def _named(hog: Holder) -> str:
    return f"role {hog.role or '?'} in the database {hog.database or '?'}: {hog.count}"
