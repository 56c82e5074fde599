"""Silences in a real Alertmanager while a mitigation is in flight, and what it then never sends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from remediator.backends.alertmanager import AlertmanagerSilences
from remediator.config.settings import load_settings
from remediator.intake.alertmanager import parse
from remediator.model.alert import AlertStatus, Source
from remediator.model.base import IncidentId
from remediator.model.catalog import Service
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.finding import SenseState
from remediator.model.ports import Silence
from remediator.model.target import Mode
from remediator.notify.sender import LogNotifier
from remediator.remediation.silences import SilenceBounds, Silencing
from remediator.service.metrics import Telemetry, Watching
from remediator.service.preflight import check
from remediator.service.worker import Doorbell, Worker
from remediator.testing import FrozenClock
from tests.monitoring_fixtures import MonitoringServer, Start
from tests.scripted_http import serving
from tests.store_fixtures import Bench, OpenBench, a_delivery, a_service, of_incident, read_again

pytestmark = pytest.mark.real("alertmanager")

AT_ONCE = SilenceBounds(busy=timedelta(0), idle=timedelta(0))
REPEAT = 1.0
"""Seconds after which the Alertmanager tells its receivers again of what still fires."""
LABELS = {"alertname": "ThingsOn", "system": "shop", "service": "orders"}


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """One database: Alertmanager does not care which. A test that does says so."""
    return f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
def clock() -> FrozenClock:
    """The store's clock stands, at a time that fits the Alertmanager's."""
    return FrozenClock(datetime.now(UTC))


@dataclass
class Scene:
    """An Alertmanager that tells us and some humans, and a process of the service."""

    server: MonitoringServer
    bench: Bench
    humans: list[Any] = field(default_factory=list)
    us: list[Any] = field(default_factory=list)

    async def call(self, method: str, path: str, **more: Any) -> Any:
        async with httpx.AsyncClient() as client:
            response = await client.request(method, f"{self.server.url}/api/v2{path}", **more)
        assert response.is_success, response.text
        return response.json() if response.content else None

    async def fire(self, **labels: str) -> None:
        await self._post(labels, datetime.now(UTC), timedelta(minutes=10))

    async def resolve(self, **labels: str) -> None:
        now = datetime.now(UTC)
        await self._post(labels, now - timedelta(minutes=1), timedelta(minutes=1))
        await until(lambda: self._is_gone(LABELS | labels))

    async def _post(self, labels: dict[str, str], since: datetime, lasting: timedelta) -> None:
        times = {"startsAt": since.isoformat(), "endsAt": (since + lasting).isoformat()}
        await self.call("POST", "/alerts", json=[{"labels": LABELS | labels} | times])

    async def _is_gone(self, labels: dict[str, str]) -> bool:
        return all(alert["labels"] != labels for alert in await self.call("GET", "/alerts"))

    async def standing(self) -> list[Any]:
        every = await self.call("GET", "/silences")
        return [silence for silence in every if silence["status"]["state"] != "expired"]

    async def has_silence(self) -> bool:
        return bool(await self.standing())

    async def change_in_flight(self, **labels: str) -> None:
        """Let an alert reach us and the humans, and a mitigation be made about it."""
        await self.fire(**labels)
        await until(lambda: _is(bool(self.us and self.humans)))
        while await self.bench.step():
            pass

    async def alerts(self) -> list[Any]:
        return [(a.labels, a.status) for i in await self.bench.incidents() for a in i.alerts]

    async def asked(self) -> list[Any]:
        """The deliveries that were asked for."""
        page = await self.bench.store.records.deliveries()
        return [d for d in page.items if d.credential == "asked of alertmanager main"]

    async def journal(self) -> list[str]:
        incident = await self.bench.incident()
        return [event.event for event in incident.timeline if event.step == "silence"]

    async def humans_hear(self, within: float = 10) -> None:
        heard = len(self.humans)
        await until(lambda: _is(len(self.humans) > heard), within)

    async def humans_hear_nothing(self) -> None:
        await asyncio.sleep(REPEAT)  # what was on its way
        heard = len(self.humans)
        await asyncio.sleep(3 * REPEAT)
        assert len(self.humans) == heard


async def _is(value: bool) -> bool:
    return value


async def until(condition: Callable[[], Awaitable[bool]], within: float = 10) -> None:
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110 - another process tells us of no event
            await asyncio.sleep(0.05)


CONFIG = """
route:
  receiver: us
  group_by: [alertname]
  group_wait: 0s
  group_interval: 500ms
  repeat_interval: REPEAT
  routes: [{receiver: us, continue: true}, {receiver: humans}]
receivers:
- {name: us, webhook_configs: [{url: "URL/us"}]}
- {name: humans, webhook_configs: [{url: "URL/humans"}]}
"""


Open = Callable[..., contextlib.AbstractAsyncContextManager[Scene]]


@pytest.fixture
def open_scene(start_alertmanager: Start, open_bench: OpenBench) -> Open:
    @contextlib.asynccontextmanager
    async def opened(service: Service | None = None, repeat: str = "1s") -> AsyncIterator[Scene]:
        scenes: list[Scene] = []

        async def receive(request: web.Request) -> web.StreamResponse:
            if not scenes:
                return web.Response(status=503)
            content, scene = await request.read(), scenes[0]
            if request.path == "/us":
                delivery = a_delivery(scene.bench.clock, body=content)
                alerts = parse(content, delivery.received_at).alerts
                await scene.bench.store.inbox.put(delivery, alerts, ())
                await scene.bench.triage()
            (scene.us if request.path == "/us" else scene.humans).append(await request.json())
            return web.Response(status=202)

        async with (
            open_bench(services=[service or a_silent_service()]) as bench,
            serving(receive) as url,
            start_alertmanager(CONFIG.replace("URL", url).replace("REPEAT", repeat)) as server,
        ):
            scenes.append(Scene(server, bench))
            yield scenes[0]

    return opened


@pytest.fixture
async def scene(open_scene: Open) -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


def a_silent_service(**values: Any) -> Service:
    silent = {"alertmanager": "main", "silence": True}
    return a_service(**values).model_copy(update=silent)


@contextlib.asynccontextmanager
async def silencing(
    scene: Scene,
    bounds: SilenceBounds = AT_ONCE,
    settling: timedelta = timedelta(0),
    url: str | None = None,
) -> AsyncIterator[Silencing]:
    async with AlertmanagerSilences(
        url or scene.server.url, name="alertmanager main", settling=settling
    ) as silences:
        yield Silencing("main", silences, scene.bench.store, scene.bench.around, bounds)


# --- while it stands --------------------------------------------------------------------------


async def test_humans_hear_nothing_until_the_mitigation_is_judged_and_then_again(
    scene: Scene,
) -> None:
    await scene.change_in_flight()
    async with silencing(scene) as looking:
        await looking.look()
        (silence,) = await scene.standing()
        await scene.humans_hear_nothing()
        await scene.bench.settle(45)
        await looking.look()
        assert await scene.standing() == []
        await scene.humans_hear()
    matchers = {m["name"]: m["value"] for m in silence["matchers"]}
    assert matchers == LABELS
    assert all(m["isEqual"] and not m["isRegex"] for m in silence["matchers"])
    incident = await scene.bench.incident()
    assert silence["createdBy"] == "remediator"
    assert silence["comment"].startswith(f"remediator/{incident.id} ")
    lasts = datetime.fromisoformat(silence["endsAt"]) - datetime.now(UTC)
    assert timedelta(0) < lasts <= timedelta(seconds=60 + 300)  # the deadline and the margin
    assert incident.mitigations[0].verdict == "better"
    made, ended = await scene.journal()
    assert made.startswith("silenced in Alertmanager until ")
    assert ended == "silence ended"


@pytest.mark.parametrize("mode", [Mode.SHADOW, Mode.OBSERVE, Mode.APPROVE])
async def test_what_changes_nothing_silences_nothing(open_scene: Open, mode: Mode) -> None:
    async with open_scene(a_silent_service(mode=mode)) as scene, silencing(scene) as looking:
        await scene.change_in_flight()
        await looking.look()
        assert await scene.call("GET", "/silences") == []


async def test_service_that_does_not_ask_for_silence_stays_loud(open_scene: Open) -> None:
    async with open_scene(a_service()) as scene, silencing(scene) as looking:
        await scene.change_in_flight()
        await looking.look()
        assert await scene.call("GET", "/silences") == []


async def test_replay_of_a_firing_alert_silences_nothing(scene: Scene) -> None:
    alert = scene.bench.alert()
    await scene.bench.receive(alert, source=Source.REPLAY, replay_of="manual")
    while await scene.bench.step():
        pass
    replayed = await scene.bench.incident()
    assert [(m.state, m.verdict) for m in replayed.mitigations] == [("applied", None)]
    await scene.fire()
    await until(lambda: _is(bool(scene.us)))
    async with silencing(scene) as looking:
        await looking.look()
    assert await scene.call("GET", "/silences") == []


async def test_silence_is_renewed_as_the_same_one_and_not_beyond_its_whole_time(
    open_scene: Open,
) -> None:
    bounds = SilenceBounds(margin=timedelta(0), most=timedelta(seconds=6), busy=timedelta(0))
    brief = {"verification": {"interval": "1s", "hold": "2s", "deadline": "4s"}}
    async with open_scene(a_silent_service(parameters=brief)) as scene:
        await scene.change_in_flight()
        async with silencing(scene, bounds) as looking:
            await looking.look()
            (first,) = await scene.standing()
            began = datetime.fromisoformat(first["startsAt"])

            async def is_renewed() -> bool:
                await looking.look()
                (silence,) = await scene.standing()
                assert silence["id"] == first["id"]
                return bool(silence["endsAt"] > first["endsAt"])

            await until(is_renewed)

            async def is_over() -> bool:
                await looking.look()
                return not await scene.standing()

            await until(is_over)
            await looking.look()
        (only,) = await scene.call("GET", "/silences")
    ended = datetime.fromisoformat(only["endsAt"])
    assert timedelta(seconds=4) < ended - began <= timedelta(seconds=6.5)


async def test_silence_that_would_mute_another_alert_is_not_made_and_not_kept(scene: Scene) -> None:
    await scene.change_in_flight()
    async with silencing(scene) as looking:
        await looking.look()
        assert len(await scene.standing()) == 1
        await scene.call(
            "POST",
            "/alerts",
            json=[{"labels": LABELS | {"pod": "another"}}],
        )
        await looking.look()
        assert await scene.standing() == []
        await looking.look()
        assert await scene.standing() == []


async def test_alert_of_another_alertmanager_is_neither_silenced_nor_called_gone(
    scene: Scene,
) -> None:
    await scene.bench.receive(scene.bench.alert())
    while await scene.bench.step():
        pass
    async with silencing(scene) as looking:
        await looking.look()
        await looking.look()
    assert await scene.call("GET", "/silences") == []
    assert [status for _, status in await scene.alerts()] == [AlertStatus.FIRING]


async def test_running_service_silences_by_itself_and_triages_what_it_asked_for(
    scene: Scene,
) -> None:
    bench = scene.bench
    async with silencing(scene) as looking:
        worker = Worker(
            bench.store,
            bench.around,
            read_again,
            LogNotifier(),
            Watching(Telemetry()),
            Doorbell(),
            silencing=[looking.look],
        )
        running = asyncio.create_task(worker.run())
        try:
            await scene.fire()
            await until(scene.has_silence)
            await scene.resolve()
            await until(lambda: _is_resolved(scene))
        finally:
            worker.stop()
            await running


async def _is_resolved(scene: Scene) -> bool:
    return [status for _, status in await scene.alerts()] == [AlertStatus.RESOLVED]


# --- what is not sent to us -------------------------------------------------------------------


class TestOnPostgres:
    """The same on the other database."""

    @pytest.fixture
    def store_url(self, postgres_database: str) -> str:
        return postgres_database

    async def test_resolve_during_the_silence_is_noticed_there_too(self, scene: Scene) -> None:
        await _resolve_is_noticed(scene)


async def test_resolve_during_the_silence_is_noticed_although_it_is_never_sent(
    scene: Scene,
) -> None:
    await _resolve_is_noticed(scene)


async def _resolve_is_noticed(scene: Scene) -> None:
    await scene.change_in_flight()
    async with silencing(scene) as looking:
        await looking.look()
        await scene.resolve()
        await scene.humans_hear_nothing()
        assert [status for _, status in await scene.alerts()] == [AlertStatus.FIRING]
        await looking.look()
        await scene.bench.triage()
        assert [status for _, status in await scene.alerts()] == [AlertStatus.RESOLVED]
        (asked,) = await scene.asked()
        stored = await scene.bench.store.records.delivery(asked.id)
        assert stored is not None
        (alert,) = parse(stored.body, stored.received_at).alerts
        assert (alert.status, alert.labels) == (AlertStatus.RESOLVED, LABELS)
        await looking.look()
        await looking.look()
        assert await scene.standing() == []
        assert len(await scene.asked()) == 1
    assert all(body["status"] == "firing" for body in scene.us)


async def test_silence_of_an_alert_that_resolved_ends_at_once(scene: Scene) -> None:
    await scene.change_in_flight()
    async with silencing(scene) as looking:
        await looking.look()
        await scene.resolve()
        await looking.look()
        assert await scene.standing() == []


async def test_new_start_after_a_silenced_resolve_is_noticed_before_it_is_sent(
    open_scene: Open,
) -> None:
    async with open_scene(repeat="1h") as scene, silencing(scene) as looking:
        await scene.change_in_flight()
        await looking.look()
        heard = len(scene.us)
        await scene.resolve()
        await asyncio.sleep(2 * REPEAT)  # the group is told of it, and drops it
        await looking.look()
        await scene.bench.triage()
        await scene.fire()
        await asyncio.sleep(2 * REPEAT)
        assert len(scene.us) == heard  # for the Alertmanager it is a repetition
        await looking.look()
        await scene.bench.triage()
        assert AlertStatus.FIRING in [status for _, status in await scene.alerts()]
        for _ in range(3):
            await looking.look()
        assert len(await scene.asked()) == 2


async def test_silence_ends_by_itself_when_we_die_and_the_resolve_is_noticed_after(
    open_scene: Open,
) -> None:
    bounds = SilenceBounds(margin=timedelta(0), busy=timedelta(0), idle=timedelta(0))
    brief = {"verification": {"interval": "1s", "hold": "2s", "deadline": "4s"}}
    async with open_scene(a_silent_service(parameters=brief)) as scene:
        await scene.change_in_flight()
        async with silencing(scene, bounds) as looking:
            await looking.look()
            assert len(await scene.standing()) == 1
        await scene.fire(pod="unrelated")
        await scene.resolve()  # from here on nobody looks
        await until(lambda: _is_loud(scene))
        await scene.humans_hear()
        assert (LABELS, AlertStatus.FIRING) in await scene.alerts()
        async with silencing(scene, bounds) as successor:
            await successor.look()
            await scene.bench.triage()
        assert (LABELS, AlertStatus.RESOLVED) in await scene.alerts()


async def _is_loud(scene: Scene) -> bool:
    return not await scene.has_silence()


async def test_alertmanager_that_just_started_concludes_nothing(scene: Scene) -> None:
    await scene.change_in_flight()
    async with silencing(scene) as looking:
        await looking.look()
    await scene.resolve()
    with capture_logs() as logs:
        async with silencing(scene, settling=timedelta(minutes=5)) as looking:
            await looking.look()
            await looking.look()
    assert await scene.asked() == []
    (said,) = [line for line in logs if line["log_level"] == "warning"]
    assert "may not know all alerts yet" in said["reason"]


# --- several, and others ----------------------------------------------------------------------


async def test_two_reconcilers_at_once_end_with_one_silence_and_keep_it(scene: Scene) -> None:
    await scene.change_in_flight()
    async with silencing(scene) as one, silencing(scene) as other:
        await asyncio.gather(one.look(), other.look())
        await asyncio.gather(one.look(), other.look())
        (kept,) = await scene.standing()
        for _ in range(3):
            await asyncio.gather(one.look(), other.look())
            assert [s["id"] for s in await scene.standing()] == [kept["id"]]
        await scene.bench.settle(45)
        await asyncio.gather(one.look(), other.look())
        assert await scene.standing() == []


async def test_second_silence_of_one_alert_is_ended(scene: Scene) -> None:
    await scene.change_in_flight()
    incident = of_incident(await scene.bench.incident())
    async with silencing(scene) as looking:
        await looking.look()
        (kept,) = await scene.standing()
        async with AlertmanagerSilences(scene.server.url) as silences:
            await silences.mute(incident, LABELS, datetime.now(UTC) + timedelta(minutes=2))
        assert len(await scene.standing()) == 2
        await looking.look()
        assert [s["id"] for s in await scene.standing()] == [kept["id"]]


@pytest.mark.parametrize(
    ("creator", "comment"),
    [
        ("ann", "remediator/INCIDENT is at work on this alert"),
        ("remediator", "planned work"),
        ("remediator", "remediator/inc-of-another-installation is at work on this alert"),
    ],
)
async def test_silences_of_others_are_never_touched(
    scene: Scene, creator: str, comment: str
) -> None:
    await scene.change_in_flight()
    incident = await scene.bench.incident()
    matcher = {"name": "alertname", "value": "Other", "isRegex": False, "isEqual": True}
    now = datetime.now(UTC)
    foreign = {
        "matchers": [matcher],
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(hours=3)).isoformat(),
        "createdBy": creator,
        "comment": comment.replace("INCIDENT", incident.id),
    }
    made = await scene.call("POST", "/silences", json=foreign)
    async with silencing(scene) as looking:
        await looking.look()
        await scene.bench.settle(45)
        await looking.look()
    (left,) = await scene.standing()
    assert left["id"] == made["silenceID"]
    assert left["status"]["state"] == "active"


# --- an Alertmanager that does not answer, or says no -----------------------------------------


async def test_alertmanager_that_is_away_holds_nothing_up_and_is_told_of_once(
    scene: Scene,
) -> None:
    await scene.change_in_flight()
    async with silencing(scene) as looking:
        scene.server.process.kill()
        await scene.server.process.wait()
        with capture_logs() as logs:
            for _ in range(3):
                await looking.look()
    assert [line["event"] for line in logs] == ["silences_not_kept"]
    await scene.bench.settle(45)
    assert (await scene.bench.incident()).mitigations[0].verdict == "better"


Mangle = Callable[[web.Request, bytes], bool]


@contextlib.asynccontextmanager
async def between(
    scene: Scene, *, refuse: Mangle = lambda *_: False, lose: Mangle = lambda *_: False
) -> AsyncIterator[str]:
    """Stand before the Alertmanager: refuse a call, or carry it out and lose the answer."""
    async with httpx.AsyncClient(base_url=scene.server.url) as client:

        async def forward(request: web.Request) -> web.StreamResponse:
            content = await request.read()
            if refuse(request, content):
                return web.Response(status=400)
            kind = {"Content-Type": "application/json"}
            path = str(request.rel_url)
            answer = await client.request(request.method, path, content=content, headers=kind)
            if lose(request, content):
                return web.Response(status=504)
            return web.Response(status=answer.status_code, body=answer.content)

        async with serving(forward) as url:
            yield url


async def test_lost_answer_to_a_new_silence_makes_no_second_one(scene: Scene) -> None:
    await scene.change_in_flight()
    async with (
        between(scene, lose=lambda request, _: request.method == "POST") as url,
        silencing(scene, url=url) as looking,
    ):
        for _ in range(3):
            await looking.look()
        assert len(await scene.call("GET", "/silences")) == 1


async def test_lost_answer_to_an_end_is_made_good_by_the_next_look(scene: Scene) -> None:
    await scene.change_in_flight()
    lost: list[bytes] = []

    def lose_the_first(request: web.Request, content: bytes) -> bool:
        if request.method == "DELETE":
            lost.append(content)
        return request.method == "DELETE" and len(lost) == 1

    async with between(scene, lose=lose_the_first) as url, silencing(scene, url=url) as looking:
        await looking.look()
        await scene.resolve()
        await scene.bench.settle(45)
        for _ in range(3):
            await looking.look()
        await scene.bench.triage()
    assert await scene.standing() == []
    assert [status for _, status in await scene.alerts()] == [AlertStatus.RESOLVED]


async def test_one_refused_silence_does_not_keep_the_others_from_being_made(scene: Scene) -> None:
    await scene.fire(pod="a")
    await scene.fire(pod="b")
    await until(lambda: _has_alerts(scene, 2))
    while await scene.bench.step():
        pass
    async with (
        between(scene, refuse=lambda _, content: b'"value":"a"' in content) as url,
        silencing(scene, url=url) as looking,
    ):
        with capture_logs() as logs:
            await looking.look()
    (made,) = await scene.standing()
    assert {m["value"] for m in made["matchers"]} == {*LABELS.values(), "b"}
    assert [line["event"] for line in logs] == ["silences_not_kept"]


async def _has_alerts(scene: Scene, count: int) -> bool:
    return len(await scene.alerts()) == count


async def test_probe_tells_an_alertmanager_from_something_else(scene: Scene) -> None:
    async def nothing(_: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "success"})

    async with AlertmanagerSilences(scene.server.url) as silences:
        assert (await silences.probe()).state is SenseState.OK
    async with serving(nothing) as url, AlertmanagerSilences(url) as other:
        sense = await other.probe()
        with pytest.raises(BackendUnavailable, match="as an Alertmanager does"):
            await other.firing()
    assert sense.state is SenseState.IMPAIRED


async def test_what_restarts_while_it_is_asked_is_not_taken_for_one_where_nothing_fires() -> None:
    started = datetime.now(UTC) - timedelta(hours=1)

    async def restarting(request: web.Request) -> web.StreamResponse:
        nonlocal started
        if request.path != "/api/v2/status":
            started = datetime.now(UTC)
            return web.json_response([])
        return web.json_response({"uptime": started.isoformat()})

    async with serving(restarting) as url, AlertmanagerSilences(url) as silences:
        with pytest.raises(BackendUnavailable, match="may not know all alerts yet"):
            await silences.firing()


async def test_check_says_whether_the_alertmanager_answers(
    start_alertmanager: Start, tmp_path: Path, unused_tcp_port: int
) -> None:
    async with start_alertmanager("{route: {receiver: no}, receivers: [{name: no}]}") as server:
        (tmp_path / "remediator.yaml").write_text(
            f"""
backends:
  alertmanager:
    main: {{url: "{server.url}"}}
    away: {{url: "http://127.0.0.1:{unused_tcp_port}"}}
    shut: {{url: "{server.url}", token_file: missing}}
"""
        )
        settings = load_settings(None, {"HOME": str(tmp_path)}, tmp_path)
        report = await check(settings, {})
    levels = {subject: (level, said) for level, subject, said in report.lines}
    assert levels["alertmanager main"][0] == "ok"
    level, said = levels["alertmanager away"]
    assert (level, "cannot be reached (ConnectError)" in said) == ("error", True)
    assert "missing cannot be read" in levels["alertmanager shut"][1]


async def test_alert_without_labels_is_never_silenced() -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    async with AlertmanagerSilences("http://127.0.0.1:9") as silences:
        for labels in ({}, {"empty": ""}):
            with pytest.raises(BackendRefused, match="without labels"):
                await silences.mute(IncidentId("inc"), labels, soon)


@pytest.mark.parametrize(
    ("given", "header"),
    [({"token": "t0p"}, "Bearer t0p"), ({"basic": "ann:b:c"}, "Basic YW5uOmI6Yw==")],
)
async def test_credentials_go_with_every_call_and_redirects_are_not_followed(
    given: dict[str, Any], header: str
) -> None:
    seen: list[tuple[str, str | None]] = []

    async def redirect(request: web.Request) -> web.StreamResponse:
        seen.append((request.method, request.headers.get("Authorization")))
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"})

    now = datetime.now(UTC)
    silence = Silence(
        id="s/../x",
        incident_id=IncidentId("inc"),
        labels=LABELS,
        starts_at=now,
        ends_at=now + timedelta(minutes=1),
        ended=False,
    )
    async with serving(redirect) as url, AlertmanagerSilences(url, **given) as silences:
        with pytest.raises(BackendRefused):
            await silences.silences()
        with pytest.raises(BackendUnavailable):
            await silences.mute(IncidentId("inc"), LABELS, now + timedelta(minutes=1))
        with pytest.raises(BackendRefused, match="redirects are not followed"):
            await silences.end(silence.model_copy(update={"id": "plain"}))
        with pytest.raises(BackendRefused):
            await silences.end(silence)
    assert seen == [("GET", header), ("POST", header), ("DELETE", header)]
