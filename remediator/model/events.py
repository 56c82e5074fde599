"""Live events: what changed, as it happens."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from pydantic import AwareDatetime, Field

from remediator.model.base import Value


class EventType(StrEnum):
    """What a live event is about."""

    DELIVERY = "delivery"
    """A delivery became durable."""
    OPENED = "opened"
    """An incident was opened."""
    CHANGED = "changed"
    """Something of an incident changed."""
    CLOSED = "closed"
    """An incident was closed."""
    PAUSED = "paused"
    """A stop switch was switched on."""
    RESUMED = "resumed"
    """A stop switch was switched off."""


class LiveEvent(Value):
    """One hint, without anything that needs protection."""

    kind: EventType
    id: str | None = Field(default=None, max_length=100)
    """The delivery or the incident."""
    scope: str | None = Field(default=None, max_length=200)
    """What was paused or resumed."""
    at: AwareDatetime
    """When, by the clock of the replica where it happened."""


Announce = Callable[[EventType, str], None]
"""Takes what happened, and the id or the scope that it happened to. Returns at once."""
