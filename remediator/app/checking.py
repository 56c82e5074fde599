"""``remediator check``: is the configuration right, are the backends there, what could be done?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import text

from remediator.app.backends import Backends, open_backends, open_notifier
from remediator.app.checked import load
from remediator.app.service import store_url
from remediator.catalogue import Catalogue, EnabledPlaybook, Service
from remediator.errors import ConfigError, RemediatorError
from remediator.model import Mode, SenseState, format_duration
from remediator.playbook import Playbook, PlaybookSet
from remediator.ports import Lever, Port
from remediator.settings import Settings
from remediator.store.database import open_database
from remediator.work import probe

Level = Literal["ok", "warning", "error"]
Line = tuple[Level, str, str]
"""How it is, of what, and a sentence."""


@dataclass(frozen=True)
class CheckReport:
    """What the check saw."""

    lines: tuple[Line, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings do not count."""
        return all(level != "error" for level, _, _ in self.lines)


async def check(settings: Settings, environ: Mapping[str, str] = os.environ) -> CheckReport:
    """Look at everything, change nothing."""
    try:
        settings.check_listen()
        catalogue, playbooks = load(settings)
    except ConfigError as error:
        wrong: list[Line] = [("error", "configuration", line) for line in str(error).splitlines()]
        return CheckReport(tuple(wrong))
    lines: list[Line] = [("ok", "configuration", f"{len(catalogue.services)} services")]
    lines += _credentials(settings, environ)
    lines.append(await _store(settings, environ))
    try:
        open_notifier(settings, environ)
        async with open_backends(settings, environ) as backends:
            lines += await _backends(backends)
            for service in catalogue.services:
                lines += _service(service, catalogue, playbooks, backends)
    except ConfigError as error:
        lines.append(("error", "backends", str(error)))
    return CheckReport(tuple(lines))


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


async def _store(settings: Settings, environ: Mapping[str, str]) -> Line:
    try:
        url = store_url(settings, environ)
        if url.startswith("sqlite"):
            return "ok", "store", f"SQLite in {settings.state_dir}: one process"
        async with open_database(url) as database, database.read() as connection:
            await connection.execute(text("SELECT 1"))
    except RemediatorError as error:
        return "error", "store", str(error)
    return "ok", "store", "PostgreSQL answers"


async def _backends(backends: Backends) -> list[Line]:
    readers = {f"{kind} {name}": port for (kind, name), port in backends.readers.items()}
    writers = {f"{kind} {name} (writer)": lever for (kind, name), lever in backends.levers.items()}
    lines: list[Line] = []
    everything: dict[str, Port | Lever] = {**readers, **writers}
    for sense in await probe(everything, frozenset(everything)):
        if sense.state is not SenseState.OK:
            lines.append(("error", sense.name, sense.reason))
        elif sense.name in writers:
            could = ", ".join(sorted(writers[sense.name].kinds))
            lines.append(("ok", sense.name, f"has the rights to {could}"))
        else:
            lines.append(("ok", sense.name, "can be read"))
    return lines


def _service(
    service: Service, catalogue: Catalogue, playbooks: PlaybookSet, backends: Backends
) -> Iterator[Line]:
    subject = f"{service.system}/{service.name}"
    if not service.playbooks:
        yield "warning", subject, "no playbook is switched on: its alerts are recorded, no more"
    for enabled in service.playbooks.values():
        cls = playbooks.get(enabled.name)
        if cls is None:  # load() has refused it
            continue
        yield "ok", f"{subject} {enabled.name}", _could(enabled, cls)
        if not _acts(enabled):
            continue
        for role in cls.targets:
            target = service.targets[role]
            if (target.kind, target.name) not in backends.levers:
                missing = f"its mode may change {target.name}, but no writer is configured for it"
                yield "error", f"{subject} {enabled.name}", missing
        widest = catalogue.limits
        if min(widest.budget, widest.concurrency) == 0:
            yield "warning", f"{subject} {enabled.name}", "the global limits allow no change at all"


def _acts(enabled: EnabledPlaybook) -> bool:
    return bool({Mode.APPROVE, Mode.AUTO} & set(enabled.modes.values()))


def _could(enabled: EnabledPlaybook, cls: type[Playbook[Any]]) -> str:
    limits = enabled.limits.over(cls.limits)
    modes = set(enabled.modes.values())
    how = (
        f"mode {modes.pop()}"
        if len(modes) == 1
        else ", ".join(f"{risk} risk: {mode}" for risk, mode in enabled.modes.items())
    )
    return (
        f"{how}; could {', '.join(sorted(cls.levers))};"
        f" at most {limits.budget} in {format_duration(limits.window)},"
        f" {limits.concurrency} at a time, cooldown {format_duration(limits.cooldown)}"
    )
