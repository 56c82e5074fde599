"""RECEIVE clicks: a button pressed in Slack becomes an operator's order, once, if it may.

Nothing is believed before the signature over the raw bytes is. Slack waits 3 s for an answer, so
the order has 2 s; whatever is left to be said goes to the person afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol
from urllib.parse import parse_qs

import structlog
from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from remediator.api.body import BodyLimits
from remediator.api.routing import FORM, Call, Problem, Route, read_body
from remediator.intake.webhooks import refuse_when_stopping, utc_now
from remediator.model.access import Permission, Principal
from remediator.model.base import Value
from remediator.model.errors import Refused, RejectedDelivery, TemporaryError
from remediator.model.mitigation import Consent
from remediator.model.views import Button, PlanReference

PATH = "/slack/interactions"
WINDOW = timedelta(minutes=5)
"""Time that a signature is good for, in both directions."""
ANSWER_WITHIN = 2.0
"""Seconds for an order; Slack tells the person that it failed after 3."""

_LATE = "It takes longer than usual. Look at the incident before you press again."
_TAKEN = "This very click was taken before; nothing more was done."
_UNKNOWN = "Whether it was taken is not known now. If it still waits in a minute, press again."
_log = structlog.get_logger(__name__)


# --- what Slack sends -------------------------------------------------------------------------


class Click(Value):
    """One press of one of our buttons."""

    user: str
    """Slack's id of the person."""
    button: Button
    plan: PlanReference
    response_url: str
    """Where the person can be told something; empty where there is no such place."""


class _User(BaseModel):
    id: str = Field(pattern=r"^[UW][A-Z0-9]{1,30}$")


class _Action(BaseModel):
    action_id: str
    value: str = ""


class _Payload(BaseModel):
    type: Literal["block_actions"]
    user: _User
    actions: list[_Action] = Field(min_length=1, max_length=1)
    response_url: str = Field(default="", max_length=2000)


def signature_fault(
    secret: str, stamp: str | None, signature: str | None, body: bytes, now: datetime
) -> str | None:
    """Say why ``body`` cannot be believed to come from Slack; None when it can.

    ``stamp`` is X-Slack-Request-Timestamp and ``signature`` X-Slack-Signature. Constant time.
    """
    if stamp is None or signature is None:
        return "X-Slack-Signature or X-Slack-Request-Timestamp is missing"
    if not re.fullmatch(r"[0-9]{1,12}", stamp):
        return "X-Slack-Request-Timestamp is no time"
    if abs(now.timestamp() - int(stamp)) > WINDOW.total_seconds():
        return "the request is not of the last 5 minutes; check both clocks"
    signed = f"v0:{stamp}:".encode() + body
    expected = "v0=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), signature.encode(errors="surrogateescape")):
        return "the signature is not by slack.signing_secret"
    return None


def read_click(body: bytes) -> Click:
    """Read a form with a ``payload``; ``RejectedDelivery`` says why it is no click of ours."""
    try:
        payloads = parse_qs(body.decode(), max_num_fields=20).get("payload", [])
    except ValueError as error:
        raise RejectedDelivery("the body is no form") from error
    if len(payloads) != 1:
        raise RejectedDelivery("the form needs exactly one payload")
    try:
        payload = _Payload.model_validate_json(payloads[0])
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the payload"
        raise RejectedDelivery(f"the payload is no press of a button: see {where}") from error
    (action,) = payload.actions
    try:
        button, plan = Button(action.action_id), PlanReference.read(action.value)
    except ValueError as error:
        raise RejectedDelivery("the button is not one of this service") from error
    return Click(user=payload.user.id, button=button, plan=plan, response_url=payload.response_url)


# --- what is done about it --------------------------------------------------------------------


class Orders(Protocol):
    """What a person can order by a click. All raise ``Refused`` and ``StoreUnavailable``."""

    async def approve(
        self, incident_id: str, plan_hash: str | None, by: str, *, via: str
    ) -> Consent:
        """Count a yes to the plan that waits."""
        ...

    async def reject(
        self, incident_id: str, plan_hash: str | None, by: str, reason: str, *, via: str
    ) -> object:
        """Refuse the plan that waits."""
        ...

    async def waits_for(self, incident_id: str, plan_hash: str) -> str:
        """Return ``SYSTEM/SERVICE`` of the plan, as long as exactly it waits."""
        ...

    async def pause(self, scope: str, by: str, reason: str) -> object:
        """Switch changes off in a scope."""
        ...

    async def acknowledge(self, incident_id: str, by: str) -> object:
        """Note that a person has the incident."""
        ...

    async def note(self, incident_id: str, event: str, by: str, reason: str, **detail: str) -> None:
        """Keep in the journal what was asked for and what came of it."""
        ...


class Clicks(Protocol):
    """Remembers what was taken."""

    async def take(self, click: str) -> bool:
        """Keep a request's digest; False when it was taken before."""
        ...


class Replies(Protocol):
    """Ways to say something that only the person sees who clicked."""

    def draw(self, text: str) -> dict[str, Any]:
        """Return ``text`` as the chat takes it, with everything foreign made inert."""
        ...

    def reaches(self, url: str) -> bool:
        """Whether ``url`` is a place of the chat, and nobody else's."""
        ...

    async def tell(self, url: str, text: str) -> None:
        """Say ``text`` there; what goes wrong is in the log."""
        ...


@dataclass(frozen=True)
class Desk:
    """What the clicks need."""

    secret: Callable[[], str | None]
    """Reads the app's signing secret; None when it cannot be read."""
    people: Mapping[str, Principal]
    """Who may come, by Slack's id of the user."""
    orders: Orders
    clicks: Clicks
    replies: Replies
    refused: Callable[[str], None] = lambda _reason: None
    """Called for every request that cannot be believed."""
    limits: BodyLimits = field(default_factory=lambda: BodyLimits(max_body=1024 * 1024))
    answer_within: float = ANSWER_WITHIN
    now: Callable[[], datetime] = utc_now


def slack_routes(desk: Desk | None) -> tuple[Route, ...]:
    """Return the route that Slack posts the clicks to; it takes none without a ``desk``."""
    return (
        Route(
            "POST",
            PATH,
            None,
            _Gate(desk).take,
            "Take a press of a button in Slack, signed by it",
            takes=FORM,
            errors=(401, 408, 413, 503),
        ),
    )


class _Gate:
    """Lets in what is signed, and says loudly, but not each time, what is not."""

    def __init__(self, desk: Desk | None) -> None:
        self._desk = desk
        self._complained: dict[str, float] = {}

    async def take(self, call: Call) -> web.StreamResponse:
        """Check the signature before anything else, then answer in time."""
        refuse_when_stopping(call)
        desk, request = self._desk, call.request
        secret = desk.secret() if desk is not None else None
        if desk is None or secret is None:
            self._complain("slack_without_signing_secret", "set slack.signing_secret_file", None)
            raise Problem(503, "there is no slack.signing_secret, so no click can be believed")
        body = await read_body(request, desk.limits)
        stamp = request.headers.get("X-Slack-Request-Timestamp")
        signature = request.headers.get("X-Slack-Signature")
        fault = signature_fault(secret, stamp, signature, body, desk.now())
        if fault is not None:
            desk.refused("slack_signature")
            self._complain("slack_click_not_believed", fault, 1.0)
            raise Problem(401, fault)
        call.believed()
        digest = hashlib.sha256(f"{stamp}:".encode() + body).hexdigest()
        try:
            click = read_click(body)
        except RejectedDelivery as error:
            _log.warning("slack_click_not_read", reason=str(error))
            return web.json_response(desk.replies.draw(f"Not done: {error}."))
        return await _Answering(desk).answer(request, click, digest)

    def _complain(self, event: str, reason: str, again_after: float | None) -> None:
        """Log it, but once, or once in ``again_after`` seconds."""
        now, last = time.monotonic(), self._complained.get(event)
        if last is None or (again_after is not None and now - last >= again_after):
            self._complained[event] = now
            _log.warning(event, path=PATH, reason=reason)


@dataclass(frozen=True)
class _Answering:
    """Carries one click out."""

    _desk: Desk

    async def answer(self, request: web.Request, click: Click, digest: str) -> web.StreamResponse:
        """Answer when it is done or the time is over, then say what came of it."""
        replies = self._desk.replies
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._carry_out(click, digest))
            await asyncio.wait({work}, timeout=self._desk.answer_within)
            tells = replies.reaches(click.response_url)
            answer = web.Response()
            if not tells:
                said = work.result() if work.done() else _LATE
                answer = web.json_response(replies.draw(said))
            with contextlib.suppress(ConnectionError):  # gone already: the order stands
                await answer.prepare(request)
                await answer.write_eof()
            if tells:
                await replies.tell(click.response_url, await work)
        return answer

    async def _carry_out(self, click: Click, digest: str) -> str:
        """Return what the person is told."""
        try:
            if not await self._desk.clicks.take(digest):
                _log.warning("slack_click_repeated", incident_id=click.plan.incident_id)
                return _TAKEN
            return await self._judge(click)
        except TemporaryError as error:
            _log.warning("slack_click_unavailable", reason=str(error))
        except Exception:  # noqa: BLE001 - the person is answered, whatever broke
            _log.exception("slack_click_failed")
        return _UNKNOWN

    async def _judge(self, click: Click) -> str:
        person = self._desk.people.get(click.user)
        by = person.name if person is not None else f"Slack user {click.user}"
        event, detail = click.button.word, _detail(click)
        try:
            text = await self._order(click, _permitted(person, click.user))
        except Refused as error:
            _log.warning("slack_click_refused", by=by, order=event, reason=error.reason, **detail)
            await self._desk.orders.note(
                click.plan.incident_id, f"refused: {event}", by, error.reason, **detail
            )
            return f"Not done: {error.reason}."
        _log.info("slack_click", by=by, order=event, **detail)
        return text

    async def _order(self, click: Click, by: str) -> str:
        orders, plan = self._desk.orders, click.plan
        match click.button:
            case Button.APPROVE:
                consent = await orders.approve(plan.incident_id, plan.plan_hash, by, via="slack")
                return _approved(consent)
            case Button.REJECT:
                why = "pressed Reject in Slack"
                await orders.reject(plan.incident_id, plan.plan_hash, by, why, via="slack")
                return "Rejected: it will not be done."
            case Button.PAUSE:
                scope = await orders.waits_for(plan.incident_id, plan.plan_hash)
                await orders.pause(scope, by, f"pressed in Slack at {plan.incident_id}")
                said = f"Paused {scope}. Go on with: remediator resume {scope}"
            case Button.TAKE_OVER:
                await orders.waits_for(plan.incident_id, plan.plan_hash)
                await orders.acknowledge(plan.incident_id, by)
                said = "It is yours. The plan still waits: reject it if it is not to be done."
        event = f"pressed: {click.button.word}"
        await orders.note(plan.incident_id, event, by, said, **_detail(click))
        return said


def _permitted(person: Principal | None, user: str) -> str:
    """Return the person's name; ``Refused`` for whom the configuration lets do nothing."""
    if person is None:
        raise Refused(403, f"you are not known here; add slack: {user} to approvers")
    if not person.may(Permission.OPERATE):
        raise Refused(403, f"{person.name} has the role {person.role}, which may not decide")
    return person.name


def _approved(consent: Consent) -> str:
    if not consent.missing:
        return "Approved: it goes ahead."
    return f"Approved, {consent.given} of {consent.needed}: somebody else must approve it too."


def _detail(click: Click) -> dict[str, str]:
    return {"via": "slack", "user": click.user, "plan": click.plan.plan_hash}
