"""What the configuration and the loaded playbooks make together; wrong pairs stop the start."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from remediator.app.parameters import parameters_of
from remediator.catalogue import Catalogue, EnabledPlaybook, Service
from remediator.errors import ConfigError
from remediator.model import Bound, Target
from remediator.playbook import Matcher, Playbook, PlaybookSet, load_playbooks
from remediator.settings import Settings
from remediator.views import PlaybookUse, PlaybookView


def load(settings: Settings) -> tuple[Catalogue, PlaybookSet]:
    """Build the catalogue and load the playbooks.

    Raises ``ConfigError`` that lists every enabled playbook that does not exist, whose
    parameters are wrong, or whose service lacks a target that it needs.
    """
    catalogue = settings.catalogue()
    playbooks = load_playbooks(settings.playbooks.folders)
    problems = [
        f"{settings.where('systems', s.system, 'services', s.name, 'playbooks', e.name)}: {problem}"
        for s in catalogue.services
        for e in s.playbooks.values()
        for problem in _problems(s, e, playbooks)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return catalogue, playbooks


def _problems(service: Service, enabled: EnabledPlaybook, playbooks: PlaybookSet) -> Iterator[str]:
    try:
        playbook = playbooks.build(enabled.name, enabled.parameters)
    except ConfigError as error:
        yield str(error)
        return
    for role in playbook.targets.keys() - service.targets.keys():
        kind = playbook.targets[role]
        yield f"needs a target {role!r} ({kind}): add it to the service's targets"
    kinds = {**playbook.optional, **playbook.targets}
    for role, target in usable(service, type(playbook)).items():
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


class LoadedPlaybooks:
    """Shows the playbooks and where they are used."""

    def __init__(self, catalogue: Catalogue, playbooks: PlaybookSet) -> None:
        self._views = [_view(cls, catalogue) for cls in playbooks]

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
            )
            for service in catalogue.services
            if (enabled := service.playbooks.get(cls.name)) is not None
        ],
    )


def _written(matcher: Matcher) -> str:
    value = matcher.value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{matcher.label}{matcher.op}"{value}"'
