"""What senders deliver: deliveries, alerts, dead letters."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from remediator.model.base import DeliveryId, Value

# --- intake -----------------------------------------------------------------------------------


class Source(StrEnum):
    """The inbound system that a delivery came from."""

    ALERTMANAGER = "alertmanager"
    PAGERDUTY = "pagerduty"
    REPLAY = "replay"


class AlertStatus(StrEnum):
    """What the sender says of the condition."""

    FIRING = "firing"
    RESOLVED = "resolved"


class Alert(Value):
    """One notification about one condition, free of the vendor's field names."""

    source: Source
    fingerprint: str
    """Identity of the condition across notifications, replicas of the sender and restarts."""
    status: AlertStatus
    labels: dict[str, str]
    annotations: dict[str, str] = Field(default_factory=dict)
    starts_at: AwareDatetime
    ends_at: AwareDatetime | None = None
    group_key: str | None = None

    @property
    def name(self) -> str:
        """The ``alertname`` label, or ``unnamed``."""
        return self.labels.get("alertname", "unnamed")


class SenderEvent(Value):
    """What a sender of incidents, such as PagerDuty, says happened to one of them."""

    id: str
    """The sender's id of the event: the same one again is a duplicate."""
    webhook: str | None = None
    """The sender's id of the webhook, the same for every attempt to deliver it."""
    kind: str
    """The sender's word for it, such as ``triggered``, ``acknowledged``, ``annotated``."""
    status: AlertStatus | None = None
    """What it says of the condition; None for an event that neither opens nor ends anything."""
    again: bool = False
    """Whether a human opened an incident again that had resolved."""
    incident: str | None = None
    """The sender's id of its incident; None where the event is about none, or about our own."""
    key: str | None = None
    """The incident's deduplication key."""
    agent: dict[str, str] | None = None
    """Who did it: ``id``, ``type`` and ``name``; None when nobody is named."""
    at: AwareDatetime
    """When it happened, by the sender's clock."""

    @property
    def group_key(self) -> str:
        """The ``group_key`` of the alerts that its incident stands for."""
        return f"pagerduty/{self.incident}"

    @property
    def who(self) -> str:
        """The name of who did it."""
        return (self.agent or {}).get("name") or "nobody named"


class DeadLetter(Value):
    """Something received that could not be used, kept so that nothing is lost."""

    reason: str
    """What is wrong, where, and what to do."""
    position: int | None = None
    """Index in the body's ``alerts`` list; None when the whole body is meant."""
    excerpt: str = ""
    """At most 64 KiB of what was received."""


class Delivery(Value):
    """One HTTP call received: its raw body and what may be needed to read it again."""

    id: DeliveryId
    source: Source
    received_at: AwareDatetime
    credential: str | None
    """Name of the credential that it came with."""
    digest: str
    """SHA-256 of the body, in hex."""
    size: int
    """Bytes received; larger than ``len(body)`` when only the beginning was kept."""
    body: bytes
    replay_of: str | None = None
    """Id of what a replay repeats, or ``"manual"`` for a body given by hand."""
    dry_run: bool = False
    playbook: str | None = None
    """Playbook that a replay asks for, instead of the one that matches."""
