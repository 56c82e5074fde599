"""Who wrote what of an object, as the API server notes it beside every field. Pure.

An entry has one time for all its fields: when its manager last changed any of them. So a field
counts as set at that time, though it may be older: then a human decides once more than needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import JsonValue

from remediator.adapters.kubernetes_client import MANAGER
from remediator.adapters.kubernetes_objects import Object


class Wrote(NamedTuple):
    """Who set a field, and when at the latest."""

    manager: str
    at: datetime


def last_other_writer(found: Object, change: dict[str, JsonValue]) -> Wrote | None:
    """Return who but us set any field of its spec that ``change`` would set, the last of them.

    What stands as it was created has been changed by nobody.
    """
    created = _at(found["metadata"]["creationTimestamp"])
    writers = [wrote for wrote in _others(found, change) if wrote.at > created]
    return max(writers, key=lambda wrote: wrote.at, default=None)


def _others(found: Object, change: dict[str, JsonValue]) -> Iterator[Wrote]:
    for entry in found["metadata"].get("managedFields") or ():
        fields = (entry.get("fieldsV1") or {}).get("f:spec")
        manager, at = entry.get("manager") or "somebody unnamed", entry.get("time")
        if manager != MANAGER and at and fields is not None and _sets(fields, change):
            yield Wrote(manager, _at(at))


def _sets(fields: Mapping[str, Any], change: JsonValue) -> bool:
    """Say whether any of the figures in ``change`` is among the fields."""
    if not fields:  # set as a whole
        return True
    if isinstance(change, Mapping):
        return any(
            f"f:{key}" in fields and _sets(fields[f"f:{key}"], value)
            for key, value in change.items()
        )
    if isinstance(change, list):
        return any(_sets_of_one(fields, part) for part in change if isinstance(part, Mapping))
    return False


def _sets_of_one(fields: Mapping[str, Any], part: Mapping[str, JsonValue]) -> bool:
    """Say the same of one element of a list, which is told by its name."""
    figures = {key: value for key, value in part.items() if key != "name"}
    return any(
        _sets(below, figures)
        for key, below in fields.items()
        if key.startswith("k:") and json.loads(key[2:]).get("name") == part.get("name")
    )


def _at(written: str) -> datetime:
    return datetime.fromisoformat(written)
