"""What the configuration and the loaded playbooks make together; wrong pairs stop the start."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from remediator.config.file import WrongFile
from remediator.config.settings import Settings
from remediator.model.catalog import Catalogue, EnabledPlaybook, Service
from remediator.model.errors import ConfigError
from remediator.model.limits import Bound
from remediator.model.target import Target
from remediator.model.validation import did_you_mean, worded
from remediator.model.views import PlaybookUse, PlaybookView
from remediator.playbook.base import Matcher, Playbook
from remediator.playbook.describe import parameters_of
from remediator.playbook.loader import PlaybookSet, load_playbooks
from remediator.service.parameter_probes import wrong_roles


def load(settings: Settings) -> tuple[Catalogue, PlaybookSet]:
    """Build the catalogue and load the playbooks.

    Raises ``ConfigError`` that lists every enabled playbook that does not exist, whose
    parameters are wrong, or whose service lacks a target that it needs.
    """
    catalogue = settings.catalogue()
    playbooks = load_playbooks(settings.playbooks.folders)
    problems = [
        problem
        for service in catalogue.services
        for enabled in service.playbooks.values()
        for problem in _problems(settings, service, enabled, playbooks)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return catalogue, playbooks


def all_wrong(error: WrongFile) -> ConfigError:
    """Add what is wrong with the playbooks of what is sound in the file."""
    rest = error.rest
    if not isinstance(rest, Settings):
        return error
    try:
        load(rest)
    except WrongFile:  # what does not fit together has been said
        return error
    except ConfigError as more:
        return ConfigError(f"{error}\n{more}")
    return error


def _problems(
    settings: Settings, service: Service, enabled: EnabledPlaybook, playbooks: PlaybookSet
) -> Iterator[str]:
    key = ("systems", service.system, "services", service.name, "playbooks", enabled.name)
    cls = playbooks.get(enabled.name)
    said: list[str] = []
    try:
        playbook = playbooks.build(enabled.name, enabled.parameters)
        said += wrong_roles(playbook.parameters, service.targets)
    except ConfigError as error:
        wrong = error.__cause__
        if cls is None or not isinstance(wrong, ValidationError):
            said.append(str(error))
        else:
            for name, message in _explained(wrong, cls):
                yield f"{settings.where(*key, *name)}: {message}"
    said += _misfits(service, cls) if cls else []
    yield from (f"{settings.where(*key)}: {one}" for one in said)


def _explained(
    error: ValidationError, cls: type[Playbook[Any]]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Say what is wrong with which parameter, in the words of the file."""
    own = {"mode", "limits", "alertnames"}
    for detail in error.errors(include_url=False, include_input=False):
        message = worded(detail["type"], detail["msg"])
        if detail["type"] == "extra_forbidden":
            known = sorted(own | cls.parameters_type.model_fields.keys())
            message = f"is no parameter of it; {did_you_mean(str(detail['loc'][-1]), known)}"
        yield detail["loc"], message


def _misfits(service: Service, cls: type[Playbook[Any]]) -> Iterator[str]:
    for role in cls.targets.keys() - service.targets.keys():
        kind = cls.targets[role]
        yield f"needs a target {role!r} ({kind}): add it to the service's targets"
    kinds = {**cls.optional, **cls.targets}
    for role, target in usable(service, cls).items():
        if target.kind != kinds[role]:
            yield (
                f"needs the target {role!r} to be {kinds[role]},"
                f" but {target.name!r} is {target.kind}"
            )


def usable(service: Service, cls: type[Playbook[Any]]) -> dict[str, Target]:
    """Return the targets of ``service`` that the playbook may act on, by role."""
    roles = (*cls.targets, *(role for role in cls.optional if role not in cls.targets))
    return {role: service.targets[role] for role in roles if role in service.targets}


def every_bound(catalogue: Catalogue, playbooks: PlaybookSet) -> tuple[Bound, ...]:
    """List every bound that a mitigation could meet, each scope once."""
    found: dict[str, Bound] = {}
    for service in catalogue.services:
        for enabled in service.playbooks.values():
            cls = playbooks.get(enabled.name)
            if cls is None:
                continue
            own = enabled.limits.over(cls.limits)
            for target in usable(service, cls).values():
                for bound in service.bounds(catalogue.limits, enabled.name, own, target):
                    found.setdefault(bound.scope, bound)
    found.setdefault("global", Bound(scope="global", limits=catalogue.limits))
    return tuple(found.values())


def every_scope(catalogue: Catalogue) -> list[str]:
    """List what can be paused."""
    systems = {service.system for service in catalogue.services}
    return ["global", *systems, *(f"{s.system}/{s.name}" for s in catalogue.services)]


def every_decider(catalogue: Catalogue) -> dict[str, tuple[str, ...]]:
    """Name who may approve, by ``SYSTEM/SERVICE``, where not everybody with the role may."""
    return {
        f"{service.system}/{service.name}": service.approvers
        for service in catalogue.services
        if service.approvers is not None
    }


def views(catalogue: Catalogue, playbooks: PlaybookSet) -> list[PlaybookView]:
    """Show the playbooks by name, and where they are used."""
    return [_view(cls, catalogue) for cls in playbooks]


class LoadedPlaybooks:
    """Shows the playbooks and where they are used."""

    def __init__(self, catalogue: Catalogue, playbooks: PlaybookSet) -> None:
        self._views = views(catalogue, playbooks)

    async def playbooks(self) -> list[PlaybookView]:
        """List the playbooks by name."""
        return self._views


def _view(cls: type[Playbook[Any]], catalogue: Catalogue) -> PlaybookView:
    return PlaybookView(
        name=cls.name,
        summary=(inspect.getdoc(cls) or "").partition("\n")[0],
        matches=[_written(matcher) for matcher in cls.matches],
        targets=dict(cls.targets),
        levers=sorted(cls.levers),
        origin=(inspect.getsourcefile(cls) or cls.__module__).rpartition("/")[2],
        parameters=parameters_of(cls.parameters_type),
        services=[
            PlaybookUse(
                system=service.system,
                service=service.name,
                modes=enabled.modes,
                limits=enabled.limits.over(cls.limits),
                parameters=enabled.parameters,
                mitigations={k: v for k, v in service.mitigations.items() if k in cls.levers},
            )
            for service in catalogue.services
            if (enabled := service.playbooks.get(cls.name)) is not None
        ],
    )


def _written(matcher: Matcher) -> str:
    value = matcher.value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{matcher.label}{matcher.op}"{value}"'
