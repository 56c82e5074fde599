"""RECEIVE: webhooks are let in, bounded, stored, and only then answered.

202 means that all of it is durable; 4xx that no retry can cure it; 503 that the sender must
come again. What cannot be used is kept as a dead letter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from aiohttp import web

from remediator.api.body import EXCERPT, Body, BodyLimits, Fault, receive
from remediator.api.routing import Call, Problem, Route, body_problem, unavailable
from remediator.intake.alertmanager import TooManyAlerts, excerpt_of
from remediator.intake.ratelimit import Turnstile
from remediator.intake.reader import Reader
from remediator.model.access import Permission
from remediator.model.alert import Alert, DeadLetter, Delivery, Source
from remediator.model.base import DeliveryId, IncidentId, Value, new_id
from remediator.model.errors import RejectedDelivery

ALERTMANAGER_PATHS = ("/webhooks/alertmanager", "/", "/alerts", "/api/v1/alerts")
DELIVERY = "dlv"
"""Prefix of a delivery's id."""
_READY_WITHIN = 5.0
_FRESH_FOR = 0.05
"""Seconds for which the metrics are rendered once, however many ask: a twentieth of what they cost."""

_log = structlog.get_logger(__name__)


class Inbox(Protocol):
    """Where deliveries become durable. Both raise ``StoreUnavailable``; then nothing was taken."""

    async def put(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> DeliveryId:
        """Store it; return its id, or that of the earlier one that it is a mere repetition of."""
        ...

    async def replay(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> list[IncidentId]:
        """Store it and open its incidents; durable when it returns."""
        ...


class Taken(Value):
    """Answer to a delivery that is durable."""

    delivery: DeliveryId
    alerts: int
    dead: int


def utc_now() -> datetime:
    """Return the time of this machine."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Door:
    """What the webhooks need."""

    inbox: Inbox
    overloaded: Callable[[], str | None] = lambda: None
    """Says why nothing more is taken now, or None."""
    limits: BodyLimits = field(default_factory=BodyLimits)
    turnstile: Turnstile = field(default_factory=Turnstile)
    reader: Reader = field(default_factory=Reader)
    now: Callable[[], datetime] = utc_now


def webhook_routes(door: Door) -> tuple[Route, ...]:
    """Return the routes that senders of alerts post to."""

    async def take(call: Call) -> web.StreamResponse | Taken:
        return await _take(door, call)

    return tuple(
        Route(
            "POST",
            path,
            Permission.POST_ALERTS,
            take,
            "Take an Alertmanager webhook (version 4)",
            request=dict[str, Any],
            decodes=False,
            response=Taken,
            status=202,
            errors=(400, 408, 413, 503),
        )
        for path in ALERTMANAGER_PATHS
    )


def health_routes(
    ready: Callable[[], Awaitable[list[str]]], render: Callable[[], tuple[bytes, str]]
) -> tuple[Route, ...]:
    """Return the routes that are open to everyone.

    ``ready`` names the problems that keep the service from working; ``render`` returns the
    metrics and their content type.
    """

    async def healthz(_: Call) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(call: Call) -> web.Response:
        problems = ["the service is stopping"] if call.stopping else await _problems(ready)
        text = "".join(f"{problem}\n" for problem in problems) or "ready\n"
        return web.Response(text=text, status=503 if problems else 200)

    fresh = _Fresh(render)

    async def metrics(_: Call) -> web.Response:
        body, content_type = fresh.get()
        return web.Response(body=body, headers={"Content-Type": content_type})

    return (
        Route("GET", "/healthz", None, healthz, "Say that the process lives"),
        Route("GET", "/readyz", None, readyz, "Say whether work can be taken", errors=(503,)),
        Route("GET", "/metrics", None, metrics, "Show the metrics for Prometheus"),
    )


class _Fresh:
    """The metrics as of a moment ago: anybody may ask, and rendering them costs milliseconds."""

    def __init__(self, render: Callable[[], tuple[bytes, str]]) -> None:
        self._render = render
        self._at = float("-inf")
        self._shown = (b"", "")

    def get(self) -> tuple[bytes, str]:
        now = asyncio.get_running_loop().time()
        if now - self._at >= _FRESH_FOR:
            self._at, self._shown = now, self._render()
        return self._shown


async def _problems(ready: Callable[[], Awaitable[list[str]]]) -> list[str]:
    try:
        async with asyncio.timeout(_READY_WITHIN):
            return await ready()
    except TimeoutError:
        return [f"the check of readiness did not end within {_READY_WITHIN:g} s"]
    except Exception:  # noqa: BLE001 - not ready is an answer, whatever broke
        _log.exception("readiness_check_failed")
        return ["the check of readiness failed; the log says more"]


async def _take(door: Door, call: Call) -> Taken:
    refuse_when_stopping(call)
    refuse_when_overloaded(door.overloaded)
    await door.turnstile.admit(call.by)
    with door.limits.room.share() as share:
        body = await receive(call.request, door.limits, share)
        delivery = delivery_of(body, Source.ALERTMANAGER, call.by, door.now())
        if body.fault is not None:
            await _turn_away(door, delivery, body.fault, body.reason)
            raise body_problem(body.fault, body.reason)
        async with door.reader.turn(len(body.content)):
            return await _keep(door, delivery)


async def _keep(door: Door, delivery: Delivery) -> Taken:
    """Read a whole body and store it, or keep why it cannot be used."""
    try:
        parsed = await door.reader.again(delivery)
    except TooManyAlerts as error:
        # none of them is taken, so that the sender keeps them all and says that it could not
        # deliver them; nor is its body kept whole, which would come again and again
        beginning = delivery.model_copy(update={"body": delivery.body[:EXCERPT]})
        await bury(door.inbox, beginning, str(error))
        raise Problem(413, str(error)) from error
    except RejectedDelivery as error:
        await bury(door.inbox, delivery, str(error))
        raise Problem(400, str(error)) from error
    if parsed.truncated:
        _log.warning("delivery_truncated", delivery=delivery.id, left_out=parsed.truncated)
    stored = await door.inbox.put(delivery, parsed.alerts, parsed.dead)
    return Taken(delivery=stored, alerts=len(parsed.alerts), dead=len(parsed.dead))


async def _turn_away(door: Door, delivery: Delivery, fault: Fault, reason: str) -> None:
    if fault in (Fault.TOO_LARGE, Fault.ENCODING):
        await bury(door.inbox, delivery, reason)
    else:  # a slow or a broken sender: half a body, which it has whole
        _log.warning("delivery_incomplete", fault=fault, size=delivery.size, reason=reason)


async def bury(inbox: Inbox, delivery: Delivery, reason: str) -> None:
    """Keep a body that cannot be used as a dead letter."""
    _log.warning("delivery_rejected", delivery=delivery.id, size=delivery.size, reason=reason)
    letter = DeadLetter(reason=reason, excerpt=excerpt_of(delivery.body))
    await inbox.put(delivery, (), (letter,))


def refuse_when_stopping(call: Call) -> None:
    """Send the caller away, to come again, when the service is about to end."""
    if call.stopping:
        raise unavailable("the service is stopping")


def refuse_when_overloaded(overloaded: Callable[[], str | None]) -> None:
    """Send the caller away, to come again, when no more can be taken."""
    overload = overloaded()
    if overload is not None:
        _log.warning("delivery_shed", reason=overload)
        raise unavailable(f"no more can be taken now: {overload}")


def delivery_of(body: Body, source: Source, credential: str, now: datetime) -> Delivery:
    """Return the record of one HTTP call received."""
    return Delivery(
        id=DeliveryId(new_id(DELIVERY, now)),
        source=source,
        received_at=now,
        credential=credential,
        digest=body.digest,
        size=body.size,
        body=body.content,
    )
