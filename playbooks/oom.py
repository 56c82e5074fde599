"""Containers run out of memory: recycle the one worst pod, or raise the limit once, up to its cap.

A killed container has been recycled already, so only more memory can help it; a leak eats any
memory, so its limit is raised at most once, to buy time for a human. What the containers wrote is
kept first: a restart deletes it. Databases are never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import ClassVar, Literal

from pydantic import Field

from remediator import (
    Assessment,
    BackendUnavailable,
    Context,
    Duration,
    EvidenceBounds,
    Finding,
    Findings,
    FindingStatus,
    Hindrance,
    Item,
    Kills,
    Memory,
    MemoryOfPods,
    Mitigation,
    PermanentError,
    Playbook,
    PodMemory,
    Point,
    Proposal,
    Risk,
    Room,
    Sample,
    Standing,
    Verification,
    Workload,
    alertnames,
    cramped,
    hindrance,
    in_mebibytes,
    limit_to_raise,
    memory_of,
    memory_was_raised,
    points_of,
    raised,
    recent_kills,
    rolled_out,
    rollout_data,
    room_finding,
    standing,
    traces_read,
    troubles_since,
    whole_mebibytes,
)

STEP = timedelta(minutes=1)
"""Between two samples of the memory's growth."""
AGAIN = timedelta(seconds=30)
"""Until what passes by itself is looked at again."""
ROLLING = 2
"""Pods that must be ready for a restart in turn."""
SHARE = 0.25
"""Of the pods that one incident may recycle; one at least."""
SHOWN = 10


class OOMParameters(EvidenceBounds):
    """What a service may set."""

    usage_limit: float = Field(default=0.85, gt=0, le=1)
    """Share of its limit from which on a pod's memory is a problem (runbooks: 85 %)."""
    memory_max: Memory | None = None
    """Most that a container's limit may be raised to, such as `4Gi`; none: never raised."""
    memory_step: float = Field(default=2.0, gt=1, le=2)
    """Times that one change raises the limit."""
    memory_query: str | None = Field(default=None, json_schema_extra={"series": True})
    """PromQL with the bytes in use, a series a pod (label `pod`); none: the cluster's own measure,
    which tells use and not growth."""
    recycle: Literal["evict", "restart"] = "evict"
    """What is done when memory is short and nothing was killed: the worst pod, or all in turn."""
    restart_gap: Duration = timedelta(minutes=30)
    """Least age of the oldest pod for a restart of all; younger ones were restarted just now."""
    recent: Duration = timedelta(minutes=30)
    """Age up to which a kill counts, and time over which growth is looked at."""
    leak_growth: float = Field(default=0.1, gt=0, le=1)
    """Share of the limit by which a pod has to grow in `recent` to be a leak."""
    stateful: bool = False
    """Touch also the members of a stateful set, one at a time, with the risk `high`."""
    allow_gitops: bool = False
    """Change also what a GitOps controller may change back."""
    verification: Verification = Verification(
        interval=timedelta(seconds=30),
        hold=timedelta(minutes=15),
        deadline=timedelta(minutes=25),
    )
    """Runbooks: no kill in 15 minutes (one of them: in 30)."""

    def impossible(self) -> dict[str, str]:
        """No limit is raised without a cap."""
        return {} if self.memory_max else {"set_memory": "no memory_max"}

    def needs(self) -> dict[str, frozenset[str]]:
        """Nothing is recycled while the use of memory is unknown."""
        recycling = () if self.memory_query else ("evict_pod", "restart_rollout")
        return dict.fromkeys(recycling, frozenset({"usage"}))


class OOM(Playbook[OOMParameters]):
    """Cures want of memory: a pod recycled, all in turn where most leak, or a limit raised once."""

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
        """Look at the deployment, its pods, kills, memory, events and logs together."""
        checks = {
            "deployment": self._deployment(context),
            "pods": _pods(context),
            "kills": self._kills(context),
            "memory": self._memory(context),
            "room": room_finding(context),
        }
        seen, written = await asyncio.gather(context.gather(checks), traces_read(context))
        return Findings(seen | written)

    def propose(self, context: Context, findings: Findings) -> Proposal:
        """Raise the limit where something was killed at it, else recycle what is full."""
        chosen = self._choose(context, findings)
        proposal = self.parameters.kept_first(chosen, findings)
        beside = sorted({alert.name for alert in context.beside})
        if not beside:
            return proposal
        also = f"Also firing on this service: {', '.join(beside[:SHOWN])}."
        said = {"reason": f"{proposal.reason} {also}"}
        plans = tuple(plan.model_copy(update=said) for plan in proposal.mitigations)
        return proposal.model_copy(update={"mitigations": plans, **said})

    async def verify(self, context: Context, mitigation: Mitigation) -> Sample:
        """Better when nothing was killed or restarted since, and all pods are ready again."""
        checks = {
            "rollout": rolled_out(context, mitigation),
            "since": _since(context, mitigation, context.incident.phase_since),
            "memory": self._memory(context),
        }
        findings = await context.gather(checks)
        killed = self.parameters.memory_query is None and mitigation.kind == "set_memory"
        needed = ["rollout", "since"] if killed else list(findings)  # the kill was the evidence
        problems = [f.summary for f in findings.values() if f.status is FindingStatus.PROBLEM]
        unknown = findings.unknown(*needed)
        if problems:
            assessment, said = Assessment.NOT_BETTER, problems
        elif unknown:
            assessment, said = Assessment.CANNOT_TELL, [f"{text}." for text in unknown]
        else:
            assessment, said = Assessment.BETTER, [findings[name].summary for name in needed]
        return Sample(
            at=context.now,
            assessment=assessment,
            evidence=" ".join(said),
            data=rollout_data(findings),
        )

    # --- looking -------------------------------------------------------------------------------

    async def _deployment(self, context: Context) -> Finding:
        workload = await context.workloads().workload(context.targets["workload"])
        hindered = hindrance(workload, allow_gitops=self.parameters.allow_gitops)
        return Finding(
            name="deployment",
            status=_judged(problem=hindered is not None or workload.ready < workload.replicas),
            summary=f"{workload.ready} of {workload.replicas} replicas are ready"
            f"{f'; {hindered.reason}' if hindered else ''}.",
            value=workload,
        )

    async def _kills(self, context: Context) -> Finding:
        pods = await context.pods().pods(context.targets["workload"])
        kills = recent_kills(pods, context.now - self.parameters.recent)
        status = _judged(problem=bool(kills.kills))
        return Finding(name="kills", status=status, summary=kills.summary, value=kills)

    async def _memory(self, context: Context) -> Finding:
        pods = await context.pods().pods(context.targets["workload"])
        memory = memory_of(pods, await self._points(context), context.now)
        if not memory.pods:
            raise BackendUnavailable("nothing recent is known about the memory of these pods")
        limit = self.parameters.usage_limit
        return Finding(
            name="memory",
            status=_judged(problem=bool(memory.above(limit))),
            summary=memory.summary(limit, self.parameters.leak_growth),
            value=memory,
        )

    async def _points(self, context: Context) -> tuple[Point, ...]:
        """Ask Prometheus over a time, or the cluster for what is used now."""
        query = self.parameters.memory_query
        if query is None:
            return points_of(await context.pods().usage(context.targets["workload"]))
        if context.metrics is None:
            raise PermanentError("no Prometheus is configured for this service")
        start = context.now - self.parameters.recent
        return await context.metrics.range(query, start=start, end=context.now, step=STEP)

    # --- choosing ------------------------------------------------------------------------------

    def _choose(self, context: Context, findings: Findings) -> Proposal:
        if "statefulset" in context.targets["workload"].locator and not self.parameters.stateful:
            reason = "Only deployments are touched: a database needs a human (stateful is false)."
            return Proposal(reason=reason)
        unknown = findings.unknown("deployment", "pods", "kills")
        workload = findings.evidence("deployment", Workload)
        pods, killed = findings.evidence("pods", Standing), findings.evidence("kills", Kills)
        if unknown or workload is None or pods is None or killed is None:
            return Proposal(reason=f"The workload cannot be read: {'; '.join(unknown)}.")
        hindered = hindrance(workload, allow_gitops=self.parameters.allow_gitops)
        if hindered:
            wait = AGAIN if hindered.passes else None
            return Proposal(reason=f"Nothing is changed: {hindered.reason}.", wait=wait)
        if killed.kills:
            return self._after_kills(context, findings, workload, killed, pods)
        return self._before_kills(context, findings, pods)

    def _after_kills(
        self,
        context: Context,
        findings: Findings,
        workload: Workload,
        found: Kills,
        pods: Standing,
    ) -> Proposal:
        """Raise the limit of the container that was killed last, once."""
        killed, cap = found.kills[0], self.parameters.memory_max
        container = limit_to_raise(killed, workload, pods)
        if isinstance(container, Hindrance):
            return Proposal(reason=f"{container.reason}.", wait=AGAIN if container.passes else None)
        limit, was = container.memory_limit or 0, killed.at_its_limit
        if cap is None:
            return Proposal(reason=f"{was}; memory_max is not set, so it is not raised.")
        wanted = min(whole_mebibytes(limit * self.parameters.memory_step), cap)
        if wanted <= limit:
            return Proposal(reason=f"{was}, which is the cap of {in_mebibytes(cap)} already.")
        memory = findings.evidence("memory", MemoryOfPods) or MemoryOfPods(pods=())
        growing = memory.leaking(self.parameters.leak_growth)
        if _tried(context, "set_memory") or (growing and memory_was_raised(workload)):
            again = f"{len(growing)} pods grow steadily" if growing else "that did not help"
            return Proposal(reason=f"{was}, was raised before, and {again}: find the leak.")
        room = findings.evidence("room", Room)
        short = cramped(container, wanted, room) if room else None
        if short:
            return Proposal(reason=f"{was}; it is not raised: {short}.")
        growth = memory.remark(self.parameters.leak_growth)
        unknown = "" if room else f"; unknown {'; '.join(findings.unknown('room'))}"
        reason = f"{was} ({len(found.kills)} kills); {raised(container, wanted)}{growth}{unknown}."
        named = killed.container
        return self._one(context, "set_memory", reason, container=named, limit=wanted, cap=cap)

    def _before_kills(self, context: Context, findings: Findings, pods: Standing) -> Proposal:
        """Recycle while usage is high, before the kernel does it at the worst moment."""
        memory, params = findings.evidence("memory", MemoryOfPods), self.parameters
        if memory is None:
            unknown = "; ".join(findings.unknown("memory"))
            hint = " (memory_query is not set)" if params.memory_query is None else ""
            return Proposal(reason=f"Nothing was killed, and usage is unknown{hint}: {unknown}.")
        done = {item.identity.get("uid") for item in _recycled(context)}
        high = [use for use in memory.above(params.usage_limit) if use.uid not in done]
        leaks = len(memory.leaking(params.leak_growth))
        find = f"; {leaks} pods grow steadily: find the leak" if leaks else ""
        if not high:
            return Proposal(reason=f"Nothing was killed, no other pod is short of memory{find}.")
        worst = high[0]
        why = f"{worst.pod} uses {worst.share:.0%} of {in_mebibytes(worst.limit)}{find}"
        if params.recycle == "restart" or (leaks > pods.count / 2 and pods.ready >= ROLLING):
            return self._restart(context, pods, why)
        return self._evict(context, pods, worst, why)

    def _restart(self, context: Context, pods: Standing, why: str) -> Proposal:
        """Restart all pods in turn, unless that was done just now."""
        if _tried(context, "restart_rollout"):
            return Proposal(reason=f"{why}; all pods were restarted already.")
        if pods.ready < ROLLING:
            wait = AGAIN if pods.count >= ROLLING else None
            return Proposal(reason=f"{why}; a restart needs {ROLLING} ready pods.", wait=wait)
        if pods.oldest is None or context.now - pods.oldest < self.parameters.restart_gap:
            return Proposal(reason=f"{why}; all pods are new: a restart would not last.")
        return self._one(context, "restart_rollout", f"{why}.")

    def _evict(self, context: Context, pods: Standing, worst: PodMemory, why: str) -> Proposal:
        """Recycle the worst pod, while all others are ready."""
        gone, others = len(_recycled(context)), [p for p in pods.unready if p != worst.pod]
        if gone >= max(1, int(pods.count * SHARE)):
            return Proposal(reason=f"{why}; {gone} of {pods.count} pods were recycled: no more.")
        if pods.count == 1:
            return Proposal(reason=f"{why}; it is the only pod, so recycling it is an outage.")
        if others:
            reason = f"{why}; it is recycled when these are ready: {', '.join(others[:SHOWN])}."
            return Proposal(reason=reason, wait=AGAIN)
        item = Item(
            key=f"pod {worst.pod}",
            summary=f"{worst.share:.0%} of its memory is used",
            identity={"pod": worst.pod, "uid": worst.uid},
        )
        return self._one(context, "evict_pod", f"{why}.", item)

    def _one(
        self, context: Context, kind: str, reason: str, *items: Item, **bounds: str | int
    ) -> Proposal:
        usual = Risk.LOW if items else Risk.MEDIUM
        target = context.targets["workload"]
        plan = Mitigation(
            kind=kind,
            target=target,
            reason=reason,
            items=items,
            parameters={**bounds, "allow_gitops": self.parameters.allow_gitops},
            risk=Risk.HIGH if "statefulset" in target.locator else usual,
            reversible=kind == "set_memory",
        )
        return Proposal(mitigations=(plan,), reason=reason)


def _tried(context: Context, kind: str) -> bool:
    return any(plan.kind == kind for plan in context.tried)


def _recycled(context: Context) -> list[Item]:
    return [item for plan in context.tried if plan.kind == "evict_pod" for item in plan.items]


async def _pods(context: Context) -> Finding:
    pods = await context.pods().pods(context.targets["workload"])
    seen = standing(pods)
    status = _judged(problem=bool(seen.unready) or not pods)
    return Finding(name="pods", status=status, summary=seen.summary, value=seen)


async def _since(context: Context, mitigation: Mitigation, since: datetime) -> Finding:
    """Look whether anything ended since, and what was evicted is gone."""
    pods = await context.pods().pods(context.targets["workload"])
    evicted = {item.identity.get("uid") for item in mitigation.items}
    problems = [f"{pod.name} is still there" for pod in pods if pod.uid in evicted]
    for pod in pods:
        if not pod.terminating and pod.uid not in evicted:
            problems += troubles_since(pod, since)
    fine = f"Nothing was killed or restarted in {len(pods)} pods since the change."
    said = f"Since the change: {'; '.join(problems)}." if problems else fine
    status = _judged(problem=bool(problems) or not pods)
    return Finding(name="since", status=status, summary=said)


def _judged(*, problem: bool) -> FindingStatus:
    return FindingStatus.PROBLEM if problem else FindingStatus.FINE
