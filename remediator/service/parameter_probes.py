"""What the parameters of a playbook name outside, and one look at each of it.

By convention: a parameter whose name ends in ``_query`` is PromQL, one that ends in ``_path`` is a
path on the ``admin`` service, and a value with ``role`` and ``path`` is a path on that role.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple, cast

from remediator.model.base import Value
from remediator.model.catalog import Service
from remediator.model.errors import NoData, PermanentError, TemporaryError
from remediator.model.ports import Endpoint, Metrics, Pods, Port, Workloads
from remediator.model.readings import Point
from remediator.model.target import Target
from remediator.playbook.base import Parameters
from remediator.playbook.loader import PlaybookSet
from remediator.service.backends import Backends, Key

Level = Literal["ok", "warning", "error"]
Seen = tuple[Level, str]
"""How it is, and a sentence."""

SHOWN = 60
"""Characters of a value that are shown."""
ADMIN = "admin"
SERIES = "series"
"""In ``json_schema_extra`` of a query's field: it may return several series."""
_PLACEHOLDER = re.compile(r"\{[a-z_]+\}")


class Reading(NamedTuple):
    """One thing that a parameter tells the playbook to read."""

    name: str
    """Of the parameter: ``latency_query``, ``upstreams.BTC_EUR.path``."""
    role: str
    """Role of the target; ``prometheus`` for a query."""
    text: str
    """The query or the path; empty where only a role is named."""
    detail: str | None = None
    """Where in a JSON answer the value is; dots lead into inner objects."""
    several: bool = False
    """Whether a query may return several series."""


def readings(parameters: Parameters) -> Iterator[Reading]:
    """List what ``parameters`` name."""
    for name, value in parameters:
        if isinstance(value, str) and name.endswith("_query"):
            extra = type(parameters).model_fields[name].json_schema_extra
            several = isinstance(extra, Mapping) and bool(extra.get(SERIES))
            yield Reading(name, "prometheus", value, several=several)
        elif isinstance(value, str) and name.endswith("_path"):
            detail = getattr(parameters, f"{name.removesuffix('_path')}_field", None)
            yield Reading(name, ADMIN, value, detail)
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                yield from _named(f"{name}.{key}", inner)
        else:
            yield from _named(name, value)


def _named(name: str, value: object) -> Iterator[Reading]:
    role = getattr(value, "role", None)
    if isinstance(value, Value) and isinstance(role, str):
        yield Reading(name, role, str(getattr(value, "path", "")))


def wrong_roles(parameters: Parameters, targets: Mapping[str, Target]) -> Iterator[str]:
    """Say which roles that the parameters name the service does not have."""
    for reading in readings(parameters):
        if reading.role in {"prometheus", ADMIN}:
            continue
        target = targets.get(reading.role)
        known = ", ".join(sorted(targets)) or "none"
        if target is None:
            yield f"{reading.name}: there is no target in the role {reading.role!r}; known: {known}"
        elif target.kind != "http":
            yield (
                f"{reading.name}: the target in the role {reading.role!r} is {target.kind},"
                " not http"
            )


async def look(
    parameters: Parameters, service: Service, backends: Backends, broken: Collection[str] = ()
) -> list[Seen]:
    """Read once all that ``parameters`` name, but not from ``broken``, which is told elsewhere."""
    working = {k: v for k, v in backends.readers.items() if " ".join(k) not in broken}
    found = [_look(reading, service, working) for reading in readings(parameters) if reading.text]
    return [seen for seen in await asyncio.gather(*found) if seen is not None]


async def _look(reading: Reading, service: Service, readers: Mapping[Key, Port]) -> Seen | None:
    """Read it; None where it has no reader that works."""
    if reading.role == "prometheus":
        key = ("prometheus", service.prometheus or "")
        lacks = "the service has no prometheus" if service.prometheus is None else None
    else:
        target = service.targets.get(reading.role)
        key = (target.kind, target.name) if target else ("", "")
        lacks = None if target else f"the service has no target in the role {reading.role!r}"
    if lacks is not None:
        return "error", f"{reading.name}: {lacks}"
    port = readers.get(key)
    if port is None:
        return None
    try:
        if reading.role == "prometheus":
            level, said = await _query(reading, cast("Metrics", port))
        else:
            answer = await cast("Endpoint", port).get_json(reading.text)
            level, said = "ok", _picked(answer, reading.detail)
    except (TemporaryError, PermanentError) as error:
        level, said = "error", _short(error, key)
    except LookupError:
        level, said = "error", f"{reading.text} answers without {reading.detail}"
    return level, f"{reading.name}: {said}"


async def _query(reading: Reading, metrics: Metrics) -> Seen:
    asked = _PLACEHOLDER.sub('"x"', reading.text)
    try:
        points = await metrics.instant(asked)
    except NoData:
        if asked != reading.text:
            return "ok", "can be parsed; its placeholders are filled in when it is used"
        return "warning", f"an empty result now, so nothing is known by it: {reading.text[:200]}"
    if len(points) == 1:
        return "ok", f"{points[0].value:g}"
    level: Level = "ok" if reading.several or asked != reading.text else "warning"
    wanted = "" if level == "ok" else "; one was expected, aggregate it"
    return level, f"{len(points)} series, {_range(points)}{wanted}"


def _range(points: tuple[Point, ...]) -> str:
    values = [point.value for point in points]
    return f"{min(values):g} to {max(values):g}"


def _picked(answer: Any, detail: str | None) -> str:
    """Return the part of a JSON answer that is meant, shortened; ``LookupError`` without it."""
    for part in detail.split(".") if detail else ():
        found = answer if isinstance(answer, dict) else dict[str, Any]()
        answer = found[part]
    text = " ".join(str(answer).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _short(error: Exception, key: tuple[str, str]) -> str:
    return without_name(str(error), " ".join(key))


def without_name(said: str, name: str) -> str:
    """Return what a backend says without its own name in front, which stands there already."""
    if said.startswith(f"{name} ("):
        address, _, rest = said.removeprefix(f"{name} (").partition("): ")
        return f"{address}: {rest}" if rest else said
    return said.removeprefix(f"{name}: ")


# --- targets ----------------------------------------------------------------------------------


async def missing_workload(target: Target, backends: Backends) -> str | None:
    """Read the workload that ``target`` names once; say what is wrong with it, or None."""
    port = backends.readers.get((target.kind, target.name))
    if target.kind != "kubernetes" or port is None:
        return None
    if not {"deployment", "statefulset"} & target.locator.keys():
        return None
    try:
        await cast("Workloads", port).workload(target)
    except PermanentError as error:
        return without_name(str(error), f"{target.kind} {target.name}")
    except TemporaryError:  # it cannot be reached, which the line of the backend says
        return None
    return None


async def blind(
    service: Service, playbooks: PlaybookSet, backends: Backends, broken: Collection[str]
) -> dict[str, str]:
    """Read once what levers of the service's playbooks rest upon; say what cannot be, and why.

    What does not answer at all, and a deployment that is not there, is told elsewhere.
    """
    built = [
        playbooks.build(enabled.name, enabled.parameters)
        for enabled in service.playbooks.values()
        if playbooks.get(enabled.name) is not None
    ]
    needed = [name for playbook in built for name in playbook.parameters.needs().values()]
    target = service.targets.get("workload")
    if target is None or target.kind != "kubernetes":
        return {}
    key = (target.kind, target.name)
    port = backends.readers.get(key)
    told = {" ".join(key), f"{service.system}/{service.name} target {target.role}"}
    if port is None or told & set(broken):
        return {}
    names = sorted(frozenset[str]().union(*needed))
    found = [await _unread(name, target, port) for name in names]
    return {name: why for name, why in zip(names, found, strict=True) if why is not None}


async def _unread(name: str, target: Target, port: Port) -> str | None:
    try:
        if name == "room":
            await cast("Workloads", port).room(target)
        else:
            await cast("Pods", port).usage(target)
    except (TemporaryError, PermanentError) as error:
        return _short(error, (target.kind, target.name))
    return None
