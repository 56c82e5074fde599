"""Maintenance windows: the stretches of time in which humans work on a scope themselves.

While one runs nothing is changed in its scope and nobody is told of what the work causes. Plans
are values, from the file or by order; which window runs at a time is decided here. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import croniter
from pydantic import AwareDatetime

from remediator.model.base import Value
from remediator.model.duration import Duration
from remediator.model.incident import Incident

LONGEST = timedelta(days=7)
"""Most that one window may last; longer work is a pause, or several windows."""

_SHIFT = timedelta(hours=3)
"""More than any clock is put forward or back at once."""
_NONE = timedelta(0)
_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)
_NAMES = ("minute", "hour", "day of the month", "month", "day of the week")
_FIELDS = len(_NAMES)
_CHANCE = re.compile(r"(^|,)[hr](\(|/|,|$)")
"""What the parser takes for a time of its own choice."""
_SOME_TIME = datetime(2000, 1, 1)  # noqa: DTZ001 - wall-clock time, before a zone is known
_CRON = (
    "should be five fields of cron that come true: minute, hour, day of the month, month, day of"
    ' the week, such as "0 2 * * 6"'
)
_MOMENT = "should be a time with its offset, such as 2026-12-01T22:00:00+01:00"


class Halt(Value):
    """Why nothing may be changed in a scope now."""

    reason: str
    until: AwareDatetime | None = None
    """End of the maintenance window that it is; None for a pause, which somebody ends."""

    @property
    def code(self) -> str:
        """Stable word for machines: ``maintenance`` or ``paused``."""
        return "paused" if self.until is None else "maintenance"


class Window(Value):
    """One stretch of time; also the plan of one that happens once."""

    id: str
    scope: str
    """``global``, ``SYSTEM`` or ``SYSTEM/SERVICE``."""
    since: AwareDatetime
    until: AwareDatetime
    """The first instant after it."""
    reason: str = ""

    def covers(self, moment: datetime) -> bool:
        """Say whether it runs at ``moment``."""
        return self.since <= moment < self.until

    def touching(self, begin: datetime, end: datetime) -> Iterator[Window]:
        """Yield itself if any of it lies from ``begin`` to ``end``, both included."""
        if self.since <= end and self.until > begin:
            yield self

    def coming(self, now: datetime) -> Window | None:
        """Return itself if it has not begun."""
        return self if self.since > now else None

    @property
    def halt(self) -> Halt:
        """What it says to a change."""
        end = self.until.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        why = self.reason or "no reason given"
        return Halt(reason=f"maintenance of {self.scope} until {end}: {why}", until=self.until)


class Recurring(Value):
    """Windows that begin at the times of a cron expression, by the clocks of a time zone.

    A time that the clocks skip begins as much later as they are put forward; a time that they
    show twice begins once, at the first. A window always lasts its ``duration``.
    """

    id: str
    scope: str
    cron: str
    duration: Duration
    timezone: str = "UTC"
    reason: str = ""

    def touching(self, begin: datetime, end: datetime) -> Iterator[Window]:
        """Yield the windows of which any lies from ``begin`` to ``end``, both included."""
        local = end.astimezone(self._zone)
        twice = (local.replace(fold=0).utcoffset() or _NONE) - (local.utcoffset() or _NONE)
        latest = local.replace(tzinfo=None, microsecond=0) + twice + timedelta(seconds=1)
        for wall in croniter(self.cron, latest, datetime).all_prev():
            window = self._window(wall)
            if window.until + _SHIFT <= begin:
                return
            yield from window.touching(begin, end)

    def coming(self, now: datetime) -> Window | None:
        """Return the next window that begins after ``now``."""
        wall = now.astimezone(self._zone).replace(tzinfo=None)
        starts = croniter(self.cron, wall - _SHIFT, datetime).all_next()
        windows = (self._window(start) for start in starts)
        return next((window for window in windows if window.since > now), None)

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def _window(self, wall: datetime) -> Window:
        since = wall.replace(tzinfo=self._zone).astimezone(UTC)
        until = since + self.duration
        return Window(id=self.id, scope=self.scope, since=since, until=until, reason=self.reason)


Plan = Window | Recurring
"""What is planned; each knows its windows by ``touching`` and ``coming``."""


class MaintenanceOrder(Value):
    """The maintenance window that an operator wants; either its length or its end."""

    scope: str
    since: AwareDatetime | None = None
    """None: from now on, and so is a time that has passed."""
    lasts: timedelta | None = None
    until: AwareDatetime | None = None
    reason: str = ""


# --- decisions --------------------------------------------------------------------------------


def scopes_of(incident: Incident) -> tuple[str, ...]:
    """List the scopes that a pause or a window of which stops changes for ``incident``."""
    return ("global", f"{incident.system}", f"{incident.system}/{incident.service}")


def running(windows: Iterable[Window], now: datetime) -> Window | None:
    """Return the window that runs at ``now``; of several the one that ends last."""
    found = (window for window in windows if window.covers(now))
    return max(found, key=lambda window: window.until, default=None)


def longest(*halts: Halt | None) -> Halt | None:
    """Return the window that ends last; a pause when there is none; None when nothing halts."""
    found = (halt for halt in halts if halt is not None)
    return max(found, key=lambda halt: halt.until or _BEFORE_ALL, default=None)


def covered(windows: Iterable[Window], begin: datetime, end: datetime) -> timedelta:
    """Return how much of the time from ``begin`` to ``end`` lies in any of ``windows``."""
    total, reached = timedelta(0), begin
    for window in sorted(windows, key=lambda window: window.since):
        start, stop = max(window.since, reached), min(window.until, end)
        if stop > start:
            total, reached = total + (stop - start), stop
    return total


# --- reading ----------------------------------------------------------------------------------


def parse_cron(text: str) -> str:
    """Check a cron expression of five fields that comes true; ``ValueError`` says what is wrong."""
    fields = text.lower().split()
    if len(fields) != _FIELDS or any(map(_CHANCE.search, fields)):
        raise ValueError(_CRON)
    cron = " ".join(fields)
    if not _comes_true(cron):
        alone = (["*"] * n + [one] + ["*"] * (_FIELDS - 1 - n) for n, one in enumerate(fields))
        named = zip(_NAMES, alone, strict=True)
        wrong = [name for name, parts in named if not _comes_true(" ".join(parts))]
        if not wrong:
            raise ValueError(f"has a day that is in none of its months: {_CRON}")
        raise ValueError(f"has a wrong {' and a wrong '.join(wrong)}: {_CRON}")
    return cron


def _comes_true(cron: str) -> bool:
    try:
        croniter(cron, _SOME_TIME, datetime).get_next()
        croniter(cron, _SOME_TIME, datetime).get_prev()
    except ValueError:
        return False
    return True


def parse_zone(text: str) -> str:
    """Check the name of a time zone; ``ValueError`` says what is wrong."""
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("is no time zone; write it like Europe/Berlin or UTC") from error
    return text


def parse_moment(value: object) -> object:
    """Read a time with its offset, in UTC; ``ValueError`` says what is wrong."""
    if isinstance(value, datetime):
        moment = value
    else:
        try:
            moment = datetime.fromisoformat(str(value).strip())
        except ValueError as error:
            raise ValueError(_MOMENT) from error
    if moment.tzinfo is None:
        raise ValueError(_MOMENT)
    return moment.astimezone(UTC)
