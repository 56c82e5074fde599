"""RECEIVE: PagerDuty's webhooks are let in by their signature, stored, and only then answered.

A 4xx is never answered by accident: three in a row make PagerDuty switch the subscription off for
a day. So where the fault may be ours, a secret that is missing or the wrong one, the answer is 503
and humans are told: not at the first time, which may be anybody's, but when it goes on.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import structlog

from remediator.api.body import Body, BodyLimits, receive
from remediator.api.routing import Call, Problem, Route, body_problem, unavailable
from remediator.intake.pagerduty import Told, parse
from remediator.intake.ratelimit import Turnstile
from remediator.intake.webhooks import (
    Inbox,
    Taken,
    bury,
    delivery_of,
    refuse_when_overloaded,
    refuse_when_stopping,
    utc_now,
)
from remediator.model.alert import Alert, Delivery, SenderEvent, Source
from remediator.model.base import DeliveryId
from remediator.model.errors import RejectedDelivery

PATH = "/webhooks/pagerduty"
CREDENTIAL = "pagerduty signature"
"""Credential of the deliveries: a signature has no name of its own."""
LARGEST = 1024 * 1024
"""Bytes of a body at most: PagerDuty sends up to 256 KB, and whoever sends more is not known yet."""
SEVERAL = 5
"""Webhooks that could not be checked before humans are told: PagerDuty sends one again that often
within some minutes."""
OVER = 60.0
"""Seconds from the first of them to the one at which humans are told, at least."""
_SETUP = "set pagerduty.signing_secret_files to the secret of the webhook subscription"

_log = structlog.get_logger(__name__)


class Events(Protocol):
    """Where events become durable. All raise ``StoreUnavailable``; then nothing was taken."""

    async def put(
        self, delivery: Delivery, event: SenderEvent, alerts: Sequence[Alert]
    ) -> DeliveryId:
        """Store it; return the delivery that brought it first."""
        ...

    async def verified(self, secrets: str) -> bool:
        """Say whether a signature was ever good by the set of secrets with this digest."""
        ...

    async def verify(self, secrets: str) -> None:
        """Remember that one was good."""
        ...

    async def page(self, secrets: str, reason: str) -> bool:
        """Tell humans, once a set of secrets; return whether this was the time."""
        ...


@dataclass(frozen=True)
class IncidentDoor:
    """What PagerDuty's webhooks need."""

    inbox: Inbox
    events: Events
    secrets: Callable[[], Sequence[bytes]]
    """Returns the signing secrets that are live now."""
    overloaded: Callable[[], str | None] = lambda: None
    """Says why nothing more is taken now, or None."""
    refused: Callable[[str], None] = lambda _reason: None
    """Called for every webhook that is not let in."""
    limits: BodyLimits = field(default_factory=BodyLimits)
    turnstile: Turnstile = field(default_factory=Turnstile)
    now: Callable[[], datetime] = utc_now
    clock: Callable[[], float] = time.monotonic


def pagerduty_routes(door: IncidentDoor) -> tuple[Route, ...]:
    """Return the route that PagerDuty posts to."""
    guard = _Guard(door)

    async def take(call: Call) -> Taken:
        return await _take(door, guard, call)

    return (
        Route(
            "POST",
            PATH,
            None,
            take,
            f"Take a PagerDuty webhook (version 3), signed in {HEADER}",
            request=dict[str, Any],
            decodes=False,
            response=Taken,
            status=202,
            errors=(400, 401, 408, 413, 503),
        ),
    )


async def _take(door: IncidentDoor, guard: _Guard, call: Call) -> Taken:
    refuse_when_stopping(call)
    refuse_when_overloaded(door.overloaded)
    headers = call.request.headers
    signatures = await guard.signatures(headers.getall(HEADER, []))
    largest = min(door.limits.max_body, LARGEST)
    body = await receive(call.request, BodyLimits(largest, door.limits.timeout))
    if body.fault is not None:  # nobody knows yet who sent it, so nothing of it is kept
        _log.warning("delivery_incomplete", fault=body.fault, size=body.size, digest=body.digest)
        raise body_problem(body.fault, body.reason)
    await guard.admit(body, signatures)
    call.believed()
    await door.turnstile.admit(CREDENTIAL)
    delivery = delivery_of(body, Source.PAGERDUTY, CREDENTIAL, door.now())
    try:
        told = parse(body.content, headers.get("X-Webhook-Id"), delivery.received_at)
    except RejectedDelivery as error:
        await bury(door.inbox, delivery, str(error))
        raise Problem(400, str(error)) from error
    return await _store(door, delivery, told)


async def _store(door: IncidentDoor, delivery: Delivery, told: Told) -> Taken:
    if told.event is None or told.dead:
        for letter in told.dead:
            _log.warning("event_unusable", delivery=delivery.id, reason=letter.reason)
        await door.inbox.put(delivery, (), told.dead)
        return Taken(delivery=delivery.id, alerts=0, dead=len(told.dead))
    first = await door.events.put(delivery, told.event, told.alerts)
    return Taken(delivery=first, alerts=len(told.alerts), dead=0)


class _Guard:
    """Lets in what is signed, and says why the rest is not, to the sender and to us."""

    def __init__(self, door: IncidentDoor) -> None:
        self._door = door
        self._verified: set[str] = set()
        self._paged: set[str] = set()
        self._unchecked: dict[str, tuple[int, float]] = {}
        """How many could not be checked by a set of secrets, and since when."""
        self._said: dict[str, float] = {}

    async def signatures(self, headers: Sequence[str]) -> tuple[bytes, ...]:
        """Return the signatures to check; refuse without one, or with nothing to check by."""
        if not headers:
            self._refuse("no_signature", f"the header {HEADER} is missing")
            raise Problem(401, f"the header {HEADER} is missing")
        if not self._door.secrets():
            await self._misconfigured(digest_of(()), "no signing secret is configured")
        return signatures_of(headers)

    async def admit(self, body: Body, signatures: Sequence[bytes]) -> None:
        """Let the body in, or refuse it: for good only where the secrets are known to be right."""
        secrets = self._door.secrets()
        digest = digest_of(secrets)
        if is_signed(body.content, signatures, secrets):
            if digest not in self._verified:
                if not await self._door.events.verified(digest):
                    await self._door.events.verify(digest)
                self._verified.add(digest)
            return
        if digest not in self._verified and not await self._door.events.verified(digest):
            wrong = "no signature was ever good by the signing secrets that are configured"
            await self._misconfigured(digest, wrong)
        self._verified.add(digest)
        self._refuse("bad_signature", "no signature is good by any signing secret")
        raise Problem(401, "no signature is good by any signing secret")

    async def _misconfigured(self, digest: str, wrong: str) -> None:
        """Ask the sender to come again, and humans to set it right. Always raises."""
        self._refuse("signing_secret", f"{wrong}; {_SETUP}")
        count, since = self._unchecked.get(digest, (0, self._door.clock()))
        self._unchecked[digest] = count + 1, since
        goes_on = count + 1 >= SEVERAL and self._door.clock() - since >= OVER
        if goes_on and digest not in self._paged:
            reason = f"PagerDuty's webhooks cannot be checked: {wrong}; {_SETUP}"
            if await self._door.events.page(digest, reason):
                _log.error("pagerduty_misconfigured", reason=reason)
            self._paged.add(digest)
        raise unavailable("the signature cannot be checked now")

    def _refuse(self, reason: str, detail: str) -> None:
        """Count it, and log it at most once a second."""
        self._door.refused(reason)
        now = self._door.clock()
        if now - self._said.get(reason, -math.inf) >= 1:
            self._said[reason] = now
            log = _log.error if reason == "signing_secret" else _log.warning
            log("webhook_refused", source=Source.PAGERDUTY, reason=reason, detail=detail)


HEADER = "X-PagerDuty-Signature"
MOST = 32
"""Signatures of one header that are looked at; PagerDuty sends one for each live secret."""
_SIGNATURE = re.compile(r"v1=([0-9a-fA-F]{64})")


def signatures_of(headers: Sequence[str]) -> tuple[bytes, ...]:
    """Return the version 1 signatures among the values of the header; others are no concern."""
    values = ",".join(headers).split(",", MOST)[:MOST]
    found = (_SIGNATURE.fullmatch(value.strip(" \t")) for value in values)
    return tuple(bytes.fromhex(match[1]) for match in found if match)


def is_signed(body: bytes, signatures: Sequence[bytes], secrets: Sequence[bytes]) -> bool:
    """Say whether any of ``secrets`` made any of ``signatures`` over ``body``.

    All are compared, so that the time tells nothing of which one was near.
    """
    good = False
    for secret in secrets:
        expected = hmac.digest(secret, body, "sha256")
        for signature in signatures:
            good |= hmac.compare_digest(expected, signature)
    return good


def sign(body: bytes, secret: bytes) -> str:
    """Return the value that the header has for ``body``, as PagerDuty makes it."""
    return f"v1={hmac.digest(secret, body, 'sha256').hex()}"


def digest_of(secrets: Sequence[bytes]) -> str:
    """Name a set of secrets without telling any: the same set has the same name."""
    parts = sorted({hashlib.sha256(b"remediator signing secret\0" + s).digest() for s in secrets})
    return hashlib.sha256(b"".join(parts)).hexdigest()
