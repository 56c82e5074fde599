"""Processes of the service without their loops, whose ledger and levers say what is wrong.

What stops them is handed in: a ledger and levers that wait at a ``Point`` when they are told to.
What they see is compared with what the store says, as it happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import select

from remediator.model.alert import AlertStatus
from remediator.model.catalog import Catalogue, Service
from remediator.model.errors import OwnershipLost, StoreUnavailable
from remediator.model.incident import Incident
from remediator.model.lookback import Allowance
from remediator.model.maintenance import Halt
from remediator.model.mitigation import (
    Decision,
    LedgerEntry,
    Mitigation,
    MitigationState,
    Outcome,
    Preparation,
)
from remediator.model.transition import LEASE, Claim, Judge, LimitUsage, Transition
from remediator.notify.sender import Telling, deliver
from remediator.remediation.expire import take_back
from remediator.remediation.pipeline import take_step
from remediator.remediation.step import EngineContext, Mitigators
from remediator.store import Store
from remediator.store import tables as t
from remediator.store.database import Database, patiently
from remediator.store.expirations import PendingReverts
from remediator.store.inbox import Inbox
from remediator.store.incidents import Queue
from remediator.store.ledger import Ledger
from remediator.testing import World, WorldMitigator
from tests.engine_gates import Door, Gate, Loss, Point
from tests.engine_world import PLAYBOOKS, Change, Record, Scene
from tests.store_fixtures import WORLDLY

AT_ONCE = 500
"""Steps in which all that is due comes to wait for something, while the clock stands still."""


@dataclass(frozen=True)
class Asked:
    """What was said when it was asked last whether something may be changed."""

    store: datetime
    real: datetime
    halted: bool
    owned: bool


class WatchedLedger(Ledger):
    """A ledger whose process may stop on both sides of each call."""

    def __init__(
        self,
        inner: Ledger,
        database: Database,
        gate: Gate,
        record: Record,
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(database, inner.apply_within)
        self.inner, self.gate, self.record, self.monotonic = inner, gate, record, monotonic
        self.asked: Asked | None = None
        self.reserved = 0.0
        """When it reserved last, by the monotonic clock of its process."""

    async def standing(
        self, incident: Incident, mitigation: Mitigation, allowance: Allowance
    ) -> LimitUsage:
        return await self.inner.standing(incident, mitigation, allowance)

    async def reserve(
        self, incident: Incident, entry: LedgerEntry, allowance: Allowance, judge: Judge
    ) -> tuple[Decision, LedgerEntry | None]:
        await self.gate.pass_(Point.RESERVE)
        self.reserved = self.monotonic()
        decision, reserved = await self.inner.reserve(incident, entry, allowance, judge)
        if reserved is not None:
            self.asked = None
            await self._judge(incident, reserved)
        await self.gate.pass_(Point.RESERVED)
        return decision, reserved

    async def _judge(self, incident: Incident, reserved: LedgerEntry) -> None:
        firing = select(t.alerts.c.id).where(
            t.alerts.c.incident_id == incident.id, t.alerts.c.status == AlertStatus.FIRING
        )
        async with self._database.read() as connection:
            fires = (await connection.execute(firing)).first() is not None
        epoch = await self._owner(incident)
        key, expect = reserved.effect_key, self.record.expect
        expect(fires, f"{key} was reserved though nothing fires")
        expect(epoch == incident.epoch, f"{key} was reserved by a stale owner")
        halted = self.record.halts.over(reserved.service, self.record.clock.now)
        expect(not halted, f"{key} was reserved in a pause")

    async def _owner(self, incident: Incident) -> int | None:
        query = select(t.incidents.c.epoch).where(t.incidents.c.id == incident.id)
        async with self._database.read() as connection:
            return await connection.scalar(query)

    async def paused(
        self, incident: Incident, *, claimed: bool = True
    ) -> tuple[datetime, Halt | None]:
        result = await self.inner.paused(incident, claimed=claimed)
        clock = self.record.clock
        halted = self.record.halts.over(str(incident.service), clock.now)
        owned = not claimed or await self._owner(incident) == incident.epoch
        self.asked = Asked(clock.now, clock.real, halted, owned)
        await self.gate.pass_(Point.ASKED)
        return result


class WatchedMitigator(WorldMitigator):
    """A lever whose process may stop before and after the change; it says what is wrong."""

    kinds = frozenset({"switch_off", "unplug"})
    pause = timedelta(minutes=1)

    def __init__(
        self, world: World, ledger: WatchedLedger, *, conditional: bool, undo: bool
    ) -> None:
        super().__init__(world, conditional=conditional, undo=undo)
        self.ledger, self.gate, self.record = ledger, ledger.gate, ledger.record

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        await self.gate.pass_(Point.PREPARE)
        return await super().prepare(mitigation)

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        await self._judge(preparation, effect_key)
        await self.gate.pass_(Point.CALLING)
        self.record.calls[effect_key] += 1
        before = len(self.world.applied)
        outcome = await super().apply(preparation, effect_key)
        if len(self.world.applied) > before:
            target = preparation.mitigation.target
            playbook = effect_key.split("/")[1]
            service = preparation.mitigation.items[0].key.split(":")[0]
            change = Change(self.record.clock.real, service, playbook, target, effect_key)
            self.record.changes.append(change)
        await self.gate.pass_(Point.CHANGED)
        return outcome

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        self._asked(effect_key, "put back")
        target = preparation.mitigation.target.key
        others = [key for key in await self._in_flight(target) if key != effect_key]
        self.record.expect(others == [], f"{effect_key} was put back beside {others}")
        self.record.taken_back[target] += 1
        try:
            await self.gate.pass_(Point.CALLING)
            outcome = await super().revert(preparation, effect_key, in_steps=in_steps)
            await self.gate.pass_(Point.CHANGED)
        finally:
            self.record.taken_back[target] -= 1
        return outcome

    async def _in_flight(self, target: str) -> Sequence[str]:
        key, flies = t.mitigations.c.effect_key, t.mitigations.c.in_flight
        query = select(key).where(t.mitigations.c.target_key == target, flies)
        async with self.ledger._database.read() as connection:
            return (await connection.scalars(query)).all()

    def _asked(self, key: str, what: str) -> None:
        asked, expect = self.ledger.asked, self.record.expect
        expect(asked is not None, f"{key} was {what}, and nobody asked for a pause")
        if asked is not None:
            expect(not asked.halted, f"{key} was {what} in a pause")
            expect(asked.owned, f"{key} was {what} by a stale owner")
            late = self.record.clock.real - asked.real > LEASE
            expect(not late, f"{key} was {what} long after it was asked")

    async def _judge(self, preparation: Preparation, key: str) -> None:
        self._asked(key, "made")
        mine = select(t.mitigations).where(t.mitigations.c.effect_key == key)
        async with self.ledger._database.read() as connection:
            row = (await connection.execute(mine)).mappings().one()
        expect, asked = self.record.expect, self.ledger.asked
        stands = row["state"] == MitigationState.RESERVED and row["in_flight"]
        expect(stands, f"{key} was made without a standing reservation: it is {row['state']}")
        waited = self.ledger.monotonic() - self.ledger.reserved
        expect(
            waited <= LEASE.total_seconds(), f"{key} was made {waited:g} s after it was reserved"
        )
        if asked is not None:
            in_time = asked.store < row["apply_before"]
            expect(in_time, f"{key} was asked for after {row['apply_before']}")
        beside = self.record.taken_back[preparation.mitigation.target.key]
        expect(not beside, f"{key} was made while something was put back")


@dataclass(frozen=True)
class Build:
    """What the processes are made of; a mutant has one part that is wrong."""

    ledger: type[Ledger] = Ledger
    queue: type[Queue] = Queue
    lever: type[WatchedMitigator] = WatchedMitigator
    around: type[EngineContext] = EngineContext
    sees_time: bool = True


class Replica:
    """One process of the service without its loops; stopped, it goes on later or dies."""

    def __init__(self, name: str, store: Store, scene: Scene, build: Build) -> None:
        self.name, self.scene = name, scene
        self.door = Door(store.database)
        self.gate = Gate(scene.clock, self.door, scene.record.reached)
        self.lost = 0.0
        """Seconds that its monotonic clock stood still."""
        self.task: asyncio.Task[None] | None = None
        door = cast("Database", self.door)
        inner = build.ledger(door, LEASE)
        ledger = WatchedLedger(inner, store.database, self.gate, scene.record, self._monotonic)
        self.queue = build.queue(door, name, LEASE)
        self.store = replace(
            store,
            inbox=Inbox(door, lambda: None),
            ledger=ledger,
            queue=self.queue,
            obligations=PendingReverts(door),
        )
        self.around = build.around(
            catalogue=Catalogue(services=scene.services, limits=scene.limits),
            playbooks=PLAYBOOKS,
            ports=self._ports,
            levers=self._levers(build.lever, ledger),
            ledger=ledger,
            kinds=WORLDLY,
            monotonic=self._monotonic if build.sees_time else lambda: 0.0,
        )

    def _levers(self, lever: type[WatchedMitigator], ledger: WatchedLedger) -> Mitigators:
        def on(world: World, *, conditional: bool = True, undo: bool = False) -> WatchedMitigator:
            return lever(world, ledger, conditional=conditional, undo=undo)

        worlds = self.scene.worlds
        return Mitigators(
            {
                ("world", "shared"): (on(worlds["shared"], undo=True),),
                ("world", "asked"): (on(worlds["asked"]),),
                ("world", "blunt"): (on(worlds["blunt"], conditional=False),),
            }
        )

    def _ports(self, service: Service) -> Any:
        return {"world": self.scene.eyes[service.name]}

    def _monotonic(self) -> float:
        return self.scene.clock.monotonic() - self.lost

    @property
    def parked(self) -> Point | None:
        return self.gate.parked

    async def work(self, stop: Point | None = None, loses: Loss | None = None) -> None:
        """Take the steps that are due; stop, or lose the store, at the first ``stop``."""
        await self._start(self._steps(), stop, loses)

    async def hold(self, stop: Point | None = None, loses: Loss | None = None) -> None:
        """Take back what is due; stop, or lose the store, at the first ``stop``."""
        await self._start(self._taking_back(), stop, loses)

    async def go_on(self, *, suspended: bool = False) -> None:
        """Go on from where it stopped, until nothing is due; if ``suspended``, none the wiser.

        What is suspended after the last look at its clock makes its call: no fence can help there.
        """
        assert self.task is not None
        if suspended and self.parked is not Point.ASKED:
            self.lost += self.scene.clock.monotonic() - self.gate.since
        self.gate.open()
        await self._until_stopped()

    async def die(self) -> None:
        """End where it stopped: nothing more is done or written."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.task = None
        self.gate.arm(None)

    async def tell(self) -> None:
        while await deliver(self.store, Telling(self.scene.chat, lambda result: None)):
            pass

    async def one(self) -> Claim | None:
        claims = await self.queue.claim(1)
        return claims[0] if claims else None

    async def step(self, claim: Claim) -> None:
        """Take one step and write its result; losing the claim is no fault."""
        await self.gate.pass_(Point.CLAIMED)
        try:
            result = await take_step(self.around, claim)
            await self.gate.pass_(Point.FINISH)
            await self._finish(claim, result)
        except (OwnershipLost, StoreUnavailable):
            return

    async def _finish(self, claim: Claim, result: Transition) -> None:
        query = select(t.incidents.c.epoch).where(t.incidents.c.id == claim.incident.id)
        async with self.store.database.read() as connection:
            epoch = await connection.scalar(query)
        await patiently(lambda: self.queue.finish(claim, result))
        mine = epoch == claim.incident.epoch
        self.scene.record.expect(mine, f"a stale owner of {claim.incident.id} wrote {result.phase}")

    async def _steps(self) -> None:
        for _ in range(AT_ONCE):
            try:
                claim = await self.one()
            except StoreUnavailable:
                continue
            if claim is None:
                return
            await self.step(claim)
        raise AssertionError("what is due is looked at again and again, and no time passes")

    async def _taking_back(self) -> None:
        await self.gate.pass_(Point.CLAIMED)
        more = True
        while more:
            try:
                more = await take_back(self.store, self.around)
            except StoreUnavailable:
                more = True

    async def _start(self, work: Awaitable[None], stop: Point | None, loses: Loss | None) -> None:
        self.gate.arm(stop, loses)
        self.task = asyncio.ensure_future(work)
        await self._until_stopped()

    async def _until_stopped(self) -> None:
        assert self.task is not None
        stopped = asyncio.ensure_future(self.gate.stopped.wait())
        waiting: set[asyncio.Future[Any]] = {self.task}
        if not self.gate.stopped.is_set():
            waiting.add(stopped)
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if self.task.done():
            task, self.task = self.task, None
            self.door.fails = None
            self.gate.arm(None)
            task.result()
