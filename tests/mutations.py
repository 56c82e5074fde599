"""Mutated bodies: recorded ones, changed in their structure and in their bytes, by a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1e308, -1e308, 2**63, 10**400, 0.1),
    *("", " ", "\0", "\ud800", "\u202e", "\r\n", "a" * 10_000, "é" * 3_000, "{{", "%s%n", "../.."),
    *("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "2026-13-40T99:99:99Z", "NaN"),
    *([], {}, [[]], [None], {"": ""}, {"a": {"a": {"a": {}}}}, "firing", "resolved", "critical"),
)
"""What may stand where something else was."""
_MARKS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b",",
    b":",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"1e999",
)
_DEEP = 2_000
"""Levels of nesting, now and then."""


def mutated(seeds: Sequence[Any], number: int, seed: int) -> Any:
    """Return the ``number``-th value made of one of ``seeds``, which stay as they are."""
    dice = random.Random(f"{seed}/{number}")
    value = deepcopy(dice.choice(seeds))
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3, 8))):
        value = _changed(value, dice)
    return value


def body_of(value: Any, number: int, seed: int) -> bytes:
    """Write a value as JSON; in half of all cases with damaged bytes."""
    dice = random.Random(f"bytes/{seed}/{number}")
    if dice.random() < 0.01:
        return b"[" * _DEEP + b"]" * dice.choice((0, _DEEP))
    body = json.dumps(value, ensure_ascii=dice.random() < 0.5).encode(errors="surrogatepass")
    for _ in range(dice.choice((0, 0, 0, 1, 2, 4))):
        body = dice.choice(_DAMAGES)(body, dice)
    return body


def _changed(value: Any, dice: random.Random) -> Any:
    places = list(_places(value, ()))
    *path, last = dice.choice(places) if places else (None,)
    if last is None:
        return deepcopy(dice.choice(STRANGE))
    holder = value
    for key in path:
        holder = holder[key]
    match dice.randrange(4):
        case 0:
            del holder[last]
        case 1 if isinstance(holder, list):
            more = dice.choice((1, 2, 20))
            holder[last:last] = [deepcopy(holder[last]) for _ in range(more)]
        case 1:
            name = dice.choice((f"{last}x", last.upper(), "", "labels"))
            holder[name] = deepcopy(holder[last])
        case 2:
            holder[last] = [holder[last]] if dice.random() < 0.5 else {"value": holder[last]}
        case _:
            holder[last] = deepcopy(dice.choice(STRANGE))
    return value


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from _places(value[key], (*path, key))


def _flip(body: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(body) + 1)
    return body[:place] + bytes([dice.randrange(256)]) + body[place + 1 :]


def _insert(body: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(body) + 1)
    return body[:place] + dice.choice(_MARKS) + body[place:]


def _cut(body: bytes, dice: random.Random) -> bytes:
    return body[: dice.randrange(len(body) + 1)]


def _leave_out(body: bytes, dice: random.Random) -> bytes:
    first = dice.randrange(len(body) + 1)
    return body[:first] + body[first + dice.randrange(40) :]


def _repeat(body: bytes, dice: random.Random) -> bytes:
    first = dice.randrange(len(body) + 1)
    return body[:first] + body[first : first + 200] * dice.choice((2, 10)) + body[first:]


_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _insert, _cut),
    *(_leave_out, _repeat),
)
