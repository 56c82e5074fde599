"""The senders of alerts: what they know to fire, and what they were promised to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from remediator.model.alert import Alert, AlertStatus, DeadLetter, Delivery
from remediator.model.base import DeliveryId
from remediator.model.errors import StoreUnavailable
from remediator.store.inbox import Inbox
from remediator.testing import firing_alert
from remediator.triage.correlate import STALE_WITHIN
from tests.engine_world import Scene
from tests.store_fixtures import a_delivery

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


@dataclass
class Senders:
    """They go by their own clock, which nothing moves, and send again what was not accepted."""

    scene: Scene
    fires: dict[str, Alert] = field(default_factory=dict)
    over: dict[str, Alert] = field(default_factory=dict)
    """What resolved, as it was when it fired."""
    ended: dict[str, datetime] = field(default_factory=dict)
    """When the store was told that it resolved, by its clock."""
    sent: dict[DeliveryId, tuple[Sequence[Alert], Sequence[DeadLetter]]] = field(
        default_factory=dict
    )
    accepted: set[DeliveryId] = field(default_factory=set)
    things: int = 0

    def breaks(self, service: str, name: str) -> Alert:
        """Let something of ``service`` go on that should be off; return the alert about it."""
        self.things += 1
        labels = {"system": "shop", "service": service, "pod": str(self.things % 3)}
        alert = firing_alert(name, labels, self.scene.clock.real)
        target = next(s for s in self.scene.services if s.name == service).targets["world"]
        self.scene.worlds[target.name].things.add(f"{service}:{self.things}")
        return self.fires.setdefault(alert.fingerprint, alert)

    def stray(self) -> Alert:
        """An alert of no service."""
        alert = firing_alert("ThingsOn", {"system": "elsewhere"}, self.scene.clock.real)
        return self.fires.setdefault(alert.fingerprint, alert)

    def known(self, n: int, of: str) -> list[Alert]:
        """Say something of the ``n``-th alert that fires: again, or that it resolved."""
        if of == "late":
            known = STALE_WITHIN - MINUTE
            recent = [
                alert
                for print_, alert in self.over.items()
                if print_ not in self.fires and self.scene.clock.now - self.ended[print_] < known
            ]
            return recent[n : n + 1]
        chosen = list(self.fires.values())[n : n + 1]
        if of == "old resolve":
            old = {"status": AlertStatus.RESOLVED}
            return [a.model_copy(update=old | {"ends_at": a.starts_at - SECOND}) for a in chosen]
        if of == "repeat":
            return chosen
        return [self.ends(alert) for alert in chosen]

    def ends(self, alert: Alert) -> Alert:
        """Let an alert resolve."""
        self.over[alert.fingerprint] = self.fires.pop(alert.fingerprint)
        self.ended[alert.fingerprint] = self.scene.clock.now
        return alert.model_copy(update={"status": "resolved", "ends_at": self.scene.clock.real})

    async def send(
        self, inbox: Inbox, alerts: Sequence[Alert], dead: Sequence[DeadLetter] = ()
    ) -> None:
        """Send it until it is accepted, each time as another delivery."""
        while True:
            delivery = a_delivery(self.scene.clock)
            self.sent[delivery.id] = alerts, dead
            try:
                await inbox.put(delivery, alerts, dead)
            except StoreUnavailable:
                continue
            self.accepted.add(delivery.id)
            return

    async def read(self, delivery: Delivery) -> Sequence[Alert]:
        """Decode a stored delivery again."""
        return self.sent[delivery.id][0]
