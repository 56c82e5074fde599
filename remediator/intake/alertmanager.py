"""NORMALISE: an Alertmanager v4 webhook body becomes alerts and dead letters. Pure.

A good body is decoded in one typed step. Any other is read leniently, and each of its alerts
is judged alone, so that a bad one never spoils its neighbours. Here the vendor's names end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from remediator.bodies import EXCERPT
from remediator.errors import RejectedDelivery
from remediator.model import Alert, AlertStatus, DeadLetter, Source

MAX_LABELS = 512
"""Labels, or annotations, of one alert; more make it a dead letter."""
MAX_NAME = 1024
"""Characters of a label's or annotation's name; more make the alert a dead letter."""
MAX_VALUE = 64 * 1024
"""Characters of a label's or annotation's value; more are cut off, with a mark."""
MAX_DEAD = 1000
"""Dead letters of one body; the last one stands for all further ones."""
MAX_FINGERPRINT = 128
"""Characters of a fingerprint; of a longer one a digest is taken."""
CUT = "... [cut]"
_MAX_DIGITS = 300
_NONSENSE = 2**31

_INSTANT = re.compile(
    r"(\d{4})-(\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d{1,6})?\d*([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Parsed:
    """What one body holds."""

    alerts: tuple[Alert, ...]
    dead: tuple[DeadLetter, ...] = ()
    truncated: int = 0
    """Alerts that Alertmanager itself left out (``max_alerts`` of its receiver)."""


_Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
_Value = Annotated[str, msgspec.Meta(max_length=MAX_VALUE)]
_Texts = Annotated[dict[_Name, _Value], msgspec.Meta(max_length=MAX_LABELS)]


class _Notice(msgspec.Struct):
    """One alert with the right types and within all bounds, as it is on the wire."""

    status: AlertStatus
    labels: _Texts
    startsAt: str  # noqa: N815 - the wire's name
    annotations: _Texts | None = None
    endsAt: str | None = None  # noqa: N815 - the wire's name
    fingerprint: Annotated[str, msgspec.Meta(max_length=MAX_FINGERPRINT)] | None = None


class _Group(msgspec.Struct):
    """A body with the right types; fields that are not named here are ignored."""

    alerts: list[_Notice]
    groupKey: _Value | None = None  # noqa: N815 - the wire's name
    truncatedAlerts: int | None = None  # noqa: N815 - the wire's name


class _Unusable(Exception):
    """Says what is wrong with one alert, and where."""


def parse(body: bytes, received_at: datetime) -> Parsed:
    """Read a body. Raises ``RejectedDelivery`` when it is not an object with ``alerts``.

    ``received_at`` stands in for a start that the sender left at its zero value.
    """
    group = _decode(body)
    if group is None:
        return _parse_leniently(body, received_at)
    alerts, dead = [], _Dead()
    for position, notice in enumerate(group.alerts):
        try:
            alerts.append(_alert(notice, group.groupKey, received_at))
        except _Unusable as error:
            dead.add(position, error, notice)
    return Parsed(tuple(alerts), dead.letters(), _count(group.truncatedAlerts))


def fingerprint_of(labels: Mapping[str, str]) -> str:
    """Return the identity of a condition whose sender gave none."""
    text = json.dumps(sorted(labels.items()), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def excerpt_of(content: bytes) -> str:
    """Return the beginning of what was received, as text that every store takes."""
    text = clean(content[:EXCERPT].decode(errors="replace"))
    return text.encode()[:EXCERPT].decode(errors="ignore")


def clean(text: str) -> str:
    """Replace what no database holds: NUL characters and lone surrogates."""
    return _UNSTORABLE.sub("\ufffd", text)


def read_alert(item: object, group_key: str | None, received_at: datetime) -> Alert:
    """Read one alert of a body that is already JSON. Raises ``RejectedDelivery``."""
    try:
        return _alert(_notice(item), group_key, received_at)
    except _Unusable as error:
        raise RejectedDelivery(str(error)) from error


def _decode(body: bytes) -> _Group | None:
    if b"\\u0000" in body:  # the one unstorable character that the typed step lets through
        return None
    try:
        return msgspec.json.decode(body, type=_Group)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _parse_leniently(body: bytes, received_at: datetime) -> Parsed:
    group = load_object(body)
    items = group.get("alerts")
    if not isinstance(items, list):
        raise RejectedDelivery(
            "the body has no list `alerts`; is this an Alertmanager webhook (version 4)?"
        )
    key = group.get("groupKey")
    group_key = _cut(clean(key)) if isinstance(key, str) else None
    alerts, dead = [], _Dead()
    for position, item in enumerate(items):
        try:
            alerts.append(_alert(_notice(item), group_key, received_at))
        except _Unusable as error:
            dead.add(position, error, item)
    return Parsed(tuple(alerts), dead.letters(), _count(group.get("truncatedAlerts")))


def load_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object as leniently as can be. Raises ``RejectedDelivery``."""
    try:
        loaded = json.loads(body.decode("utf-8-sig", "replace"), parse_int=_integer)
    except RecursionError as error:
        raise RejectedDelivery("the body is nested too deeply to be read") from error
    except ValueError as error:
        raise RejectedDelivery(f"the body is not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise RejectedDelivery("the body is not a JSON object")
    return loaded


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _count(truncated: object) -> int:
    return truncated if isinstance(truncated, int) and 0 < truncated < _NONSENSE else 0


class _Dead:
    """Collects dead letters, and only counts those beyond the bound."""

    def __init__(self) -> None:
        self._letters: list[DeadLetter] = []
        self._further = 0

    def add(self, position: int, error: _Unusable, item: object) -> None:
        if len(self._letters) == MAX_DEAD:
            self._further += 1
        else:
            self._letters.append(_letter(position, error, item))

    def letters(self) -> tuple[DeadLetter, ...]:
        if not self._further:
            return tuple(self._letters)
        last = self._letters[-1]
        reason = f"{self._further + 1} alerts from here on cannot be used; first: {last.reason}"
        return (*self._letters[:-1], last.model_copy(update={"reason": reason}))


def _letter(position: int, error: _Unusable, item: object) -> DeadLetter:
    try:
        plain = msgspec.to_builtins(item) if isinstance(item, _Notice) else item
        excerpt = excerpt_of(json.dumps(plain, ensure_ascii=False).encode(errors="replace"))
    except (RecursionError, ValueError):
        excerpt = ""
    reason = clean(f"alerts[{position}]{error}")
    return DeadLetter(reason=reason, position=position, excerpt=excerpt)


def _notice(item: object) -> _Notice:
    """Check one alert's types by hand, for reasons that a human can act on."""
    if not isinstance(item, dict):
        raise _Unusable(f" is {_kind(item)}; an alert is an object")
    status = item.get("status")
    if status not in ("firing", "resolved"):
        raise _Unusable(f".status is {_shown(status)}; it must be firing or resolved")
    labels = _texts(item, "labels")
    if labels is None:
        raise _Unusable(".labels is missing; without them it is not known what the alert is about")
    starts = _text(item, "startsAt")
    if starts is None:
        raise _Unusable(".startsAt is missing; it is the time since which the alert fires")
    return _Notice(
        status=AlertStatus(status),
        labels=_shortened(labels),
        startsAt=starts,
        annotations=_shortened(_texts(item, "annotations") or {}),
        endsAt=_text(item, "endsAt"),
        fingerprint=_identity(_text(item, "fingerprint"), labels),
    )


def _texts(item: Mapping[str, object], name: str) -> dict[str, str] | None:
    given = item.get(name)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise _Unusable(f".{name} is {_kind(given)}; it must be an object of texts")
    for key, value in given.items():
        if not isinstance(value, str):
            raise _Unusable(f".{name}.{key[:100]} is {_kind(value)}; it must be text")
    if len(given) > MAX_LABELS:
        raise _Unusable(f".{name} has {len(given)} entries; at most {MAX_LABELS} are taken")
    longest = max(map(len, given), default=0)
    if longest > MAX_NAME:
        raise _Unusable(f".{name} has a name of {longest} characters; at most {MAX_NAME} are taken")
    return {clean(key): clean(value) for key, value in given.items()}


def _text(item: Mapping[str, object], name: str) -> str | None:
    given = item.get(name)
    if given is not None and not isinstance(given, str):
        raise _Unusable(f".{name} is {_kind(given)}; it must be text")
    return None if given is None else clean(given)


def _alert(notice: _Notice, group_key: str | None, received_at: datetime) -> Alert:
    starts = _instant(notice.startsAt, "startsAt")
    return Alert(
        source=Source.ALERTMANAGER,
        fingerprint=_identity(notice.fingerprint, notice.labels),
        status=notice.status,
        labels=notice.labels,
        annotations=notice.annotations or {},
        starts_at=starts or received_at,
        ends_at=_instant(notice.endsAt, "endsAt") if notice.endsAt else None,
        group_key=group_key,
    )


def _identity(given: str | None, labels: Mapping[str, str]) -> str:
    given = (given or "").strip()
    if len(given) > MAX_FINGERPRINT:
        return hashlib.sha256(given.encode()).hexdigest()[:16]
    return given or fingerprint_of(labels)


def _shortened(texts: Mapping[str, str]) -> dict[str, str]:
    return {key: _cut(value) for key, value in texts.items()}


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - len(CUT)] + CUT


def _instant(text: str, name: str) -> datetime | None:
    """Read RFC 3339, cut to microseconds; None for the zero time of Go, which is "not set"."""
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise _Unusable(f".{name} is {_shown(text)}; it must be a time like 2026-01-31T12:00:00Z")
    year, day, clock, fraction, zone = match.groups()
    if year == "0001":
        return None
    offset = "+00:00" if zone in "Zz" else zone
    try:
        instant = datetime.fromisoformat(f"{year}-{day}T{clock}{fraction or '.0':0<7}{offset}")
        return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _Unusable(f".{name} is {_shown(text)}, which is no point in time") from None


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "an object")


def _shown(value: object) -> str:
    if isinstance(value, str):
        return repr(value[:100])
    return "missing" if value is None else _kind(value)
