"""One connection pool to a Redis server that is watched, and what its errors mean to us."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import redis.asyncio as aioredis
from redis import exceptions as failures
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from remediator.backends.redis.sample import Looked
from remediator.model.errors import BackendRefused, BackendUnavailable, ConfigError, RemediatorError
from remediator.model.finding import Sense, SenseState

BATCH = 500
"""Keys that one SCAN looks at and one UNLINK removes at most."""
ANSWER_WITHIN = 4.0
"""Seconds for one command."""

_NEEDED = (("SCAN", "0"), ("DBSIZE",), ("INFO", "server"))


class OutOfTime(BackendUnavailable):
    """It takes longer than it may, such as looking at so many keys."""


class RedisConnection:
    """A client of one database of one server that is an async context manager."""

    def __init__(self, url: str, *, name: str = "redis") -> None:
        """Keep the secret ``url``; ``name`` is what errors and senses call the backend.

        Raises ``ConfigError``, without its text, for a URL that cannot be read.
        """
        self._name = name
        try:
            self._client = aioredis.Redis.from_url(
                url,
                socket_timeout=ANSWER_WITHIN,
                socket_connect_timeout=ANSWER_WITHIN,
                retry=Retry(NoBackoff(), 0),
                decode_responses=False,
            )
        except ValueError:
            raise ConfigError(
                f"{name}: the url cannot be read; write redis://user:password@host:6379/0"
            ) from None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    async def __aenter__(self) -> Self:
        """Connect with the first command."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def probe(self) -> Sense:
        """Say whether the server answers, and whether our account has the rights that it needs."""
        try:
            await self._require_rights()
        except RemediatorError as error:
            return Sense(name=self._name, state=SenseState.IMPAIRED, reason=str(error))
        return Sense(name=self._name, state=SenseState.OK)

    async def _require_rights(self) -> None:
        for command in _NEEDED:
            await self._ask(*command)

    async def _ask(self, *command: bytes | str | int) -> Any:
        """Run one command once; raises ``BackendUnavailable`` or ``BackendRefused``."""
        run: Any = self._client.execute_command  # the client does not type it
        with _translated(self._name):
            async with asyncio.timeout(ANSWER_WITHIN):
                return await run(*command)

    async def _ask_all(self, commands: Sequence[tuple[bytes | str | int, ...]]) -> list[Any]:
        """Run commands in one round trip; raises the first error of any of them."""
        pipeline: Any = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        with _translated(self._name):
            async with asyncio.timeout(ANSWER_WITHIN):
                answers: list[Any] = await pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers

    async def _looked_at(self, keys: Sequence[bytes], *also: str) -> Looked:
        """Read types and times to live of keys, and what ``also`` is asked for each; no values."""
        asked = [("TYPE",), ("PTTL",), *(tuple(words.split()) for words in also)]
        answers = await self._ask_all([(*words, key) for words in asked for key in keys])
        size = len(keys)
        return Looked(answers[:size], answers[size : 2 * size], answers[2 * size :])

    async def _info(self) -> dict[str, Any]:
        found = await self._ask("INFO")
        if not isinstance(found, dict):
            raise BackendUnavailable(f"{self._name}: INFO makes no sense")
        return found

    async def _keys(
        self, within: float, pattern: bytes | None = None
    ) -> AsyncGenerator[list[bytes], None]:
        """Walk over all keys, a part at a time; ``OutOfTime`` when the time is over."""
        deadline, cursor = time.monotonic() + within, 0
        match: tuple[bytes | str | int, ...] = ("MATCH", pattern) if pattern is not None else ()
        while True:
            following, keys = await self._ask("SCAN", cursor, *match, "COUNT", BATCH)
            yield keys
            cursor = int(following)
            if not cursor:
                return
            if time.monotonic() > deadline:
                raise OutOfTime(
                    f"{self._name}: the keys cannot all be looked at within {within:g} s"
                )


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn the client's errors into ours. The URL is in none of their texts."""
    try:
        yield
    except failures.NoPermissionError as error:
        raise BackendRefused(f"{name}: our user lacks a right: {error}") from error
    except (failures.AuthenticationError, failures.AuthorizationError) as error:
        raise BackendRefused(f"{name}: refused our credentials; check user and password") from error
    except (failures.BusyLoadingError, failures.TryAgainError, failures.ClusterDownError) as error:
        raise BackendUnavailable(f"{name}: cannot serve now ({type(error).__name__})") from error
    except (failures.TimeoutError, TimeoutError) as error:
        raise BackendUnavailable(f"{name}: no answer within {ANSWER_WITHIN:g} s") from error
    except (failures.ConnectionError, OSError) as error:
        kind = type(error).__name__
        raise BackendUnavailable(f"{name}: cannot be reached ({kind})") from error
    except failures.ResponseError as error:
        raise BackendRefused(f"{name}: refused: {str(error)[:200]}") from error
    except failures.RedisError as error:
        raise BackendUnavailable(f"{name}: {type(error).__name__}") from error
