"""Whether a deployment is short of CPU, and whether more of its pods would be right and safe."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import Field, JsonValue, ValidationError

from remediator.model.base import Value
from remediator.model.connections import ConnectionUsage
from remediator.model.duration import Duration, format_duration
from remediator.model.errors import BackendUnavailable
from remediator.model.finding import Finding, FindingStatus
from remediator.model.mitigation import Mitigation
from remediator.model.target import Target
from remediator.model.verdict import FINAL
from remediator.model.workloads import Autoscaler, Pod, PodUsage, Room, Workload
from remediator.playbook.base import Context, Findings, Parameters
from remediator.playbook.checks.latency import prometheus
from remediator.playbook.checks.memory import Hindrance, hindrance

STALE = timedelta(minutes=3)
"""Age from which on a measurement says nothing of now."""
DATABASE_SHARE = 0.8
"""Share of a server's connections that the replicas may fill (procedures: 80 %)."""


class CpuUse(Value):
    """How much of its CPU a deployment uses, as a share of what it may or asked for."""

    share: float = Field(ge=0, allow_inf_nan=False)
    source: str


@dataclass(frozen=True)
class Grounds:
    """What is known of a deployment that might be scaled."""

    workload: Workload
    autoscaler: Autoscaler | None
    room: Room | None
    """None where the nodes are not looked at."""
    database: ConnectionUsage | None
    """None where the service has no database."""


class ScaleBounds(Parameters):
    """When a deployment is scaled, and how far."""

    cpu_query: str | None = None
    """PromQL for the share of its CPU that the workload uses, 0..1; none: the cluster's metrics."""
    cpu_gate: float = Field(default=0.7, gt=0, le=1)
    """Share from which on the CPU is the bottleneck (runbooks: 70 %)."""
    scale: bool = True
    """Whether it may be scaled at all; false for an engine with state."""
    scale_cap: int | None = Field(default=None, ge=1)
    """Most replicas; none: never scaled."""
    scale_step: float = Field(default=0.5, gt=0, le=1)
    """Share of the replicas that is added, rounded up (runbooks: 50 %, at most 100 %)."""
    hold: Duration = Field(default=timedelta(minutes=60), gt=timedelta(0))
    """Time after which the replicas are taken back (runbooks: 60 minutes)."""
    step_down: float = Field(default=0.25, gt=0, le=1)
    """Share of the replicas that one step of taking back removes (runbooks: 25 %)."""
    step_pause: Duration = timedelta(minutes=10)
    """Time between two steps of taking back (runbooks: 10 minutes)."""
    node_headroom: bool = True
    """Whether nodes and quotas must have room now; false where nodes are added by themselves."""
    pool_size: int | None = Field(default=None, ge=1)
    """Database connections that one replica opens at most; none: not scaled beside a database."""
    allow_gitops: bool = False
    """Change also what a GitOps controller may change back."""

    def impossible(self) -> dict[str, str]:
        """Nothing is scaled where that is switched off or has no cap."""
        found = super().impossible()
        if not self.scale:
            return found | {"scale": "scale is false"}
        return found if self.scale_cap else found | {"scale": "no scale_cap"}

    def needs(self) -> dict[str, frozenset[str]]:
        """Nothing is scaled while the CPU or the room for more pods is unknown."""
        wanted = {"usage": not self.cpu_query, "room": self.node_headroom}
        read = frozenset(name for name, needed in wanted.items() if needed)
        possible = self.scale and self.scale_cap is not None
        return super().needs() | ({"scale": read} if possible and read else {})

    def scale_checks(self, context: Context) -> dict[str, Awaitable[Finding]]:
        """Return the checks that ``grounds`` reads; none where nothing may be scaled."""
        if not self.scale:
            return {}
        checks: dict[str, Awaitable[Finding]] = {
            "cpu": self._cpu(context),
            "deployment": _deployment(context),
            "autoscaler": _autoscaler(context),
        }
        return checks | ({"room": room_finding(context)} if self.node_headroom else {})

    def grounds(self, findings: Findings) -> Grounds | Hindrance:
        """Take together what the checks found; what is unknown is an obstacle that may pass."""
        looked = ["deployment", "autoscaler", *(["room"] if self.node_headroom else [])]
        unknown = findings.unknown(*looked)
        workload = findings.evidence("deployment", Workload)
        if unknown or workload is None:
            return Hindrance("; ".join(unknown), passes=True)
        return Grounds(
            workload=workload,
            autoscaler=findings.evidence("autoscaler", Autoscaler),
            room=findings.evidence("room", Room),
            database=findings.evidence("server", ConnectionUsage),
        )

    async def _cpu(self, context: Context) -> Finding:
        use = await self.cpu_use(context)
        return Finding(
            name="cpu",
            status=_judged(problem=use.share >= self.cpu_gate),
            summary=f"The CPU is {use.share:.0%} used ({use.source}; the gate is"
            f" {self.cpu_gate:.0%}).",
            value=use,
        )

    async def cpu_use(self, context: Context, role: str = "workload") -> CpuUse:
        """Measure the CPU now; ``BackendUnavailable`` for what is missing, stale or senseless."""
        if self.cpu_query:
            share = await prometheus(context).scalar(self.cpu_query)
            try:
                return CpuUse(share=share, source="by cpu_query")
            except ValidationError as error:
                raise BackendUnavailable(f"cpu_query makes no sense: {share!r}") from error
        target = context.targets[role]
        workload = await context.workloads(role).workload(target)
        measured, pods = await asyncio.gather(
            context.pods(role).usage(target), context.pods(role).pods(target)
        )
        return used_cpu(workload, measured, context.now, pods)

    def wanted(self, grounds: Grounds) -> int:
        """Replicas after one step, inside the cap and the autoscaler's maximum."""
        replicas, scaler = grounds.workload.replicas, grounds.autoscaler
        wanted = replicas + math.ceil(replicas * self.scale_step)
        bounds = [self.scale_cap, scaler.maximum if scaler else None]
        return min([wanted, *(bound for bound in bounds if bound is not None)])

    def scale_plan(self, target: Target, grounds: Grounds, why: str) -> Mitigation:
        """Propose one step more, to be taken back after ``hold``."""
        wanted = self.wanted(grounds)
        return Mitigation(
            kind="scale",
            target=target,
            reason=f"{why} {grounds.workload.replicas} replicas become {wanted};"
            f" the cap is {self.scale_cap}.",
            parameters={
                "replicas": wanted,
                "cap": self.scale_cap,
                "step_down": self.step_down,
                "step_pause": format_duration(self.step_pause),
                "allow_gitops": self.allow_gitops,
            },
            reversible=True,
            hold=self.hold,
        )

    def scale_hindrance(self, grounds: Grounds) -> Hindrance | None:
        """Say what speaks against one step more, or None."""
        found = hindrance(grounds.workload, allow_gitops=self.allow_gitops)
        if found:
            return found
        for reason in self._passing(grounds):  # then more capacity may be on its way
            return Hindrance(reason, passes=True)
        for reason in self._lasting(grounds):
            return Hindrance(reason, passes=False)
        return None

    def _passing(self, grounds: Grounds) -> Iterator[str]:
        workload, scaler = grounds.workload, grounds.autoscaler
        if workload.ready < workload.replicas:
            yield f"only {workload.ready} of {workload.replicas} replicas are ready"
        if scaler and scaler.desired > scaler.current:
            yield (
                f"the autoscaler {scaler.name} is going from {scaler.current}"
                f" to {scaler.desired} by itself"
            )

    def _lasting(self, grounds: Grounds) -> Iterator[str]:
        workload, scaler = grounds.workload, grounds.autoscaler
        if self.scale_cap is None:
            yield "scale_cap is not set"
        if scaler and scaler.managed_by and not self.allow_gitops:
            yield f"{scaler.managed_by} owns the autoscaler and would undo the change"
        if scaler and workload.replicas >= scaler.maximum:
            yield f"the autoscaler {scaler.name} is at its maximum of {scaler.maximum}"
        if self.wanted(grounds) <= workload.replicas:
            yield f"{workload.replicas} replicas run, the cap is {self.scale_cap}"
        yield from self._cramped(grounds)

    def _cramped(self, grounds: Grounds) -> Iterator[str]:
        more = self.wanted(grounds) - grounds.workload.replicas
        room, database = grounds.room, grounds.database
        if self.node_headroom and room is None:
            yield "the room on the nodes is unknown"
        if self.node_headroom and room is not None and room.pods < more:
            quota = "no quota" if room.quota is None else f"quotas for {room.quota}"
            yield f"there is no room for {more} more pods (nodes for {room.nodes}, {quota})"
        if database is not None:
            yield from self._short(database, self.wanted(grounds), more)

    def _short(self, database: ConnectionUsage, wanted: int, more: int) -> Iterator[str]:
        if self.pool_size is None:
            yield "pool_size is not set, so the database's connections may not suffice"
            return
        most = DATABASE_SHARE * database.available
        after = max(wanted * self.pool_size, database.used + more * self.pool_size)
        if after > most:
            yield (
                f"{wanted} replicas could bring the database to {after} connections;"
                f" {most:.0f} of {database.available} may be filled"
            )


async def _deployment(context: Context) -> Finding:
    workload = await context.workloads().workload(context.targets["workload"])
    return Finding(
        name="deployment",
        status=_judged(problem=workload.ready < workload.replicas),
        summary=f"{workload.ready} of {workload.replicas} replicas are ready.",
        value=workload,
    )


async def _autoscaler(context: Context) -> Finding:
    scaler = await context.workloads().autoscaler(context.targets["workload"])
    summary = "No autoscaler sets the replicas."
    if scaler:
        summary = (
            f"The autoscaler {scaler.name} keeps {scaler.minimum} to {scaler.maximum} replicas"
            f" and wants {scaler.desired}."
        )
    return Finding(name="autoscaler", status=FindingStatus.FINE, summary=summary, value=scaler)


async def rolled_out(context: Context, mitigation: Mitigation) -> Finding:
    """Look whether all replicas that a change asked for are there and ready."""
    workload = await context.workloads().workload(context.targets["workload"])
    wanted = mitigation.parameters.get("replicas", workload.replicas)
    few = isinstance(wanted, int) and workload.replicas < wanted
    short = few or workload.ready < workload.replicas or workload.rollout is not None
    refused = f" The new pods are refused: {workload.refused}." if workload.refused else ""
    return Finding(
        name="rollout",
        status=_judged(problem=short),
        summary=f"{workload.ready} of {workload.replicas} replicas are ready;"
        f" {wanted} were asked for.{refused}",
        value=workload,
    )


def rollout_data(findings: Findings) -> dict[str, JsonValue]:
    """Return the ``data`` of a sample: final where the pods of the change are refused."""
    workload = findings.evidence("rollout", Workload)
    return {FINAL: True} if workload is not None and workload.refused else {}


async def room_finding(context: Context) -> Finding:
    """Count how many more pods would find a place (``Room``); none is a problem."""
    room = await context.workloads().room(context.targets["workload"])
    return Finding(
        name="room",
        status=_judged(problem=room.pods == 0),
        summary=f"{room.pods} more pods would find a place.",
        value=room,
    )


def _judged(*, problem: bool) -> FindingStatus:
    return FindingStatus.PROBLEM if problem else FindingStatus.FINE


def used_cpu(
    workload: Workload, usage: Sequence[PodUsage], now: datetime, pods: Iterable[Pod] = ()
) -> CpuUse:
    """Compare what the pods use with their limits, or requests where there are no limits.

    They may have others than their template says: from a LimitRange, an autoscaler, a resize.
    """
    fresh = [use for use in usage if now - use.at <= STALE]
    own = {pod.name: pod.cpu for pod in pods}
    granted = [own.get(use.pod) or workload.cpu for use in fresh]
    if not all(granted):
        raise BackendUnavailable("a container has neither a limit nor a request of CPU")
    if not fresh or len(fresh) < workload.ready:
        raise BackendUnavailable(f"{len(fresh)} of {workload.ready} pods are measured")
    share = sum(use.cpu for use in fresh) / sum(each for each in granted if each)
    return CpuUse(share=share, source=f"over {len(fresh)} pods")
