"""The operators' API and replays, over a real socket, and their description."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from remediator.api.audit import audit_routes
from remediator.api.auth import Access
from remediator.api.body import BodyLimits
from remediator.api.listener import listening
from remediator.api.openapi import with_description
from remediator.api.operator import api_routes
from remediator.api.routing import STOPPING, build_app
from remediator.intake.replay import Replays, replay_routes
from remediator.intake.webhooks import Door, health_routes, webhook_routes
from remediator.model.access import Credential, Role
from remediator.model.alert import Alert, AlertStatus, DeadLetter, Delivery, Source
from remediator.model.audit import Verification
from remediator.model.base import DeliveryId, IncidentId
from remediator.model.errors import Refused, StoreUnavailable
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.limits import Limits
from remediator.model.maintenance import MaintenanceOrder
from remediator.model.views import (
    DeadLetterView,
    DeliveryView,
    IncidentSummary,
    IncidentView,
    Kept,
    LimitView,
    Page,
    PauseView,
    PlaybookView,
    WindowView,
)
from remediator.store.audit.chain import Begin, End, Entry, Head, Key, Keys, Part, read_record
from remediator.store.audit.verify import Verifier

SAMPLES = Path(__file__).parent.parent / "samples"
NOW = datetime(2026, 11, 20, 16, tzinfo=UTC)
ENTRY = Entry(
    chain="operators",
    number=1,
    at=NOW,
    step="operator",
    event="paused global",
    reason="ann: \N{SNOWMAN}\x1b",
    data={"by": "ann"},
    mac="00:00",
)
JSON = {"Content-Type": "application/json"}
ANN = {"Authorization": "Bearer operator-token"}
VIEWER = {"Authorization": "Bearer viewer-token"}
INGEST = {"Authorization": "Bearer ingest-token"}
CREDENTIALS = (
    Credential("alertmanager", Role.INGEST, token="ingest-token"),
    Credential("wall", Role.VIEWER, token="viewer-token"),
    Credential("ann", Role.OPERATOR, token="operator-token"),
    Credential("root", Role.ADMIN, token="admin-token"),
)
SUMMARY = IncidentSummary(
    id=IncidentId("inc-1"),
    state=IncidentState.OPEN,
    phase=Phase.APPROVAL,
    outcome=None,
    system="shop",
    service="orders",
    playbook="PoolExhausted",
    reason="waits for approval",
    dry_run=False,
    replay_of=None,
    opened_at=NOW,
    closed_at=None,
)
VIEW = IncidentView(**SUMMARY.model_dump(), alerts=[], findings=[], mitigations=[], timeline=[])
HELD = PauseView(scope="global", by="bob", reason="no disk", since=NOW, kept=Kept.REPLICA)
PAUSED = PauseView(scope="shop", by="ann", reason="release", since=NOW)
WINDOW = WindowView(
    id="mnt-1",
    scope="shop",
    since=NOW,
    until=NOW + timedelta(hours=2),
    reason="disks",
    running=True,
    source="api",
    by="ann",
)
LIMIT = LimitView(
    scope="global",
    limits=Limits(
        budget=10, window=timedelta(hours=1), cooldown=timedelta(minutes=5), concurrency=3
    ),
    reserved=1,
    in_flight=0,
)
FIRING = Alert(
    source=Source.ALERTMANAGER,
    fingerprint="f",
    status=AlertStatus.FIRING,
    labels={"alertname": "PoolExhausted"},
    starts_at=NOW,
)
RESOLVED = FIRING.model_copy(update={"status": AlertStatus.RESOLVED, "ends_at": NOW})


@dataclass
class Recorder:
    """Stands for the store: keeps what it was asked, answers what it was given."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    failure: Exception | None = None
    entries: int = 3
    breaks_off_at: int = 0
    stored: dict[str, tuple[Alert, ...]] = field(default_factory=dict)
    replayed: list[tuple[Delivery, Sequence[Alert], Sequence[DeadLetter]]] = field(
        default_factory=list
    )

    def note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.failure is not None:
            raise self.failure

    async def incidents(
        self,
        *,
        state: str | None,
        service: str | None,
        system: str | None,
        outcome: str | None,
        after: str | None,
        limit: int,
    ) -> Page[IncidentSummary]:
        self.note("incidents", state, service, system, outcome, after, limit)
        return Page(items=[SUMMARY], next="inc-1")

    async def incident(self, incident_id: str) -> IncidentView | None:
        self.note("incident", incident_id)
        return VIEW if incident_id == "inc-1" else None

    async def deliveries(self, *, after: str | None, limit: int) -> Page[DeliveryView]:
        self.note("deliveries", after, limit)
        view = DeliveryView(
            id=DeliveryId("dlv-1"),
            source=Source.ALERTMANAGER,
            received_at=NOW,
            credential="alertmanager",
            size=2,
            digest="00",
            alerts=1,
            dead=0,
            triaged_at=None,
            incidents=[],
        )
        return Page(items=[view])

    async def dead_letters(self, *, after: str | None, limit: int) -> Page[DeadLetterView]:
        self.note("dead_letters", after, limit)
        return Page(items=[])

    async def verify(self) -> Verification:
        self.note("verify")
        return Verifier(Keys(Key(b"a key of sixteen"))).result()

    async def export(self, part: Part) -> AsyncGenerator[Begin | Entry | Head | End, None]:
        self.note("export", part)
        yield Begin(**dict(part), at=NOW)
        for number in range(1, self.entries + 1):
            yield ENTRY.model_copy(update={"number": number})
            if number == self.breaks_off_at:
                raise StoreUnavailable("gone")
        yield End(entries=self.entries)

    async def pauses(self) -> list[PauseView]:
        return [PAUSED]

    async def limits(self) -> list[LimitView]:
        self.note("limits")
        return [LIMIT]

    async def playbooks(self) -> list[PlaybookView]:
        view = PlaybookView(
            name="PoolExhausted",
            summary="",
            matches=[],
            targets={},
            levers=[],
            origin="",
            services=[],
        )
        return [view]

    async def pause(self, scope: str, by: str, reason: str) -> PauseView:
        self.note("pause", scope, by, reason)
        return PAUSED

    async def resume(self, scope: str, by: str) -> None:
        self.note("resume", scope, by)

    def held(self) -> list[PauseView]:
        return [HELD]

    async def windows(self) -> list[WindowView]:
        self.note("windows")
        return [WINDOW]

    async def start(self, order: MaintenanceOrder, by: str) -> WindowView:
        self.note("start", order, by)
        return WINDOW

    async def end(self, window_id: str, by: str) -> WindowView:
        self.note("end", window_id, by)
        return WINDOW

    async def approve(self, incident_id: str, plan_hash: str | None, by: str) -> None:
        self.note("approve", incident_id, plan_hash, by)

    async def reject(self, incident_id: str, plan_hash: str | None, by: str, reason: str) -> None:
        self.note("reject", incident_id, plan_hash, by, reason)

    async def cancel(self, incident_id: str, by: str, reason: str) -> None:
        self.note("cancel", incident_id, by, reason)

    async def acknowledge(self, incident_id: str, by: str) -> None:
        self.note("acknowledge", incident_id, by)

    async def put(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> DeliveryId:
        raise AssertionError("a replay is not put")

    async def replay(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> list[IncidentId]:
        self.note("replay")
        self.replayed.append((delivery, alerts, dead))
        return [IncidentId("inc-9")]

    async def stored_alerts(self, some_id: str) -> tuple[Alert, ...] | None:
        return self.stored.get(some_id)

    async def ready(self) -> list[str]:
        return []


@dataclass
class Server:
    recorder: Recorder
    client: httpx.AsyncClient
    stop: Any

    async def replay(self, body: object, query: str = "", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        path = f"/api/v1/replay{query}"
        return await self.client.post(path, content=content, headers=ANN | headers)


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    recorder = Recorder()
    limits = BodyLimits(max_body=1_000_000, timeout=0.3)
    routes = with_description(
        (
            *webhook_routes(Door(recorder)),
            *health_routes(recorder.ready, lambda: (b"", "text/plain")),
            *replay_routes(
                Replays(recorder, recorder.stored_alerts, {"PoolExhausted", "PodOom"}, limits)
            ),
            *api_routes(recorder, recorder, recorder, recorder),
            *audit_routes(recorder),
        ),
        "0.1.0",
    )
    app = build_app(routes, Access(CREDENTIALS), limits=limits)
    async with (
        listening(app, "127.0.0.1", 0) as (host, port),
        httpx.AsyncClient(
            base_url=f"http://{host}:{port}",
            headers=JSON,
            trust_env=False,
            verify=False,
        ) as client,
    ):
        yield Server(recorder, client, app[STOPPING])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


def assert_problem(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["type"] == "about:blank"
    assert problem["title"]
    for word in words:
        assert word in answer.text
    return problem


# --- the audit ----------------------------------------------------------------------------------


async def test_the_audit_is_exported_as_lines_of_json_in_plain_ascii(server: Server) -> None:
    server.recorder.entries = 2000  # more than is sent at once
    answer = await server.client.get("/api/v1/audit", headers=ANN)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.content.isascii()
    begin, *entries, end = map(read_record, answer.text.splitlines())
    assert (begin.kind, end.kind) == ("export", "end")
    assert entries[0] == ENTRY
    assert [e.number for e in entries if isinstance(e, Entry)] == list(range(1, 2001))


async def test_a_part_of_the_audit_can_be_asked_for(server: Server) -> None:
    query = "incident=inc-1&since=2026-11-20T16:00:00Z"
    await server.client.get(f"/api/v1/audit?{query}", headers=ANN)
    assert server.recorder.asked == [("export", Part(incident="inc-1", since=NOW))]
    assert_problem(
        await server.client.get("/api/v1/audit?since=yesterday", headers=ANN), 422, "query.since"
    )


async def test_an_export_that_breaks_off_does_not_look_complete(server: Server) -> None:
    server.recorder.entries, server.recorder.breaks_off_at = 2000, 1999
    with pytest.raises(httpx.HTTPError):
        await server.client.get("/api/v1/audit", headers=ANN)


async def test_an_export_that_cannot_begin_is_an_error_answer(server: Server) -> None:
    server.recorder.failure = StoreUnavailable("down")
    assert_problem(await server.client.get("/api/v1/audit", headers=ANN), 503)


async def test_only_operators_read_and_verify_the_audit(server: Server) -> None:
    for path in ("/api/v1/audit", "/api/v1/audit/verify"):
        assert_problem(await server.client.get(path, headers=VIEWER), 403)
    found = await server.client.get("/api/v1/audit/verify", headers=ANN)
    assert found.json()["ok"] is False
    assert [flaw["what"] for flaw in found.json()["flaws"]] == ["missing"]
    assert (await server.client.head("/api/v1/audit", headers=ANN)).status_code == 200


async def test_a_service_without_a_key_says_so(server: Server) -> None:
    server.recorder.failure = Refused(409, "no key")
    assert_problem(await server.client.get("/api/v1/audit/verify", headers=ANN), 409, "no key")


# --- reading ------------------------------------------------------------------------------------


async def test_incidents_are_listed_with_their_filters(server: Server) -> None:
    answer = await server.client.get(
        "/api/v1/incidents?state=open&service=orders&system=shop&outcome=mitigated&limit=7"
        "&after=inc-0198c2f5a1b2-9f8e7d6c5b",
        headers=VIEWER,
    )
    assert answer.status_code == 200
    assert answer.json()["next"] == "inc-1"
    assert answer.json()["items"] == [SUMMARY.model_dump(mode="json")]
    assert server.recorder.asked == [
        (
            "incidents",
            IncidentState.OPEN,
            "orders",
            "shop",
            IncidentOutcome.MITIGATED,
            "inc-0198c2f5a1b2-9f8e7d6c5b",
            7,
        )
    ]


async def test_without_filters_fifty_incidents_of_any_kind_are_listed(server: Server) -> None:
    await server.client.get("/api/v1/incidents", headers=VIEWER)
    assert server.recorder.asked == [("incidents", None, None, None, None, None, 50)]


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "query.limit"),
        ("limit=201", "query.limit"),
        ("limit=many", "query.limit"),
        ("state=ajar", "query.state"),
        ("state=", "query.state"),
        ("outcome=fine", "query.outcome"),
        ("statee=open", "query.statee"),
        ("after=%00", "query.after"),
        ("after=a%20b", "query.after"),
        ("state=open&state=closed", "query.state"),
    ],
)
async def test_a_query_that_cannot_be_used_says_which_field(
    server: Server, query: str, path: str
) -> None:
    answer = await server.client.get(f"/api/v1/incidents?{query}", headers=VIEWER)
    problem = assert_problem(answer, 422)
    assert [error["path"] for error in problem["errors"]] == [path]
    assert server.recorder.asked == []


async def test_one_incident_is_shown_whole(server: Server) -> None:
    answer = await server.client.get("/api/v1/incidents/inc-1", headers=VIEWER)
    assert answer.json() == VIEW.model_dump(mode="json")


@pytest.mark.parametrize("name", ["inc-2", "a%00b", "a%2Fb", "x" * 101, "%F0%9F%98%80"])
async def test_an_unknown_incident_is_404(server: Server, name: str) -> None:
    assert_problem(await server.client.get(f"/api/v1/incidents/{name}", headers=VIEWER), 404)


async def test_the_other_lists_have_items_and_next(server: Server) -> None:
    for name in ("deliveries", "deadletters", "playbooks"):
        answer = await server.client.get(f"/api/v1/{name}", headers=VIEWER)
        assert answer.status_code == 200
        assert set(answer.json()) == {"items", "next"}
    assert ("deliveries", None, 50) in server.recorder.asked


async def test_limits_come_with_what_is_paused(server: Server) -> None:
    answer = await server.client.get("/api/v1/limits", headers=VIEWER)
    assert answer.json() == {
        "items": [LIMIT.model_dump(mode="json")],
        "paused": [HELD.model_dump(mode="json"), PAUSED.model_dump(mode="json")],
    }


# --- deciding -----------------------------------------------------------------------------------


async def test_pause_and_resume_take_a_scope_and_know_who_asked(server: Server) -> None:
    body = {"scope": "shop/orders", "reason": "rel\0ease"}
    paused = await server.client.post("/api/v1/pause", json=body, headers=ANN)
    assert paused.json() == PAUSED.model_dump(mode="json")
    resumed = await server.client.post("/api/v1/resume", json={"scope": "shop"}, headers=ANN)
    assert resumed.json() == {"scope": "shop"}
    assert (paused.status_code, resumed.status_code) == (200, 200)
    assert server.recorder.asked == [
        ("pause", "shop/orders", "ann", "rel\ufffdease"),
        ("resume", "shop", "ann"),
    ]


async def test_a_maintenance_window_is_ordered_listed_and_ended_by_name(server: Server) -> None:
    url = "/api/v1/maintenance"
    times = {"from": "2026-12-01T22:00:00+01:00", "until": "2026-12-01T23:00:00+01:00"}
    begin, end = (datetime(2026, 12, 1, hour, tzinfo=UTC) for hour in (21, 22))
    for body, order in (
        ({"for": "2h"}, MaintenanceOrder(scope="shop", lasts=timedelta(hours=2), reason="disks")),
        (times, MaintenanceOrder(scope="shop", since=begin, until=end, reason="disks")),
    ):
        answer = await server.client.post(
            url, json={"scope": "shop", "reason": "disks", **body}, headers=ANN
        )
        assert (answer.status_code, answer.json()["id"]) == (201, "mnt-1")
        assert server.recorder.asked[-1] == ("start", order, "ann")
    listed = await server.client.get(url, headers=VIEWER)
    (item,) = listed.json()["items"]
    assert (item["from"], item["until"]) == ("2026-11-20T16:00:00Z", "2026-11-20T18:00:00Z")
    ended = await server.client.delete(f"{url}/mnt-1", headers=ANN)
    assert (ended.status_code, server.recorder.asked[-1]) == (200, ("end", "mnt-1", "ann"))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"for": "2h"},
        {"scope": "shop"},
        {"scope": "shop", "for": "2h", "until": "2026-12-01T22:00:00Z"},
        {"scope": "shop", "for": "0s"},
        {"scope": "shop", "for": "8d"},
        {"scope": "shop", "until": "2026-12-01T22:00:00"},
        {"scope": "shop", "for": "2h", "lasts": "2h"},
        {"scope": "shop", "until": "9999-12-31T23:59:59Z"},
        {"scope": "shop", "for": "9" * 5000 + "d"},
        {"scope": "shop", "for": "2h", "from": "9999-12-31T23:59:59-12:00"},
        {"scope": "shop", "for": "2h", "from": "0001-01-01T00:00:00+12:00"},
    ],
)
async def test_an_order_that_is_no_window_is_422(server: Server, body: dict[str, Any]) -> None:
    answer = await server.client.post("/api/v1/maintenance", json=body, headers=ANN)
    assert_problem(answer, 422)
    assert server.recorder.asked == []


async def test_a_window_of_the_file_is_not_ended_here(server: Server) -> None:
    server.recorder.failure = Refused(409, "file-1 is in the configuration file")
    answer = await server.client.delete("/api/v1/maintenance/file-1", headers=ANN)
    assert_problem(answer, 409)


async def test_bodies_may_be_left_out(server: Server) -> None:
    for path in ("pause", "resume", "incidents/inc-1/approve", "incidents/inc-1/cancel"):
        answer = await server.client.post(f"/api/v1/{path}", headers=ANN)
        assert answer.status_code == 200, answer.text
    assert server.recorder.asked[:2] == [
        ("pause", "global", "ann", ""),
        ("resume", "global", "ann"),
    ]


async def test_decisions_carry_the_plan_and_the_reason_and_show_the_incident(
    server: Server,
) -> None:
    body = {"plan_hash": "0123", "reason": "looks right"}
    for verb in ("approve", "reject", "cancel"):
        answer = await server.client.post(f"/api/v1/incidents/inc-1/{verb}", json=body, headers=ANN)
        assert answer.status_code == 200
        assert answer.json()["id"] == "inc-1"
    assert [asked for asked in server.recorder.asked if asked[0] != "incident"] == [
        ("approve", "inc-1", "0123", "ann"),
        ("reject", "inc-1", "0123", "ann", "looks right"),
        ("cancel", "inc-1", "ann", "looks right"),
    ]


@pytest.mark.parametrize("status", [404, 409])
async def test_a_refusal_says_why(server: Server, status: int) -> None:
    server.recorder.failure = Refused(status, "the plan has changed since")
    answer = await server.client.post("/api/v1/incidents/inc-1/approve", headers=ANN)
    assert_problem(answer, status, "the plan has changed since")


@pytest.mark.parametrize(
    ("body", "status", "path"),
    [
        (b"{", 400, None),
        (b"\xff", 400, None),
        (b"[]", 422, "body"),
        (b'{"scope": 3}', 422, "body.scope"),
        (b'{"scope": ""}', 422, "body.scope"),
        (b'{"skope": "global"}', 422, "body.skope"),
        (b'{"reason": "' + b"x" * 2001 + b'"}', 422, "body.reason"),
        (b'{"reason": "\\ud800"}', 400, None),
        (b'{"reason": "' + b"x" * 70_000 + b'"}', 413, None),
    ],
)
async def test_a_body_that_cannot_be_used_says_which_field(
    server: Server, body: bytes, status: int, path: str | None
) -> None:
    answer = await server.client.post("/api/v1/pause", content=body, headers=ANN)
    problem = assert_problem(answer, status)
    assert [error["path"] for error in problem["errors"]] == ([path] if path else [])
    assert server.recorder.asked == []


# --- who may ------------------------------------------------------------------------------------


async def test_every_route_of_the_api_needs_the_right_role(server: Server) -> None:
    reads = ["incidents", "incidents/inc-1", "deliveries", "deadletters", "playbooks", "limits"]
    reads.append("maintenance")
    writes = [
        "pause",
        "maintenance",
        "resume",
        "replay",
        *(f"incidents/inc-1/{v}" for v in ("approve", "cancel", "acknowledge")),
    ]
    ended = ["maintenance/mnt-1"]
    kinds = (("GET", reads, INGEST), ("POST", writes, VIEWER), ("DELETE", ended, VIEWER))
    for method, paths, weak in kinds:
        for path in paths:
            call = server.client.build_request(method, f"/api/v1/{path}")
            assert_problem(await server.client.send(call), 401)
            for headers in (weak, INGEST):
                call = server.client.build_request(method, f"/api/v1/{path}", headers=headers)
                assert_problem(await server.client.send(call), 403)
    assert server.recorder.asked == []


async def test_unknown_paths_and_methods_are_problems_too(server: Server) -> None:
    assert_problem(await server.client.get("/api/v1/nothing", headers=ANN), 404)
    answer = await server.client.get("/api/v1/pause", headers=ANN)
    assert_problem(answer, 405)
    assert answer.headers["Allow"] == "POST"


async def test_a_store_that_is_down_is_503(server: Server) -> None:
    server.recorder.failure = StoreUnavailable("down", retry_after=12.2)
    answer = await server.client.get("/api/v1/incidents", headers=ANN)
    assert_problem(answer, 503)
    assert answer.headers["Retry-After"] == "13"


async def test_an_error_of_ours_is_500_without_internals(server: Server) -> None:
    server.recorder.failure = RuntimeError("internal-detail")
    answer = await server.client.get("/api/v1/incidents", headers=ANN)
    assert_problem(answer, 500)
    assert "internal-detail" not in answer.text


# --- replay -------------------------------------------------------------------------------------


async def test_what_is_stored_is_replayed_as_a_dry_run(server: Server) -> None:
    server.recorder.stored["inc-1"] = (FIRING, RESOLVED)
    answer = await server.replay({"id": "inc-1"})
    assert answer.status_code == 202
    assert answer.json() == {"incidents": ["inc-9"], "dry_run": True}
    ((delivery, alerts, dead),) = server.recorder.replayed
    assert alerts == (FIRING,)
    assert dead == ()
    assert delivery.source is Source.REPLAY
    assert delivery.replay_of == "inc-1"
    assert (delivery.dry_run, delivery.playbook, delivery.credential) == (True, None, "ann")
    assert json.loads(delivery.body) == {"id": "inc-1"}


async def test_an_incident_whose_alerts_resolved_since_is_replayed_as_it_fired(
    server: Server,
) -> None:
    server.recorder.stored["inc-1"] = (RESOLVED,)
    assert (await server.replay({"id": "inc-1"})).status_code == 202
    assert server.recorder.replayed[0][1] == (FIRING,)


async def test_a_stored_delivery_that_only_resolves_is_not_replayed(server: Server) -> None:
    server.recorder.stored["dlv-1"] = (RESOLVED,)
    assert_problem(await server.replay({"id": "dlv-1"}), 422, "no firing alert")
    assert server.recorder.replayed == []


async def test_a_replay_for_real_with_a_chosen_playbook(server: Server) -> None:
    answer = await server.replay(
        {"labels": {"alertname": "X"}, "annotations": {"a": "b"}},
        "?dry_run=false&playbook=PodOom",
    )
    assert answer.json() == {"incidents": ["inc-9"], "dry_run": False}
    ((delivery, (alert,), _),) = server.recorder.replayed
    assert (delivery.dry_run, delivery.playbook) == (False, "PodOom")
    assert delivery.replay_of == "manual"
    assert alert.labels == {"alertname": "X"}
    assert alert.status is AlertStatus.FIRING


async def test_the_firing_alerts_of_an_alertmanager_body_are_replayed(server: Server) -> None:
    body = json.loads((SAMPLES / "am_firing_group3.json").read_bytes())
    body["alerts"][0]["status"] = "resolved"
    body["alerts"][1]["labels"] = None
    answer = await server.replay(body)
    assert answer.status_code == 202
    ((delivery, alerts, dead),) = server.recorder.replayed
    assert delivery.replay_of == "manual"
    assert [alert.labels["pod"] for alert in alerts] == ["cart-2"]
    assert [letter.position for letter in dead] == [1]


@pytest.mark.parametrize("name", ["inc-404", "", "a\0b", "x" * 5000])
async def test_an_unknown_id_is_404(server: Server, name: str) -> None:
    assert_problem(await server.replay({"id": name}), 404)


async def test_an_unknown_playbook_names_the_known_ones(server: Server) -> None:
    answer = await server.replay({"labels": {}}, "?playbook=Nope")
    assert_problem(answer, 422, "'Nope'", "PodOom, PoolExhausted")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"", 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        ({}, 422, "stored delivery, alert or incident"),
        ({"id": 3}, 422, "stored delivery, alert or incident"),
        ({"labels": {"a": 1}}, 422, ".labels.a is a number"),
        ({"labels": None}, 422, ".labels is missing"),
        ({"alerts": []}, 422, "holds no alert"),
        ({"alerts": None}, 400, "no list `alerts`"),
        ({"alerts": [{}]}, 422, "alerts[0].status is missing"),
        ({"event": {"event_type": "incident.triggered"}}, 422, "event.data.id"),
    ],
)
async def test_a_replay_that_cannot_be_says_why(
    server: Server, body: object, status: int, words: str
) -> None:
    assert_problem(await server.replay(body), status, words)
    assert server.recorder.replayed == []


async def test_a_body_that_only_resolves_is_not_replayed(server: Server) -> None:
    body = (SAMPLES / "am_resolved_group3.json").read_bytes()
    assert_problem(await server.replay(body), 422, "every alert in the body is resolved")


async def test_replays_are_bounded_and_wait_for_nothing_at_the_end(server: Server) -> None:
    assert_problem(await server.replay(b" " * 1_100_000), 413)
    assert_problem(await server.replay({"labels": {}}, "?dry_run=perhaps"), 422, "query.dry_run")
    server.stop.set()
    answer = await server.replay({"labels": {"a": "b"}})
    assert_problem(answer, 503)
    assert answer.headers["Retry-After"]


# --- the description ----------------------------------------------------------------------------


async def test_the_api_is_described_by_valid_openapi(server: Server) -> None:
    answer = await server.client.get("/api/v1/openapi.json", headers=VIEWER)
    document = answer.json()
    validate(document)
    assert document["openapi"].startswith("3.1")
    assert {
        "/api/v1/incidents",
        "/api/v1/incidents/{id}",
        "/api/v1/incidents/{id}/approve",
        "/api/v1/replay",
        "/api/v1/openapi.json",
        "/webhooks/alertmanager",
        "/healthz",
    } <= set(document["paths"])
    listing = document["paths"]["/api/v1/incidents"]["get"]
    assert {p["name"] for p in listing["parameters"]} == {
        *("state", "service", "system", "outcome", "limit", "after"),
    }
    assert {"200", "401", "403", "422", "503"} <= set(listing["responses"])


async def test_every_described_route_answers_as_described(server: Server) -> None:
    document = (await server.client.get("/api/v1/openapi.json", headers=ANN)).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answer = await server.client.request(
                method, path.format(id="inc-1"), headers={"Authorization": "Bearer admin-token"}
            )
            assert str(answer.status_code) in operation["responses"], (method, path)
