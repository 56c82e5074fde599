"""A storm of alerts, or somebody's try at one, against the service as a process."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import create_async_engine

from remediator.intake.alertmanager import MAX_ALERTS
from remediator.store import tables as t
from tests.postgres_fixtures import eventually
from tests.service_fixtures import Service, pool_alert

MIB = 1024 * 1024
PEAK = 350 * MIB
"""Bytes that the process may take at most: the chart gives it 512 MiB."""
STARTS = "2026-11-20T15:47:32Z"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """A service with a catalogue, and nothing that it could reach."""
    orders = {"match": {"service": "orders"}, "playbooks": {}}
    shop = {"match": {"system": "shop"}, "services": {"orders": orders}}
    service = Service(tmp_path, {"listen": "127.0.0.1:0", "systems": {"shop": shop}})
    await service.start()
    try:
        yield service
    finally:
        if service.process is not None and service.process.returncode is None:
            await service.kill()


def flood(alerts: int) -> bytes:
    """Write a body with as many alerts as fit: the shortest ones, each with a name of its own."""
    body = ",".join(
        f'{{"status":"firing","labels":{{"alertname":"A{n}"}},"startsAt":"{STARTS}"}}'
        for n in range(alerts)
    )
    return f'{{"alerts":[{body}]}}'.encode()


async def send(service: Service, body: bytes) -> httpx.Response:
    token = (service.state / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        return await client.post("/webhooks/alertmanager", content=body, headers=headers)


def peak(service: Service) -> int:
    """Return the most memory that the process ever had, in bytes."""
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def rows(service: Service, query: Any) -> list[Any]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{service.state / 'remediator.db'}")
    try:
        async with engine.connect() as connection:
            return list((await connection.execute(query)).all())
    finally:
        await engine.dispose()


async def test_a_hundred_thousand_alerts_in_one_body_are_refused_and_take_no_memory(
    service: Service,
) -> None:
    before = peak(service)
    for _ in range(3):
        answer = await send(service, flood(110_000))
        assert answer.status_code == 413
        assert "max_alerts" in answer.json()["detail"]
    letters = (await service.api("GET", "/deadletters")).json()["items"]
    assert len(letters) == 3
    ((stored,),) = await rows(service, select(func.max(func.length(t.deliveries.c.body))))
    assert stored <= 64 * 1024
    assert peak(service) < min(PEAK, before + 150 * MIB)
    assert (await service.post(pool_alert())).status_code == 202


async def test_the_largest_body_delays_neither_a_pause_nor_others_and_outlives_a_kill(
    service: Service,
) -> None:
    body = flood(MAX_ALERTS)
    taken = (await send(service, body)).json()["delivery"]
    progress = select(t.deliveries.c.taken, t.deliveries.c.triaged_at)
    progress = progress.where(t.deliveries.c.id == taken)

    async def begun() -> bool:
        return bool((await rows(service, progress))[0].taken)

    await eventually(begun, "the first slice is taken")
    assert (await service.api("POST", "/pause", json={"scope": "global"})).is_success
    assert (await service.post(pool_alert())).status_code == 202
    (found,) = await rows(service, progress)
    assert 0 < found.taken < MAX_ALERTS
    await service.kill()
    (killed_at,) = await rows(service, progress)
    assert killed_at.triaged_at is None
    await service.start()

    async def done() -> bool:
        return (await rows(service, progress))[0].triaged_at is not None

    await eventually(done, "all of it is taken", within=60)
    again = t.alerts.c.notifications > 1
    ((alerts,),) = await rows(service, select(func.count()).select_from(t.alerts))
    assert alerts == MAX_ALERTS + 1
    assert await rows(service, select(t.alerts.c.id).where(again)) == []
    assert len(await service.incidents()) == 2  # what nothing takes, and the other one
    assert peak(service) < PEAK
    assert await service.end(signal.SIGTERM) == 0
    size = sum(file.stat().st_size for file in service.state.glob("remediator.db*"))
    assert size < 15 * len(body)


async def test_a_body_that_an_earlier_version_took_and_died_of_becomes_a_dead_letter(
    service: Service,
) -> None:
    first = (await service.post(pool_alert())).json()["delivery"]
    await service.kill()
    body = flood(110_000)
    engine = create_async_engine(f"sqlite+aiosqlite:///{service.state / 'remediator.db'}")
    async with engine.begin() as connection:
        mine = t.deliveries.c.id == first
        ((row,),) = [(await connection.execute(select(t.deliveries).where(mine))).mappings().all()]
        large = {"id": "dlv-large", "body": body, "size": len(body), "alerts": 110_000}
        await connection.execute(
            insert(t.deliveries).values({**row, **large, "triaged_at": None, "taken": 0})
        )
    await engine.dispose()
    await service.start()
    assert (await service.post(pool_alert(pod="another"))).status_code == 202

    async def buried() -> bool:
        letters = (await service.api("GET", "/deadletters")).json()["items"]
        return [letter["delivery_id"] for letter in letters] == ["dlv-large"]

    await eventually(buried, "it is a dead letter", within=60)
    told = [i for i in await service.incidents() if i["outcome"] == "escalated"]
    assert ["dlv-large" in incident["reason"] for incident in told] == [True]
    left = select(t.deliveries.c.id).where(t.deliveries.c.triaged_at.is_(None))

    async def none_left() -> bool:
        return await rows(service, left) == []

    await eventually(none_left, "what came after it is triaged")
    assert peak(service) < PEAK
