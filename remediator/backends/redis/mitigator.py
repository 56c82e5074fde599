"""Redis as a target: what it says of itself, and the removal of cache keys by their prefix.

Reader and lever are two classes, for two accounts. Both walk the keys by SCAN within a budget and
never read a value. The lever knows only the prefixes of the configuration, and no FLUSH command.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from pydantic import JsonValue

from remediator.backends.redis.client import BATCH, OutOfTime, RedisConnection
from remediator.backends.redis.sample import drawn, matches, text_of
from remediator.model.errors import BackendRefused, BackendUnavailable, RemediatorError
from remediator.model.mitigation import (
    ItemOutcome,
    Mitigation,
    MitigationState,
    Outcome,
    Preparation,
)

UNLINK = "unlink_prefix"
MAX_KEYS = 100_000
"""Keys that one mitigation removes at most (runbooks)."""
SAMPLE = 500
"""Keys of a prefix that are looked at before it is called a cache."""
COUNT_KEYS = 200_000
COUNT_WITHIN = 3.0
"""Budget of one count for a diagnosis: keys and seconds."""
WALK_WITHIN = 5.0
"""Seconds for one walk over all keys when something is changed, or looked up."""
REMOVE_WITHIN = 6.0
"""Seconds, from its beginning, after which a change removes nothing further."""
LOOK_WITHIN = 2.0
"""Seconds for counting what is left."""

_LOOKS = ("TYPE", "PTTL")


_log = structlog.get_logger(__name__)


class _RightsUnknown(BackendRefused):
    """The server does not say which rights we have."""


class RedisMitigator(RedisConnection):
    """Removes the keys of one configured prefix (``ports.Mitigator``).

    Not conditional: a cache refills at once, so the server cannot refuse a second removal; a lost
    one is looked up and never repeated. Every key is compared with the prefix by us as well.
    """

    kinds = frozenset({UNLINK})
    consequences: Mapping[str, str] = {
        UNLINK: "These keys are deleted; their readers go to the origin until the cache is full again."
    }
    conditional = False

    def __init__(
        self,
        url: str,
        *,
        prefixes: Sequence[str],
        name: str = "redis",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the writer's ``url`` and the only ``prefixes`` whose keys may ever be removed."""
        super().__init__(url, name=name)
        self._prefixes = tuple(prefixes)
        self._clock = clock

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        """Count what would go; refuse what is no cache, too much, or nothing."""
        prefix, most = self._meant(mitigation)
        with contextlib.suppress(_RightsUnknown):  # then the server has its say when we act
            await self._require_rights()
        await self._require_single()
        keys = await self._matching(prefix, most)
        matching = len(keys)
        if not matching:
            raise BackendRefused(f"{self._name}: already so, no key begins with {prefix!r}")
        await self._require_cache(drawn(keys, SAMPLE), prefix)
        before: dict[str, JsonValue] = {"matching": matching, "other": await self._others(matching)}
        return Preparation(mitigation=mitigation, before=before)

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Remove the keys, a batch at a time, and count the others before and after."""
        end = self._clock() + REMOVE_WITHIN
        prefix, most = self._meant(preparation.mitigation)
        try:
            await self._require_single()
            keys = await self._matching(prefix, most)
            before = await self._others(len(keys))
            if self._clock() > end:
                raise OutOfTime(f"{REMOVE_WITHIN:g} s have passed")
        except RemediatorError as error:
            return _outcome(prefix, MitigationState.NOT_APPLIED, f"nothing was removed: {error}")
        outcome = await self._remove(prefix, keys, before, end)
        state = outcome.state.value
        _log.info("keys_removed", effect_key=effect_key, backend=self._name, state=state)
        return outcome

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Look how many keys are left: none is applied, fewer than before cannot be told."""
        prefix, _ = self._meant(preparation.mitigation)
        earlier = preparation.before.get("matching")
        left = len(await self._matching(prefix, None))
        detail = f"{left} keys begin with {prefix!r}, before it were {earlier}"
        if not left:
            return _outcome(prefix, MitigationState.APPLIED, detail)
        if isinstance(earlier, int) and left >= earlier:
            return _outcome(prefix, MitigationState.NOT_APPLIED, detail)
        return _outcome(prefix, MitigationState.UNKNOWN, f"{detail}: removed in part, or refilled")

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        """Refuse: removed keys are gone; the application builds its cache again."""
        raise BackendRefused(f"{UNLINK} cannot be taken back: the cache refills by itself")

    def _meant(self, mitigation: Mitigation) -> tuple[str, int]:
        """Return prefix and most keys; refuse a plan that is not exactly one configured prefix."""
        parameters = mitigation.parameters
        prefix, most = parameters.get("prefix"), parameters.get("max_keys", MAX_KEYS)
        keys = [item.key for item in mitigation.items]
        if mitigation.kind != UNLINK or not parameters.keys() <= {"prefix", "max_keys"}:
            raise BackendRefused(f"{self._name}: {UNLINK} takes a prefix and max_keys only")
        if not isinstance(prefix, str) or keys != [prefix]:
            raise BackendRefused(f"{self._name}: {UNLINK} takes one item, whose key is the prefix")
        if not prefix or prefix not in self._prefixes:
            raise BackendRefused(
                f"{self._name}: {prefix!r} is not one of its cache_prefixes; nothing else is removed"
            )
        if isinstance(most, bool) or not isinstance(most, int) or not 0 < most <= MAX_KEYS:
            raise BackendRefused(f"{self._name}: max_keys must be 1 to {MAX_KEYS}")
        return prefix, most

    async def _require_rights(self) -> None:
        await super()._require_rights()
        try:
            user = text_of(await self._ask("ACL WHOAMI"))
            missing = [p for p in self._prefixes if not await self._may(user, "UNLINK", p)]
            looks = [c for c in _LOOKS if not await self._may(user, c, self._prefixes[0])]
        except BackendRefused as error:
            raise _RightsUnknown(
                f"{error}; its rights cannot be checked: allow +acl|whoami +acl|dryrun"
            ) from error
        if missing:
            grants = " ".join(f"~{prefix}*" for prefix in missing)
            raise BackendRefused(
                f"{self._name}: our user may not remove its keys:"
                f" ACL SETUSER {user} +unlink {grants}"
            )
        if looks:
            grants = " ".join(f"+{command.lower()}" for command in looks)
            raise BackendRefused(
                f"{self._name}: our user may not look at what it would remove:"
                f" ACL SETUSER {user} {grants}"
            )

    async def _may(self, user: str, command: str, prefix: str) -> bool:
        answer = await self._ask("ACL DRYRUN", user, command, f"{prefix}x")
        return text_of(answer) == "OK"

    async def _require_single(self) -> None:
        info = await self._info()
        if info.get("cluster_enabled"):
            raise BackendRefused(f"{self._name}: is a cluster, whose nodes cannot be cleaned yet")
        if info.get("role") not in {"master", b"master"}:
            raise BackendRefused(f"{self._name}: is a replica; give the writer the primary's URL")

    async def _matching(self, prefix: str, most: int | None) -> list[bytes]:
        """List the keys of the prefix, each once; refuse more than ``most``."""
        start, found = prefix.encode(), set[bytes]()
        async for keys in self._keys(WALK_WITHIN, matches(start)):
            found.update(key for key in keys if key.startswith(start))
            if most is not None and len(found) > most:
                raise BackendRefused(f"{self._name}: more than {most} keys begin with {prefix!r}")
        return sorted(found)

    async def _require_cache(self, keys: Sequence[bytes], prefix: str) -> None:
        """Refuse where any of ``keys`` is a list, a stream, or lives without an end."""
        found = (await self._looked_at(keys)).use(keys=len(keys), complete=True).no_cache
        if found:
            raise BackendRefused(f"{self._name}: {prefix!r} is no cache: it {found}")

    async def _others(self, matching: int) -> int:
        return int(await self._ask("DBSIZE")) - matching

    async def _remove(self, prefix: str, keys: list[bytes], others: int, end: float) -> Outcome:
        removed = 0
        try:
            for start in range(0, len(keys), BATCH):
                if self._clock() > end:
                    break
                batch = keys[start : start + BATCH]
                await self._require_cache(batch, prefix)
                removed += int(await self._ask("UNLINK", *batch))
        except BackendRefused as error:
            state = MitigationState.APPLIED if removed else MitigationState.NOT_APPLIED
            return _outcome(prefix, state, f"{removed} keys removed, then refused: {error}")
        except BackendUnavailable as error:
            detail = f"{removed} keys removed, then an answer was lost: {error}"
            return _outcome(prefix, MitigationState.UNKNOWN, detail)
        after = await self._counted_after(prefix)
        detail = (
            f"{removed} of {len(keys)} keys of {prefix!r} removed;"
            f" other keys before {others}, after {after}"
        )
        return _outcome(prefix, MitigationState.APPLIED, detail)

    async def _counted_after(self, prefix: str) -> str:
        try:
            async with asyncio.timeout(LOOK_WITHIN):
                return str(await self._others(len(await self._matching(prefix, None))))
        except (RemediatorError, TimeoutError):
            return "unknown"


def _outcome(prefix: str, state: MitigationState, detail: str) -> Outcome:
    item = ItemOutcome(key=prefix, state=state, detail=detail)
    return Outcome(state=state, detail=detail, items=(item,))
