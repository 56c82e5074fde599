"""The audit's arithmetic: what an entry of the journal is, and how it is sealed.

Pure. The entries of an incident are one chain, numbered from 1; each is sealed with the key over
what it says and over the seal before it. One more chain, ``operators``, holds what operators did,
which incidents there are, and how far the chains of the closed ones go. How far each chain goes is
sealed once more: its head.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from remediator.model.base import Value
from remediator.model.errors import ConfigError

OPERATORS = "operators"
"""The chain of what is about no single incident."""
STEP = "audit"
"""Step of the entries by which the audit itself is kept."""
BEGUN, OPENED, CLOSED, DELETED, BROKEN = (
    "sealing begun",
    "incidents opened",
    "incidents closed",
    "incidents deleted",
    "head not known",
)
"""Events of those entries: ``chains`` names the incidents, ``heads`` how far each of them goes."""

_SEAL = re.compile(r"[0-9a-f]{8}:[0-9a-f]{64}")
_SHORTEST = 16
"""Bytes of a key, at least: what is shorter can be guessed."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXACT = 2**53


class Part(Value):
    """Which part of the journal is asked for; none of them: all of it."""

    incident: str | None = None
    since: AwareDatetime | None = None

    @property
    def whole(self) -> bool:
        """Whether that is everything."""
        return self.incident is None and self.since is None


class Head(Value):
    """How far a chain goes: its last number and the seal of that entry, sealed together."""

    kind: Literal["head"] = "head"
    chain: str
    count: int
    mac: str
    seal: str


class Entry(Value):
    """One line of the journal, as the audit has it."""

    kind: Literal["entry"] = "entry"
    chain: str
    """Id of the incident, or ``operators``."""
    number: int | None
    """Counted from 1; None for a line without a seal."""
    at: AwareDatetime
    step: str
    event: str
    reason: str
    data: dict[str, Any]
    mac: str | None
    """``KEY:HMAC``; None for a line without a seal."""


class Begin(Part):
    """First line of an export: what was asked for, and when."""

    kind: Literal["export"] = "export"
    at: AwareDatetime


class End(Value):
    """Last line of an export; without it, the export is not complete."""

    kind: Literal["end"] = "end"
    entries: int


Record = Annotated[Begin | Entry | Head | End, Field(discriminator="kind")]
"""One line of an export."""

_RECORD: TypeAdapter[Begin | Entry | Head | End] = TypeAdapter(Record)


def read_record(line: str | bytes) -> Begin | Entry | Head | End:
    """Read one line of an export; ``ValueError`` for anything else."""
    return _RECORD.validate_json(line)


# --- sealing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A secret that seals; it shows nothing but its id."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse one that is easily guessed."""
        if len(self.secret) < _SHORTEST:
            raise ConfigError(f"a key of the audit has at least {_SHORTEST} bytes")

    @cached_property
    def id(self) -> str:
        """What tells it from others, without telling the key."""
        return hmac.digest(self.secret, b"id of a key of the audit", "sha256").hex()[:8]

    def mac(self, content: bytes) -> str:
        """Seal ``content``: ``KEY:HMAC``."""
        return f"{self.id}:{hmac.digest(self.secret, content, 'sha256').hex()}"


@dataclass(frozen=True)
class Keys:
    """The key that seals, and those that what is there may be sealed with as well."""

    sealing: Key
    others: tuple[Key, ...] = ()

    @cached_property
    def _known(self) -> dict[str, Key]:
        return {key.id: key for key in (*self.others, self.sealing)}

    def good(self, content: bytes, mac: str) -> bool | None:
        """Say whether ``mac`` seals ``content``; None when its key is none of these.

        Whoever can write to the store can put anything there: what has not the form is not good.
        """
        if _SEAL.fullmatch(mac) is None:
            return False
        key = self._known.get(mac.partition(":")[0])
        return None if key is None else hmac.compare_digest(key.mac(content).encode(), mac.encode())


def entry_content(line: Mapping[str, Any], chain: str, number: int, before: str) -> bytes:
    """Return what is sealed of a line: all that it says, its place, and the seal ``before`` it."""
    at = (line["at"] - _EPOCH) // timedelta(microseconds=1)
    said = [str(line[name]) for name in ("step", "event", "reason")]
    return _canonical(["entry", chain, number, before, at, *said, line["data"]])


def head_content(chain: str, count: int, mac: str) -> bytes:
    """Return what is sealed of how far a chain goes."""
    return _canonical(["head", chain, count, mac])


def _canonical(value: Any) -> bytes:
    """Write JSON in the one way that neither a database nor an export changes."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    match value:
        case bool() | None:
            return value
        case int() | float():
            return _number(value)
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case _:
            return str(value)


def _number(value: float) -> int | float | str:
    # a database may write 1e22 as digits, and 1.0 as 1
    try:
        number = float(value)
    except OverflowError:
        return str(value)
    return int(number) if number.is_integer() and abs(number) < _EXACT else number
