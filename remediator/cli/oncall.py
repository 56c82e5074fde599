"""What the person on call says to a running service."""

from __future__ import annotations

from urllib.parse import quote

import typer

from remediator.cli.client import Api
from remediator.cli.operate import IncidentArgument
from remediator.cli.text import plain
from remediator.report.postmortem import markdown
from remediator.views import IncidentView


def acknowledge(incident: IncidentArgument) -> None:
    """Say that you have an incident, so that nobody else is called for a time."""
    with Api() as api:
        api.post(f"/incidents/{quote(incident, safe='')}/acknowledge", {})
    typer.echo(plain(f"Acknowledged {incident}: nobody else is called for a time."))


def report(incident: IncidentArgument) -> None:
    """Print the report of an incident as Markdown: what happened, what was done, and why."""
    with Api() as api:
        view = api.read(api.get(f"/incidents/{quote(incident, safe='')}"), IncidentView)
    for line in markdown(view).splitlines():
        typer.echo(plain(line) if not line.startswith("  ") else f"  {plain(line)}")
