"""How many records of one sender are kept apart when no playbook takes its alerts. Pure.

What is over the bound joins one digest, so that a flood is neither a flood of messages nor lost.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import ConfigDict, Field

from remediator.model.alert import Delivery
from remediator.model.base import IncidentId, Value
from remediator.model.duration import Duration, format_duration


class RecordBound(Value):
    """How many alerts that no playbook takes have a record of their own."""

    model_config = ConfigDict(use_attribute_docstrings=True, hide_input_in_errors=True)

    count: Annotated[int, Field(ge=1, le=1000, strict=True)] = 20
    """Records of one sender (credential) and service in any `window`, up to 1000. What is over it
    joins one digest record."""
    window: Annotated[
        Duration, Field(strict=True, ge=timedelta(seconds=1), le=timedelta(hours=24))
    ] = timedelta(minutes=10)
    """Time over which they are counted, and for which a digest takes more, from `1s` to `24h`."""


class SenderRecords(Value):
    """What one sender has about one service within the window."""

    records: int = 0
    """Records with an alert, or one body's alerts, of their own."""
    digest: IncidentId | None = None
    """The record that takes the rest."""
    gathered: int = 0
    """Alerts that the digest took so far."""


class Digest(Value):
    """A digest that grew: how many alerts it took so far, and what is said of it."""

    gathered: int
    reason: str


def sender_of(delivery: Delivery) -> str:
    """Return whose records are counted together: those of one credential."""
    return delivery.credential or delivery.source


def place_of(system: str | None, service: str | None) -> str:
    """Return ``SYSTEM/SERVICE``, with a hyphen for what is not known."""
    return f"{system or '-'}/{service or '-'}"


def described(sender: str, standing: SenderRecords, bound: RecordBound) -> str:
    """Say why the digest is there, the number first: a message cuts long lines."""
    alerts = f"{standing.gathered} alert{'' if standing.gathered == 1 else 's'}"
    return (
        f"{alerts} that no playbook takes, beyond {bound.count} records by {sender}"
        f" in {format_duration(bound.window)}"
    )
