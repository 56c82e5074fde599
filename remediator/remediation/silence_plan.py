"""What is silenced in Alertmanager, and what it must be asked because of that. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import AwareDatetime

from remediator.model.alert import Alert, AlertStatus
from remediator.model.base import IncidentId, Value
from remediator.model.ports import Silence

_SECOND = timedelta(seconds=1)
_MINUTE = timedelta(minutes=1)

Labels = frozenset[tuple[str, str]]
Key = tuple[IncidentId, Labels]
"""What one silence is for: an incident, and the labels of one of its alerts."""


class Wish(Value):
    """One alert that should be silent while its incident's mitigation works."""

    incident_id: IncidentId
    labels: dict[str, str]
    lasting: timedelta
    """How long a silence may stand from now on without being renewed."""

    @property
    def key(self) -> Key:
        """What the silence is for."""
        return self.incident_id, labels_of(self.labels)


class Order(Value):
    """One thing to do in Alertmanager, and why."""

    verb: Literal["mute", "renew", "end"]
    incident_id: IncidentId
    labels: dict[str, str]
    silence: Silence | None = None
    """The one that is meant; None for a new one."""
    until: AwareDatetime | None = None
    reason: str


@dataclass(frozen=True)
class Seen:
    """One look at Alertmanager and at our own record of the same incidents."""

    silences: tuple[Silence, ...]
    """Ours, of incidents that are ours; the ended ones as well."""
    alerts: Mapping[IncidentId, Sequence[Alert]]
    """As our store has them."""
    now: datetime

    @property
    def standing(self) -> list[Silence]:
        """Those that have not ended, the oldest first."""
        return sorted((s for s in self.silences if not s.ended), key=lambda s: (s.starts_at, s.id))

    def first(self, incident: IncidentId) -> datetime:
        """Return when the incident was first silenced; now where it never was."""
        mine = (s.starts_at for s in self.silences if s.incident_id == incident)
        return min(mine, default=self.now)


def surplus(wishes: Collection[Wish], seen: Seen) -> Iterator[Order]:
    """Yield the ends of silences that nothing wants any more, and of second ones for one alert."""
    wanted = {wish.key for wish in wishes}
    kept: set[Key] = set()
    for silence in seen.standing:
        key = key_of(silence)
        if key not in wanted:
            yield _end(silence, "nothing that it is about is in flight any more")
        elif key in kept:
            yield _end(silence, "there is an older one for the same alert")
        kept.add(key)


def plan(
    wishes: Collection[Wish], seen: Seen, firing: Sequence[Alert], most: timedelta
) -> Iterator[Order]:
    """Yield what is to be made, renewed or ended, given what fires in Alertmanager.

    Silenced is only what fires there, and what would mute no other alert: a silence also takes
    the alerts that carry more labels than it names.
    """
    there = {labels_of(alert.labels) for alert in firing}
    others = there - {labels_of(wish.labels) for wish in wishes}
    standing = {key_of(silence): silence for silence in reversed(seen.standing)}
    for wish in wishes:
        labels, silence = labels_of(wish.labels), standing.get(wish.key)
        if any(labels < other for other in others):
            if silence is not None:
                yield _end(silence, "it would mute another alert, which carries more labels")
        elif labels in there:
            yield from _stand(wish, silence, seen, most)
        elif silence is not None:  # at once, so that the resolve may still reach everybody
            yield _end(silence, "the alert resolved")


def _stand(wish: Wish, silence: Silence | None, seen: Seen, most: timedelta) -> Iterator[Order]:
    until = min(seen.now + wish.lasting, seen.first(wish.incident_id) + most)
    given: dict[str, Any] = {"incident_id": wish.incident_id, "labels": wish.labels}
    if until <= seen.now + _SECOND:
        if silence is not None:
            yield _end(silence, "it stood as long as it may")
    elif silence is None:
        yield Order(verb="mute", until=until, reason="a mitigation is in flight", **given)
    elif _is_off(silence, until, seen.now + wish.lasting / 2):
        reason = "the mitigation is still in flight"
        yield Order(verb="renew", until=until, silence=silence, reason=reason, **given)


def _is_off(silence: Silence, until: datetime, soon: datetime) -> bool:
    """Whether a silence ends too soon, with time left to give it, or far too late."""
    too_late = silence.ends_at > until + _MINUTE
    return too_late or (silence.ends_at < soon and until - silence.ends_at > _SECOND)


def unheard(seen: Seen, firing: Sequence[Alert], linger: timedelta) -> Iterator[Alert]:
    """Yield what Alertmanager did not send because of our silences: resolves and new starts."""
    live = {labels_of(alert.labels): alert for alert in firing}
    ever = {key_of(silence) for silence in seen.silences}
    of_late = {key_of(s) for s in seen.silences if not s.ended or seen.now - s.ends_at < linger}
    for incident, alerts in seen.alerts.items():
        for alert in alerts:
            key = incident, labels_of(alert.labels)
            found = live.get(key[1])
            if alert.status is AlertStatus.FIRING and found is None and key in ever:
                ended = {"status": AlertStatus.RESOLVED, "ends_at": max(seen.now, alert.starts_at)}
                yield alert.model_copy(update=ended | {"group_key": None})
            elif _began_anew(alert, found) and found is not None and key in of_late:
                begun = {"starts_at": found.starts_at, "annotations": found.annotations}
                again = {"status": AlertStatus.FIRING, "ends_at": None, "group_key": None}
                yield alert.model_copy(update=again | begun)


def _began_anew(alert: Alert, found: Alert | None) -> bool:
    over = alert.status is AlertStatus.RESOLVED
    return over and found is not None and found.starts_at > alert.starts_at


def _end(silence: Silence, reason: str) -> Order:
    incident, labels = silence.incident_id, silence.labels
    return Order(verb="end", incident_id=incident, labels=labels, silence=silence, reason=reason)


def without(silences: Iterable[Silence], ends: Iterable[Order]) -> tuple[Silence, ...]:
    """Return ``silences`` as they stand after ``ends``."""
    over = {order.silence.id for order in ends if order.silence is not None}
    return tuple(s.model_copy(update={"ended": s.ended or s.id in over}) for s in silences)


def labels_of(labels: Mapping[str, str]) -> Labels:
    """Return labels as something that can be compared and kept in a set."""
    return frozenset(labels.items())


def key_of(silence: Silence) -> Key:
    """Return what ``silence`` is for."""
    return silence.incident_id, labels_of(silence.labels)
