"""``remediator check``: is the configuration right, are the backends there, what could be done?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import text

from remediator.config.settings import Settings
from remediator.model.catalog import Catalogue, EnabledPlaybook, Service
from remediator.model.duration import format_duration
from remediator.model.errors import ConfigError, RemediatorError
from remediator.model.finding import SenseState
from remediator.model.limits import Bound
from remediator.model.ports import Mitigator, Port, Silences
from remediator.playbook.base import Playbook
from remediator.playbook.loader import PlaybookSet
from remediator.remediation.step import probe
from remediator.service.audit_keys import look_at_key
from remediator.service.backends import Backends, Key, open_backends, open_notifier, open_silences
from remediator.service.capabilities import (
    NO_PLAYBOOK,
    NO_SERVICES,
    Reached,
    acts,
    possible,
    without_playbook,
)
from remediator.service.channels import look_at_channels
from remediator.service.key_prefixes import look_at_prefixes
from remediator.service.loading import load, usable
from remediator.service.parameter_probes import blind, look, missing_workload, without_name
from remediator.service.replicas.wiring import look_at_shared, serves_what
from remediator.service.run import store_url
from remediator.service.secrets import exposed
from remediator.store.database import open_database

Level = Literal["ok", "warning", "error"]
Line = tuple[Level, str, str]
"""How it is, of what, and a sentence."""


@dataclass(frozen=True)
class CheckReport:
    """What the check saw."""

    lines: tuple[Line, ...]
    startable: bool = True
    """Whether ``serve`` would start with this configuration."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings do not count."""
        return all(level != "error" for level, _, _ in self.lines)


async def check(settings: Settings, environ: Mapping[str, str] = os.environ) -> CheckReport:
    """Look at everything, change nothing.

    Raises ``ConfigError`` when the file's parts do not fit together: nothing can be tried then.
    """
    settings.check_listen()
    catalogue, playbooks = load(settings)
    unread = _unread_secrets(settings, environ)
    refusals = [*_credentials(settings, environ), *_chat(settings, environ)]
    refusals += [*look_at_channels(settings, catalogue, environ), look_at_key(settings, environ)]
    place = settings.place()
    file = place.base / Path(place.name).name if place.base.is_absolute() else "no file"
    read = f"{file}: {_count(len(catalogue.services), 'service')}"
    lines: list[Line] = [*without_playbook(settings.playbooks.folders, playbooks)]
    lines += exposed(settings, environ)
    if catalogue.services:
        lines.append(("ok", "limits", catalogue.safeguards.described(len(catalogue.services))))
    else:
        lines.append(("warning", "systems", NO_SERVICES))
    try:
        lines.append(await _store(settings, environ))
    except ConfigError as error:
        refusals.append(("error", "store", str(error)))
    try:
        lines += await _shared(settings, environ)
    except ConfigError as error:
        refusals.append(("error", "redis", str(error)))
    async with open_backends(settings, environ, partly=True, playbooks=playbooks) as backends:
        tried = await _backends(backends)
        shut = {key: _shut(settings, key, why) for key, why in backends.unopened.items()} | unread
        refusals += shut.values()
        tried += await _alertmanagers(settings, environ)
        wrong = [subject for level, subject, _ in (*shut.values(), *tried) if level == "error"]
        lines += await look_at_prefixes(settings, backends, frozenset(wrong))
        for service in catalogue.services:
            missing = await _targets(service, backends)
            broken = frozenset([*wrong, *(subject for _, subject, _ in missing)])
            lines += missing
            reached = Reached(backends, broken, await blind(service, playbooks, backends, broken))
            lines += _service(service, catalogue, playbooks, reached)
            lines += await _read(service, playbooks, reached)
    startable = all(level != "error" for level, _, _ in refusals)
    whole = sorted([*refusals, *tried, *lines], key=lambda line: _position(settings, line))
    return CheckReport((("ok", "configuration", read), *whole), startable)


def _position(settings: Settings, line: Line) -> int:
    """Return the line of the file in which the subject of ``line`` stands; 0 for none."""
    word, _, name = line[1].removesuffix(_WRITER).partition(" ")
    system, _, service = word.partition("/")
    key: tuple[str, ...] = (word,)
    if name and word in type(settings.backends).model_fields:
        key = ("backends", word, name)
    elif service:
        key = ("systems", system, "services", service)
        inner = ("targets", name.removeprefix(_TARGET))
        key += inner if name.startswith(_TARGET) else ("playbooks", name)
    return settings.place(*key).line


# --- the file and its secrets -----------------------------------------------------------------


def _credentials(settings: Settings, environ: Mapping[str, str]) -> Iterator[Line]:
    if not settings.credentials:
        where = f"two tokens are generated in {settings.state_dir} at the first start"
        yield "ok", "credentials", f"none configured: {where}, and only loopback is listened on"
    for credential in settings.credentials:
        try:
            credential.read(environ)
        except ConfigError as error:
            yield "error", f"credential {credential.name}", str(error)
        else:
            yield "ok", f"credential {credential.name}", f"role {credential.role}"


def _chat(settings: Settings, environ: Mapping[str, str]) -> Iterator[Line]:
    signing = settings.slack.secret("signing_secret") if settings.slack else None
    try:
        open_notifier(settings, environ)
        if signing is not None:
            signing.read(environ)
    except ConfigError as error:
        yield "error", "slack", str(error)


def _unread_secrets(settings: Settings, environ: Mapping[str, str]) -> dict[Key, Line]:
    """Find the backends with secrets that cannot be read, and say which."""
    found: dict[Key, Line] = {}
    for kind in type(settings.backends).model_fields:
        for name, backend in getattr(settings.backends, kind).items():
            for field in type(backend).model_fields:
                secret, _, suffix = field.rpartition("_")
                if suffix not in {"file", "env"} or getattr(backend, field) is None:
                    continue
                try:
                    backend.secret(secret).read(environ)
                except ConfigError as error:
                    problem = f"{settings.where('backends', kind, name, field)}: {error}"
                    _, _, others = found.get((kind, name), ("", "", ""))
                    said = f"{others}; {problem}" if others else problem
                    found[kind, name] = ("error", f"{kind} {name}", said)
    return found


def _shut(settings: Settings, key: Key, why: str) -> Line:
    kind, name = key
    return "error", f"{kind} {name}", f"{settings.where('backends', kind, name)}: {why}"


# --- what answers -----------------------------------------------------------------------------


async def _store(settings: Settings, environ: Mapping[str, str]) -> Line:
    url = store_url(settings, environ)
    if url.startswith("sqlite"):
        return "ok", "store", f"SQLite in {settings.state_dir}: one process"
    try:
        async with open_database(url) as database:
            pooling = await database.meet()
            async with database.read() as connection:
                await connection.execute(text("SELECT 1"))
    except RemediatorError as error:
        return "error", "store", str(error)
    return "ok", "store", pooling.meaning


async def _shared(settings: Settings, environ: Mapping[str, str]) -> list[Line]:
    """Ask the Redis of the replicas, without which the service starts all the same."""
    serves = serves_what(settings)
    if settings.redis.secret("url") is None:
        return []
    wrong = await look_at_shared(settings, environ)
    if wrong is None:
        return [("ok", "redis", f"answers; it serves the replicas {serves}")]
    return [("warning", "redis", f"{wrong}; the service goes on without {serves}")]


async def _backends(backends: Backends) -> list[Line]:
    readers = [(f"{kind} {name}", port) for (kind, name), port in backends.readers.items()]
    levers = [(_writer(key), lever) for key, found in backends.levers.items() for lever in found]
    tried: list[tuple[str, Port | Mitigator, str]] = [
        *((name, port, "can be read") for name, port in readers),
        *((name, lever, f"has the rights to {_named(lever.kinds)}") for name, lever in levers),
    ]
    return list(await asyncio.gather(*(_try(*one) for one in tried)))


async def _alertmanagers(settings: Settings, environ: Mapping[str, str]) -> list[Line]:
    async with open_silences(settings, environ, partly=True) as opened:
        return [await _ask(f"alertmanager {name}", one) for name, one in opened.items()]


async def _ask(name: str, silences: Silences) -> Line:
    sense = await silences.probe()
    if sense.state is SenseState.OK:
        return "ok", name, "answers; whether it lets us silence shows at the first silence"
    return "error", name, without_name(sense.reason, name)


async def _try(name: str, port: Port | Mitigator, good: str) -> Line:
    (sense,) = await probe({name: port}, frozenset({name}))
    if sense.state is SenseState.OK:
        return "ok", name, good
    backend = name.removesuffix(_WRITER)  # a backend's own errors begin with its name
    return "error", name, without_name(sense.reason, backend)


def _named(kinds: Iterable[str]) -> str:
    return ", ".join(sorted(kinds)) or "change nothing, as no mode is approve or auto"


_WRITER = " (writer)"


def _writer(key: Key) -> str:
    kind, name = key
    return f"{kind} {name}{_WRITER}"


# --- what could be done -----------------------------------------------------------------------


def _service(
    service: Service, catalogue: Catalogue, playbooks: PlaybookSet, reached: Reached
) -> Iterator[Line]:
    subject = f"{service.system}/{service.name}"
    if not service.playbooks:
        yield "warning", subject, NO_PLAYBOOK
    for enabled in service.playbooks.values():
        cls = playbooks.get(enabled.name)
        if cls is not None:  # load() has refused it otherwise
            playbook = playbooks.build(enabled.name, enabled.parameters)
            bounds = _bounds(service, catalogue, enabled, cls)
            for level, message in _playbook(service, enabled, playbook, bounds, reached):
                yield level, f"{subject} {enabled.name}", message


def _playbook(
    service: Service,
    enabled: EnabledPlaybook,
    playbook: Playbook[Any],
    bounds: tuple[Bound, ...],
    reached: Reached,
) -> Iterator[tuple[Level, str]]:
    needed, optional = _needs(service, type(playbook), reached)
    writes = acts(enabled)
    hindered = [f"see {', '.join(needed)}"] if needed else []
    lacking, spare = _without_writer(service, type(playbook), reached)
    if writes and lacking:
        named = ", ".join(lacking)
        hindered.append(f"its mode may change {named}, but no writer is configured for it")
    asked = writes and not lacking
    found = possible(service, playbook, reached, writes=asked)
    if hindered:
        yield "error", f"cannot act: {'; '.join(hindered)}; once that is mended: {found}"
    else:
        good = found.levers and not found.not_now
        yield "ok" if good else "warning", f"{_how(enabled)}; {found}; {_within(bounds)}"
    if optional and not hindered:
        yield "error", f"can do less: see {', '.join(optional)}"
    if writes and spare:
        yield "warning", f"cannot change {', '.join(spare)}: no writer is configured for it"
    for bound in bounds:
        if writes and min(bound.limits.budget, bound.limits.concurrency) == 0:
            yield "warning", f"the limits of {bound.scope} allow no change at all"


def _without_writer(
    service: Service, cls: type[Playbook[Any]], reached: Reached
) -> tuple[list[str], list[str]]:
    """Name the targets without a writer: those without which nothing can be done, and others."""
    targets = usable(service, cls)
    without = {
        role: target.name for role, target in targets.items() if not reached.may_write(target)
    }
    needed = set(cls.targets)
    if not needed and len(without) == len(targets):  # then none of them could be changed
        needed = set(without)
    lacking = [name for role, name in without.items() if role in needed]
    return lacking, [name for role, name in without.items() if role not in needed]


def _needs(
    service: Service, cls: type[Playbook[Any]], reached: Reached
) -> tuple[list[str], list[str]]:
    """Name what is broken and without which nothing is changed, and what else is broken."""
    needed, optional = [], []
    for role, target in service.targets.items():
        backend = (target.kind, target.name)
        if role in cls.targets or role in cls.senses:
            needed += [f"{target.kind} {target.name}", _target(service, role)]
        if role in cls.targets:
            needed.append(_writer(backend))
        elif role in cls.optional:
            optional.append(_writer(backend))
    if service.prometheus is not None and "prometheus" in cls.senses:
        needed.append(f"prometheus {service.prometheus}")
    broken = reached.broken
    return [n for n in needed if n in broken], [o for o in optional if o in broken]


async def _targets(service: Service, backends: Backends) -> list[Line]:
    """Read every deployment once; name those that are not there."""
    wrong = await asyncio.gather(
        *(missing_workload(target, backends) for target in service.targets.values())
    )
    found = zip(service.targets, wrong, strict=True)
    return [("error", _target(service, role), why) for role, why in found if why is not None]


async def _read(service: Service, playbooks: PlaybookSet, reached: Reached) -> list[Line]:
    """Read once what the parameters of the playbooks name."""
    lines: list[Line] = []
    for enabled in service.playbooks.values():
        if playbooks.get(enabled.name) is None:
            continue
        parameters = playbooks.build(enabled.name, enabled.parameters).parameters
        subject = f"{service.system}/{service.name} {enabled.name}"
        seen = await look(parameters, service, reached.backends, reached.broken)
        lines += [(level, subject, said) for level, said in seen]
    return lines


_TARGET = "target "


def _target(service: Service, role: str) -> str:
    return f"{service.system}/{service.name} {_TARGET}{role}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _how(enabled: EnabledPlaybook) -> str:
    modes = set(enabled.modes.values())
    if len(modes) == 1:
        return f"mode {modes.pop()}"
    return ", ".join(f"{risk} risk: {mode}" for risk, mode in enabled.modes.items())


def _bounds(
    service: Service, catalogue: Catalogue, enabled: EnabledPlaybook, cls: type[Playbook[Any]]
) -> tuple[Bound, ...]:
    """List every bound on what the playbook does to any of its targets, each scope once."""
    own = enabled.limits.over(cls.limits)
    every = (
        bound
        for target in usable(service, cls).values()
        for bound in service.bounds(catalogue.limits, enabled.name, own, target)
    )
    return tuple({bound.scope: bound for bound in every}.values())


def _within(bounds: tuple[Bound, ...]) -> str:
    """Say what all bounds together leave: the tightest budgets, the longest cooldown."""
    every = [bound.limits for bound in bounds]
    if not every:
        return "no target, so no limits"
    budgets = {(limits.budget, limits.window) for limits in every}
    tight = [
        f"{budget} in {format_duration(window)}"
        for budget, window in sorted(budgets)
        if not any(
            b <= budget and w >= window and (b, w) != (budget, window) for b, w in budgets
        )  # else another one is reached first
    ]
    cooldown = format_duration(max(limits.cooldown for limits in every))
    at_a_time = min(limits.concurrency for limits in every)
    return f"at most {' and '.join(tight)}, {at_a_time} at a time, cooldown {cooldown}"
