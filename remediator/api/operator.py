"""The operators' JSON API: what is known, and the few things that humans decide."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Protocol, Self

from pydantic import AwareDatetime, BaseModel, Field, model_validator

from remediator.api.routing import Call, Handler, Limited, Nothing, Problem, Route, Text
from remediator.model.access import Permission
from remediator.model.base import Value
from remediator.model.duration import Duration
from remediator.model.incident import IncidentOutcome, IncidentState
from remediator.model.maintenance import LONGEST, MaintenanceOrder
from remediator.model.views import (
    DeadLetterView,
    DeliveryView,
    IncidentSummary,
    IncidentView,
    LimitView,
    Page,
    PauseView,
    PlaybookView,
    WindowView,
)

GLOBAL = "global"


class Records(Protocol):
    """What is known. All raise ``StoreUnavailable``; lists are newest first."""

    async def incidents(
        self,
        *,
        state: str | None,
        service: str | None,
        system: str | None,
        outcome: str | None,
        after: str | None,
        limit: int,
    ) -> Page[IncidentSummary]:
        """List incidents."""
        ...

    async def incident(self, incident_id: str) -> IncidentView | None:
        """Return one incident; None when there is no such id."""
        ...

    async def deliveries(self, *, after: str | None, limit: int) -> Page[DeliveryView]:
        """List the HTTP calls received."""
        ...

    async def dead_letters(self, *, after: str | None, limit: int) -> Page[DeadLetterView]:
        """List what could not be used."""
        ...

    async def pauses(self) -> list[PauseView]:
        """List the stop switches that are on."""
        ...

    async def limits(self) -> list[LimitView]:
        """List the bounds of all scopes with their use."""
        ...


class Playbooks(Protocol):
    """What is loaded and where it is used."""

    async def playbooks(self) -> list[PlaybookView]:
        """List the playbooks by name."""
        ...


class Commands(Protocol):
    """What operators decide; ``by`` names the credential.

    All raise ``Refused`` (404, 409) and ``StoreUnavailable``.
    """

    async def pause(self, scope: str, by: str, reason: str) -> PauseView:
        """Switch changes off in a scope."""
        ...

    async def resume(self, scope: str, by: str) -> None:
        """Switch them on again."""
        ...

    def held(self) -> list[PauseView]:
        """List what is paused in this process alone, since the store did not take it."""
        ...

    async def approve(self, incident_id: str, plan_hash: str | None, by: str) -> object:
        """Allow the plan that waits."""
        ...

    async def reject(self, incident_id: str, plan_hash: str | None, by: str, reason: str) -> object:
        """Refuse the plan that waits."""
        ...

    async def cancel(self, incident_id: str, by: str, reason: str) -> object:
        """Stop working on an incident."""
        ...

    async def acknowledge(self, incident_id: str, by: str) -> object:
        """Note that a person has an incident, so that nobody else is called for a time."""
        ...


class Maintenance(Protocol):
    """The windows in which humans work themselves; ``by`` names the credential.

    All raise ``Refused`` (404, 409, 422) and ``StoreUnavailable``.
    """

    async def windows(self) -> list[WindowView]:
        """List what runs and what comes, in the order of their begin."""
        ...

    async def start(self, order: MaintenanceOrder, by: str) -> WindowView:
        """Let a window begin, now or later."""
        ...

    async def end(self, window_id: str, by: str) -> WindowView:
        """End a window that was ordered."""
        ...


class IncidentQuery(Limited):
    """Query of the list of incidents; filters that are given must all hold."""

    state: IncidentState | None = None
    service: Text | None = None
    system: Text | None = None
    outcome: IncidentOutcome | None = None


Scope = Annotated[Text, Field(min_length=1, max_length=200)]


class PauseBody(Value):
    """What to pause: ``global``, ``SYSTEM`` or ``SYSTEM/SERVICE``."""

    scope: Scope = GLOBAL
    reason: Text = ""


class ResumeBody(Value):
    """What to resume."""

    scope: Scope = GLOBAL
    reason: Text = ""


class Resumed(Value):
    """A stop switch that is off."""

    scope: str


Moment = Annotated[
    AwareDatetime,
    Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(9000, 1, 1, tzinfo=UTC)),
]
"""A time that can be reckoned with in every time zone."""


class MaintenanceBody(Value):
    """When humans work on what: ``for`` or ``until``, from now on unless ``from`` is given."""

    scope: Scope
    since: Moment | None = Field(default=None, alias="from")
    lasts: Annotated[Duration, Field(gt=timedelta(0), le=LONGEST)] | None = Field(
        default=None, alias="for"
    )
    until: Moment | None = None
    reason: Text = ""

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if (self.lasts is None) == (self.until is None):
            raise ValueError("needs either for, such as 2h, or until")
        return self


class DecisionBody(Value):
    """An operator's word on an incident."""

    plan_hash: Text | None = None
    """Digest of the plan that was looked at; a plan that has changed since is then a 409."""
    reason: Text = ""


class AcknowledgeBody(Value):
    """Nothing is asked but the call itself; the credential says who has the incident."""


class LimitsView(Value):
    """Every bound with its use, and the stop switches that are on."""

    items: list[LimitView]
    paused: list[PauseView]


def api_routes(
    records: Records, playbooks: Playbooks, commands: Commands, maintenance: Maintenance
) -> tuple[Route, ...]:
    """Return the routes of the API."""
    return (
        *_reading(records, playbooks, commands),
        *_switches(commands),
        *_maintenance(maintenance),
        *_decisions(records, commands),
    )


def _reading(records: Records, playbooks: Playbooks, commands: Commands) -> tuple[Route, ...]:
    async def incidents(call: Call) -> Page[IncidentSummary]:
        query: IncidentQuery = call.query
        return await records.incidents(
            state=query.state,
            service=query.service,
            system=query.system,
            outcome=query.outcome,
            after=query.after,
            limit=query.limit,
        )

    async def incident(call: Call) -> IncidentView:
        return await _incident(records, call)

    async def deliveries(call: Call) -> Page[DeliveryView]:
        return await records.deliveries(after=call.query.after, limit=call.query.limit)

    async def dead(call: Call) -> Page[DeadLetterView]:
        return await records.dead_letters(after=call.query.after, limit=call.query.limit)

    async def limits(_: Call) -> LimitsView:
        paused = [*commands.held(), *await records.pauses()]
        return LimitsView(items=await records.limits(), paused=paused)

    async def loaded(_: Call) -> Page[PlaybookView]:
        return Page[PlaybookView](items=await playbooks.playbooks())

    return (
        _get("/incidents", incidents, "List incidents", Page[IncidentSummary], IncidentQuery),
        _get("/incidents/{id}", incident, "Show one incident", IncidentView),
        _get(
            "/deliveries", deliveries, "List the HTTP calls received", Page[DeliveryView], Limited
        ),
        _get("/deadletters", dead, "List what could not be used", Page[DeadLetterView], Limited),
        _get(
            "/playbooks", loaded, "List the playbooks and where they are used", Page[PlaybookView]
        ),
        _get(
            "/limits",
            limits,
            "Show the bounds of all scopes with their use, and what is paused",
            LimitsView,
        ),
    )


def _switches(commands: Commands) -> tuple[Route, ...]:
    async def pause(call: Call) -> PauseView:
        return await commands.pause(call.body.scope, call.by, call.body.reason)

    async def resume(call: Call) -> Resumed:
        await commands.resume(call.body.scope, call.by)
        return Resumed(scope=call.body.scope)

    return (
        _post("/pause", pause, "Stop every change in a scope", PauseBody, PauseView),
        _post("/resume", resume, "Allow changes in a scope again", ResumeBody, Resumed),
    )


def _maintenance(maintenance: Maintenance) -> tuple[Route, ...]:
    async def windows(_: Call) -> Page[WindowView]:
        return Page[WindowView](items=await maintenance.windows())

    async def start(call: Call) -> WindowView:
        order = MaintenanceOrder.model_validate(dict(call.body))
        return await maintenance.start(order, call.by)

    async def end(call: Call) -> WindowView:
        return await maintenance.end(_id(call), call.by)

    order = _post(
        "/maintenance", start, "Change nothing in a scope for a time", MaintenanceBody, WindowView
    )
    return (
        _get("/maintenance", windows, "List the windows that run or come", Page[WindowView]),
        replace(order, status=201),
        Route(
            "DELETE",
            "/api/v1/maintenance/{id}",
            Permission.OPERATE,
            end,
            "End a window that was ordered",
            response=WindowView,
            errors=(404, 409, 503),
        ),
    )


def _decisions(records: Records, commands: Commands) -> tuple[Route, ...]:
    async def approve(call: Call) -> IncidentView:
        await commands.approve(_id(call), call.body.plan_hash, call.by)
        return await _incident(records, call)

    async def reject(call: Call) -> IncidentView:
        await commands.reject(_id(call), call.body.plan_hash, call.by, call.body.reason)
        return await _incident(records, call)

    async def cancel(call: Call) -> IncidentView:
        await commands.cancel(_id(call), call.by, call.body.reason)
        return await _incident(records, call)

    async def acknowledge(call: Call) -> IncidentView:
        await commands.acknowledge(_id(call), call.by)
        return await _incident(records, call)

    one, taken = "/incidents/{id}", "Say that you have it: nobody else is called for a time"
    return (
        _post(f"{one}/approve", approve, "Allow the plan that waits", DecisionBody, IncidentView),
        _post(f"{one}/reject", reject, "Refuse the plan that waits", DecisionBody, IncidentView),
        _post(f"{one}/cancel", cancel, "Stop working on it", DecisionBody, IncidentView),
        _post(f"{one}/acknowledge", acknowledge, taken, AcknowledgeBody, IncidentView),
    )


def _id(call: Call) -> str:
    return call.request.match_info["id"]


async def _incident(records: Records, call: Call) -> IncidentView:
    view = await records.incident(_id(call))
    if view is None:
        raise Problem(404, f"Incident {_id(call)} not found")
    return view


def _get(
    path: str,
    handler: Handler,
    summary: str,
    response: Any,
    query: type[BaseModel] = Nothing,
) -> Route:
    errors = (404, 503) if "{" in path else (503,)
    return Route(
        "GET",
        f"/api/v1{path}",
        Permission.READ,
        handler,
        summary,
        query=query,
        response=response,
        errors=errors,
    )


def _post(
    path: str, handler: Handler, summary: str, request: type[Value], response: type[Value]
) -> Route:
    return Route(
        "POST",
        f"/api/v1{path}",
        Permission.OPERATE,
        handler,
        summary,
        request=request,
        response=response,
        errors=(404, 409, 503),
    )
