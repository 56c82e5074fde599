"""Two services on one PostgreSQL that share a Valkey, to which anything may happen."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.postgres_fixtures import eventually
from tests.redis_fixtures import MortalRedis
from tests.service_fixtures import Service, group, pool_alert

pytestmark = pytest.mark.timeout(300)


@asynccontextmanager
async def replicas(
    folder: Path, store: str, redis: str, count: int = 2, rate: str | None = None
) -> AsyncIterator[list[Service]]:
    services = []
    for n in range(count):
        mine = folder / f"replica-{n}"
        mine.mkdir()
        (mine / "store.dsn").write_text(store)
        (mine / "redis.url").write_text(redis)
        config = {
            "listen": "127.0.0.1:0",
            "store": {"dsn_file": "store.dsn"},
            "redis": {"url_file": "redis.url"},
            "admission": {"rate": rate},
        }
        services.append(Service(mine, config))
    try:
        for service in services:
            await service.start()
        yield services
    finally:
        for service in services:
            if service.process is not None and service.process.returncode is None:
                await service.kill()


async def counted(service: Service, name: str, **labels: str) -> float:
    """Read one figure of the service's own metrics; 0 where there is none."""
    shown = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    async with httpx.AsyncClient(base_url=service.url, verify=False) as client:
        text = (await client.get("/metrics")).text
    found = re.search(rf"^{re.escape(name)}(?:{{{re.escape(shown)}}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def duplicates(services: Sequence[Service]) -> float:
    labels = {"source": "alertmanager", "result": "duplicate"}
    return sum([await counted(s, "remediator_deliveries_total", **labels) for s in services])


@asynccontextmanager
async def posting(services: Sequence[Service]) -> AsyncIterator[list[httpx.AsyncClient]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(service._client("token")) for service in services]


def said_of(thing: int) -> Iterator[dict[str, Any]]:
    """Yield what a flapping condition has Alertmanager say, repetitions and late copies too."""
    for minute in itertools.count():
        firing = pool_alert(thing=str(thing)) | {
            "startsAt": f"2026-01-01T{minute // 60:02}:{minute % 60:02}:00Z"
        }
        over = firing | {
            "status": "resolved",
            "endsAt": f"2026-01-01T{minute // 60:02}:{minute % 60:02}:30Z",
        }
        yield from (firing, firing, firing, over, firing, over)


Episode = tuple[str, str, datetime]


async def stored(dsn: str) -> tuple[list[Episode], int, int]:
    """Return all episodes, how many deliveries there are, and how many wait for triage."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT labels, status, starts_at FROM alerts")
        waits = await connection.fetchval(
            "SELECT count(*) FROM deliveries WHERE triaged_at IS NULL"
        )
        every = await connection.fetchval("SELECT count(*) FROM deliveries")
        episodes = [
            (json.loads(labels)["thing"], status, datetime.fromtimestamp(starts / 1e6, UTC))
            for labels, status, starts in rows
        ]
        return sorted(episodes), int(every), int(waits)
    finally:
        await connection.close()


async def trouble(redis: MortalRedis, until: asyncio.Event) -> None:
    """Kill, stop, empty and start the server again, until it has been enough."""
    async with contextlib.aclosing(redis.client()) as client:
        for pause in itertools.cycle((0.05, 0.4, 1.3, 0.2, 2.5)):
            redis.kill()
            await asyncio.sleep(pause)
            redis.start()
            await asyncio.sleep(pause)
            redis.signal(signal.SIGSTOP)
            await asyncio.sleep(pause)
            redis.signal(signal.SIGCONT)
            for _ in range(20):
                with contextlib.suppress(Exception):
                    await client.flushall()
                await asyncio.sleep(pause / 10)
            if until.is_set():
                return


async def test_whatever_happens_to_redis_every_answer_is_202_and_the_same_is_stored(
    postgres_database: str, mortal_redis: MortalRedis, tmp_path: Path
) -> None:
    rounds, things = 24, 4
    told = {thing: list(itertools.islice(said_of(thing), rounds)) for thing in range(things)}

    async def send(clients: Sequence[httpx.AsyncClient], thing: int) -> None:
        for n, alert in enumerate(told[thing]):
            client = clients[(n + thing) % len(clients)]
            content = json.dumps(group(alert)).encode()
            answer = await client.post("/webhooks/alertmanager", content=content)
            assert answer.status_code == 202, answer.text
            await asyncio.sleep(0.25)

    url = mortal_redis.url
    async with (
        replicas(tmp_path, postgres_database, url) as services,
        posting(services) as clients,
    ):
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as group_:
            group_.create_task(trouble(mortal_redis, enough))
            async with asyncio.TaskGroup() as senders:
                for thing in told:
                    senders.create_task(send(clients, thing))
            enough.set()

        async def triaged() -> bool:
            return (await stored(postgres_database))[2] == 0

        await eventually(triaged, "all is triaged", within=30)
        episodes, every, _ = await stored(postgres_database)
        swallowed = await duplicates(services)
    starts = {(str(thing), alert["startsAt"]) for thing, said in told.items() for alert in said}
    assert episodes == sorted(
        (thing, "resolved", datetime.fromisoformat(start)) for thing, start in starts
    )
    assert every + swallowed == rounds * things


async def test_replicas_share_duplicates_the_limit_and_what_happens(
    postgres_database: str, mortal_redis: MortalRedis, tmp_path: Path
) -> None:
    url = mortal_redis.url
    content = json.dumps(group(pool_alert() | {"startsAt": "2026-01-01T00:00:00Z"})).encode()
    async with (
        replicas(tmp_path, postgres_database, url) as (one, two),
        posting([one, two]) as clients,
    ):

        async def known_by_both() -> bool:
            for client in clients:
                answer = await client.post("/webhooks/alertmanager", content=content)
                assert answer.status_code == 202
            return all([await duplicates([service]) for service in (one, two)])

        await eventually(known_by_both, "each knows what the other one stored", within=60)
        async with (
            two._client("operator-token") as wall,
            wall.stream("GET", "/api/v1/events") as answer,
        ):
            lines = answer.aiter_lines()
            await anext(lines)
            paused = await one.api("POST", "/pause", json={"scope": "global"})
            assert paused.status_code == 200
            async with asyncio.timeout(30):
                async for line in lines:
                    if line.startswith("data") and '"paused"' in line:
                        break
            assert '"scope":"global"' in line
            limits = (await two.api("GET", "/limits")).json()
            assert [pause["scope"] for pause in limits["paused"]] == ["global"]
            # a console that is open keeps nothing from ending
            assert await two.end(signal.SIGTERM) == 0


async def test_replicas_admit_so_much_of_a_sender_together(
    postgres_database: str, mortal_redis: MortalRedis, tmp_path: Path
) -> None:
    async with (
        replicas(tmp_path, postgres_database, mortal_redis.url, rate="7/hour") as services,
        posting(services) as clients,
    ):
        answers = [
            await clients[n % 2].post(
                "/webhooks/alertmanager", json=group(pool_alert(thing=str(n)))
            )
            for n in range(12)
        ]
        assert [answer.status_code for answer in answers] == [202] * 7 + [503] * 5
        assert int(answers[-1].headers["Retry-After"]) > 0
        refused = [
            await counted(s, "remediator_rejected_requests_total", reason="over_limit")
            for s in services
        ]
        assert sum(refused) == 5
        _, every, _ = await stored(postgres_database)
        assert every == 7


async def test_a_redis_that_is_down_keeps_nothing_from_starting_and_check_warns_of_it(
    postgres_database: str, mortal_redis: MortalRedis, tmp_path: Path
) -> None:
    url = mortal_redis.url.replace("://", "://:hunter2@")
    mortal_redis.kill()
    async with replicas(tmp_path, postgres_database, url, count=1) as (service,):
        assert (await service.post(pool_alert())).status_code == 202
        assert await counted(service, "remediator_shared_redis_impaired") == 1
        file = str(service.folder / "remediator.yaml")
        code, said = await service.command("check", "--config", file)
        assert code == 0
        assert "cannot be reached" in said
        assert "cache of duplicates" in said
        mortal_redis.start()
        async with contextlib.aclosing(mortal_redis.client()) as client:
            await client.config_set("requirepass", "hunter2")

        async def used() -> bool:
            return await counted(service, "remediator_shared_redis_impaired") == 0

        await eventually(used, "it is used once it is there", within=30)
        code, said = await service.command("check", "--config", file)
        assert "answers; it serves the replicas" in said
        assert "hunter2" not in said + service.log()
