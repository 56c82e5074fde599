"""A PostgreSQL that stops, dies, hangs and refuses, under load: nothing is lost, no hand is needed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
import pytest

from remediator.cli.demo.postgres import EmbeddedPostgres, ServerOptions
from tests.postgres_fixtures import (
    Connection,
    eventually,
    execute,
    require_embedded,
    signal_server,
)
from tests.replica_fixtures import Replica
from tests.service_fixtures import group, pool_alert

SENDER_WAITS = 10.0
"""Seconds after which Alertmanager gives a webhook up."""
OUTAGE = float(os.environ.get("REMEDIATOR_TEST_OUTAGE_S", "5"))
"""Seconds that PostgreSQL is stopped for."""
SENDERS = 4
ENDED = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'remediator'"
)


@dataclass
class Load:
    """Alerts that are sent all the time, each its own, to one replica after the other."""

    replicas: list[Replica]
    accepted: list[str] = field(default_factory=list)
    """Ids of the deliveries that got a 202."""
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    """Answers that no sender should get."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        """Send inside the block."""
        token = (self.replicas[0].state / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(headers=headers, timeout=SENDER_WAITS, verify=False) as client:
            tasks = [asyncio.create_task(self._send(client)) for _ in range(SENDERS)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, client: httpx.AsyncClient) -> None:
        while True:
            number = next(self._numbers)
            url = self.replicas[number % len(self.replicas)].url
            body = group(pool_alert(service="unheard-of", pod=f"pod-{number}"))
            try:
                answer = await client.post(f"{url}/webhooks/alertmanager", json=body)
            except httpx.HTTPError as error:
                self.wrong.append(f"{type(error).__name__} for pod-{number}")
                continue
            self._note(answer)
            await asyncio.sleep(0.05)

    def _note(self, answer: httpx.Response) -> None:
        if answer.status_code == 202:
            self.accepted.append(answer.json()["delivery"])
        elif answer.status_code == 503 and "Retry-After" in answer.headers:
            self.refused += 1
        else:
            self.wrong.append(f"{answer.status_code}: {answer.text}")

    async def goes_on(self) -> None:
        """Wait until each replica takes alerts again and says that it is ready."""
        before = len(self.accepted)

        async def taken() -> bool:
            ready = [await _ready(replica) for replica in self.replicas]
            return all(ready) and len(self.accepted) > before + 2 * SENDERS

        await eventually(taken, "deliveries are taken again", within=40)


async def _ready(replica: Replica) -> bool:
    async with httpx.AsyncClient(base_url=replica.url, timeout=20, verify=False) as client:
        return (await client.get("/readyz")).status_code == 200


@dataclass
class Stand:
    """Two replicas under load, and the PostgreSQL server that they share."""

    server: EmbeddedPostgres
    dsn: str
    load: Load

    async def through(self, outage: Callable[[Stand], Awaitable[None]], *, refuses: bool) -> None:
        """Let an outage begin and end, and wait until all goes on."""
        before = self.load.refused
        await outage(self)
        await self.load.goes_on()
        assert self.load.wrong == []
        assert self.load.refused > before or not refuses, "nobody noticed the outage"


@contextlib.asynccontextmanager
async def _stand(folder: Path) -> AsyncIterator[Stand]:
    require_embedded()
    async with contextlib.AsyncExitStack() as stack:
        options = ServerOptions(fsync=True, max_connections=20)
        server = await stack.enter_async_context(EmbeddedPostgres(options))
        dsn = await server.create_database("store")
        (folder / "store.dsn").write_text(dsn)
        config = {
            "listen": "127.0.0.1:0",
            "store": {"dsn_file": str(folder / "store.dsn")},
        }
        replicas = [Replica(folder / name, config) for name in ("one", "two")]
        for replica in replicas:
            replica.folder.mkdir()
            stack.push_async_callback(replica.kill)
        await replicas[0].start()
        (replicas[1].state).mkdir(mode=0o700)
        for name in ("token", "operator-token"):
            token = (replicas[0].state / name).read_text()
            (replicas[1].state / name).write_text(token)
            (replicas[1].state / name).chmod(0o600)
        await replicas[1].start()
        load = Load(replicas)
        async with load.going():
            yield Stand(server, dsn, load)
        assert all(replica.alive for replica in replicas), "a hand would have been needed"
        await _all_are_triaged(dsn, load.accepted)


async def _all_are_triaged(dsn: str, accepted: list[str]) -> None:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:

        async def triaged() -> bool:
            query = "SELECT id FROM deliveries WHERE triaged_at IS NOT NULL"
            done = {row["id"] for row in await connection.fetch(query)}
            return done >= set(accepted)

        await eventually(triaged, "every accepted delivery is triaged", within=30)
    finally:
        await connection.close()


# --- what may happen to it ---------------------------------------------------------------------


async def _ends_connections(stand: Stand) -> None:
    await execute(stand.server.dsn(), *[ENDED] * 3)


async def _has_no_connection_left(stand: Stand) -> None:
    taken: list[Connection] = []
    ending = await asyncpg.connect(stand.server.dsn(), timeout=10)
    try:
        while not stand.load.refused:
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    taken.append(await asyncpg.connect(stand.server.dsn(), timeout=10))
            await ending.execute(ENDED)
    finally:
        for connection in (ending, *taken):
            await connection.close()


async def _crashes(stand: Stand) -> None:
    await stand.server.kill()
    await asyncio.sleep(1)
    await stand.server.start()


async def _is_stopped(stand: Stand) -> None:
    await stand.server.stop()
    await asyncio.sleep(OUTAGE)
    await stand.server.start()


async def _hangs(stand: Stand) -> None:
    refused = stand.load.refused

    async def noticed() -> bool:
        return stand.load.refused > refused

    signal_server(stand.server, signal.SIGSTOP)
    try:
        await eventually(noticed, "senders are told to come again", within=60)
    finally:
        signal_server(stand.server, signal.SIGCONT)


@pytest.mark.timeout(120 + 2 * OUTAGE)
async def test_what_was_accepted_outlives_every_end_of_postgres_and_the_rest_got_a_503(
    tmp_path: Path,
) -> None:
    async with _stand(tmp_path) as stand:
        await stand.load.goes_on()
        await stand.through(_has_no_connection_left, refuses=True)
        await stand.through(_ends_connections, refuses=False)
        await stand.through(_crashes, refuses=True)
        await stand.through(_is_stopped, refuses=True)


async def test_a_postgres_that_hangs_keeps_no_sender_waiting(tmp_path: Path) -> None:
    async with _stand(tmp_path) as stand:
        await stand.load.goes_on()
        await stand.through(_hangs, refuses=True)


async def test_a_service_that_starts_before_its_store_waits_for_it(tmp_path: Path) -> None:
    require_embedded()
    async with EmbeddedPostgres(ServerOptions(fsync=True)) as server:
        (tmp_path / "store.dsn").write_text(await server.create_database("store"))
        await server.stop()
        replica = Replica(tmp_path, {"listen": "127.0.0.1:0", "store": {"dsn_file": "store.dsn"}})
        starting = asyncio.create_task(replica.start())
        try:

            async def waits() -> bool:
                log = tmp_path / "log"
                return log.exists() and "waiting_for_the_store" in log.read_text()

            await eventually(waits, "it says that it waits", within=30)
            await server.start()
            await starting
            assert (await replica.post(pool_alert(service="unheard-of"))).status_code == 202
        finally:
            await replica.kill()
