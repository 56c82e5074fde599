"""NORMALISE: an Alertmanager v4 webhook body becomes alerts and dead letters. Pure.

A good body is decoded in one typed step. Any other is read leniently, and each of its alerts
is judged alone, so that a bad one never spoils its neighbours. Here the vendor's names end.

What the sender claims of an alert's identity and of time is not believed: the fingerprint is
computed from the labels, and nothing begins or ends after it was received.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from remediator.api.body import EXCERPT
from remediator.model.alert import Alert, AlertStatus, DeadLetter, Source
from remediator.model.errors import RejectedDelivery
from remediator.model.fingerprint import fingerprint_of

MAX_LABELS = 512
"""Labels, or annotations, of one alert; more make it a dead letter."""
MAX_NAME = 1024
"""Characters of a label's or annotation's name; more make the alert a dead letter."""
MAX_VALUE = 64 * 1024
"""Characters of a label's or annotation's value; more are cut off, with a mark."""
MAX_DEAD = 1000
"""Dead letters of one body; the last one stands for all further ones."""
MAX_ALERTS = 10_000
"""Alerts of one body, unless configured: as many as fit into the default ``max_body`` at the 1.5 KiB
that an alert of Prometheus' usual rules takes."""
MAX_GROUP_KEY = 256
"""Characters kept of a group's key, which is stored with each of its alerts."""
TOKENS = 250
"""Quotes, commas and brackets for each alert that may come; a usual alert has about 100. What is
parsed takes up to 50 bytes of memory for each of them."""
CUT = "... [cut]"
_MAX_DIGITS = 300
_NONSENSE = 2**31
_EPOCH_YEAR = "1970"

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


Foreign = Callable[[Mapping[str, str]], str | None]
"""Says why an alert with these labels is not its sender's to speak of; None when it is."""


def _anybodys(_labels: Mapping[str, str]) -> None:
    return None


class TooManyAlerts(RejectedDelivery):
    """A body with more in it than is taken at once."""


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
    generatorURL: Any = None  # noqa: N815 - the wire's name; what is no address is left out


class _Group(msgspec.Struct):
    """A body with the right types; fields that are not named here are ignored."""

    alerts: list[_Notice]
    groupKey: _Value | None = None  # noqa: N815 - the wire's name
    truncatedAlerts: int | None = None  # noqa: N815 - the wire's name


class _Unusable(Exception):
    """Says what is wrong with one alert, and where."""


def parse(
    body: bytes,
    received_at: datetime,
    max_alerts: int = MAX_ALERTS,
    foreign: Foreign = _anybodys,
) -> Parsed:
    """Read a body. Raises ``RejectedDelivery`` when it is not an object with ``alerts``.

    ``received_at`` stands in for a start that the sender left at its zero value, and for all times
    to come. Raises ``TooManyAlerts`` for more than ``max_alerts``, before memory is spent on them.
    An alert that is ``foreign`` to its sender is a dead letter.
    """
    _require_few(body, max_alerts)
    group = _decode(body)
    if group is None:
        return _parse_leniently(body, received_at, max_alerts, foreign)
    _require_at_most(max_alerts, group.alerts)
    reading = _Reading(received_at, group.groupKey, foreign)
    for position, notice in enumerate(group.alerts):
        reading.take(position, notice)
    return reading.parsed(group.truncatedAlerts)


def _require_few(body: bytes, max_alerts: int) -> None:
    """Refuse what would take much more memory parsed than it has bytes, at the cost of a look."""
    most = TOKENS * max(max_alerts, MAX_ALERTS)
    if len(body) > most and sum(map(body.count, (b'"', b",", b"[", b"{"))) > most:
        raise TooManyAlerts(_too_many(max_alerts))


def _require_at_most(max_alerts: int, alerts: Sequence[object]) -> None:
    if len(alerts) > max_alerts:
        raise TooManyAlerts(f"{_too_many(max_alerts)}; it has {len(alerts)}")


def _too_many(max_alerts: int) -> str:
    return (
        f"the body has more in it than max_alerts ({max_alerts}) alerts; raise max_alerts, or send"
        " fewer at once (group_by of the route, max_alerts of the webhook receiver)"
    )


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


def _parse_leniently(
    body: bytes, received_at: datetime, max_alerts: int, foreign: Foreign
) -> Parsed:
    group = load_object(body)
    items = group.get("alerts")
    if not isinstance(items, list):
        raise RejectedDelivery(
            "the body has no list `alerts`; is this an Alertmanager webhook (version 4)?"
        )
    _require_at_most(max_alerts, items)
    key = group.get("groupKey")
    reading = _Reading(received_at, clean(key) if isinstance(key, str) else None, foreign)
    for position, item in enumerate(items):
        reading.take(position, item)
    return reading.parsed(group.get("truncatedAlerts"))


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


class _Reading:
    """Collects alerts and dead letters of one body; of those it only counts what is too many."""

    def __init__(self, received_at: datetime, group_key: str | None, foreign: Foreign) -> None:
        self._received_at = received_at
        self._group_key = None if group_key is None else _cut(group_key, MAX_GROUP_KEY)
        self._foreign = foreign
        self._alerts: list[Alert] = []
        self._letters: list[DeadLetter] = []
        self._further = 0

    def take(self, position: int, item: object) -> None:
        """Read one alert, or say why it cannot be used."""
        try:
            self._alerts.append(self._read(item))
        except _Unusable as error:
            if len(self._letters) == MAX_DEAD:
                self._further += 1
            else:
                self._letters.append(_letter(position, error, item))

    def _read(self, item: object) -> Alert:
        notice = item if isinstance(item, _Notice) else _notice(item)
        alert = _alert(notice, self._group_key, self._received_at)
        reason = self._foreign(alert.labels)
        if reason is not None:
            raise _Unusable(f": {reason}")
        return alert

    def parsed(self, truncated: object) -> Parsed:
        """Return all of it; ``truncated`` is what the sender left out."""
        return Parsed(tuple(self._alerts), self._dead(), _count(truncated))

    def _dead(self) -> tuple[DeadLetter, ...]:
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
        generatorURL=item.get("generatorURL"),
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
    ends = _instant(notice.endsAt, "endsAt") if notice.endsAt else None
    return Alert(
        source=Source.ALERTMANAGER,
        fingerprint=fingerprint_of(notice.labels),
        status=notice.status,
        labels=notice.labels,
        annotations={**_source(notice.generatorURL), **(notice.annotations or {})},
        starts_at=min(starts or received_at, received_at),
        ends_at=None if ends is None else min(ends, received_at),
        group_key=group_key,
    )


def _source(url: object) -> dict[str, str]:
    """Keep the address of what made the alert, to be shown to humans; it is never fetched."""
    usable = isinstance(url, str) and re.fullmatch(r"https?://[\x21-\x7e]{1,1000}", url)
    return {"generatorURL": str(url)} if usable else {}


def _shortened(texts: Mapping[str, str]) -> dict[str, str]:
    return {key: _cut(value) for key, value in texts.items()}


def _cut(text: str, longest: int = MAX_VALUE) -> str:
    return text if len(text) <= longest else text[: longest - len(CUT)] + CUT


def _instant(text: str, name: str) -> datetime | None:
    """Read RFC 3339, cut to microseconds; None before 1970: the zero time of Go is "not set"."""
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise _Unusable(f".{name} is {_shown(text)}; it must be a time like 2026-01-31T12:00:00Z")
    year, day, clock, fraction, zone = match.groups()
    if year < _EPOCH_YEAR:
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
