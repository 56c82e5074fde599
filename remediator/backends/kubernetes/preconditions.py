"""What every change of a cluster rests upon, takes as parameters and is refused for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from pydantic import Field, JsonValue, ValidationError

from remediator.backends.kubernetes import descriptions
from remediator.backends.kubernetes.field_managers import Wrote, last_other_writer
from remediator.backends.kubernetes.objects import (
    Object,
    amount,
    is_stateful,
    owned_by,
    read_pod,
    read_workload,
    revision_of,
    uid_of,
)
from remediator.backends.kubernetes.quorum import members_in_turn, quorum_in_turn
from remediator.model.base import Value
from remediator.model.duration import Duration, format_duration
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.mitigation import Instances, Mitigation, Preparation
from remediator.model.workloads import EFFECT, Workload, effect_of

Json = dict[str, JsonValue]
_VERTICALLY_SCALED = frozenset({"vpaUpdates", "vpaObservedContainers"})
"""Annotations of pods whose size the vertical pod autoscaler sets when they are made."""


class Scene(NamedTuple):
    """The live objects that a decision rests upon."""

    live: Object
    """The deployment or the stateful set itself."""
    autoscalers: Sequence[tuple[str, Object]]
    """Those that scale it, each with its path."""
    pods: Sequence[Object]
    """Its own."""
    replica_sets: Sequence[Object]
    """Its own."""
    quotas: Sequence[Object] | None
    """Those of its namespace; None where our account may not list them."""
    now: datetime
    hands_off: timedelta = timedelta(0)
    """Time in which what others have set is not changed."""


class Bounds(Value):
    """What every kind of change takes."""

    allow_gitops: bool = False
    """Change also what a GitOps controller may change back."""


class ScaleBounds(Bounds):
    """Parameters of ``scale``."""

    replicas: int = Field(ge=1)
    cap: int = Field(ge=1)
    step_down: float = Field(default=0.25, gt=0, le=1)
    """Share of the present figure that one step of taking back lowers it by, at least 1."""
    step_pause: Duration = timedelta(minutes=10)
    """Time between two steps."""


class RestartBounds(Bounds):
    """Parameters of ``restart_rollout``."""

    min_ready: int = Field(default=2, ge=1)


class EvictBounds(Bounds):
    """Parameters of ``evict_pod``; its one item names the pod and its uid."""

    min_ready: int = Field(default=1, ge=1)
    """Ready pods that must be left."""


class MemoryBounds(Bounds):
    """Parameters of ``set_memory``, in bytes."""

    container: str
    limit: int = Field(gt=0)
    cap: int = Field(gt=0)


class UndoBounds(Bounds):
    """Parameters of ``undo_rollout``; its one item pins the revision to go back to."""

    from_revision: int = Field(ge=1)
    """The revision that runs and is to be left."""
    max_age_s: float = Field(default=3600, gt=0)
    """Seconds since the running revision was first rolled out."""


B = TypeVar("B", bound=Bounds)


def read_bounds(mitigation: Mitigation, kind: type[B]) -> B:
    """Read a mitigation's parameters; ``BackendRefused`` says which one is wrong."""
    try:
        return kind.model_validate(dict(mitigation.parameters))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BackendRefused(f"parameters of {mitigation.kind}: {problems}") from error


def forbid(*rules: tuple[bool, str]) -> None:
    """Refuse for the first rule that holds."""
    for forbidden, reason in rules:
        if forbidden:
            raise BackendRefused(reason)


def steady(scene: Scene, bounds: Bounds) -> Workload:
    """Return the workload; refuse what nothing may be changed about now.

    Raises ``BackendUnavailable`` while its status says that a rollout is over and its pods do not.
    """
    workload = read_workload(scene.live)
    managed = workload.gitops is not None and not bounds.allow_gitops
    forbid(
        (scene.live["metadata"].get("deletionTimestamp") is not None, "it is being deleted"),
        (workload.replicas == 0, "it is scaled to 0: somebody stopped it on purpose"),
        (workload.paused, "its rollout is paused: somebody works on it"),
        (workload.rollout is not None, f"a rollout is in progress: {workload.rollout}"),
        (managed, f"it is managed by {workload.gitops}, which would undo the change"),
    )
    left = _of_other_revisions(scene)
    if left:
        raise BackendUnavailable(
            f"a rollout is in progress: {left} pods of another revision are there, which the"
            " deployment's status does not count"
        )
    return workload


def _of_other_revisions(scene: Scene) -> int:
    """Count pods that were not made from the present template; the status lags behind them."""
    if not scene.replica_sets:
        return 0
    runs = revision_of(scene.live)
    ours = [uid_of(kept) for kept in scene.replica_sets if revision_of(kept) == runs]
    mine = {uid_of(pod) for pod in owned_by(scene.pods, ours)}
    return sum(read_pod(pod).stays for pod in scene.pods if uid_of(pod) not in mine)


def in_turn(scene: Scene, *, cures: bool = False) -> None:
    """Refuse what would replace the pods of this workload other than one after the other.

    ``cures`` says that a member which dies now and then does not any more once it is replaced.
    """
    if is_stateful(scene.live):
        members_in_turn(scene.live)
        quorum_in_turn(scene.live, scene.pods, scene.now, cures=cures)
        return
    replicas = read_workload(scene.live).replicas
    strategy = scene.live["spec"].get("strategy") or {}
    kind = strategy.get("type", "RollingUpdate")
    missing = (strategy.get("rollingUpdate") or {}).get("maxUnavailable", "25%")
    gone = _may_miss(scene.live, replicas)
    forbid(
        (kind != "RollingUpdate", f"its strategy {kind} would stop all pods at once"),
        (gone >= replicas, f"its maxUnavailable {missing} would stop all pods at once"),
    )


def as_declared(scene: Scene, name: str, limit: int) -> None:
    """Refuse to raise a limit that the pods do not have: somebody else sets another one."""
    for pod in map(read_pod, scene.pods):
        for container in pod.containers if pod.stays else ():
            has = container.memory_limit
            if container.name == name and has != limit:
                had = (
                    "no memory limit"
                    if has is None
                    else f"a memory limit of {descriptions.memory(has)}"
                )
                raise BackendRefused(
                    f"{name} of {pod.name} has {had}, and the template says {descriptions.memory(limit)}:"
                    " it was resized in place, or an autoscaler or a webhook sets it"
                )


def keeps_resized(scene: Scene, pods: Sequence[Object]) -> None:
    """Refuse to replace ``pods`` that were resized in place: the new ones would have less again."""
    declared = {c.name: c.memory_limit for c in read_workload(scene.live).containers}
    for found in pods:
        if _VERTICALLY_SCALED & (found["metadata"].get("annotations") or {}).keys():
            continue  # the autoscaler gives the new pod as much
        pod = read_pod(found)
        for container in pod.containers if pod.stays else ():
            limit, has = declared.get(container.name), container.memory_limit
            if limit is not None and has is not None and has > limit:
                raise BackendRefused(
                    f"{container.name} of {pod.name} was resized in place to {descriptions.memory(has)},"
                    f" and a new pod would have {descriptions.memory(limit)} again"
                )


def missing_at_once(scene: Scene) -> Instances:
    """Say how many pods a change in turn ends before their replacements are ready."""
    workload = read_workload(scene.live)
    if is_stateful(scene.live):
        return Instances(touched=1, of_all=workload.replicas)
    return Instances(touched=_may_miss(scene.live, workload.replicas), of_all=workload.replicas)


def _may_miss(deployment: Object, replicas: int) -> int:
    rolling = (deployment["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    missing = str(rolling.get("maxUnavailable", "25%"))
    of = replicas if missing.endswith("%") else 100
    return int(amount(missing.removesuffix("%")) * of / 100)


def others_hands_off(scene: Scene, found: Object, change: Json) -> None:
    """Refuse to change what somebody else has set just now: a human, an autoscaler, a release."""
    sets = scene.replica_sets if found is scene.live else ()
    wrote = last_other_writer(found, change, sets) if scene.hands_off else None
    if wrote is None or (wrote.at is not None and scene.now - wrote.at >= scene.hands_off):
        return
    raise BackendRefused(
        f"{wrote.manager} set it {_ago(wrote, scene.now)}; what others set within"
        f" {format_duration(scene.hands_off)} is not changed"
    )


def _ago(wrote: Wrote, now: datetime) -> str:
    if wrote.at is None:
        return "at a time that is not known"
    return f"{int(max(now - wrote.at, timedelta(0)).total_seconds() / 60)} min ago"


def effect_on(live: Object, kind: str | None = None) -> str | None:
    """Return whose change an object carries: the last of ``kind``, or the last of all."""
    annotations = live["metadata"].get("annotations") or {}
    return annotations.get(EFFECT if kind is None else effect_of(kind))


def patching(
    mitigation: Mitigation, found: Object, path: str, change: Json, undo: Json | None
) -> Preparation:
    """Prepare a patch of ``found`` with its way back, or with none."""
    before: Json = {
        "object": path,
        "uid": uid_of(found),
        "resource_version": found["metadata"]["resourceVersion"],
        "change": change,
        "was": undo or {},
    }
    way_back: Json | None = None if undo is None else {"change": undo}
    return Preparation(mitigation=mitigation, before=before, undo=way_back)


def patch_of(kind: str, seen: Mapping[str, JsonValue], effect: str, spec: object) -> dict[str, Any]:
    """Write a patch that the server refuses when the object is another, or has changed."""
    metadata = {
        "uid": seen["uid"],
        "resourceVersion": seen["resource_version"],
        "annotations": {EFFECT: effect, effect_of(kind): effect},
    }
    return {"metadata": metadata, "spec": spec}
