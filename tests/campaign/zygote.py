"""Forks processes of the service from one that has imported everything: a start costs little.

Run as ``python -P -m tests.campaign.zygote`` with the tree of the service first in ``PYTHONPATH``.
Reads one JSON object a line, forks, and answers with lines ``{"pid": ...}`` and, when a process
has ended, ``{"ended": PID, "status": ...}``. Watched from outside through SQLAlchemy's events, a
process kills or stops itself at the commit that its order names.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from tests.campaign.clock import set_ahead

PRELOADED = (
    "remediator.cli",
    "remediator.service",
    "remediator.backends.http.breakers",
    "remediator.backends.http.client",
    "remediator.backends.kubernetes.mitigator",
    "remediator.backends.postgres.mitigator",
    "remediator.backends.prometheus",
    "remediator.backends.redis.mitigator",
    "remediator.notify.slack",
    "alembic.command",
    "aiosqlite",
    "asyncpg",
)
_WRITES = re.compile(r"\s*(INSERT INTO|UPDATE|DELETE FROM) (\w+)")
_EFFECT = re.compile(r"inc-[0-9a-f]+-[0-9a-f]+/\w+/\d+/[^'\"\\]+")
_RESERVED = "insert mitigations"


class Trap:
    """Notes what each commit changes, and springs at one.

    ``reserved`` gets a line for each effect of which this process writes a row into the ledger.
    """

    def __init__(self, trace: Path, reserved: Path, order: dict[str, Any] | None) -> None:
        self._trace, self._reserved, self._order = trace, reserved, order
        self.ahead = 0
        """Seconds by which this process's clock is."""
        self._seen: Counter[str] = Counter()

    def listen(self) -> None:
        """Watch every engine of this process."""
        event.listen(Engine, "after_cursor_execute", self._executed)
        event.listen(Engine, "rollback", self._rolled_back)
        event.listen(Engine, "commit", self._commits)
        event.listen(Pool, "checkin", self._given_back)

    def _executed(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> None:
        found = _WRITES.match(statement)
        if found is None or not self._changed(connection, cursor):
            return
        change = f"{found[1].split()[0].lower()} {found[2]}"
        written = connection.info.setdefault("changes", {}).setdefault(change, set())
        written.update(_EFFECT.findall(str(parameters)))

    def _changed(self, connection: Connection, cursor: Any) -> bool:
        made: Any = connection.connection.driver_connection
        total = getattr(made, "total_changes", None)
        if total is None:
            return bool(cursor.rowcount)
        before = connection.info.get("total", 0)
        connection.info["total"] = total
        return bool(total > before)

    def _rolled_back(self, connection: Connection) -> None:
        if connection.invalidated:  # it has no record any more
            return
        connection.info.pop("changes", None)

    def _commits(self, connection: Connection) -> None:
        if connection.invalidated:
            return
        changes = connection.info.pop("changes", None)
        if not changes:
            return
        self._seen.update(changes.keys())
        if changes.get(_RESERVED):
            _add(self._reserved, changes[_RESERVED])
        due = self._due(changes)
        if due is not None and not due["after"]:
            self._spring(due)
        connection.info["sprung"] = due if due is not None and due["after"] else None

    def _due(self, changes: dict[str, set[str]]) -> dict[str, Any] | None:
        order = self._order
        if order is None or order["change"] not in changes:
            return None
        if self._seen[order["change"]] != order["nth"]:
            return None
        return {**order, "written": sorted(set().union(*changes.values()))}

    def _given_back(self, _connection: object, record: ConnectionPoolEntry) -> None:
        # the writer gives its connection back before anybody learns of the commit
        due = record.info.pop("sprung", None)
        if due is not None:
            self._spring(due)

    def _spring(self, order: dict[str, Any]) -> None:
        self._order = None
        _add(
            self._trace, [json.dumps({**order, "at": time.time() - self.ahead, "pid": os.getpid()})]
        )
        os.kill(os.getpid(), signal.SIGKILL if order["stop"] is None else signal.SIGSTOP)


def _add(file: Path, lines: Iterable[str]) -> None:
    with file.open("a") as added:
        added.write("".join(f"{line}\n" for line in lines))


def serve(task: dict[str, Any]) -> None:
    """Become the service."""
    folder = Path(task["folder"])
    os.chdir(folder)
    os.setsid()
    os.environ.clear()
    os.environ.update(task["environ"])
    for number, name in ((0, os.devnull), (1, "stdout"), (2, "log")):
        mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        file = os.open(name, mode, 0o600)
        os.dup2(file, number)
    trap = Trap(folder / "trace", folder / "reserved", task["order"])
    trap.ahead = task["ahead"]
    if trap.ahead:
        set_ahead(trap.ahead)
    trap.listen()
    importlib.import_module("remediator.cli").main(["serve", "--config", task["config"]])


def main() -> None:
    """Fork what is asked for until the input ends, then end every process that runs."""
    for name in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):  # a version before may have it elsewhere
            importlib.import_module(name)
    running: set[int] = set()
    asked = sys.stdin.fileno()
    waiting, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _say({"ready": True})
    text = b""
    while True:
        ready, _, _ = select.select([asked, waiting], [], [])
        if waiting in ready:
            os.read(waiting, 1 << 10)
            _reap(running)
        if asked in ready:
            data = os.read(asked, 1 << 16)
            if not data:
                break
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                running.add(_fork(json.loads(line)))
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _fork(task: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        code = 1
        try:
            serve(task)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001 - said in its log, as an interpreter does
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _say({"pid": pid})
    return pid


def _reap(running: set[int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            running.discard(pid)
            _say({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _say(what: dict[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
