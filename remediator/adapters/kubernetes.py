"""Kubernetes as a target: deployments and their pods, and what can be done about them.

Reader and lever are two classes, for two accounts. Both see one namespace at a time, so that
Roles suffice for all but counting the room on nodes; the rights are in ``kubernetes_rights``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import quote

import structlog

from remediator.adapters import kubernetes_words as words
from remediator.adapters.kubernetes_bounds import Scene
from remediator.adapters.kubernetes_changes import (
    CONSEQUENCES,
    PLANNERS,
    PREPARED,
    change_of,
    prepared,
)
from remediator.adapters.kubernetes_client import (
    Change,
    Conflict,
    Forbidden,
    NotDone,
    NotFound,
    Right,
)
from remediator.adapters.kubernetes_cluster import Cluster, in_order
from remediator.adapters.kubernetes_objects import (
    STATEFUL_SET,
    Object,
    core_path,
    is_stateful,
    named,
    namespace_of,
    newest_first,
    read_autoscaler,
    read_event,
    read_pod,
    read_revision,
    read_workload,
    refused_member,
    selector_of,
    uid_of,
)
from remediator.adapters.kubernetes_pods import (
    ASKED,
    AT_ONCE,
    KEPT,
    KEPT_TOGETHER,
    LINES,
    Run,
    read_log,
    read_usage,
    runs_of,
)
from remediator.adapters.kubernetes_rights import (
    ALL_PODS,
    COUNTING_QUOTAS,
    EVENTS,
    LOGS,
    NODES,
    OPTIONAL,
    QUOTAS,
    READS,
    USAGE,
    WRITES,
)
from remediator.adapters.kubernetes_rollback import KIND as UNDO_ROLLOUT
from remediator.adapters.kubernetes_rollback import change_back, pinned
from remediator.adapters.kubernetes_room import demand_of, node_room, quota_room
from remediator.adapters.kubernetes_undo import next_step, recognising, stands
from remediator.errors import BackendRefused, BackendUnavailable
from remediator.model import Mitigation, MitigationState, Outcome, Preparation, Target
from remediator.workloads import (
    Autoscaler,
    Pod,
    PodLog,
    PodUsage,
    Revision,
    Room,
    Workload,
    WorkloadEvent,
)

T = TypeVar("T")
UNDO_AGAIN = 3
"""Times that taking back looks afresh after it was refused or met a conflict."""
_METRICS = "/apis/metrics.k8s.io/v1beta1"
_log = structlog.get_logger(__name__)


class NoRight(BackendRefused):
    """A right that our account can do without is wanting; says which."""


class KubernetesReader(Cluster):
    """Reads the deployments and pods of one cluster (``ports.Workloads``, ``ports.Pods``)."""

    rights = READS | {EVENTS}

    async def workload(self, target: Target) -> Workload:
        """Read the deployment itself."""
        live = await self._workload(target)
        workload = self._read(read_workload, live)
        if not is_stateful(live) or workload.rollout is None:
            return workload
        # what a stateful set cannot make stands in its events only
        events, pods = await asyncio.gather(
            self._list(f"{core_path(target)}/events"), self._pods(target, live)
        )
        noted = [self._read(read_event, event) for event in events]
        refused = refused_member(live, len(pods), noted)
        return workload.model_copy(update={"refused": refused})

    async def pods(self, target: Target) -> tuple[Pod, ...]:
        """List its pods, oldest first."""
        found = await self._pods(target, await self._workload(target))
        pods = [self._read(read_pod, pod) for pod in found]
        return tuple(sorted(pods, key=lambda pod: (pod.created_at, pod.name)))

    async def autoscaler(self, target: Target) -> Autoscaler | None:
        """Read the autoscaler that sets its replicas."""
        found = await self._autoscalers(target)
        if len(found) > 1:
            raise BackendRefused(f"{self._name}: more than one autoscaler sets the replicas")
        return self._read(read_autoscaler, found[0][1]) if found else None

    async def events(self, target: Target) -> tuple[WorkloadEvent, ...]:
        """List what was noted about it, its replica sets and its pods, newest first."""
        deployment = await self._workload(target)
        sets, found = await asyncio.gather(
            self._replica_sets(target, deployment), self._list(f"{core_path(target)}/events")
        )
        names = {f"ReplicaSet/{found['metadata']['name']}" for found in sets}
        pods = tuple(f"Pod/{found['metadata']['name']}-" for found in sets)
        kind, name = named(target)
        names |= {f"{kind}/{name}", f"HorizontalPodAutoscaler/{name}"}
        if kind == STATEFUL_SET:
            pods = (f"Pod/{name}-",)
        events = [self._read(read_event, event) for event in found]
        return newest_first(e for e in events if e.about in names or e.about.startswith(pods))

    async def revisions(self, target: Target) -> tuple[Revision, ...]:
        """List the revisions that are kept, newest first."""
        workload = await self._workload(target)
        if is_stateful(workload):
            raise BackendRefused(f"{self._name}: the revisions of a stateful set are not read")
        found = await self._replica_sets(target, workload)
        revisions = [self._read(read_revision, kept) for kept in found]
        return tuple(sorted(revisions, key=lambda revision: revision.number, reverse=True))

    async def room(self, target: Target) -> Room:
        """Say how many more of its pods fit in the namespace's quotas and on the nodes."""
        deployment, quotas, nodes, everywhere = await in_order(
            self._workload(target),
            self._with(QUOTAS, self._quotas(target)),
            self._with(NODES, self._list("/api/v1/nodes")),
            self._with(ALL_PODS, self._list("/api/v1/pods")),
        )
        pods = await self._pods(target, deployment)
        template = deployment["spec"]["template"]["spec"]
        with self._reading():
            demand = demand_of([template, *(pod["spec"] for pod in pods)])
            quota = quota_room(quotas, demand)
            fit = node_room(nodes, everywhere, template, demand)
        pods_in_quota = None if quota is None else quota.pods
        return Room(quota=pods_in_quota, nodes=fit.pods, spare_memory=fit.spare_memory)

    async def usage(self, target: Target) -> tuple[PodUsage, ...]:
        """Read what its pods use now, as far as they have been measured; at least one."""
        deployment = await self._workload(target)
        path = f"{_METRICS}/namespaces/{quote(namespace_of(target), safe='')}/pods"
        selector = selector_of(deployment)
        try:
            measured, pods = await asyncio.gather(
                self._with(USAGE, self._list(path, labelSelector=selector)),
                self._pods(target, deployment),
            )
        except NotFound as error:
            said = "the cluster measures nothing: metrics-server is not installed"
            raise BackendRefused(f"{self._name}: {said}") from error
        names = {pod["metadata"]["name"] for pod in pods}
        own = [found for found in measured if found["metadata"]["name"] in names]
        if pods and not own:
            raise BackendUnavailable(f"{self._name}: none of its pods has been measured yet")
        used = [self._read(read_usage, found) for found in own]
        return tuple(sorted(used, key=lambda one: one.pod))

    async def logs(self, target: Target, lines: int = 50) -> tuple[PodLog, ...]:
        """Read the last lines of every run of every container that has a log."""
        pods = await self._pods(target, await self._workload(target))
        runs = runs_of(pods)
        wanted, turn = max(1, min(lines, LINES)), asyncio.Semaphore(AT_ONCE)
        share = min(KEPT, KEPT_TOGETHER // max(1, len(runs)))

        async def read(run: Run) -> PodLog | None:
            async with turn:
                return await self._log(target, run, wanted, share)

        found = await asyncio.gather(*(read(run) for run in runs))
        logs = tuple(log for log in found if log is not None)
        if logs and all(log.missing for log in logs):
            raise BackendUnavailable(f"{self._name}: no log can be read: {logs[0].missing}")
        return logs

    async def _log(self, target: Target, run: Run, lines: int, share: int) -> PodLog | None:
        path = f"{core_path(target)}/pods/{quote(run.pod, safe='')}/log"
        query = {"container": run.container, "tailLines": str(lines), "limitBytes": str(ASKED)}
        if run.previous:
            query["previous"] = "true"
        try:
            text = await self._with(LOGS, self._client.read_text(path, ASKED, **query))
        except NoRight:
            raise
        except BackendRefused:  # it has no log yet, or it has gone meanwhile
            return None
        except BackendUnavailable as error:
            return PodLog(**run._asdict(), lines=(), missing=str(error))
        return read_log(run, text, lines, share)

    async def lacking(self) -> list[str]:
        """Name the ``OPTIONAL`` rights that our account lacks; without them it knows less."""
        rights = sorted(OPTIONAL, key=lambda right: (not right.everywhere, str(right)))
        asked = (self._client.missing(frozenset({one}), self._namespaces) for one in rights)
        return [phrase for phrases in await asyncio.gather(*asked) for phrase in phrases]

    def _read(self, reading: Callable[[Object], T], found: Object) -> T:
        with self._reading():
            return reading(found)

    async def _with(self, right: Right, answer: Awaitable[T]) -> T:
        """Name the right that is wanting, in words that can be acted on."""
        try:
            return await answer
        except Forbidden as error:
            where = "all namespaces" if right.everywhere else "the namespace"
            said = f"our account may not {right} in {where}; grant it"
            raise NoRight(f"{self._name}: {said}") from error


class KubernetesLever(Cluster):
    """Changes the deployments of one cluster, one request each (``ports.Lever``).

    Every request is asked with ``dryRun=All`` when it is prepared, so that a missing right, a
    quota, a webhook or a disruption budget says no before anything is reserved.
    """

    rights = READS | WRITES
    kinds = frozenset(PLANNERS)
    consequences = CONSEQUENCES
    conditional = True

    def __init__(  # noqa: PLR0913 - by keyword, each with a meaning of its own
        self,
        kubeconfig: Path | None,
        *,
        name: str = "kubernetes",
        namespaces: Iterable[str] = (),
        sets_in: Iterable[str] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        changes: Mapping[str, frozenset[str]] | None = None,
        named: Mapping[tuple[Right, str], frozenset[str]] = MappingProxyType({}),
        hands_off: timedelta = timedelta(0),
    ) -> None:
        """Use ``kubeconfig``; the probe asks for the rights of ``changes``, kinds by namespace.

        Without ``changes`` it asks for the rights of every kind in ``namespaces``. Those in ``named``
        it asks for by the names of their objects. What others have
        set within ``hands_off`` is not changed.
        """
        super().__init__(kubeconfig, name=name, namespaces=namespaces, sets_in=sets_in)
        self._clock = clock
        self._changes = changes
        self._named = named
        self._hands_off = hands_off
        if changes is not None:
            self.kinds = frozenset[str]().union(*changes.values())

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        """Read the live objects, hold the bounds against them, ask the API with a dry run."""
        preparation = await self._planned(mitigation)
        change = await self._change(preparation, PREPARED)
        try:
            answer = await self._client.send(change, dry_run=True)
        except Conflict as error:  # between our look and this: the next look sees it
            raise BackendUnavailable(f"it changed while it was looked at: {error}") from error
        with self._reading():
            return recognising(preparation, answer)

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Send the one request; a conflict or a refusal changes nothing."""
        try:
            change = await self._change(preparation, effect_key)
        except (BackendRefused, BackendUnavailable) as error:  # nothing has been sent
            outcome = Outcome(state=MitigationState.NOT_APPLIED, detail=str(error))
        else:
            done = Outcome(state=MitigationState.APPLIED, detail=words.done(preparation))
            outcome = await self._send(change, done)
        _log.info("cluster_changed", effect_key=effect_key, state=outcome.state.value)
        return outcome

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Look for our annotation on the object; an evicted pod is gone or going."""
        kind = preparation.mitigation.kind
        live = await self._live(preparation)
        if kind == "evict_pod":
            done = live is None or live["metadata"].get("deletionTimestamp") is not None
        else:
            done = live is not None and stands(live, kind, effect_key)
        if done:
            return Outcome(state=MitigationState.APPLIED, detail=words.done(preparation))
        return Outcome(state=MitigationState.NOT_APPLIED, detail="the object is without the change")

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        """Put the old figure back where our annotation and our figure still stand.

        In steps, a number of pods goes down by a share at a time, each step with its pause. A
        controller may write the object's status in between, so a conflict is looked at afresh.
        """
        if preparation.undo is None:
            raise BackendRefused(f"{preparation.mitigation.kind} cannot be taken back")
        outcome = await self._undo(preparation, effect_key, in_steps=in_steps)
        for _ in range(UNDO_AGAIN):
            if outcome.final or outcome.state is not MitigationState.NOT_APPLIED:
                break
            outcome = await self._undo(preparation, effect_key, in_steps=in_steps)
        return outcome

    async def _missing(self) -> list[str]:
        if self._changes is None:
            return await super()._missing()
        return await self._missing_for(self._changes, self._named)

    async def _undo(self, preparation: Preparation, effect: str, *, in_steps: bool) -> Outcome:
        live = await self._live(preparation)
        step = next_step(preparation, effect, live, self._clock(), in_steps=in_steps)
        return step if isinstance(step, Outcome) else await self._send(step.change, step.outcome)

    async def _send(self, change: Change, done: Outcome) -> Outcome:
        try:
            await self._client.send(change, dry_run=False)
        except (BackendRefused, NotDone) as error:
            return Outcome(state=MitigationState.NOT_APPLIED, detail=str(error))
        except BackendUnavailable as error:
            return Outcome(state=MitigationState.UNKNOWN, detail=f"answer lost: {error}")
        return done

    async def _change(self, preparation: Preparation, effect: str) -> Change:
        """Make the request; a template to go back to is read here, and not kept in any ledger."""
        if preparation.mitigation.kind != UNDO_ROLLOUT:
            return change_of(preparation, effect)
        mitigation = preparation.mitigation
        deployment = await self._workload(mitigation.target)
        kept = await self._replica_sets(mitigation.target, deployment)
        with self._reading():
            return change_back(preparation, effect, pinned(kept, mitigation.items[0]))

    async def _planned(self, mitigation: Mitigation) -> Preparation:
        target = mitigation.target
        deployment = await self._workload(target)
        autoscalers, pods, sets, quotas = await asyncio.gather(
            self._autoscalers(target),
            self._pods(target, deployment),
            self._replica_sets(target, deployment),
            self._quotas_if_allowed(mitigation),
        )
        with self._reading():
            now = self._clock()
            scene = Scene(deployment, autoscalers, pods, sets, quotas, now, self._hands_off)
            return prepared(mitigation, scene)

    async def _quotas_if_allowed(self, mitigation: Mitigation) -> list[Object] | None:
        if mitigation.kind not in COUNTING_QUOTAS:
            return None
        try:
            return await self._quotas(mitigation.target)
        except Forbidden:
            return None

    async def _live(self, preparation: Preparation) -> Object | None:
        """Read the object that was prepared; None when it is gone, or is another of its name."""
        try:
            live = await self._client.get(str(preparation.before["object"]))
        except NotFound:
            return None
        return live if uid_of(live) == preparation.before["uid"] else None
