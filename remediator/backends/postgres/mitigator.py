"""PostgreSQL as a target: who is connected, who blocks whom, and the ending of single sessions.

Reader and lever are two classes, for two roles: the reader needs ``pg_monitor``, the lever
``pg_monitor`` and ``pg_signal_backend``. Neither needs, nor should have, a right on any table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog
from pydantic import JsonValue

from remediator.backends.postgres import statements as sql
from remediator.backends.postgres.client import Connection, PostgresClient
from remediator.backends.postgres.reader import session_of
from remediator.backends.postgres.signals import (
    GONE_WITHIN,
    KINDS,
    Live,
    Plan,
    listed,
    lost,
    may_be_done,
    mismatch,
    not_applied,
    observed,
    outcome_of,
    read_plan,
    same,
    settled,
)
from remediator.model.errors import BackendRefused, BackendUnavailable, RemediatorError
from remediator.model.mitigation import (
    ItemOutcome,
    Mitigation,
    MitigationState,
    Outcome,
    Preparation,
)

LONGEST = 5.0
"""Seconds after which no further session of one change is signalled."""
POLL = 0.05
"""Seconds between two looks at sessions that were signalled."""

_log = structlog.get_logger(__name__)


class PostgresMitigator(PostgresClient):
    """Ends sessions and cancels queries, one guarded statement each (``ports.Mitigator``).

    A mitigation is applied when the server took at least one signal; unknown when an answer was
    lost and the session cannot be seen gone. A session that took the signal and is still there
    counts as applied, and its item says so: whether it helped is for ``verify``.
    """

    kinds = frozenset(KINDS)
    consequences: Mapping[str, str] = {name: kind.consequence for name, kind in KINDS.items()}
    conditional = True

    def __init__(
        self, dsn: str, *, name: str = "database", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep the secret ``dsn``; ``name`` is what errors call it, ``clock`` counts seconds."""
        super().__init__(dsn, name=name)
        self._clock = clock

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        """Keep the items that still hold; refuse when none does or a right is missing."""
        plan = read_plan(mitigation)
        found = await self._live(plan)
        problems = {key: mismatch(plan, key, found) for key in plan.meant}
        items = tuple(item for item in mitigation.items if problems[item.key] is None)
        if not items:
            raise BackendRefused(f"already so, nothing is left: {listed(problems)}")
        left = [found[plan.meant[item.key].pid] for item in items]
        mute = [f"pid {live.session.pid}" for live in left if not live.signable]
        if mute:
            raise BackendRefused(
                f"postgres {self._name}: our role may not signal {', '.join(mute)};"
                " GRANT pg_signal_backend to it (a superuser's session it can never signal)"
            )
        before: dict[str, JsonValue] = {
            "sessions": [live.session.model_dump(mode="json") for live in left],
            "dropped": {key: text for key, text in problems.items() if text},
        }
        cut = mitigation.model_copy(update={"items": items})
        return Preparation(mitigation=cut, before=before)

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Signal each session that is still exactly the one meant, in order, while there is time."""
        end = self._clock() + LONGEST
        plan = read_plan(preparation.mitigation)
        items: dict[str, ItemOutcome] = {}
        for key in plan.meant:
            if lost(items):
                items[key] = not_applied(key, "not sent: an earlier answer was lost")
            else:
                items[key] = await self._signal(plan, key, end)
        seen = await self._wait_for(plan, [key for key in items if may_be_done(items[key])])
        outcome = outcome_of(settled(plan, items[key], seen) for key in items)
        _log.info("sessions_signalled", effect_key=effect_key, state=outcome.state.value)
        return outcome

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Look whether the sessions are gone, or run something else where that was the aim."""
        plan = read_plan(preparation.mitigation)
        remaining = await self._remaining(plan, list(plan.meant))
        return outcome_of(observed(plan, key, remaining) for key in plan.meant)

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        """Refuse: what a session had not committed is rolled back for good."""
        raise BackendRefused(f"{preparation.mitigation.kind} cannot be taken back")

    async def _require_rights(self, connection: Connection) -> None:
        rights = await self._require_sight(connection)
        if not rights["signals"]:
            raise BackendRefused(
                f"postgres {self._name}: cannot signal sessions;"
                f" GRANT pg_signal_backend TO {rights['role']}"
            )

    async def _live(self, plan: Plan) -> dict[int, Live]:
        async with self._connection.transaction() as connection:
            await self._require_sight(connection)
            roles, spared = list(plan.bounds.app_roles), plan.bounds.spared
            rows = await connection.fetch(sql.SESSIONS, roles, plan.pids, spared)
        return {row["pid"]: Live(session_of(dict(row)), bool(row["signable"])) for row in rows}

    async def _signal(self, plan: Plan, key: str, end: float) -> ItemOutcome:
        too_late = not_applied(key, f"not begun: {LONGEST:g} s have passed")
        if self._clock() > end:
            return too_late
        meant = plan.meant[key]
        guard = (plan.bounds.spared, meant.backend_start, meant.since, plan.bounds.min_age)
        sent, answer = False, None
        try:
            async with self._connection.transaction() as connection:
                if self._clock() > end:  # the connection may have been waited for
                    return too_late
                sent = True
                roles = list(plan.bounds.app_roles)
                answer = await connection.fetch(sql.SIGNALS[plan.name], roles, [meant.pid], *guard)
        except BackendRefused as error:
            return not_applied(key, str(error))
        except BackendUnavailable as error:
            if not sent:
                return not_applied(key, f"not sent: {error}")
            if answer is None:
                return ItemOutcome(
                    key=key, state=MitigationState.UNKNOWN, detail=f"answer lost: {error}"
                )
        if answer and answer[0]["sent"]:
            return ItemOutcome(key=key, state=MitigationState.APPLIED)
        return not_applied(key, await self._why_not(plan, key))

    async def _why_not(self, plan: Plan, key: str) -> str:
        try:
            reason = mismatch(plan, key, await self._live(plan))
        except RemediatorError:
            reason = None
        return reason or "it had changed at that moment"

    async def _wait_for(self, plan: Plan, keys: list[str]) -> set[str] | None:
        """Wait a little for sessions to go; return which are still there, None when unseen."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + GONE_WITHIN
        try:
            while True:
                remaining = await self._remaining(plan, keys)
                if not remaining or clock() > deadline:
                    return remaining
                await asyncio.sleep(POLL)
        except RemediatorError:
            return None

    async def _remaining(self, plan: Plan, keys: list[str]) -> set[str]:
        """Return which of the items are still what they were."""
        if not keys:
            return set()
        async with self._connection.transaction() as connection:
            await self._require_sight(connection)
            rows = await connection.fetch(sql.IDENTITIES, plan.pids)
        now = {row["pid"]: dict(row) for row in rows}
        return {key for key in keys if same(plan, plan.meant[key], now)}
