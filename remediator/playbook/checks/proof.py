"""The proof that the cause of an open circuit breaker is gone, before it may be reset.

Runbooks: at most 1 % of the calls failed for 5 minutes, and no deadlock (M-AP-04); the breaker had
the time to close by itself, twice its wait duration (TM-03), and its upstream is healthy (M-AP-10).
What is not known proves nothing.
"""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from remediator.model.base import Value
from remediator.model.duration import Duration
from remediator.model.errors import BackendRefused, BackendUnavailable, PermanentError
from remediator.model.finding import Finding, FindingStatus
from remediator.model.ports import Endpoint
from remediator.model.readings import BreakerState
from remediator.playbook.base import Context, Findings
from remediator.playbook.checks.breaker_history import Watched
from remediator.playbook.checks.breakers import BreakerList, CallsGate

PROVEN_FOR = timedelta(minutes=5)
"""Time over which the cause has to be gone (M-AP-04)."""
PROBING = 22.0
"""Seconds that all probes of one upstream may take together."""
LONGEST_PAUSES = timedelta(seconds=12)
"""Time that the pauses between the probes may take together."""
LOG_LINES = 200
"""Lines of each container that are searched for a deadlock."""
_HEALTHY = frozenset({"UP", "OK", "HEALTHY", "PASS"})
_DEADLOCK = re.compile(r"deadlock", re.IGNORECASE)


class Upstream(Value):
    """Where the health of what a breaker protects from is read."""

    role: str = "upstream"
    """Role of a target of this service, of kind http."""
    path: str = "/health"
    """Path that answers 2xx and JSON while it is healthy."""


class BreakerProof(CallsGate):
    """The parameters of the proof. Its figures may be made stricter, and not weaker."""

    probing: ClassVar[float] = PROBING

    upstreams: dict[str, Upstream] = Field(default_factory=dict)
    """What each breaker calls, by its name; with neither this nor a query there is no reset."""
    clean_probes: int = Field(default=2, ge=2, le=5)
    """Probes of the upstream that must succeed one after the other (runbooks: 2)."""
    probe_gap: Duration = Field(default=timedelta(seconds=2), ge=timedelta(milliseconds=100))
    """Time between two probes."""
    look_again: Duration = Field(default=timedelta(seconds=30), ge=timedelta(seconds=1))
    """Time between two looks while something may pass by itself."""
    wait_duration: Duration = Field(
        default=timedelta(seconds=60), ge=timedelta(seconds=1), le=timedelta(minutes=4)
    )
    """The breaker's own time until it tries again, half-open (Resilience4j: 60 s). A breaker of
    this kind is reset only after it has stayed open for twice as long."""
    clean_for: Duration = Field(default=PROVEN_FOR, ge=timedelta(seconds=1))
    """Time over which the upstream must be healthy in every look, where no `error_query` is set.
    Never less than twice `wait_duration`; for breakers that are never half-open, 5 minutes."""
    deadlock_query: str | None = Field(default=None, json_schema_extra={"series": True})
    """PromQL with the number of deadlocks of the last 5 minutes, one number; above 0: no reset."""

    @model_validator(mode="after")
    def _probes_fit(self) -> Self:
        if self.probe_gap * (self.clean_probes - 1) > LONGEST_PAUSES:
            raise ValueError("the pauses between the probes are longer than 12 s together")
        return self

    def watched(self, context: Context, findings: Findings) -> Watched:
        """Note since when each breaker is open and its upstream healthy, look after look."""
        listing = findings.evidence("breakers", BreakerList) or BreakerList(breakers=())
        open_ones = [breaker.name for breaker in listing.of(BreakerState.OPEN)]
        upstreams = ((name, findings.get(f"upstream {name}")) for name in open_ones)
        clean = [n for n, found in upstreams if found and found.status is FindingStatus.FINE]
        holding = [*(f"open {n}" for n in open_ones), *(f"clean {n}" for n in clean)]
        gap = 2 * self.look_again + timedelta(seconds=PROBING)
        return Watched.of(context.noted).after(context, holding, gap)

    def waited(self, *, half_opens: bool) -> timedelta:
        """Return how long the breaker must have been seen open."""
        return 2 * self.wait_duration if half_opens else timedelta(0)

    def clean(self, *, half_opens: bool) -> timedelta:
        """Return how long its upstream must have been seen healthy."""
        if self.error_query is not None:  # the share of failed calls proves the time
            return timedelta(0)
        least = self.waited(half_opens=True) if half_opens else PROVEN_FOR
        return max(self.clean_for, least)

    def early(self, watched: Watched, name: str, *, half_opens: bool) -> str:
        """Say for what there has not been enough time yet, or nothing."""
        opened, clean = watched.lasted(f"open {name}"), watched.lasted(f"clean {name}")
        for lasted, needed, what in (
            (opened, self.waited(half_opens=half_opens), "may close by itself: it is open"),
            (clean, self.clean(half_opens=half_opens), "is open, its upstream is healthy"),
        ):
            if lasted < needed:
                seconds = f"{lasted.total_seconds():.0f} s of {needed.total_seconds():.0f} s"
                return f"Breaker {name} {what} for {seconds} that have to be seen."
        return ""

    async def upstream(self, context: Context, breaker: str, probes: int) -> Finding:
        """Probe until one probe fails; an upstream that does not answer is a problem, not a gap."""
        upstream = self.upstreams[breaker]
        endpoint = _endpoint(context, upstream)
        name, status = f"upstream {breaker}", FindingStatus.FINE
        where = f"the upstream of {breaker} ({upstream.role}{upstream.path})"
        summary = f"Healthy in {probes} of {probes} probes: {where}."
        for number in range(probes):
            if number:
                await asyncio.sleep(self.probe_gap.total_seconds())
            problem = await _unhealthy(endpoint, upstream.path)
            if problem:
                status, summary = FindingStatus.PROBLEM, f"Not healthy: {where}: {problem}."
                break
        return Finding(name=name, status=status, summary=summary)

    def locked(self, findings: Findings) -> tuple[str, bool]:
        """Say what is known of deadlocks that forbids a reset, or nothing; and if it may pass."""
        found = findings.get("deadlocks")
        if found is None or found.status is FindingStatus.FINE:
            return "", False
        if found.status is FindingStatus.UNKNOWN:
            return f"whether there are deadlocks is not known: {found.summary}.", True
        return found.summary, False

    def sees_deadlocks(self, context: Context) -> bool:
        """Whether there is anything that would show a deadlock."""
        return self.deadlock_query is not None or _workload(context)

    async def deadlocks(self, context: Context) -> Finding:
        """Look for deadlocks in the metric and in the logs, where there are any."""
        found = []
        if self.deadlock_query is not None:
            found.append(await self._counted(context, self.deadlock_query))
        if _workload(context):
            found.append(await _logged(context))
        bad = [said for problem, said in found if problem]
        return Finding(
            name="deadlocks",
            status=FindingStatus.PROBLEM if bad else FindingStatus.FINE,
            summary=" ".join(bad or [said for _, said in found]),
        )

    async def _counted(self, context: Context, query: str) -> tuple[bool, str]:
        if context.metrics is None:
            raise PermanentError("deadlock_query is set, but the service has no Prometheus")
        number = await context.metrics.scalar(query)
        return number > 0, f"{number:g} deadlocks, says deadlock_query."


async def _logged(context: Context) -> tuple[bool, str]:
    logs = await context.pods().logs(context.targets["workload"], lines=LOG_LINES)
    now = [log for log in logs if not log.previous]
    unread = [f"{log.pod}/{log.container}: {log.missing}" for log in now if log.missing]
    if unread or not now:
        raise BackendUnavailable(f"the logs cannot be read: {'; '.join(unread[:3]) or 'no pods'}")
    told = sorted({log.pod for log in now if any(_DEADLOCK.search(line) for line in log.lines)})
    if told:
        return True, f"Deadlocks are in the log of {', '.join(told[:3])}."
    return False, f"No deadlock is in the last {LOG_LINES} lines of {len(now)} containers."


def _workload(context: Context) -> bool:
    target = context.targets.get("workload")
    return target is not None and target.kind == "kubernetes"


async def _unhealthy(endpoint: Endpoint, path: str) -> str:
    """Probe once; say what is wrong, or nothing. ``BackendRefused`` proves neither."""
    try:
        answer: Any = await endpoint.get_json(path)
    except BackendUnavailable as error:
        return str(error)
    except BackendRefused as error:
        raise PermanentError(f"the probe itself was refused, correct it: {error}") from error
    status = answer.get("status") if isinstance(answer, dict) else None
    if status is not None and str(status).upper() not in _HEALTHY:
        return f"its status is {str(status)[:40]!r}"
    return ""


def _endpoint(context: Context, upstream: Upstream) -> Endpoint:
    endpoint = context.endpoint(upstream.role)
    target = context.targets.get(upstream.role)
    if endpoint is None or target is None or target.kind != "http":
        raise PermanentError(f"the service has no http target in the role {upstream.role!r}")
    return endpoint
