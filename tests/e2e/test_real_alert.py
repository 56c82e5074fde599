"""A rule of a real Prometheus fires, a real Alertmanager delivers it, the service mends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import yaml
from aiohttp import web

from remediator.cli.demo.slack import LocalSlack
from tests.monitored_shop import deliver_to, scrape
from tests.monitoring_fixtures import Start
from tests.postgres_fixtures import Scene
from tests.service_fixtures import Service

FORGOTTEN = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND state = 'idle in transaction'
"""
RULES = {
    "groups": [
        {
            "name": "orders",
            "interval": "1s",
            "rules": [
                {
                    "alert": "DatabaseConnectionPoolExhausted",
                    "expr": "orders_forgotten_transactions > 0",
                    "for": "2s",
                    "labels": {"system": "shop", "service": "orders", "severity": "critical"},
                    "annotations": {"summary": "{{ $value }} transactions were forgotten"},
                }
            ],
        }
    ]
}


@asynccontextmanager
async def exporter(dsn: str) -> AsyncIterator[str]:
    """Expose, for Prometheus, how many transactions are forgotten; yield host:port."""
    connection = await asyncpg.connect(dsn)

    async def metrics(_: web.Request) -> web.Response:
        value = await connection.fetchval(FORGOTTEN)
        return web.Response(text=f"orders_forgotten_transactions {value}\n")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
        await connection.close()


async def test_a_real_alert_is_mended_resolved_and_told_once(
    service: Service,
    scene: Scene,
    slack: LocalSlack,
    start_prometheus: Start,
    start_alertmanager: Start,
) -> None:
    leak = (await scene.leak()).get_server_pid()
    victim = (await scene.victim()).get_server_pid()
    async with (
        exporter(scene.dsn) as target,
        start_alertmanager(deliver_to(service)) as alertmanager,
        start_prometheus(
            scrape(target, alertmanager.url), {"rules.yml": yaml.safe_dump(RULES)}
        ) as prometheus,
    ):
        service.config["backends"]["prometheus"] = {
            "main": {"url": prometheus.url, "scrape_interval": "1s"}
        }
        service.config["systems"]["shop"]["services"]["orders"]["prometheus"] = "main"
        service.config["listen"] = service.url.removeprefix("http://")
        await service.kill()
        await service.start()
        incident = await service.incident(within=60, state="closed")
    assert incident["outcome"] == "mitigated", incident["reason"]
    (made,) = incident["mitigations"]
    assert [item["key"] for item in made["items"]] == [f"pid {leak}"]
    assert incident["alerts"][0]["status"] == "resolved"
    assert not await scene.is_(leak)
    assert await scene.is_(victim)
    await slack.wait_for(lambda s: any("Mitigated" in t for m in s.posted for t in m.lines), 10)
    assert len(slack.posted) == 1
    assert slack.posted[0].edits >= 1
