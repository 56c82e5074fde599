"""Kubernetes objects, as the API writes them in JSON, read into our values. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.target import Target
from remediator.model.workloads import (
    Autoscaler,
    ContainerResources,
    ContainerState,
    Granted,
    Pod,
    Revision,
    Termination,
    Workload,
    WorkloadEvent,
)

Object: TypeAlias = Mapping[str, Any]

STATEFUL_SET = "StatefulSet"
FAILED_CREATE = "FailedCreate"
"""Reason of conditions and events that say that the API server refuses a pod."""
REVISION = "deployment.kubernetes.io/revision"
_MANIFEST = "kubectl.kubernetes.io/last-applied-configuration"
_GITOPS = ("argocd", "argo-cd", "flux", "kustomize-controller", "helm-controller")
"""Beginnings of the field managers' names that belong to Argo CD and Flux."""
_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("MGTPE", start=2)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}
_REVISIONS = ("controller-revision-hash", "pod-template-hash")
"""Labels that tell from which template a pod was made."""
_EPOCH = datetime.min.replace(tzinfo=UTC)


def amount(text: object) -> Decimal:
    """Read a quantity such as ``512Mi``, ``250m``, ``1e9`` exactly; nothing is 0.

    Raises ``ValueError`` for what is no quantity.
    """
    written = "0" if text is None else str(text).strip()
    suffix = next((s for s in (written[-2:], written[-1:]) if s in _SUFFIXES), "")
    try:
        number = Decimal(written.removesuffix(suffix)) * _SUFFIXES.get(suffix, Decimal(1))
    except (InvalidOperation, OverflowError) as error:
        raise ValueError(f"{written!r} is not a quantity; write it like 512Mi or 2G") from error
    if not number.is_finite():
        raise ValueError(f"{written!r} is not a quantity; write it like 512Mi or 2G")
    return number


def quantity(text: object) -> int | None:
    """Read a quantity as a whole number of its unit, rounded down; None for none."""
    return None if text is None else int(amount(text))


def millicores(text: object) -> int | None:
    """Read a quantity of cores as thousandths, rounded up as kubectl does; None for none."""
    return None if text is None else math.ceil(amount(text) * 1000)


def written(size: int) -> str:
    """Write bytes as a quantity, in the largest binary unit that is exact."""
    for power, suffix in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{suffix}"
    return str(size)


# --- where things are --------------------------------------------------------------------------


def namespace_of(target: Target) -> str:
    """Return the namespace that the catalogue names."""
    try:
        return target.locator["namespace"]
    except KeyError:
        raise BackendRefused(f"the target {target.key} has no namespace") from None


def workload_path(target: Target) -> str:
    """Return where the workload is; ``BackendRefused`` when the target does not name one."""
    kind, name = named(target)
    return f"{apps_path(target)}/{kind.lower()}s/{quote(name, safe='')}"


def named(target: Target) -> tuple[str, str]:
    """Return kind and name of the workload; ``BackendRefused`` when it is none, or two."""
    found = [(kind, target.locator.get(kind.lower(), "")) for kind in ("Deployment", STATEFUL_SET)]
    meant = [(kind, name) for kind, name in found if name]
    if len(meant) != 1:
        what = "both a deployment and a stateful set" if meant else "no deployment"
        raise BackendRefused(f"the target {target.key} names {what}")
    return meant[0]


def apps_path(target: Target) -> str:
    """Return where the namespace's deployments and replica sets are."""
    return f"/apis/apps/v1/namespaces/{quote(namespace_of(target), safe='')}"


def core_path(target: Target) -> str:
    """Return where the namespace's pods and events are."""
    return f"/api/v1/namespaces/{quote(namespace_of(target), safe='')}"


def selector_of(deployment: Object) -> str:
    """Write the deployment's selector as a query; it is never empty."""
    selector = deployment["spec"].get("selector") or {}
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for rule in selector.get("matchExpressions") or ():
        key, values = rule["key"], ",".join(rule.get("values") or ())
        parts.append(
            {
                "In": f"{key} in ({values})",
                "NotIn": f"{key} notin ({values})",
                "Exists": key,
                "DoesNotExist": f"!{key}",
            }[rule["operator"]]
        )
    if not parts:
        raise BackendUnavailable("the deployment's selector is empty, which would mean every pod")
    return ",".join(parts)


def owned_by(objects: Iterable[Object], owners: Iterable[str]) -> list[Object]:
    """Keep the objects whose controller has one of the uids ``owners``."""
    uids = set(owners)
    return [found for found in objects if (controller_of(found) or {}).get("uid") in uids]


def controller_of(found: Object) -> Object | None:
    """Return the reference to the controller that owns the object."""
    references = found["metadata"].get("ownerReferences") or ()
    return next((reference for reference in references if reference.get("controller")), None)


def uid_of(found: Object) -> str:
    """Return the object's uid."""
    return str(found["metadata"]["uid"])


def gitops_manager(found: Object) -> str | None:
    """Return the field manager of a GitOps controller that wrote to the object."""
    for entry in found["metadata"].get("managedFields") or ():
        manager = str(entry.get("manager", ""))
        if manager.lower().startswith(_GITOPS) and not entry.get("subresource"):
            return manager
    return None


# --- what they say -----------------------------------------------------------------------------


def is_stateful(found: Object) -> bool:
    """Say whether it is a stateful set."""
    return found.get("kind") == STATEFUL_SET


def read_workload(deployment: Object) -> Workload:
    """Read a deployment or a stateful set."""
    metadata, spec = deployment["metadata"], deployment["spec"]
    status = deployment.get("status") or {}
    annotations = metadata.get("annotations") or {}
    return Workload(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        replicas=spec.get("replicas", 1),
        ready=status.get("readyReplicas", 0),
        updated=status.get("updatedReplicas", 0),
        paused=bool(spec.get("paused")),
        rollout=_members(deployment) if is_stateful(deployment) else _rollout(deployment),
        refused=_refused(status),
        gitops=gitops_manager(deployment),
        annotations={key: text for key, text in annotations.items() if key != _MANIFEST},
        containers=tuple(_template_containers(spec["template"]["spec"])),
        whole=Granted.model_validate(_granted(spec["template"]["spec"])),
    )


def _rollout(deployment: Object) -> str | None:
    """Say how far a rollout is; pods that crash after a completed one are no rollout."""
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status") or {}
    updated, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
    if deployment["metadata"].get("generation", 0) > status.get("observedGeneration", 0):
        return "the last change has not been taken up yet"
    if updated < wanted:
        return f"{updated} of {wanted} replicas are updated"
    if total > updated:
        return f"{total - updated} replicas of an older revision are left"
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    reason = conditions.get("Progressing", {}).get("reason", "NewReplicaSetAvailable")
    return None if reason == "NewReplicaSetAvailable" else f"the new pods are not up: {reason}"


def _refused(status: Object) -> str | None:
    """Return the message of the replica set whose pods are refused; it is cleared by the first."""
    for condition in status.get("conditions") or ():
        kind = (condition.get("type"), condition.get("status"), condition.get("reason"))
        if kind == ("ReplicaFailure", "True", FAILED_CREATE):
            return str(condition.get("message") or FAILED_CREATE)
    return None


def refused_member(stateful: Object, members: int, events: Iterable[WorkloadEvent]) -> str | None:
    """Return why a stateful set has only so many ``members``, by its own events; None otherwise.

    Its status does not tell: it is not written while a member cannot be made.
    """
    about = f"{STATEFUL_SET}/{stateful['metadata']['name']}"
    tried = [event for event in newest_first(events) if event.about == about]
    failed = next((event for event in tried if event.reason == FAILED_CREATE), None)
    made = next((event for event in tried if event.reason == "SuccessfulCreate"), None)
    if failed is None or members >= stateful["spec"].get("replicas", 1):
        return None
    since_made = made is None or (failed.at or _EPOCH) > (made.at or _EPOCH)
    return failed.message or FAILED_CREATE if since_made else None


def _members(stateful: Object) -> str | None:
    """Say how far a change of a stateful set's members is, or None."""
    wanted, status = stateful["spec"].get("replicas", 1), stateful.get("status") or {}
    total, updated = status.get("replicas", 0), status.get("updatedReplicas", 0)
    if stateful["metadata"].get("generation", 0) > status.get("observedGeneration", 0):
        return "the last change has not been taken up yet"
    if total != wanted:
        return f"{total} of {wanted} members are there"
    if status.get("updateRevision") != status.get("currentRevision"):
        return f"{updated} of {wanted} members are updated"
    return None


def _template_containers(spec: Object) -> Iterator[ContainerResources]:
    for key in ("initContainers", "containers"):
        for container in spec.get(key) or ():
            yield ContainerResources(**_named(container, key), **_granted(container))


def _named(container: Object, key: str) -> dict[str, Any]:
    init = key == "initContainers"
    sidecar = init and container.get("restartPolicy") == "Always"
    return {"name": container["name"], "init": init, "sidecar": sidecar}


def _granted(holder: Object) -> dict[str, int | None]:
    """Read the ``resources`` of a container, of its status, or of a whole pod."""
    resources = holder.get("resources") or {}
    found: dict[str, int | None] = {}
    for kind in ("request", "limit"):
        amounts = resources.get(f"{kind}s") or {}
        found[f"memory_{kind}"] = quantity(amounts.get("memory"))
        found[f"cpu_{kind}"] = millicores(amounts.get("cpu"))
    return found


def read_pod(pod: Object) -> Pod:
    """Read a pod with all its containers."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        phase=status.get("phase", "Unknown"),
        ready=conditions.get("Ready") == "True",
        terminating=metadata.get("deletionTimestamp") is not None,
        created_at=metadata["creationTimestamp"],
        node=pod["spec"].get("nodeName"),
        containers=tuple(_containers(pod)),
        whole=Granted.model_validate(_granted(pod["spec"])),
        revision=_revision(metadata),
    )


def _revision(metadata: Object) -> str:
    labels = metadata.get("labels") or {}
    return next((str(labels[key]) for key in _REVISIONS if key in labels), "")


def _containers(pod: Object) -> Iterator[ContainerState]:
    status = pod.get("status") or {}
    for key in ("initContainers", "containers"):
        known = {s["name"]: s for s in status.get(f"{key.removesuffix('s')}Statuses") or ()}
        for container in pod["spec"].get(key) or ():
            yield _container(container, known.get(container["name"], {}), key)


def _container(container: Object, status: Object, key: str) -> ContainerState:
    state = status.get("state") or {}
    now = next((name for name in ("running", "waiting", "terminated") if name in state), "unknown")
    ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated")
    # what the kubelet has given it already; a resize is in the spec before it is made
    holder = status if status.get("resources") else container
    return ContainerState(
        **_named(container, key),
        **_granted(holder),
        state=_state(now),
        reason=(state.get(now) or {}).get("reason") or "",
        ready=bool(status.get("ready")),
        restarts=status.get("restartCount", 0),
        ended=_termination(ended),
    )


def _state(name: str) -> Literal["running", "waiting", "terminated", "unknown"]:
    match name:
        case "running" | "waiting" | "terminated":
            return name
        case _:
            return "unknown"


def _termination(terminated: Object | None) -> Termination | None:
    if not terminated:
        return None
    return Termination(
        reason=terminated.get("reason") or "",
        exit_code=terminated.get("exitCode", 0),
        finished_at=terminated.get("finishedAt"),
    )


def read_autoscaler(found: Object) -> Autoscaler:
    """Read a horizontal pod autoscaler of autoscaling/v1 or v2: what we need is the same."""
    spec, status = found["spec"], found.get("status") or {}
    owner = controller_of(found)
    owned = f"{owner['kind']}/{owner['name']}" if owner else None
    return Autoscaler(
        name=found["metadata"]["name"],
        resource_version=found["metadata"]["resourceVersion"],
        minimum=spec.get("minReplicas", 1),
        maximum=spec["maxReplicas"],
        current=status.get("currentReplicas") or 0,
        desired=status.get("desiredReplicas") or 0,
        managed_by=owned or gitops_manager(found),
    )


def scales(autoscaler: Object, target: Target) -> bool:
    """Say whether the autoscaler sets the replicas of the target's deployment."""
    meant = autoscaler["spec"].get("scaleTargetRef") or {}
    group = str(meant.get("apiVersion", "apps/v1")).partition("/")[0]
    same = (meant.get("kind"), meant.get("name")) == named(target)
    return same and group in ("apps", "extensions")


def read_event(event: Object) -> WorkloadEvent:
    """Read an event of either generation of the events API."""
    meant = event.get("involvedObject") or {}
    series = event.get("series") or {}
    at = event.get("lastTimestamp") or series.get("lastObservedTime") or event.get("eventTime")
    return WorkloadEvent(
        at=at or event["metadata"].get("creationTimestamp"),
        warning=event.get("type") == "Warning",
        reason=event.get("reason") or "",
        about=f"{meant.get('kind', '')}/{meant.get('name', '')}",
        message=(event.get("message") or "")[:500],
        count=event.get("count") or series.get("count") or 1,
    )


def newest_first(events: Iterable[WorkloadEvent]) -> tuple[WorkloadEvent, ...]:
    """Sort events by time; those without one come last."""
    return tuple(sorted(events, key=lambda event: event.at or _EPOCH, reverse=True))


def read_revision(replica_set: Object) -> Revision:
    """Read the revision that a replica set keeps."""
    metadata, status = replica_set["metadata"], replica_set.get("status") or {}
    containers = replica_set["spec"]["template"]["spec"]["containers"]
    return Revision(
        number=revision_of(replica_set),
        name=metadata["name"],
        uid=metadata["uid"],
        created_at=metadata["creationTimestamp"],
        replicas=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        images=tuple(container.get("image", "") for container in containers),
    )


def revision_of(found: Object) -> int:
    """Return the revision that a deployment runs or a replica set keeps; 0 before there is one."""
    return int((found["metadata"].get("annotations") or {}).get(REVISION, 0))
