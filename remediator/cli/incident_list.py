"""The list of incidents, those that need a person first, and following what changes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.console import Console, Group

from remediator.cli import render
from remediator.cli.client import Api
from remediator.cli.orders import quoted
from remediator.cli.output import Failure, console, plain, show, styled
from remediator.model.incident import IncidentOutcome, IncidentState
from remediator.model.views import IncidentSummary, IncidentView, Page

ROWS = 20
"""Rows of a list, unless asked for otherwise."""
PAGE = 200
"""Incidents that are asked for at once: the most that the API gives."""
PAGES = 5
"""Requests for one list; more only with ``--all``."""
WATCH_EVERY = 1.0
"""Seconds between two looks."""


@dataclass(frozen=True)
class Asked:
    """Which incidents are wanted."""

    filters: Mapping[str, str]
    """What the API itself chooses by."""
    since: datetime | None = None
    limit: int | None = None
    everything: bool = field(default=False, kw_only=True)
    """Also those that no playbook takes, and as many rows as there are."""

    @property
    def folds(self) -> bool:
        """Whether those that no playbook takes are one line."""
        return not self.everything and "outcome" not in self.filters

    @property
    def rows(self) -> int | None:
        """Rows to show; None for all."""
        return self.limit or (None if self.everything else ROWS)

    def params(self) -> dict[str, str]:
        """Return the query of one request."""
        most = {"limit": str(min(self.limit, PAGE))} if self.limit else {}
        return {**self.filters, **most}


@dataclass
class Listed:
    """What there is to show."""

    rows: list[IncidentSummary] = field(default_factory=list)
    folded: list[IncidentSummary] = field(default_factory=list)
    more: bool = False
    """Whether older ones were left out."""


def list_incidents(api: Api, asked: Asked) -> None:
    """Print the list once."""
    _print(_read(api, asked))


def _print(listed: Listed) -> None:
    now = datetime.now(UTC)
    screen = console()
    if not listed.rows and not listed.folded:
        screen.print("No incidents.")
        return
    for title, rows in _sections(listed.rows):
        screen.print(styled(title, "bold"))
        show(Group(render.incident_rows(rows, now, screen.width)))
    if listed.folded:
        screen.print(_folded(listed.folded, now))
    if listed.more:
        screen.print("Older ones are left out; see --limit, --since, --service and --all.")


def show_incident(api: Api, incident: str) -> None:
    """Print one incident with its timeline."""
    show(render.incident_page(_one(api, incident), datetime.now(UTC)))


def watch(api: Api, asked: Asked) -> None:
    """Draw the list again and again; where nothing can be drawn over, print what changes."""
    screen, patience = console(), _Patience()
    shown: set[str] = set()
    while True:
        with patience:
            if screen.is_terminal:
                listed = _read(api, asked)
                screen.clear()
                _print(listed)
            else:
                shown = _print_new(screen, _read(api, asked).rows, shown)
        time.sleep(WATCH_EVERY)


def _print_new(screen: Console, rows: list[IncidentSummary], shown: set[str]) -> set[str]:
    lines = [render.incident_line(row) for row in reversed(rows)]
    for line in lines:
        if line not in shown:
            screen.print(line, soft_wrap=True)
    return set(lines)


def follow(api: Api, ids: list[str]) -> None:
    """Print the timelines of incidents as they grow, until all are closed."""
    patience = _Patience()
    seen = dict.fromkeys(ids, 0)
    going = list(ids)
    while going:
        with patience:
            for incident in list(going):
                view = _one(api, incident)
                seen[incident] = _print_grown(view, seen[incident])
                if view.outcome is not None and view.closed_at is not None:
                    console().print(render.incident_line(view), soft_wrap=True)
                    going.remove(incident)
        if going:
            time.sleep(WATCH_EVERY)


def _print_grown(view: IncidentView, seen: int) -> int:
    for event in view.timeline[seen:]:
        console().print(render.timeline_line(event), soft_wrap=True)
    return len(view.timeline)


class _Patience:
    """Keeps a watch going while the service is away, and says so once, on stderr."""

    def __init__(self) -> None:
        self._away = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        screen = console(stderr=True)
        if error is None and self._away:
            self._away = False
            screen.print("remediator: the service answers again", soft_wrap=True)
        if not isinstance(error, Failure) or not error.passes:
            return False
        if not self._away:
            self._away = True
            line = f"remediator: {plain(error)}; trying again until it answers (Ctrl-C ends)"
            screen.print(line, soft_wrap=True)
        return True


# --- what is read ---------------------------------------------------------------------------------


def _one(api: Api, incident: str) -> IncidentView:
    return api.read(api.get(f"/incidents/{quoted(incident)}"), IncidentView)


def _read(api: Api, asked: Asked) -> Listed:
    """Read the open ones, however old, and the newest, until there are enough rows."""
    listed = Listed()
    newest = _newest(api, asked.filters, None if asked.everything else PAGES)
    every: Iterable[IncidentSummary] = newest
    if not {"state", "outcome"} & asked.filters.keys():
        every = itertools.chain(_newest(api, {**asked.filters, "state": "open"}, 1), newest)
    known: set[str] = set()
    for row in every:
        if row.id in known or (asked.since is not None and row.opened_at < asked.since):
            continue
        known.add(row.id)
        if asked.rows is not None and len(listed.rows) >= asked.rows:
            listed.more = True
            break
        folds = asked.folds and row.outcome is IncidentOutcome.NO_MATCH and not row.needs_human
        (listed.folded if folds else listed.rows).append(row)
    return listed


def _newest(api: Api, filters: Mapping[str, str], pages: int | None) -> Iterator[IncidentSummary]:
    """Yield incidents, newest first, a request for each page that is needed."""
    after: str | None = None
    for _ in itertools.count() if pages is None else range(pages):
        params = {**filters, "limit": str(PAGE)} | ({"after": after} if after else {})
        page = api.read(api.get("/incidents", params), Page[IncidentSummary])
        yield from page.items
        after = page.next
        if after is None:
            return


def _sections(rows: list[IncidentSummary]) -> Iterator[tuple[str, list[IncidentSummary]]]:
    needed = sorted((row for row in rows if row.needs_human), key=lambda row: row.severity)
    others = [row for row in rows if not row.needs_human]
    going = [row for row in others if row.state is IncidentState.OPEN]
    closed = [row for row in others if row.state is not IncidentState.OPEN]
    for title, some in (("Needs you now", needed), ("Open", going), ("Closed", closed)):
        if some:
            yield title, some


def _folded(rows: list[IncidentSummary], now: datetime) -> str:
    newest = render.age(max(row.opened_at for row in rows), now)
    what = "1 alert" if len(rows) == 1 else f"{len(rows)} alerts"
    takes = "that no playbook handles" if len(rows) == 1 else "that no playbook handles, the newest"
    return f"{what} {takes} {newest} ago; to list them: remediator incidents --outcome no_match"
