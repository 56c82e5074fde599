"""What PagerDuty says of the incidents that we opened there: that a person has one."""

from __future__ import annotations

import structlog

from remediator.model.alert import SenderEvent
from remediator.model.errors import Refused
from remediator.store.operator_commands import Commands

OURS = "remediator/"
"""Begin of the deduplication keys of our own escalations."""
_TAKEN = frozenset({"acknowledged", "resolved"})
"""What a person does who has an incident; if the alert fires on, we call again in time."""

_log = structlog.get_logger(__name__)


async def hear(commands: Commands, event: SenderEvent) -> None:
    """Note that a person has the incident that ``event`` is about, if it is one of ours.

    What our own events caused there is no person's doing. Raises ``StoreUnavailable``, so that
    PagerDuty tells us again; told twice it changes nothing.
    """
    person = (event.agent or {}).get("type", "").startswith("user")
    if not (event.key or "").startswith(OURS) or event.kind not in _TAKEN or not person:
        return
    incident = (event.key or "").removeprefix(OURS)
    by = f"pagerduty:{event.who}"
    try:
        await commands.acknowledge(incident, by, from_pagerduty=True)
    except Refused as refusal:  # it is over here, or another installation's
        _log.info("acknowledgement_not_needed", incident_id=incident, reason=refusal.reason)
