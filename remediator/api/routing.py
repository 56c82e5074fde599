"""One table of routes, from which the HTTP application and its description are made.

A ``Route`` says who may call it and what goes in and out. The frame around each handler
authenticates before the body is read, validates what comes in, and turns every error into an
answer: RFC 9457 problems, without internals.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Literal

import structlog
from aiohttp import web
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError

from remediator.api.auth import Access
from remediator.api.body import BodyLimits, Fault, ask_later, receive
from remediator.api.origin import Names, host_fault, origin_fault
from remediator.model.access import Permission, Principal
from remediator.model.base import Value
from remediator.model.errors import Refused, RejectedDelivery, RemediatorError, TemporaryError

RETRY_AFTER = 5
"""Seconds after which a sender that got a 503 may try again."""
STOPPING: web.AppKey[asyncio.Event] = web.AppKey("stopping", asyncio.Event)
"""Set once the service stops: what would start new work answers 503."""
AUTHENTICATED: web.RequestKey[bool] = web.RequestKey("authenticated", bool)
"""Key of a request that carries a known credential, or a good signature."""
CROWDED: web.RequestKey[bool] = web.RequestKey("crowded", bool)
"""Key of a request on a connection that is kept for operators and open routes."""
ID = "[0-9A-Za-z_.:-]{1,100}"
"""Pattern of an id in a path; anything else is no such route."""
JSON = "application/json"
"""Content type of what is sent here, and of most answers."""
FORM = "application/x-www-form-urlencoded"
"""Content type that Slack sends."""
JSON_LINES = "application/x-ndjson"
"""Content type of an answer that is one JSON document a line."""
_COMMAND_BODY = 64 * 1024

_log = structlog.get_logger(__name__)

Text = Annotated[
    str,
    Field(max_length=2000),
    AfterValidator(lambda text: text.replace("\0", "\ufffd").strip()),
]
"""Short text from outside, without what a database cannot hold."""


class FieldProblem(Value):
    """One value that cannot be taken."""

    path: str
    message: str


class ProblemView(Value):
    """An error, as RFC 9457 has it."""

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: str
    errors: tuple[FieldProblem, ...] = ()


class Problem(RemediatorError):
    """Ends a request with an error answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: tuple[FieldProblem, ...] = (),
        headers: dict[str, str] | None = None,
        *,
        close: bool = False,
    ) -> None:
        """Keep what the answer says; ``close`` ends the connection after it."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers or {}
        self.close = close

    def response(self) -> web.Response:
        """Return the answer."""
        title = HTTPStatus(self.status).phrase
        view = ProblemView(title=title, status=self.status, detail=self.detail, errors=self.errors)
        response = web.Response(
            status=self.status,
            body=view.model_dump_json().encode(),
            content_type="application/problem+json",
            headers=self.headers,
        )
        if self.close:
            response.force_close()
        return response


def unavailable(reason: str, after: float | None = None, *, close: bool = False) -> Problem:
    """Return the 503 that asks the sender to come back after so many seconds."""
    seconds = math.ceil(after or RETRY_AFTER)
    return Problem(503, reason, headers={"Retry-After": str(seconds)}, close=close)


@dataclass(frozen=True)
class Call:
    """One request that was let in, as a handler sees it."""

    request: web.Request
    principal: Principal | None
    """The caller; None only where the route is open."""
    query: Any
    """The route's ``query`` model, validated."""
    body: Any
    """The route's ``request``, validated; None where the handler reads the body itself."""

    @property
    def by(self) -> str:
        """Name of the caller's credential."""
        if self.principal is None:
            raise RuntimeError("an open route has no caller")
        return self.principal.name

    def believed(self) -> None:
        """Note that a signature was good, where that is how a caller is known."""
        self.request[AUTHENTICATED] = True

    @property
    def stopping(self) -> bool:
        """Whether the service is about to end."""
        return self.request.app[STOPPING].is_set()


Handler = Callable[[Call], Awaitable[BaseModel | web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """One method of one path, and everything that is promised about it."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    """With the names of ids in braces: ``/api/v1/incidents/{id}``."""
    permission: Permission | None
    """What the caller must be allowed to do; None is open to everyone."""
    handler: Handler
    summary: str
    query: type[BaseModel] | None = None
    request: Any = None
    """Type of the JSON body."""
    decodes: bool = True
    """Whether the frame reads the body as ``request``; otherwise the handler does."""
    response: Any = None
    """Type of the JSON answer; None is text."""
    lines: Any = None
    """Type of each line, where the answer is JSON lines."""
    events: Any = None
    """Type of each event where the answer is a stream of server-sent events."""
    takes: str = JSON
    """Content type of the body, where the method has one."""
    status: int = 200
    """Status of the good answer."""
    errors: tuple[int, ...] = ()
    """Statuses of the other answers, beyond what the frame itself says."""


@dataclass(frozen=True)
class Watch:
    """Where the application tells what it did; metrics hang here."""

    refused: Callable[[str], None] = lambda _reason: None
    """Called for every 401 and 403 with ``no_credential``, ``unknown_credential``,
    ``not_allowed``, ``unknown_host`` or ``foreign_page``."""
    answered: Callable[[str, str, int, float], None] = lambda *_: None
    """Called for every answer with the method, the route's path, the status and the seconds."""


def build_app(
    routes: Iterable[Route],
    access: Access,
    watch: Watch = Watch(),
    limits: BodyLimits = BodyLimits(),  # noqa: B008 - frozen
    clock: Callable[[], float] = time.monotonic,
    names: Names = Names(),  # noqa: B008 - frozen
) -> web.Application:
    """Make the application of ``routes``; serve it with ``listening``, which bounds it in time.

    ``names`` are those that callers may call it by.
    """
    app = web.Application(middlewares=[_answering(watch, clock)])
    app[STOPPING] = asyncio.Event()
    guard = _Guard(access, watch.refused, clock, names)
    for route in routes:
        handler = _framed(route, guard, limits)
        path = re.sub(r"\{(\w+)\}", rf"{{\1:{ID}}}", route.path)
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            app.router.add_route(method, path, handler, expect_handler=ask_later)
    return app


def _framed(
    route: Route, guard: _Guard, limits: BodyLimits
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    query = TypeAdapter(route.query) if route.query else None
    adapter = TypeAdapter(route.request) if route.request and route.decodes else None
    command = BodyLimits(max_body=_COMMAND_BODY, timeout=limits.timeout)

    async def handle(request: web.Request) -> web.StreamResponse:
        guard.refuse_foreign(request)
        principal = guard.admit(request, route.permission)
        if route.method == "POST":
            _require(route.takes, request)
        asked = _query(request, query) if query else None
        body = await _body(request, adapter, command) if adapter else None
        answer = await route.handler(Call(request, principal, asked, body))
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(
            status=route.status,
            body=answer.model_dump_json().encode(),
            content_type=JSON,
        )

    return handle


class _Guard:
    """Lets callers in, or says loudly, but not more than once a second a reason, why not."""

    def __init__(
        self,
        access: Access,
        refused: Callable[[str], None],
        clock: Callable[[], float],
        names: Names,
    ) -> None:
        self._names = names
        self._access = access
        self._refused = refused
        self._clock = clock
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def refuse_foreign(self, request: web.Request) -> None:
        """Refuse what a browser does for a page that is not ours; reading needs a known host."""
        headers = request.headers
        host = headers.get("Host")
        fault, reason = host_fault(host, self._names), "unknown_host"
        if fault is None and request.method not in ("GET", "HEAD"):
            given = (headers.getall(name, []) for name in ("Origin", "Sec-Fetch-Site"))
            fault, reason = origin_fault(host, *given), "foreign_page"
        if fault is not None:
            self._refuse(reason, request, None)
            raise Problem(403, fault)

    def admit(self, request: web.Request, permission: Permission | None) -> Principal | None:
        if permission is None:
            return None
        header = request.headers.get("Authorization")
        principal = self._access.authenticate(header)
        if principal is None:
            reason = "unknown_credential" if header else "no_credential"
            self._refuse(reason, request, None)
            # never basic: a browser would ask for it, and send it along with every page's calls
            scheme = 'Bearer realm="remediator"'
            detail = "the credential is not known here" if header else "a credential is needed"
            raise Problem(
                401, f"{detail}: a bearer token, or basic", headers={"WWW-Authenticate": scheme}
            )
        if not principal.may(permission):
            self._refuse("not_allowed", request, principal)
            raise Problem(
                403,
                f"credential {principal.name!r} has the role {principal.role}, which may not"
                f" {permission}",
            )
        request[AUTHENTICATED] = True
        if request.get(CROWDED) and not principal.may(Permission.OPERATE):
            self._refuse("crowded", request, principal)
            after = {"Retry-After": str(RETRY_AFTER)}
            detail = "too many connections are at work; what is left is for operators"
            raise Problem(503, detail, headers=after, close=True)
        return principal

    def _refuse(self, reason: str, request: web.Request, principal: Principal | None) -> None:
        self._refused(reason)
        now = self._clock()
        if now - self._said.get(reason, -math.inf) < 1:
            self._unsaid[reason] = self._unsaid.get(reason, 0) + 1
            return
        self._said[reason] = now
        _log.warning(
            "request_refused",
            reason=reason,
            credential=principal.name if principal else None,
            method=request.method,
            path=request.path[:200],
            remote=request.remote,
            more_since_last=self._unsaid.pop(reason, 0),
        )


def _require(takes: str, request: web.Request) -> None:
    """Refuse a body of another content type: what a page may send unasked is none of ours."""
    if "Content-Type" not in request.headers and not request.body_exists:
        return
    if "Content-Type" not in request.headers or request.content_type != takes:
        raise Problem(415, f"the body should be {takes}, and say so in Content-Type")


def _query(request: web.Request, adapter: TypeAdapter[Any]) -> Any:
    given = request.query
    twice = sorted({name for name in given if len(given.getall(name)) > 1})
    if twice:
        errors = tuple(FieldProblem(path=f"query.{name}", message="given twice") for name in twice)
        raise Problem(422, "the query cannot be used", errors)
    try:
        return adapter.validate_python(dict(given))
    except ValidationError as error:
        raise Problem(422, "the query cannot be used", field_problems("query", error)) from error


async def _body(request: web.Request, adapter: TypeAdapter[Any], limits: BodyLimits) -> Any:
    content = await read_body(request, limits)
    try:
        return adapter.validate_json(content if content.strip() else b"{}")
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise Problem(400, "the body is not JSON") from error
        raise Problem(422, "the body cannot be used", field_problems("body", error)) from error


async def read_body(request: web.Request, limits: BodyLimits) -> bytes:
    """Read a body whole; raises the ``Problem`` that says why it cannot be."""
    body = await receive(request, limits)
    if body.fault is not None:
        raise body_problem(body.fault, body.reason)
    return body.content


def body_problem(fault: Fault, reason: str) -> Problem:
    """Return the answer to a body that cannot be read."""
    match fault:
        case Fault.TOO_LARGE:
            return Problem(413, reason, close=True)
        case Fault.SLOW:
            return Problem(408, reason, close=True)
        case Fault.CROWDED:
            return unavailable(f"no more can be taken now: {reason}", close=True)
        case Fault.CUT | Fault.ENCODING:
            return Problem(400, reason, close=True)


def field_problems(root: str, error: ValidationError) -> tuple[FieldProblem, ...]:
    """Say of each value that pydantic refused where it is and what is wrong with it."""
    return tuple(
        FieldProblem(path=".".join([root, *map(str, e["loc"])]), message=e["msg"])
        for e in error.errors(include_url=False, include_context=False, include_input=False)[:20]
    )


def _answering(watch: Watch, clock: Callable[[], float]) -> Any:
    """Turn every error below it into an answer, and tell ``watch`` of all answers."""

    @web.middleware
    async def answer(request: web.Request, handler: Any) -> web.StreamResponse:
        began = clock()
        try:
            response: web.StreamResponse = await handler(request)
        except Exception as error:  # noqa: BLE001 - the last stop: nothing internal goes out
            response = problem_of(request, error).response()
        resource = request.match_info.route.resource
        path = resource.canonical if resource else "unknown"
        watch.answered(request.method, path, response.status, clock() - began)
        return response

    return answer


def problem_of(request: web.Request, error: Exception) -> Problem:
    """Return the answer to an error; logs it when it is ours."""
    match error:
        case Problem():
            return error
        case web.HTTPException():
            allow = error.headers.get("Allow")
            detail = f"{request.method} {request.path[:200]}: {error.reason.lower()}"
            return Problem(error.status, detail, headers={"Allow": allow} if allow else None)
        case Refused():
            return Problem(error.status, error.reason)
        case RejectedDelivery():
            return Problem(400, str(error))
        case TemporaryError():
            _log.warning("request_unavailable", path=request.path[:200], reason=str(error))
            return unavailable("not available now; try again later", error.retry_after)
        case _:
            _log.error("request_failed", path=request.path[:200], exc_info=error)
            return Problem(500, "an error of the service; its log says more")


class Nothing(Value):
    """Query of a route that takes none: a misspelt filter is an error, not the whole list."""


class Limited(Value):
    """Query of a list: where to go on, and how much at once."""

    limit: Annotated[int, Field(ge=1, le=200)] = 50
    after: Annotated[str, Field(pattern=f"^{ID}$")] | None = None
    """``next`` of the page before."""
