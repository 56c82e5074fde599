"""The command that shows the playbooks: of a running service, or of the files without one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from remediator.cli import render
from remediator.cli.client import Api
from remediator.cli.failure import REFUSED, UNREACHABLE, USAGE, Failure
from remediator.cli.local import Config, settings_of
from remediator.cli.operate import Json, print_json
from remediator.cli.text import plain, show, styled
from remediator.views import Page, ParameterView, PlaybookUse, PlaybookView


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
    if name is not None and as_json:
        raise Failure(USAGE, "--json prints the API's answer about all playbooks; leave NAME out")
    found = _of_files(config) if config is not None else _of_service(as_json=as_json)
    if found is None:
        return
    if as_json:
        typer.echo(Page[PlaybookView](items=list(found)).model_dump_json())
        return
    items = [item for item in found if name in (None, item.name)]
    if name is not None and not items:
        known = ", ".join(item.name for item in found) or "none"
        raise Failure(REFUSED, f"there is no playbook {name!r}; known are: {known}")
    page = _page(items, parameters=parameters or name is not None)
    show(page if items else "No playbooks.")


def _of_service(*, as_json: bool) -> Sequence[PlaybookView] | None:
    """Ask the service, or read the files where none answers; None once JSON has been printed."""
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
    from remediator.app.checked import load, views  # noqa: PLC0415 - loads the settings

    return views(*load(settings_of(config)))


# --- as a page ----------------------------------------------------------------------------------

LEVERS: Mapping[str, tuple[str, str]] = {
    "cancel_queries": ("low", "none, the query may be sent again"),
    "end_queries": ("medium", "none, what was not committed is rolled back"),
    "end_sessions": ("medium", "none, what was not committed is rolled back"),
    "reset_breaker": ("medium", "none, the breaker opens again by itself if it must"),
    "set_migration": ("low or medium", "none, only a human sets it back"),
    "scale": ("medium", "in steps, after its hold time"),
    "restart_rollout": ("medium", "none"),
    "undo_rollout": ("high", "none, a release is made again by a human"),
    "evict_pod": ("low", "none, the pod is replaced"),
    "set_memory": ("medium", "the earlier limit, if it did not help"),
    "unlink_prefix": ("medium", "none, the cache refills by itself"),
}
"""Risk and way back of each lever, as the built-in playbooks propose it."""


def _hurts(lever: str) -> str:
    if lever not in LEVERS:
        return ""
    risk, back = LEVERS[lever]
    return f": {risk} risk; way back: {back}"


def _page(playbooks: Iterable[PlaybookView], *, parameters: bool = False) -> Group:
    """Draw the loaded playbooks, each with where it may do what, and what may be set for it."""
    return Group(*(_block(playbook, parameters=parameters) for playbook in playbooks))


def _block(playbook: PlaybookView, *, parameters: bool) -> Group:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=render.ASIDE)
    grid.add_column(overflow="fold")
    grid.add_row("  matches", styled(", ".join(playbook.matches)))
    for lever in playbook.levers:
        grid.add_row("  may", styled(f"{lever}{_hurts(lever)}"))
    grid.add_row("  from", styled(playbook.origin))
    for use in playbook.services:
        grid.add_row("  on", styled(_use(use)))
    if not playbook.services:
        grid.add_row("  on", styled("no service yet", render.DOUBT))
    for parameter in playbook.parameters if parameters else ():
        grid.add_row("  takes", _parameter(parameter))
    title = styled(playbook.name, "bold").append(f"  {plain(playbook.summary)}")
    return Group(title, grid)


def _parameter(parameter: ParameterView) -> Text:
    default = f"default {_setting(parameter.default)}"
    text = Text.assemble(styled(parameter.name, "bold"), "  ", styled(parameter.type, render.ASIDE))
    text.append(f", {plain(default)}", render.ASIDE)
    return text.append(f"\n{plain(parameter.description)}") if parameter.description else text


def _setting(value: object) -> str:
    """Write a value of the configuration in one line."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_setting(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _use(use: PlaybookUse) -> str:
    modes = ", ".join(f"{risk} risk: {mode}" for risk, mode in use.modes.items())
    return f"{render.where(use.system, use.service)}: {modes}; at most {render.budget(use.limits)}"
