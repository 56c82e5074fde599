"""``remediator demo`` as a user runs it: every scenario mends its system and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.postgres_fixtures import require_embedded

WITHIN = 60
"""Seconds that a demo may take."""
ANOTHER_STORY = """
import sys
from dataclasses import replace
from remediator.cli.demo.breaker import BREAKER
from remediator.cli.demo.run import play
sys.exit(play(replace(BREAKER, lever="another lever")))
"""
PROOFS = {
    "pool": ("PoolExhausted", "Orders flow again"),
    "latency": ("HighLatency", "1 session was ended, the one that held the lock"),
    "breaker": ("CircuitBreakerOpen", "1 reset call was made"),
    "oom": ("playbook OOM", "1 change was made, as the emulated API counted"),
}


@pytest.fixture
def emptied() -> Iterator[Path]:
    """A folder that has to be empty again at the end."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to the server's account
        Path(name).chmod(0o755)
        yield Path(name)
        assert list(Path(name).iterdir()) == []


def demo(folder: Path, *scenario: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return running(folder, "-m", "remediator", "demo", *scenario)


@asynccontextmanager
async def running(folder: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        env=os.environ
        | {"TMPDIR": str(folder), "REMEDIATOR_LISTEN": "127.0.0.1:1", "COLUMNS": "80"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@pytest.mark.parametrize("scenario", PROOFS)
async def test_a_demo_mends_its_system_and_leaves_nothing_behind(
    emptied: Path, scenario: str
) -> None:
    if scenario in ("pool", "latency"):
        require_embedded()
    async with asyncio.timeout(WITHIN), demo(emptied, scenario) as process:
        printed = (await process.communicate())[0].decode()
    assert process.returncode == 0, printed
    for text in (*PROOFS[scenario], "closed as mitigated", "Slack shows one message"):
        assert text in " ".join(printed.split())
    assert "Traceback" not in printed
    assert max(map(len, printed.splitlines())) <= 80


async def test_a_demo_that_went_another_way_says_so_and_fails(emptied: Path) -> None:
    async with asyncio.timeout(WITHIN), running(emptied, "-c", ANOTHER_STORY) as process:
        printed = (await process.communicate())[0].decode()
    assert process.returncode == 1, printed
    assert "The demo failed: exactly one another lever should have helped" in printed
    assert "reset_breaker" in printed
    assert "Traceback" not in printed


async def test_the_emulation_is_called_an_emulation(emptied: Path) -> None:
    async with demo(emptied, "oom") as process:
        assert process.stdout is not None
        first = (await process.stdout.readline()).decode()
    assert "EMULATED" in first


@pytest.mark.parametrize(
    ("scenario", "how"),
    [
        ("pool", signal.SIGINT),
        ("pool", signal.SIGTERM),
        ("pool", signal.SIGHUP),
        ("latency", signal.SIGINT),
        ("breaker", signal.SIGTERM),
        ("oom", signal.SIGHUP),
    ],
)
async def test_an_interrupted_demo_leaves_nothing_behind(
    emptied: Path, scenario: str, how: signal.Signals
) -> None:
    if scenario in ("pool", "latency"):
        require_embedded()
    if signal.getsignal(how) is signal.SIG_IGN:
        pytest.skip(f"{how.name} is ignored here (nohup), and so it is by what is started here")
    async with asyncio.timeout(WITHIN), demo(emptied, scenario) as process:
        assert process.stdout is not None
        async for line in process.stdout:
            if b"remediator listens" in line:
                process.send_signal(how)
        assert await process.wait() == 130


async def test_without_a_name_the_pool_is_played_and_an_unknown_one_is_a_clear_error(
    emptied: Path,
) -> None:
    async with demo(emptied) as process:
        assert process.stdout is not None
        assert b"PostgreSQL" in await process.stdout.readline()
    async with demo(emptied, "volcano") as process:
        printed = (await process.communicate())[0].decode()
    assert process.returncode == 2
    for name in ("volcano", *PROOFS):
        assert f"'{name}'" in printed
