"""Database connections run out: end what holds them without need, and nothing else.

Blockers first, then leaks, then long queries. A waiting victim is never touched, and nothing is
ever scaled: more instances would open more connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import ClassVar

from pydantic import Field, JsonValue

from remediator import (
    Assessment,
    Blocker,
    Blocking,
    ConnectionUsage,
    Context,
    Finding,
    Findings,
    FindingStatus,
    Item,
    Mitigation,
    Playbook,
    PoolSource,
    PoolUse,
    Proposal,
    Risk,
    Sample,
    Session,
    Sessions,
    TemporaryError,
    Value,
    alertnames,
    blocking_tree,
)

OURSELVES = "remediator"
"""Our own application_name; the reader leaves our sessions out, and so do we."""
SHOWN = 50
"""Sessions that one finding lists at most, the oldest first."""


class PoolParameters(PoolSource):
    """What a service may set."""

    idle_tx_s: float = Field(default=60, gt=0)
    """Seconds idle in a transaction after which a session counts as leaked (runbooks: 60)."""
    kill_after_s: float = Field(default=300, gt=0)
    """Seconds after which a query is too long (runbooks: 5 minutes; TradeMaster 30 seconds)."""
    max_kills: int = Field(default=5, ge=1, le=5)
    """Sessions that one mitigation touches at most (runbooks: 5 a run)."""
    app_roles: tuple[str, ...] = ()
    """The application's database roles; empty: every role without special rights."""
    usage_limit: float = Field(default=0.8, gt=0, le=1)
    """Share of the connections from which on their number is a problem (runbooks: 80 %)."""
    pool_full: float = Field(default=0.9, gt=0, le=1)
    """Share of the connections beyond which leaked sessions are ended that block nobody."""


class SessionList(Value):
    """The oldest of the sessions that have one thing in common, and how many there are."""

    sessions: tuple[Session, ...]
    count: int


View = Callable[[tuple[Session, ...]], Finding]
"""One finding from one reading of the sessions."""


class PoolExhausted(Playbook[PoolParameters]):
    """Frees database connections: root blockers, leaked transactions, then endless queries."""

    matches = (
        alertnames(
            "DatabaseConnectionPoolExhaustion",
            "DatabaseConnectionPoolExhausted",
            "DatabaseConnectionsHigh",
            "DatabaseConnectionIssues",
            "PoolExhausted",
        ),
    )
    targets: ClassVar[Mapping[str, str]] = {"database": "postgres"}
    senses = frozenset({"database", "prometheus"})
    levers = frozenset({"end_sessions", "cancel_queries", "end_queries"})
    explains = frozenset({"HighLatency"})
    parameters_type = PoolParameters

    async def diagnose(self, context: Context) -> Findings:
        """Look at server, sessions, pool and connectivity at the same time."""
        views = {
            "blocking": self._blocking,
            "leaks": self._leaks,
            "long_queries": self._long_queries,
        }
        return await self._look(context, views, connections=1)

    def propose(self, context: Context, findings: Findings) -> Proposal:
        """End idle holders first, then cancel long queries, then end those that stayed."""
        unknown = findings.unknown("blocking", "leaks", "long_queries")
        if unknown:
            return Proposal(reason=f"The sessions cannot be read: {'; '.join(unknown)}")
        roots = _roots(findings)
        holders = self._holders(findings, roots)
        fresh, stubborn = self._queries(context, findings, roots)
        plans = (
            self._plan(context, "end_sessions", holders, roots),
            self._plan(context, "cancel_queries", fresh, roots),
            self._plan(context, "end_queries", stubborn, roots),
        )
        chosen = tuple(plan for plan in plans if plan is not None)
        reason = chosen[0].reason if chosen else "No session is proven to be the cause."
        said = [reason, *self._advice(findings, chosen)]
        return Proposal(mitigations=chosen, reason=" ".join(said))

    async def verify(self, context: Context, mitigation: Mitigation) -> Sample:
        """Better when the connections are free again, for the application as for a new one."""
        views = {"ended": partial(self._ended, mitigation)}
        findings = await self._look(context, views, connections=3)
        unknown = findings.unknown(*findings)
        problems = [f.summary for f in findings.values() if f.status is FindingStatus.PROBLEM]
        if unknown:
            assessment, evidence = Assessment.CANNOT_TELL, [f"{text}." for text in unknown]
        elif problems:
            assessment, evidence = Assessment.NOT_BETTER, problems
        else:
            assessment, evidence = Assessment.BETTER, [f.summary for f in findings.values()]
        return Sample(at=context.now, assessment=assessment, evidence=" ".join(evidence))

    # --- looking -------------------------------------------------------------------------------

    async def _look(
        self, context: Context, views: Mapping[str, View], *, connections: int
    ) -> Findings:
        """Check all at the same time; the sessions are read once, and every view sees the same."""
        database = context.sessions()
        roles = self.parameters.app_roles
        reading = asyncio.ensure_future(database.sessions(app_roles=roles))
        checks = {name: _seen(reading, view) for name, view in views.items()}
        checks["server"] = self._server(database)
        checks["connectivity"] = _connectivity(database, connections)
        if self.parameters.has_pool:
            checks["pool"] = self._pool(context, reading)
        try:
            return await context.gather(checks)
        finally:
            reading.cancel()

    async def _server(self, database: Sessions) -> Finding:
        usage = await database.usage()
        states = ", ".join(f"{count} {state}" for state, count in sorted(usage.by_state.items()))
        return Finding(
            name="server",
            status=_judged(problem=usage.ratio >= self.parameters.usage_limit),
            summary=f"The server uses {usage.used} of {usage.available} connections"
            f" ({usage.ratio:.0%}; this database: {states or 'none'}).",
            value=usage,
        )

    def _blocking(self, sessions: tuple[Session, ...]) -> Finding:
        blocking = blocking_tree(sessions)
        named = "; ".join(map(str, blocking.roots))
        return Finding(
            name="blocking",
            status=_judged(problem=bool(blocking.roots)),
            summary=f"{_sessions(blocking.waiting, 'wait', 'for a lock')}; root blockers: {named}."
            if blocking.waiting
            else "No session waits for a lock.",
            value=blocking,
        )

    def _leaks(self, sessions: tuple[Session, ...]) -> Finding:
        limit = self.parameters.idle_tx_s
        leaks = [s for s in sessions if _age(s, "end_sessions") > limit]
        return _listing("leaks", leaks, f"idle in a transaction for more than {limit:g} s")

    def _long_queries(self, sessions: tuple[Session, ...]) -> Finding:
        limit = self.parameters.kill_after_s
        queries = [s for s in sessions if _age(s, "cancel_queries") > limit]
        return _listing("long_queries", queries, f"in one query for more than {limit:g} s")

    def _ended(self, mitigation: Mitigation, sessions: tuple[Session, ...]) -> Finding:
        """Look whether what was touched is gone, and no root blocker of its kind is left."""
        kind = mitigation.kind
        ends = kind != "cancel_queries"  # a session whose query was cancelled stays
        present = {_key(_identity(s, kind), kind) for s in sessions if ends or _age(s, kind) >= 0}
        still = [item.key for item in mitigation.items if _key(item.identity, kind) in present]
        limit = self._limit(kind)
        left = [
            root
            for root in blocking_tree(sessions).roots
            if root.session and root.spared is None and _age(root.session, kind) > limit
        ]
        problems = [*(f"{key} is still there" for key in still), *map(str, left)]
        return Finding(
            name="ended",
            status=_judged(problem=bool(problems)),
            summary=f"Left: {'; '.join(problems)}." if problems else "What was touched is gone.",
        )

    async def _pool(
        self, context: Context, reading: asyncio.Future[tuple[Session, ...]]
    ) -> Finding:
        parameters = self.parameters
        sessions = await asyncio.shield(reading) if parameters.pool_max else ()
        use = await parameters.pool_use(context, sessions, parameters.app_roles)
        return Finding(
            name="pool",
            status=_judged(problem=use.ratio >= parameters.usage_limit or bool(use.waiting)),
            summary=f"The pool uses {use}.",
            value=use,
        )

    # --- choosing ------------------------------------------------------------------------------

    def _holders(self, findings: Findings, roots: Mapping[int, Blocker]) -> list[Session]:
        """Choose idle transactions: root blockers, and the other leaks where the pool is full."""
        others = _listed(findings, "leaks") if self._full(findings) else ()
        return self._ranked("end_sessions", others, roots)

    def _queries(
        self, context: Context, findings: Findings, roots: Mapping[int, Blocker]
    ) -> tuple[list[Session], list[Session]]:
        """Choose queries to cancel, and those that a cancel did not end."""
        kind = "cancel_queries"
        tried = [plan for plan in context.tried if plan.kind == kind]
        cancelled = {_key(item.identity, kind) for plan in tried for item in plan.items}
        queries = self._ranked(kind, _listed(findings, "long_queries"), roots)
        stubborn = [s for s in queries if _key(_identity(s, kind), kind) in cancelled]
        return [s for s in queries if s not in stubborn], stubborn

    def _ranked(
        self, kind: str, sessions: Iterable[Session], roots: Mapping[int, Blocker]
    ) -> list[Session]:
        """Keep what may be touched and is old enough: root blockers first, then the oldest."""
        blockers = [root.session for root in roots.values() if root.session]
        by_pid = {
            session.pid: session
            for session in (*sessions, *blockers)
            if _touchable(session) and _age(session, kind) > self._limit(kind)
        }
        return sorted(by_pid.values(), key=lambda s: (s.pid not in roots, -_age(s, kind), s.pid))

    def _limit(self, kind: str) -> float:
        idle = kind == "end_sessions"
        return self.parameters.idle_tx_s if idle else self.parameters.kill_after_s

    def _full(self, findings: Findings) -> str | None:
        """Say what proves that connections are short, or None."""
        server = findings.evidence("server", ConnectionUsage)
        pool = findings.evidence("pool", PoolUse)
        if pool and pool.ratio > self.parameters.pool_full:
            return f"the pool is {pool.ratio:.0%} used"
        if server and server.ratio > self.parameters.pool_full:
            return f"the server is {server.ratio:.0%} used"
        if not self.parameters.has_pool:
            return "no pool is configured, so the firing alert stands for the full pool"
        return None

    def _plan(
        self, context: Context, kind: str, sessions: list[Session], roots: Mapping[int, Blocker]
    ) -> Mitigation | None:
        most = self.parameters.max_kills
        taken, more = sessions[:most], len(sessions[most:])
        if not taken:
            return None
        blocking = sum(1 for session in taken if session.pid in roots)
        limit = self._limit(kind)
        left = f" {more} more {'is' if more == 1 else 'are'} left." if more else ""
        return Mitigation(
            kind=kind,
            target=context.targets["database"],
            reason=f"{_sessions(len(taken), *_WHY[kind])} for more than {limit:g} s;"
            f" {blocking} of them block{'s' if blocking == 1 else ''} others.{left}",
            items=tuple(_item(kind, session, roots) for session in taken),
            parameters={
                "app_roles": list(self.parameters.app_roles),
                "min_age_s": limit,
                "max_items": most,
            },
            risk=Risk.LOW if kind == "cancel_queries" else Risk.MEDIUM,
        )

    def _advice(self, findings: Findings, chosen: Iterable[Mitigation]) -> list[str]:
        """Say what stands behind the choice, what was left alone, and what a human should do."""
        touched = {item.identity["pid"] for plan in chosen for item in plan.items}
        blocking = findings.evidence("blocking", Blocking)
        spared = [r for r in (blocking.roots if blocking else ()) if r.pid not in touched]
        leaks = [s for s in _listed(findings, "leaks") if s.pid not in touched]
        full = self._full(findings)
        said = [f"Connections are short: {full}."] if full else []
        said += [f"Root blocker left alone: {root}." for root in spared]
        said += [f"Idle transactions left alone: {len(leaks)}; look for the leak."] if leaks else []
        for name, advice in _ADVICE.items():
            finding = findings.get(name)
            if finding and finding.status is FindingStatus.UNKNOWN:
                said.append(f"The use of the {name} is unknown: {finding.summary}.")
            elif finding and finding.status is FindingStatus.PROBLEM:
                said.append(f"{finding.summary} {advice}")
        return said


_ADVICE = {
    "server": "Raising max_connections needs a DBA and a restart.",
    "pool": "More instances would open more connections, so nothing is scaled.",
}
_WHY = {
    "end_sessions": ("are", "idle in a transaction"),
    "cancel_queries": ("run", "one query"),
    "end_queries": ("still run", "the query that was cancelled before,"),
}
_WHO = ("pid", "backend_start")


def _roots(findings: Findings) -> dict[int, Blocker]:
    blocking = findings.evidence("blocking", Blocking)
    return {root.pid: root for root in (blocking.roots if blocking else ()) if not root.spared}


def _listed(findings: Findings, name: str) -> tuple[Session, ...]:
    listing = findings.evidence(name, SessionList)
    return listing.sessions if listing else ()


def _touchable(session: Session) -> bool:
    ours = session.application == OURSELVES
    return session.protected is None and not session.blocked_by and not ours


def _age(session: Session, kind: str) -> float:
    """Seconds that it is in the state that ``kind`` ends; negative when it is in another."""
    if kind == "end_sessions":
        idle = session.state.startswith("idle in transaction")
        return session.state_age.total_seconds() if idle else -1.0
    age = session.query_age if session.state == "active" else None
    return age.total_seconds() if age is not None else -1.0


def _identity(session: Session, kind: str) -> dict[str, JsonValue]:
    marker = "state_change" if kind == "end_sessions" else "query_start"
    since: datetime | None = getattr(session, marker)
    return {
        "pid": session.pid,
        "backend_start": session.backend_start.isoformat(),
        marker: since.isoformat() if since else None,
    }


def _key(identity: Mapping[str, JsonValue], kind: str) -> tuple[JsonValue, ...]:
    """What has to be gone: the query where it was only cancelled, else the whole session."""
    names = (*_WHO, "query_start") if kind == "cancel_queries" else _WHO
    return tuple(identity.get(name) for name in names)


def _item(kind: str, session: Session, roots: Mapping[int, Blocker]) -> Item:
    blocks = f", blocks {roots[session.pid].victims}" if session.pid in roots else ""
    return Item(
        key=f"pid {session.pid}",
        summary=f"{session.role} ({session.application or 'no name'}), {session.state}"
        f" for {_age(session, kind):.0f} s{blocks}",
        identity=_identity(session, kind),
    )


def _sessions(number: int, verb: str, what: str) -> str:
    one = "is" if verb == "are" else f"{verb}s"
    return f"1 session {one} {what}" if number == 1 else f"{number} sessions {verb} {what}"


def _judged(*, problem: bool) -> FindingStatus:
    return FindingStatus.PROBLEM if problem else FindingStatus.FINE


def _listing(name: str, sessions: list[Session], what: str) -> Finding:
    oldest = sorted(sessions, key=lambda s: (s.state_change, s.pid))[:SHOWN]
    pids = ", ".join(str(session.pid) for session in oldest[:5])
    return Finding(
        name=name,
        status=_judged(problem=bool(sessions)),
        summary=f"{_sessions(len(sessions), 'are', what)}{f' (pid {pids})' if pids else ''}.",
        value=SessionList(sessions=tuple(oldest), count=len(sessions)),
    )


async def _seen(reading: asyncio.Future[tuple[Session, ...]], view: View) -> Finding:
    return view(await asyncio.shield(reading))


async def _connectivity(database: Sessions, attempts: int) -> Finding:
    """Open new connections one after the other; that one fails is an answer, not a gap."""
    try:
        seconds = [await database.connect_once() for _ in range(attempts)]
        status = FindingStatus.FINE
        summary = f"A new connection works ({attempts} of {attempts}, {max(seconds):.2f} s)."
    except TemporaryError as error:
        status, summary = FindingStatus.PROBLEM, f"A new connection fails: {error}."
    return Finding(name="connectivity", status=status, summary=summary)
