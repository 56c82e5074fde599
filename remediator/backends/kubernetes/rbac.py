"""The rights that the accounts of a cluster need: to read, to read more, and for each change.

Data only: the probes ask for them, and roles are written from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from remediator.backends.kubernetes.client import Right

READS = frozenset(
    {
        Right("get", "apps", "deployments"),
        Right("list", "apps", "replicasets"),
        Right("list", "", "pods"),
        Right("list", "autoscaling", "horizontalpodautoscalers"),
    }
)
"""What both accounts need."""
EVENTS = Right("list", "", "events")
"""What the reader needs besides."""

LOGS = Right("get", "", "pods/log")
USAGE = Right("list", "metrics.k8s.io", "pods")
QUOTAS = Right("list", "", "resourcequotas")
NODES = Right("list", "", "nodes", everywhere=True)
ALL_PODS = Right("list", "", "pods", everywhere=True)
COUNTING_QUOTAS = frozenset({"scale", "set_memory"})
"""Kinds of change for which the writer counts quotas where it may list them."""
OPTIONAL = frozenset({LOGS, USAGE, QUOTAS, NODES, ALL_PODS})
"""Without one of these the reader knows less, and says so; it is not impaired."""

_PATCH = Right("patch", "apps", "deployments")
RIGHTS: Mapping[str, frozenset[Right]] = MappingProxyType(
    {
        "scale": frozenset(
            {
                _PATCH,
                Right("patch", "autoscaling", "horizontalpodautoscalers"),
                Right("get", "autoscaling", "horizontalpodautoscalers"),
            }
        ),
        "restart_rollout": frozenset({_PATCH}),
        "evict_pod": frozenset({Right("get", "", "pods"), Right("create", "", "pods/eviction")}),
        "set_memory": frozenset({_PATCH}),
        "undo_rollout": frozenset({_PATCH}),
    }
)
"""What the writer needs for each kind of change, besides ``READS``."""
MEMBERS = Right("get", "apps", "statefulsets")
"""What both accounts need besides where a target is a stateful set."""
_PATCH_SET = Right("patch", "apps", "statefulsets")
ON_SETS: Mapping[str, frozenset[Right]] = MappingProxyType(
    {
        "restart_rollout": frozenset({MEMBERS, _PATCH_SET}),
        "evict_pod": frozenset({MEMBERS}),
        "set_memory": frozenset({MEMBERS, _PATCH_SET}),
    }
)
"""What the writer needs for each kind of change of a stateful set, besides ``RIGHTS``."""
NAMED: Mapping[str, Right] = MappingProxyType({"deployment": _PATCH, "statefulset": _PATCH_SET})
"""What the writer is given for the workloads of the configuration by name and for no others, by the
key of a target that names one. What pods and autoscalers are called nobody knows before."""
WRITES = frozenset[Right]().union(*RIGHTS.values())


def rights_for(kinds: Iterable[str], *, sets: bool = False) -> frozenset[Right]:
    """Return all that the writer needs for changes of these kinds; for none it needs nothing.

    With ``sets`` some of what it changes are stateful sets.
    """
    several = tuple(kinds)
    needed = frozenset[Right]().union(*(RIGHTS[kind] for kind in several))
    if sets:
        needed = needed.union(*(ON_SETS.get(kind, frozenset()) for kind in several))
    return READS | needed if needed else needed
