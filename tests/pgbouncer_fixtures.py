"""A real PgBouncer in front of the tests' PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from tests.campaign.network import free_port
from tests.postgres_fixtures import eventually, missing

_CONFIG = """
[databases]
* = host={host} port={port} user={user}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 4
max_client_conn = 200
server_round_robin = {round_robin}
logfile = {folder}/log
"""


@contextlib.asynccontextmanager
async def pgbouncer(dsn: str, mode: str, *, round_robin: bool = True) -> AsyncIterator[str]:
    """Run one; yields the ``dsn`` by way of it.

    With ``round_robin`` one transaction is never in the session of the one before.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing("PgBouncer is not installed")
    assert program is not None
    parts, listen = urlsplit(dsn), free_port()
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    folder.chmod(0o777)  # noqa: ASYNC240 - its own folder
    (folder / "ini").write_text(
        _CONFIG.format(
            host=parts.hostname,
            port=parts.port,
            user=parts.username,
            password=f" password={parts.password}" if parts.password else "",
            listen=listen,
            mode=mode,
            round_robin=int(round_robin),
            folder=folder,
        )
    )
    user = "nobody" if os.geteuid() == 0 else None  # it refuses to be root
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [program, "-q", str(folder / "ini")],
        user=user,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    through = parts._replace(netloc=f"{parts.username}@127.0.0.1:{listen}").geturl()
    try:
        await eventually(lambda: _answers(through), "PgBouncer answers", within=20)
        yield through
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        shutil.rmtree(folder)


async def _answers(dsn: str) -> bool:
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        connection = await asyncpg.connect(dsn, timeout=5, statement_cache_size=0)
        await connection.close()
        return True
    return False
