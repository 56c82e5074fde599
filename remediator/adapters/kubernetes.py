"""Kubernetes as a target: deployments and what can be done about them.

Reader and lever are two classes, for two accounts. Both see one namespace at a time, so that
Roles suffice; which rights they need is ``READS`` and ``WRITES``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import quote

import structlog

from remediator.adapters.kubernetes_changes import (
    PLANNERS,
    PREPARED,
    Scene,
    change_of,
    effect_on,
    holds,
    prepared,
    undoing,
    undone,
)
from remediator.adapters.kubernetes_client import (
    Conflict,
    KubernetesClient,
    NotDone,
    NotFound,
    Right,
)
from remediator.adapters.kubernetes_objects import (
    Object,
    apps_path,
    core_path,
    deployment_path,
    namespace_of,
    newest_first,
    owned_by,
    read_autoscaler,
    read_event,
    read_pod,
    read_revision,
    read_workload,
    scales,
    selector_of,
    uid_of,
)
from remediator.errors import BackendRefused, BackendUnavailable, RemediatorError
from remediator.model import (
    Mitigation,
    MitigationState,
    Outcome,
    Preparation,
    Sense,
    SenseState,
    Target,
)
from remediator.workloads import Autoscaler, Pod, Revision, Workload, WorkloadEvent

READS = frozenset(
    {
        Right("get", "apps", "deployments"),
        Right("list", "apps", "replicasets"),
        Right("list", "", "pods"),
        Right("list", "autoscaling", "horizontalpodautoscalers"),
    }
)
EVENTS = Right("list", "", "events")
WRITES = frozenset(
    {
        Right("patch", "apps", "deployments"),
        Right("patch", "autoscaling", "horizontalpodautoscalers"),
        Right("get", "autoscaling", "horizontalpodautoscalers"),
        Right("get", "", "pods"),
        Right("create", "", "pods/eviction"),
    }
)
PAGE, PAGES = 500, 10
"""Objects in one page of a list, and pages read at most."""

_AUTOSCALING = ("v2", "v1")
"""Versions that have all that we need, the best first."""
T = TypeVar("T")
UNDO_AGAIN = 3
"""Times that taking back looks afresh after it was refused or met a conflict."""
_log = structlog.get_logger(__name__)


class _Cluster:
    """One cluster with one account, as an async context manager."""

    rights: frozenset[Right]

    def __init__(
        self,
        kubeconfig: Path | None,
        *,
        name: str = "kubernetes",
        namespaces: Iterable[str] = (),
    ) -> None:
        """Use ``kubeconfig``, or none in a pod; the probe asks for rights in ``namespaces``.

        Raises ``ConfigError`` when it is entered and the file cannot be used.
        """
        self._client = KubernetesClient(kubeconfig, name)
        self._name = name
        self._namespaces = frozenset(namespaces) or frozenset({""})
        self._autoscaling: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    async def probe(self) -> Sense:
        """Say whether the API answers, and name the rights that our account lacks."""
        try:
            missing = await self._client.missing(self.rights, self._namespaces)
        except RemediatorError as error:
            return Sense(name=self._name, state=SenseState.IMPAIRED, reason=str(error))
        if missing:
            reason = f"{self._name}: our account may not {', '.join(missing)}; grant it"
            return Sense(name=self._name, state=SenseState.IMPAIRED, reason=reason)
        return Sense(name=self._name, state=SenseState.OK)

    # --- live objects --------------------------------------------------------------------------

    async def _deployment(self, target: Target) -> Object:
        return await self._client.get(deployment_path(target))

    async def _list(self, path: str, **query: str) -> list[Object]:
        """Read a whole list, page by page; half of one would be half of the truth."""
        found: list[Object] = []
        for _ in range(PAGES):
            page = await self._client.get(path, limit=str(PAGE), **query)
            found += page.get("items") or ()
            following = page.get("metadata", {}).get("continue")
            if not following:
                return found
            query["continue"] = following
        raise BackendUnavailable(f"{self._name}: more than {PAGE * PAGES} objects at {path}")

    async def _replica_sets(self, target: Target, deployment: Object) -> list[Object]:
        path, selector = f"{apps_path(target)}/replicasets", selector_of(deployment)
        return owned_by(await self._list(path, labelSelector=selector), [uid_of(deployment)])

    async def _pods(self, target: Target, deployment: Object) -> list[Object]:
        selector = selector_of(deployment)
        sets, pods = await asyncio.gather(
            self._replica_sets(target, deployment),
            self._list(f"{core_path(target)}/pods", labelSelector=selector),
        )
        return owned_by(pods, map(uid_of, sets))

    async def _autoscalers(self, target: Target) -> list[tuple[str, Object]]:
        if self._autoscaling is None:
            group = await self._client.get("/apis/autoscaling")
            served = {version["version"] for version in group.get("versions") or ()}
            self._autoscaling = next((v for v in _AUTOSCALING if v in served), "v1")
        path = (
            f"/apis/autoscaling/{self._autoscaling}/namespaces/{quote(namespace_of(target), safe='')}"
            "/horizontalpodautoscalers"
        )
        found = [scaler for scaler in await self._list(path) if scales(scaler, target)]
        return [(f"{path}/{scaler['metadata']['name']}", scaler) for scaler in found]


class KubernetesReader(_Cluster):
    """Reads the deployments of one cluster (``ports.Workloads``)."""

    rights = READS | {EVENTS}

    async def workload(self, target: Target) -> Workload:
        """Read the deployment itself."""
        return self._read(read_workload, await self._deployment(target))

    async def pods(self, target: Target) -> tuple[Pod, ...]:
        """List its pods, oldest first."""
        found = await self._pods(target, await self._deployment(target))
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
        deployment = await self._deployment(target)
        sets, found = await asyncio.gather(
            self._replica_sets(target, deployment), self._list(f"{core_path(target)}/events")
        )
        names = {f"ReplicaSet/{found['metadata']['name']}" for found in sets}
        pods = tuple(f"Pod/{found['metadata']['name']}-" for found in sets)
        name = target.locator["deployment"]
        names |= {f"Deployment/{name}", f"HorizontalPodAutoscaler/{name}"}
        events = [self._read(read_event, event) for event in found]
        return newest_first(e for e in events if e.about in names or e.about.startswith(pods))

    async def revisions(self, target: Target) -> tuple[Revision, ...]:
        """List the revisions that are kept, newest first."""
        found = await self._replica_sets(target, await self._deployment(target))
        revisions = [self._read(read_revision, kept) for kept in found]
        return tuple(sorted(revisions, key=lambda revision: revision.number, reverse=True))

    def _read(self, reading: Callable[[Object], T], found: Object) -> T:
        try:
            return reading(found)
        except (KeyError, TypeError, ValueError) as error:
            raise BackendUnavailable(
                f"{self._name}: an object cannot be read: {type(error).__name__}: {error}"
            ) from error


class KubernetesLever(_Cluster):
    """Changes the deployments of one cluster, one request each (``ports.Lever``).

    Every request is asked with ``dryRun=All`` when it is prepared, so that a missing right, a
    quota, a webhook or a disruption budget says no before anything is reserved.
    """

    rights = READS | WRITES
    kinds = frozenset(PLANNERS)
    conditional = True

    def __init__(
        self,
        kubeconfig: Path | None,
        *,
        name: str = "kubernetes",
        namespaces: Iterable[str] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(kubeconfig, name=name, namespaces=namespaces)
        self._clock = clock

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        """Read the live objects, hold the bounds against them, ask the API with a dry run."""
        preparation = await self._planned(mitigation)
        try:
            await self._client.send(change_of(preparation, PREPARED), dry_run=True)
        except Conflict as error:  # between our look and this: the next look sees it
            raise BackendUnavailable(f"it changed while it was looked at: {error}") from error
        return preparation

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Send the one request; a conflict or a refusal changes nothing."""
        try:
            await self._client.send(change_of(preparation, effect_key), dry_run=False)
        except (BackendRefused, NotDone) as error:
            outcome = Outcome(state=MitigationState.NOT_APPLIED, detail=str(error))
        except BackendUnavailable as error:
            outcome = Outcome(state=MitigationState.UNKNOWN, detail=f"answer lost: {error}")
        else:
            outcome = Outcome(state=MitigationState.APPLIED, detail=_done(preparation))
        _log.info("cluster_changed", effect_key=effect_key, state=outcome.state.value)
        return outcome

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Look for our annotation on the object; an evicted pod is gone or going."""
        evicted = preparation.mitigation.kind == "evict_pod"
        try:
            live = await self._live(preparation)
        except (BackendRefused, BackendUnavailable) as error:
            return Outcome(state=MitigationState.UNKNOWN, detail=f"cannot be looked up: {error}")
        if evicted:
            done = live is None or live["metadata"].get("deletionTimestamp") is not None
        else:
            done = live is not None and effect_on(live) == effect_key
        if done:
            return Outcome(state=MitigationState.APPLIED, detail=_done(preparation))
        return Outcome(state=MitigationState.NOT_APPLIED, detail="the object is without the change")

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        """Put the old figure back where our annotation and our figure still stand.

        A controller may write the object's status in between, so a conflict is looked at afresh.
        """
        if preparation.undo is None:
            raise BackendRefused(f"{preparation.mitigation.kind} cannot be taken back")
        outcome = await self._undo(preparation, effect_key)
        for _ in range(UNDO_AGAIN):
            if outcome.state is not MitigationState.NOT_APPLIED:
                break
            outcome = await self._undo(preparation, effect_key)
        return outcome

    async def _undo(self, preparation: Preparation, effect_key: str) -> Outcome:
        live = await self._live(preparation)
        if live is not None and effect_on(live) == undone(effect_key):
            return Outcome(state=MitigationState.REVERTED, detail="it has been put back before")
        ours = live is not None and effect_on(live) == effect_key
        if live is None or not ours or not holds(live["spec"], preparation.before["change"]):
            detail = "somebody else has changed it since, so it is left as it is"
            return Outcome(state=MitigationState.NOT_APPLIED, detail=detail)
        try:
            await self._client.send(undoing(preparation, effect_key, live), dry_run=False)
        except (BackendRefused, NotDone) as error:
            return Outcome(state=MitigationState.NOT_APPLIED, detail=str(error))
        except BackendUnavailable as error:
            return Outcome(state=MitigationState.UNKNOWN, detail=f"answer lost: {error}")
        return Outcome(state=MitigationState.REVERTED, detail=f"put back: {preparation.undo}")

    async def _planned(self, mitigation: Mitigation) -> Preparation:
        target = mitigation.target
        deployment = await self._deployment(target)
        autoscalers, pods = await asyncio.gather(
            self._autoscalers(target), self._pods(target, deployment)
        )
        try:
            scene = Scene(deployment, autoscalers, pods, self._clock())
            return prepared(mitigation, scene)
        except BackendRefused as error:
            raise BackendRefused(f"{self._name}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise BackendUnavailable(
                f"{self._name}: an object cannot be read: {type(error).__name__}: {error}"
            ) from error

    async def _live(self, preparation: Preparation) -> Object | None:
        """Read the object that was prepared; None when it is gone, or is another of its name."""
        try:
            live = await self._client.get(str(preparation.before["object"]))
        except NotFound:
            return None
        return live if uid_of(live) == preparation.before["uid"] else None


def _done(preparation: Preparation) -> str:
    before = preparation.before
    changed = before.get("change", "evicted")
    return f"{str(before['object']).rpartition('/')[2]}: {changed}, before: {before['was']}"
