"""What may be changed in a cluster, inside which bounds, and the one request that does it. Pure.

A change is a patch that carries the object's resourceVersion and our annotation, or an eviction
that carries the pod's uid: the API server itself refuses a late or second one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from pydantic import Field, JsonValue, ValidationError

from remediator.adapters.kubernetes_client import Change
from remediator.adapters.kubernetes_objects import (
    Object,
    core_path,
    deployment_path,
    quantity,
    read_autoscaler,
    read_pod,
    read_workload,
    uid_of,
    written,
)
from remediator.errors import BackendRefused
from remediator.model import Mitigation, Preparation, Value
from remediator.workloads import EFFECT, Workload

PREPARED = "dry run"
"""What the annotation would say in a dry run, before there is an effect key."""
STEP = 2
"""Times that one change may raise a figure (procedures: +100 % a step)."""
RESTARTED = "kubectl.kubernetes.io/restartedAt"

Json = dict[str, JsonValue]


class Scene(NamedTuple):
    """The live objects that a decision rests upon."""

    deployment: Object
    autoscalers: Sequence[tuple[str, Object]]
    """Those that scale it, each with its path."""
    pods: Sequence[Object]
    """Its own."""
    now: datetime


class Bounds(Value):
    """What every kind of change takes."""

    allow_gitops: bool = False
    """Change also what a GitOps controller may change back."""


class ScaleBounds(Bounds):
    """Parameters of ``scale``."""

    replicas: int = Field(ge=1)
    cap: int = Field(ge=1)


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


B = TypeVar("B", bound=Bounds)
Planner = Callable[[Mitigation, Scene], Preparation]


def prepared(mitigation: Mitigation, scene: Scene) -> Preparation:
    """Hold a mitigation against the live objects; ``BackendRefused`` says what forbids it."""
    return PLANNERS[mitigation.kind](mitigation, scene)


def change_of(preparation: Preparation, effect: str) -> Change:
    """Make the one request that a preparation stands for, marked with ``effect``."""
    before = preparation.before
    path = str(before["object"])
    if preparation.mitigation.kind == "evict_pod":
        return Change("POST", f"{path}/eviction", _eviction(before))
    return Change("PATCH", path, _patch(before, effect, before["change"]))


def undoing(preparation: Preparation, effect: str, live: Object) -> Change:
    """Make the request that puts back what was there, if ``live`` is still what we see."""
    metadata = live["metadata"]
    seen: Json = {"uid": metadata["uid"], "resource_version": metadata["resourceVersion"]}
    spec = (preparation.undo or {})["change"]
    return Change("PATCH", str(preparation.before["object"]), _patch(seen, undone(effect), spec))


def undone(effect: str) -> str:
    """Return what the annotation says after a change was put back."""
    return f"{effect}/reverted"


def effect_on(live: Object) -> str | None:
    """Return whose change an object carries."""
    return (live["metadata"].get("annotations") or {}).get(EFFECT)


def holds(live: object, asked: object) -> bool:
    """Say whether everything in ``asked`` is so in ``live``; lists are matched by name."""
    if isinstance(asked, Mapping):
        return isinstance(live, Mapping) and all(holds(live.get(k), v) for k, v in asked.items())
    if isinstance(asked, list):
        named = {part["name"]: part for part in live} if isinstance(live, list) else {}
        return all(holds(named.get(part["name"]), part) for part in asked)
    return live == asked or _same_quantity(live, asked)


def _same_quantity(one: object, other: object) -> bool:
    try:
        return None not in (one, other) and quantity(one) == quantity(other)
    except ValueError:
        return False


# --- the kinds ---------------------------------------------------------------------------------


def _scale(mitigation: Mitigation, scene: Scene) -> Preparation:
    bounds = _read(mitigation, ScaleBounds)
    workload = _steady(scene, bounds)
    wanted, running = bounds.replicas, workload.replicas
    _forbid(
        (wanted > bounds.cap, f"{wanted} replicas are beyond the cap of {bounds.cap}"),
        (running >= wanted, f"already so: {running} replicas run, {wanted} are asked for"),
        (wanted > running * STEP, f"{running} to {wanted} replicas is more than twice in a step"),
    )
    if scene.autoscalers:
        return _raise_minimum(mitigation, scene, wanted)
    return _patching(
        mitigation,
        scene.deployment,
        deployment_path(mitigation.target),
        {"replicas": wanted},
        {"replicas": running},
    )


def _raise_minimum(mitigation: Mitigation, scene: Scene, wanted: int) -> Preparation:
    """Scale through the autoscaler, which would take back any other way."""
    _forbid((len(scene.autoscalers) > 1, "more than one autoscaler sets the replicas"))
    path, found = scene.autoscalers[0]
    scaler = read_autoscaler(found)
    name, bounds = f"autoscaler {scaler.name}", _read(mitigation, ScaleBounds)
    managed = scaler.managed_by is not None and not bounds.allow_gitops
    _forbid(
        (managed, f"the {name} is managed by {scaler.managed_by}, which would undo the change"),
        (wanted > scaler.maximum, f"{wanted} is beyond the {name}'s maximum of {scaler.maximum}"),
        (scaler.minimum >= wanted, f"already so: the {name}'s minimum is {scaler.minimum}"),
    )
    undo: Json = {"minReplicas": scaler.minimum}
    return _patching(mitigation, found, path, {"minReplicas": wanted}, undo)


def _restart(mitigation: Mitigation, scene: Scene) -> Preparation:
    bounds = _read(mitigation, RestartBounds)
    workload = _steady(scene, bounds)
    strategy = (scene.deployment["spec"].get("strategy") or {}).get("type", "RollingUpdate")
    least = bounds.min_ready
    _forbid(
        (strategy != "RollingUpdate", f"its strategy {strategy} would stop all pods at once"),
        (workload.ready < least, f"{workload.ready} pods are ready; a restart needs {least}"),
    )
    annotations: Json = {RESTARTED: scene.now.isoformat(timespec="seconds")}
    template: JsonValue = {"metadata": {"annotations": annotations}}
    path = deployment_path(mitigation.target)
    return _patching(mitigation, scene.deployment, path, {"template": template}, None)


def _evict(mitigation: Mitigation, scene: Scene) -> Preparation:
    bounds = _read(mitigation, EvictBounds)
    _steady(scene, bounds)
    _forbid((len(mitigation.items) != 1, "one pod at a time: exactly one item is needed"))
    identity = mitigation.items[0].identity
    meant = (identity.get("pod"), identity.get("uid"))
    pods = {(pod["metadata"]["name"], uid_of(pod)): read_pod(pod) for pod in scene.pods}
    pod = pods.get((str(meant[0]), str(meant[1])))
    if pod is None or pod.terminating:
        raise BackendRefused(f"already so: the pod {meant[0]} is gone or going")
    left = sum(other.ready and not other.terminating for other in pods.values() if other != pod)
    _forbid((left < bounds.min_ready, f"{left} other pods are ready; {bounds.min_ready} must be"))
    path = f"{core_path(mitigation.target)}/pods/{quote(pod.name, safe='')}"
    seen: Json = {"pod": pod.model_dump(mode="json", exclude={"containers"}), "others_ready": left}
    before: Json = {
        "object": path,
        "uid": pod.uid,
        "name": pod.name,
        "namespace": mitigation.target.locator["namespace"],
        "was": seen,
    }
    return Preparation(mitigation=mitigation, before=before)


def _set_memory(mitigation: Mitigation, scene: Scene) -> Preparation:
    bounds = _read(mitigation, MemoryBounds)
    workload = _steady(scene, bounds)
    name, wanted = bounds.container, bounds.limit
    found = next((c for c in workload.containers if c.name == name), None)
    if found is None or found.memory_limit is None:
        what = "no memory limit that could be raised" if found else "no such container"
        raise BackendRefused(f"container {name}: {what}")
    limit = found.memory_limit
    cap = f"{written(wanted)} is beyond the cap of {written(bounds.cap)}"
    _forbid(
        (wanted > bounds.cap, cap),
        (limit >= wanted, f"already so: the limit of {name} is {written(limit)}"),
        (wanted > limit * STEP, f"{written(limit)} to {written(wanted)} is more than twice"),
    )
    kind = "initContainers" if found.init else "containers"
    template = scene.deployment["spec"]["template"]["spec"]
    old = next(c for c in template[kind] if c["name"] == name)["resources"]
    change: Json = {"limits": {"memory": written(wanted)}}
    undo: Json = {"limits": {"memory": old["limits"]["memory"]}}
    if found.memory_request == limit:  # a request beside the limit keeps the pods Guaranteed
        change["requests"] = {"memory": written(wanted)}
        undo["requests"] = {"memory": old["requests"]["memory"]}
    return _patching(
        mitigation,
        scene.deployment,
        deployment_path(mitigation.target),
        _resources(kind, name, change),
        _resources(kind, name, undo),
    )


PLANNERS: Mapping[str, Planner] = {
    "scale": _scale,
    "restart_rollout": _restart,
    "evict_pod": _evict,
    "set_memory": _set_memory,
}


# --- what they share ---------------------------------------------------------------------------


def _read(mitigation: Mitigation, kind: type[B]) -> B:
    try:
        return kind.model_validate(dict(mitigation.parameters))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BackendRefused(f"parameters of {mitigation.kind}: {problems}") from error


def _forbid(*rules: tuple[bool, str]) -> None:
    for forbidden, reason in rules:
        if forbidden:
            raise BackendRefused(reason)


def _steady(scene: Scene, bounds: Bounds) -> Workload:
    """Return the deployment; refuse what nothing may be changed about now."""
    workload = read_workload(scene.deployment)
    managed = workload.gitops is not None and not bounds.allow_gitops
    _forbid(
        (scene.deployment["metadata"].get("deletionTimestamp") is not None, "it is being deleted"),
        (workload.replicas == 0, "it is scaled to 0: somebody stopped it on purpose"),
        (workload.paused, "its rollout is paused: somebody works on it"),
        (workload.rollout is not None, f"a rollout is in progress: {workload.rollout}"),
        (managed, f"it is managed by {workload.gitops}, which would undo the change"),
    )
    return workload


def _patching(
    mitigation: Mitigation, found: Object, path: str, change: Json, undo: Json | None
) -> Preparation:
    before: Json = {
        "object": path,
        "uid": uid_of(found),
        "resource_version": found["metadata"]["resourceVersion"],
        "change": change,
        "was": undo or {},
    }
    way_back: Json | None = None if undo is None else {"change": undo}
    return Preparation(mitigation=mitigation, before=before, undo=way_back)


def _resources(kind: str, name: str, resources: Json) -> Json:
    container: JsonValue = {"name": name, "resources": resources}
    return {"template": {"spec": {kind: [container]}}}


def _patch(seen: Mapping[str, JsonValue], effect: str, spec: JsonValue) -> dict[str, Any]:
    metadata = {
        "uid": seen["uid"],
        "resourceVersion": seen["resource_version"],
        "annotations": {EFFECT: effect},
    }
    return {"metadata": metadata, "spec": spec}


def _eviction(before: Mapping[str, JsonValue]) -> dict[str, Any]:
    # without apiVersion and kind, the server reads it as the version that it has
    return {
        "metadata": {"name": before["name"], "namespace": before["namespace"]},
        "deleteOptions": {"preconditions": {"uid": before["uid"]}},
    }
