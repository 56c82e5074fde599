"""Processes of the service, and who starts them again: as a cluster does, and nothing more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.plan import Order

ROOT = Path(__file__).resolve().parents[2]
STARTED_WITHIN = 90.0
PREFERRED_AFTER = 0.3
"""Seconds between an end and the next start."""
_ENDS_WITHIN = 10.0
"""Seconds that a stop takes at the longest, before it is a kill."""
_STOPPED = {-signal.SIGTERM, 0}
"""Ends on SIGTERM; by the signal itself before the process could listen to it."""
_NO_STORE = "remediator: the store "
"""How a process begins to say that it cannot reach its store at its start."""


class Zygote:
    """Starts processes of one tree of the service."""

    def __init__(self, process: asyncio.subprocess.Process, *, sets_clocks: bool) -> None:
        """``sets_clocks`` where its processes may have a wall clock of their own."""
        self._process = process
        self.sets_clocks = sets_clocks
        self._asked: deque[asyncio.Future[int]] = deque()
        """Who waits for the id of a process, in the order in which they asked."""
        self._ended: dict[int, asyncio.Future[int]] = {}

    async def fork(self, task: dict[str, Any]) -> tuple[int, asyncio.Future[int]]:
        """Start a process; return its id, and what will be its exit code."""
        assert self._process.stdin is not None
        asked: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        pid = await asyncio.shield(asked)
        return pid, self._end_of(pid)

    def _end_of(self, pid: int) -> asyncio.Future[int]:
        return self._ended.setdefault(pid, asyncio.get_running_loop().create_future())

    async def listen(self) -> None:
        """Take what the zygote says, until it ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if "pid" in said:
                self._ended.pop(said["pid"], None)  # an id that is used again
                self._end_of(said["pid"])
                self._asked.popleft().set_result(said["pid"])
            elif "ended" in said:
                self._end_of(said["ended"]).set_result(said["status"])


@contextlib.asynccontextmanager
async def zygote_of(tree: Path, clock: Path | None) -> AsyncIterator[Zygote]:
    """Run a zygote for the service in ``tree``, which has ``remediator/`` and ``playbooks/``.

    ``clock`` is the library that sets the clocks of its processes.
    """
    preload = {} if clock is None else {"LD_PRELOAD": str(clock)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tests.campaign.zygote"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{ROOT}", **preload},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(await process.stdout.readline()) == {"ready": True}
    zygote = Zygote(process, sets_clocks=clock is not None)
    listening = asyncio.create_task(zygote.listen())
    try:
        yield zygote
    finally:
        process.stdin.close()
        await process.wait()
        await listening


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class Replica:
    """One place where a process of the service runs, and is started again when it ends."""

    name: str
    folder: Path
    zygote: Zygote
    config: Path
    orders: Callable[[], Order | None]
    """Gives what the next process does to itself."""
    url: str = ""
    pid: int = 0
    starts: int = 0
    wrong: list[str] = field(default_factory=list)
    """Ends that nobody ordered."""
    store_away: bool = False
    """Whether its store may be away: a server, or on a disk that is full."""
    successor: tuple[Zygote, Path] | None = None
    """The new version and its configuration, which are to be used some time."""
    ahead: int = 0
    """Seconds by which the clock of the machine is ahead when the next process starts."""
    served_before: bool = False
    """Whether the version before has listened."""
    free: asyncio.Event = field(default_factory=_set)
    """Whether a process may be started."""
    _busy: bool = False
    """Whether one is being started, or has not ended."""
    _sent: set[tuple[int, signal.Signals]] = field(default_factory=set)
    _ended: asyncio.Future[int] | None = None
    _read: int = 0

    @property
    def alive(self) -> bool:
        """Whether a process runs, or stands still."""
        return self._ended is not None and not self._ended.done()

    @property
    def previous(self) -> bool:
        """Whether it runs the version before: its own faults are not this one's."""
        return self.successor is not None and self.zygote is not self.successor[0]

    async def keep(self) -> None:
        """Start a process whenever there is none, until cancelled."""
        while True:
            await self.free.wait()
            self._busy = True
            code = await self._run()
            self._busy = False
            ordered = self._killed(code) or self._without_store(code) or self._too_old(code)
            if not ordered and not (self.previous and self.served_before):
                self.wrong.append(f"{self.name} ended by itself with {code}: {self.last_words()}")
            await asyncio.sleep(PREFERRED_AFTER)

    def _killed(self, code: int) -> bool:
        if code in _STOPPED:
            return (self.pid, signal.SIGTERM) in self._sent
        by_itself = any(order["stop"] is None for order in self._trace())
        return code == -signal.SIGKILL and (by_itself or (self.pid, signal.SIGKILL) in self._sent)

    def _without_store(self, code: int) -> bool:
        return (
            self.store_away
            and code == 1
            and self.last_words().rpartition("\n{")[2].count(_NO_STORE) > 0
        )

    def _too_old(self, code: int) -> bool:
        """Whether an older version refused, clearly, a schema of the newer one."""
        refused = code == 2 and self.successor is not None and "schema" in self.last_words()
        if refused:
            self.upgrade()
        return refused

    def upgrade(self) -> None:
        """Let the next process be of the new version."""
        assert self.successor is not None
        self.zygote, self.config = self.successor

    async def _run(self) -> int:
        self.starts += 1
        self._read = 0
        for name in ("stdout", "trace"):
            (self.folder / name).write_text("")
        order = self.orders()
        given = None if order is None else {**order.point._asdict(), "nth": order.nth}
        task = {
            "folder": str(self.folder),
            "config": str(self.config),
            "environ": self._environ(),
            "ahead": self.ahead,
            "order": given and {**given, "stop": order and order.stop},
        }
        forking = asyncio.create_task(self.zygote.fork(task))
        try:
            self.pid, ended = await asyncio.shield(forking)
        except asyncio.CancelledError:  # what was asked for comes, and has to be ended
            self.pid, self._ended = await forking
            raise
        self._ended = ended
        reading = asyncio.create_task(self._listens())
        try:
            return await asyncio.shield(ended)
        finally:
            reading.cancel()
            self.url = ""

    def _environ(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("REMEDIATOR_")}
        return kept | {"REMEDIATOR_STATE_DIR": str(self.folder / "state"), **_TOKENS}

    async def _listens(self) -> None:
        """Learn where it listens."""
        while True:
            text = (self.folder / "stdout").read_text()
            found = re.search(r"http://\S+(?=\s)", text)
            if found:
                self.url = found[0]
                self.served_before |= self.previous
                return
            await asyncio.sleep(0.05)

    def sprung(self) -> list[dict[str, Any]]:
        """Return what this process did to itself since the last call."""
        orders = self._trace()
        new, self._read = orders[self._read :], len(orders)
        return new

    def _trace(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._lines("trace")]

    @property
    def reserved(self) -> set[str]:
        """Effects that processes of this place wrote into the ledger."""
        return {*self._lines("reserved")}

    def _lines(self, name: str) -> list[str]:
        file = self.folder / name
        if not file.exists():
            return []
        return file.read_text().split("\n")[:-1]  # what has no end is still being written

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to the process; whether there was one."""
        if not self.alive:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            self._sent.add((self.pid, number))
            return True
        return False

    def told_to_end(self, pid: int) -> bool:
        """Whether somebody told that process to end."""
        return (pid, signal.SIGTERM) in self._sent

    async def hold(self) -> None:
        """End what runs as an operator stops a service, and start nothing until it is ``free``."""
        self.free.clear()
        clock = asyncio.get_running_loop().time
        patience = clock() + _ENDS_WITHIN
        while self._busy:
            self.send(signal.SIGCONT)
            if clock() > patience:
                self.send(signal.SIGKILL)
            elif not self.told_to_end(self.pid):
                self.send(signal.SIGTERM)
            await asyncio.sleep(0.1)

    def last_words(self) -> str:
        """Return the end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-1500:]

    async def end(self) -> None:
        """Kill what runs."""
        self.send(signal.SIGKILL)
        if self._ended is not None:
            await asyncio.shield(self._ended)


OPERATOR, INGEST = "operator-of-the-campaign-0123456789", "ingest-of-the-campaign-0123456789"
_TOKENS = {
    "CAMPAIGN_AUDIT": "audit-key-of-the-campaign-0123456789",
    "CAMPAIGN_OPERATOR": OPERATOR,
    "CAMPAIGN_INGEST": INGEST,
    "READER": "reader-token",
    "WRITER": "writer-token",
}
