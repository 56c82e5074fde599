"""Who wrote what of an object, as the API server notes it beside every field. Pure.

An entry has one time for all its fields: when its manager last changed any of them. So a field
counts as set at that time, though it may be older: then a human decides once more than needed.

What is written by the subresource ``scale`` (``kubectl scale``) is noted without a time. It counts
as written just now, unless what the controllers did about it is older: they act on a change only
after it was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import JsonValue

from remediator.backends.kubernetes.client import MANAGER
from remediator.backends.kubernetes.objects import Object


class Wrote(NamedTuple):
    """Who set a field, and when at the latest."""

    manager: str
    at: datetime | None
    """None where nothing says how long ago."""


def last_other_writer(
    found: Object, change: dict[str, JsonValue], replica_sets: Sequence[Object] = ()
) -> Wrote | None:
    """Return who but us set any field of its spec that ``change`` would set, the last of them.

    ``replica_sets`` are those of a deployment. What stands as it was created has been changed by
    nobody.
    """
    writers = list(_others(found, change, replica_sets))
    timed = {wrote.at: wrote for wrote in writers if wrote.at is not None}
    unknown = next((wrote for wrote in writers if wrote.at is None), None)
    return unknown or (timed[max(timed)] if timed else None)


def _others(
    found: Object, change: dict[str, JsonValue], replica_sets: Sequence[Object]
) -> Iterator[Wrote]:
    created = _at(found["metadata"]["creationTimestamp"])
    for entry in _entries(found):
        fields = (entry.get("fieldsV1") or {}).get("f:spec")
        manager, at = entry.get("manager") or "somebody unnamed", entry.get("time")
        if manager == MANAGER or fields is None or not _sets(fields, change):
            continue
        if at is None:
            yield Wrote(manager, _answered_at(found, replica_sets))
        elif _at(at) > created:
            yield Wrote(manager, _at(at))


def _answered_at(found: Object, replica_sets: Sequence[Object]) -> datetime | None:
    """Return when controllers had acted on all that stands in the spec; None where unknown."""
    seen = (found.get("status") or {}).get("observedGeneration")
    if seen is None or seen != found["metadata"].get("generation"):
        return None
    times = [_time(found, "f:status", "f:observedGeneration"), _scaled_at(found, replica_sets)]
    return min((at for at in times if at is not None), default=None)


def _scaled_at(found: Object, replica_sets: Sequence[Object]) -> datetime | None:
    """Return when the replica sets got the number of pods that the deployment asks for.

    Its status changes with every pod that becomes ready or fails; theirs does not touch this time.
    """
    sized = [kept for kept in replica_sets if kept["spec"].get("replicas")]
    if sum(kept["spec"]["replicas"] for kept in sized) != found["spec"].get("replicas"):
        return None
    times = [_time(kept, "f:spec", "f:replicas") for kept in sized]
    return max((at for at in times if at is not None), default=None) if all(times) else None


def _time(found: Object, part: str, field: str) -> datetime | None:
    """Return when the last one that writes ``field`` wrote anything; None without a time."""
    times = [
        _at(entry["time"]) if entry.get("time") else None
        for entry in _entries(found)
        if field in ((entry.get("fieldsV1") or {}).get(part) or {})
    ]
    return None if None in times else max((at for at in times if at), default=None)


def _entries(found: Object) -> Iterable[Mapping[str, Any]]:
    return found["metadata"].get("managedFields") or ()


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
