"""``remediator rbac``: the Roles that our accounts in a cluster need, and not a right more.

Readers read wherever a target is. Writers may do what the enabled playbooks propose, and only in
those namespaces where one of them may change something: in mode approve or auto.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import yaml

from remediator.backends.kubernetes.client import Right
from remediator.backends.kubernetes.quorum import MEMBERWISE
from remediator.backends.kubernetes.rbac import (
    COUNTING_QUOTAS,
    EVENTS,
    MEMBERS,
    NAMED,
    OPTIONAL,
    QUOTAS,
    READS,
    RIGHTS,
    rights_for,
)
from remediator.config.settings import Settings
from remediator.model.catalog import Catalogue
from remediator.model.errors import ConfigError
from remediator.model.kinds import ApprovalClass
from remediator.model.target import Mode
from remediator.playbook.loader import PlaybookSet
from remediator.service.loading import load, usable

KIND = "kubernetes"
ROOM = frozenset(right for right in OPTIONAL if right.everywhere)
"""What the reader may be given in the whole cluster, to count the room on its nodes."""

Workloads = Mapping[str, frozenset[str]]
"""Names of workloads, by what they are: ``deployment`` or ``statefulset``."""
Mitigators = dict[str, frozenset[str]]
"""Kinds of change that may be made, by namespace; none where it is only read."""

_GROUP = "rbac.authorization.k8s.io"
_ACTING = frozenset({Mode.APPROVE, Mode.AUTO})


class Account(NamedTuple):
    """A ServiceAccount of the service."""

    namespace: str
    name: str

    @classmethod
    def named(cls, text: str) -> Self:
        """Read ``NAMESPACE/NAME``; ``ConfigError`` for anything else."""
        namespace, _, name = text.partition("/")
        if not namespace or not name or "/" in name:
            raise ConfigError(f"{text!r} should be NAMESPACE/NAME of a ServiceAccount")
        return cls(namespace, name)


@dataclass(frozen=True)
class Wanted:
    """What roles are asked for."""

    reader: Account
    writer: Account
    cluster: str | None = None
    """Its name in ``backends.kubernetes``; None where there is only one."""
    namespaces: Sequence[str] = ()
    """Only these; none means every one that holds a target."""


def roles(settings: Settings, wanted: Wanted) -> str:
    """Return Roles and RoleBindings as YAML, a ClusterRole that may be left out at the end.

    Raises ``ConfigError`` when the configuration is wrong or holds nothing that was asked for.
    """
    levers, sets = _levers(settings, wanted), _sets(settings, wanted)
    workloads = _workloads(settings, wanted)
    parts = [
        _document(found)
        for space, kinds in levers.items()
        for found in _roles(space, kinds, wanted, workloads[space], sets=space in sets)
    ]
    parts.append(_OPTIONAL_PART + "---\n".join(map(_document, _room(wanted.reader))))
    return "---\n".join(parts)


def chart_values(settings: Settings, wanted: Wanted) -> str:
    """Return the same as values of the chart, as YAML; ``ConfigError`` as for ``roles``."""
    levers, sets = _levers(settings, wanted), _sets(settings, wanted)
    workloads = _workloads(settings, wanted)
    spaces: dict[str, dict[str, object]] = {
        space: {"levers": sorted(kinds)}
        | ({"statefulSets": True} if space in sets else {})
        | ({"workloads": _listed(workloads[space])} if kinds else {})
        for space, kinds in levers.items()
    }
    room = {"room": True} if _counts_room(settings, wanted) else {}
    values = {
        "rbac": {"namespaces": spaces, **room},
        "writer": {"enabled": any(levers.values())},
    }
    return _document(values)


def reader_rights(*, sets: bool = False) -> frozenset[Right]:
    """Return what the reader is given in a namespace; it can do without some of it.

    With ``sets`` a target there is a stateful set.
    """
    return READS | {EVENTS} | (OPTIONAL - ROOM) | ({MEMBERS} if sets else set())


def writer_rights(kinds: Collection[str], *, sets: bool = False) -> frozenset[Right]:
    """Return what the writer needs in a namespace for changes of these kinds.

    Listing quotas it can do without, but then it cannot see that they leave no room.
    """
    return rights_for(kinds, sets=sets) | (
        {QUOTAS} if COUNTING_QUOTAS & set(kinds) else frozenset()
    )


def rules(
    rights: Iterable[Right], workloads: Workloads | None = None
) -> list[dict[str, list[str]]]:
    """Write rights as the rules of a Role, one a resource.

    With ``workloads`` only those of these names may be changed, by a rule of their own.
    """
    verbs: dict[tuple[str, str, tuple[str, ...] | None], set[str]] = {}
    for right in rights:
        names = _names(right, workloads)
        if names != ():  # which would mean all of them
            verbs.setdefault((right.group, right.resource, names), set()).add(right.verb)
    return [
        {"apiGroups": [group], "resources": [resource]}
        | ({"resourceNames": list(names)} if names is not None else {})
        | {"verbs": sorted(verbs[group, resource, names])}
        for group, resource, names in sorted(verbs, key=lambda key: (*key[:2], key[2] or ()))
    ]


def _names(right: Right, workloads: Workloads | None) -> tuple[str, ...] | None:
    """Return the names of what a right is for; None for a right on whatever there is."""
    key = next((key for key, named in NAMED.items() if named == right), None)
    if workloads is None or key is None:
        return None
    return tuple(sorted(workloads.get(key, ())))


def workloads_by_namespace(catalogue: Catalogue, cluster: str) -> dict[str, Workloads]:
    """Return the names of the targets in each namespace of the cluster, by what they are."""
    found: dict[str, dict[str, frozenset[str]]] = {}
    for service in catalogue.services:
        for target in service.targets.values():
            if (target.kind, target.name) == (KIND, cluster):
                here = found.setdefault(target.locator["namespace"], {})
                for key in NAMED.keys() & target.locator.keys():
                    here[key] = here.get(key, frozenset()) | {target.locator[key]}
    return dict(found)


def named_rights(
    workloads: Mapping[str, Workloads],
) -> dict[tuple[Right, str], frozenset[str]]:
    """Return the names for which a right is given, by right and namespace."""
    return {
        (right, space): here.get(key, frozenset())
        for space, here in workloads.items()
        for key, right in NAMED.items()
    }


def levers_by_namespace(
    catalogue: Catalogue, playbooks: PlaybookSet, cluster: str
) -> dict[str, frozenset[str]]:
    """Return what the enabled playbooks may change in each namespace that holds a target."""
    found: dict[str, frozenset[str]] = {}
    for service in catalogue.services:
        for target in service.targets.values():
            if (target.kind, target.name) == (KIND, cluster):
                found.setdefault(target.locator["namespace"], frozenset())
        for enabled in service.playbooks.values():
            cls = playbooks.get(enabled.name)
            if cls is None or not _ACTING & set(enabled.modes.values()):
                continue
            for target in usable(service, cls).values():
                if (target.kind, target.name) == (KIND, cluster):
                    never = {k for k in cls.levers if service.approval(k) is ApprovalClass.NEVER}
                    wanted = cls.levers & RIGHTS.keys()
                    found[target.locator["namespace"]] |= wanted - never
    return dict(sorted(found.items()))


def with_sets(catalogue: Catalogue, cluster: str) -> frozenset[str]:
    """Return the namespaces of the cluster in which a target is a stateful set."""
    return frozenset(
        target.locator["namespace"]
        for service in catalogue.services
        for target in service.targets.values()
        if (target.kind, target.name) == (KIND, cluster) and "statefulset" in target.locator
    )


def _workloads(settings: Settings, wanted: Wanted) -> dict[str, Workloads]:
    return workloads_by_namespace(settings.catalogue(), _cluster(settings, wanted.cluster))


def _listed(workloads: Workloads) -> dict[str, list[str]]:
    return {f"{key}s": sorted(names) for key, names in sorted(workloads.items())}


def _sets(settings: Settings, wanted: Wanted) -> frozenset[str]:
    return with_sets(settings.catalogue(), _cluster(settings, wanted.cluster))


def _counts_room(settings: Settings, wanted: Wanted) -> bool:
    """Say whether an enabled playbook does less in the cluster unless the room is counted."""
    catalogue, playbooks = load(settings)
    cluster = (KIND, _cluster(settings, wanted.cluster))
    return any(
        "room" in needed and (lever in MEMBERWISE or "deployment" in target.locator)
        for service in catalogue.services
        for enabled in service.playbooks.values()
        if (cls := playbooks.get(enabled.name)) is not None
        for target in usable(service, cls).values()
        if (target.kind, target.name) == cluster
        for lever, needed in playbooks.build(enabled.name, enabled.parameters)
        .parameters.needs()
        .items()
    )


def _levers(settings: Settings, wanted: Wanted) -> Mitigators:
    catalogue, playbooks = load(settings)
    cluster = _cluster(settings, wanted.cluster)
    found = levers_by_namespace(catalogue, playbooks, cluster)
    if not found:
        raise ConfigError(f"no service has a target in the cluster {cluster}: no right is needed")
    unknown = [name for name in wanted.namespaces if name not in found]
    if unknown:
        known = ", ".join(found)
        raise ConfigError(
            f"no target is in namespace {', '.join(unknown)}; targets are in: {known}"
        )
    return {name: found[name] for name in found if name in (wanted.namespaces or found)}


def _cluster(settings: Settings, asked: str | None) -> str:
    names = sorted(settings.backends.kubernetes)
    known = ", ".join(names) or "none"
    if asked is not None and asked not in names:
        raise ConfigError(f"there is no cluster {asked!r} in backends.kubernetes; known: {known}")
    if asked is None and len(names) != 1:
        raise ConfigError(f"say which cluster with --cluster; backends.kubernetes has: {known}")
    return asked or names[0]


# --- as objects -------------------------------------------------------------------------------


_OPTIONAL_PART = (
    "# Optional, in the whole cluster: lets the reader count the room on the nodes. Without it\n"
    "# that room is unknown to it, the findings say so, and HighLatency scales nothing where\n"
    "# node_headroom is true.\n"
)


def _roles(
    namespace: str, kinds: frozenset[str], wanted: Wanted, workloads: Workloads, *, sets: bool
) -> Iterator[Mapping[str, Any]]:
    given = [("remediator-reader", wanted.reader, rules(reader_rights(sets=sets)))]
    if kinds:
        writer = rules(writer_rights(kinds, sets=sets), workloads)
        given.append(("remediator-writer", wanted.writer, writer))
    for name, account, ruled in given:
        metadata = {"name": name, "namespace": namespace}
        yield {**_head("Role", metadata), "rules": ruled}
        yield _binding("Role", metadata, account)


def _room(reader: Account) -> Iterator[Mapping[str, Any]]:
    metadata = {"name": "remediator-room"}
    yield {**_head("ClusterRole", metadata), "rules": rules(ROOM)}
    yield _binding("ClusterRole", metadata, reader)


def _binding(kind: str, metadata: Mapping[str, str], account: Account) -> Mapping[str, Any]:
    return {
        **_head(f"{kind}Binding", metadata),
        "roleRef": {"apiGroup": _GROUP, "kind": kind, "name": metadata["name"]},
        "subjects": [{"kind": "ServiceAccount", **account._asdict()}],
    }


def _head(kind: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    return {"apiVersion": f"{_GROUP}/v1", "kind": kind, "metadata": dict(metadata)}


def _document(content: Mapping[str, Any]) -> str:
    text: str = yaml.dump(content, Dumper=_Plain, sort_keys=False, default_flow_style=False)
    return text


class _Plain(yaml.SafeDumper):
    """Writes a value that stands twice twice, instead of an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
