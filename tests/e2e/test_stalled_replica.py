"""A replica that stands still right before its write, and wakes when another has its work."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from tests.crash_trials import Alertmanager
from tests.fault_rigs import Arrange, Fault, leaked_session, open_breaker
from tests.postgres_fixtures import dsn_of, eventually, execute
from tests.replica_fixtures import Replica

pytestmark = pytest.mark.timeout(240)
STOP = {"change": "insert mitigations", "nth": 1, "after": True, "stop": "until it is woken"}
"""Right after the reservation is committed."""
TAKEN = "SELECT epoch > $1 FROM incidents"
TOO_LATE = """
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000) > max(apply_before) FROM mitigations
"""


@dataclass
class Trial:
    """What became of one fault whose first replica stood still."""

    changes: int
    """By the backend's own record."""
    incident: dict[str, Any]

    @property
    def states(self) -> list[str]:
        """What the ledger says of each reservation, oldest first."""
        return [made["state"] for made in self.incident["mitigations"]]


async def test_a_replica_that_stands_still_before_its_write_changes_nothing_twice_or_too_late(
    postgres_server: str, tmp_path: Path
) -> None:
    arranges = {"session": leaked_session(postgres_server), "breaker": open_breaker()}
    session, late_session, breaker, late_breaker = await asyncio.gather(
        *(
            _trial(arrange, postgres_server, tmp_path / f"{name}-{late}", late=late)
            for name, arrange in arranges.items()
            for late in (False, True)
        )
    )
    for conditional in (session, late_session):
        assert (conditional.changes, conditional.incident["outcome"]) == (1, "mitigated")
    assert breaker.changes <= 1
    # what woke too late made no change: its successor may try again only where that is safe
    assert late_session.states == ["not_applied", "applied"]
    assert (late_breaker.changes, late_breaker.states) == (0, ["unknown"])
    assert late_breaker.incident["outcome"] == "escalated"


async def _trial(arrange: Arrange, server: str, folder: Path, *, late: bool) -> Trial:
    folder.mkdir()  # noqa: ASYNC240 - a test's own folder
    async with arrange(folder) as fault, _replicas(fault, server, folder) as (store, one, two):
        two.send(signal.SIGSTOP)
        sender = Alertmanager(fault, fired=True)
        assert (await one.post(fault.alert())).status_code == 202
        await eventually(_stands_still(one), "it stands still", within=30)
        epoch = await store.fetchval("SELECT epoch FROM incidents")
        two.send(signal.SIGCONT)
        await eventually(_is(store, TAKEN, epoch), "its work is taken over", within=30)
        if late:
            await eventually(_is(store, TOO_LATE), "it is too late", within=30)
        one.send(signal.SIGCONT)
        incident = await sender.follow(two)
        assert incident is not None
        assert one.alive
        assert "ownership_lost" in one.log()
        assert await fault.harm() == ""
        return Trial(await fault.changes(), incident)


def _stands_still(replica: Replica) -> Any:
    async def look() -> bool:
        return replica.sprung

    return look


def _is(store: asyncpg.Connection[asyncpg.Record], query: str, *values: Any) -> Any:
    async def look() -> bool:
        return bool(await store.fetchval(query, *values))

    return look


@contextlib.asynccontextmanager
async def _replicas(
    fault: Fault, server: str, folder: Path
) -> AsyncIterator[tuple[asyncpg.Connection[asyncpg.Record], Replica, Replica]]:
    """Start two replicas on a store of their own; the first will stand still."""
    name = f"test_{secrets.token_hex(6)}"
    await execute(server, f"CREATE DATABASE {name}")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(execute, server, f"DROP DATABASE {name} WITH (FORCE)")
        dsn = dsn_of(server, database=name)
        (folder / "store.dsn").write_text(dsn)
        lease = fault.config["store"]["lease"]
        store = {"dsn_file": str(folder / "store.dsn"), "lease": lease}
        text = yaml.safe_dump(fault.config | {"store": store})
        replicas = []
        for own, order in (("one", STOP), ("two", None)):
            replica = Replica(folder / own, yaml.safe_load(text), fault.environ, order=order)
            shutil.copytree(folder, replica.folder, ignore=shutil.ignore_patterns("one", "two"))
            stack.push_async_callback(replica.kill)
            await replica.start()
            replicas.append(replica)
        connection = await asyncpg.connect(dsn, timeout=10)
        stack.push_async_callback(connection.close)
        yield connection, replicas[0], replicas[1]
