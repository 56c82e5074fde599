"""Plays Prometheus and Alertmanager for the demo: one rule, one receiver.

The rule is evaluated on the shop's real figures, and its notifications are real Alertmanager v4
bodies posted to the service's real webhook, with the times of a rule cut down to seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from remediator.model import AlertStatus

LABELS = {
    "alertname": "DatabaseConnectionPoolExhausted",
    "service": "orders",
    "severity": "critical",
    "system": "shop",
}
ANNOTATIONS = {"summary": "Every connection of the orders pool is in use and requests wait."}
RECEIVER = "remediator"


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
class Rule:
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


def exhausted(pool: Mapping[str, int]) -> bool:
    """The rule's expression: ``waiting > 0 and active == max``."""
    return pool["waiting"] > 0 and pool["active"] == pool["max"]


def fingerprint(labels: Mapping[str, str]) -> str:
    """Hash a label set as Prometheus does (64 bit FNV-1a over the sorted pairs)."""
    content = b"".join(f"{k}".encode() + b"\xff" + v.encode() + b"\xff" for k, v in _sorted(labels))
    value = 0xCBF29CE484222325
    for byte in content:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def _sorted(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(labels.items())


def notification(status: AlertStatus, starts_at: datetime, now: datetime) -> dict[str, Any]:
    """Write the body that Alertmanager posts for the demo's alert."""
    resolved = status is AlertStatus.RESOLVED
    alert = {
        "status": status.value,
        "labels": LABELS,
        "annotations": ANNOTATIONS,
        "startsAt": starts_at.isoformat().replace("+00:00", "Z"),
        "endsAt": now.isoformat().replace("+00:00", "Z") if resolved else "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": fingerprint(LABELS),
    }
    group = {"alertname": LABELS["alertname"]}
    return {
        "receiver": RECEIVER,
        "status": status.value,
        "alerts": [alert],
        "groupLabels": group,
        "commonLabels": LABELS,
        "commonAnnotations": ANNOTATIONS,
        "externalURL": "",
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{group["alertname"]}"}}',
        "truncatedAlerts": 0,
    }


@dataclass(frozen=True)
class Route:
    """From where the figures come and to where the notifications go."""

    pool_url: str
    webhook_url: str
    token: str


async def play_alerts(
    route: Route, timing: Timing, on_sent: Callable[[AlertStatus, httpx.Response], None]
) -> None:
    """Evaluate the rule and notify until cancelled; ``on_sent`` hears of every accepted one.

    Raises ``httpx.HTTPStatusError`` when the webhook answers with anything that Alertmanager
    would not try again.
    """
    rule = Rule(timing)
    headers = {"Authorization": f"Bearer {route.token}", "User-Agent": "Alertmanager/0.25.0"}
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        while True:
            pool = (await http.get(route.pool_url)).raise_for_status().json()
            now = datetime.now(UTC)
            status = rule.evaluate(holds=exhausted(pool), now=now)
            if status is not None and rule.starts_at is not None:
                body = notification(status, rule.starts_at, now)
                answer = await http.post(route.webhook_url, json=body, headers=headers)
                if not answer.is_server_error:  # as Alertmanager: only 5xx is tried again
                    on_sent(status, answer.raise_for_status())
                    rule.sent(status, now)
            await asyncio.sleep(timing.evaluate)
