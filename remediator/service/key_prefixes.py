"""What the keys hold that a Redis backend may remove, as ``remediator check`` says it."""

from __future__ import annotations

import asyncio
from typing import Literal, cast

from remediator.config.settings import Settings
from remediator.model.errors import RemediatorError
from remediator.model.ports import KeySpace
from remediator.service.backends import Backends
from remediator.service.parameter_probes import without_name

Line = tuple[Literal["ok", "warning"], str, str]


async def look_at_prefixes(
    settings: Settings, backends: Backends, broken: frozenset[str]
) -> list[Line]:
    """Say what every prefix of a backend that works holds, and whether it may be removed."""
    asked = [
        (f"redis {name}", cast("KeySpace", backends.readers["redis", name]), prefix)
        for name, backend in settings.backends.redis.items()
        if ("redis", name) in backends.readers and f"redis {name}" not in broken
        for prefix in backend.cache_prefixes
    ]
    return list(await asyncio.gather(*(_prefix(*one) for one in asked)))


async def _prefix(name: str, keys: KeySpace, prefix: str) -> Line:
    try:
        use = await keys.holds(prefix)
    except RemediatorError as error:
        said = without_name(str(error), name)
        return "warning", name, f"nothing will be removed, as {prefix!r} cannot be seen: {said}"
    if use.no_cache:
        return "warning", name, f"nothing will be removed: {prefix!r} {use.no_cache}; it has {use}"
    return "ok", name, f"{prefix!r} has {use}"
