"""Wires PagerDuty as a sender: its signing secrets, the reader of its API, the store of its events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import structlog

from remediator.config.settings import Settings
from remediator.intake.pagerduty_fetch import Fetch
from remediator.intake.pagerduty_webhook import IncidentDoor
from remediator.intake.webhooks import Door
from remediator.model.alert import Alert, AlertStatus, Delivery, SenderEvent
from remediator.model.base import DeliveryId
from remediator.model.errors import ConfigError, StoreUnavailable
from remediator.notify.acknowledge import hear
from remediator.service.metrics import Telemetry
from remediator.store import Store

_log = structlog.get_logger(__name__)

Secrets = Callable[[], Sequence[bytes]]


def signing_secrets(settings: Settings, environ: Mapping[str, str]) -> Secrets:
    """Return what reads the signing secrets that are live: files anew each time.

    Raises ``ConfigError`` for one that cannot be read now. One that cannot be read later is left
    out and logged, so that the others go on.
    """
    references = settings.pagerduty.signing_secrets if settings.pagerduty else ()
    for reference in references:
        try:
            reference.read(environ)
        except ConfigError as error:
            raise ConfigError(f"{settings.where('pagerduty')}: {error}") from error

    def live() -> tuple[bytes, ...]:
        found = []
        for reference in references:
            try:
                found.append(reference.read(environ).encode())
            except ConfigError as error:
                _log.error("signing_secret_unreadable", reason=str(error))
        return tuple(found)

    return live


@contextlib.asynccontextmanager
async def open_pagerduty(
    settings: Settings, environ: Mapping[str, str]
) -> AsyncIterator[Fetch | None]:
    """Open the reader of the REST API; None where no token is configured.

    Raises ``ConfigError`` for a token that cannot be read.
    """
    section = settings.pagerduty
    token = section.secret("api_token") if section else None
    if section is None or token is None:
        yield None
        return
    from remediator.backends.pagerduty import (  # noqa: PLC0415 - only where configured
        PagerDutyReader,
    )

    try:
        token.read(environ)
    except ConfigError as error:
        raise ConfigError(f"{settings.where('pagerduty')}: {error}") from error
    async with PagerDutyReader(section.api_url, lambda: token.read(environ)) as reader:
        yield reader.alerts


class CountingEvents:
    """The store's events with metrics, and whether their labels are to be fetched."""

    def __init__(
        self, store: Store, telemetry: Telemetry, fetching: Callable[[], None] | None
    ) -> None:
        """Call ``fetching`` when labels are to be fetched; None where they cannot be."""
        self._events = store.events
        self._commands = store.commands
        self._telemetry = telemetry
        self._fetching = fetching

    async def put(
        self, delivery: Delivery, event: SenderEvent, alerts: Sequence[Alert]
    ) -> DeliveryId:
        """Store it; return the delivery that brought it first."""
        fetch = self._fetching is not None and event.status is AlertStatus.FIRING
        try:
            first = await self._events.put(delivery, event, alerts, fetch=fetch)
            await hear(self._commands, event)
        except StoreUnavailable:
            self._telemetry.deliveries.labels(delivery.source, "unavailable").inc()
            raise
        if self._fetching is not None:
            self._fetching()
        result = "taken" if first == delivery.id else "duplicate"
        self._telemetry.deliveries.labels(delivery.source, result).inc()
        if first == delivery.id:
            self._telemetry.delivery_alerts.labels(delivery.source).inc(len(alerts))
        return first

    async def verified(self, secrets: str) -> bool:
        """Say whether a signature was ever good by the set of secrets with this digest."""
        return await self._events.verified(secrets)

    async def verify(self, secrets: str) -> None:
        """Remember that one was good."""
        await self._events.verify(secrets)

    async def page(self, secrets: str, reason: str) -> bool:
        """Tell humans, once a set of secrets; return whether this was the time."""
        return await self._events.page(secrets, reason)

    def refused(self, reason: str) -> None:
        """Count a webhook that is not let in."""
        self._telemetry.rejected_requests.labels(reason).inc()


def incident_door(door: Door, events: CountingEvents, secrets: Secrets) -> IncidentDoor:
    """Return the door for PagerDuty, as wide as the one for Alertmanager."""
    return IncidentDoor(
        inbox=door.inbox,
        events=events,
        secrets=secrets,
        overloaded=door.overloaded,
        refused=events.refused,
        limits=door.limits,
        turnstile=door.turnstile,
    )
