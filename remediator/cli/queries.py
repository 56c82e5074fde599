"""The commands that only read from a running service."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from remediator.cli.orders import IncidentArgument, Json, print_json, quoted
from remediator.cli.output import USAGE, Failure, console, plain, show, since_then


def incidents(  # noqa: PLR0913 - each is an option of the command
    incident: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="Show this one, with its timeline; or its beginning."),
    ] = None,
    *,
    state: Annotated[str | None, typer.Option(help="Only those: open or closed.")] = None,
    system: Annotated[str | None, typer.Option(help="Only those of this system.")] = None,
    service: Annotated[str | None, typer.Option(help="Only those of this service.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only those that ended so.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only newer ones: 30m, 2h, 7d or a time.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Rows at most; 20 unless given.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every row, those without a playbook as well.")
    ] = False,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing what changes.")] = False,
) -> None:
    """List the incidents, those that need you first, or show one as a timeline."""
    from remediator.cli import incident_list
    from remediator.cli.client import Api
    from remediator.cli.ids import incident_id

    if as_json and watch:
        raise Failure(USAGE, "--json prints one answer and --watch many; choose one of them")
    filters = {"state": state, "system": system, "service": service, "outcome": outcome}
    given = {key: value for key, value in filters.items() if value is not None}
    if incident is not None and (given or since or limit or everything):
        raise Failure(USAGE, "with the ID of one incident, leave the filters out")
    asked = incident_list.Asked(
        given, since_then(since) if since else None, limit, everything=everything
    )
    with Api() as api:
        if incident is not None:
            incident = incident_id(api, incident)
        if as_json:
            path = "/incidents" if incident is None else f"/incidents/{quoted(incident)}"
            print_json(api.get(path, asked.params()))
        elif watch:
            with suppress(KeyboardInterrupt):  # the way to end it
                incident_list.follow(api, [incident]) if incident else incident_list.watch(
                    api, asked
                )
        elif incident is None:
            incident_list.list_incidents(api, asked)
        else:
            incident_list.show_incident(api, incident)


def report(incident: IncidentArgument) -> None:
    """Print the report of an incident as Markdown: what happened, what was done, and why."""
    from remediator.cli.client import Api
    from remediator.cli.ids import incident_id
    from remediator.model.views import IncidentView
    from remediator.notify.postmortem import markdown

    with Api() as api:
        incident = incident_id(api, incident)
        view = api.read(api.get(f"/incidents/{quoted(incident)}"), IncidentView)
    for line in markdown(view).splitlines():
        typer.echo(plain(line) if not line.startswith("  ") else f"  {plain(line)}")


def limits(*, as_json: Json = False) -> None:
    """List the limits of all scopes, what is used of them, and what is paused."""
    from remediator.cli import render
    from remediator.cli.client import Api
    from remediator.model.views import LimitView, Page, PauseView

    class Bounds(Page[LimitView]):
        paused: list[PauseView]

    with Api() as api:
        answer = api.get("/limits")
        if as_json:
            print_json(answer)
            return
        bounds = api.read(answer, Bounds)
    screen = console()
    show(render.limit_table(bounds.items) if bounds.items else "No limits.")
    for switch in bounds.paused:
        screen.print(render.pause_line(switch))


def deadletters(*, as_json: Json = False) -> None:
    """List what was received and could not be used."""
    from remediator.cli import render
    from remediator.cli.client import Api
    from remediator.model.views import DeadLetterView, Page

    with Api() as api:
        answer = api.get("/deadletters")
        if as_json:
            print_json(answer)
            return
        items = api.read(answer, Page[DeadLetterView]).items
        show(render.dead_letter_page(items) if items else "No dead letters.")
