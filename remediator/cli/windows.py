"""The commands about maintenance windows, with the end that really holds."""

from __future__ import annotations

from typing import Annotated

import typer

from remediator.cli import render
from remediator.cli.client import Api
from remediator.cli.operate import Json, Scope, print_json, quoted, say
from remediator.cli.text import moment, show
from remediator.views import Page, WindowView

maintenance = typer.Typer(
    name="maintenance",
    help="Say when humans work on something themselves: nothing is changed there, nobody is told.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@maintenance.command("start")
def start_maintenance(
    scope: Scope,
    *,
    lasts: Annotated[str, typer.Option("--for", help="How long: 30m, 2h, 1d; 7d at most.")],
    reason: Annotated[str, typer.Option(help="Why; shown wherever something waits.")] = "",
) -> None:
    """Let a maintenance window begin now."""
    with Api() as api:
        answer = api.post("/maintenance", {"scope": scope, "for": lasts, "reason": reason})
        window = api.read(answer, WindowView)
        say(f"Maintenance of {window.scope} until {moment(window.until)} UTC.")
        say(f"End it before with: remediator maintenance end {window.id}")
        longer = [other for other in _running(api, window.scope) if other.until > window.until]
    if longer:
        say(_still(window.scope, longer))


@maintenance.command("list")
def list_maintenance(*, as_json: Json = False) -> None:
    """List the windows that run or come, of the configuration too."""
    with Api() as api:
        answer = api.get("/maintenance")
        if as_json:
            print_json(answer)
            return
        items = api.read(answer, Page[WindowView]).items
    show(render.window_table(items) if items else "No maintenance windows.")


@maintenance.command("end")
def end_maintenance(
    window: Annotated[str, typer.Argument(metavar="ID", help="Id of the window.")],
) -> None:
    """End a window that was ordered; what waits for its end goes on at once."""
    with Api() as api:
        ended = api.read(api.delete(f"/maintenance/{quoted(window)}"), WindowView)
        say(f"Ended the maintenance window {ended.id} of {ended.scope}.")
        others = [other for other in _running(api, ended.scope) if other.id != ended.id]
    if others:
        say(_still(ended.scope, others))


def _running(api: Api, scope: str) -> list[WindowView]:
    """List the windows that run now over all of ``scope``."""
    over = {"global", scope.partition("/")[0], scope}
    windows = api.read(api.get("/maintenance"), Page[WindowView]).items
    return [window for window in windows if window.running and window.scope in over]


def _still(scope: str, others: list[WindowView]) -> str:
    last = max(others, key=lambda window: window.until)
    wider = "" if last.scope == scope else f" of {last.scope}"
    why = f"because of {last.id}{wider}"
    return f"{scope} is still in maintenance until {moment(last.until)} UTC {why}."
