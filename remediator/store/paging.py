"""What the escalation of an incident reads and writes."""

from __future__ import annotations

from pydantic import AwareDatetime

from remediator.model.base import IncidentId, Value
from remediator.model.incident import Incident
from remediator.model.maintenance import Window
from remediator.model.notification import Word


class EscalationState(Value):
    """How an escalation stands, as the decision about it needs it."""

    incident: Incident
    since: AwareDatetime
    """What the times of the levels are counted from."""
    level: int
    """The level that comes next, counted from 0."""
    acknowledged_at: AwareDatetime | None
    acknowledged_by: str | None
    echoed: bool
    """Whether PagerDuty itself told us of the acknowledgement."""
    fires: bool
    """Whether an alert of the incident fires and nobody else works on it."""
    successor: IncidentId | None
    """A later incident that has the alert now; None while ``fires``."""
    stays: bool
    """Whether a temporary change stays in production: a human is needed though no alert fires."""
    told: frozenset[str]
    """Channels that a level was told to, or will be."""
    windows: tuple[Window, ...]
    """Ordered maintenance windows over it that run now."""
    now: AwareDatetime


class Message(Value):
    """What one channel is to be told, once."""

    channel: str
    word: Word
    subject: str
    """What tells it from others of the same word: the level, or an incident of PagerDuty's."""


class Step(Value):
    """What was decided about an escalation."""

    level: int
    since: AwareDatetime
    due_at: AwareDatetime | None
    lapsed: bool = False
    """Whether the acknowledgement does not count any more."""
    ended: bool = False
    messages: tuple[Message, ...] = ()
    events: tuple[tuple[str, str], ...] = ()
    """Lines for the journal: event and reason."""


class Due(Value):
    """What is to be done now."""

    deciding: bool
    """Whether there is an escalation to decide about."""
    channels: frozenset[str]
    """Those that there is a message to."""


class Reported(Value):
    """What of an incident PagerDuty told us."""

    incidents: tuple[str, ...]
    """Its own incidents, by their ids."""
    alone: bool
    """Whether no alert of another sender fires."""


class Companion(Value):
    """A page that is told with another one of its kind, claimed as that is."""

    id: str
    incident_id: IncidentId
    epoch: int
    attempts: int


class Telling(Value):
    """One message, claimed to be sent."""

    id: str
    incident_id: IncidentId
    channel: str
    word: Word
    subject: str
    epoch: int
    attempts: int
    last_error: str = ""
    kind: str = ""
    """Equal for pages that say the same of several incidents; empty for what is no page."""
    others: tuple[Companion, ...] = ()
    """Pages of the same kind that this one stands for as well."""

    @property
    def all(self) -> tuple[Telling | Companion, ...]:
        """The rows that are claimed with it, its own first."""
        return (self, *self.others)
