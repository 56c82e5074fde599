"""NORMALISE: a PagerDuty v3 webhook becomes an event and its alert. Pure.

The webhook carries no labels, so its alert has those that can be said without asking anybody. What
PagerDuty's REST API tells of the incident's alerts is read in ``detail``. Here the vendor's names
end.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from remediator.intake.alertmanager import clean, excerpt_of, load_object
from remediator.model.alert import Alert, AlertStatus, DeadLetter, SenderEvent, Source

OURS = "remediator/"
"""Beginning of the deduplication keys of our own escalations."""
FIRING = frozenset({"triggered", "reopened", "unacknowledged", "escalated", "delegated"})
"""Events that say that an incident is open and that nobody has it."""
_ANEW = "reopened"
_OF_NOTES = "annotated"
MAX_ID = 128
AHEAD = timedelta(minutes=5)
"""How far PagerDuty's clock may be ahead of ours; a later event counts as of its receipt."""
_MAX_TEXT = 2000
_INCIDENT = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_TAGS = re.compile(r"(?:\s*\[[^\[\]]{1,40}\])+\s*")
_COUNTED = re.compile(r"\s*\[(?:FIRING|RESOLVED)(?::\d+)?\]", re.IGNORECASE)


@dataclass(frozen=True)
class Told:
    """What one body says: an event, or why it cannot be used."""

    event: SenderEvent | None
    alerts: tuple[Alert, ...] = ()
    """The incident itself as an alert, where it fires or has resolved."""
    dead: tuple[DeadLetter, ...] = ()


def parse(body: bytes, webhook: str | None, received_at: datetime) -> Told:
    """Read a body. Raises ``RejectedDelivery`` when it is no JSON object.

    ``webhook`` is the sender's id of the webhook; ``received_at`` stands in for times that cannot
    be read. An object that is no event is a dead letter: PagerDuty signed it, and refusing what it
    sends would switch the subscription off.
    """
    said = load_object(body).get("event")
    kind = _text(said, "event_type")
    if not isinstance(said, dict) or not kind:
        reason = "the body has no `event` with an `event_type`; is this a PagerDuty webhook (v3)?"
        return Told(None, dead=(DeadLetter(reason=reason, excerpt=excerpt_of(body)),))
    resource, _, word = kind.partition(".")
    data = _mapping(said, "data")
    about = data if _text(data, "type") == "incident" else _mapping(data, "incident") or data
    incident = _text(about, "id") if resource == "incident" else ""
    at = _instant(_text(said, "occurred_at")) or received_at
    at = received_at if at > received_at + AHEAD else at
    key = _text(about, "incident_key")
    silent = word == _OF_NOTES or key.startswith(OURS) or not _INCIDENT.fullmatch(incident)
    event = SenderEvent(
        id=identity(_text(said, "id") or hashlib.sha256(body).hexdigest()),
        webhook=identity(clean(webhook)) if webhook else None,
        kind=(word if resource == "incident" else kind)[:60],
        status=None if silent else _status(word),
        again=word == _ANEW,
        incident=None if silent else incident,
        key=key[:_MAX_TEXT] or None,
        agent=_agent(_mapping(said, "agent")),
        at=at,
    )
    if event.status is None:
        return Told(event, dead=_unusable(resource, word, incident, body))
    return Told(event, (_alert(event, about, min(at, received_at)),))


def identity(text: str) -> str:
    """Return an id of the sender's, short enough to be kept."""
    return text if len(text) <= MAX_ID else hashlib.sha256(text.encode()).hexdigest()


def alertname_of(title: str) -> str:
    """Return the name of the alert that a title speaks of.

    Alertmanager writes ``[FIRING:1] NAME other group labels (common labels)``; of any other title
    only the tags in brackets are taken off.
    """
    rest = _TAGS.sub("", title, count=1) if _TAGS.match(title) else title
    words = rest.split()
    if _COUNTED.match(title) and words:
        return words[0]
    return " ".join(words)[:200] or "unnamed"


def _status(word: str) -> AlertStatus | None:
    if word in FIRING:
        return AlertStatus.FIRING
    return AlertStatus.RESOLVED if word == "resolved" else None


def _unusable(resource: str, word: str, incident: str, body: bytes) -> tuple[DeadLetter, ...]:
    """Bury what should have opened or ended something and does not say what."""
    if resource != "incident" or _status(word) is None or _INCIDENT.fullmatch(incident):
        return ()
    reason = f"event.data.id of an incident.{word} is missing, or no id of PagerDuty's"
    return (DeadLetter(reason=reason, excerpt=excerpt_of(body)),)


def _alert(event: SenderEvent, about: Mapping[str, Any], at: datetime) -> Alert:
    resolved = event.status is AlertStatus.RESOLVED
    began = None if event.again else _instant(_text(about, "created_at"))
    title, url = _text(about, "title"), _text(about, "html_url")
    labels = {
        "alertname": alertname_of(title),
        "pagerduty_service": _text(_mapping(about, "service"), "id")[:_MAX_TEXT],
        "pagerduty_incident": event.incident or "",
        "urgency": _text(about, "urgency")[:_MAX_TEXT],
    }
    notes = {"summary": title[:_MAX_TEXT], "pagerduty_url": url[:_MAX_TEXT]}
    return Alert(
        source=Source.PAGERDUTY,
        fingerprint=event.group_key,
        status=AlertStatus.RESOLVED if resolved else AlertStatus.FIRING,
        labels={name: value for name, value in labels.items() if value},
        annotations={name: value for name, value in notes.items() if value},
        starts_at=min(began or at, at),
        ends_at=at if resolved else None,
        group_key=event.group_key,
    )


def _agent(said: Mapping[str, Any]) -> dict[str, str] | None:
    found = {"id": _text(said, "id"), "type": _text(said, "type"), "name": _text(said, "summary")}
    return {name: text[:200] for name, text in found.items() if text} or None


def _mapping(said: object, name: str) -> dict[str, Any]:
    found = said.get(name) if isinstance(said, dict) else None
    return found if isinstance(found, dict) else {}


def _text(said: object, name: str) -> str:
    found = said.get(name) if isinstance(said, dict) else None
    return clean(found).strip() if isinstance(found, str) else ""


def _instant(text: str) -> datetime | None:
    """Read a time with its offset; None for anything else."""
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
