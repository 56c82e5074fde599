"""Calls a person by PagerDuty's Events API v2: one of its incidents for each of ours.

The key is ``remediator/INCIDENT``, so a call that is made twice wakes nobody twice. The same key
says there that somebody has it, and that it is over.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import httpx

from remediator.backends.http.tls import shared_context
from remediator.backends.pagerduty import TIMEOUT, call
from remediator.model.notification import Summons, Word

DEDUP_PREFIX = "remediator/"
"""Begin of our keys; what comes back from PagerDuty with one of them is an echo of our own."""
SUMMARY = 1024
"""Characters that PagerDuty takes in a summary."""
_LINES = 40
"""Findings and deeds that are sent; all of them stand in the incident's record."""
_ACTIONS = {
    Word.LEVEL: "trigger",
    Word.ACKNOWLEDGED: "acknowledge",
    Word.RESOLVED: "resolve",
}


class PagerDutyEvents:
    """Implements ``notification.Channel``. Use as an async context manager."""

    def __init__(self, routing_key: str, url: str, *, timeout: float = TIMEOUT) -> None:
        """Keep the ``routing_key``, which is a secret; ``url`` is without ``/v2/enqueue``."""
        self._key = routing_key
        self._url = f"{url}/v2/enqueue"
        self._client = httpx.AsyncClient(
            timeout=timeout, follow_redirects=False, verify=shared_context()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def tell(self, summons: Summons) -> None:
        """Trigger, acknowledge or resolve; other words have no place there."""
        action = _ACTIONS.get(summons.word)
        if action is None:
            return
        body: dict[str, Any] = {
            "routing_key": self._key,
            "event_action": action,
            "dedup_key": f"{DEDUP_PREFIX}{summons.report.incident.id}",
        }
        if summons.word is Word.LEVEL:
            body |= _trigger(summons)
        await call(self._client, "POST", self._url, f"{action} event", body=body, secret=self._key)


def _trigger(summons: Summons) -> dict[str, Any]:
    incident = summons.report.incident
    place = "/".join(part for part in (incident.system, incident.service) if part)
    names = sorted({alert.labels.get("alertname", "unnamed") for alert in incident.alerts})
    payload = {
        "summary": summons.headline[:SUMMARY] or incident.id,
        "source": place or "remediator",
        "severity": summons.severity,
        "component": incident.service,
        "group": incident.system,
        "class": ", ".join(names)[:SUMMARY] or None,
        "custom_details": {
            "incident": incident.id,
            "outcome": incident.outcome,
            "playbook": incident.playbook,
            "reason": incident.reason,
            "happened": list(summons.report.happened[:_LINES]),
            "found": list(summons.report.found[:_LINES]),
            "done": list(summons.report.done[:_LINES]),
            "helped": summons.report.helped,
            "next": summons.report.next_step,
        },
    }
    return {
        "payload": {name: value for name, value in payload.items() if value is not None},
        "client": "remediator",
        "links": [{"href": url, "text": name} for name, url in summons.links.items()],
    }
