"""The command that shows the playbooks: of a running service, or of the files without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remediator.cli.orders import Json, print_json
from remediator.cli.output import (
    REFUSED,
    UNREACHABLE,
    USAGE,
    Failure,
    machine_readable,
    plain,
    show,
)
from remediator.cli.serve import Config, settings_of

if TYPE_CHECKING:
    from remediator.model.views import PlaybookView


def playbooks(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this one, with its parameters.")
    ] = None,
    *,
    config: Config = None,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Show what a service may set for each.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the playbooks and what each may do where.

    Asks the running service; with --config, or where none answers, reads the files.
    """
    from remediator.cli.playbook_page import page
    from remediator.model.views import Page, PlaybookView

    if name is not None and as_json:
        raise Failure(USAGE, "--json prints the API's answer about all playbooks; leave NAME out")
    found = _of_files(config) if config is not None else _of_service(as_json=as_json)
    if found is None:
        return
    if as_json:
        typer.echo(machine_readable(Page[PlaybookView](items=list(found)).model_dump_json()))
        return
    items = [item for item in found if name in (None, item.name)]
    if name is not None and not items:
        known = ", ".join(item.name for item in found) or "none"
        raise Failure(REFUSED, f"there is no playbook {name!r}; known are: {known}")
    drawn = page(items, parameters=parameters or name is not None)
    show(drawn if items else "No playbooks.")


def _of_service(*, as_json: bool) -> Sequence[PlaybookView] | None:
    """Ask the service, or read the files where none answers; None once JSON has been printed."""
    from remediator.cli.client import Api
    from remediator.model.views import Page, PlaybookView

    try:
        with Api() as api:
            answer = api.get("/playbooks")
            if as_json:
                print_json(answer)
                return None
            return api.read(answer, Page[PlaybookView]).items
    except Failure as failure:
        if failure.code != UNREACHABLE:
            raise
        typer.echo(f"remediator: {plain(failure)}; this is what the files say", err=True)
        return _of_files(None)


def _of_files(config: Path | None) -> Sequence[PlaybookView]:
    from remediator.service.loading import load, views

    return views(*load(settings_of(config)))
