"""How many more pods find a place: what a pod asks for, what quotas and nodes have left. Pure.

Counted for each node on its own: the sum of what is left on all of them is no place for a pod.
Not counted: affinities to other pods, spread constraints, volumes and host ports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

from remediator.backends.kubernetes import descriptions
from remediator.backends.kubernetes.objects import Object, amount

Amounts = Mapping[str, Decimal]
"""By the name of the resource."""
_LIMITS: dict[str, tuple[Literal["requests", "limits"], str]] = {
    "requests.cpu": ("requests", "cpu"),
    "requests.memory": ("requests", "memory"),
    "limits.cpu": ("limits", "cpu"),
    "limits.memory": ("limits", "memory"),
    "cpu": ("requests", "cpu"),
    "memory": ("requests", "memory"),
}
"""Names in a quota, and what of a pod they count."""
_PODS = ("pods", "count/pods")


class Demand(NamedTuple):
    """What one pod asks for."""

    requests: Amounts
    limits: Amounts


class QuotaRoom(NamedTuple):
    """What the tightest quota of a namespace leaves."""

    pods: int
    figures: str
    """Which quota, of what, and how much of it is used."""


class NodeRoom(NamedTuple):
    """What the nodes leave."""

    pods: int
    spare_memory: int | None
    """Bytes left beside one more pod, on the node that has the most; None where none fits."""


# --- what a pod asks for -------------------------------------------------------------------------


def demand_of(specs: Iterable[Object]) -> Demand:
    """Return the most that any of the pods' ``specs`` asks for.

    Pods that run have what a limit range or an autoscaler gave them besides their template.
    """
    each = [(_asked(spec, _request), _asked(spec, _limit)) for spec in specs]
    return Demand(_most(r for r, _ in each), _most(limits for _, limits in each))


def growth(old: Object, new: Object) -> Demand:
    """Return by how much more a pod of the spec ``new`` asks for than one of ``old``."""
    return Demand(*(_grown(_asked(old, kind), _asked(new, kind)) for kind in (_request, _limit)))


def _grown(old: Amounts, new: Amounts) -> Amounts:
    return {name: max(Decimal(0), size - old.get(name, size)) for name, size in new.items()}


def resized(spec: Object, kind: str, name: str, resources: Object) -> Object:
    """Return a pod's spec with other ``resources`` of one container, merged into its own."""
    return {
        **spec,
        kind: [
            {**c, "resources": _merged(c.get("resources") or {}, resources)}
            if c["name"] == name
            else c
            for c in spec[kind]
        ],
    }


def _merged(old: Object, new: Object) -> Object:
    return {**old, **{key: {**(old.get(key) or {}), **of} for key, of in new.items()}}


def _most(found: Iterable[Amounts]) -> Amounts:
    most: dict[str, Decimal] = {}
    for amounts in found:
        most |= {name: max(size, most.get(name, size)) for name, size in amounts.items()}
    return most


def _request(holder: Object) -> Object:
    resources = holder.get("resources") or {}
    return {**(resources.get("limits") or {}), **(resources.get("requests") or {})}


def _limit(holder: Object) -> Object:
    return (holder.get("resources") or {}).get("limits") or {}


def _asked(spec: Object, kind: Callable[[Object], Object]) -> Amounts:
    """Add up a pod as the scheduler does: init containers run before, sidecars beside the rest."""
    running = _sum(_amounts(kind(container)) for container in spec.get("containers") or ())
    beside: Amounts = {}
    starting: Amounts = {}
    for container in spec.get("initContainers") or ():
        together = _sum([beside, _amounts(kind(container))])
        starting = _most([starting, together])
        if container.get("restartPolicy") == "Always":
            beside = together
    most = _most([_sum([running, beside]), starting])
    whole = {**most, **_amounts(kind(spec))}
    return _sum([whole, _amounts(spec.get("overhead") or {})])


def _amounts(written: Object) -> Amounts:
    return {name: amount(size) for name, size in written.items()}


def _sum(found: Iterable[Amounts]) -> Amounts:
    total: dict[str, Decimal] = {}
    for amounts in found:
        total |= {name: total.get(name, Decimal(0)) + size for name, size in amounts.items()}
    return total


# --- quotas --------------------------------------------------------------------------------------


def scoped(quotas: Iterable[Object]) -> list[str]:
    """Name the quotas that hold for some pods only; they are not counted."""
    return [quota["metadata"]["name"] for quota in quotas if _scopes(quota)]


def quota_room(quotas: Sequence[Object], demand: Demand) -> QuotaRoom | None:
    """Return what the tightest quota leaves for such pods; None where none counts them.

    Raises ``KeyError`` for a quota that the cluster has not counted yet.
    """
    rooms = [
        _left(quota, name, demand)
        for quota in quotas
        if not _scopes(quota)
        for name in quota["status"]["hard"]
        if name in _PODS or name in _LIMITS
    ]
    return min(rooms, key=lambda room: room.pods, default=None)


def _scopes(quota: Object) -> bool:
    return bool(quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"))


def _left(quota: Object, name: str, demand: Demand) -> QuotaRoom:
    free, figures = _free(quota, name)
    each = _each(name, demand)
    if each is None:  # the API server refuses such a pod
        return QuotaRoom(0, f"{figures}, and these pods do not say their {name}")
    if not each:
        return QuotaRoom(_BOUNDLESS, figures)
    return QuotaRoom(_fit(free, each), figures)


def _free(quota: Object, name: str) -> tuple[Decimal, str]:
    """Return what a quota leaves of one resource, and its figures in descriptions."""
    status, called = quota["status"], quota["metadata"]["name"]
    hard, used = status["hard"][name], (status.get("used") or {}).get(name, "0")
    figures = f"{_said(name, amount(used))} of {_said(name, amount(hard))} {name} are used"
    return amount(hard) - amount(used), f"quota {called}: {figures}"


def _each(name: str, demand: Demand) -> Decimal | None:
    """Return what of a pod a quota of this name counts; None where the pod does not say it."""
    kind, resource = _LIMITS.get(name, ("requests", ""))
    found: Amounts = getattr(demand, kind)
    return Decimal(1) if name in _PODS else found.get(resource)


def quota_short(
    quotas: Sequence[Object], demand: Demand, more: Demand, replicas: int
) -> str | None:
    """Say which quota is too small for replacing all pods by ones that ask for ``more``, in turn.

    The most is asked for when the last old pod stands beside all the new ones.
    """
    for quota in quotas:
        for name in () if _scopes(quota) else quota["status"]["hard"]:
            if name not in _PODS and name not in _LIMITS:
                continue
            (free, figures), each = _free(quota, name), _each(name, demand)
            if each is None:
                return f"{figures}, and these pods do not say their {name}"
            grown = Decimal(0) if name in _PODS else _each(name, more) or Decimal(0)
            needed = each + replicas * grown
            if each and free < needed:
                return f"{figures}: replacing the pods in turn needs {_said(name, needed)} more"
    return None


def _said(name: str, needed: Decimal) -> str:
    return descriptions.memory(needed) if name.endswith("memory") else f"{needed.normalize():f}"


_BOUNDLESS = 1 << 31


def _fit(free: Decimal, each: Decimal) -> int:
    return max(0, int(free // each))


# --- nodes ---------------------------------------------------------------------------------------


def node_room(
    nodes: Iterable[Object], pods: Iterable[Object], template: Object, demand: Demand
) -> NodeRoom:
    """Count the pods that fit on the nodes which may take them, beside what is asked there."""
    there: dict[str, list[Object]] = {}
    for pod in pods:
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            there.setdefault(pod["spec"].get("nodeName") or "", []).append(pod["spec"])
    rooms = [
        _on_node(node, there.get(node["metadata"]["name"], []), demand)
        for node in nodes
        if may_take(node, template)
    ]
    spare = (room.spare_memory for room in rooms if room.spare_memory is not None)
    return NodeRoom(sum(room.pods for room in rooms), max(spare, default=None))


def _on_node(node: Object, specs: Sequence[Object], demand: Demand) -> NodeRoom:
    allocatable = _amounts(node["status"]["allocatable"])
    taken = _sum(_asked(spec, _request) for spec in specs)
    free = {
        name: allocatable.get(name, Decimal(0)) - taken.get(name, Decimal(0))
        for name in {"memory", *demand.requests}
    }
    fits = [_fit(allocatable["pods"] - len(specs), Decimal(1))]
    fits += [_fit(free[name], each) for name, each in demand.requests.items() if each]
    spare = free["memory"] - demand.requests.get("memory", Decimal(0))
    return NodeRoom(min(fits), int(spare) if min(fits) else None)


def may_take(node: Object, template: Object) -> bool:
    """Say whether the scheduler may put a pod of this spec on the node."""
    spec, labels = node["spec"], node["metadata"].get("labels") or {}
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
    wanted = template.get("nodeSelector") or {}
    chosen = all(labels.get(key) == value for key, value in wanted.items())
    if not ready or spec.get("unschedulable") or not chosen or not _attracted(node, template):
        return False
    tolerations = template.get("tolerations") or ()
    return all(
        any(_tolerates(toleration, taint) for toleration in tolerations)
        for taint in spec.get("taints") or ()
        if taint.get("effect") in ("NoSchedule", "NoExecute")
    )


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    same = toleration.get("key") == taint["key"]
    return same and (toleration.get("value") or "") == (taint.get("value") or "")


def _attracted(node: Object, template: Object) -> bool:
    """Hold the node affinity that is required: any of its terms, and all rules of a term."""
    affinity = (template.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    return any(
        all(_fits(rule, labels) for rule in term.get("matchExpressions") or ())
        and all(_fits(rule, fields) for rule in term.get("matchFields") or ())
        for term in required.get("nodeSelectorTerms") or ()
        if term.get("matchExpressions") or term.get("matchFields")
    )


def _fits(rule: Object, labels: Mapping[str, str]) -> bool:
    has, values = labels.get(rule["key"]), rule.get("values") or []
    match rule["operator"]:
        case "In":
            return has in values
        case "NotIn":
            return has not in values
        case "Exists":
            return has is not None
        case "DoesNotExist":
            return has is None
        case "Gt":
            return has is not None and int(has) > int(values[0])
        case "Lt":
            return has is not None and int(has) < int(values[0])
        case operator:
            raise ValueError(f"{operator!r} is no operator of a node affinity that we know")
