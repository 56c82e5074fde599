"""Deliveries whose alerts are in memory until triage takes them, so that no body is read twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from remediator.model.alert import Alert, Delivery
from remediator.model.base import DeliveryId
from remediator.store.slices import SLICE, prints_of

DELIVERIES = 256
"""Deliveries that are kept at most, of those that have alerts and of those that have not."""
ALERTS = 20_000
"""Alerts that are kept at most."""
BYTES = 32 * 1024 * 1024
"""Bytes of their bodies, which measure what the alerts take."""


class AtHand:
    """Keeps the newest deliveries within bounds; of large ones what they are about for longer."""

    def __init__(self) -> None:
        self._kept: OrderedDict[DeliveryId, tuple[Delivery, Sequence[Alert]]] = OrderedDict()
        self._prints: OrderedDict[DeliveryId, frozenset[str]] = OrderedDict()
        self._alerts = self._bytes = 0

    def keep(self, delivery: Delivery, alerts: Sequence[Alert]) -> None:
        """Keep a delivery without its body, and let older ones go."""
        self.drop(delivery.id)
        self._kept[delivery.id] = delivery.model_copy(update={"body": b""}), alerts
        self._alerts, self._bytes = self._alerts + len(alerts), self._bytes + delivery.size
        if len(alerts) > SLICE:
            self._prints[delivery.id] = prints_of(alerts)
        while len(self._kept) > 1 and self._is_over():
            self._forget(next(iter(self._kept)))
        while len(self._prints) > DELIVERIES:
            self._prints.popitem(last=False)

    def use(self, delivery: DeliveryId) -> tuple[Delivery, Sequence[Alert]] | None:
        """Return a delivery with its alerts, and keep it longer than others; None if not there."""
        if delivery in self._kept:
            self._kept.move_to_end(delivery)
        return self._kept.get(delivery)

    def prints(self, delivery: DeliveryId) -> frozenset[str] | None:
        """Return what a large delivery's alerts are known by; None if that is not known."""
        return self._prints.get(delivery)

    def drop(self, delivery: DeliveryId) -> None:
        """Forget a delivery."""
        self._forget(delivery)
        self._prints.pop(delivery, None)

    def _is_over(self) -> bool:
        return len(self._kept) > DELIVERIES or self._alerts > ALERTS or self._bytes > BYTES

    def _forget(self, delivery: DeliveryId) -> None:
        known, alerts = self._kept.pop(delivery, (None, ()))
        if known is not None:
            self._alerts, self._bytes = self._alerts - len(alerts), self._bytes - known.size
