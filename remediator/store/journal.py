"""The journal: every line goes through here, and becomes an entry of its chain.

Lines are kept until their transaction is about to be committed. Then all of them are numbered,
sealed and inserted together, with the chains' heads locked in one order: whatever several replicas
write at the same time, nobody waits for ever and no number is lost or given twice.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    LargeBinary,
    Text,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    type_coerce,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.model.incident import IncidentState
from remediator.store import tables as t
from remediator.store.audit import chain as audit
from remediator.store.audit.chain import Keys, entry_content, head_content
from remediator.store.columns import clean_json, clean_text, instant_of

_CHUNK = 500
"""Values in one IN list, below every database's limit of bound parameters."""
_WAITING = "remediator.journal"
"""Where a connection keeps the lines of its transaction."""

_HIGHEST = 2**62
"""No chain goes further; a count beyond it was put there by somebody."""
_KEPT = 200
"""Characters that are kept of what was found in the place of a head."""
_LINE = ("incident_id", "at", "step", "event", "reason", "data", "number", "mac")
_KINDS = {
    "at": ("integer",),
    "number": ("integer", "null"),
    "incident_id": ("text", "null"),
    "mac": ("text", "null"),
}
"""What SQLite keeps of a line where it is not text: what is kept otherwise, queries do not find."""
_NUMBER = re.compile(r"[0-9]{1,18}")
_DEEPEST = 100
"""Levels that the data of a line may have: what JSON is written and sealed by has limits."""
_REMEMBERED = 10_000
"""Chains of which a process keeps how far they went: those that it wrote to last."""
_SEAL = 80
"""Characters that a seal may have, by the schema."""

Row = dict[str, Any]

_log = structlog.get_logger(__name__)


def append(  # noqa: PLR0913 - the columns of a line, by keyword
    connection: AsyncConnection,
    incident: str | None,
    *,
    at: datetime,
    step: str,
    event: str,
    reason: str,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Write a line about ``incident``, or about none, when the transaction is committed."""
    line = {
        "incident_id": incident,
        "at": at,
        "step": step,
        "event": event,
        "reason": clean_text(reason),
        "data": clean_json(dict(data or {})),
    }
    connection.info.setdefault(_WAITING, []).append(line)


def forget(connection: AsyncConnection) -> None:
    """Drop what a transaction left that was rolled back."""
    connection.info.pop(_WAITING, None)


async def remove(
    connection: AsyncConnection, incidents: Collection[str], at: datetime, reason: str
) -> None:
    """Delete all lines about ``incidents``, at most 500, and leave how far their chains went."""
    ordered = sorted(incidents)
    mine = t.chains.c.chain.in_(ordered)
    rows = await _heads(connection, ordered)
    await connection.execute(delete(t.journal).where(t.journal.c.incident_id.in_(ordered)))
    await connection.execute(delete(t.chains).where(mine))
    data = {"heads": {row["chain"]: [row["count"], row["mac"]] for row in rows}}
    append(connection, None, at=at, step=audit.STEP, event=audit.DELETED, reason=reason, data=data)


async def unmoved(connection: AsyncConnection, heads: Mapping[str, tuple[int, str]]) -> list[str]:
    """Return, of at most 500 chains, those that still go as far as ``heads`` says; lock them."""
    there = {row["chain"]: (row["count"], row["mac"]) for row in await _heads(connection, heads)}
    return [name for name, head in heads.items() if there.get(name, (0, "")) == head]


async def _heads(connection: AsyncConnection, names: Iterable[str]) -> list[Row]:
    query = select(*head_columns(connection)).where(t.chains.c.chain.in_(sorted(names)))
    locked = query.order_by(t.chains.c.chain).with_for_update()
    return [head_of(row) for row in (await connection.execute(locked)).mappings()]


class Memory:
    """How far the chains went that this process wrote to last; a head may not be set back."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def note(self, heads: Mapping[str, int]) -> None:
        """Keep how far chains go, once that is committed."""
        for chain, count in heads.items():
            self._counts.pop(chain, None)
            self._counts[chain] = count
        while len(self._counts) > _REMEMBERED:
            del self._counts[next(iter(self._counts))]

    def of(self, chain: str) -> int:
        """Return how far a chain went at least."""
        return self._counts.get(chain, 0)


async def write(
    connection: AsyncConnection, keys: Keys | None, memory: Memory
) -> Mapping[str, int]:
    """Insert the transaction's lines, sealed where there is a key; its last statements.

    Returns how far the chains go then, for the ``memory`` once they are committed.
    """
    lines: list[Row] = connection.info.pop(_WAITING, [])
    heads: dict[str, int] = {}
    if lines and keys is not None:
        sealing = await _sealed(connection, lines, keys, memory)
        lines = sealing.lines
        heads = {chain: head["count"] for chain, head in sealing.heads.items()}
    if lines:
        await connection.execute(insert(t.journal), lines)
    return heads


async def _sealed(
    connection: AsyncConnection, lines: Sequence[Row], keys: Keys, memory: Memory
) -> _Sealing:
    chains: dict[str, list[Row]] = {}
    for line in lines:
        chains.setdefault(line["incident_id"] or audit.OPERATORS, []).append(line)
    mine = chains.pop(audit.OPERATORS, [])
    sealing = _Sealing(keys, memory, max(line["at"] for line in lines))
    heads = await _locked(connection, chains)
    for name, waiting in chains.items():
        sealing.extend(name, await _usable(connection, heads[name]), waiting)
    fresh = [name for name, head in heads.items() if head["count"] == 0]
    closed = await _closed(connection, chains)
    mine += sealing.register(fresh, closed)
    if mine:  # always the last to be locked
        head = (await _locked(connection, [audit.OPERATORS]))[audit.OPERATORS]
        # the first of all entries is written before anything else: later, its head is there
        began = mine[0]["step"] == audit.STEP and mine[0]["event"] in (audit.BEGUN, audit.BROKEN)
        lost = head["count"] == 0 and not began
        sealing.extend(audit.OPERATORS, await _usable(connection, head, lost=lost), mine)
    await _move(connection, sealing.heads.values())
    return sealing


class _Sealing:
    """Numbers and seals the lines of one transaction, chain by chain."""

    def __init__(self, keys: Keys, memory: Memory, at: datetime) -> None:
        self._keys = keys
        self._memory = memory
        self._at = at
        self.lines: list[Row] = []
        self.heads: dict[str, Row] = {}

    def extend(self, chain: str, head: Row, lines: Sequence[Row]) -> None:
        """Seal ``lines`` as the next ones of ``chain``, after its ``head``."""
        count, before = head.get("after") or (head["count"], head["mac"])
        for line in (*self._doubt(chain, head), *lines):
            count += 1
            before = self._keys.sealing.mac(entry_content(line, chain, count, before))
            self.lines.append(line | {"number": count, "mac": before})
        seal = self._keys.sealing.mac(head_content(chain, count, before))
        self.heads[chain] = {"chain": chain, "count": count, "mac": before, "seal": seal}

    def _doubt(self, chain: str, head: Row) -> list[Row]:
        """Write down a head that we did not seal, or an old one, before a good one covers it up."""
        count, mac, seal = head["count"], head["mac"], head["seal"]
        data = {"count": count, "mac": clean_text(mac), "seal": clean_text(seal)}
        further = self._memory.of(chain)
        if count < further:
            reason = "this chain went further when it was last written to by this process"
            data["further"] = further
        else:
            new = "after" not in head and (count, mac, seal) == (0, "", "")
            if new or self._keys.good(head_content(chain, count, mac), seal):
                return []
            reason = "how far this chain went was not sealed with a key that is known here"
        _log.error("audit_head_not_known", chain=chain, number=count, reason=reason)
        incident = None if chain == audit.OPERATORS else chain
        return [self._line(incident, audit.BROKEN, reason, data)]

    def register(self, fresh: Collection[str], closed: Collection[str]) -> list[Row]:
        """Return lines about chains that were begun, and about the ends of closed ones."""
        lines = []
        if fresh:
            reason = _count(len(fresh), "chain") + " begun"
            data = {"chains": list(fresh)}
            lines.append(self._line(None, audit.OPENED, reason, data))
        if closed:
            heads = {name: [self.heads[name]["count"], self.heads[name]["mac"]] for name in closed}
            reason = f"how far {_count(len(closed), 'chain')} of closed incidents went"
            lines.append(self._line(None, audit.CLOSED, reason, {"heads": heads}))
        return lines

    def _line(self, incident: str | None, event: str, reason: str, data: Row) -> Row:
        columns = {"incident_id": incident, "at": self._at, "step": audit.STEP}
        return columns | {"event": event, "reason": reason, "data": data}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


async def _locked(connection: AsyncConnection, names: Iterable[str]) -> dict[str, Row]:
    """Lock the heads of chains, in the order of their names; make those that are new."""
    rows = [{"chain": name, "count": 0, "mac": "", "seal": ""} for name in sorted(names)]
    if not rows:
        return {}
    made = _upsert(connection)
    # a change that changes nothing locks the row, and returns it
    same = made.on_conflict_do_update(
        index_elements=[t.chains.c.chain], set_={"count": t.chains.c.count}
    )
    found = await connection.execute(same.returning(*head_columns(connection)), rows)
    return {row["chain"]: head_of(row) for row in found.mappings()}


def head_columns(connection: AsyncConnection) -> list[ColumnElement[Any]]:
    """Return the columns of a head, to be read with ``head_of`` whatever stands in them."""
    count, mac, seal = t.chains.c.count, t.chains.c.mac, t.chains.c.seal
    return [t.chains.c.chain, *(_as_it_is(connection, column) for column in (count, mac, seal))]


def _as_it_is(connection: AsyncConnection, column: ColumnElement[Any]) -> ColumnElement[Any]:
    if connection.dialect.name == "postgresql":
        return column
    return cast(column, LargeBinary).label(column.key)  # SQLite has any type in any column


def head_of(row: Any) -> Row:
    """Read a head; a count that is none is -1."""
    count, mac, seal = (_text(row[name]) for name in ("count", "mac", "seal"))
    number = int(count) if count.isascii() and count.isdigit() and len(count) < _KEPT else -1
    return {"chain": name_of(row["chain"]), "count": number, "mac": mac, "seal": seal}


def name_of(value: Any) -> str:
    """Return the name of a chain, or what stands in its place."""
    return value if isinstance(value, str) else repr(value)[:_KEPT]


def line_columns(connection: AsyncConnection) -> list[ColumnElement[Any]]:
    """Return the columns of a line, to be read with ``line_of`` whatever stands in them."""
    columns = [t.journal.c[name] for name in _LINE]
    if connection.dialect.name == "postgresql":
        data = cast(t.journal.c.data, Text).label("data")
        at = type_coerce(t.journal.c.at, BigInteger).label("at")
        others = [column for column in columns if column.key not in ("at", "data")]
        return [t.journal.c.id, at, data, *others]
    kinds = functools.reduce(operator.add, (_kind(column) for column in columns)).label("kinds")
    return [t.journal.c.id, kinds, *(_as_it_is(connection, column) for column in columns)]


def line_of(row: Any) -> Row:
    """Read a line. One that is not as lines are written has that for its data: no seal fits it."""
    line = {name: _whole(row[name]) for name in _LINE}
    as_written = "kinds" not in row or all(
        kind in _KINDS.get(name, ("text",))
        for name, kind in zip(_LINE, row["kinds"].split(), strict=True)
    )
    number = str(line["number"])
    read = {"at": instant_of(0), "number": int(number) if _NUMBER.fullmatch(number) else None}
    try:
        read["at"] = instant_of(int(line["at"]))
        data = json.loads(line["data"])
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, OverflowError, RecursionError):
        as_written = False
    if not (as_written and isinstance(data, dict) and _is_flat(data, _DEEPEST)):
        data = {"unreadable": clean_text(f"{line['at']} {line['data']}"[:_KEPT])}
    return line | read | {"data": data}


def _kind(column: ColumnElement[Any]) -> ColumnElement[str]:
    return func.typeof(column, type_=Text) + literal(" ")


def _whole(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _is_flat(value: Any, levels: int) -> bool:
    """Say whether there are at most so many levels in ``value``."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels >= 0 and all(_is_flat(one, levels - 1) for one in inner)


def _text(value: Any) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text[:_KEPT]


async def _usable(connection: AsyncConnection, head: Row, *, lost: bool = False) -> Row:
    """Say, of a head that is ``lost`` or none, which entry is to be gone on ``after``."""
    if not lost and 0 <= head["count"] < _HIGHEST and len(head["mac"]) <= _SEAL:
        return head
    return head | {"after": await _last(connection, head["chain"])}


async def _last(connection: AsyncConnection, chain: str) -> tuple[int, str]:
    """Return number and seal of the last sealed entry of a chain that is there."""
    line = t.journal.c
    mine = line.incident_id.is_(None) if chain == audit.OPERATORS else line.incident_id == chain
    query = (
        select(line.number, _as_it_is(connection, line.mac).label("mac"))
        .where(mine, line.number.between(1, _HIGHEST), line.mac.is_not(None))
        .order_by(line.number.desc())
    )
    row = (await connection.execute(query.limit(1))).first()
    return (0, "") if row is None else (int(row[0]), _text(row[1]))


async def _move(connection: AsyncConnection, heads: Iterable[Row]) -> None:
    made = _upsert(connection)
    moved = {name: made.excluded[name] for name in ("count", "mac", "seal")}
    upsert = made.on_conflict_do_update(index_elements=[t.chains.c.chain], set_=moved)
    await connection.execute(upsert, list(heads))


def _upsert(connection: AsyncConnection) -> Any:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(t.chains)


async def _closed(connection: AsyncConnection, names: Iterable[str]) -> list[str]:
    """Name the chains whose incident is closed; asked once their heads are locked."""
    found: list[str] = []
    ordered = sorted(names)
    for start in range(0, len(ordered), _CHUNK):
        some = ordered[start : start + _CHUNK]
        query = select(t.incidents.c.id).where(
            t.incidents.c.id.in_(some), t.incidents.c.state == IncidentState.CLOSED
        )
        found += await connection.scalars(query.order_by(t.incidents.c.id))
    return found
