"""The addresses that an incident's alerts name for humans. They are shown and never fetched. Pure."""

from __future__ import annotations

import re

from remediator.model.views import Frame, IncidentView

GENERATOR = "generatorURL"
"""Name under which an alert keeps the address of what made it."""
_LINKS = {
    "runbook_url": "runbook",
    "dashboard_url": "dashboard",
    "dashboard": "dashboard",
    GENERATOR: "source",
}
_SHOWABLE = re.compile(r"https?://[\x21-\x7e]{1,1000}", re.ASCII)


def links(view: IncidentView, frame: Frame) -> dict[str, str]:
    """Return addresses by their name: of the incident itself, and what its alerts name."""
    found: dict[str, str] = {}
    if frame.public_url is not None:
        found["incident"] = f"{frame.public_url}/api/v1/incidents/{view.id}"
    for alert in view.alerts:
        for key, name in _LINKS.items():
            url = alert.annotations.get(key, "")
            if _SHOWABLE.fullmatch(url):
                found.setdefault(name, url)
    return found
