"""The commands that talk to a running service, and to nothing but its API."""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer

from remediator.cli import render
from remediator.cli.client import Api
from remediator.cli.failure import REFUSED, USAGE, Failure
from remediator.cli.text import console as open_console
from remediator.cli.text import plain, show
from remediator.model import MitigationState
from remediator.views import (
    DeadLetterView,
    IncidentSummary,
    IncidentView,
    LimitView,
    Page,
    PauseView,
)

IncidentArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the incident.")]
Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON and nothing else.")]
Scope = Annotated[
    str,
    typer.Argument(
        metavar="SCOPE",
        help="global (or all), SYSTEM or SYSTEM/SERVICE.",
        callback=lambda scope: "global" if scope == "all" else scope,
    ),
]

WATCH_EVERY = 1.0
"""Seconds between two looks."""
STORED_ID = re.compile(r"[a-z]+-[0-9a-f]{12}-[0-9a-f]{10}")


class Bounds(Page[LimitView]):
    """The answer about limits: they, and what is paused."""

    paused: list[PauseView]


# --- reading ------------------------------------------------------------------------------------


def incidents(
    incident: Annotated[
        str | None, typer.Argument(metavar="ID", help="Show this one, with its timeline.")
    ] = None,
    *,
    state: Annotated[str | None, typer.Option(help="Only those: open or closed.")] = None,
    service: Annotated[str | None, typer.Option(help="Only those of this service.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only those that ended so.")] = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing what changes.")] = False,
) -> None:
    """List the incidents, newest first, or show one as a timeline."""
    if as_json and watch:
        raise Failure(USAGE, "--json prints one answer and --watch many; choose one of them")
    filters = {"state": state, "service": service, "outcome": outcome}
    given = {key: value for key, value in filters.items() if value is not None}
    if incident is not None and given:
        raise Failure(USAGE, f"one incident needs no --{', --'.join(given)}; leave the ID out")
    path = "/incidents" if incident is None else f"/incidents/{quoted(incident)}"
    with Api() as api:
        if as_json:
            print_json(api.get(path, given))
        elif watch:
            with suppress(KeyboardInterrupt):  # the way to end it
                _follow(api, [incident]) if incident else _watch_incidents(api, given)
        elif incident is None:
            _list_incidents(api, given)
        else:
            _show_incident(api, incident)


def _list_incidents(api: Api, filters: dict[str, str]) -> None:
    page = _read_incidents(api, filters)
    console = open_console()
    show(render.incident_table(page.items) if page.items else "No incidents.")
    if page.next is not None:
        console.print("Older ones are left out; narrow with --state, --service or --outcome.")


def _watch_incidents(api: Api, filters: dict[str, str]) -> None:
    """Draw the table again and again; where nothing can be drawn over, print what changes."""
    console = open_console()
    shown: set[str] = set()
    while True:
        if console.is_terminal:
            console.clear()
            _list_incidents(api, filters)
        else:
            items = reversed(_read_incidents(api, filters).items)
            lines = [render.incident_line(item) for item in items]
            for line in lines:
                if line not in shown:
                    console.print(line, soft_wrap=True)
            shown = set(lines)
        time.sleep(WATCH_EVERY)


def _read_incidents(api: Api, filters: dict[str, str]) -> Page[IncidentSummary]:
    return api.read(api.get("/incidents", filters), Page[IncidentSummary])


def _show_incident(api: Api, incident: str) -> None:
    view = api.read(api.get(f"/incidents/{quoted(incident)}"), IncidentView)
    show(render.incident_page(view, datetime.now(UTC)))


def _follow(api: Api, ids: list[str]) -> None:
    """Print the timelines of incidents as they grow, until all are closed."""
    console = open_console()
    seen = dict.fromkeys(ids, 0)
    going = list(ids)
    while going:
        for incident in list(going):
            view = api.read(api.get(f"/incidents/{quoted(incident)}"), IncidentView)
            for event in view.timeline[seen[incident] :]:
                console.print(render.timeline_line(event), soft_wrap=True)
            seen[incident] = len(view.timeline)
            if view.outcome is not None and view.closed_at is not None:
                console.print(render.incident_line(view), soft_wrap=True)
                going.remove(incident)
        if going:
            time.sleep(WATCH_EVERY)


def limits(*, as_json: Json = False) -> None:
    """List the bounds of all scopes, what is used of them, and what is paused."""
    with Api() as api:
        answer = api.get("/limits")
        if as_json:
            print_json(answer)
            return
        bounds = api.read(answer, Bounds)
    console = open_console()
    show(render.limit_table(bounds.items) if bounds.items else "No limits.")
    for switch in bounds.paused:
        console.print(render.pause_line(switch))


def deadletters(*, as_json: Json = False) -> None:
    """List what was received and could not be used."""
    with Api() as api:
        answer = api.get("/deadletters")
        if as_json:
            print_json(answer)
            return
        items = api.read(answer, Page[DeadLetterView]).items
        show(render.dead_letter_page(items) if items else "No dead letters.")


# --- acting -------------------------------------------------------------------------------------


def approve(
    incident: IncidentArgument,
    *,
    plan: Annotated[
        str | None, typer.Option(metavar="HASH", help="Refuse if the plan is not this one.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Show the plan that waits, ask, and approve exactly that."""
    with Api() as api:
        waiting = _plan_of(api, incident)
        if plan is not None and plan != waiting:
            message = f"the plan of {incident} is now {waiting}, not {plan}; read it and decide"
            raise Failure(REFUSED, message)
        if not yes:
            _confirm("Do this?")
        answer = api.post(f"/incidents/{quoted(incident)}/approve", {"plan_hash": waiting})
        view = api.read(answer, IncidentView)
    say(f"Approved plan {waiting} of {incident}.")
    for left in (m for m in view.mitigations if m.plan_hash == waiting and m.approvals_missing):
        given = f"{len(left.approvals)} of {left.approvals_needed}"
        say(f"That is {given}: somebody else must approve it too.")


def _plan_of(api: Api, incident: str) -> str:
    """Show the mitigation that waits for an approval and return its hash."""
    view = api.read(api.get(f"/incidents/{quoted(incident)}"), IncidentView)
    asked = [m for m in view.mitigations if m.state is MitigationState.AWAITING_APPROVAL]
    if not asked:
        message = f"nothing of {incident} waits for approval: it is {render.standing(view).plain}"
        raise Failure(REFUSED, f"{message} ({plain(view.reason)})")
    show(render.mitigation_block(asked[-1]))
    return asked[-1].plan_hash


def reject(
    incident: IncidentArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why; kept in the timeline.")] = "",
) -> None:
    """Refuse the plan that waits for approval."""
    with Api() as api:
        api.post(f"/incidents/{quoted(incident)}/reject", {"reason": reason})
    say(f"Rejected the plan of {incident}.")


def cancel(
    incident: IncidentArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why; kept in the timeline.")] = "",
) -> None:
    """Stop working on an incident."""
    with Api() as api:
        api.post(f"/incidents/{quoted(incident)}/cancel", {"reason": reason})
    say(f"Cancelled {incident}.")


def pause(
    scope: Scope = "global",
    *,
    reason: Annotated[str, typer.Option(help="Why; shown wherever something is held.")] = "",
) -> None:
    """Stop every change in a scope; alerts are still taken."""
    with Api() as api:
        api.post("/pause", {"scope": scope, "reason": reason})
    say(f"Paused {scope}. Go on with: remediator resume {scope}")


def resume(scope: Scope = "global") -> None:
    """Allow changes in a scope again."""
    with Api() as api:
        api.post("/resume", {"scope": scope})
    say(f"Resumed {scope}.")


def replay(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE|ID",
            help="A file with an alert's JSON, - for stdin, or the id of what is stored.",
        ),
    ],
    *,
    for_real: Annotated[
        bool, typer.Option("--for-real", help="Act as the configuration allows.")
    ] = False,
    playbook: Annotated[str | None, typer.Option(help="Use this playbook.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it is closed.")] = False,
) -> None:
    """Play one alert again; a dry run unless told otherwise."""
    params = {"dry_run": "false" if for_real else "true"}
    if playbook is not None:
        params["playbook"] = playbook
    body = _body(what)
    with Api() as api:
        answer = api.post("/replay", body, params).json()
        opened = [str(incident) for incident in answer.get("incidents", [])]
        kind = "dry run" if answer.get("dry_run", True) else "for real"
        for incident in opened:
            say(f"{incident}  ({kind}; see: remediator incidents {incident})")
        if not opened:
            raise Failure(REFUSED, "the replay opened no incident; see: remediator deadletters")
        if wait:
            _follow(api, opened)


def _body(what: str) -> Any:
    """Read the replay's body: stdin, a file, or a stored thing's id."""
    if what == "-":
        return _parsed("stdin", sys.stdin.read())
    file = Path(what)
    if file.is_file():
        try:
            return _parsed(what, file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise Failure(USAGE, f"cannot read {what}: {reason}") from error
    if STORED_ID.fullmatch(what):
        return {"id": what}
    raise Failure(USAGE, f"{what!r} is neither a file nor the id of a delivery, alert or incident")


def _parsed(name: str, content: str) -> Any:
    try:
        body = json.loads(content)
    except ValueError as error:
        raise Failure(USAGE, f"{name} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Failure(USAGE, f"{name} holds no JSON object; give one alert or one webhook body")
    return body


# --- shared -------------------------------------------------------------------------------------


def quoted(identifier: str) -> str:
    """Return an id as one segment of a path."""
    return quote(identifier, safe="")


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise Failure(USAGE, "there is no terminal to ask on; read the plan and use --yes")
    if not typer.confirm(question):
        raise Failure(REFUSED, "not approved; the plan still waits")


def say(line: str) -> None:
    """Print one line that may hold text from outside."""
    typer.echo(plain(line))


def print_json(answer: httpx.Response) -> None:
    """Print an answer as it came."""
    typer.echo(answer.text.rstrip("\n"))
