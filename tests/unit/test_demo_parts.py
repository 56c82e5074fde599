"""The demo's parts: the shop on a real PostgreSQL, the alert's life, and what is drawn."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from aiohttp import web
from rich.console import Console

from remediator.cli.demo.alerts import AlertRule, Route, Timing, Watched, notification, play_alerts
from remediator.cli.demo.breaker import BREAKER, WRITER_TOKEN, Breaker, Orders
from remediator.cli.demo.cluster import merged
from remediator.cli.demo.database import ROLES
from remediator.cli.demo.kubelet import LIMIT, NEED, REPLICAS, Kubelet, new_cluster
from remediator.cli.demo.latency import LATENCY, LatencyLook
from remediator.cli.demo.oom import OOM
from remediator.cli.demo.pool import POOL, PoolLook, exhausted
from remediator.cli.demo.postgres import EmbeddedPostgres
from remediator.cli.demo.scenario import Scenario
from remediator.cli.demo.screen import Screen
from remediator.cli.demo.serving import serving
from remediator.cli.demo.shop import (
    APP_ROLE,
    ITEMS,
    SCHEMA,
    Durations,
    Load,
    RunningShop,
    customers,
    open_shop,
)
from remediator.cli.demo.slackview import draw_message, mrkdwn
from remediator.cli.demo.story import Told
from remediator.model.alert import AlertStatus
from remediator.model.fingerprint import fingerprint_of

SAMPLES = Path(__file__).parent.parent / "samples"
START = datetime(2026, 11, 21, tzinfo=UTC)
RULE = AlertRule(name="Full", summary="It is full.", holds=exhausted, extra={"pool": "orders"})


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
        assert fingerprint_of(alert["labels"]) == alert["fingerprint"]


def test_a_body_has_the_fields_of_alertmanagers() -> None:
    recorded = json.loads((SAMPLES / "am_firing_single.json").read_text())
    body = notification(RULE, AlertStatus.FIRING, START, START)
    assert set(body) == set(recorded)
    assert set(body["alerts"][0]) == set(recorded["alerts"][0])
    assert body["alerts"][0]["endsAt"] == "0001-01-01T00:00:00Z"
    resolved = notification(RULE, AlertStatus.RESOLVED, START, START + timedelta(seconds=5))
    assert resolved["alerts"][0]["endsAt"] == "2026-11-21T00:00:05Z"


def test_an_alert_fires_after_its_hold_is_resent_and_resolves_once() -> None:
    rule = Watched(Timing(hold=3, keep=1, resend=5))
    sent: list[tuple[int, str]] = []
    for second in range(16):
        now = START + timedelta(seconds=second)
        status = rule.evaluate(holds=second < 11, now=now)
        if status is not None:
            sent.append((second, status.value))
            rule.sent(status, now)
    assert sent == [(3, "firing"), (8, "firing"), (12, "resolved")]


def test_a_condition_that_comes_and_goes_does_not_fire() -> None:
    rule = Watched(Timing(hold=3))
    for second in range(10):
        now = START + timedelta(seconds=second)
        assert rule.evaluate(holds=second % 3 != 2, now=now) is None


async def test_a_notification_is_posted_again_after_503_and_carries_the_token() -> None:
    posted: list[tuple[str, Any]] = []

    async def hook(request: web.Request) -> web.Response:
        posted.append((request.headers["Authorization"], await request.json()))
        return web.Response(status=503 if len(posted) == 1 else 202)

    async def pool(_: web.Request) -> web.Response:
        return web.json_response({"active": 8, "max": 8, "waiting": 1})

    accepted: list[AlertStatus] = []
    async with serving([web.post("/hook", hook), web.get("/pool", pool)]) as url:
        route = Route(f"{url}/pool", f"{url}/hook", "ingest-token")
        timing = Timing(evaluate=0.01, hold=0, resend=60)
        playing = asyncio.create_task(
            play_alerts(RULE, route, lambda status, _: accepted.append(status), timing)
        )
        await until(lambda: bool(accepted))
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
    assert accepted == [AlertStatus.FIRING]
    assert [token for token, _ in posted] == ["Bearer ingest-token"] * 2
    assert posted[1][1]["alerts"][0]["labels"] == RULE.labels


@pytest.mark.parametrize("scenario", [POOL, LATENCY, BREAKER, OOM])
def test_every_scenarios_alert_is_about_the_configured_service(scenario: Scenario) -> None:
    labels = scenario.alert.labels
    assert (labels["system"], labels["service"]) == ("shop", "orders")
    assert labels["alertname"] == scenario.alert.name


# --- what is measured -----------------------------------------------------------------------------


async def test_a_request_that_still_waits_counts_with_its_time_so_far() -> None:
    durations = Durations()
    assert durations.p95() == 0
    with durations.measured():
        await until(lambda: durations.p95() > 0.05)
    assert durations.p95() > 0.05
    durations.window = 0
    assert durations.p95() == 0


# --- the breaker ----------------------------------------------------------------------------------


def test_a_breaker_opens_when_half_of_its_last_calls_failed_and_stays_open() -> None:
    breaker = Breaker()
    for succeeded in [True] * 10 + [False] * 4:
        breaker.note(succeeded=succeeded)
    assert not breaker.is_open
    breaker.note(succeeded=False)
    assert breaker.is_open
    for _ in range(10):
        breaker.note(succeeded=True)
    assert breaker.is_open
    breaker.close()
    assert breaker.as_json() == {"state": "CLOSED", "failureRate": "0.0%"}


async def test_every_reset_call_is_counted_and_only_the_writers_takes_effect() -> None:
    orders = Orders()
    orders.breaker.is_open = True
    async with serving(orders.routes()) as url, httpx.AsyncClient(base_url=url) as http:
        path, body = "/actuator/circuitbreakers/payments", {"updateState": "CLOSE"}
        refused = await http.post(path, json=body, headers={"Authorization": "Bearer other"})
        assert (refused.status_code, orders.breaker.is_open) == (403, True)
        writer = {"Authorization": f"Bearer {WRITER_TOKEN}"}
        assert (await http.post(path, json=body, headers=writer)).status_code == 200
        listed = (await http.get("/actuator/circuitbreakers")).json()["circuitBreakers"]
        assert listed["payments"]["state"] == "CLOSED"
    assert orders.resets == ["payments", "payments"]


# --- the emulated cluster -------------------------------------------------------------------------


def test_a_patch_merges_lists_by_name_and_none_removes() -> None:
    base = {"a": 1, "list": [{"name": "x", "v": 1}, {"name": "y"}], "plain": [1, 2]}
    patch = {"a": None, "list": [{"name": "x", "v": 2}, {"name": "z"}], "plain": [3]}
    assert merged(base, patch) == {
        "list": [{"name": "x", "v": 2}, {"name": "y"}, {"name": "z"}],
        "plain": [3],
    }


def test_pods_that_outgrow_their_limit_are_killed_until_it_is_raised() -> None:
    kubelet = Kubelet(new_cluster())
    run(kubelet, 40)
    assert (kubelet.ready, kubelet.killed) == (REPLICAS, 0)
    kubelet.grown = True
    run(kubelet, 60)
    killed = kubelet.killed
    assert killed == 2 * REPLICAS
    assert kubelet.marked == REPLICAS
    raise_memory(kubelet, f"{2 * LIMIT}Mi")
    run(kubelet, 100)
    assert (kubelet.ready, kubelet.marked, kubelet.killed) == (REPLICAS, 0, killed)
    assert kubelet.fullest is not None
    assert (kubelet.fullest.used, kubelet.fullest.limit) == (NEED, 2 * LIMIT)
    status = kubelet.cluster.deployment["status"]
    assert (status["updatedReplicas"], status["replicas"]) == (REPLICAS, REPLICAS)


def run(kubelet: Kubelet, ticks: int) -> None:
    for _ in range(ticks):
        kubelet.tick()


def raise_memory(kubelet: Kubelet, limit: str) -> None:
    spec = kubelet.cluster.deployment["spec"]
    resources = {"requests": {"memory": limit}, "limits": {"memory": limit}}
    patch = {"template": {"spec": {"containers": [{"name": "app", "resources": resources}]}}}
    kubelet.cluster.deployment["spec"] = merged(spec, patch)


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


def test_the_pools_story_is_told_once_and_in_order() -> None:
    looks = [
        PoolLook(active=1, size=8, waiting=0, leaked=0, rate=20),
        PoolLook(active=3, size=8, waiting=0, leaked=3, rate=20),
        PoolLook(active=8, size=8, waiting=9, leaked=3, rate=0),
        PoolLook(active=8, size=8, waiting=19, leaked=3, rate=0),
        PoolLook(active=1, size=8, waiting=0, leaked=3, rate=60),
        PoolLook(active=1, size=8, waiting=0, leaked=3, rate=20),
    ]
    told = Told()
    facts = [fact.what.partition(":")[0] for look in looks for fact in look.news(told)]
    assert [text.split()[:3] for text in facts] == [
        ["The", "shop", "serves"],
        ["The", "bug", "strikes"],
        ["The", "pool", "is"],
        ["The", "pool", "recovered"],
    ]


def test_a_slow_shop_is_well_only_once_it_is_fast_and_serves() -> None:
    looks = [
        LatencyLook(p95=20, waiting=0, rate=6, holder=None, enough=3),
        LatencyLook(p95=900, waiting=9, rate=0, holder=4711, enough=3),
        LatencyLook(p95=20, waiting=0, rate=0, holder=4711, enough=3),
        LatencyLook(p95=20, waiting=0, rate=6, holder=4711, enough=3),
    ]
    assert [look.well for look in looks] == [True, False, False, True]
    told = Told()
    facts = [fact.what for look in looks for fact in look.news(told)]
    assert [fact.split()[0] for fact in facts] == ["The", "A", "Orders", "Orders"]
    assert "pid 4711" in facts[1]


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
