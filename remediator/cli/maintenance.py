"""The commands about maintenance windows, with the end that really holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from remediator.cli.orders import Json, Scope, print_json, quoted, say
from remediator.cli.output import moment, show

if TYPE_CHECKING:
    from remediator.cli.client import Api
    from remediator.model.views import WindowView


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
    """Start a maintenance window now."""
    from remediator.cli.client import Api
    from remediator.model.views import WindowView

    with Api() as api:
        answer = api.post("/maintenance", {"scope": scope, "for": lasts, "reason": reason})
        window = api.read(answer, WindowView)
        say(f"Maintenance of {window.scope} until {moment(window.until)} UTC.")
        say(f"To end it earlier: remediator maintenance end {window.id}")
        longer = [other for other in _running(api, window.scope) if other.until > window.until]
    if longer:
        say(_still(window.scope, longer))


@maintenance.command("list")
def list_maintenance(*, as_json: Json = False) -> None:
    """List the windows that run or are planned, those of the configuration as well."""
    from remediator.cli import render
    from remediator.cli.client import Api
    from remediator.model.views import Page, WindowView

    with Api() as api:
        answer = api.get("/maintenance")
        if as_json:
            print_json(answer)
            return
        items = api.read(answer, Page[WindowView]).items
    show(render.window_table(items) if items else "No maintenance windows.")


@maintenance.command("end")
def end_maintenance(
    window: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the window, or its beginning.")
    ],
) -> None:
    """End a window that was started by hand; what waits for its end goes on at once."""
    from remediator.cli.client import Api
    from remediator.cli.ids import chosen
    from remediator.model.views import WindowView

    with Api() as api:
        window = chosen(window, (one.id for one in _windows(api)), "window")
        ended = api.read(api.delete(f"/maintenance/{quoted(window)}"), WindowView)
        say(f"Ended the maintenance window {ended.id} of {ended.scope}.")
        others = [other for other in _running(api, ended.scope) if other.id != ended.id]
    if others:
        say(_still(ended.scope, others))


def _running(api: Api, scope: str) -> list[WindowView]:
    """List the windows that run now over all of ``scope``."""
    over = {"global", scope.partition("/")[0], scope}
    return [window for window in _windows(api) if window.running and window.scope in over]


def _windows(api: Api) -> list[WindowView]:
    from remediator.model.views import Page, WindowView

    return api.read(api.get("/maintenance"), Page[WindowView]).items


def _still(scope: str, others: list[WindowView]) -> str:
    last = max(others, key=lambda window: window.until)
    wider = "" if last.scope == scope else f" of {last.scope}"
    why = f"because of {last.id}{wider}"
    return f"{scope} is still in maintenance until {moment(last.until)} UTC {why}."
