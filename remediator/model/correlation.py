"""What triage knows of open episodes, and what it decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, Field

from remediator.model.alert import Alert, AlertStatus, Delivery, SenderEvent, Source
from remediator.model.base import AlertId, DeliveryId, IncidentId, Value
from remediator.model.fingerprint import is_same
from remediator.model.incident import IncidentOutcome
from remediator.model.severity import Handling, Rating
from remediator.model.unmatched import Digest, RecordBound, SenderRecords


class Reported(Value):
    """How far one of the sender's incidents is known."""

    at: AwareDatetime
    """When the newest event happened that said it fires, or that it resolved."""
    status: AlertStatus
    incidents: tuple[IncidentId, ...]
    """Our incidents that the event touched."""


class Episode(Value):
    """The latest episode of a fingerprint, as triage needs it."""

    id: AlertId
    incident_id: IncidentId
    fingerprint: str
    status: AlertStatus
    starts_at: AwareDatetime
    resolved_at: AwareDatetime | None
    ends_at: AwareDatetime | None = None
    """When it resolved, as the sender has it."""
    source: Source = Source.ALERTMANAGER
    """Who is relied on for its end: Alertmanager, once that reported it too."""
    group_key: str | None = None
    closed_at: AwareDatetime | None = None
    """When its incident was closed; None while it is open."""
    unmatched: bool = False
    """Whether its incident is a record that nothing took it."""
    labels: dict[str, str] = Field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether it fires and its incident is open, so that it is joined without more ado."""
        return self.status is AlertStatus.FIRING and self.closed_at is None

    def is_of(self, alert: Alert) -> bool:
        """Say whether it is an episode of ``alert``, whose fingerprint it has."""
        reported = Source.PAGERDUTY in (self.source, alert.source)
        return is_same(self.fingerprint, self.labels, alert.labels, reported=reported)


class Opening(Value):
    """An incident to open."""

    id: IncidentId
    correlation_key: str
    system: str | None
    service: str | None
    playbook: str | None
    outcome: IncidentOutcome | None
    """Set when it is closed at once, as a record of why nothing is done."""
    reason: str
    dry_run: bool = False
    replay_of: str | None = None
    replayed_by: str | None = None
    """Credential of who had it replayed."""
    handling: Handling = Handling.RECORDS
    sender: str | None = None
    """Among whose records it counts; None for what a playbook takes, and for replays."""


class Joining(Value):
    """A new episode that becomes part of an incident."""

    id: AlertId
    incident_id: IncidentId
    alert: Alert
    latest: bool
    """False for replays, which are no part of a fingerprint's history."""
    rating: Rating = Rating()


class Note(Value):
    """A line for an incident's journal about what a sender said."""

    incident_id: IncidentId
    event: str
    reason: str
    data: dict[str, Any] = Field(default_factory=dict)


class Correlation(Value):
    """What triage decided for a batch of deliveries."""

    opened: tuple[Opening, ...] = ()
    records: dict[DeliveryId, dict[str, IncidentId]] = Field(default_factory=dict)
    """By delivery: the incidents that gather more of its alerts, by what they are for."""
    gathered: dict[IncidentId, Digest] = Field(default_factory=dict)
    """Digests that took more alerts."""
    joined: tuple[Joining, ...] = ()
    resent: tuple[AlertId, ...] = ()
    """Episodes that were notified again; nothing else changes."""
    left: tuple[tuple[AlertId, AwareDatetime | None], ...] = ()
    """Episodes that resolved, with the sender's time of it."""
    superseded: tuple[AlertId, ...] = ()
    """Resolved episodes that are not their fingerprint's latest any more."""
    adopted: tuple[tuple[AlertId, Alert], ...] = ()
    """Episodes that another reporter answers for from now on, with what it says of them."""
    notes: tuple[Note, ...] = ()
    told: dict[DeliveryId, str | None] = Field(default_factory=dict)
    """Events that were looked at: why one changes nothing, or None where it counts."""
    deliveries: dict[DeliveryId, tuple[IncidentId, ...]]
    """Every delivery of the batch, with the incidents that it touched."""
    repeatable: frozenset[DeliveryId] = frozenset()
    """Those whose body once more would change nothing, unless somebody else speaks of its alerts."""


class Snapshot(Value):
    """What is stored that the decision depends on."""

    episodes: dict[str, Episode]
    """By fingerprint."""
    open_incidents: dict[str, IncidentId]
    """By correlation key; also unmatched records whose alerts still fire."""
    replays: dict[str, dict[AlertId, IncidentId]] = Field(default_factory=dict)
    """Alerts that fire in open replays for real, with their incidents, by fingerprint."""
    events: dict[DeliveryId, SenderEvent] = Field(default_factory=dict)
    """What a sender of incidents says, by delivery."""
    records: dict[DeliveryId, dict[str, IncidentId]] = Field(default_factory=dict)
    """By delivery: the incidents that gather its alerts since an earlier slice of it."""
    reported: dict[str, Reported] = Field(default_factory=dict)
    """How far the incidents of ``events`` are known, by the sender's id."""
    bound: RecordBound = RecordBound()
    standings: dict[tuple[str, str], SenderRecords] = Field(default_factory=dict)
    """What counts against ``bound``, by sender and place."""


Batch = Sequence[tuple[Delivery, Sequence[Alert]]]
Keys = Callable[[Alert, Delivery], str]
Correlate = Callable[[Batch, Snapshot, datetime], Correlation]
