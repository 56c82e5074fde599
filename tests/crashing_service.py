"""The service in a process that kills itself, as ``kill -9`` does, at one commit to its store.

Not a test. Each process is forked from one that has imported everything, because the tests start
hundreds of them; what runs there is the command ``remediator serve``, watched from outside through
SQLAlchemy's events.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from tests.service_fixtures import Service

STARTED_WITHIN = 60.0
_PRELOADED = [
    "tests.crashing_service",
    "remediator.service",
    "remediator.backends.http.client",
    "remediator.backends.http.breakers",
    "remediator.backends.kubernetes.mitigator",
    "remediator.backends.postgres.mitigator",
    "remediator.backends.prometheus",
    "remediator.backends.redis.mitigator",
    "alembic.command",
    "aiosqlite",
    "asyncpg",
    "tests.replica_fixtures",
]
_WRITES = re.compile(r"\s*(?:INSERT INTO|UPDATE|DELETE FROM) (\w+)")


class Moment(NamedTuple):
    """Right before or right after a commit; the first one that changes anything is 1."""

    commit: int
    after: bool

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} commit {self.commit}"


class Trap:
    """Counts the commits that change something, notes each in a file, and springs at one."""

    def __init__(self, trace: Path, moment: Moment | None) -> None:
        self._trace, self._moment = trace, moment
        self._count = itertools.count(1)

    def listen(self) -> None:
        """Watch every engine of this process."""
        event.listen(Engine, "after_cursor_execute", self._executed)
        event.listen(Engine, "rollback", self._rolled_back)
        event.listen(Engine, "commit", self._commits)
        event.listen(Pool, "checkin", self._given_back)

    def _executed(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        made: Any = connection.connection.driver_connection
        if made.total_changes > connection.info.get("changes", 0):
            connection.info["changes"] = made.total_changes
            found = _WRITES.match(statement)
            connection.info.setdefault("tables", []).append(found[1] if found else "?")

    def _rolled_back(self, connection: Connection) -> None:
        connection.info.pop("tables", None)

    def _commits(self, connection: Connection) -> None:
        tables = connection.info.pop("tables", None)
        if tables is None:
            return
        number = next(self._count)
        with self._trace.open("a") as trace:
            trace.write(f"{' '.join(tables)}\n")
        if self._moment == Moment(number, after=False):
            os.kill(os.getpid(), signal.SIGKILL)
        connection.info["done"] = self._moment == Moment(number, after=True)

    def _given_back(self, _connection: object, record: ConnectionPoolEntry) -> None:
        # the writer gives its connection back before anybody learns of the commit
        if record.info.get("done"):
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class CrashingService(Service):
    """A service of which each process can be told when to die."""

    forked: ForkServerProcess | None = None

    @property
    def trace(self) -> list[list[str]]:
        """The tables that each commit changed, of the last process."""
        return [line.split() for line in (self.folder / "trace").read_text().splitlines()]

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.forked is not None and self.forked.is_alive()

    async def start(self, moment: Moment | None = None) -> None:
        """Start, to die at ``moment``; return when it listens or has died."""
        (self.folder / "remediator.yaml").write_text(yaml.safe_dump(self.config))
        for name in ("trace", "stdout"):
            (self.folder / name).write_text("")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        target, arguments = self._becoming(moment)
        self.forked = context.Process(target=target, args=arguments, daemon=True)
        await asyncio.to_thread(self.forked.start)
        async with asyncio.timeout(STARTED_WITHIN):
            while not (found := re.search(r"http://\S+\n", self._said())):
                if not self.alive:
                    return
                await asyncio.sleep(0.05)
        self.url = found[0].strip()

    def _becoming(self, moment: Moment | None) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """Return what the process is to run."""
        return _serve, (self.folder, self.environment, moment)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self.forked is not None and self.forked.is_alive() and self.forked.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.forked.pid, number)

    def _said(self) -> str:
        return (self.folder / "stdout").read_text()

    async def end(self, how: signal.Signals) -> int:
        """End the process that runs, if one does, and return how it ended."""
        if self.forked is None:
            return 0
        self.send(how)
        forked, self.forked = self.forked, None
        await asyncio.to_thread(forked.join)
        code = forked.exitcode or 0
        forked.close()
        return code


def _serve(folder: Path, environ: dict[str, str], moment: Moment | None) -> None:
    """Become the service."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    for number, name in ((1, "stdout"), (2, "log")):
        with (folder / name).open("a") as file:
            os.dup2(file.fileno(), number)
    Trap(folder / "trace", moment).listen()
    cli = importlib.import_module("remediator.cli")
    cli.main(["serve", "--config", str(folder / "remediator.yaml")])
