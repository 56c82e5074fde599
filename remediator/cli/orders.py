"""The commands that change something in a running service, over nothing but its API."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from remediator.cli.output import REFUSED, USAGE, Failure, machine_readable, plain, show

if TYPE_CHECKING:
    import httpx

    from remediator.cli.client import Api


IncidentArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the incident, or its beginning.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON and nothing else.")]
Scope = Annotated[
    str,
    typer.Argument(
        metavar="SCOPE",
        help="global (or all), SYSTEM or SYSTEM/SERVICE.",
        callback=lambda scope: "global" if scope == "all" else scope,
    ),
]


def approve(
    incident: IncidentArgument,
    *,
    plan: Annotated[
        str | None, typer.Option(metavar="HASH", help="Refuse if the plan is not this one.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Show the plan that waits for approval, ask, and approve exactly that plan."""
    from remediator.cli.client import Api
    from remediator.cli.ids import incident_id
    from remediator.model.views import IncidentView

    with Api() as api:
        incident = incident_id(api, incident)
        waiting = _plan_of(api, incident)
        if plan is not None and plan != waiting:
            message = f"the plan of {incident} is now {waiting}, not {plan}; read it and decide"
            raise Failure(REFUSED, message)
        if not yes:
            _confirm("Approve this plan?")
        answer = api.post(f"/incidents/{quoted(incident)}/approve", {"plan_hash": waiting})
        view = api.read(answer, IncidentView)
    say(f"Approved plan {waiting} of {incident}.")
    for left in (m for m in view.mitigations if m.plan_hash == waiting and m.approvals_missing):
        given = f"{len(left.approvals)} of {left.approvals_needed}"
        say(f"That is {given}: somebody else must approve it too.")


def _plan_of(api: Api, incident: str) -> str:
    """Show the mitigation that waits for an approval and return its hash."""
    from remediator.cli import render
    from remediator.model.mitigation import MitigationState
    from remediator.model.views import IncidentView

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
    """Reject the plan that waits for approval."""
    done = _decided(incident, "reject", {"reason": reason})
    say(f"Rejected the plan of {done}.")


def cancel(
    incident: IncidentArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why; kept in the timeline.")] = "",
) -> None:
    """Stop working on an incident."""
    done = _decided(incident, "cancel", {"reason": reason})
    say(f"Cancelled {done}.")


def acknowledge(incident: IncidentArgument) -> None:
    """Say that you are working on an incident: nobody else is called for a time."""
    done = _decided(incident, "acknowledge", {})
    say(f"Acknowledged {done}: nobody else is called for a time.")


def _decided(incident: str, decision: str, body: dict[str, str]) -> str:
    """Post a decision; return the whole id of the incident."""
    from remediator.cli.client import Api
    from remediator.cli.ids import incident_id

    with Api() as api:
        incident = incident_id(api, incident)
        api.post(f"/incidents/{quoted(incident)}/{decision}", body)
    return incident


def pause(
    scope: Scope = "global",
    *,
    reason: Annotated[str, typer.Option(help="Why; shown wherever something is held.")] = "",
) -> None:
    """Stop every change in a scope; alerts are still received and diagnosed."""
    from remediator.cli.client import Api

    with Api() as api:
        answer = api.post("/pause", {"scope": scope, "reason": reason})
    if answer.json().get("kept") == "replica":
        say("The store did not take it: paused in the replica at REMEDIATOR_URL alone, for now.")
    say(f"Paused {scope}. To resume: remediator resume {scope}")


def resume(scope: Scope = "global") -> None:
    """Allow changes in a scope again."""
    from remediator.cli.client import Api

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
    """Handle one alert again; a dry run that changes nothing, unless --for-real is given."""
    from remediator.cli.client import Api
    from remediator.cli.incident_list import follow

    params = {"dry_run": "false" if for_real else "true"}
    if playbook is not None:
        params["playbook"] = playbook
    body = _body(what)
    with Api() as api:
        answer = api.post("/replay", body if body is not None else _stored(api, what), params)
        done = answer.json()
        opened = [str(incident) for incident in done.get("incidents", [])]
        kind = "dry run" if done.get("dry_run", True) else "for real"
        for incident in opened:
            say(f"{incident}  ({kind}; see: remediator incidents {incident})")
        if not opened:
            raise Failure(REFUSED, "the replay opened no incident; see: remediator deadletters")
        if wait:
            follow(api, opened)


def _stored(api: Api, typed: str) -> dict[str, str]:
    from remediator.cli.ids import stored_id

    return {"id": stored_id(api, typed)}


def _body(what: str) -> Any:
    """Read the replay's body from stdin or a file; None for a stored thing's id."""
    from remediator.cli.ids import could_be_stored

    if what == "-":
        return _parsed("stdin", sys.stdin.read())
    file = Path(what)
    if file.is_file():
        try:
            return _parsed(what, file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise Failure(USAGE, f"cannot read {what}: {reason}") from error
    if could_be_stored(what):
        return None
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
        raise Failure(REFUSED, "not approved; the plan still waits for approval")


def say(line: str) -> None:
    """Print one line that may hold text from outside."""
    typer.echo(plain(line))


def print_json(answer: httpx.Response) -> None:
    """Print an answer as it came; in ASCII on a terminal."""
    typer.echo(machine_readable(answer.text))
