"""The store's inbox as the webhooks and the replays need it: counted, and read again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pydantic import TypeAdapter

from remediator.intake.alertmanager import Foreign
from remediator.intake.reader import Reader
from remediator.model.alert import Alert, DeadLetter, Delivery, Source
from remediator.model.base import DeliveryId, IncidentId
from remediator.model.catalog import Catalogue
from remediator.model.errors import RejectedDelivery, StoreUnavailable
from remediator.service.metrics import Telemetry
from remediator.service.worker import Worker
from remediator.store import Store

_ALERTS = TypeAdapter(list[Alert])


class CountingInbox:
    """The store's inbox with what the door needs besides: metrics and replays."""

    def __init__(self, store: Store, worker: Worker, telemetry: Telemetry, reader: Reader) -> None:
        self._store = store
        self._worker = worker
        self._telemetry = telemetry
        self._reader = reader

    async def put(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> DeliveryId:
        """Store it; return its id, or that of the earlier one that it is a mere repetition of."""
        try:
            stored = await self._store.inbox.put(delivery, alerts, dead)
        except StoreUnavailable:
            self._telemetry.deliveries.labels(delivery.source, "unavailable").inc()
            raise
        taken = "taken" if alerts or not dead else "dead"
        result = taken if stored == delivery.id else "duplicate"
        self._telemetry.deliveries.labels(delivery.source, result).inc()
        self._telemetry.delivery_alerts.labels(delivery.source).inc(len(alerts))
        return stored

    async def replay(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> list[IncidentId]:
        """Store it and open its incidents; durable when it returns."""
        # a replay keeps its alerts instead of its body, so that any process can triage it
        readable = delivery.model_copy(update={"body": _ALERTS.dump_json(list(alerts))})
        await self.put(readable, alerts, dead)
        return await self._worker.triage_now(delivery.id)

    async def stored_alerts(self, some_id: str) -> tuple[Alert, ...] | None:
        """Return the alerts of a stored delivery, alert or incident; None if there is none."""
        delivery = await self._store.records.delivery(some_id)
        if delivery is not None:
            if delivery.source is Source.PAGERDUTY:
                return await self._store.events.alerts(delivery.id)
            try:
                return tuple(await decoded(self._reader, delivery))
            except RejectedDelivery:
                return ()
        return await self._store.records.alerts_of(some_id)


async def decoded(reader: Reader, delivery: Delivery) -> Sequence[Alert]:
    """Read a stored delivery's alerts again.

    Raises ``RejectedDelivery`` for one that could be read when it came and cannot be any more.
    """
    if delivery.source is Source.REPLAY:
        return _ALERTS.validate_json(delivery.body)
    return (await reader.again(delivery)).alerts


def foreign_to(
    catalogue: Catalogue, spoken_for: Mapping[str, frozenset[str]]
) -> Callable[[str | None], Foreign]:
    """Return what tells which alerts a credential may not speak of.

    ``spoken_for`` are the systems of the credentials that do not speak for all, by their names.
    """

    def of(credential: str | None) -> Foreign:
        systems = spoken_for.get(credential or "")

        def foreign(labels: Mapping[str, str]) -> str | None:
            service = None if systems is None else catalogue.locate(labels)
            if service is None or systems is None or service.system in systems:
                return None
            named = f"{service.system}, which its labels name"
            return f"{credential} speaks for {', '.join(sorted(systems))}, and not for {named}"

        return foreign

    return of
