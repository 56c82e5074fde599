"""Plays Prometheus and Alertmanager for the demo: one rule, one receiver.

The rule is evaluated on the real figures of what breaks, and its notifications are real Alertmanager v4
bodies posted to the service's real webhook, with the times of a rule cut down to seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from remediator.cli.demo.sandbox import SERVICE, SYSTEM
from remediator.model.alert import AlertStatus
from remediator.model.fingerprint import fingerprint_of

RECEIVER = "remediator"


@dataclass(frozen=True)
class AlertRule:
    """One rule: the alert's name and text, and the expression over its figures."""

    name: str
    summary: str
    holds: Callable[[Any], bool]
    """The expression, over what the figures' URL answers."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Labels besides those that every alert of the shop carries."""

    @property
    def labels(self) -> dict[str, str]:
        """All labels of the alert."""
        fixed = {"service": SERVICE, "severity": "critical", "system": SYSTEM}
        return {"alertname": self.name, **fixed, **self.extra}


@dataclass(frozen=True)
class Timing:
    """The times of the rule and of its notifications, in seconds."""

    evaluate: float = 0.5
    hold: float = 3.0
    """The rule's ``for``: how long the condition holds before the alert fires."""
    keep: float = 1.0
    """The rule's ``keep_firing_for``: how long it is gone before the alert resolves."""
    resend: float = 5.0
    """Alertmanager's ``repeat_interval``."""


@dataclass
class Watched:
    """One alert's way from pending over firing to resolved, as the senders track it."""

    timing: Timing
    since: datetime | None = None
    """Since when the condition holds."""
    starts_at: datetime | None = None
    """When it began to fire; None while it does not."""
    gone_since: datetime | None = None
    sent_at: datetime | None = None

    def evaluate(self, *, holds: bool, now: datetime) -> AlertStatus | None:
        """Take one evaluation and return what has to be sent now, if anything."""
        return self._holds(now) if holds else self._gone(now)

    def _holds(self, now: datetime) -> AlertStatus | None:
        self.since = self.since or now
        self.gone_since = None
        if self.starts_at is None and now - self.since >= timedelta(seconds=self.timing.hold):
            self.starts_at = now
        due = self.sent_at is None or now - self.sent_at >= timedelta(seconds=self.timing.resend)
        return AlertStatus.FIRING if self.starts_at is not None and due else None

    def _gone(self, now: datetime) -> AlertStatus | None:
        self.since = None
        self.gone_since = self.gone_since or now
        over = now - self.gone_since >= timedelta(seconds=self.timing.keep)
        return AlertStatus.RESOLVED if self.starts_at is not None and over else None

    def sent(self, status: AlertStatus, now: datetime) -> None:
        """Note that the receiver took a notification."""
        self.sent_at = now
        if status is AlertStatus.RESOLVED:
            self.starts_at = self.sent_at = None


def notification(
    rule: AlertRule, status: AlertStatus, starts_at: datetime, now: datetime
) -> dict[str, Any]:
    """Write the body that Alertmanager posts for an alert of ``rule``."""
    resolved = status is AlertStatus.RESOLVED
    annotations = {"summary": rule.summary}
    alert = {
        "status": status.value,
        "labels": rule.labels,
        "annotations": annotations,
        "startsAt": starts_at.isoformat().replace("+00:00", "Z"),
        "endsAt": now.isoformat().replace("+00:00", "Z") if resolved else "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": fingerprint_of(rule.labels),
    }
    return {
        "receiver": RECEIVER,
        "status": status.value,
        "alerts": [alert],
        "groupLabels": {"alertname": rule.name},
        "commonLabels": rule.labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{rule.name}"}}',
        "truncatedAlerts": 0,
    }


@dataclass(frozen=True)
class Route:
    """From where the figures come and to where the notifications go."""

    figures_url: str
    webhook_url: str
    token: str


async def play_alerts(
    rule: AlertRule,
    route: Route,
    on_sent: Callable[[AlertStatus, httpx.Response], None],
    timing: Timing,
) -> None:
    """Evaluate the rule and notify until cancelled; ``on_sent`` hears of every accepted one.

    Raises ``httpx.HTTPStatusError`` when the webhook answers with anything that Alertmanager
    would not try again.
    """
    watched = Watched(timing)
    headers = {"Authorization": f"Bearer {route.token}", "User-Agent": "Alertmanager/0.25.0"}
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        while True:
            figures = (await http.get(route.figures_url)).raise_for_status().json()
            now = datetime.now(UTC)
            status = watched.evaluate(holds=rule.holds(figures), now=now)
            if status is not None and watched.starts_at is not None:
                body = notification(rule, status, watched.starts_at, now)
                answer = await http.post(route.webhook_url, json=body, headers=headers)
                if not answer.is_server_error:  # as Alertmanager: only 5xx is tried again
                    on_sent(status, answer.raise_for_status())
                    watched.sent(status, now)
            await asyncio.sleep(timing.evaluate)
