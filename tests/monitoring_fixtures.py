"""Real Prometheus and Alertmanager servers on free ports, with their state in temporary folders."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import pytest

READY_WITHIN = 20.0
"""Seconds for a server to become ready: TSDB and rules included, on a busy machine."""
_ATTEMPTS = 3
"""Starts, because another process may take the free port in between."""


@dataclass(frozen=True)
class MonitoringServer:
    """A running server."""

    url: str
    folder: Path
    """Holds its configuration, its data and ``log``."""
    process: asyncio.subprocess.Process
    """For faults: SIGSTOP, SIGCONT, kill."""

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


Running = AbstractAsyncContextManager[MonitoringServer]


class Start(Protocol):
    """What the fixtures hand out."""

    def __call__(
        self, config: str, files: Mapping[str, str] | None = None, *options: str
    ) -> Running: ...


@asynccontextmanager
async def running_prometheus(
    config: str, folder: Path, files: Mapping[str, str] | None = None, *options: str
) -> AsyncIterator[MonitoringServer]:
    """Run Prometheus with ``config``; ``files`` (rules) are written beside it by name.

    ``PORT`` in the configuration becomes its own port, so that it can scrape itself.
    """
    binary = _binary("prometheus")

    def command(port: int) -> list[str]:
        return [
            binary,
            f"--config.file={folder / 'config.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--rules.alert.resend-delay=5s",
            *options,
        ]

    async with _running(command, config, folder, files or {}) as server:
        yield server


@asynccontextmanager
async def running_alertmanager(
    config: str, folder: Path, files: Mapping[str, str] | None = None, *options: str
) -> AsyncIterator[MonitoringServer]:
    """Run Alertmanager with ``config``, without a cluster; ``files`` are written beside it."""
    binary = _binary("prometheus-alertmanager", "alertmanager")

    def command(port: int) -> list[str]:
        return [
            binary,
            f"--config.file={folder / 'config.yml'}",
            f"--storage.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
            *options,
        ]

    async with _running(command, config, folder, files or {}) as server:
        yield server


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Start:
    """Run a Prometheus: ``async with start_prometheus(config) as server``."""
    return _starter(running_prometheus, tmp_path)


@pytest.fixture
def start_alertmanager(tmp_path: Path) -> Start:
    """Run an Alertmanager: ``async with start_alertmanager(config) as server``."""
    return _starter(running_alertmanager, tmp_path)


def _starter(run: Callable[..., Running], folder: Path) -> Start:
    def start(config: str, files: Mapping[str, str] | None = None, *options: str) -> Running:
        return run(config, Path(tempfile.mkdtemp(dir=folder)), files, *options)

    return start


def _binary(*names: str) -> str:
    """Find the server; where it is missing a laptop skips and CI fails."""
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    missing = f"{names[0]} is not on PATH (Debian: apt-get install {names[0]})"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@asynccontextmanager
async def _running(
    command: Callable[[int], list[str]], config: str, folder: Path, files: Mapping[str, str]
) -> AsyncIterator[MonitoringServer]:
    for name, text in files.items():
        (folder / name).write_text(text)
    async with AsyncExitStack() as stack:
        server = await _started(stack, command, config, folder)
        yield server


async def _started(
    stack: AsyncExitStack, command: Callable[[int], list[str]], config: str, folder: Path
) -> MonitoringServer:
    for _ in range(_ATTEMPTS):
        port = _free_port()
        (folder / "config.yml").write_text(config.replace("PORT", str(port)))
        server = await stack.enter_async_context(_process(command(port), port, folder))
        if await _ready(server):
            return server
    raise AssertionError(f"{command(0)[0]} did not start:\n{server.log()[-2000:]}")


@asynccontextmanager
async def _process(command: list[str], port: int, folder: Path) -> AsyncIterator[MonitoringServer]:
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        yield MonitoringServer(f"http://127.0.0.1:{port}", folder, process)
    finally:
        if process.returncode is None:
            process.kill()  # its data is thrown away, and SIGTERM would not end a stopped one
        await process.wait()


async def _ready(server: MonitoringServer) -> bool:
    """Poll until it is ready; False when it ended instead."""
    async with asyncio.timeout(READY_WITHIN), httpx.AsyncClient(base_url=server.url) as client:
        while server.process.returncode is None:
            try:
                if (await client.get("/-/ready")).is_success:
                    return True
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
