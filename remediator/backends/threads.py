"""Blocking calls of a synchronous client, kept from starving or outliving everyone else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from remediator.model.errors import BackendUnavailable

T = TypeVar("T")


class BlockingCalls:
    """At most ``size`` blocking calls at a time, each on a daemon thread.

    Not a ThreadPoolExecutor: Python joins that one's threads at exit, so a server that hangs
    would hold up our shutdown. A place is free again when its thread ends, not when its caller
    gives up; while all places are held by calls that nobody waits for, new ones fail at once.
    """

    def __init__(self, name: str, size: int) -> None:
        """Name the backend for errors, and say how many calls may run at a time."""
        self._name = name
        self._size = size
        self._places = asyncio.Semaphore(size)
        self._calls: set[asyncio.Future[Any]] = set()

    async def run(self, call: Callable[[], T], timeout: float) -> T:  # noqa: ASYNC109 - covers the wait for a place too
        """Return what ``call`` returns or raises; ``BackendUnavailable`` after ``timeout`` s."""
        if sum(future.cancelled() for future in self._calls) >= self._size:
            raise BackendUnavailable(
                f"{self._name}: all {self._size} connections hang; not asked again until one ends"
            )
        try:
            async with asyncio.timeout(timeout):
                await self._places.acquire()
                return await self._start(call)
        except TimeoutError:
            raise BackendUnavailable(f"{self._name}: no answer within {timeout:g} s") from None

    def _start(self, call: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.add(future)

        def work() -> None:
            result: T | None = None
            failure: BaseException | None = None
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - raised again where it is awaited
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left to tell
                loop.call_soon_threadsafe(self._end, future, result, failure)

        try:
            threading.Thread(target=work, name=f"{self._name}-call", daemon=True).start()
        except RuntimeError as error:
            future.cancel()
            self._end(future, None, None)
            raise BackendUnavailable(f"{self._name}: {error}") from error
        return future

    def _end(self, future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
        self._calls.discard(future)
        self._places.release()
        if future.done():  # its caller gave up
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)
