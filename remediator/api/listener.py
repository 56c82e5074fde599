"""The listening socket: bounds on connections that aiohttp does not have, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from remediator.api.connections import Connection, ConnectionLimits, Gate, Seldom, sweeping
from remediator.api.routing import STOPPING

__all__ = ["ConnectionLimits", "listening"]

_LINGER = 3.0
"""Seconds in which the rest of a body is read that was answered early, so that the sender sees
the answer and not a reset."""


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - frozen
    closed: Callable[[str], None] = lambda _reason: None,
) -> AsyncIterator[tuple[str, int]]:
    """Serve ``app`` inside the block; yields the bound address. Port 0 takes a free one.

    At the end nothing new is accepted, what starts new work answers 503, and requests under
    way are given ``stop_within``. ``closed`` is told why a connection was ended. Raises
    ``OSError`` when the address cannot be bound.
    """
    gate = Gate(limits, closed)
    app.middlewares.insert(0, gate.middleware())
    runner = web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=limits.keepalive,
        lingering_time=_LINGER,
        logger=_server_log(),
        shutdown_timeout=limits.stop_within,
    )
    await runner.setup()
    try:
        protocol = runner.server
        if protocol is None:
            raise RuntimeError("aiohttp made no server")
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Connection(gate, protocol()), host, port, backlog=512
        )
        sweeps = asyncio.create_task(sweeping(gate), name="connections")
        try:
            bound = server.sockets[0].getsockname()
            yield bound[0], bound[1]
        finally:
            app[STOPPING].set()
            server.close()
            sweeps.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeps
    finally:
        await runner.cleanup()


def _server_log() -> logging.Logger:
    """Return aiohttp's log, in which what is not HTTP is a short line and no traceback."""
    # not the one of the whole process: the filter is for what this socket receives
    log = logging.Logger("aiohttp.server")  # noqa: LOG001
    log.parent = logging.getLogger()
    log.addFilter(_Malformed())
    return log


class _Malformed(logging.Filter):
    """Takes what a client that speaks no HTTP causes out of the log, and says it shortly."""

    def __init__(self) -> None:
        super().__init__()
        self._seldom = Seldom(structlog.get_logger(__name__))

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep whatever is not the client's fault."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        remote = record.args[0] if isinstance(record.args, tuple) and record.args else None
        self._seldom.warn("request_malformed", type(error).__name__, remote=remote)
        return False
