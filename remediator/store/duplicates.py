"""The same body once more: what a cache in front of the store has to promise, and none at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from remediator.model.alert import Alert, AlertStatus, Delivery, Source
from remediator.model.base import DeliveryId

Triaged = Sequence[tuple[Delivery, Sequence[Alert], bool]]
"""Deliveries with their alerts, and whether the same body once more would change nothing."""


class Repeats(Protocol):
    """Knows which bodies would change nothing, and forgets it as soon as that may be wrong.

    Never raises and never waits for long: what it does not know is stored once more.
    """

    async def earlier(
        self, delivery: Delivery, alerts: Sequence[Alert], *, whole: bool
    ) -> DeliveryId | None:
        """Return the triaged delivery of which this one is a mere repetition.

        None otherwise; then it is noted, before the delivery becomes durable, that it speaks of
        these alerts. Only one that is ``whole``, without dead letters, repeats another.
        """
        ...

    async def settle(self, triaged: Triaged) -> None:
        """Take in what triage made of deliveries."""
        ...


class NoRepeats:
    """Knows nothing: everything is stored."""

    async def earlier(
        self, delivery: Delivery, alerts: Sequence[Alert], *, whole: bool
    ) -> DeliveryId | None:
        """Know nothing."""
        return None

    async def settle(self, triaged: Triaged) -> None:
        """Keep nothing."""


def may_repeat(delivery: Delivery, alerts: Sequence[Alert]) -> bool:
    """Say whether a body is of the kind that is sent again and again: all of it fires.

    An alert without a start begins when it comes, so its next notification says something else.
    """
    return (
        delivery.source is Source.ALERTMANAGER
        and delivery.replay_of is None
        and bool(alerts)
        and all(
            alert.status is AlertStatus.FIRING and alert.starts_at != delivery.received_at
            for alert in alerts
        )
    )
