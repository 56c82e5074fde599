"""What a playbook could do on a service as it is configured, and why not the rest."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from remediator.backends.kubernetes.quorum import MEMBERWISE
from remediator.model.catalog import EnabledPlaybook, Service
from remediator.model.kinds import KINDS, ApprovalClass
from remediator.model.ports import Breakers, Migrations
from remediator.model.target import Mode, Target
from remediator.playbook.base import Playbook
from remediator.playbook.loader import PlaybookSet
from remediator.service.backends import Backends, Key
from remediator.service.loading import usable

_SHAPES: Mapping[str, tuple[type, str]] = {
    "reset_breaker": (Breakers, "breakers"),
    "set_migration": (Migrations, "migrations"),
}
"""What the reader must be for a lever, and the key of the backend that makes it so."""


NO_SERVICES = (
    "no service is configured: alerts are recorded, and nothing else is done;"
    " `remediator init DIR` writes a configuration to start from"
)
NO_PLAYBOOK = (
    "no playbook is switched on: its alerts are recorded, and nothing else is done;"
    " `remediator playbooks` lists what there is and what each needs"
)


def without_playbook(
    folders: Iterable[Path], playbooks: PlaybookSet
) -> Iterator[tuple[Literal["warning"], str, str]]:
    """Warn of files in the operator's folders that hold no playbook."""
    sources = {Path(inspect.getsourcefile(cls) or "").resolve() for cls in playbooks}
    for folder in folders:
        for file in sorted(folder.glob("*.py")):
            if not file.name.startswith("_") and file.resolve() not in sources:
                wanted = "no class of Playbook with diagnose, propose and verify"
                yield "warning", f"playbook file {file}", f"holds {wanted}"


@dataclass(frozen=True)
class Reached:
    """What of the backends can be used now."""

    backends: Backends
    broken: frozenset[str]
    """Those that do not work, as the lines call them."""
    blind: Mapping[str, str] = field(default_factory=dict)
    """What the cluster of the role ``workload`` does not tell (``usage``, ``room``), and why."""

    def may_write(self, target: Target) -> bool:
        """Whether the target has a writer, or one that could not be opened."""
        key = (target.kind, target.name)
        return key in self.backends.levers or key in self.backends.unopened


@dataclass(frozen=True)
class Possible:
    """The levers of one playbook on one service."""

    levers: tuple[str, ...]
    never: Mapping[str, str] = field(default_factory=dict)
    """Why each of the others cannot be pulled."""
    not_now: Mapping[str, str] = field(default_factory=dict)
    """Why others are not pulled as long as what they rest upon cannot be read."""
    asked: Mapping[str, int] = field(default_factory=dict)
    """How many persons must agree, where that depends on the kind."""

    def __str__(self) -> str:
        """Say all of it in one sentence."""
        told = ", ".join(map(self._told, self.levers))
        could = f"could {told}" if told else "could do nothing"
        why_not = {"not now": self.not_now, "never": self.never}
        parts = (f"{when} {_listed(levers)}" for when, levers in why_not.items() if levers)
        return "; ".join([could, *parts])

    def _told(self, lever: str) -> str:
        needed = self.asked.get(lever)
        return lever if needed is None else f"{lever} (needs {needed} to approve)"


def _listed(levers: Mapping[str, str]) -> str:
    return ", ".join(f"{lever} ({why})" for lever, why in levers.items())


def acts(enabled: EnabledPlaybook) -> bool:
    """Say whether its mode lets it change anything."""
    return bool({Mode.APPROVE, Mode.AUTO} & set(enabled.modes.values()))


def possible(
    service: Service, playbook: Playbook[Any], reached: Reached, *, writes: bool
) -> Possible:
    """Sort the playbook's levers into those that it may come to pull and the others.

    A writer is asked for only if it ``writes``, and a backend that could not be opened speaks
    against nothing: that is an error of its own.
    """
    never = dict(playbook.impossible())
    forbidden = (one for one in playbook.levers if service.approval(one) is ApprovalClass.NEVER)
    never |= dict.fromkeys(forbidden, "mitigations says never")
    for lever in playbook.levers - never.keys():
        why = _hindrance(lever, usable(service, type(playbook)), reached.backends, writes=writes)
        if why is not None:
            never[lever] = why
    said = {lever: never[lever] for lever in sorted(never.keys() & playbook.levers)}
    not_now = {
        lever: "; ".join(dict.fromkeys(reached.blind[name] for name in sorted(blind)))
        for lever, needed in sorted(playbook.parameters.needs().items())
        if lever not in said and (blind := needed & reached.blind.keys())
    }
    levers = sorted(playbook.levers - said.keys() - not_now.keys())
    asked = {lever: n for lever in levers if (n := service.approval(lever).approvals)}
    return Possible(tuple(levers), said, not_now, asked)


def _hindrance(
    lever: str, targets: Mapping[str, Target], backends: Backends, *, writes: bool
) -> str | None:
    kind = KINDS[lever].backend if lever in KINDS else None
    found = [
        _on(lever, target, backends, writes=writes)
        for target in targets.values()
        if kind in (None, target.kind)
    ]
    if not found:
        return f"no target of kind {kind or 'any'}"
    return None if None in found else found[0]


def _on(lever: str, target: Target, backends: Backends, *, writes: bool) -> str | None:
    """Say what stands against pulling ``lever`` on ``target``, or None."""
    key: Key = (target.kind, target.name)
    name = f"{target.kind} {target.name}"
    if key in backends.unopened:
        return None
    if target.kind == "kubernetes" and "statefulset" in target.locator:
        if lever not in MEMBERWISE:
            return f"the target {target.role} is a stateful set"
    elif target.kind == "kubernetes" and "deployment" not in target.locator:
        return f"the target {target.role} names no deployment"
    shape = _SHAPES.get(lever)
    if shape is not None and not isinstance(backends.readers.get(key), shape[0]):
        return f"{shape[1]} is not set for {name}"
    writers = backends.levers.get(key, ())
    if writes and not writers:
        return f"no writer for {name}"
    if writes and not any(lever in writer.kinds for writer in writers):
        return f"the writer of {name} does not make it"
    return None
