"""What may be changed in a cluster, inside which bounds, and the one request that does it. Pure.

A change is a patch that carries the object's resourceVersion and our annotation, or an eviction
that carries the pod's uid: the API server itself refuses a late or second one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pydantic import JsonValue

from remediator.backends.kubernetes import descriptions
from remediator.backends.kubernetes.client import Change
from remediator.backends.kubernetes.headroom import (
    demand_of,
    growth,
    quota_room,
    quota_short,
    resized,
    scoped,
)
from remediator.backends.kubernetes.objects import (
    Object,
    core_path,
    is_stateful,
    read_autoscaler,
    read_pod,
    read_workload,
    uid_of,
    workload_path,
    written,
)
from remediator.backends.kubernetes.preconditions import (
    EvictBounds,
    Json,
    MemoryBounds,
    RestartBounds,
    ScaleBounds,
    Scene,
    as_declared,
    forbid,
    in_turn,
    keeps_resized,
    missing_at_once,
    others_hands_off,
    patch_of,
    patching,
    read_bounds,
    steady,
)
from remediator.backends.kubernetes.quorum import MEMBERWISE, quorum_without
from remediator.backends.kubernetes.rollback import undo_rollout
from remediator.model.errors import BackendRefused
from remediator.model.mitigation import Figure, Instances, Mitigation, Preparation

PREPARED = "dry run"
"""What the annotation would say in a dry run, before there is an effect key."""
STEP = 2
"""Times that one change may raise a figure (procedures: +100 % a step)."""
RESTARTED = "kubectl.kubernetes.io/restartedAt"

Planner = Callable[[Mitigation, Scene], Preparation]


def prepared(mitigation: Mitigation, scene: Scene) -> Preparation:
    """Hold a mitigation against the live objects; ``BackendRefused`` says what forbids it."""
    kind = mitigation.kind
    human = is_stateful(scene.live) and kind not in MEMBERWISE
    forbid((human, f"{kind} is not made on a stateful set: it is a human's"))
    return PLANNERS[mitigation.kind](mitigation, scene)


def change_of(preparation: Preparation, effect: str) -> Change:
    """Make the one request that a preparation stands for, marked with ``effect``."""
    before = preparation.before
    path = str(before["object"])
    kind = preparation.mitigation.kind
    if kind == "evict_pod":
        return Change("POST", f"{path}/eviction", _eviction(before))
    return Change("PATCH", path, patch_of(kind, before, effect, before["change"]))


# --- the kinds ---------------------------------------------------------------------------------


def _scale(mitigation: Mitigation, scene: Scene) -> Preparation:
    bounds = read_bounds(mitigation, ScaleBounds)
    workload = steady(scene, bounds)
    wanted, running = bounds.replicas, workload.replicas
    forbid(
        (wanted > bounds.cap, f"{wanted} replicas are beyond the cap of {bounds.cap}"),
        (running >= wanted, f"already so: {running} replicas run, {wanted} are asked for"),
        (wanted > running * STEP, f"{running} to {wanted} replicas is more than twice in a step"),
    )
    quota = _quota(scene, wanted - running)
    figure = Figure(name="replicas", was=running, will=wanted)
    if scene.autoscalers:
        return _noting(quota, _raise_minimum(mitigation, scene, wanted)).noting(figure)
    path, found = workload_path(mitigation.target), scene.live
    others_hands_off(scene, found, {"replicas": wanted})
    plan = patching(mitigation, found, path, {"replicas": wanted}, {"replicas": running})
    return _noting(quota, plan).noting(figure)


def _quota(scene: Scene, more: int) -> str | None:
    """Refuse what the namespace's quotas leave no room for; say what could not be seen."""
    if scene.quotas is None:
        return _UNSEEN
    room = quota_room(scene.quotas, demand_of(_specs(scene)))
    if room is not None and room.pods < more:
        raise BackendRefused(f"{room.figures}: room for {room.pods} more pods, not for {more}")
    return _skipped(scene.quotas)


def _quota_for(scene: Scene, kind: str, name: str, resources: Json) -> str | None:
    """Refuse where a quota is too small for replacing the pods by ones of these resources."""
    if scene.quotas is None:
        return _UNSEEN
    workload = read_workload(scene.live)
    old = scene.live["spec"]["template"]["spec"]
    more = growth(old, resized(old, kind, name, resources))
    short = quota_short(scene.quotas, demand_of(_specs(scene)), more, workload.replicas)
    if short is not None:
        raise BackendRefused(short)
    return _skipped(scene.quotas)


def _specs(scene: Scene) -> list[Object]:
    return [scene.live["spec"]["template"]["spec"], *(pod["spec"] for pod in scene.pods)]


_UNSEEN = "not looked at: our account may not list resourcequotas"


def _skipped(quotas: Sequence[Object]) -> str | None:
    names = scoped(quotas)
    return f"not counted, since they have scopes: {', '.join(names)}" if names else None


def _noting(quota: str | None, plan: Preparation) -> Preparation:
    if quota is None:
        return plan
    return plan.model_copy(update={"before": {**plan.before, "quota": quota}})


def _raise_minimum(mitigation: Mitigation, scene: Scene, wanted: int) -> Preparation:
    """Scale through the autoscaler, which would take back any other way."""
    forbid((len(scene.autoscalers) > 1, "more than one autoscaler sets the replicas"))
    path, found = scene.autoscalers[0]
    scaler = read_autoscaler(found)
    name, bounds = f"autoscaler {scaler.name}", read_bounds(mitigation, ScaleBounds)
    managed = scaler.managed_by is not None and not bounds.allow_gitops
    forbid(
        (managed, f"the {name} is managed by {scaler.managed_by}, which would undo the change"),
        (wanted > scaler.maximum, f"{wanted} is beyond the {name}'s maximum of {scaler.maximum}"),
        (scaler.minimum >= wanted, f"already so: the {name}'s minimum is {scaler.minimum}"),
    )
    undo: Json = {"minReplicas": scaler.minimum}
    others_hands_off(scene, found, undo)
    return patching(mitigation, found, path, {"minReplicas": wanted}, undo)


def _restart(mitigation: Mitigation, scene: Scene) -> Preparation:
    bounds = read_bounds(mitigation, RestartBounds)
    workload = steady(scene, bounds)
    in_turn(scene)
    keeps_resized(scene, scene.pods)
    least = bounds.min_ready
    forbid((workload.ready < least, f"{workload.ready} pods are ready; a restart needs {least}"))
    annotations: Json = {RESTARTED: scene.now.isoformat(timespec="seconds")}
    change: Json = {"template": {"metadata": {"annotations": annotations}}}
    others_hands_off(scene, scene.live, change)
    path = workload_path(mitigation.target)
    plan = patching(mitigation, scene.live, path, change, None)
    return plan.noting(instances=missing_at_once(scene))


def _evict(mitigation: Mitigation, scene: Scene) -> Preparation:
    bounds = read_bounds(mitigation, EvictBounds)
    workload = steady(scene, bounds)
    forbid((len(mitigation.items) != 1, "one pod at a time: exactly one item is needed"))
    identity = mitigation.items[0].identity
    meant = (identity.get("pod"), identity.get("uid"))
    pods = {(pod["metadata"]["name"], uid_of(pod)): read_pod(pod) for pod in scene.pods}
    pod = pods.get((str(meant[0]), str(meant[1])))
    if pod is None or pod.terminating:
        raise BackendRefused(f"already so: the pod {meant[0]} is gone or going")
    keeps_resized(scene, [found for found in scene.pods if uid_of(found) == pod.uid])
    if is_stateful(scene.live):
        quorum_without(scene.live, scene.pods, pod.uid, scene.now)
    left = sum(other.ready and not other.terminating for other in pods.values() if other != pod)
    others = workload.replicas - 1
    forbid(
        (left < bounds.min_ready, f"{left} other pods are ready; {bounds.min_ready} must be"),
        (left < others, f"one after the other: {left} of {others} other pods are ready, wait"),
    )
    path = f"{core_path(mitigation.target)}/pods/{quote(pod.name, safe='')}"
    seen: Json = {"pod": pod.model_dump(mode="json", exclude={"containers"}), "others_ready": left}
    before: Json = {
        "object": path,
        "uid": pod.uid,
        "name": pod.name,
        "namespace": mitigation.target.locator["namespace"],
        "was": seen,
    }
    counted = Instances(touched=1, of_all=workload.replicas)
    return Preparation(mitigation=mitigation, before=before).noting(instances=counted)


def _set_memory(mitigation: Mitigation, scene: Scene) -> Preparation:
    bounds = read_bounds(mitigation, MemoryBounds)
    workload = steady(scene, bounds)
    in_turn(scene, cures=True)
    name, wanted = bounds.container, bounds.limit
    found = next((c for c in workload.containers if c.name == name), None)
    if found is None or found.memory_limit is None:
        what = "no memory limit that could be raised" if found else "no such container"
        raise BackendRefused(f"container {name}: {what}")
    limit = found.memory_limit
    as_declared(scene, name, limit)
    cap = f"{descriptions.memory(wanted)} is beyond the cap of {descriptions.memory(bounds.cap)}"
    forbid(
        (wanted > bounds.cap, cap),
        (limit >= wanted, f"already so: the limit of {name} is {descriptions.memory(limit)}"),
        (
            wanted > limit * STEP,
            f"{descriptions.memory(limit)} to {descriptions.memory(wanted)} is more than twice",
        ),
    )
    kind = "initContainers" if found.init else "containers"
    template = scene.live["spec"]["template"]["spec"]
    old = next(c for c in template[kind] if c["name"] == name)["resources"]
    change: Json = {"limits": {"memory": written(wanted)}}
    undo: Json = {"limits": {"memory": old["limits"]["memory"]}}
    if found.memory_request == limit:  # a request beside the limit keeps the pods Guaranteed
        change["requests"] = {"memory": written(wanted)}
        undo["requests"] = {"memory": old["requests"]["memory"]}
    others_hands_off(scene, scene.live, _resources(kind, name, change))
    quota = _quota_for(scene, kind, name, change)
    plan = patching(
        mitigation,
        scene.live,
        workload_path(mitigation.target),
        _resources(kind, name, change),
        _resources(kind, name, undo),
    )
    figure = Figure(name=f"memory of {name}", was=limit, will=wanted)
    return _noting(quota, plan).noting(figure, missing_at_once(scene))


PLANNERS: Mapping[str, Planner] = {
    "scale": _scale,
    "restart_rollout": _restart,
    "evict_pod": _evict,
    "set_memory": _set_memory,
    "undo_rollout": undo_rollout,
}

CONSEQUENCES: Mapping[str, str] = {
    "scale": "More pods run and use the cluster's room and their backends' connections; running pods"
    " are not touched.",
    "restart_rollout": "Every pod is replaced, one after the other as the rollout's strategy says; work"
    " in progress in a pod is lost unless it shuts down gracefully.",
    "evict_pod": "One pod is terminated and replaced; work in progress in it is lost unless it shuts"
    " down gracefully.",
    "set_memory": "Every pod is replaced with a new memory limit, one after the other as the rollout's"
    " strategy says.",
    "undo_rollout": "The release before this one is rolled out again and every pod is replaced; what"
    " the current release brought is gone until it is deployed again.",
}
"""What each does to those it hits, for whoever approves it."""


def _resources(kind: str, name: str, resources: Json) -> Json:
    container: JsonValue = {"name": name, "resources": resources}
    return {"template": {"spec": {kind: [container]}}}


def _eviction(before: Mapping[str, JsonValue]) -> dict[str, Any]:
    # without apiVersion and kind, the server reads it as the version that it has
    return {
        "metadata": {"name": before["name"], "namespace": before["namespace"]},
        "deleteOptions": {"preconditions": {"uid": before["uid"]}},
    }
