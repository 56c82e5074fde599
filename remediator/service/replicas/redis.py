"""The Redis that the replicas share: short calls, and none at all while it does not answer.

Nothing here is needed. A call that fails, or takes longer than ``WITHIN``, is given up, and no
other is tried until the server answers again in the background: a server that is dead or hangs
costs whoever is waiting at that moment one timeout, and the next ones nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio as aioredis
import structlog
from redis import exceptions as failures
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from remediator.model.errors import ConfigError

T = TypeVar("T")

WITHIN = 0.25
"""Seconds for one call."""
AGAIN = 1.0
"""Seconds between two looks whether the server answers again."""
TOLD_EVERY = 60.0
"""Seconds between two lines of the log about outages, at least: one may come and go."""
_TURNS = 32
"""Turns of the event loop in which what has arrived is read, with some to spare."""
CONNECTIONS = 32
"""Connections of one process, for all that it asks."""
UNREADABLE = (
    "redis: the url cannot be read; write redis://user:password@host:6379/0, and after a ? nothing"
    " that the client does not know"
)

_PROBE = """
local info = redis.call('INFO', 'server')
if string.find(info, '_mode:cluster') then return redis.error_reply('ERR it is a cluster') end
redis.call('INCRBY', KEYS[1], 1)
redis.call('PTTL', KEYS[1])
redis.call('RENAME', KEYS[1], KEYS[1])
redis.call('EXISTS', KEYS[1])
redis.call('SET', KEYS[1], '', 'PX', 1000)
redis.call('GET', KEYS[1])
redis.call('UNLINK', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[1], '')
"""
"""Uses the rights that we need, and a little memory."""

_log = structlog.get_logger(__name__)


class SharedRedis:
    """The client with its breaker. Use ``shared_redis``."""

    def __init__(
        self,
        url: str,
        namespace: str,
        impaired: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the secret ``url``; every key and channel begins with ``namespace``.

        Raises ``ConfigError``, without its text, for a URL that cannot be read.
        """
        try:
            pool: Any = aioredis.BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=WITHIN,
                socket_timeout=None,  # bounded by us, who know when we are late ourselves
                socket_connect_timeout=None,
                retry=Retry(NoBackoff(), 0),
                decode_responses=True,
                encoding_errors="replace",  # anybody may publish anything
            )
            pool.make_connection()  # whose options the URL may give, and not connected yet
        except (ValueError, TypeError):
            raise ConfigError(UNREADABLE) from None
        self.client = aioredis.Redis.from_pool(pool)
        self.namespace = namespace
        self.clock = clock
        self.lost_at = clock()
        """When it was last not to be relied on: at the start, and at the end of an outage."""
        self._impaired = impaired
        self._lost = asyncio.Event()
        self._told_at = -math.inf
        impaired(False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.namespace!r})"

    @property
    def is_lost(self) -> bool:
        """Whether it is not asked at present."""
        return self._lost.is_set()

    async def tried(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Return what ``ask`` returns; None without asking while the server does not answer."""
        if self.is_lost:
            return None
        try:
            return await within(ask())
        except Exception as error:  # noqa: BLE001 - whatever is wrong here may harm nobody
            self._lose(error)
            return None

    async def probe(self) -> None:
        """Ask for all that is needed of the server, once; raises what the client raises."""
        script: Any = self.client.register_script(_PROBE)  # EVALSHA, as the admission limit does
        name = f"{self.namespace}:probe"
        await within(script(keys=[name], args=[name]))

    async def come_back(self) -> None:
        """Look, while the server is lost, whether it answers again. For ever."""
        while True:
            await self._lost.wait()
            await asyncio.sleep(AGAIN)
            try:
                await self.probe()
            except Exception as error:  # noqa: BLE001 - whatever is wrong here may harm nobody
                _log.debug("shared_redis_still_lost", reason=reason_of(error))
                continue
            self.lost_at = self.clock()
            self._lost.clear()
            self._impaired(False)
            _log.info("shared_redis_back")

    def _lose(self, error: Exception) -> None:
        self.lost_at = self.clock()
        if not self.is_lost:  # said once an outage
            self._lost.set()
            self._impaired(True)
            if self.lost_at - self._told_at > TOLD_EVERY:
                self._told_at = self.lost_at
                _log.warning("shared_redis_lost", reason=reason_of(error))


async def look(url: str) -> str | None:
    """Ask a server once for all that is needed of it; return what is wrong, or None."""
    shared = SharedRedis(url, "remediator:check", lambda _: None)
    async with contextlib.aclosing(shared.client):
        try:
            await shared.probe()
        except (failures.RedisError, OSError, TimeoutError) as error:
            return reason_of(error)
    return None


async def within(asked: Awaitable[T]) -> T:
    """Wait for an answer for ``WITHIN``; ``TimeoutError`` when it has not come then.

    An answer that is here and only waits for this process, which is late, has come.
    """
    answer = asyncio.ensure_future(asked)
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # is looked at
    try:
        await asyncio.wait({answer}, timeout=WITHIN)
        for _ in range(_TURNS):
            if answer.done():
                return answer.result()
            await asyncio.sleep(0)
        raise TimeoutError
    finally:
        answer.cancel()


def reason_of(error: Exception) -> str:
    """Say what is wrong, without the server's address and our credentials."""
    match error:
        case failures.AuthenticationError() | failures.AuthorizationError():
            return "it refused our user or password"
        case failures.NoPermissionError():
            return f"our user lacks a right: {str(error)[:200]}"
        case failures.TimeoutError() | TimeoutError():
            return f"no answer within {WITHIN:g} s"
        case failures.ResponseError():
            return f"it refused: {str(error)[:200]}"
        case _:
            return f"it cannot be reached ({type(error).__name__})"


@contextlib.asynccontextmanager
async def shared_redis(
    url: str, namespace: str, impaired: Callable[[bool], None]
) -> AsyncIterator[SharedRedis]:
    """Open it, also where the server is down; ``impaired`` is told whether it is."""
    shared = SharedRedis(url, namespace, impaired)
    returning = asyncio.create_task(shared.come_back(), name="shared-redis")
    try:
        await shared.tried(shared.probe)
        yield shared
    finally:
        returning.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await returning
        with contextlib.suppress(failures.RedisError, OSError, TimeoutError):
            await within(shared.client.aclose())
