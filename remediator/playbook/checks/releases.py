"""Which release may be undone because the latency began with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Self

from pydantic import Field, JsonValue, model_validator

from remediator.model.alert import AlertStatus
from remediator.model.base import Value
from remediator.model.duration import Duration
from remediator.model.finding import Finding, FindingStatus
from remediator.model.mitigation import Item, Mitigation
from remediator.model.target import Risk, Target
from remediator.model.workloads import EFFECT, Revision, Workload
from remediator.playbook.base import Context
from remediator.playbook.checks.latency import LatencySource, prometheus
from remediator.playbook.checks.memory import hindrance
from remediator.playbook.promql import quote_label

RELEASE_MAX_AGE = timedelta(minutes=60)
"""Age from which on a release is not undone by itself (procedures: 60 minutes)."""

REPLICA_SET = "{replica_set}"
"""What stands in `ready_query` for the name of a replica set, as a quoted label value."""


class Release(Value):
    """The release that runs, and the revision that ran before it."""

    running: Revision
    before: Revision

    def plan(self, target: Target, why: str, *, allow_gitops: bool) -> Mitigation:
        """Propose to go back to exactly the revision before."""
        before, images = self.before, ", ".join(self.before.images)
        identity: dict[str, JsonValue] = {
            "revision": before.number,
            "replica_set": before.name,
            "uid": before.uid,
        }
        return Mitigation(
            kind="undo_rollout",
            target=target,
            reason=f"{why} It goes back to revision {before.number} ({images}).",
            items=(Item(key=f"revision {before.number}", summary=images, identity=identity),),
            parameters={
                "from_revision": self.running.number,
                "max_age_s": int(RELEASE_MAX_AGE.total_seconds()),
                "allow_gitops": allow_gitops,
            },
            risk=Risk.HIGH,
        )


class ReleaseBounds(LatencySource):
    """Whether a release may be undone, and what has to be proven before."""

    undo_release: bool = False
    """Whether a release may be undone that the latency began with; needs `latency_query`."""
    release_lookback: Duration = Field(default=timedelta(minutes=30), ge=timedelta(minutes=10))
    """Time before the release over which the latency must have been within its limit."""

    ready_query: str | None = None
    """PromQL for the most pods of a replica set that were ready: at least 1 proves a revision.
    `{replica_set}` becomes its quoted name; none: no release is undone."""

    @model_validator(mode="after")
    def _past_is_measured(self) -> Self:
        if self.undo_release and not self.latency_query:
            raise ValueError("undo_release needs latency_query: what was before must be measured")
        if self.ready_query and REPLICA_SET not in self.ready_query:
            raise ValueError(f"ready_query must name the replica set: write {REPLICA_SET}")
        return self

    def impossible(self) -> dict[str, str]:
        """No release is undone unless that is switched on."""
        found = super().impossible()
        return found if self.undo_release else found | {"undo_rollout": "undo_release is off"}

    async def release_finding(self, context: Context, *, allow_gitops: bool) -> Finding:
        """Look for a release that the latency began with: ``Release`` where all is proven."""
        target, lookback = context.targets["workload"], self.release_lookback
        workload = await context.workloads().workload(target)
        revisions = await context.workloads().revisions(target)
        firing = [a.starts_at for a in context.alerts if a.status is AlertStatus.FIRING]
        found = _hindrance(workload, allow_gitops=allow_gitops) or undoable_release(
            revisions, began=min(firing, default=None), lookback=lookback, now=context.now
        )
        if isinstance(found, str):
            return Finding(name="release", status=FindingStatus.FINE, summary=f"{found}.")
        at = found.running.created_at
        past = await self.latency_between(context, at - lookback, at)
        doubt = past.doubt if past else "not measured"
        said = f"the latency before it: {doubt or 'within its limit'}"
        if not doubt:
            doubt = await self._never_ready(context, found.before)
            said = f"{said}; {doubt or f'revision {found.before.number} had ready pods'}"
        return Finding(
            name="release",
            status=FindingStatus.FINE if doubt else FindingStatus.PROBLEM,
            summary=f"Revision {found.running.number} is of {at:%H:%M:%S}; {said}.",
            value=None if doubt else found,
        )

    async def _never_ready(self, context: Context, before: Revision) -> str | None:
        """Say why a revision is not proven to have run; the cluster keeps no history of that."""
        if self.ready_query is None:
            return f"it is not proven that revision {before.number} was ever ready: set ready_query"
        query = self.ready_query.replace(REPLICA_SET, quote_label(before.name))
        ready = await prometheus(context).scalar(query)
        if ready >= 1:
            return None
        return f"revision {before.number} was never ready ({ready:g} pods by ready_query)"


def _hindrance(workload: Workload, *, allow_gitops: bool) -> str | None:
    if "/undo_rollout/" in workload.annotations.get(EFFECT, ""):
        return "a release was undone before"
    found = hindrance(workload, allow_gitops=allow_gitops)
    return found.reason if found else None


def undoable_release(
    revisions: Sequence[Revision], *, began: datetime | None, lookback: timedelta, now: datetime
) -> Release | str:
    """Return the release that a symptom which ``began`` then may come from, or why there is none.

    The revision before it must be old enough to have been the one that ran for ``lookback``.
    """
    by_number = sorted(revisions, key=lambda revision: revision.number, reverse=True)
    if len(by_number) < 2:
        return "no earlier revision is kept"
    running, before, *_ = by_number
    if any(other.created_at >= running.created_at for other in by_number[1:]):
        return f"revision {running.number} is an older template that was brought back"
    if now - running.created_at >= RELEASE_MAX_AGE:
        return f"revision {running.number} is older than {RELEASE_MAX_AGE.total_seconds() / 60:g} minutes"
    if began is None or began <= running.created_at:
        return f"the symptom did not begin after revision {running.number}"
    if before.created_at > running.created_at - lookback:
        return f"revision {before.number} did not run long enough to prove itself"
    return Release(running=running, before=before)
