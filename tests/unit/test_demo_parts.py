"""The demo's parts: the shop on a real PostgreSQL, the alert's life, and what is drawn."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from aiohttp import web
from rich.console import Console

from remediator.demo.alerts import (
    LABELS,
    Route,
    Rule,
    Timing,
    exhausted,
    fingerprint,
    notification,
    play_alerts,
)
from remediator.demo.postgres import EmbeddedPostgres
from remediator.demo.sandbox import ROLES
from remediator.demo.screen import Screen
from remediator.demo.shop import APP_ROLE, ITEMS, SCHEMA, Load, RunningShop, customers, open_shop
from remediator.demo.slackview import draw_message, mrkdwn
from remediator.demo.story import ShopLook, ShopStory
from remediator.model import AlertStatus

SAMPLES = Path(__file__).parent.parent / "samples"
START = datetime(2026, 11, 21, tzinfo=UTC)


async def until(holds: Callable[[], bool], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110 - the shop has counters, not events
            await asyncio.sleep(0.02)


# --- the shop -------------------------------------------------------------------------------------


@pytest.fixture
async def database() -> AsyncIterator[EmbeddedPostgres]:
    async with EmbeddedPostgres() as postgres:
        connection = await asyncpg.connect(await postgres.create_database("shop"))
        await connection.execute(ROLES + SCHEMA)
        await connection.close()
        yield postgres


@pytest.fixture
async def shop(database: EmbeddedPostgres) -> AsyncIterator[RunningShop]:
    async with open_shop(database.dsn("shop", APP_ROLE), pool_size=6) as running:
        yield running


async def test_the_pool_runs_full_and_recovers_once_the_leaked_sessions_end(
    database: EmbeddedPostgres, shop: RunningShop
) -> None:
    load = Load(rate=100, calm=10, expired_vouchers=3)
    writer = await asyncpg.connect(database.dsn("shop", "remediator_writer"))
    async with customers(shop.shop, load), httpx.AsyncClient() as http:
        await until(lambda: shop.shop.waiting > 5)
        served = shop.shop.served
        pool = (await http.get(f"{shop.admin_url}/pool")).json()
        assert exhausted(pool)
        assert (pool["active"], pool["max"], shop.shop.leaked) == (6, 6, 3)
        ended = await writer.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = $1 AND state = 'idle in transaction'",
            APP_ROLE,
        )
        assert len(ended) == 3
        await until(lambda: shop.shop.waiting == 0 and shop.shop.served > served + 20)
        orders = (await http.get(f"{shop.admin_url}/orders")).json()
        assert orders["failed"] == 3
        assert orders["served"] > served
    await writer.close()


async def test_the_pool_stays_full_as_long_as_nobody_ends_the_sessions(shop: RunningShop) -> None:
    async with customers(shop.shop, Load(rate=100, calm=0, expired_vouchers=4)):
        await until(lambda: shop.shop.waiting > 0)
        served = shop.shop.served
        await until(lambda: shop.shop.waiting > 50)
        assert shop.shop.served == served


def test_the_load_is_calm_then_bad_then_calm_again() -> None:
    orders = Load(calm=3, expired_vouchers=2).orders()
    first = [next(orders) for _ in range(20)]
    assert [n for n, order in enumerate(first) if order.expired_voucher] == [3, 4]
    assert [order.item for order in first[3:5]] == list(ITEMS[:2])


# --- Prometheus and Alertmanager ------------------------------------------------------------------


@pytest.mark.parametrize("sample", ["am_firing_single", "am_firing_group3", "am_resolved_group3"])
def test_a_fingerprint_is_what_alertmanager_sends(sample: str) -> None:
    for alert in json.loads((SAMPLES / f"{sample}.json").read_text())["alerts"]:
        assert fingerprint(alert["labels"]) == alert["fingerprint"]


def test_a_body_has_the_fields_of_alertmanagers() -> None:
    recorded = json.loads((SAMPLES / "am_firing_single.json").read_text())
    body = notification(AlertStatus.FIRING, START, START)
    assert set(body) == set(recorded)
    assert set(body["alerts"][0]) == set(recorded["alerts"][0])
    assert body["alerts"][0]["endsAt"] == "0001-01-01T00:00:00Z"
    resolved = notification(AlertStatus.RESOLVED, START, START + timedelta(seconds=5))
    assert resolved["alerts"][0]["endsAt"] == "2026-11-21T00:00:05Z"


def test_an_alert_fires_after_its_hold_is_resent_and_resolves_once() -> None:
    rule = Rule(Timing(hold=3, keep=1, resend=5))
    sent: list[tuple[int, str]] = []
    for second in range(16):
        now = START + timedelta(seconds=second)
        status = rule.evaluate(holds=second < 11, now=now)
        if status is not None:
            sent.append((second, status.value))
            rule.sent(status, now)
    assert sent == [(3, "firing"), (8, "firing"), (12, "resolved")]


def test_a_condition_that_comes_and_goes_does_not_fire() -> None:
    rule = Rule(Timing(hold=3))
    for second in range(10):
        now = START + timedelta(seconds=second)
        assert rule.evaluate(holds=second % 3 != 2, now=now) is None


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[web.Application], Awaitable[str]]]:
    runners: list[web.AppRunner] = []

    async def start(app: web.Application) -> str:
        runner = web.AppRunner(app, access_log=None)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_a_notification_is_posted_again_after_503_and_carries_the_token(
    serve: Callable[[web.Application], Awaitable[str]],
) -> None:
    posted: list[tuple[str, Any]] = []

    async def hook(request: web.Request) -> web.Response:
        posted.append((request.headers["Authorization"], await request.json()))
        return web.Response(status=503 if len(posted) == 1 else 202)

    async def pool(_: web.Request) -> web.Response:
        return web.json_response({"active": 8, "max": 8, "waiting": 1})

    app = web.Application()
    app.add_routes([web.post("/hook", hook), web.get("/pool", pool)])
    url = await serve(app)
    accepted: list[AlertStatus] = []
    route = Route(f"{url}/pool", f"{url}/hook", "ingest-token")
    timing = Timing(evaluate=0.01, hold=0, resend=60)
    playing = asyncio.create_task(
        play_alerts(route, timing, lambda status, _: accepted.append(status))
    )
    await until(lambda: bool(accepted))
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    assert accepted == [AlertStatus.FIRING]
    assert [token for token, _ in posted] == ["Bearer ingest-token"] * 2
    assert posted[1][1]["alerts"][0]["labels"] == LABELS


# --- what is shown --------------------------------------------------------------------------------


def test_without_a_terminal_facts_are_plain_lines() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=80), clock=iter([0.0, 1.25]).__next__)
    with screen.live():
        screen.fact("The [bold]pool[/bold] is full", ["8 of 8"], "red")
    assert [line.split() for line in out.getvalue().splitlines()] == [
        ["1.2", "s", "The", "[bold]pool[/bold]", "is", "full"],
        ["-", "8", "of", "8"],
    ]


def test_the_shops_story_is_told_once_and_in_order() -> None:
    looks = [
        ShopLook(active=1, size=8, waiting=0, leaked=0, rate=20),
        ShopLook(active=3, size=8, waiting=0, leaked=3, rate=20),
        ShopLook(active=8, size=8, waiting=9, leaked=3, rate=0),
        ShopLook(active=8, size=8, waiting=19, leaked=3, rate=0),
        ShopLook(active=1, size=8, waiting=0, leaked=3, rate=60),
        ShopLook(active=1, size=8, waiting=0, leaked=3, rate=20),
    ]
    story = ShopStory()
    told = [fact.what.partition(":")[0] for look in looks for fact in story.news(look)]
    assert [text.split()[:3] for text in told] == [
        ["The", "shop", "serves"],
        ["The", "bug", "strikes"],
        ["The", "pool", "is"],
        ["The", "pool", "recovered"],
    ]


def test_slacks_markup_becomes_style_and_its_entities_text() -> None:
    text = mrkdwn("*bold* `a&lt;b` <http://x|label> snake_case_name 3 * 4 _it_ [red]&amp;")
    assert text.plain == "bold a<b label snake_case_name 3 * 4 it [red]&"
    assert {str(span.style) for span in text.spans} == {"bold", "cyan", "italic", "underline"}


def test_a_message_is_drawn_block_by_block() -> None:
    out = io.StringIO()
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": "Closed: shop/orders"}},
        {"type": "section", "text": {"type": "mrkdwn", "text": "*Found* 3 sessions"}},
        {"type": "section", "text": {"type": "plain_text", "text": "*as it is* &lt;inc-1&gt;"}},
    ]
    Console(file=out, width=60).print(draw_message("#alerts", blocks))
    shown = out.getvalue()
    for text in (
        "#alerts",
        "remediator  APP",
        "Closed: shop/orders",
        "Found 3 sessions",
        "*as it is* <inc-1>",
    ):
        assert text in shown


# --- the whole ------------------------------------------------------------------------------------


@pytest.fixture
def emptied() -> Iterator[Path]:
    """A folder that has to be empty again at the end."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to the server's account
        Path(name).chmod(0o755)
        yield Path(name)
        assert list(Path(name).iterdir()) == []


async def test_the_demo_mends_the_shop_and_leaves_nothing_behind(emptied: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remediator", "demo"),
        env=os.environ | {"TMPDIR": str(emptied), "REMEDIATOR_LISTEN": "127.0.0.1:1"},
        stdout=asyncio.subprocess.PIPE,
    )
    printed = (await process.communicate())[0].decode()
    assert process.returncode == 0, printed
    assert "closed as mitigated" in printed
    assert "Orders flow again" in printed


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP])
async def test_an_interrupted_demo_leaves_nothing_behind(
    emptied: Path, how: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remediator", "demo"),
        env=os.environ | {"TMPDIR": str(emptied)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async for line in process.stdout:
        if b"remediator listens" in line:
            process.send_signal(how)
    assert await process.wait() == 130
