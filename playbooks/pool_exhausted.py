"""Database connections run out: end what holds them without need, and nothing else.

Blockers first, then leaks, then long queries. A waiting victim is never touched, and nothing is
ever scaled: more instances would open more connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import partial
from typing import ClassVar

from pydantic import Field

from remediator import (
    POOL_ALERTS,
    SHORT,
    Assessment,
    Blocking,
    ConnectionBounds,
    Context,
    Culprits,
    Finding,
    Findings,
    FindingStatus,
    Mitigation,
    Playbook,
    Proposal,
    Sample,
    Sessions,
    SessionView,
    TemporaryError,
    alertnames,
    blocking_seen,
    ended_seen,
    leaks_seen,
    long_queries_seen,
    look_through,
    read_once,
    sessions_listed,
)

AGAIN = timedelta(seconds=30)
"""Time after which a pool that did not answer is looked at again."""


class PoolParameters(ConnectionBounds):
    """What a service may set."""

    pool_full: float = Field(default=0.9, ge=0.9, le=1)
    """Share of the connections beyond which leaked sessions are ended that block nobody."""

    @property
    def short(self) -> float:
        """Share of the connections beyond which queries are cancelled that block nobody."""
        return min(max(self.usage_limit, SHORT), self.pool_full)


class PoolExhausted(Playbook[PoolParameters]):
    """Frees database connections: root blockers, leaked transactions, then endless queries."""

    matches = (alertnames(*POOL_ALERTS),)
    targets: ClassVar[Mapping[str, str]] = {"database": "postgres"}
    senses = frozenset({"database", "prometheus"})
    levers = frozenset({"end_sessions", "cancel_queries", "end_queries"})
    explains = frozenset({"HighLatency"})
    parameters_type = PoolParameters

    async def diagnose(self, context: Context) -> Findings:
        """Look at server, sessions, pool and connectivity at the same time."""
        views: dict[str, SessionView] = {
            "blocking": blocking_seen,
            "leaks": partial(leaks_seen, self.parameters),
            "long_queries": partial(long_queries_seen, self.parameters),
        }
        return await self._look(context, views, connections=1)

    def propose(self, context: Context, findings: Findings) -> Proposal:
        """End idle holders first, then cancel long queries, then end those that stayed."""
        unknown = findings.unknown("blocking", "leaks", "long_queries")
        if unknown:
            return Proposal(reason=f"The sessions cannot be read: {'; '.join(unknown)}")
        culprits = Culprits(self.parameters, findings, context.tried)
        # what blocks nobody is touched only where connections are short, and that was measured
        full = self.parameters.shortage(findings, self.parameters.pool_full)
        short = self.parameters.shortage(findings, self.parameters.short)
        leaks = sessions_listed(findings, "leaks") if full else ()
        fresh, stubborn = culprits.queries(
            sessions_listed(findings, "long_queries") if short else ()
        )
        database = context.targets["database"]
        plans = (
            culprits.plan("end_sessions", database, culprits.holders(leaks)),
            culprits.plan("cancel_queries", database, fresh),
            culprits.plan("end_queries", database, stubborn),
        )
        chosen = tuple(plan for plan in plans if plan is not None)
        reason = chosen[0].reason if chosen else self._unproven(findings, short)
        said = [reason, *self._advice(findings, chosen, short)]
        wait = None if chosen else self._look_again(findings)
        return Proposal(mitigations=chosen, reason=" ".join(said), wait=wait)

    async def verify(self, context: Context, mitigation: Mitigation) -> Sample:
        """Better when the connections are free again, for the application as for a new one."""
        views = {"ended": partial(ended_seen, self.parameters, mitigation)}
        findings = await self._look(context, views, connections=3)
        unknown = findings.unknown(*findings)
        problems = [f.summary for f in findings.values() if f.status is FindingStatus.PROBLEM]
        short = self.parameters.shortage(findings, self.parameters.short)
        problems += [f"Connections are still short: {short}."] if short else []
        if unknown:
            assessment, evidence = Assessment.CANNOT_TELL, [f"{text}." for text in unknown]
        elif problems:
            assessment, evidence = Assessment.NOT_BETTER, problems
        else:
            assessment, evidence = Assessment.BETTER, [f.summary for f in findings.values()]
        return Sample(at=context.now, assessment=assessment, evidence=" ".join(evidence))

    async def _look(
        self, context: Context, views: Mapping[str, SessionView], *, connections: int
    ) -> Findings:
        """Check all at the same time; the sessions are read once, and every view sees the same."""
        database, parameters = context.sessions(), self.parameters
        async with read_once(database, parameters) as reading:
            checks = {name: look_through(reading, view) for name, view in views.items()}
            checks["server"] = parameters.server_finding(database)
            checks["connectivity"] = _connectivity(database, connections)
            if parameters.has_pool:
                checks["pool"] = parameters.pool_finding(context, reading)
            return await context.gather(checks)

    @staticmethod
    def _look_again(findings: Findings) -> timedelta | None:
        """Look again where a pool that did not answer decides whether sessions are touched."""
        pool = findings.get("pool")
        left = any(sessions_listed(findings, name) for name in ("leaks", "long_queries"))
        unseen = pool is not None and pool.status is FindingStatus.UNKNOWN
        return AGAIN if unseen and left else None

    def _unproven(self, findings: Findings, short: str | None) -> str:
        """Say what the measurements make of the alert where no session is to be touched."""
        looked = [name for name in ("pool", "server", "connectivity") if name in findings]
        calm = all(findings[name].status is FindingStatus.FINE for name in looked)
        if short or not calm or findings["blocking"].status is not FindingStatus.FINE:
            return "No session is proven to be the cause."
        seen = " ".join(findings[name].summary for name in looked)
        if not self.parameters.has_pool:
            return f"The alert is not proven, so nothing is touched: no pool is measured. {seen}"
        return f"The alert is contradicted by what is measured, so nothing is touched. {seen}"

    def _advice(
        self, findings: Findings, chosen: Iterable[Mitigation], short: str | None
    ) -> list[str]:
        """Say what stands behind the choice, what was left alone, and what a human should do."""
        touched = {item.identity["pid"] for plan in chosen for item in plan.items}
        blocking = findings.evidence("blocking", Blocking)
        spared = [r for r in (blocking.roots if blocking else ()) if r.pid not in touched]
        leaks = [s for s in sessions_listed(findings, "leaks") if s.pid not in touched]
        said = [f"Connections are short: {short}."] if short else []
        said += [f"Root blocker left alone: {root}." for root in spared]
        said += [f"Idle transactions left alone: {len(leaks)}; look for the leak."] if leaks else []
        queries = [s for s in sessions_listed(findings, "long_queries") if s.pid not in touched]
        pids = ", ".join(f"pid {s.pid}" for s in queries[:5])
        said += [f"Long queries left alone: {len(queries)} ({pids})."] if queries else []
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


async def _connectivity(database: Sessions, attempts: int) -> Finding:
    """Open new connections one after the other; that one fails is an answer, not a gap."""
    try:
        seconds = [await database.connect_once() for _ in range(attempts)]
        status = FindingStatus.FINE
        summary = f"A new connection works ({attempts} of {attempts}, {max(seconds):.2f} s)."
    except TemporaryError as error:
        status, summary = FindingStatus.PROBLEM, f"A new connection fails: {error}."
    return Finding(name="connectivity", status=status, summary=summary)
