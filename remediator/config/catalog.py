"""The systems looked after, as the file has them, and the catalogue that is made of them.

Modes and limits are inherited here, targets are looked up among the backends, and whatever
cannot be told apart or reached is a problem. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, StrictBool

from remediator.config.approvals import (
    ApprovalsByRisk,
    ByKind,
    People,
    naming_complaints,
    number_complaints,
)
from remediator.config.escalation import EscalationEntry
from remediator.config.file import Key
from remediator.config.limits import LimitsByScope
from remediator.config.maintenance import Maintenance, MaintenanceEntry
from remediator.config.sections import Name, Section, Text
from remediator.config.severities import SeveritiesEntry
from remediator.config.slack import SlackPlace
from remediator.model.catalog import Catalogue, EnabledPlaybook, LimitsOverride, Service
from remediator.model.limits import Limits
from remediator.model.maintenance import Plan
from remediator.model.severity import APPROVAL_TIMES, Severities, Severity
from remediator.model.target import Mode, Risk, Target
from remediator.model.validation import did_you_mean

Names = Mapping[str, list[str]]
"""The configured backends: names by kind."""
Complaint = tuple[Key, str]
"""What is wrong, and the key of the value that it is wrong with."""

_HOUR = timedelta(hours=1)
_PAUSE = timedelta(minutes=5)
_EVERYWHERE = Limits(budget=10, window=_HOUR, cooldown=_PAUSE, concurrency=3)
_SYSTEM = Limits(budget=10, window=_HOUR, cooldown=_PAUSE, concurrency=1)
"""Procedures, section 0: 10 changes per system and hour, one change at a time per system."""
_NARROW = Limits(budget=5, window=_HOUR, cooldown=_PAUSE, concurrency=1)
_BY_NAME = ("postgres", "redis", "http")
"""Kinds of backend that are a target by themselves; a cluster needs to be told what is meant."""
_KINDS = {"cluster": "kubernetes", **{kind: kind for kind in _BY_NAME}}


# --- as the file has it -----------------------------------------------------------------------


class ModeByRisk(Section):
    """How far the service may go, by the risk of what is proposed."""

    low: Mode | None = None
    """For mitigations of low risk; left out: as one level up."""
    medium: Mode | None = None
    """For mitigations of medium risk; left out: as one level up."""
    high: Mode | None = None
    """For mitigations of high risk; left out: as one level up."""

    def over(self, modes: Mapping[Risk, Mode]) -> dict[Risk, Mode]:
        """Return ``modes`` with what is set here in its place."""
        return {risk: getattr(self, risk) or mode for risk, mode in modes.items()}


def _modes(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in list(Mode):
        raise ValueError(f"should be {', '.join(Mode)}, or a mapping of low, medium, high to these")
    return dict.fromkeys(Risk, value)


Modes = Annotated[ModeByRisk, BeforeValidator(_modes, json_schema_input_type=Mode | ModeByRisk)]
"""One mode for every risk, or a mapping by risk."""


class TargetEntry(Section):
    """One thing that may be acted on: a backend, and what inside it is meant.

    Any other key is a part of the locator, such as `namespace` and `deployment` in a cluster.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Text] = Field(init=False)

    backend: Name | None = None
    """Name of a backend of any kind but a cluster, when only one kind has that name."""
    cluster: Name | None = None
    """Name of a cluster in `backends.kubernetes`; needs `namespace` beside it."""
    postgres: Name | None = None
    """Name of a database in `backends.postgres`."""
    redis: Name | None = None
    """Name of a server in `backends.redis`."""
    http: Name | None = None
    """Name of an HTTP service in `backends.http`."""

    @property
    def locator(self) -> dict[str, str]:
        """What inside the backend is meant."""
        return dict(self.__pydantic_extra__)

    def find(self, names: Names) -> tuple[str, str]:
        """Return kind and name of the backend; ``ValueError`` says why it cannot be told."""
        given = [key for key in ("backend", *_KINDS) if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of backend, {', '.join(_KINDS)}")
        name = getattr(self, given[0])
        kind = _KINDS[given[0]] if given[0] in _KINDS else _kind_of(name, names)
        if name not in names.get(kind, ()):
            hint = did_you_mean(name, names.get(kind, []))
            raise ValueError(f"there is no {name!r} in backends.{kind}; {hint}")
        if kind == "kubernetes" and "namespace" not in self.locator:
            raise ValueError("a target in a cluster needs its namespace")
        return kind, name


def _kind_of(name: str, names: Names) -> str:
    kinds = [kind for kind in _BY_NAME if name in names.get(kind, ())]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        ways = " or ".join(f"{{{kind}: {name}}}" for kind in kinds)
        raise ValueError(f"{name!r} is the name of more than one backend; write {ways}")
    if name in names.get("kubernetes", ()):
        raise ValueError(
            f"{name!r} is a cluster; say what in it is meant:"
            f" {{cluster: {name}, namespace: N, deployment: D}}"
        )
    known = sorted({known for kind in _BY_NAME for known in names.get(kind, ())})
    raise ValueError(f"there is no backend {name!r}; {did_you_mean(name, known)}")


def _target(value: object) -> object:
    return {"backend": value} if isinstance(value, str) else value


class PlaybookEntry(Section):
    """A playbook switched on for a service. Any other key is a parameter of the playbook."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    mode: Modes = ModeByRisk()
    """How far this playbook may go here; one mode, or one by risk. Default: the service's."""
    limits: LimitsOverride = LimitsOverride()
    """Bounds of this playbook on this service. Default: the playbook's own."""
    alertnames: tuple[Text, ...] = ()
    """Names of alerts that it takes here besides its own."""

    @property
    def parameters(self) -> dict[str, JsonValue]:
        """What is left for the playbook's own model to read."""
        return dict(self.__pydantic_extra__)


Labels = dict[Text, Text]


class ServiceEntry(Section):
    """One service of a system."""

    match: Labels = Field(default_factory=dict)
    """Labels that an alert must carry to be about this service, besides those of the system."""
    prometheus: Name | None = None
    """Name in `backends.prometheus` of the Prometheus that watches it."""
    alertmanager: Name | None = None
    """Name in `backends.alertmanager` of the Alertmanager that its alerts come from."""
    silence: StrictBool = False
    """Whether its alerts are silenced there while a mitigation works, so that nobody is paged."""
    targets: dict[
        Name,
        Annotated[TargetEntry, BeforeValidator(_target, json_schema_input_type=str | TargetEntry)],
    ] = Field(default_factory=dict)
    """What may be read and acted on, by role; playbooks say which roles they need."""
    mode: Modes = ModeByRisk()
    """How far playbooks may go on this service. Default: the system's."""
    limits: LimitsOverride = LimitsOverride()
    """Bounds of this service. Default: `limits.service`."""
    approvals: ApprovalsByRisk = ApprovalsByRisk()
    """How many different persons must approve here, by risk. Default: the system's."""
    mitigations: ByKind = Field(default_factory=dict)
    """Who has to agree to a kind of mitigation here: `auto`, `one`, `two` persons, or `never`.
    Narrows the mode; the strictest word of this, the system's and the top's counts."""
    approvers: People | None = None
    """Names of those who may approve, reject and cancel here. Default: the system's."""
    escalation: EscalationEntry = EscalationEntry()
    """Who is called when this service needs a human. Default: the system's."""
    slack: SlackPlace = SlackPlace()
    """Where in Slack this service is told of. Default: the system's."""
    severities: SeveritiesEntry = SeveritiesEntry()
    """How severe alerts of this service are. Default: the system's."""
    pagerduty_resolve: StrictBool = False
    """Whether an incident of PagerDuty's is resolved there once its alert is mitigated."""
    maintenance: Maintenance = ()
    """When humans work on this service themselves: nothing is changed, nobody is told."""
    playbooks: dict[Name, PlaybookEntry | None] = Field(default_factory=dict)
    """Playbooks switched on, by name; no value means their defaults."""


class SystemEntry(Section):
    """Services that belong together."""

    match: Labels = Field(default_factory=dict)
    """Labels that an alert must carry to be about any of its services."""
    mode: Modes = ModeByRisk()
    """How far playbooks may go on this system. Default: the `mode` at the top."""
    limits: LimitsOverride = LimitsOverride()
    """Bounds of this system. Default: `limits.system`."""
    approvals: ApprovalsByRisk = ApprovalsByRisk()
    """How many different persons must approve here, by risk. Default: the `approvals` at the top."""
    mitigations: ByKind = Field(default_factory=dict)
    """Who has to agree to a kind of mitigation in this system, as in a service."""
    approvers: People | None = None
    """Names of those who may approve, reject and cancel here. Default: every operator and admin."""
    escalation: EscalationEntry = EscalationEntry()
    """Who is called when this system needs a human. Default: the `escalation` at the top."""
    slack: SlackPlace = SlackPlace()
    """Where in Slack this system is told of. Default: `slack` at the top."""
    severities: SeveritiesEntry = SeveritiesEntry()
    """How severe alerts of this system are. Default: the `severities` at the top."""
    maintenance: Maintenance = ()
    """When humans work on this system themselves: nothing is changed, nobody is told."""
    services: dict[Name, ServiceEntry] = Field(default_factory=dict)
    """The services, by name."""


Systems = Mapping[str, SystemEntry]


# --- what is wrong with it --------------------------------------------------------------------


def complaints(systems: Systems, names: Names) -> Iterator[Complaint]:
    """Yield what makes the systems unusable although every single value is well formed."""
    if "global" in systems:
        yield ("systems", "global"), "this name means all systems together; choose another one"
    seen: dict[frozenset[tuple[str, str]], str] = {}
    for system, name, key in _services(systems):
        service = systems[system].services[name]
        yield from _match_complaints(systems[system], service, key)
        match = frozenset(_merged(systems[system], service).items())
        other = seen.setdefault(match, f"{system}/{name}")
        if match and other != f"{system}/{name}":
            yield (*key, "match"), f"matches the same alerts as {other}; add a label to one of them"
        yield from _backend_complaints(service, key, names)


def _services(systems: Systems) -> Iterator[tuple[str, str, Key]]:
    for system, entry in systems.items():
        for name in entry.services:
            yield system, name, ("systems", system, "services", name)


def _merged(system: SystemEntry, service: ServiceEntry) -> dict[str, str]:
    return {**system.match, **service.match}


def _match_complaints(system: SystemEntry, service: ServiceEntry, key: Key) -> Iterator[Complaint]:
    if not _merged(system, service):
        yield (
            (*key, "match"),
            "neither the service nor its system has a match; it would take every alert",
        )
    for label, value in service.match.items():
        if system.match.get(label, value) != value:
            yield (
                (*key, "match", label),
                "the system's match wants another value of this label; no alert can carry both",
            )


def _backend_complaints(service: ServiceEntry, key: Key, names: Names) -> Iterator[Complaint]:
    for kind in ("prometheus", "alertmanager"):
        watched = getattr(service, kind)
        if watched is not None and watched not in names[kind]:
            hint = did_you_mean(watched, names[kind])
            yield (*key, kind), f"there is no {watched!r} in backends.{kind}; {hint}"
    if service.silence and service.alertmanager is None:
        yield (*key, "silence"), "needs alertmanager: the name of one in backends.alertmanager"
    for role, target in service.targets.items():
        try:
            target.find(names)
        except ValueError as error:
            yield (*key, "targets", role), str(error)


def approval_complaints(
    systems: Systems, approvals: ApprovalsByRisk, deciders: list[str]
) -> Iterator[Complaint]:
    """Yield the approvals that nobody could give, where ``deciders`` are all who may decide."""
    for system, entry in systems.items():
        key: Key = ("systems", system, "approvers")
        yield from naming_complaints(entry.approvers or (), key, deciders)
    for system, name, key in _services(systems):
        entry, service = systems[system], systems[system].services[name]
        yield from naming_complaints(service.approvers or (), (*key, "approvers"), deciders)
        needed = _approvals(approvals, entry, service)
        may = set(_approvers(entry, service) or deciders) & set(deciders)
        yield from number_complaints(needed, may, key)


def _approvals(
    approvals: ApprovalsByRisk, entry: SystemEntry, service: ServiceEntry
) -> dict[Risk, int]:
    top = approvals.over(dict.fromkeys(Risk, 1))
    return service.approvals.over(entry.approvals.over(top))


def _approval_times(
    approvals: ApprovalsByRisk, entry: SystemEntry, service: ServiceEntry
) -> dict[Severity, timedelta]:
    times = approvals.within.over(APPROVAL_TIMES)
    return service.approvals.within.over(entry.approvals.within.over(times))


def _approvers(entry: SystemEntry, service: ServiceEntry) -> tuple[str, ...] | None:
    return entry.approvers if service.approvers is None else service.approvers


# --- what it means ----------------------------------------------------------------------------


class Top(NamedTuple):
    """What the file says at the top, for all systems."""

    modes: ModeByRisk
    limits: LimitsByScope
    maintenance: Maintenance
    approvals: ApprovalsByRisk
    severities: SeveritiesEntry


def build_catalogue(systems: Systems, names: Names, top: Top) -> Catalogue:
    """Make the catalogue of systems that have no ``complaints``."""
    return Catalogue(
        limits=top.limits.everywhere.over(_EVERYWHERE),
        safeguards=top.limits.safeguards,
        services=tuple(
            _service(system, name, systems[system], names, top)
            for system, name, _ in _services(systems)
        ),
        maintenance=tuple(_plans(systems, top.maintenance)),
        severities=top.severities.over(Severities()),
    )


def _plans(systems: Systems, everywhere: Iterable[MaintenanceEntry]) -> Iterator[Plan]:
    yield from (entry.plan("global") for entry in everywhere)
    for system, name, _ in _services(systems):
        entries = systems[system].services[name].maintenance
        yield from (entry.plan(f"{system}/{name}") for entry in entries)
    for name, system_entry in systems.items():
        yield from (entry.plan(name) for entry in system_entry.maintenance)


def _service(system: str, name: str, entry: SystemEntry, names: Names, top: Top) -> Service:
    service, limits = entry.services[name], top.limits
    modes = top.modes.over(dict.fromkeys(Risk, Mode.SHADOW))
    own_modes = service.mode.over(entry.mode.over(modes))
    words = entry.severities.over(top.severities.over(Severities()))
    targets = {
        role: _located(target, names, system=system, service=name, role=role)
        for role, target in service.targets.items()
    }
    return Service(
        system=system,
        name=name,
        match=_merged(entry, service),
        targets=targets,
        prometheus=service.prometheus,
        alertmanager=service.alertmanager,
        silence=service.silence,
        pagerduty_resolve=service.pagerduty_resolve,
        playbooks={
            playbook: _enabled(playbook, use or PlaybookEntry(), own_modes)
            for playbook, use in service.playbooks.items()
        },
        approvals=_approvals(top.approvals, entry, service),
        approvers=_approvers(entry, service),
        approval_times=_approval_times(top.approvals, entry, service),
        severities=service.severities.over(words),
        limits=service.limits.over(limits.service.over(_NARROW)),
        system_limits=entry.limits.over(limits.system.over(_SYSTEM)),
        target_limits=limits.target.over(_NARROW),
    )


def _located(target: TargetEntry, names: Names, **where: str) -> Target:
    kind, name = target.find(names)
    return Target(kind=kind, name=name, locator=target.locator, **where)


def _enabled(name: str, entry: PlaybookEntry, modes: Mapping[Risk, Mode]) -> EnabledPlaybook:
    return EnabledPlaybook(
        name=name,
        modes=entry.mode.over(modes),
        limits=entry.limits,
        alertnames=entry.alertnames,
        parameters=entry.parameters,
    )
