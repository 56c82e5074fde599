"""MATCH: which service of the catalogue, and which of its playbooks, an alert is for. Pure."""

from __future__ import annotations

import hashlib

from remediator.model.alert import Alert, Source
from remediator.model.base import Value
from remediator.model.catalog import Catalogue, Service
from remediator.model.severity import Handling, Rating, Severities
from remediator.model.unmatched import place_of
from remediator.playbook.loader import PlaybookSet

KEY_LENGTH = 256
"""Characters of a correlation key before it is cut: labels are long, a database's index is not."""


class Match(Value):
    """Where an alert belongs; ``reason`` says why, above all when nothing takes it."""

    system: str | None
    service: str | None
    playbook: str | None
    reason: str
    rating: Rating = Rating()
    handling: Handling = Handling.RECORDS
    """What the playbook may do, by its modes."""

    @property
    def place(self) -> str:
        """``SYSTEM/SERVICE``, with a hyphen for what is not known."""
        return place_of(self.system, self.service)

    def key(self, alert: Alert) -> str:
        """Return the correlation key: alerts of one service with one cause share it."""
        cause = self.playbook or f"alert:{alert.name}"
        key = f"{self.place}/{cause}"
        if len(key) <= KEY_LENGTH:
            return key
        return f"{key[:KEY_LENGTH]}-{hashlib.sha256(key.encode()).hexdigest()}"


def match(
    alert: Alert, catalogue: Catalogue, playbooks: PlaybookSet, asked_for: str | None = None
) -> Match:
    """Find the service and the playbook for ``alert``.

    ``asked_for`` names the playbook of a replay, which then need not match the alert's name.
    """
    service = catalogue.locate(alert.labels)
    if service is None:
        shown = ", ".join(f"{k}={v}" for k, v in sorted(alert.labels.items())[:8])
        reason = f"no service of the catalogue matches the labels of {alert.name} ({shown})"
        reason += _bare(alert)
        rating = _rated(alert, catalogue.severities)
        return Match(system=None, service=None, playbook=None, reason=reason, rating=rating)
    where = {
        "system": service.system,
        "service": service.name,
        "rating": _rated(alert, service.severities),
    }
    name = asked_for if asked_for is not None else _first(alert, service, playbooks)
    if name is None:
        enabled = ", ".join(service.playbooks) or "none"
        reason = f"no playbook of {service.name} takes {alert.name} (switched on: {enabled})"
        return Match(**where, playbook=None, reason=reason)
    if name not in service.playbooks:
        reason = f"playbook {name} is not switched on for {service.system}/{service.name}"
        return Match(**where, playbook=None, reason=reason)
    handling, reason = service.playbooks[name].handling, f"{alert.name} is for {name}"
    return Match(**where, playbook=name, reason=reason, handling=handling)


def _rated(alert: Alert, severities: Severities) -> Rating:
    """Rate the alert; whom PagerDuty told us of, it has called somebody for already."""
    rating = severities.rate(alert.labels)
    if alert.source is Source.PAGERDUTY:
        return rating
    return rating.model_copy(update={"unmatched": severities.unmatched[rating.severity]})


def _bare(alert: Alert) -> str:
    """Say why an alert of PagerDuty's has no more labels than its webhook, if that is known."""
    if alert.source is not Source.PAGERDUTY:
        return ""
    said = (alert.annotations.get(name) for name in ("labels_refused", "labels_not_fetched"))
    return "".join(f"; its labels are not known: {reason}" for reason in said if reason)


def _first(alert: Alert, service: Service, playbooks: PlaybookSet) -> str | None:
    for name, enabled in service.playbooks.items():
        cls = playbooks.get(name)
        if alert.name in enabled.alertnames:
            return name
        if cls is not None and all(matcher.holds(alert.labels) for matcher in cls.matches):
            return name
    return None
