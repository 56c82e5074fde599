"""Kubernetes as a target: deployments, their pods, and the room that there is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import quote

from remediator.backends.kubernetes.client import Forbidden, NotFound, Right
from remediator.backends.kubernetes.cluster import Cluster, in_order
from remediator.backends.kubernetes.headroom import demand_of, node_room, quota_room
from remediator.backends.kubernetes.mitigator import NoRight
from remediator.backends.kubernetes.objects import (
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
)
from remediator.backends.kubernetes.pods import (
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
from remediator.backends.kubernetes.rbac import (
    ALL_PODS,
    EVENTS,
    LOGS,
    NODES,
    OPTIONAL,
    QUOTAS,
    READS,
    USAGE,
)
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.target import Target
from remediator.model.workloads import (
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


_METRICS = "/apis/metrics.k8s.io/v1beta1"


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
