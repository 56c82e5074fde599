"""What humans are called with, and the one thing that every way to them can do."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from pydantic import Field

from remediator.model import Value
from remediator.views import Report


class Word(StrEnum):
    """What a channel is told about an incident."""

    LEVEL = "level"
    """A level of the escalation begins: a human is called."""
    ACKNOWLEDGED = "acknowledged"
    """Somebody has the incident."""
    RESOLVED = "resolved"
    """What was told about is over."""
    FOUND = "found"
    """What the diagnosis found."""
    DONE = "done"
    """What was done, and how the incident ended."""


class Summons(Value):
    """One message to one channel, free of the channel's format. Secrets in it are masked."""

    word: Word
    subject: str
    """What tells it from others of the same word: the level, or an incident of PagerDuty's."""
    report: Report
    headline: str
    text: str
    """All that a person needs to begin, a sentence a line."""
    severity: str
    """``critical``, ``error``, ``warning`` or ``info``."""
    links: dict[str, str] = Field(default_factory=dict)
    """Addresses worth a look, by their name."""


class Channel(Protocol):
    """A way to a person. Raises ``TemporaryError`` (with ``retry_after``) or ``PermanentError``."""

    async def tell(self, summons: Summons) -> None:
        """Say it; what was said before may be said again, where the channel cannot know that."""
        ...
