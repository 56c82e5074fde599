"""The webhooks' answers, and the socket's bounds, over a real socket."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from remediator.api.auth import Access
from remediator.api.body import EXCERPT, LARGEST_AT_ONCE, BodyLimits
from remediator.api.listener import ConnectionLimits, listening
from remediator.api.routing import STOPPING, Watch, build_app
from remediator.intake.ratelimit import Turnstile
from remediator.intake.reader import Reader
from remediator.intake.webhooks import Door, health_routes, webhook_routes
from remediator.model.access import Credential, Role
from remediator.model.alert import Alert, DeadLetter, Delivery, Source
from remediator.model.base import DeliveryId, IncidentId
from remediator.model.catalog import Catalogue
from remediator.model.errors import StoreUnavailable
from remediator.service.inbox import foreign_to
from tests.postgres_fixtures import eventually
from tests.store_fixtures import a_service

SAMPLES = Path(__file__).parent.parent / "samples"
GROUP = (SAMPLES / "am_firing_group3.json").read_bytes()
PATH = "/webhooks/alertmanager"
JSON = {"Content-Type": "application/json"}
INGEST = {"Authorization": "Bearer ingest-token"}
BODIES = BodyLimits(max_body=1_000_000, timeout=0.3)
CONNECTIONS = ConnectionLimits(header_timeout=0.3, stop_within=5)
HEADERS = "Host: x\r\nContent-Type: application/json\r\nAuthorization: Bearer ingest-token\r\n"
CREDENTIALS = (
    Credential("alertmanager", Role.INGEST, token="ingest-token"),
    Credential("grafana", Role.INGEST, user="graf", password="pass"),
    Credential("ann", Role.OPERATOR, token="operator-token"),
    Credential("root", Role.ADMIN, token="admin-token"),
)


@dataclass
class Recorder:
    """An inbox that keeps what it is given, and a place for the metrics."""

    taken: list[tuple[Delivery, Sequence[Alert], Sequence[DeadLetter]]] = field(
        default_factory=list
    )
    failure: Exception | None = None
    overload: str | None = None
    waits: dict[str, float] = field(default_factory=dict)
    """Seconds until a credential may post again."""
    not_ready: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    answered: list[tuple[str, str, int]] = field(default_factory=list)
    hold: asyncio.Event | None = None
    held: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: int = 0
    most_at_once: int = 0
    """Deliveries that were being stored at the same time."""

    async def put(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> DeliveryId:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)  # as a store that has to be waited for
        self.at_once -= 1
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        self.taken.append((delivery, alerts, dead))
        return delivery.id

    async def replay(
        self, delivery: Delivery, alerts: Sequence[Alert], dead: Sequence[DeadLetter]
    ) -> list[IncidentId]:
        raise AssertionError("a webhook is no replay")

    async def wait(self, credential: str) -> float:
        return self.waits.get(credential, 0.0)

    async def ready(self) -> list[str]:
        if self.failure is not None:
            raise self.failure
        return self.not_ready


@dataclass
class Server:
    """A running door with its recorder."""

    recorder: Recorder
    app: web.Application
    host: str
    port: int
    client: httpx.AsyncClient

    async def post(self, content: bytes, path: str = PATH, **headers: str) -> httpx.Response:
        return await self.client.post(path, content=content, headers=INGEST | headers)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Wire]:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield Wire(reader, writer)
        finally:
            writer.close()


@dataclass
class Wire:
    """A raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, text: str) -> None:
        self.writer.write(text.encode())

    async def status(self) -> int:
        """Read the head of one answer."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        length = [h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")]
        if length:
            await self.reader.readexactly(int(length[0].split(b":")[1]))
        return int(head.split(b" ")[1])

    async def closed(self, within: float = 5) -> bytes:
        """Read until the other side closes."""
        try:
            return await asyncio.wait_for(self.reader.read(), within)
        except ConnectionResetError:
            return b""


@asynccontextmanager
async def serving(
    recorder: Recorder | None = None,
    bodies: BodyLimits = BODIES,
    connections: ConnectionLimits = CONNECTIONS,
    reader: Reader | None = None,
) -> AsyncIterator[Server]:
    recorder = recorder or Recorder()
    turnstile = Turnstile(recorder.wait, recorder.refused.append)
    reader = reader or Reader()
    door = Door(recorder, lambda: recorder.overload, bodies, turnstile, reader)
    routes = (
        *webhook_routes(door),
        *health_routes(recorder.ready, lambda: (b"up 1\n", "text/plain; version=0.0.4")),
    )
    watch = Watch(
        recorder.refused.append,
        lambda method, path, status, _: recorder.answered.append((method, path, status)),
    )
    app = build_app(routes, Access(CREDENTIALS), watch)
    async with (
        listening(app, "127.0.0.1", 0, connections) as (host, port),
        httpx.AsyncClient(
            base_url=f"http://{host}:{port}",
            headers=JSON,
            trust_env=False,
            verify=False,
        ) as client,
    ):
        yield Server(recorder, app, host, port, client)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


@pytest.fixture
def logs() -> Iterator[Any]:
    with capture_logs() as captured:
        yield captured


# --- taken --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [PATH, "/", "/alerts", "/api/v1/alerts"])
async def test_a_webhook_is_stored_whole_and_then_acknowledged(server: Server, path: str) -> None:
    answer = await server.post(GROUP, path)
    ((delivery, alerts, dead),) = server.recorder.taken
    assert answer.status_code == 202
    assert answer.json() == {"delivery": delivery.id, "alerts": 3, "dead": 0}
    assert answer.headers["Content-Type"].startswith("application/json")
    assert (delivery.body, delivery.size) == (GROUP, len(GROUP))
    assert delivery.digest == hashlib.sha256(GROUP).hexdigest()
    assert (delivery.source, delivery.credential) == (Source.ALERTMANAGER, "alertmanager")
    assert delivery.received_at.tzinfo is not None
    assert abs((datetime.now(UTC) - delivery.received_at).total_seconds()) < 60
    assert len(alerts) == 3
    assert dead == ()


async def test_good_alerts_beside_bad_ones_are_taken(server: Server) -> None:
    body = json.loads(GROUP)
    body["alerts"][1]["labels"]["replicas"] = 3
    answer = await server.post(json.dumps(body).encode())
    assert answer.status_code == 202
    assert answer.json() | {"delivery": ""} == {"delivery": "", "alerts": 2, "dead": 1}
    ((_, alerts, (letter,)),) = server.recorder.taken
    assert len(alerts) == 2
    assert letter.position == 1
    assert "replicas" in letter.reason


async def test_an_empty_list_of_alerts_is_taken(server: Server) -> None:
    answer = await server.post(b'{"alerts": []}')
    assert answer.status_code == 202
    assert answer.json() | {"delivery": ""} == {"delivery": "", "alerts": 0, "dead": 0}
    assert len(server.recorder.taken) == 1


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "nonsense", ""]
)
async def test_a_body_that_is_not_called_json_is_415(server: Server, kind: str) -> None:
    answer = await server.post(GROUP, **{"Content-Type": kind})
    assert answer.status_code == 415
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert "application/json" in answer.json()["detail"]
    assert server.recorder.taken == []


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_with_a_charset_is_taken(server: Server, kind: str) -> None:
    assert (await server.post(GROUP, **{"Content-Type": kind})).status_code == 202


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "identity", "GZIP"])
async def test_a_compressed_body_is_stored_inflated(server: Server, encoding: str) -> None:
    packed = {"deflate": zlib.compress(GROUP), "identity": GROUP}.get(
        encoding, gzip.compress(GROUP)
    )
    answer = await server.post(packed, **{"Content-Encoding": encoding})
    assert answer.status_code == 202
    assert server.recorder.taken[0][0].body == GROUP


async def test_a_chunked_body_is_taken(server: Server) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield GROUP[:100]
        yield GROUP[100:]

    answer = await server.client.post(PATH, content=pieces(), headers=INGEST)
    assert answer.status_code == 202


async def test_many_posts_at_once_are_all_taken(server: Server) -> None:
    answers = await asyncio.gather(*(server.post(GROUP) for _ in range(100)))
    assert {a.status_code for a in answers} == {202}
    assert {a.json()["delivery"] for a in answers} == {d.id for d, _, _ in server.recorder.taken}


async def test_alerts_that_the_sender_left_out_are_logged(server: Server, logs: Any) -> None:
    await server.post(b'{"alerts": [], "truncatedAlerts": 7}')
    assert [e["left_out"] for e in logs if e["event"] == "delivery_truncated"] == [7]


# --- not usable ---------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"alerts": 3}', b"\0\xff"])
async def test_an_unusable_body_is_400_and_a_dead_letter(server: Server, body: bytes) -> None:
    answer = await server.post(body)
    ((delivery, alerts, (letter,)),) = server.recorder.taken
    assert answer.status_code == 400
    assert delivery.body == body
    assert alerts == ()
    assert letter.position is None
    assert letter.reason == answer.json()["detail"]
    assert "\0" not in letter.excerpt


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("br", GROUP),
        ("gzip, gzip", GROUP),
        ("gzip", GROUP),
        ("gzip", gzip.compress(GROUP)[:-9]),
        ("gzip", gzip.compress(GROUP) + b"more"),
    ],
)
async def test_a_damaged_or_unknown_encoding_is_400_and_a_dead_letter(
    server: Server, encoding: str, body: bytes
) -> None:
    answer = await server.post(body, **{"Content-Encoding": encoding})
    assert answer.status_code == 400
    assert len(server.recorder.taken[0][2]) == 1


async def test_a_damaged_transfer_encoding_is_400(server: Server) -> None:
    async with server.connected() as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\n{HEADERS}Transfer-Encoding: chunked\r\n\r\n")
        await wire.writer.drain()
        wire.send("5\r\nhello\r\nxx\r\n")
        assert await wire.status() == 400


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_413_and_its_beginning_kept(
    server: Server, *, chunked: bool
) -> None:
    body = b"x" * 3_000_000

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    content: Any = pieces() if chunked else body
    answer = await server.client.post(PATH, content=content, headers=INGEST)
    ((delivery, alerts, (letter,)),) = server.recorder.taken
    assert answer.status_code == 413
    assert "max_body" in answer.json()["detail"]
    assert delivery.size == len(body)
    assert delivery.digest == hashlib.sha256(body).hexdigest()
    assert delivery.body == body[:EXCERPT]
    assert len(letter.excerpt) == EXCERPT
    assert alerts == ()


async def test_a_body_with_too_many_alerts_is_413_and_only_its_beginning_is_kept() -> None:
    alerts = [{**json.loads(GROUP)["alerts"][0], "annotations": {"a": "x" * 100_000}}] * 3
    body = json.dumps({"alerts": alerts}).encode()
    async with serving(reader=Reader(max_alerts=2)) as server:
        answer = await server.post(body)
        ((delivery, alerts_taken, (letter,)),) = server.recorder.taken
    assert answer.status_code == 413
    assert "max_alerts (2)" in answer.json()["detail"]
    assert (delivery.size, delivery.body, alerts_taken) == (len(body), body[:EXCERPT], ())
    assert "it has 3" in letter.reason


async def test_large_bodies_are_read_and_stored_one_after_the_other() -> None:
    alert = {**json.loads(GROUP)["alerts"][0], "annotations": {"a": "x" * 60_000}}
    body = json.dumps({"alerts": [alert] * 10}).encode()
    recorder = Recorder()
    async with serving(recorder, reader=Reader()) as server:
        answers = await asyncio.gather(*(server.post(body) for _ in range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert recorder.most_at_once == 1


async def test_all_large_bodies_together_have_a_bound_and_small_ones_are_taken_beside_them() -> (
    None
):
    limits = BodyLimits(max_body=300_000, timeout=5)
    alert = {**json.loads(GROUP)["alerts"][0], "annotations": {"a": "x" * 60_000}}
    body = json.dumps({"alerts": [alert] * 4}).encode()
    half = f"POST {PATH} HTTP/1.1\r\n{HEADERS}Content-Length: {len(body)}\r\n\r\n"
    count = LARGEST_AT_ONCE * limits.max_body // (len(body) - 10 - EXCERPT)
    async with serving(bodies=limits) as server, AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(server.connected()) for _ in range(count)]
        for wire in wires:  # all but the end
            wire.writer.write(half.encode() + body[:-10])
            await wire.writer.drain()
        await eventually(_is_held(limits, count * (len(body) - 10 - EXCERPT)), "all of it is held")
        crowded = await server.post(body)
        assert crowded.status_code == 503
        assert int(crowded.headers["Retry-After"]) > 0
        assert (await server.post(GROUP)).status_code == 202
        for wire in wires:
            wire.writer.write(body[-10:])
            assert await wire.status() == 202
        await eventually(_is_held(limits, 0), "nothing is held")
        assert (await server.post(body)).status_code == 202


def _is_held(limits: BodyLimits, size: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return limits.room.held == size

    return look


async def test_an_alert_of_a_system_that_its_sender_does_not_speak_for_is_a_dead_letter() -> None:
    shop = a_service()
    bank = shop.model_copy(update={"system": "bank", "match": {"system": "bank"}})
    catalogue = Catalogue(services=(shop, bank), limits=shop.limits)
    reader = Reader(foreign=foreign_to(catalogue, {"alertmanager": frozenset({"shop"})}))
    (known,) = json.loads(GROUP)["alerts"][:1]
    alerts = [
        {**known, "labels": {"alertname": "X", **labels}}
        for labels in ({"system": "shop", "service": "orders"}, {"system": "bank"}, {"a": "b"})
    ]
    body = json.dumps({"alerts": alerts}).encode()
    async with serving(reader=reader) as server:
        answer = await server.post(body)
        ((delivery, taken, (letter,)),) = server.recorder.taken
    assert (answer.status_code, answer.json()["dead"]) == (202, 1)
    assert [alert.labels.get("system") for alert in taken] == ["shop", None]
    assert letter.position == 1
    assert "alertmanager speaks for shop, and not for bank" in letter.reason
    assert (await reader.again(delivery)).alerts == taken  # also after a restart


async def test_twenty_megabytes_are_too_large_by_default() -> None:
    async with serving(bodies=BodyLimits()) as server:
        answer = await server.post(b" " * 20_000_000)
        assert answer.status_code == 413
        assert server.recorder.taken[0][0].size == 20_000_000
        padded = GROUP + b" " * (16 * 1024 * 1024 - len(GROUP))
        assert (await server.post(padded)).status_code == 202


async def test_an_endless_body_is_cut_off(server: Server) -> None:
    async with server.connected() as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\n{HEADERS}Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
        for _ in range(45):
            wire.writer.write(chunk)
            await wire.writer.drain()
        assert await wire.status() == 413
        assert await wire.closed() == b""
    assert 4_000_000 < server.recorder.taken[0][0].size < 4_500_000


async def test_a_bomb_does_not_pass_max_body(server: Server) -> None:
    bomb = gzip.compress(b"x" * 300_000_000)
    answer = await server.post(bomb, **{"Content-Encoding": "gzip"})
    ((delivery, _, _),) = server.recorder.taken
    assert answer.status_code == 413
    assert delivery.size < 5_000_000
    assert len(delivery.body) == EXCERPT


async def test_a_sender_that_goes_away_leaves_no_trace(server: Server) -> None:
    async with server.connected() as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\n{HEADERS}Content-Length: 100\r\n\r\n{{")
        await wire.writer.drain()
    assert (await server.post(GROUP)).status_code == 202
    assert len(server.recorder.taken) == 1


# --- not let in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "no_credential"),
        ({"Authorization": "Bearer wrong"}, "unknown_credential"),
        ({"Authorization": "Basic Z3JhZjp3cm9uZw=="}, "unknown_credential"),
    ],
)
async def test_an_unknown_caller_is_401_and_nothing_is_stored(
    server: Server, headers: dict[str, str], reason: str
) -> None:
    answer = await server.client.post(PATH, content=GROUP, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="remediator"'
    assert server.recorder.taken == []
    assert server.recorder.refused == [reason]


async def test_a_role_that_may_not_post_alerts_is_403(server: Server) -> None:
    headers = {"Authorization": "Bearer operator-token"}
    answer = await server.client.post(PATH, content=GROUP, headers=headers)
    assert answer.status_code == 403
    assert "'ann'" in answer.json()["detail"]
    assert server.recorder.taken == []
    assert server.recorder.refused == ["not_allowed"]


async def test_basic_and_admin_may_post(server: Server) -> None:
    basic = await server.client.post(PATH, content=GROUP, auth=("graf", "pass"))
    as_password = await server.client.post(PATH, content=GROUP, auth=("x", "admin-token"))
    assert (basic.status_code, as_password.status_code) == (202, 202)


async def test_a_caller_is_refused_before_the_body_is_sent(server: Server) -> None:
    async with server.connected() as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert await wire.status() == 401
    async with server.connected() as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n")
        wire.send("Content-Length: 1000\r\n\r\n")
        assert await wire.status() == 401


async def test_a_body_that_waits_for_permission_is_asked_for(server: Server) -> None:
    async with server.connected() as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\n{HEADERS}Expect: 100-continue\r\n")
        wire.send(f"Content-Length: {len(GROUP)}\r\n\r\n")
        assert await wire.status() == 100
        wire.writer.write(GROUP)
        assert await wire.status() == 202


async def test_refusals_are_logged_once_a_second_and_counted_all(server: Server, logs: Any) -> None:
    for _ in range(20):
        await server.client.post(PATH, headers={"Authorization": "Bearer guessed-secret"})
    said = [e for e in logs if e["event"] == "request_refused"]
    assert 1 <= len(said) < 10
    assert said[0]["reason"] == "unknown_credential"
    assert "guessed-secret" not in str(logs)
    assert server.recorder.refused == ["unknown_credential"] * 20


# --- come again ---------------------------------------------------------------------------------


async def test_a_store_that_is_down_is_503_for_good_and_for_bad_bodies(server: Server) -> None:
    server.recorder.failure = StoreUnavailable("disk full at /secret/path")
    for body in (GROUP, b"nonsense", b"x" * 2_000_000):
        answer = await server.post(body)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert "secret" not in answer.text


async def test_shedding_is_503_before_the_body_is_read(server: Server) -> None:
    server.recorder.overload = "10000 deliveries wait"
    async with server.connected() as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\n{HEADERS}Content-Length: 1000\r\n\r\n")
        assert await wire.status() == 503
    answer = await server.post(GROUP)
    assert "10000 deliveries wait" in answer.json()["detail"]
    assert answer.headers["Retry-After"]
    assert server.recorder.taken == []


async def test_who_posts_too_often_is_sent_away_and_the_others_are_not(
    server: Server, logs: Any
) -> None:
    server.recorder.waits["alertmanager"] = 12.3
    answers = [await server.post(GROUP) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.headers["Retry-After"] for answer in answers} == {"13"}
    assert server.recorder.taken == []
    assert server.recorder.refused == ["over_limit"] * 3
    assert [line["event"] for line in logs].count("delivery_over_limit") < 3
    basic = {"Authorization": "Basic " + base64.b64encode(b"graf:pass").decode()}
    assert (await server.post(GROUP, **basic)).status_code == 202


async def test_an_error_of_ours_is_500_logged_once_and_tells_nothing(
    server: Server, logs: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    server.recorder.failure = RuntimeError("internal-detail")
    answer = await server.post(GROUP)
    assert answer.status_code == 500
    assert "internal-detail" not in answer.text
    assert [e["event"] for e in logs if e["log_level"] == "error"] == ["request_failed"]
    assert "Traceback" not in capfd.readouterr().err


# --- slow and many ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start", ["", "POST / HTTP/1.1\r\nHost:", "POST / HTTP/1.1\r\nHost: x\r\n"]
)
async def test_headers_that_do_not_arrive_close_the_connection(server: Server, start: str) -> None:
    async with server.connected() as wire:
        wire.send(start)
        assert await wire.closed(within=2) == b""


async def test_dripping_headers_do_not_keep_the_connection(server: Server) -> None:
    async with server.connected() as wire:
        ending = asyncio.create_task(wire.closed(within=2))
        for letter in "POST / HTTP/1.1\r\nX-Long: " + "y" * 200:
            if ending.done():
                break
            wire.send(letter)
            await asyncio.sleep(0.02)
        assert await ending == b""


async def test_slow_headers_of_a_second_request_close_the_connection(server: Server) -> None:
    async with server.connected() as wire:
        wire.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await wire.status() == 200
        wire.send("GET /healthz HTTP/1.1\r\nHo")
        assert await wire.closed(within=2) == b""


async def test_half_a_second_request_sent_with_a_slow_first_one_closes_the_connection() -> None:
    recorder = Recorder(hold=asyncio.Event())
    async with serving(recorder) as server, server.connected() as wire:
        assert recorder.hold is not None
        wire.send(f"POST / HTTP/1.1\r\n{HEADERS}Content-Length: {len(GROUP)}\r\n\r\n")
        wire.writer.write(GROUP)
        await asyncio.wait_for(recorder.held.wait(), 5)
        wire.send("GET /healthz HTTP/1.1\r\nHo")
        await wire.writer.drain()
        await asyncio.sleep(0.05)  # so that it arrives while the first one is being handled
        recorder.hold.set()
        assert await wire.status() == 202
        assert await wire.closed(within=2) == b""


async def test_an_idle_connection_is_kept_longer_than_headers_may_take(server: Server) -> None:
    async with server.connected() as wire:
        for _ in range(3):
            wire.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await wire.status() == 200
            await asyncio.sleep(0.4)


async def test_pipelined_requests_are_all_answered(server: Server) -> None:
    async with server.connected() as wire:
        wire.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        assert [await wire.status() for _ in range(5)] == [200] * 5


async def test_a_slow_body_is_408(server: Server) -> None:
    async with server.connected() as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\n{HEADERS}Content-Length: 100\r\n\r\n{{")
        assert await wire.status() == 408
        assert await wire.closed() == b""
    assert server.recorder.taken == []


async def test_a_dripping_body_is_408(server: Server) -> None:
    async with server.connected() as wire:
        wire.send(f"POST {PATH} HTTP/1.1\r\n{HEADERS}Content-Length: 1000\r\n\r\n")
        answer = asyncio.create_task(wire.status())
        for _ in range(100):
            if answer.done():
                break
            wire.send(" ")
            await asyncio.sleep(0.02)
        assert await answer == 408


async def test_a_handler_may_take_longer_than_headers_or_body() -> None:
    recorder = Recorder(hold=asyncio.Event())
    async with serving(recorder) as server:
        assert recorder.hold is not None
        post = asyncio.create_task(server.post(GROUP))
        await asyncio.sleep(0.8)
        assert not post.done()
        recorder.hold.set()
        assert (await post).status_code == 202


# --- stopping -----------------------------------------------------------------------------------


async def test_a_request_under_way_is_finished_and_new_ones_are_not_accepted() -> None:
    recorder = Recorder(hold=asyncio.Event())
    assert recorder.hold is not None
    running = serving(recorder)
    server = await running.__aenter__()
    async with server.connected() as wire:
        wire.send(f"POST / HTTP/1.1\r\n{HEADERS}Content-Length: {len(GROUP)}\r\n\r\n")
        wire.writer.write(GROUP)
        await asyncio.wait_for(recorder.held.wait(), 5)
        stopping = asyncio.create_task(running.__aexit__(None, None, None))
        async with asyncio.timeout(5):
            await server.app[STOPPING].wait()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(server.host, server.port)
        recorder.hold.set()
        assert await wire.status() == 202
    await asyncio.wait_for(stopping, 5)
    assert len(recorder.taken) == 1


async def test_a_request_that_never_ends_does_not_hold_up_the_stop() -> None:
    recorder = Recorder(hold=asyncio.Event())
    async with asyncio.timeout(5):
        async with serving(recorder, connections=ConnectionLimits(stop_within=0.2)) as server:
            post = asyncio.create_task(server.post(GROUP))
            await recorder.held.wait()
        with pytest.raises(httpx.TransportError):
            await post


async def test_while_stopping_new_work_is_503_and_nothing_is_ready(server: Server) -> None:
    server.app[STOPPING].set()
    answer = await server.post(GROUP)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert (await server.client.get("/readyz")).status_code == 503
    assert (await server.client.get("/healthz")).status_code == 200
    assert server.recorder.taken == []


# --- open routes, unknown ones ------------------------------------------------------------------


async def test_health_is_open_and_readiness_names_its_problems(server: Server) -> None:
    assert (await server.client.get("/healthz")).status_code == 200
    assert (await server.client.get("/readyz")).status_code == 200
    assert (await server.client.head("/healthz")).status_code == 200
    server.recorder.not_ready = ["the store does not answer"]
    answer = await server.client.get("/readyz")
    assert answer.status_code == 503
    assert "the store does not answer" in answer.text
    server.recorder.failure = RuntimeError("boom")
    assert (await server.client.get("/readyz")).status_code == 503


async def test_metrics_are_open(server: Server) -> None:
    answer = await server.client.get("/metrics")
    assert (answer.status_code, answer.text) == (200, "up 1\n")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"


async def test_the_metrics_are_rendered_once_for_many_who_ask_at_once() -> None:
    rendered: list[int] = []

    def render() -> tuple[bytes, str]:
        rendered.append(1)
        return b"up 1\n", "text/plain"

    async def ready() -> list[str]:
        return []

    show = next(route for route in health_routes(ready, render) if route.path == "/metrics")
    call: Any = None
    answers: Any = await asyncio.gather(*(show.handler(call) for _ in range(100)))
    assert len(rendered) == 1
    assert {answer.body for answer in answers} == {b"up 1\n"}


async def test_unknown_paths_are_404_and_unknown_methods_405(server: Server) -> None:
    for path in ("/webhooks/pagerduty", "/webhooks/alertmanager/", "/x", "/api/v1/x"):
        assert (await server.post(GROUP, path)).status_code == 404
    answer = await server.client.get(PATH)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert server.recorder.answered[-1] == ("GET", "unknown", 405)


async def test_nonsense_on_the_socket_is_400(server: Server) -> None:
    async with server.connected() as wire:
        wire.send("\x16\x03\x01 nonsense\r\n\r\n")
        assert await wire.status() == 400
    assert (await server.post(GROUP)).status_code == 202
    assert ("POST", PATH, 202) in server.recorder.answered
