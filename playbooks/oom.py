"""Containers run out of memory: recycle the one worst pod, or raise the limit once, up to its cap.

A killed container has been recycled already, so only more memory can help it; a leak eats any
memory, so its limit is raised at most once, to buy time for a human. Databases are never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import ClassVar, Literal

from pydantic import Field

from remediator import (
    EFFECT,
    Assessment,
    BackendUnavailable,
    ContainerState,
    Context,
    Duration,
    Finding,
    Findings,
    FindingStatus,
    Item,
    Kill,
    Memory,
    Mitigation,
    Parameters,
    PermanentError,
    Playbook,
    Pod,
    PodMemory,
    Proposal,
    Risk,
    Sample,
    Value,
    Verification,
    Workload,
    WorkloadEvent,
    alertnames,
    in_mebibytes,
    pod_memory,
    recent_kills,
)

STEP = timedelta(minutes=1)
"""Between two samples of the memory's growth."""
SHOWN = 10


class OOMParameters(Parameters):
    """What a service may set."""

    usage_limit: float = Field(default=0.85, gt=0, le=1)
    """Share of its limit from which on a pod's memory is a problem (runbooks: 85 %)."""
    memory_max: Memory | None = None
    """Most that a container's limit may be raised to, such as `4Gi`; none: never raised."""
    memory_step: float = Field(default=2.0, gt=1, le=2)
    """Times that one change raises the limit."""
    memory_query: str | None = None
    """PromQL with the bytes in use, a series a pod (label `pod`); none: usage is not known."""
    recycle: Literal["evict", "restart"] = "evict"
    """What is done when memory is short and nothing was killed: the worst pod, or all in turn."""
    recent: Duration = timedelta(minutes=30)
    """Age up to which a kill counts, and time over which growth is looked at."""
    leak_growth: float = Field(default=0.1, gt=0, le=1)
    """Share of the limit by which a pod has to grow in `recent` to be a leak."""
    allow_gitops: bool = False
    """Change also what a GitOps controller may change back."""
    verification: Verification = Verification(
        interval=timedelta(seconds=30),
        hold=timedelta(minutes=15),
        hold_resolved=timedelta(minutes=5),
        deadline=timedelta(minutes=25),
    )
    """Runbooks: no kill in 15 minutes."""


class Kills(Value):
    """The recent kills, newest first."""

    kills: tuple[Kill, ...]


class MemoryOfPods(Value):
    """The pods' memory, the fullest first."""

    pods: tuple[PodMemory, ...]


class Events(Value):
    """The newest events."""

    events: tuple[WorkloadEvent, ...]


class OOM(Playbook[OOMParameters]):
    """Cures want of memory: one pod recycled, or a limit raised once, inside its cap."""

    matches = (
        alertnames(
            "PodOOMKilled",
            "ContainerOOMKilled",
            "MemoryLeakSuspected",
            "MemoryPressure",
            "HighMemoryUsage",
            "OOM",
        ),
    )
    targets: ClassVar[Mapping[str, str]] = {"workload": "kubernetes"}
    senses = frozenset({"workload", "prometheus"})
    levers = frozenset({"evict_pod", "restart_rollout", "set_memory"})
    parameters_type = OOMParameters

    async def diagnose(self, context: Context) -> Findings:
        """Look at the deployment, its pods, the kills, the memory and the events together."""
        checks = {
            "deployment": self._deployment(context),
            "pods": _pods(context),
            "kills": self._kills(context),
            "events": _events(context),
        }
        if self.parameters.memory_query:
            checks["memory"] = self._memory(context)
        return await context.gather(checks)

    def propose(self, context: Context, findings: Findings) -> Proposal:
        """Raise the limit where something was killed at it, else recycle what is full."""
        if "deployment" not in context.targets["workload"].locator:
            return Proposal(reason="Only deployments are touched: a database needs a human.")
        unknown = findings.unknown("deployment", "pods", "kills")
        workload = findings.evidence("deployment", Workload)
        if unknown or workload is None:
            return Proposal(reason=f"The workload cannot be read: {'; '.join(unknown)}.")
        hindrance = self._hindrance(workload)
        if hindrance:
            return Proposal(reason=f"Nothing is changed: {hindrance}.")
        evidence = findings.evidence("kills", Kills)
        if evidence and evidence.kills:
            return self._after_kills(context, findings, workload, evidence.kills)
        return self._before_kills(context, findings)

    async def verify(self, context: Context, mitigation: Mitigation) -> Sample:
        """Better when nothing was killed or restarted since, and all pods are ready again."""
        since = _since(context, mitigation, context.incident.phase_since)
        checks = {"rollout": self._rolled_out(context), "since": since}
        if self.parameters.memory_query:
            checks["memory"] = self._memory(context)
        findings = await context.gather(checks)
        problems = [f.summary for f in findings.values() if f.status is FindingStatus.PROBLEM]
        unknown = findings.unknown(*findings)
        if problems:
            assessment, said = Assessment.NOT_BETTER, problems
        elif unknown:
            assessment, said = Assessment.CANNOT_TELL, [f"{text}." for text in unknown]
        else:
            assessment, said = Assessment.BETTER, [f.summary for f in findings.values()]
        return Sample(at=context.now, assessment=assessment, evidence=" ".join(said))

    # --- looking -------------------------------------------------------------------------------

    async def _deployment(self, context: Context) -> Finding:
        workload = await context.workloads().workload(context.targets["workload"])
        hindrance = self._hindrance(workload)
        return Finding(
            name="deployment",
            status=_judged(problem=bool(hindrance) or workload.ready < workload.replicas),
            summary=f"{workload.ready} of {workload.replicas} replicas are ready"
            f"{f'; {hindrance}' if hindrance else ''}.",
            value=workload,
        )

    async def _rolled_out(self, context: Context) -> Finding:
        finding = await self._deployment(context)
        workload = finding.value
        rollout = workload.rollout if isinstance(workload, Workload) else None
        problem = finding.status is FindingStatus.PROBLEM or rollout is not None
        return finding.model_copy(update={"name": "rollout", "status": _judged(problem=problem)})

    def _hindrance(self, workload: Workload) -> str | None:
        if workload.replicas == 0:
            return "it is scaled to 0"
        if workload.paused:
            return "its rollout is paused"
        if workload.rollout:
            return f"a rollout is in progress ({workload.rollout})"
        if workload.gitops and not self.parameters.allow_gitops:
            return f"{workload.gitops} owns it and would undo the change"
        return None

    async def _kills(self, context: Context) -> Finding:
        pods = await context.pods().pods(context.targets["workload"])
        oldest = context.now - self.parameters.recent
        kills = sorted(recent_kills(pods, oldest), key=lambda kill: kill.at, reverse=True)
        named = "; ".join(
            f"{k.container} of {k.pod} at {k.at:%H:%M:%S}, limit {in_mebibytes(k.limit)},"
            f" {k.restarts} restarts"
            for k in kills[:SHOWN]
        )
        return Finding(
            name="kills",
            status=_judged(problem=bool(kills)),
            summary=f"Killed for want of memory: {named}." if kills else "Nothing was killed.",
            value=Kills(kills=tuple(kills)),
        )

    async def _memory(self, context: Context) -> Finding:
        metrics = context.metrics
        if metrics is None or self.parameters.memory_query is None:
            raise PermanentError("no Prometheus is configured for this service")
        pods = await context.pods().pods(context.targets["workload"])
        start = context.now - self.parameters.recent
        points = await metrics.range(
            self.parameters.memory_query, start=start, end=context.now, step=STEP
        )
        used = [use for pod in pods if (use := pod_memory(pod, points, context.now)) is not None]
        if not used:
            raise BackendUnavailable("the query returns nothing recent about these pods")
        used.sort(key=lambda use: (use.share, use.used), reverse=True)
        high = [use for use in used if use.share >= self.parameters.usage_limit]
        leaks = [use for use in used if self._leaks(use)]
        worst = used[0]
        return Finding(
            name="memory",
            status=_judged(problem=bool(high)),
            summary=f"{worst.pod} uses most: {in_mebibytes(worst.used)} of {in_mebibytes(worst.limit)}"
            f" ({worst.share:.0%}); {len(high)} of {len(used)} pods are above"
            f" {self.parameters.usage_limit:.0%}, {len(leaks)} grow steadily.",
            value=MemoryOfPods(pods=tuple(used)),
        )

    def _leaks(self, use: PodMemory) -> bool:
        needed = self.parameters.leak_growth * (use.limit or use.used)
        return use.growth is not None and use.growth >= needed

    # --- choosing ------------------------------------------------------------------------------

    def _after_kills(
        self, context: Context, findings: Findings, workload: Workload, kills: tuple[Kill, ...]
    ) -> Proposal:
        """Raise the limit of the container that was killed last, once."""
        killed, cap = kills[0], self.parameters.memory_max
        container = next((c for c in workload.containers if c.name == killed.container), None)
        limit = container.memory_limit if container else None
        was = f"{killed.container} was killed at its limit of {in_mebibytes(limit)}"
        if limit is None:
            return Proposal(
                reason=f"{killed.container} was killed without a limit: its node is short."
            )
        if killed.limit != limit:
            return Proposal(
                reason=f"{was}, but the limit has changed since: wait for the new pods."
            )
        if cap is None:
            return Proposal(reason=f"{was}; memory_max is not set, so it is not raised.")
        wanted = min(int(limit * self.parameters.memory_step), cap)
        if wanted <= limit:
            return Proposal(reason=f"{was}, which is the cap of {in_mebibytes(cap)} already.")
        leak = self._leak(findings)
        if leak and _raised_before(context, workload):
            return Proposal(reason=f"{was}, was raised before, and {leak}: find the leak.")
        why = f"{was} ({len(kills)} kills); it is raised to {in_mebibytes(wanted)}, once"
        reason = f"{why}; {leak}, so it only buys time." if leak else f"{why}."
        plan = self._raise(context, killed.container, wanted, cap, reason)
        return Proposal(mitigations=(plan,), reason=reason)

    def _raise(
        self, context: Context, container: str, wanted: int, cap: int, reason: str
    ) -> Mitigation:
        return Mitigation(
            kind="set_memory",
            target=context.targets["workload"],
            reason=reason,
            parameters={
                "container": container,
                "limit": wanted,
                "cap": cap,
                "allow_gitops": self.parameters.allow_gitops,
            },
            risk=Risk.MEDIUM,
            reversible=True,
        )

    def _before_kills(self, context: Context, findings: Findings) -> Proposal:
        """Recycle while usage is high, before the kernel does it at the worst moment."""
        if self.parameters.memory_query is None:
            return Proposal(reason="Nothing was killed, and usage is not known: set memory_query.")
        memory = findings.evidence("memory", MemoryOfPods)
        if memory is None:
            unknown = findings.unknown("memory")[0]
            return Proposal(reason=f"Nothing was killed, and usage is unknown: {unknown}.")
        done = {item.identity.get("uid") for plan in context.tried for item in plan.items}
        limit = self.parameters.usage_limit
        high = [use for use in memory.pods if use.share >= limit and use.uid not in done]
        if not high:
            return Proposal(reason="Nothing was killed, and no other pod is short of memory.")
        worst = high[0]
        reason = f"{worst.pod} uses {worst.share:.0%} of {in_mebibytes(worst.limit)}"
        leak = self._leak(findings)
        reason = f"{reason}; {leak}: find the leak." if leak else f"{reason}."
        return Proposal(mitigations=(self._recycle(context, worst, reason),), reason=reason)

    def _recycle(self, context: Context, worst: PodMemory, reason: str) -> Mitigation:
        target, gitops = context.targets["workload"], self.parameters.allow_gitops
        if self.parameters.recycle == "restart":
            return Mitigation(
                kind="restart_rollout",
                target=target,
                reason=reason,
                parameters={"allow_gitops": gitops},
                risk=Risk.MEDIUM,
            )
        item = Item(
            key=f"pod {worst.pod}",
            summary=f"{worst.share:.0%} of its memory is used",
            identity={"pod": worst.pod, "uid": worst.uid},
        )
        return Mitigation(
            kind="evict_pod",
            target=target,
            reason=reason,
            items=(item,),
            parameters={"allow_gitops": gitops},
            risk=Risk.LOW,
        )

    def _leak(self, findings: Findings) -> str | None:
        memory = findings.evidence("memory", MemoryOfPods)
        leaks = [use for use in memory.pods if self._leaks(use)] if memory else []
        return f"{len(leaks)} pods grow steadily" if leaks else None


async def _pods(context: Context) -> Finding:
    pods = await context.pods().pods(context.targets["workload"])
    bad = [pod for pod in pods if not pod.ready and not pod.terminating]
    named = "; ".join(f"{pod.name} ({_states(pod.containers)})" for pod in bad[:SHOWN])
    restarts = sum(container.restarts for pod in pods for container in pod.containers)
    return Finding(
        name="pods",
        status=_judged(problem=bool(bad) or not pods),
        summary=f"{len(pods)} pods, {restarts} restarts; not ready: {named or 'none'}.",
    )


async def _events(context: Context) -> Finding:
    events = await context.workloads().events(context.targets["workload"])
    warnings = [event for event in events if event.warning]
    named = "; ".join(f"{e.reason} {e.about} ({e.count})" for e in warnings[:SHOWN])
    return Finding(
        name="events",
        status=_judged(problem=bool(warnings)),
        summary=f"Warnings: {named or 'none'}.",
        value=Events(events=tuple(events[:SHOWN])),
    )


async def _since(context: Context, mitigation: Mitigation, since: datetime) -> Finding:
    """Look whether anything ended since, and what was evicted is gone."""
    pods = await context.pods().pods(context.targets["workload"])
    evicted = {item.identity.get("uid") for item in mitigation.items}
    problems = [f"{pod.name} is still there" for pod in pods if pod.uid in evicted]
    for pod in pods:
        if not pod.terminating and pod.uid not in evicted:
            problems += [f"{c.name} of {pod.name} {text}" for c, text in _troubles(pod, since)]
    return Finding(
        name="since",
        status=_judged(problem=bool(problems) or not pods),
        summary=f"Since the change: {'; '.join(problems)}."
        if problems
        else f"Nothing was killed or restarted in {len(pods)} pods since the change.",
    )


def _troubles(pod: Pod, since: datetime) -> Iterable[tuple[ContainerState, str]]:
    for container in pod.containers:
        ended = container.ended
        finished = ended.finished_at if ended else None
        if container.state == "waiting" and container.reason == "CrashLoopBackOff":
            yield container, "is in a crash loop"
        elif ended and finished and finished >= since and ended.reason != "Completed":
            yield container, f"ended: {ended.reason} ({ended.exit_code})"


def _raised_before(context: Context, workload: Workload) -> bool:
    effect = workload.annotations.get(EFFECT, "")
    ours = "/set_memory/" in effect and not effect.endswith("/reverted")
    return ours or any(plan.kind == "set_memory" for plan in context.tried)


def _states(containers: Iterable[ContainerState]) -> str:
    return ", ".join(
        f"{c.name} {c.reason or c.state}" for c in containers if not (c.init or c.ready)
    )


def _judged(*, problem: bool) -> FindingStatus:
    return FindingStatus.PROBLEM if problem else FindingStatus.FINE
