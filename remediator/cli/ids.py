"""Ids as people type them: whole, or as much of the beginning as tells them apart.

An id begins with the time at which it was made, so the newest records are asked first, and a search
ends where all that follows is older than the prefix says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from remediator.cli.output import REFUSED, Failure, plain

if TYPE_CHECKING:
    from remediator.cli.client import Api


WHOLE = re.compile(r"[a-z]+-[0-9a-f]{12}-[0-9a-f]{10}")
_PREFIX = re.compile(r"[0-9a-f][0-9a-f-]*")
_PAGE = 200
"""Records that are asked for at once: the most that the API gives."""
_PAGES = 5
"""Requests for one prefix."""
_CANDIDATES = 10
_LISTS = {"inc": "/incidents", "dlv": "/deliveries"}


def incident_id(api: Api, typed: str) -> str:
    """Return the id of the one incident that ``typed`` is the beginning of, with or without `inc-`.

    A whole id is returned as it is, without a request; so is what cannot be the beginning of one.
    Raises ``Failure`` when there is none among the newest, or more than one.
    """
    return _id_of(api, typed, "inc", "incident")


def stored_id(api: Api, typed: str) -> str:
    """Return the whole id of what can be replayed: an incident or a delivery."""
    kind = "dlv" if typed.startswith("dlv-") else "inc"
    return _id_of(api, typed, kind, "delivery" if kind == "dlv" else "incident")


def could_be_stored(typed: str) -> bool:
    """Say whether ``typed`` may stand for a delivery, an alert or an incident."""
    kind, _, rest = typed.rpartition("-") if typed.endswith("-") else typed.partition("-")
    if WHOLE.fullmatch(typed):
        return True
    return kind in _LISTS and _PREFIX.fullmatch(rest) is not None


def chosen(typed: str, known: Iterable[str], what: str) -> str:
    """Return the one of ``known`` that begins with ``typed``; ``typed`` itself where none does."""
    found = [one for one in known if one.startswith(typed)]
    if typed in found or not found:
        return typed
    if len(found) > 1:
        raise _ambiguous(typed, found, what)
    return found[0]


def _id_of(api: Api, typed: str, kind: str, what: str) -> str:
    rest = typed.removeprefix(f"{kind}-")
    if WHOLE.fullmatch(typed) or not _PREFIX.fullmatch(rest):
        return typed
    prefix = f"{kind}-{rest}"
    found = list(dict.fromkeys(_beginning_with(api, _LISTS[kind], prefix)))
    if not found:
        newest = f"among the newest {_PAGE * _PAGES}; write all of an older one's id"
        raise Failure(REFUSED, f"no {what} id begins with {plain(typed)} {newest}")
    if len(found) > 1:
        raise _ambiguous(typed, found, what)
    return found[0]


def _beginning_with(api: Api, path: str, prefix: str) -> Iterator[str]:
    after: str | None = None
    for _ in range(_PAGES):
        params = {"limit": str(_PAGE)} | ({"after": after} if after else {})
        page = api.get(path, params).json()
        ids = [str(item.get("id", "")) for item in page.get("items", [])]
        yield from (one for one in ids if one.startswith(prefix))
        after = page.get("next")
        if after is None or all(one < prefix for one in ids):
            return


def _ambiguous(typed: str, found: list[str], what: str) -> Failure:
    lines = [f"{plain(typed)} is the beginning of {len(found)} {what} ids; write more of it:"]
    lines += [f"  {one}" for one in found[:_CANDIDATES]]
    lines += [f"  and {len(found) - _CANDIDATES} more"] if len(found) > _CANDIDATES else []
    return Failure(REFUSED, "\n".join(lines))
