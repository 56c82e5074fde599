"""Keeping secrets out of what is shown of an incident in a chat."""

from __future__ import annotations

from remediator.redaction import redact
from remediator.views import IncidentView


def redact_incident(view: IncidentView) -> IncidentView:
    """Return ``view`` as it may be shown in a chat."""
    return IncidentView.model_validate(redact(view.model_dump()))
