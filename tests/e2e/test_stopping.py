"""A replica that is told to end: what it says meanwhile, and who goes on with its work."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from tests.campaign.network import Link, Weather, link_to
from tests.fault_rigs import Fault, open_breaker
from tests.postgres_fixtures import eventually
from tests.replica_fixtures import Replica
from tests.service_fixtures import Service, pool_alert


@dataclass
class Pair:
    """Two replicas on one store; ``one`` reaches what they look after by a way of its own."""

    fault: Fault
    one: Replica
    two: Replica
    way: Link

    async def busy(self) -> None:
        """Let ``one`` take a step whose backend does not answer."""
        self.two.send(signal.SIGSTOP)
        self.way.turn(Weather(hole=True))
        assert (await self.one.post(self.fault.alert())).status_code == 202

        async def asked() -> bool:
            return self.way.connections > 0

        await eventually(asked, "a step has begun")
        self.two.send(signal.SIGCONT)


@asynccontextmanager
async def _pair(store: str, folder: Path, *, shutdown_within: str) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        fault = await stack.enter_async_context(open_breaker()(folder))
        url = fault.config["backends"]["http"]["admin"]["url"]
        way = await stack.enter_async_context(link_to(url, random.Random(1)))
        # no lease ends during a test: what another replica takes was given back
        (folder / "store.dsn").write_text(store)
        config = fault.config | {
            "store": {"dsn_file": str(folder / "store.dsn"), "lease": "60s"},
            "shutdown_within": shutdown_within,
        }
        through = yaml.safe_load(yaml.safe_dump(config).replace(url, way.through(url)))
        one = Replica(folder / "one", through, fault.environ)
        two = Replica(folder / "two", config, fault.environ)
        for service in (one, two):
            service.folder.mkdir()
            stack.push_async_callback(service.kill)
        await asyncio.gather(one.start(), two.start())
        yield Pair(fault, one, two, way)


async def _says_that_it_stops(service: Service) -> bool:
    async with httpx.AsyncClient(base_url=service.url, verify=False) as client:
        return (await client.get("/readyz")).text == "the service is stopping\n"


async def test_what_a_stopping_replica_does_not_finish_another_takes_at_once(
    postgres_database: str, tmp_path: Path
) -> None:
    async with _pair(postgres_database, tmp_path, shutdown_within="2s") as pair:
        await pair.busy()
        ended = asyncio.create_task(pair.one.end(signal.SIGTERM))
        await eventually(lambda: _says_that_it_stops(pair.one), "it is not ready any more")
        refused = await pair.one.post(pool_alert(service="unheard-of"))
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
        assert (await pair.one.api("POST", "/replay", json={"labels": {}})).status_code == 503
        assert (await pair.one.api("GET", "/incidents")).status_code == 200
        assert (await pair.two.post(pool_alert(service="unheard-of"))).status_code == 202
        assert await ended == 0, pair.one.log()
        assert "steps_given_back" in pair.one.log()
        incident = await _of(pair.two, "orders", "settle")
        await pair.two.post(pair.fault.alert("resolved"))
        assert (await pair.two.closed(incident))["outcome"] == "mitigated"
        assert await pair.fault.changes() == 1
        await _of(pair.two, None, "done")


async def _of(service: Service, name: str | None, phase: str) -> str:
    """Wait until the incident of a service is in ``phase``; return its id."""
    found: list[str] = []

    async def there() -> bool:
        items = (await service.api("GET", "/incidents")).json()["items"]
        found[:] = [i["id"] for i in items if (i["service"], i["phase"]) == (name, phase)]
        return bool(found)

    await eventually(there, f"the incident of {name} is in {phase}", within=30)
    return found[0]


async def test_a_step_that_ends_in_time_is_finished_before_the_end(
    postgres_database: str, tmp_path: Path
) -> None:
    async with _pair(postgres_database, tmp_path, shutdown_within="60s") as pair:
        await pair.busy()
        ended = asyncio.create_task(pair.one.end(signal.SIGTERM))
        await eventually(lambda: _says_that_it_stops(pair.one), "it is not ready any more")
        pair.way.turn()
        assert await ended == 0
        assert "steps_given_back" not in pair.one.log()


async def test_a_second_signal_ends_it_at_once(postgres_database: str, tmp_path: Path) -> None:
    async with _pair(postgres_database, tmp_path, shutdown_within="60s") as pair:
        await pair.busy()
        pair.one.send(signal.SIGINT)
        await eventually(lambda: _says_that_it_stops(pair.one), "it is not ready any more")
        # 255 where its fork server could not tell
        assert await pair.one.end(signal.SIGTERM) in {-signal.SIGTERM, 255}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_it_starts_ends_it_cleanly(
    number: signal.Signals, tmp_path: Path
) -> None:
    asked = asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            asked.set()
        writer.close()

    silent = await asyncio.start_server(hear, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    (tmp_path / "store.dsn").write_text(f"postgresql://nobody@127.0.0.1:{port}/nothing")
    service = Service(tmp_path, {"listen": "127.0.0.1:0", "store": {"dsn_file": "store.dsn"}})
    async with silent:
        starting = asyncio.create_task(service.start())
        await asked.wait()
        service.send(number)
        with pytest.raises(AssertionError):  # it never says where it listens
            await starting
        assert service.process is not None
        assert await service.process.wait() == 0, service.log()
    assert "Traceback" not in service.log()
