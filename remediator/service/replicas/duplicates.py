"""The hot cache of duplicates in front of the store, shared by the replicas.

A sender that got no answer, or a 5xx, sends the very same body again, and some send it all the
time. Such a body is not stored once more when triage has said that it would change nothing, and
nobody has spoken of any of its alerts since. For each alert the server keeps who spoke of it last:
``?`` and a body, noted before that body is committed, and ``=`` and the same body once triage has
said so. Any other body takes its place, so that the first one is stored when it comes again: a
firing that follows a resolve is never swallowed.

An entry is believed for a short time only, and only while it can be relied on that everybody notes
what comes: not by a replica that has just started or lost the server meanwhile, and not after a
restart of the server, which may have forgotten the latest notes (its run id is part of an entry).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from remediator.model.alert import Alert, Delivery
from remediator.model.base import DeliveryId
from remediator.service.replicas.redis import SharedRedis
from remediator.store.duplicates import Triaged, may_repeat

BELIEVED_FOR = 5.0
"""Seconds after its triage in which a body need not be stored once more."""
NOTED_FOR = 300.0
"""Seconds that a note waits for triage, which may have a backlog."""
LARGEST = 256
"""Alerts of a body that may be a repetition; larger ones are always stored."""
_CHUNK = 1000
_TOGETHER = 64
"""Questions that are asked in one go."""

_RUN = "local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''"
_EARLIER = f"""
{_RUN}
local mine = run .. ':' .. ARGV[1] .. ':'
local known, first = ARGV[4] == '1', nil
local stale = {{}}
for i, key in ipairs(KEYS) do
  local said = redis.call('GET', key)
  local same = said and string.sub(said, 2, #mine + 1) == mine
  if not same then stale[#stale + 1] = key end
  known = known and same and string.sub(said, 1, 1) == '='
  if known and not first then first = string.sub(said, #mine + 2) end
end
if known then return first end
for i, key in ipairs(stale) do
  redis.call('SET', key, '?' .. mine .. ARGV[2], 'PX', ARGV[3])
end
return false
"""
_SETTLE = f"""
{_RUN}
local mine = run .. ':' .. ARGV[1] .. ':'
for i, key in ipairs(KEYS) do
  local said = redis.call('GET', key) or ''
  local known = string.sub(said, 1, 1) == '='
  local same = string.sub(said, 2, #mine + 1) == mine
  if said == '?' .. mine .. ARGV[2] or known and same then
    if ARGV[4] == '1' then
      redis.call('SET', key, '=' .. mine .. ARGV[2], 'PX', ARGV[3])
    else
      redis.call('DEL', key)
    end
  elseif known then
    redis.call('DEL', key)
  end
end
"""


@dataclass(frozen=True)
class _Question:
    """One call of a script."""

    script: str
    keys: Sequence[str]
    same: str
    """What it has in common with a delivery that says the same, by the same sender."""
    id: DeliveryId
    seconds: float
    """Time that what it writes lasts."""
    flag: bool

    @property
    def arguments(self) -> tuple[str | int, ...]:
        """What EVAL takes."""
        rest = (self.same, self.id, int(self.seconds * 1000), int(self.flag))
        return self.script, len(self.keys), *self.keys, *rest


class SharedRepeats:
    """Knows repetitions as ``store.duplicates.Repeats`` has it. Use ``shared_repeats``."""

    def __init__(
        self, shared: SharedRedis, version: str, believed_for: float = BELIEVED_FOR
    ) -> None:
        """Keep bodies of ``version``, a digest of all that decides what becomes of an alert."""
        self._shared = shared
        self._version = version
        self._believed_for = believed_for
        self._waiting: asyncio.Queue[tuple[_Question, asyncio.Future[str | None]]] = asyncio.Queue()
        self._closed = False

    async def earlier(
        self, delivery: Delivery, alerts: Sequence[Alert], *, whole: bool
    ) -> DeliveryId | None:
        """Return the delivery that this one repeats; else note whom it speaks of."""
        keys = self._keys(alerts)
        if not keys:
            return None
        if len(keys) > LARGEST:
            await self._forget(keys)
            return None
        known = whole and may_repeat(delivery, alerts) and self._is_believed()
        same = self._same(delivery)
        question = _Question(_EARLIER, keys, same, delivery.id, NOTED_FOR, known)
        first = None if self._shared.is_lost else await self._asked(question)
        return None if first is None else DeliveryId(first)

    async def settle(self, triaged: Triaged) -> None:
        """Let what would change nothing be known, and what it speaks of else be forgotten."""
        questions = []
        for delivery, alerts, repeatable in triaged:
            keys, same = self._keys(alerts), self._same(delivery)
            if len(keys) > LARGEST:
                await self._forget(keys)
            elif keys:
                lasting = self._believed_for
                questions.append(_Question(_SETTLE, keys, same, delivery.id, lasting, repeatable))
        if questions:
            await self._shared.tried(lambda: self._ask_all(questions))

    def _is_believed(self) -> bool:
        """Say whether nothing can have been committed without a note in the time of an entry."""
        return self._shared.clock() - self._shared.lost_at > self._believed_for

    def _same(self, delivery: Delivery) -> str:
        said = (self._version, delivery.source, str(delivery.credential), delivery.digest)
        return _digest("\0".join(said))

    def _keys(self, alerts: Iterable[Alert]) -> list[str]:
        prints = sorted({alert.fingerprint for alert in alerts})
        return [f"{self._shared.namespace}:said:{_digest(one)}" for one in prints]

    async def _asked(self, question: _Question) -> str | None:
        if self._closed:
            return None
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((question, answer))
        return await answer

    async def run(self) -> None:
        """Take all questions that wait, ask them together, answer, and repeat; for ever."""
        while True:
            asked = [await self._waiting.get()]
            while len(asked) < _TOGETHER and not self._waiting.empty():
                asked.append(self._waiting.get_nowait())
            answers: list[str | None] | None = None
            try:
                questions = [question for question, _ in asked]
                answers = await self._shared.tried(functools.partial(self._ask_all, questions))
            finally:
                for (_, answer), said in zip(asked, answers or [None] * len(asked), strict=True):
                    if not answer.done():
                        answer.set_result(said)

    def close(self) -> None:
        """Tell nothing to all that wait, and to whoever asks later."""
        self._closed = True
        while not self._waiting.empty():
            _, answer = self._waiting.get_nowait()
            if not answer.done():
                answer.set_result(None)

    async def _ask_all(self, questions: Iterable[_Question]) -> list[str | None]:
        async with self._shared.client.pipeline(transaction=False) as pipe:
            run: Any = pipe.eval
            for question in questions:
                run(*question.arguments)
            answers: list[str | None] = await pipe.execute()
            return answers

    async def _forget(self, keys: Sequence[str]) -> None:
        unlink: Any = self._shared.client.unlink  # the client does not type it
        for start in range(0, len(keys), _CHUNK):
            await self._shared.tried(functools.partial(unlink, *keys[start : start + _CHUNK]))


@contextlib.asynccontextmanager
async def shared_repeats(
    shared: SharedRedis, version: str, believed_for: float = BELIEVED_FOR
) -> AsyncIterator[SharedRepeats]:
    """Ask inside the block; who asks later is told nothing."""
    repeats = SharedRepeats(shared, version, believed_for)
    asking = asyncio.create_task(repeats.run(), name="repeats")
    asking.add_done_callback(lambda _: repeats.close())
    try:
        yield repeats
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
