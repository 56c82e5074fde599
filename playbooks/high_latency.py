"""A service is slow: find the bottleneck first, then propose the one lever that fits it.

Lock, slow query, connections, CPU, migration, recent release, cache, in this order. The first that
is proven decides; what cannot be seen ends the search, since the bottleneck may be there. Only a
migration that is under way may be stopped while the CPU is unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import ClassVar, NamedTuple, Self

from pydantic import Field, model_validator

from remediator import (
    POOL_ALERTS,
    Assessment,
    Blocking,
    CacheBounds,
    ConnectionBounds,
    Context,
    CpuUse,
    Culprits,
    Duration,
    EvidenceBounds,
    Finding,
    Findings,
    FindingStatus,
    Hindrance,
    Latency,
    MemoryUse,
    MigrationList,
    Migrations,
    Mitigation,
    Playbook,
    PrefixUse,
    Proposal,
    Release,
    ReleaseBounds,
    Risk,
    Sample,
    ScaleBounds,
    SessionView,
    Verification,
    alertnames,
    blocking_seen,
    ended_seen,
    listed_names,
    long_queries_seen,
    look_through,
    read_once,
    rolled_out,
    rollout_data,
    sessions_listed,
    sessions_that,
    traces_read,
)

AGAIN = timedelta(seconds=30)
"""Time after which what may pass by itself is looked at again."""
SHOWN = 10

Checks = dict[str, Awaitable[Finding]]


class LatencyParameters(ConnectionBounds, ReleaseBounds, ScaleBounds, CacheBounds, EvidenceBounds):
    """What a service may set."""

    lock_wait_s: float = Field(default=5, ge=0)
    """Seconds up to which it is ordinary that a session waits for a lock."""
    settle: Duration | None = None
    """Time after a change whose samples do not count; none: as long as verification's `hold`."""
    verification: Verification = Verification(
        interval=timedelta(seconds=30), deadline=timedelta(minutes=15)
    )
    """Runbooks: within the limit for 5 minutes."""

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        if self.settling >= self.verification.deadline:
            raise ValueError("settle should be below verification's deadline")
        return self

    @property
    def settling(self) -> timedelta:
        """Time after a change in which a measured latency is still partly of before."""
        return self.verification.hold if self.settle is None else self.settle


class Answer(NamedTuple):
    """What one step of the search says."""

    said: str
    plan: Mitigation | None = None
    ends: bool = False
    """Whether the search ends here without a lever."""
    wait: timedelta | None = None


class HighLatency(Playbook[LatencyParameters]):
    """Cures a slow service at its proven bottleneck: one lever, and nothing on suspicion."""

    matches = (
        alertnames(
            "HighLatency",
            "HighLatencyP95",
            "HighAPILatencyP95",
            "CriticalAPILatencyP99",
            "DegradedPerformance",
        ),
    )
    targets: ClassVar[Mapping[str, str]] = {}
    optional: ClassVar[Mapping[str, str]] = {
        "database": "postgres",
        "workload": "kubernetes",
        "admin": "http",
        "cache": "redis",
    }
    senses = frozenset({"database", "workload", "admin", "cache", "prometheus"})
    levers = frozenset(
        {
            "end_sessions",
            "cancel_queries",
            "end_queries",
            "scale",
            "set_migration",
            "undo_rollout",
            "unlink_prefix",
        }
    )
    parameters_type = LatencyParameters

    async def diagnose(self, context: Context) -> Findings:
        """Look at everything that the service has, at the same time."""
        parameters, checks = self.parameters, Checks()
        views: dict[str, SessionView] = {
            "blocking": blocking_seen,
            "long_queries": partial(long_queries_seen, parameters),
        }
        if _has_deployment(context):
            checks |= parameters.scale_checks(context)
            if parameters.undo_release:
                gitops = parameters.allow_gitops
                checks["release"] = parameters.release_finding(context, allow_gitops=gitops)
        if isinstance(context.ports.get("admin"), Migrations):
            checks["migrations"] = _migrations(context)
        if parameters.cache_prefix and "cache" in context.targets:
            checks["cache"] = parameters.cache_finding(context)
            checks["prefix"] = parameters.prefix_finding(context)
        looking = self._look(context, views, checks)
        if "release" not in checks:  # then no pod is ever replaced
            return await looking
        found, traces = await asyncio.gather(looking, traces_read(context))
        return Findings(found | traces)

    def propose(self, context: Context, findings: Findings) -> Proposal:
        """Rule one bottleneck out after the other, until one is proven or cannot be seen."""
        said: list[str] = []
        for step in (
            self._latency,
            self._lock,
            self._query,
            self._connections,
            self._cpu,
            self._migration,
            self._unmeasured,
            self._release,
            self._cache,
        ):
            answer = step(context, findings)
            if answer.plan or answer.ends:
                plans = (answer.plan,) if answer.plan else ()
                reason = " ".join([answer.said, *said])
                proposal = Proposal(mitigations=plans, reason=reason, wait=answer.wait)
                return self.parameters.kept_first(proposal, findings)
            said += [answer.said] if answer.said else []
        reason = " ".join(["No bottleneck is proven.", *said])
        asked = self._asked(context, findings)
        return Proposal(mitigations=(asked,) if asked else (), reason=reason)

    async def verify(self, context: Context, mitigation: Mitigation) -> Sample:
        """Better when the latency is within its limit, and nothing else is worse."""
        checks = Checks()
        if mitigation.kind in {"scale", "undo_rollout"}:
            checks["rollout"] = rolled_out(context, mitigation)
        if mitigation.kind == "unlink_prefix":
            checks["cache"] = self.parameters.cache_finding(context)
        if mitigation.kind == "set_migration":
            checks["migrations"] = _lowered(context, mitigation)
        views = {"ended": partial(ended_seen, self.parameters, mitigation)}
        findings = await self._look(context, views, checks)
        problems = [f.summary for f in findings.values() if f.status is FindingStatus.PROBLEM]
        doubts = [*self._early(context), *(f"{text}." for text in findings.unknown(*findings))]
        if problems:
            assessment, evidence = Assessment.NOT_BETTER, problems
        elif doubts:
            assessment, evidence = Assessment.CANNOT_TELL, doubts
        else:
            assessment, evidence = Assessment.BETTER, [f.summary for f in findings.values()]
        return Sample(
            at=context.now,
            assessment=assessment,
            evidence=" ".join(evidence),
            data=rollout_data(findings),
        )

    async def _look(
        self, context: Context, views: Mapping[str, SessionView], checks: Checks
    ) -> Findings:
        """Check latency, database and pool, and what else is given, all at the same time."""
        parameters, reading = self.parameters, None
        checks["latency"] = parameters.latency_finding(context)
        async with AsyncExitStack() as stack:
            if "database" in context.targets:
                database = context.sessions()
                opened = read_once(database, parameters)
                reading = await stack.enter_async_context(opened)
                checks |= {name: look_through(reading, view) for name, view in views.items()}
                checks["server"] = parameters.server_finding(database)
            if parameters.has_pool:
                checks["pool"] = parameters.pool_finding(context, reading)
            return await context.gather(checks)

    def _early(self, context: Context) -> list[str]:
        """Say that a measurement is still partly of before the change, or nothing."""
        past, settling = context.now - context.incident.phase_since, self.parameters.settling
        if not self.parameters.is_measured or past >= settling:
            return []
        age, least = past.total_seconds(), settling.total_seconds()
        return [f"The change is {age:.0f} s old; samples count after {least:g} s."]

    # --- one step each, in the order of the search ---------------------------------------------

    def _latency(self, context: Context, findings: Findings) -> Answer:
        if not self.parameters.is_measured:
            return Answer("The latency is not measured here; the firing alert is taken as proof.")
        latency = findings.evidence("latency", Latency)
        if latency is None:
            return _unseen(findings.unknown("latency"))
        if latency.within:
            said = f"The latency is within its limit now ({latency}): waiting for the alert to resolve."
            return Answer(said, ends=True, wait=AGAIN)
        return Answer(f"The latency is {latency}.")

    def _lock(self, context: Context, findings: Findings) -> Answer:
        if "database" not in context.targets:
            return Answer("There is no database to look at.")
        unknown = findings.unknown("blocking", "long_queries")
        blocking = findings.evidence("blocking", Blocking)
        if unknown or blocking is None:
            return _unseen(unknown)
        culprits = Culprits(self.parameters, findings, context.tried)
        plan = culprits.plan("end_sessions", context.targets["database"], culprits.holders())
        if plan:
            return Answer(f"A lock is the bottleneck. {plan.reason}", plan)
        if not blocking.waiting:
            return Answer("No session waits for a lock.")
        waiting = sessions_that(blocking.waiting, "wait", "for a lock")
        limit = self.parameters.lock_wait_s
        if blocking.longest.total_seconds() <= limit:
            return Answer(f"{waiting}, none for more than {limit:g} s: that is ordinary.")
        if culprits.blocks_for_long:
            return Answer(f"{waiting}, behind a query that runs for too long.")
        return _left_to_a_human(blocking, waiting)

    def _query(self, context: Context, findings: Findings) -> Answer:
        if "database" not in context.targets:
            return Answer("")
        limit, unproven = self.parameters.kill_after_s, self.parameters.unproven(findings)
        culprits = Culprits(self.parameters, findings, context.tried)
        proven = () if unproven else sessions_listed(findings, "long_queries")
        plan = culprits.cut(context.targets["database"], proven)
        if plan:
            return Answer(f"A slow query is the bottleneck. {plan.reason}", plan)
        if not unproven:
            return Answer(f"No query that may be touched runs for more than {limit:g} s.")
        named = listed_names(f"pid {s.pid} ({s.role}, {s.text or s.statement})" for s in unproven)
        return Answer(
            f"{sessions_that(len(unproven), 'run', 'one query')} for more than {limit:g} s: {named};"
            " no one waits for them, so they are not proven to be the bottleneck."
        )

    def _asked(self, context: Context, findings: Findings) -> Mitigation | None:
        """Ask a human about long queries that are not proven to be the bottleneck."""
        if "database" not in context.targets:
            return None
        asks = "no one waits for these queries, and nothing else is proven"
        culprits = Culprits(self.parameters, findings, context.tried)
        unproven = self.parameters.unproven(findings)
        return culprits.cut(context.targets["database"], unproven, asks)

    def _connections(self, context: Context, findings: Findings) -> Answer:
        """Leave short connections to their own playbook: more replicas would open more."""
        beside = sorted({alert.name for alert in context.beside if alert.name in POOL_ALERTS})
        if beside:
            said = f"Connections are short, says {', '.join(beside)}: they come first."
            return Answer(said, ends=True, wait=AGAIN)
        looked = [name for name in ("server", "pool") if name in findings]
        unknown = findings.unknown(*looked)
        if unknown:
            return _unseen(unknown)
        found = " ".join(findings[name].summary for name in looked)
        if any(findings[name].status is FindingStatus.PROBLEM for name in looked):
            said = f"Connections are short, and more replicas would open more. {found}"
            return Answer(said, ends=True, wait=AGAIN)
        return Answer(found)

    def _cpu(self, context: Context, findings: Findings) -> Answer:
        parameters = self.parameters
        if not _has_deployment(context):
            return Answer("There is no deployment to look at.")
        if not parameters.scale:
            return Answer("Nothing may be scaled here, so the CPU was not looked at.")
        use = findings.evidence("cpu", CpuUse)
        if use is None:  # a migration under way speaks for itself
            unknown = "Nothing is scaled while the CPU is unknown"
            return Answer(f"{unknown}: set cpu_query, or scale: false for what is never scaled.")
        if use.share < parameters.cpu_gate:
            return Answer(findings["cpu"].summary)
        busy = f"The CPU is busy. {findings['cpu'].summary}"
        if _tried(context, "scale"):
            return Answer(f"{busy} More replicas were tried before.")
        grounds = parameters.grounds(findings)
        if isinstance(grounds, Hindrance):
            return _hindered(busy, grounds)
        found = parameters.scale_hindrance(grounds)
        if found:
            return _hindered(busy, found)
        hot = f"The CPU is the bottleneck. {findings['cpu'].summary}"
        plan = parameters.scale_plan(context.targets["workload"], grounds, hot)
        return Answer(plan.reason, plan)

    def _migration(self, context: Context, findings: Findings) -> Answer:
        if "migrations" not in findings:
            return Answer("There are no migrations to look at.")
        found = findings.evidence("migrations", MigrationList)
        if found is None:
            return _unseen(findings.unknown("migrations"))
        tried = {item.key for plan in context.tried for item in plan.items}
        moved = [one for one in found.moving if one.pair not in tried]
        if not moved:
            return Answer(findings["migrations"].summary)
        named = listed_names(one.pair for one in moved)
        said = f"{findings['migrations'].summary} To 0: {named}; only a human sets them back."
        return Answer(said, MigrationList.stop(context.targets["admin"], moved, said, Risk.MEDIUM))

    def _unmeasured(self, context: Context, findings: Findings) -> Answer:
        """End the search where the CPU may be the bottleneck, and no migration is it either."""
        known = "cpu" not in findings or findings.evidence("cpu", CpuUse) is not None
        return Answer("") if known else _unseen(findings.unknown("cpu"))

    def _release(self, context: Context, findings: Findings) -> Answer:
        if "release" not in findings:
            return Answer("No release may be undone here.")
        if _tried(context, "undo_rollout"):
            return Answer("A release was undone before.")
        unknown, summary = findings.unknown("release"), findings["release"].summary
        if unknown:
            return _unseen(unknown)
        release = findings.evidence("release", Release)
        if release is None:
            return Answer(f"No release is proven to be the cause: {summary}")
        why = f"A recent release is the bottleneck. {summary}"
        gitops = self.parameters.allow_gitops
        plan = release.plan(context.targets["workload"], why, allow_gitops=gitops)
        return Answer(plan.reason, plan)

    def _cache(self, context: Context, findings: Findings) -> Answer:
        prefix = self.parameters.cache_prefix
        if "cache" not in findings or prefix is None:
            return Answer("No cache may be emptied here.")
        found, unknown = findings["cache"], findings.unknown("cache")
        if unknown:
            return _unseen(unknown)
        if found.status is not FindingStatus.PROBLEM or _tried(context, "unlink_prefix"):
            return Answer(f"The cache is not proven to be the cause: {found.summary}")
        memory, use = findings.evidence("cache", MemoryUse), findings.evidence("prefix", PrefixUse)
        if memory is None or use is None:
            return _unseen(findings.unknown("prefix"))
        doubt = self.parameters.prefix_doubt(memory, use)
        if doubt:
            return Answer(f"{found.summary} Its keys are not removed: {doubt}.")
        why = f"The cache is the bottleneck. {found.summary} {findings['prefix'].summary}"
        plan = self.parameters.unlink_plan(context.targets["cache"], prefix, why)
        return Answer(plan.reason, plan)


def _unseen(unknown: list[str]) -> Answer:
    """End the search: the bottleneck may be where we cannot look."""
    said = f"Nothing is changed while this is unknown: {'; '.join(unknown)}."
    return Answer(said, ends=True, wait=AGAIN)


def _left_to_a_human(blocking: Blocking, waiting: str) -> Answer:
    """Name the root blockers that are not ours to end; those that may pass are looked at again."""
    roots = "; ".join(map(str, blocking.roots[:SHOWN])) or "a cycle, which the server ends"
    may_pass = not blocking.roots or any(not root.spared for root in blocking.roots)
    said = f"A lock is the bottleneck, and nothing is scaled: {waiting}; root blockers: {roots}."
    return Answer(said, ends=True, wait=AGAIN if may_pass else None)


def _hindered(hot: str, found: Hindrance) -> Answer:
    said = f"{hot} It is not scaled: {found.reason}."
    return Answer(said, ends=found.passes, wait=AGAIN if found.passes else None)


def _tried(context: Context, kind: str) -> bool:
    return any(plan.kind == kind for plan in context.tried)


def _has_deployment(context: Context) -> bool:
    return "workload" in context.targets and "deployment" in context.targets["workload"].locator


async def _migrations(context: Context) -> Finding:
    return MigrationList(migrations=await context.migrations().migrations()).finding()


async def _lowered(context: Context, mitigation: Mitigation) -> Finding:
    migrations = MigrationList(migrations=await context.migrations().migrations())
    return migrations.stopped(*(item.key for item in mitigation.items))
