"""The commands against a server that speaks the API's JSON, by exit code, stdout and stderr."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from rich.console import Console

from remediator.cli import main
from remediator.cli.client import Api
from remediator.cli.output import Failure, plain
from remediator.cli.render import incident_page
from remediator.model.views import IncidentView
from tests.postgres_fixtures import Scene

TOKEN = "operator-secret-4711"
ID = "inc-0198c2f5a1b2-9f8e7d6c5b"
PLAN = "c0ffee0123456789"
HOUR = timedelta(hours=1)
MARKUP = "[red]markup[/red] \x1b[31mescape\x07 \u202eturned"

SUMMARY: dict[str, Any] = {
    "id": ID,
    "state": "open",
    "phase": "approval",
    "outcome": None,
    "system": "shop",
    "service": "orders",
    "playbook": "PoolExhausted",
    "reason": "waits for approval",
    "dry_run": False,
    "replay_of": None,
    "opened_at": "2026-11-21T00:40:00Z",
    "closed_at": None,
    "alertname": "PoolExhausted",
    "needs_human": True,
}
MITIGATION: dict[str, Any] = {
    "id": "mit-1",
    "kind": "end_sessions",
    "target": "postgres/orders-db",
    "state": "awaiting_approval",
    "effect_key": f"{ID}/PoolExhausted/1/end_sessions/postgres/orders-db",
    "reason": "3 sessions hold locks and have been idle for 4 s",
    "mode": "approve",
    "risk": "medium",
    "plan_hash": PLAN,
    "summary": "end 1 session",
    "planned": [{"key": "pid 4711", "summary": "orders_app, idle in transaction for 4 s"}],
    "items": [],
    "created_at": "2026-11-21T00:40:01Z",
    "expires_at": "2026-11-21T00:50:01Z",
}
ALERT: dict[str, Any] = {
    "id": "alr-1",
    "fingerprint": "64d89eb7e9217d22",
    "status": "firing",
    "labels": {"alertname": "PoolExhausted", "team": MARKUP},
    "annotations": {"summary": MARKUP},
    "starts_at": "2026-11-21T00:39:00Z",
    "last_seen_at": "2026-11-21T00:40:00Z",
    "resolved_at": None,
    "notifications": 2,
}
FINDING = {
    "round": 1,
    "at": "2026-11-21T00:40:00Z",
    "name": "leaks",
    "status": "problem",
    "summary": "3 sessions sit idle in a transaction",
}
EVENT = {"at": "2026-11-21T00:40:01Z", "step": "decide", "event": "ask", "reason": "mode approve"}
INCIDENT: dict[str, Any] = {
    **SUMMARY,
    "alerts": [ALERT],
    "findings": [FINDING],
    "mitigations": [MITIGATION],
    "timeline": [EVENT],
}
CLOSED = {
    **INCIDENT,
    "state": "closed",
    "phase": "done",
    "outcome": "mitigated",
    "reason": "the pool is free again",
    "closed_at": "2026-11-21T00:41:00Z",
    "mitigations": [
        {
            **MITIGATION,
            "state": "applied",
            "items": [{"key": "pid 4711", "state": "applied", "detail": "it has ended"}],
            "verdict": "better",
            "evidence": "held for 3 s",
        }
    ],
}
LIMITS = {"budget": 3, "window": "1h", "cooldown": "5m", "concurrency": 1}
PAUSE = {"scope": "shop", "by": "ann", "reason": MARKUP, "since": "2026-11-21T00:40:00Z"}
WINDOW = {
    "id": "mnt-1",
    "scope": "shop",
    "from": "2026-11-21T00:40:00Z",
    "until": "2026-11-21T02:40:00Z",
    "reason": "disks",
    "running": True,
    "source": "api",
    "by": "ann",
}
LISTS: dict[str, list[dict[str, Any]]] = {
    "/maintenance": [WINDOW],
    "/incidents": [SUMMARY],
    "/limits": [{"scope": "global", "limits": LIMITS, "reserved": 3, "in_flight": 0}],
    "/playbooks": [
        {
            "name": "PoolExhausted",
            "summary": "Ends leaked sessions.",
            "matches": ['alertname=~"A|B"'],
            "targets": {"database": "postgres"},
            "levers": ["end_sessions"],
            "origin": "playbooks/pool_exhausted.py",
            "parameters": [
                {
                    "name": "recent",
                    "type": "duration",
                    "default": "30m",
                    "description": f"How long. {MARKUP}",
                },
                {"name": "verification", "type": "V", "default": {"hold": "5m"}, "description": ""},
            ],
            "services": [
                {
                    "system": "shop",
                    "service": "orders",
                    "modes": {"medium": "auto"},
                    "limits": LIMITS,
                    "parameters": {},
                }
            ],
        }
    ],
    "/deadletters": [
        {
            "id": "dea-1",
            "delivery_id": "del-1",
            "source": "alertmanager",
            "at": "2026-11-21T00:40:00Z",
            "position": 0,
            "reason": "alerts[0] has no labels",
            "excerpt": MARKUP,
        }
    ],
}


@dataclass
class Service:
    """A service that answers from these values and remembers what was asked."""

    url: str = ""
    incidents: list[dict[str, Any]] = field(default_factory=lambda: [INCIDENT])
    """Answers for one incident, one a question; the last one stays."""
    problem: tuple[int, str] | None = None
    raw: tuple[int, str, str] | None = None
    away: int = 0
    """How many of the next requests are answered 503."""
    asked: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        path = request.path.removeprefix("/api/v1")
        self.asked.append((request.method, path, dict(request.query), body))
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _problem(401, "no credential")
        if self.away:
            self.away -= 1
            return _problem(503, "the store is away")
        if self.raw is not None:
            status, kind, text = self.raw
            return web.Response(status=status, content_type=kind, text=text)
        if self.problem is not None:
            return _problem(*self.problem)
        return web.json_response(self._content(request.method, path))

    def _content(self, method: str, path: str) -> Any:
        if method != "GET" and path.startswith("/maintenance"):
            return WINDOW
        if path == "/replay":
            return {"incidents": [ID], "dry_run": True}
        if path == f"/incidents/{ID}/approve":
            return self.incidents[-1]
        if method == "GET" and path == f"/incidents/{ID}":
            return self.incidents.pop(0) if len(self.incidents) > 1 else self.incidents[0]
        if method == "GET" and path in LISTS:
            return _listed(path)
        return {"ok": True}


def _listed(path: str) -> dict[str, Any]:
    if path == "/limits":
        return {"items": LISTS[path], "paused": [PAUSE]}
    return {"items": LISTS[path], "next": None}


def _problem(status: int, detail: str) -> web.Response:
    return web.json_response(
        {"title": "Refused", "detail": detail, "status": status},
        status=status,
        content_type="application/problem+json",
    )


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is not folded; parallel runs of the tests set a width."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Service]:
    served = Service()
    app = web.Application()
    app.router.add_route("*", "/api/v1/{path:.*}", served.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    monkeypatch.setenv("REMEDIATOR_URL", served.url)
    monkeypatch.setenv("REMEDIATOR_TOKEN", TOKEN)
    monkeypatch.setenv("REMEDIATOR_STATE_DIR", str(tmp_path / "state"))
    yield served
    await runner.cleanup()


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Run = Callable[..., Coroutine[Any, Any, Ended]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    async def command(*arguments: str) -> Ended:
        def called() -> int:
            try:
                main(arguments)
            except SystemExit as end:
                return int(end.code or 0)
            return 0

        code = await asyncio.to_thread(called)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert TOKEN not in captured.out + captured.err
        return Ended(code, captured.out, captured.err)

    return command


# --- listings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["incidents", "playbooks", "limits", "deadletters"])
async def test_json_of_a_listing_is_the_apis_json_and_nothing_else(
    service: Service, run: Run, name: str
) -> None:
    ended = await run(name, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == _listed(f"/{name}")


async def test_json_of_one_incident_is_the_apis_json(service: Service, run: Run) -> None:
    ended = await run("incidents", ID, "--json")
    assert json.loads(ended.out) == INCIDENT


async def test_incidents_pass_their_filters_to_the_api(service: Service, run: Run) -> None:
    ended = await run("incidents", "--state", "open", "--service", "orders", "--outcome", "denied")
    assert ended.code == 0
    query = {"state": "open", "service": "orders", "outcome": "denied"}
    assert service.asked == [("GET", "/incidents", {**query, "limit": "200"}, None)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["incidents"], [ID, "PoolExhausted on shop/orders", "approval needed"]),
        (["playbooks"], ["PoolExhausted", 'alertname=~"A|B"', "medium risk: auto", "3 in 1h"]),
        (["limits"], ["global", "3 in 1h", "Paused: shop by ann"]),
        (["deadletters"], ["dea-1", "alerts[0] of del-1", "has no labels"]),
    ],
)
async def test_a_listing_fits_in_80_columns(
    service: Service,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: list[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = await run(*arguments)
    assert ended.code == 0
    for text in expected:
        assert text in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["PoolExhausted"], ["--parameters"]])
async def test_the_parameters_of_a_playbook_are_shown_where_asked_for(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = await run("playbooks", *arguments)
    assert ended.code == 0
    for text in ["recent  duration, default 30m", "How long.", "default hold: 5m"]:
        assert text in ended.out
    assert "\x07" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "recent" not in (await run("playbooks")).out


async def test_a_playbook_that_is_not_there_names_those_that_are(
    service: Service, run: Run
) -> None:
    ended = await run("playbooks", "Nope")
    assert (ended.code, ended.out) == (1, "")
    assert "no playbook 'Nope'; known are: PoolExhausted" in ended.err


async def test_the_playbooks_are_shown_without_a_service(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unused_tcp_port: int
) -> None:
    monkeypatch.setenv("REMEDIATOR_URL", f"http://127.0.0.1:{unused_tcp_port}")
    monkeypatch.setenv("REMEDIATOR_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("REMEDIATOR_CONFIG", "")
    monkeypatch.chdir(tmp_path)
    ended = await run("playbooks", "OOM")
    assert ended.code == 0
    assert "this is what the files say" in ended.err
    assert "set_memory: medium risk; way back: the earlier limit" in ended.out
    assert "``" not in ended.out
    (tmp_path / "remediator.yaml").write_text("mode: shadow\n")
    ended = await run("playbooks", "--json", "--config", "remediator.yaml")
    assert (ended.code, ended.err) == (0, "")
    assert "PoolExhausted" in [item["name"] for item in json.loads(ended.out)["items"]]


async def test_a_long_reason_stands_on_the_page_of_an_incident_once(
    service: Service, run: Run
) -> None:
    reason = "3 sessions are idle in a transaction for more than 2 s; 2 of them block others."
    plan = {**MITIGATION, "reason": reason}
    event = {**EVENT, "reason": reason}
    service.incidents = [{**CLOSED, "reason": reason, "mitigations": [plan], "timeline": [event]}]
    ended = await run("incidents", ID)
    assert ended.out.count(reason) == 1
    assert not any(line.endswith(" ") for line in ended.out.splitlines())


async def test_one_incident_reads_from_alert_to_verdict(service: Service, run: Run) -> None:
    service.incidents = [CLOSED]
    ended = await run("incidents", ID)
    wanted = ["mitigated", "closed after 60 s", "Alerts", "Findings", "Decision", "Mitigations"]
    wanted += ["pid 4711", "verdict: better - held for 3 s", "Timeline"]
    positions = [ended.out.index(text) for text in wanted]
    assert positions == sorted(positions)


async def test_what_does_not_go_to_a_terminal_is_not_folded(service: Service, run: Run) -> None:
    service.incidents = [{**INCIDENT, "reason": "word " * 100}]
    ended = await run("incidents", ID)
    assert ("word " * 100).strip() in ended.out


async def test_dry_runs_and_replays_are_marked_in_the_list(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = {**SUMMARY, "id": an_id(2), "dry_run": True, "replay_of": ID}
    monkeypatch.setitem(LISTS, "/incidents", [SUMMARY, replay])
    listed = (await run("incidents")).out.splitlines()
    marked = [line.endswith("dry run, replay") for line in listed if line.startswith("inc-")]
    assert marked == [False, True]


def listed_as(**changes: Any) -> dict[str, Any]:
    return {**SUMMARY, "needs_human": False, **changes}


def an_id(number: int) -> str:
    return f"inc-0198c2f5a1{number:02x}-9f8e7d6c5b"


CLOSED_ROW: dict[str, Any] = {"state": "closed", "phase": "done"}


async def test_what_needs_a_person_is_listed_before_what_is_newer(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        listed_as(id=an_id(4), outcome="mitigated", **CLOSED_ROW),
        listed_as(id=an_id(3), phase="verify"),
        listed_as(id=an_id(2), outcome="escalated", needs_human=True, **CLOSED_ROW),
    ]
    monkeypatch.setitem(LISTS, "/incidents", rows)
    lines = (await run("incidents")).out.splitlines()
    titles = [line for line in lines if line in {"Needs you now", "Open", "Closed"}]
    ids = [line.split()[0] for line in lines if line.startswith("inc-")]
    assert titles == ["Needs you now", "Open", "Closed"]
    assert ids == [an_id(2), an_id(3), an_id(4)]


async def test_of_what_needs_a_person_the_worst_is_first(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**SUMMARY, "id": an_id(n), "severity": n} for n in (3, 1, 2)]
    monkeypatch.setitem(LISTS, "/incidents", rows)
    lines = (await run("incidents")).out.splitlines()
    ids = [line.split()[0] for line in lines if line.startswith("inc-")]
    assert ids == [an_id(1), an_id(2), an_id(3)]


async def test_alerts_that_no_playbook_handles_are_one_line_with_their_number(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [listed_as(id=an_id(n), outcome="no_match", **CLOSED_ROW) for n in range(60)]
    rows += [SUMMARY]
    monkeypatch.setitem(LISTS, "/incidents", rows)
    folded = (await run("incidents")).out
    assert "60 alerts that no playbook handles, the newest" in folded
    assert folded.count("inc-") == 1
    assert (await run("incidents", "--all")).out.count("inc-") == 61
    assert (await run("incidents", "--outcome", "no_match")).out.count("inc-") == 20


async def test_one_that_pages_is_not_folded_though_no_playbook_handles_it(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = listed_as(outcome="no_match", needs_human=True, **CLOSED_ROW)
    monkeypatch.setitem(LISTS, "/incidents", [row])
    assert "Needs you now" in (await run("incidents")).out


async def test_a_list_ends_at_its_limit_and_says_that_there_are_more(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LISTS, "/incidents", [listed_as(id=an_id(n)) for n in range(30)])
    short = (await run("incidents", "--limit", "3")).out
    assert (short.count("inc-"), "Older ones are left out" in short) == (3, True)
    assert (await run("incidents")).out.count("inc-") == 20
    whole = (await run("incidents", "--all")).out
    assert (whole.count("inc-"), "left out" in whole) == (30, False)


async def test_a_list_may_be_of_one_system_and_of_the_last_hours(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = listed_as(id=an_id(1), opened_at=(datetime.now(UTC) - HOUR).isoformat())
    monkeypatch.setitem(LISTS, "/incidents", [recent, SUMMARY])
    ended = await run("incidents", "--system", "shop", "--since", "2h")
    assert [an_id(1) in ended.out, ID in ended.out] == [True, False]
    assert {query["system"] for _, _, query, _ in service.asked} == {"shop"}
    assert (await run("incidents", "--since", "yesterday")).code == 2


async def test_a_list_shows_name_age_and_severity_of_the_alert(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = listed_as(opened_at=(datetime.now(UTC) - 3 * HOUR).isoformat(), alertname="DiskFull")
    row |= {"severity": 1, "severity_word": "P0"}
    monkeypatch.setitem(LISTS, "/incidents", [row])
    [header, shown] = [line.split() for line in (await run("incidents")).out.splitlines()[1:]]
    assert header[:4] == ["Incident", "Age", "Severity", "Alert"]
    assert shown[:6] == [ID, "3", "h", "1", "P0", "DiskFull"]


async def test_a_list_is_readable_in_60_columns(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = (await run("incidents")).out.splitlines()
    assert lines[0] == "Needs you now"
    assert lines[1].startswith(f"{ID}  ")
    assert lines[2] == "  PoolExhausted on shop/orders: approval needed"
    assert max(map(len, lines)) <= 60


# --- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["inc-0198c2f5a1b2", "0198c2f5a1b2-9f", "inc-0198c2f5a1b2-"])
@pytest.mark.parametrize("command", ["incidents", "report", "cancel", "reject", "acknowledge"])
async def test_the_beginning_of_an_id_is_enough(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch, command: str, typed: str
) -> None:
    others = [listed_as(id=an_id(n)) for n in (1, 2)]
    monkeypatch.setitem(LISTS, "/incidents", [SUMMARY, *others])
    assert (await run(command, typed)).code == 0
    assert service.asked[-1][1].startswith(f"/incidents/{ID}")


async def test_the_beginning_of_an_id_is_enough_to_approve_and_to_replay(
    service: Service, run: Run
) -> None:
    assert (await run("approve", ID[:12], "--yes")).code == 0
    assert service.asked[-1][1] == f"/incidents/{ID}/approve"
    assert (await run("replay", ID[:12])).code == 0
    assert service.asked[-1][3] == {"id": ID}


async def test_a_beginning_of_several_ids_names_them_and_does_nothing(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LISTS, "/incidents", [listed_as(id=an_id(n)) for n in range(12)])
    ended = await run("cancel", "inc-0198c2f5a1")
    assert (ended.code, ended.out) == (1, "")
    assert "is the beginning of 12 incident ids; write more of it:" in ended.err
    assert an_id(0) in ended.err
    assert "and 2 more" in ended.err
    assert {method for method, *_ in service.asked} == {"GET"}


async def test_a_beginning_of_no_id_is_refused(service: Service, run: Run) -> None:
    ended = await run("reject", "inc-0197")
    assert ended.code == 1
    assert "no incident id begins with inc-0197" in ended.err
    assert {method for method, *_ in service.asked} == {"GET"}


async def test_a_whole_id_is_asked_for_at_once(service: Service, run: Run) -> None:
    await run("incidents", ID)
    assert [path for _, path, *_ in service.asked] == [f"/incidents/{ID}"]


async def test_the_beginning_of_a_windows_id_is_enough(service: Service, run: Run) -> None:
    assert (await run("maintenance", "end", "mnt")).code == 0
    assert ("DELETE", "/maintenance/mnt-1") in {asked[:2] for asked in service.asked}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "approval needed  until 2026-11-21 00:50:01 UTC"),
        ({"phase": "verify"}, "open: verify  changed; checking whether that helped"),
        ({"phase": "settle"}, "open: settle  better; waiting for the alert to resolve"),
        (
            {"mitigations": [{**MITIGATION, "state": "rejected", "decided_by": "ann"}]}
            | {"state": "closed", "phase": "done", "outcome": "denied"},
            "denied  rejected by ann",
        ),
        ({"outcome": "shadowed"}, f"remediator replay {ID} --for-real  tries again"),
        ({"outcome": "escalated"}, f"remediator replay {ID} --for-real  tries again"),
        ({}, "pid 4711  orders_app, idle in transaction for 4 s"),
        (
            {"alerts": [{**ALERT, "starts_at": "2999-01-02T03:04:05Z"}]},
            "from 2999-01-02 03:04:05 UTC (in the future: the sender's clock?)",
        ),
        ({"alerts": [ALERT] * 7}, "and 2 more"),
        ({"alerts": [{**ALERT, "labels": {"x": "y" * 300}}]}, f"x={'y' * 200}...\n"),
        ({"alerts": [{**ALERT, "annotations": {"summary": "z" * 300}}]}, f"{'z' * 200}...\n"),
    ],
)
async def test_the_page_of_an_incident_says(
    service: Service, run: Run, changes: dict[str, Any], expected: str
) -> None:
    service.incidents = [{**INCIDENT, **changes}]
    ended = await run("incidents", ID)
    assert expected in ended.out


async def test_a_mitigated_incident_needs_no_replay(service: Service, run: Run) -> None:
    service.incidents = [CLOSED]
    assert "remediator replay" not in (await run("incidents", ID)).out


def test_an_alert_of_today_has_no_date() -> None:
    view = IncidentView.model_validate(INCIDENT)
    for now, shown in (
        (datetime(2026, 11, 21, 23, tzinfo=UTC), "from 00:39:00 UTC"),
        (datetime(2026, 11, 22, 1, tzinfo=UTC), "from 2026-11-21 00:39:00 UTC"),
    ):
        console = Console(file=io.StringIO(), width=200)
        console.print(incident_page(view, now))
        assert isinstance(console.file, io.StringIO)
        assert shown in console.file.getvalue()


@pytest.mark.parametrize("arguments", [["incidents", ID], ["limits"], ["deadletters"]])
async def test_text_of_alerts_is_shown_as_it_is_and_moves_nothing(
    service: Service, run: Run, arguments: list[str]
) -> None:
    ended = await run(*arguments)
    assert "[red]markup[/red]" in ended.out
    assert not {"\x1b", "\x07", "\u202e"} & set(ended.out)


async def test_fields_of_a_newer_service_are_left_out(service: Service, run: Run) -> None:
    service.incidents = [{**INCIDENT, "colour": "blue", "alerts": [{**ALERT, "shape": "round"}]}]
    assert (await run("incidents", ID)).code == 0


async def test_watching_an_incident_ends_when_it_is_closed(service: Service, run: Run) -> None:
    service.incidents = [INCIDENT, CLOSED]
    ended = await run("incidents", ID, "--watch")
    assert ended.code == 0
    assert ended.out.count("decide") == 1
    assert ended.out.splitlines()[-1].endswith("mitigated  the pool is free again")


async def test_a_watch_goes_on_when_the_service_was_away_and_says_so(
    service: Service, run: Run
) -> None:
    service.incidents, service.away = [INCIDENT, CLOSED], 1
    ended = await run("incidents", ID, "--watch")
    assert ended.code == 0
    assert ended.out.splitlines()[-1].endswith("mitigated  the pool is free again")
    away, back = ended.err.splitlines()
    assert "the store is away; trying again until it answers" in away
    assert back == "remediator: the service answers again"


async def test_a_watch_ends_where_trying_again_cannot_help(service: Service, run: Run) -> None:
    service.problem = (404, "Incident not found")
    ended = await run("incidents", ID, "--watch")
    assert (ended.code, ended.err.count("\n")) == (1, 1)


async def test_json_and_watch_exclude_each_other(service: Service, run: Run) -> None:
    assert (await run("incidents", "--json", "--watch")).code == 2


# --- acting ---------------------------------------------------------------------------------------


async def test_approve_shows_the_plan_and_sends_its_hash(service: Service, run: Run) -> None:
    ended = await run("approve", ID, "--yes")
    assert ended.code == 0
    for text in ("end_sessions", "postgres/orders-db", "pid 4711", "3 sessions hold locks", PLAN):
        assert text.replace("_", " ") in ended.out.replace("_", " ")
    assert service.asked[-1] == ("POST", f"/incidents/{ID}/approve", {}, {"plan_hash": PLAN})


async def test_maintenance_is_started_listed_and_ended(service: Service, run: Run) -> None:
    started = await run("maintenance", "start", "all", "--for", "2h", "--reason", "disks")
    order = {"scope": "global", "for": "2h", "reason": "disks"}
    assert ("POST", "/maintenance", {}, order) in service.asked
    assert "until 2026-11-21 02:40:00 UTC" in started.out
    assert "remediator maintenance end mnt-1" in started.out
    listed = await run("maintenance", "list")
    assert (listed.code, service.asked[-1][:2]) == (0, ("GET", "/maintenance"))
    for text in ("mnt-1", "shop", "now", "2026-11-21 02:40:00", "disks", "ann"):
        assert text in listed.out
    assert "\x1b" not in listed.out
    as_json = await run("maintenance", "list", "--json")
    assert json.loads(as_json.out)["items"] == [WINDOW]
    ended = await run("maintenance", "end", "mnt-1")
    assert (ended.code, service.asked[-2][:2]) == (0, ("DELETE", "/maintenance/mnt-1"))
    assert ended.out == "Ended the maintenance window mnt-1 of shop.\n"


async def test_the_end_of_maintenance_that_really_holds_is_told(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = WINDOW | {"id": "mnt-2", "scope": "global", "until": "2026-11-21T04:00:00Z"}
    elsewhere = WINDOW | {"id": "mnt-3", "scope": "bank", "until": "2026-11-22T04:00:00Z"}
    monkeypatch.setitem(LISTS, "/maintenance", [WINDOW, other, elsewhere])
    still = "shop is still in maintenance until 2026-11-21 04:00:00 UTC because of mnt-2 of global."
    started = await run("maintenance", "start", "shop", "--for", "2h")
    assert started.out.splitlines()[-1] == still
    ended = await run("maintenance", "end", "mnt-1")
    assert ended.out.splitlines()[-1] == still


async def test_approve_refuses_another_plan_than_the_one_named(service: Service, run: Run) -> None:
    ended = await run("approve", ID, "--plan", "0123456789abcdef", "--yes")
    assert ended.code == 1
    assert PLAN in ended.err
    assert [method for method, *_ in service.asked] == ["GET"]


async def test_approve_without_a_terminal_wants_yes(service: Service, run: Run) -> None:
    ended = await run("approve", ID)
    assert ended.code == 2
    assert "--yes" in ended.err
    assert [method for method, *_ in service.asked] == ["GET"]


async def test_approve_says_when_nothing_waits(service: Service, run: Run) -> None:
    service.incidents = [CLOSED]
    ended = await run("approve", ID, "--yes")
    assert ended.code == 1
    assert "waits for approval" in ended.err


async def test_the_services_no_is_one_line_and_exit_code_1(service: Service, run: Run) -> None:
    service.problem = (409, f"the plan changed {MARKUP}")
    ended = await run("cancel", ID)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("remediator: the service refused (409): Refused: the plan changed")
    assert ended.err.count("\n") == 1
    assert "\x1b" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["reject", ID, "--reason", "no"], f"/incidents/{ID}/reject", {"reason": "no"}),
        (["cancel", ID], f"/incidents/{ID}/cancel", {"reason": ""}),
        (["pause"], "/pause", {"scope": "global", "reason": ""}),
        (["pause", "all"], "/pause", {"scope": "global", "reason": ""}),
        (["resume", "all"], "/resume", {"scope": "global"}),
        (
            ["pause", "shop/orders", "--reason", "x"],
            "/pause",
            {"scope": "shop/orders", "reason": "x"},
        ),
        (["resume", "shop"], "/resume", {"scope": "shop"}),
    ],
)
async def test_an_act_is_one_post(
    service: Service, run: Run, arguments: list[str], path: str, body: dict[str, str]
) -> None:
    assert (await run(*arguments)).code == 0
    assert service.asked == [("POST", path, {}, body)]


async def test_an_id_cannot_leave_its_place_in_the_path(service: Service, run: Run) -> None:
    await run("cancel", "../../pause?x=#")
    assert service.asked[0][:3] == ("POST", "/incidents/../../pause?x=#/cancel", {})


# --- replay ---------------------------------------------------------------------------------------


async def test_replay_of_a_file_is_a_dry_run(service: Service, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "alert.json"
    file.write_text('{"labels": {"alertname": "A"}}')
    ended = await run("replay", str(file), "--playbook", "P")
    assert ended.code == 0
    assert ID in ended.out
    query = {"dry_run": "true", "playbook": "P"}
    assert service.asked == [("POST", "/replay", query, {"labels": {"alertname": "A"}})]


async def test_replay_for_real_of_a_stored_incident(service: Service, run: Run) -> None:
    assert (await run("replay", ID, "--for-real")).code == 0
    assert service.asked == [("POST", "/replay", {"dry_run": "false"}, {"id": ID})]


async def test_replay_that_waits_follows_until_it_is_closed(service: Service, run: Run) -> None:
    service.incidents = [INCIDENT, CLOSED]
    ended = await run("replay", ID, "--wait")
    assert ended.code == 0
    assert "mitigated" in ended.out.splitlines()[-1]


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
async def test_replay_of_what_is_no_alert_is_a_usage_error(
    service: Service, run: Run, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "alert.json"
    file.write_bytes(content.encode("latin-1"))
    ended = await run("replay", str(file))
    assert ended.code == 2
    assert str(file) in ended.err
    assert service.asked == []


async def test_replay_of_neither_file_nor_id_is_a_usage_error(service: Service, run: Run) -> None:
    assert (await run("replay", "no-such-file.json")).code == 2


# --- the way to the service -----------------------------------------------------------------------


async def test_the_token_is_found_in_the_state_folder(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("REMEDIATOR_TOKEN")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "operator-token").write_text(f"{TOKEN}\n")
    assert (await run("incidents")).code == 0


async def test_the_token_is_found_where_the_configuration_puts_the_state(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("REMEDIATOR_TOKEN", "REMEDIATOR_STATE_DIR", "REMEDIATOR_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "remediator.yaml").write_text("state_dir: here\n")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "operator-token").write_text(f"{TOKEN}\n")
    assert (await run("incidents")).code == 0
    (tmp_path / "remediator.yaml").write_text("state_dir: [\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # a wrong file holds nobody up
    (tmp_path / "here").rename(tmp_path / "remediator")
    assert (await run("incidents")).code == 0


async def test_without_a_token_it_says_where_to_set_one(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REMEDIATOR_TOKEN")
    ended = await run("incidents")
    assert ended.code == 2
    assert "REMEDIATOR_TOKEN" in ended.err


async def test_a_wrong_token_is_the_services_no(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMEDIATOR_TOKEN", "wrong")
    assert (await run("incidents")).code == 1


async def test_a_service_that_is_not_there_is_exit_code_3(
    run: Run, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setenv("REMEDIATOR_URL", f"http://127.0.0.1:{unused_tcp_port}")
    ended = await run("incidents")
    assert (ended.code, ended.out) == (3, "")
    assert "remediator serve" in ended.err
    assert ended.err.count("\n") == 1


def test_a_service_that_does_not_answer_in_time_is_not_called_absent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environ = {"REMEDIATOR_URL": url, "REMEDIATOR_TOKEN": TOKEN}
        with Api(environ, timeout=0.2) as api, pytest.raises(Failure) as caught:
            api.get("/incidents")
    assert caught.value.code == 3
    assert "does not answer within 0.2 s; look at its log and at its store" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://h", "http://[", "nonsense", "http://h:x", "http://u:hush@h"]
)
async def test_an_address_that_is_none_is_a_configuration_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("REMEDIATOR_URL", url)
    ended = await run("incidents")
    assert ended.code == 2
    assert "hush" not in ended.err


@pytest.mark.parametrize(
    "raw", [(200, "text/html", "<p>"), (200, "application/json", "{"), (500, "text/plain", "boom")]
)
async def test_an_answer_that_is_not_the_apis_is_one_line(
    service: Service, run: Run, raw: tuple[int, str, str]
) -> None:
    service.raw = raw
    for arguments in (["incidents"], ["incidents", "--json"]):
        ended = await run(*arguments)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.count("\n") == 1


async def test_an_answer_of_another_form_is_one_line(service: Service, run: Run) -> None:
    service.raw = (200, "application/json", '{"items": [{"id": 1}]}')
    ended = await run("incidents")
    assert ended.code == 1
    assert ended.err.count("\n") == 1


# --- the command itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["nonsense"], ["incidents", "--nonsense"], ["approve"]])
async def test_a_wrong_command_line_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    assert (await run(*arguments)).code == 2


async def test_a_configuration_that_is_not_there_is_exit_code_2(run: Run, tmp_path: Path) -> None:
    ended = await run("check", "--config", str(tmp_path / "none.yaml"))
    assert ended.code == 2
    assert "none.yaml" in ended.err


@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
async def test_the_version_is_a_command_and_an_option(run: Run, arguments: list[str]) -> None:
    ended = await run(*arguments)
    assert ended.code == 0
    assert ended.out.startswith("remediator ")


async def test_schema_prints_a_json_schema(run: Run) -> None:
    ended = await run("schema")
    assert json.loads(ended.out)["type"] == "object"


def test_the_help_loads_nothing_that_is_slow_to_load() -> None:
    code = (
        "import sys\n"
        "from remediator.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'sqlalchemy', 'asyncpg', 'slack_sdk', 'kubernetes_asyncio', 'aiohttp', 'redis', 'httpx',"
        " 'pydantic', 'structlog', 'yaml', 'asyncio', 'rich', 'alembic', 'apprise', 'requests',"
        " 'remediator.model.base', 'remediator.playbook.api', 'remediator.config.settings', 'remediator.service'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stderr == "[]\n"
    assert "deadletters" in ended.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_the_commands(shell: str) -> None:
    environ = os.environ | {
        "_REMEDIATOR_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "remediator inc",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "remediator inc",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    ended = subprocess.run(
        [Path(sys.executable).with_name("remediator")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environ,
    )
    assert "incidents" in ended.stdout


def test_a_terminal_that_knows_only_ascii_is_no_error() -> None:
    environ = os.environ | {"PYTHONIOENCODING": "ascii", "REMEDIATOR_URL": "http://[\u2713"}
    ended = subprocess.run(
        [sys.executable, "-m", "remediator", "incidents"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environ,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr


def test_plain_keeps_readable_text_of_any_script() -> None:
    assert plain("Überlast  日本\n\x1b[0mx\u200b") == "Überlast 日本 [0mx"


# --- check ----------------------------------------------------------------------------------------


@pytest.fixture
def checked(
    run: Run, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Coroutine[Any, Any, Ended]]:
    """Check a configuration with one playbook on a real PostgreSQL."""
    for name in [name for name in os.environ if name.startswith("REMEDIATOR_")]:
        monkeypatch.delenv(name)
    (tmp_path / "reader").write_text(scene.dsn_as("reader"))
    (tmp_path / "lever").write_text(scene.dsn_as("lever"))

    async def check(
        *,
        http: str | None = None,
        mode: str = "auto",
        more: dict[str, Any] | None = None,
        **dsn: str,
    ) -> Ended:
        files = {"dsn_file": "reader", "writer_dsn_file": "lever"} | dsn
        orders = {
            "match": {"service": "orders"},
            "targets": {"database": "orders-db"} | ({"admin": "admin"} if http else {}),
            "playbooks": {"PoolExhausted": {"mode": mode, "app_roles": ["app"]}},
        }
        config = {
            "state_dir": "state",
            "backends": {"postgres": {"orders-db": files}}
            | ({"http": {"admin": {"url": http}}} if http else {}),
            "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": orders}}},
        }
        (tmp_path / "remediator.yaml").write_text(yaml.safe_dump(config | (more or {})))
        return await run("check", "--config", str(tmp_path / "remediator.yaml"))

    return check


Checked = Callable[..., Coroutine[Any, Any, Ended]]


async def test_check_tells_the_limits_that_hold_together(checked: Checked) -> None:
    ended = await checked(
        more={"limits": {"system": {"cooldown": "20m"}, "target": {"budget": 1, "window": "10m"}}}
    )
    assert (ended.code, ended.err) == (0, "")
    assert "ok  shop/orders PoolExhausted: mode auto; could cancel_queries" in ended.out
    assert "at most 1 in 10m and 3 in 1h, 1 at a time, cooldown 20m" in ended.out


async def test_check_says_that_a_playbook_cannot_act_without_the_writers_rights(
    checked: Checked,
) -> None:
    ended = await checked(writer_dsn_file="reader")
    assert ended.code == 1
    assert "error  postgres orders-db (writer): " in ended.out
    assert "orders-db: postgres" not in ended.out
    cannot = "error  shop/orders PoolExhausted: cannot act: see postgres orders-db (writer)"
    assert cannot in ended.out
    assert ended.err == "remediator: not everything is right; see above\n"


async def test_check_calls_a_backend_that_is_away_by_its_name(
    checked: Checked, unused_tcp_port: int
) -> None:
    ended = await checked(http=f"http://127.0.0.1:{unused_tcp_port}")
    assert ended.code == 1
    assert ended.out.count("http admin: ") == 1
    assert "ok  postgres orders-db: can be read" in ended.out


async def test_a_secret_that_is_missing_hides_no_other_backend(
    checked: Checked, tmp_path: Path, unused_tcp_port: int
) -> None:
    ended = await checked(
        dsn_file="gone", http=f"http://127.0.0.1:{unused_tcp_port}", mode="shadow"
    )
    assert ended.code == 2
    assert "error  postgres orders-db: " in ended.out
    assert "backends.postgres.orders-db.dsn_file: secret file" in ended.out
    assert "error  http admin: " in ended.out
    assert "cannot act: see postgres orders-db" in ended.out
    assert ended.err == "remediator: the configuration is wrong; see above\n"


@pytest.mark.parametrize("kubeconfig", [None, "", "{}", "[", "clusters: []"])
async def test_a_kubeconfig_that_cannot_be_used_hides_no_other_backend(
    checked: Checked, tmp_path: Path, scene: Scene, kubeconfig: str | None
) -> None:
    if kubeconfig is not None:
        (tmp_path / "kubeconfig").write_text(kubeconfig)
    backends = {
        "postgres": {"orders-db": {"dsn_file": "reader", "writer_dsn_file": "lever"}},
        "kubernetes": {"main": {"kubeconfig": "kubeconfig"}},
    }
    ended = await checked(more={"backends": backends})
    assert ended.code == 2
    why = {None: "no such file", "": "is empty", "[": "is not YAML"}.get(kubeconfig, "no kubecon")
    assert why in next(
        s for s in ended.out.splitlines() if s.startswith("error  kubernetes main: ")
    )
    assert "backends.kubernetes.main: " in ended.out
    assert "ok  postgres orders-db: can be read" in ended.out
    assert "ok  shop/orders PoolExhausted: mode auto" in ended.out


async def test_parts_that_do_not_fit_together_are_exit_code_2(checked: Checked) -> None:
    ended = await checked(more={"listen": "0.0.0.0:8080"})
    assert ended.code == 2
    assert "credentials" in ended.err


async def test_all_that_is_wrong_with_file_and_playbooks_is_told_at_once(
    run: Run, tmp_path: Path
) -> None:
    wrong = {"HighLatency": {"latencyquery": "up", "scale_cap": 0}, "OOM": {}}
    orders = {"match": {"service": "orders"}, "playbooks": wrong}
    system: dict[str, Any] = {"maintenance": [{"cron": "0 25 * * *", "duration": "1h"}]}
    system |= {"match": {"system": "shop"}, "services": {"orders": orders}}
    file = tmp_path / "remediator.yaml"
    file.write_text(yaml.safe_dump({"mode": "aut", "systems": {"shop": system}}))
    ended = await run("check", "--config", str(file))
    assert ended.code == 2
    for text in (
        "mode: should be observe, shadow, approve, auto",
        "cron: has a wrong hour: ",
        "HighLatency.latencyquery: is no parameter of it; did you mean latency_query",
        "HighLatency.scale_cap: should be greater than or equal to 1",
        "playbooks.OOM: needs a target 'workload' (kubernetes)",
    ):
        assert text in ended.err


async def test_check_warns_of_secrets_that_others_can_read_or_guess(
    checked: Checked, tmp_path: Path
) -> None:
    for name, secret in {
        "weak": "changeme",
        "good": "k3FhzQ0pJv7LmW2x",
        "pair": "ann:aaaa",
    }.items():
        (tmp_path / name).write_text(secret)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "lever").chmod(0o600)
    (tmp_path / "reader").chmod(0o644)
    (tmp_path / "good").chmod(0o620)
    credentials = [
        {"name": "am", "role": "ingest", "token_file": "weak"},
        {"name": "ann", "role": "operator", "basic_file": "pair"},
        {"name": "bob", "role": "operator", "token_file": "good"},
    ]
    ended = await checked(more={"credentials": credentials})
    assert ended.code == 0
    warned = {line.split(": ")[0]: line for line in ended.out.splitlines() if "warning" in line}
    assert set(warned) == {
        "warning  backends.postgres.orders-db.dsn_file",
        "warning  credentials[0]",
        "warning  credentials[1]",
        "warning  credentials[2].token_file",
    }
    reader = warned["warning  backends.postgres.orders-db.dsn_file"]
    assert "can be read by every user of this machine" in reader
    assert f"chmod 600 {tmp_path / 'reader'}" in reader
    assert "can be changed by other users" in warned["warning  credentials[2].token_file"]
    assert "changeme" not in ended.out + ended.err


@pytest.mark.parametrize("services", [{}, {"orders": {"match": {"service": "orders"}}}])
async def test_check_says_what_to_do_next_where_there_is_no_playbook(
    checked: Checked, services: dict[str, Any]
) -> None:
    ended = await checked(more={"systems": {"shop": {"match": {"a": "b"}, "services": services}}})
    assert ended.code == 0
    said = "`remediator playbooks` lists" if services else "`remediator init DIR` writes"
    assert said in ended.out


async def test_check_warns_of_a_playbook_file_without_a_playbook(
    checked: Checked, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "empty.py").write_text("NAME = 1\n")
    ended = await checked(more={"playbooks": {"folders": ["mine"]}})
    assert ended.code == 0
    assert f"warning  playbook file {tmp_path / 'mine' / 'empty.py'}: holds no class" in ended.out


# --- the service itself ---------------------------------------------------------------------------


@asynccontextmanager
async def serving(
    state: Path, config: Path | None = None, log: int = asyncio.subprocess.DEVNULL
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Start ``remediator serve`` on a free port; what it prints once it listens."""
    environ = os.environ | {
        "REMEDIATOR_STATE_DIR": str(state),
        "REMEDIATOR_LISTEN": "127.0.0.1:0",
        "REMEDIATOR_CONFIG": str(config or ""),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remediator", "serve"),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            yield (await process.stdout.read(4096)).decode(), process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_the_first_start_prints_a_receiver_and_the_commands_work_without_more(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REMEDIATOR_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("REMEDIATOR_TOKEN", raising=False)
    async with serving(tmp_path) as (printed, process):
        url = printed.split()[2]
        [receiver] = yaml.safe_load(printed[printed.index("receivers:") :])["receivers"]
        [webhook] = receiver["webhook_configs"]
        assert webhook == {
            "url": f"{url}/webhooks/alertmanager",
            "send_resolved": True,
            "max_alerts": 0,
            "http_config": {
                "authorization": {"type": "Bearer", "credentials_file": str(tmp_path / "token")}
            },
        }
        monkeypatch.setenv("REMEDIATOR_URL", url)
        file = tmp_path / "alert.json"
        file.write_text('{"labels": {"alertname": "NobodyKnows"}}')
        replayed = await run("replay", str(file), "--wait")
        assert (replayed.code, replayed.err) == (0, "")
        listed = json.loads((await run("incidents", "--json")).out)
        assert listed["items"][0]["outcome"] == "no_match"
        shown = await run("incidents", listed["items"][0]["id"])
        assert "NobodyKnows" in shown.out
        for name in ("playbooks", "limits", "deadletters"):
            assert (await run(name)).code == 0
        assert (await run("pause", "--reason", "test")).code == 0
        assert "Paused: global by operator" in (await run("limits")).out
        assert (await run("resume")).code == 0
        assert (await run("resume")).code == 1
        async with serving(tmp_path) as (said, second):
            assert (said, await second.wait()) == ("", 2)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    async with serving(tmp_path) as (printed, _):
        assert printed.split()[:2] == ["Listening", "on"]
        assert "No services are configured: alerts are recorded" in printed
        assert "`remediator init DIR` writes a configuration" in printed
        assert "token" not in printed


async def logged(process: asyncio.subprocess.Process, event: str) -> dict[str, Any]:
    """Read the log until ``event``; return its line."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while True:
            line: dict[str, Any] = json.loads(await process.stderr.readline())
            if line["event"] == event:
                return line


def serves(mode: str) -> str:
    """A configuration of one service, whose only playbook needs no target."""
    orders = {"match": {"service": "orders"}, "playbooks": {"HighLatency": None}}
    shop = {"match": {"system": "shop"}, "services": {"orders": orders}}
    return yaml.safe_dump({"mode": mode, "systems": {"shop": shop}})


async def test_sighup_reads_the_configuration_again_and_says_what_changed(tmp_path: Path) -> None:
    config = tmp_path / "remediator.yaml"
    config.write_text(serves("shadow"))
    async with serving(tmp_path / "s", config, asyncio.subprocess.PIPE) as (printed, process):
        assert "Mode shadow unless set otherwise" in printed
        config.write_text(serves("approve"))
        process.send_signal(signal.SIGHUP)
        assert (await logged(process, "reloading"))["changed"] == ["mode"]
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert b"Listening on" in await process.stdout.readline()
            assert b"Mode approve unless set" in await process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_sighup_with_a_wrong_configuration_changes_nothing(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "remediator.yaml"
    config.write_text(serves("shadow"))
    async with serving(tmp_path / "s", config, asyncio.subprocess.PIPE) as (printed, process):
        config.write_text(serves("atuo"))
        process.send_signal(signal.SIGHUP)
        refused = await logged(process, "reload_refused")
        assert "mode: should be observe, shadow, approve, auto" in refused["reason"]
        monkeypatch.setenv("REMEDIATOR_URL", printed.split()[2])
        monkeypatch.setenv("REMEDIATOR_STATE_DIR", str(tmp_path / "s"))
        monkeypatch.delenv("REMEDIATOR_TOKEN", raising=False)
        assert (await run("limits")).code == 0
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_sighup_with_what_cannot_be_started_goes_back_to_what_ran(tmp_path: Path) -> None:
    config = tmp_path / "remediator.yaml"
    config.write_text(serves("shadow"))
    async with serving(tmp_path / "s", config, asyncio.subprocess.PIPE) as (_, process):
        config.write_text(serves("shadow") + "store: {dsn_env: NOT_THERE}\n")
        process.send_signal(signal.SIGHUP)
        assert "NOT_THERE" in (await logged(process, "reload_failed"))["reason"]
        await logged(process, "listening")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
