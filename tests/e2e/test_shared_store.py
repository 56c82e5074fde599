"""Several processes on one PostgreSQL, and a store that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from remediator.cli.demo.postgres import EmbeddedPostgres, ServerOptions
from remediator.cli.demo.slack import LocalSlack
from tests.postgres_fixtures import Scene, eventually, require_embedded
from tests.service_fixtures import Service, configuration, pool_alert


def _configured(scene: Scene, slack: LocalSlack, folder: Path, store: str) -> Service:
    folder.mkdir()
    (folder / "store.dsn").write_text(store)
    config = configuration(scene, slack, folder, "auto") | {"store": {"dsn_file": "store.dsn"}}
    return Service(folder, config)


@asynccontextmanager
async def _replica(
    scene: Scene, slack: LocalSlack, folder: Path, store: str
) -> AsyncIterator[Service]:
    service = _configured(scene, slack, folder, store)
    await service.start()
    try:
        yield service
    finally:
        assert service.process is not None
        if service.process.returncode is None:
            await service.kill()


async def test_a_dead_replicas_work_is_taken_over_and_not_repeated(
    scene: Scene, slack: LocalSlack, tmp_path: Path
) -> None:
    leak = (await scene.leak()).get_server_pid()
    await scene.victim()
    await scene.until(leak, "now() - state_change > interval '60.2 seconds'")
    async with (
        _replica(scene, slack, tmp_path / "one", scene.dsn) as one,
        _replica(scene, slack, tmp_path / "two", scene.dsn) as two,
    ):
        assert (await one.post(pool_alert())).status_code == 202
        await asyncio.sleep(0.3)
        await one.kill()
        await two.incident(phase="settle", within=40)
        await two.post(pool_alert("resolved"))
        incident = await two.incident(state="closed", outcome="mitigated", within=40)
    done = [i for m in incident["mitigations"] for i in m["items"] if i["state"] == "applied"]
    assert [item["key"] for item in done] == [f"pid {leak}"]


async def test_a_store_that_is_away_is_a_503_and_all_goes_on_by_itself(
    scene: Scene, slack: LocalSlack, tmp_path: Path
) -> None:
    require_embedded()
    async with EmbeddedPostgres(ServerOptions(fsync=True)) as server:
        dsn = await server.create_database("store")
        async with _replica(scene, slack, tmp_path / "one", dsn) as service:
            assert (await service.post(pool_alert(service="unheard-of"))).status_code == 202
            await server.kill()
            refused = await service.post(pool_alert(service="unheard-of", pod="two"))
            assert refused.status_code == 503
            assert "Retry-After" in refused.headers
            async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
                assert (await client.get("/healthz")).status_code == 200
                assert (await client.get("/readyz")).status_code == 503
            await server.start()

            async def taken() -> bool:
                answer = await service.post(pool_alert(service="unheard-of", pod="three"))
                return answer.status_code == 202

            await eventually(taken, "deliveries are taken again", within=30)
            incident = await service.incident(outcome="no_match")
            assert len(incident["alerts"]) == 2
