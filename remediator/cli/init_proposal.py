"""Proposes the systems of a configuration from what was found; pure, apart from the playbooks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from remediator.cli.discovery import SERVICE_LABELS, SYSTEM_LABELS, Found, Labels, Workload
from remediator.playbook.base import Matcher
from remediator.playbook.loader import PlaybookSet

MOST_SERVICES = 50
"""Services that are proposed; more would not be read."""
SYSTEM = "main"
"""Name of the system of alerts that name none."""


@dataclass
class Proposed:
    """One service, as far as it is known."""

    system: str
    name: str
    match: Labels
    alerts: set[str] = field(default_factory=set)
    workload: Workload | None = None
    database: str | None = None
    app_role: str | None = None


def example() -> list[Proposed]:
    """Return the service that stands where nothing was found."""
    service = Proposed("shop", "orders", {"system": "shop", "service": "orders"})
    service.alerts = {"DatabaseConnectionPoolExhausted"}
    return [service]


def propose(found: Found) -> list[Proposed]:
    """Make a service of each pair of labels that alerts carry, of each job, of each deployment."""
    services: dict[tuple[str, str], Proposed] = {}
    named = [labels for labels in found.alerts if _first(labels, SERVICE_LABELS)]
    for labels in named or found.services:
        service = _of(labels)
        known = services.setdefault((service.system, service.name), service)
        known.alerts |= {labels["alertname"]} if "alertname" in labels else set()
    for workload in found.workloads:
        running = _that_runs(workload, services.values())
        if running is not None:
            running.workload = workload
            continue
        match = {"namespace": workload.namespace, "deployment": workload.name}
        service = Proposed(_name(workload.namespace), _name(workload.name), match)
        service.workload = workload
        services.setdefault((service.system, service.name), service)
    return list(services.values())[:MOST_SERVICES]


def attach(services: list[Proposed], playbooks: PlaybookSet, database: str, app_role: str) -> None:
    """Give the database to the one service whose alerts a playbook takes that needs one."""
    wanting = [
        service
        for service in services
        for cls in playbooks
        if "database" in cls.targets and any(_takes(cls.matches, a) for a in service.alerts)
    ]
    if len(wanting) == 1:
        wanting[0].database, wanting[0].app_role = database, app_role


def unplaced(found: Found) -> list[str]:
    """Name the alerts that say of no service that they are about it."""
    names = {a["alertname"] for a in found.alerts if not _first(a, SERVICE_LABELS)}
    placed = {a["alertname"] for a in found.alerts if _first(a, SERVICE_LABELS)}
    return sorted(names - placed)


def _of(labels: Labels) -> Proposed:
    service, system = _first(labels, SERVICE_LABELS), _first(labels, SYSTEM_LABELS)
    return Proposed(
        _name(labels[system]) if system else SYSTEM,
        _name(labels[service]),
        {label: labels[label] for label in (system, service) if label},
    )


def _first(labels: Labels, names: Iterable[str]) -> str:
    return next((name for name in names if labels.get(name)), "")


def _that_runs(workload: Workload, services: Iterable[Proposed]) -> Proposed | None:
    same = [s for s in services if workload.name in s.match.values()]
    near = [s for s in same if workload.namespace in s.match.values()]
    return (near or same)[0] if len(near or same) == 1 else None


def _name(text: str) -> str:
    """Make a name of the configuration; ``global`` means all systems there."""
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-") or "unnamed"
    return f"{made}-system" if made == "global" else made


# --- as YAML --------------------------------------------------------------------------------------


def written(
    services: list[Proposed], playbooks: PlaybookSet, prometheus: str | None
) -> Iterator[str]:
    """Yield the lines of ``systems``."""
    yield "systems:"
    for system in dict.fromkeys(service.system for service in services):
        mine = [service for service in services if service.system == system]
        yield f"  {system}:"
        yield "    services:"
        for service in mine:
            yield from _service(service, playbooks, prometheus)


def _service(service: Proposed, playbooks: PlaybookSet, prometheus: str | None) -> Iterator[str]:
    yield f"      {service.name}:"
    yield f"        match: {_flow(service.match)}"
    if service.alerts:
        yield f"        # its alerts: {', '.join(commented(name) for name in sorted(service.alerts))}"
    if prometheus:
        yield f"        prometheus: {prometheus}"
    if service.database or service.workload:
        yield "        targets:"
    if service.database:
        yield f"          database: {service.database}"
    if service.workload:
        place = {"cluster": "main", "namespace": service.workload.namespace}
        yield f"          workload: {_flow(place | {'deployment': service.workload.name})}"
    yield from _playbooks(service, playbooks)


def _playbooks(service: Proposed, playbooks: PlaybookSet) -> Iterator[str]:
    """Switch on what can work, and say what the rest needs."""
    has = {"database": service.database, "workload": service.workload}
    fitting, lacking = [], []
    for cls in playbooks:
        takes = any(_takes(cls.matches, name) for name in service.alerts)
        needs = sorted(role for role in cls.targets if not has.get(role))
        if takes and needs:
            lacking.append(f"{cls.name} needs the target {', '.join(needs)}")
        elif takes or (service.workload and "workload" in cls.targets):
            roles = service.app_role and service.database and "database" in cls.targets
            fitting.append((cls.name, f" {{app_roles: [{service.app_role}]}}" if roles else " {}"))
    for line in lacking:
        yield f"        # {line}"
    if not fitting:
        yield "        playbooks: {}  # none yet: its alerts are recorded, and nothing else is done"
        return
    yield "        playbooks:"
    yield from (f"          {name}:{parameters}" for name, parameters in fitting)


def _takes(matches: Iterable[Matcher], alertname: str) -> bool:
    return any(m.holds({"alertname": alertname}) for m in matches if m.label == "alertname")


def _flow(values: Mapping[str, str]) -> str:
    pairs = ", ".join(f"{_scalar(k)}: {_scalar(v)}" for k, v in values.items())
    return f"{{{pairs}}}"


def _scalar(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][\w-]*", text, re.ASCII)
    return text if plain and text.lower() not in {"true", "false", "null"} else json.dumps(text)


def commented(text: str) -> str:
    """Return text that cannot end a comment."""
    return re.sub(r"[^\w.:/ -]+", "?", text)[:80]
