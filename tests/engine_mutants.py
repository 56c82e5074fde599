"""Mutants of the engine: each has one part that is wrong, and the model has to find it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import select

from remediator.model.incident import Incident
from remediator.model.lookback import Allowance
from remediator.model.maintenance import Halt
from remediator.model.mitigation import Decision, LedgerEntry, Mitigation, Outcome, Preparation
from remediator.model.transition import Claim, Judge, LimitUsage, Transition
from remediator.remediation.step import EngineContext
from remediator.store import tables as t
from remediator.store.database import Database
from remediator.store.incidents import Queue
from remediator.store.ledger import Ledger
from tests.engine_processes import Build, WatchedMitigator


class _Unserial:
    def __init__(self, database: Database) -> None:
        self._real = database

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def write(
        self, operation: Any, *, serial: bool = False, within: float | None = None
    ) -> Any:
        return await self._real.write(operation)


class WithoutLock(Ledger):
    """Reserves without the lock under which reservations are serial."""

    def __init__(self, database: Database, apply_within: timedelta) -> None:
        super().__init__(cast("Database", _Unserial(database)), apply_within)


class WithoutPause(Ledger):
    """Does not see that something was paused after the reservation."""

    async def paused(
        self, incident: Incident, *, claimed: bool = True
    ) -> tuple[datetime, Halt | None]:
        return (await super().paused(incident, claimed=claimed))[0], None


class AsksForOneScope(Ledger):
    """Sees after the reservation only that everything was paused, and no system or service."""

    async def paused(
        self, incident: Incident, *, claimed: bool = True
    ) -> tuple[datetime, Halt | None]:
        everything = incident.model_copy(update={"system": None, "service": None})
        return await super().paused(everything, claimed=claimed)


class CallsUnowned(Ledger):
    """Does not see that another has claimed the incident after the reservation."""

    async def paused(
        self, incident: Incident, *, claimed: bool = True
    ) -> tuple[datetime, Halt | None]:
        return await super().paused(incident, claimed=False)


class WithoutDeadline(EngineContext):
    """Does not ask the store whether the time in which it may be applied is over."""

    async def paused(
        self, incident: Incident, before: datetime | None = None, *, claimed: bool = True
    ) -> Halt | None:
        return await super().paused(incident, claimed=claimed)


class Unmarked(Ledger):
    """Sees what is in flight on a target, and not what is being taken back on it."""

    async def standing(
        self, incident: Incident, mitigation: Mitigation, allowance: Allowance
    ) -> LimitUsage:
        standing = await super().standing(incident, mitigation, allowance)
        return standing.model_copy(update=await self._unseen(mitigation))

    async def reserve(
        self, incident: Incident, entry: LedgerEntry, allowance: Allowance, judge: Judge
    ) -> tuple[Decision, LedgerEntry | None]:
        unseen = await self._unseen(entry.mitigation)
        return await super().reserve(
            incident, entry, allowance, lambda s: judge(s.model_copy(update=unseen))
        )

    async def _unseen(self, mitigation: Mitigation) -> dict[str, None]:
        on_it = t.mitigations.c.target_key == mitigation.target.key
        flies = select(t.mitigations.c.id).where(on_it, t.mitigations.c.in_flight)
        async with self._database.read() as connection:
            return {} if (await connection.execute(flies)).first() else {"busy_with": None}


async def _as_it_is_now(database: Database, incident: Incident) -> Incident:
    query = select(t.incidents.c.epoch).where(t.incidents.c.id == incident.id)
    async with database.read() as connection:
        return incident.model_copy(update={"epoch": await connection.scalar(query)})


class UnfencedLedger(Ledger):
    """Reserves whoever owns the incident."""

    async def reserve(
        self, incident: Incident, entry: LedgerEntry, allowance: Allowance, judge: Judge
    ) -> tuple[Decision, LedgerEntry | None]:
        now = await _as_it_is_now(self._database, incident)
        return await super().reserve(now, entry, allowance, judge)


class UnfencedQueue(Queue):
    """Writes the result of a step whoever owns the incident."""

    async def finish(self, claim: Claim, result: Transition) -> None:
        now = await _as_it_is_now(self._database, claim.incident)
        await super().finish(claim.model_copy(update={"incident": now}), result)


class AppliesAgain(WatchedMitigator):
    """Makes the change once more where it should look whether it was made."""

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        return await self.apply(preparation, effect_key)


@dataclass(frozen=True)
class Mutant:
    """An engine that is wrong, the rule under which that should show, and as what."""

    build: Build
    danger: str
    breaks: str
    """What the promise says that it breaks, as a pattern: any other failure does not find it."""


_TOGETHER = r"ux_mitigations_in_flight|two in flight|/\w+: \[|\d in .* of .*, not \d"
MUTANTS = {
    "without the lock": Mutant(Build(ledger=WithoutLock), "work_at_the_same_time", _TOGETHER),
    "reserves as a stale owner": Mutant(
        Build(ledger=UnfencedLedger), "is_overtaken", "was reserved by a stale owner"
    ),
    "finishes as a stale owner": Mutant(
        Build(queue=UnfencedQueue), "is_overtaken", "a stale owner of .* wrote"
    ),
    "calls as a stale owner": Mutant(
        Build(ledger=CallsUnowned), "sleeps_through_a_jump", "was made by a stale owner"
    ),
    "sees no time pass": Mutant(
        Build(sees_time=False), "stalls_before_its_call", "s after it was reserved"
    ),
    "asks for no time": Mutant(
        Build(around=WithoutDeadline), "stalls_before_its_call", "was asked for after"
    ),
    "applies again": Mutant(
        Build(lever=AppliesAgain),
        "is_overtaken",
        "called again|nobody asked|s after it was reserved|without a standing reservation",
    ),
    "asks for no pause": Mutant(
        Build(ledger=WithoutPause), "is_halted_meanwhile", "was made in a pause"
    ),
    "asks for a pause of one scope": Mutant(
        Build(ledger=AsksForOneScope), "is_halted_meanwhile", "was made in a pause"
    ),
    "reserves beside a taking back": Mutant(
        Build(ledger=Unmarked), "a_hold_ends", "was put back beside|something was put back"
    ),
}
