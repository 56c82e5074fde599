"""Processes of the service that stop where a test says, and a world that keeps its own record.

What stops them is handed in: a ledger, a queue and levers that wait at a ``Point`` when they are
told to. What the world and these doors see is compared with what the ledger says, as it happens.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import select

from remediator.catalogue import Catalogue, Service
from remediator.errors import OwnershipLost, TemporaryError
from remediator.maintenance import Halt
from remediator.mitigation.holding import take_back
from remediator.model import (
    AlertStatus,
    Bound,
    Decision,
    Finding,
    FindingStatus,
    Incident,
    LedgerEntry,
    Limits,
    Mitigation,
    MitigationState,
    Mode,
    Outcome,
    Preparation,
    Target,
)
from remediator.pipeline import take_step
from remediator.playbook import PlaybookSet
from remediator.ports import Handle
from remediator.report.deliver import deliver
from remediator.safeguards import Allowance
from remediator.store import Store
from remediator.store import tables as t
from remediator.store.database import Database
from remediator.store.ledger import Judge, Ledger
from remediator.store.queue import LEASE, Claim, Queue, Transition
from remediator.testing import FrozenClock, World, WorldLever
from remediator.views import Report
from remediator.work import Levers, Surroundings
from tests.store_fixtures import WIDE, Dim, Eyes, SwitchOff, a_service


class Point(StrEnum):
    """Where a process may be stopped."""

    CLAIMED = "after its claim, before the step"
    PREPARE = "before it looks at what it would change"
    RESERVE = "before the reservation"
    RESERVED = "after the reservation, before it asks for a pause"
    ASKED = "after it asked for a pause, before it looks at its clock"
    CALLING = "in the call, before anything changed"
    CHANGED = "in the call, after the change, before the answer"
    FINISH = "before it writes the result"


class Gate:
    """Lets its process through, or stops it once at the point that it is armed for."""

    def __init__(self, clock: FrozenClock) -> None:
        self._clock = clock
        self._armed: Point | None = None
        self._go = asyncio.Event()
        self.stopped = asyncio.Event()
        self.parked: Point | None = None
        self.since = clock.now

    def arm(self, point: Point | None) -> None:
        self._armed, self._go, self.stopped = point, asyncio.Event(), asyncio.Event()

    def open(self) -> None:
        self._armed = None
        self._go.set()

    async def pass_(self, point: Point) -> None:
        if self._armed is not point:
            return
        self._armed, self.parked, self.since = None, point, self._clock.now
        self.stopped.set()
        try:
            await self._go.wait()
        finally:
            self.parked = None


@dataclass
class Halts:
    """What the operators of the test ordered, as they know it themselves."""

    paused: set[str] = field(default_factory=set)
    windows: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    """Scope and end, by id; all have begun."""

    def over(self, service: str, now: datetime) -> bool:
        scopes = {"global", "shop", f"shop/{service}"}
        running = {scope for scope, end in self.windows.values() if now < end}
        return bool(scopes & (self.paused | running))


@dataclass(frozen=True)
class Change:
    """What was changed in the world, by its own record."""

    at: datetime
    service: str
    playbook: str
    target: Target
    effect_key: str


@dataclass
class Record:
    """What the world saw, and all that was wrong with it when it happened."""

    clock: FrozenClock
    halts: Halts = field(default_factory=Halts)
    calls: Counter[str] = field(default_factory=Counter)
    changes: list[Change] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        # said later: what a lever raises is taken for its failure
        if not holds:
            self.wrong.append(f"{self.clock.now:%H:%M:%S} {otherwise}")


class WatchedLedger(Ledger):
    """A ledger whose process may stop on both sides of each call."""

    def __init__(self, inner: Ledger, database: Database, gate: Gate, record: Record) -> None:
        super().__init__(database, inner.apply_within)
        self.inner, self.gate, self.record = inner, gate, record
        self.asked: tuple[datetime, bool] | None = None
        """When it was last asked for a pause, and whether there was one."""

    async def reserve(
        self, incident: Incident, entry: LedgerEntry, allowance: Allowance, judge: Judge
    ) -> tuple[Decision, LedgerEntry | None]:
        await self.gate.pass_(Point.RESERVE)
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
        owner = select(t.incidents.c.epoch).where(t.incidents.c.id == incident.id)
        async with self._database.read() as connection:
            fires = (await connection.execute(firing)).first() is not None
            epoch = await connection.scalar(owner)
        key, expect = reserved.effect_key, self.record.expect
        expect(fires, f"{key} was reserved though nothing fires")
        expect(epoch == incident.epoch, f"{key} was reserved by a stale owner")
        halted = self.record.halts.over(reserved.service, self.record.clock.now)
        expect(not halted, f"{key} was reserved in a pause")

    async def paused(self, incident: Incident) -> tuple[datetime, Halt | None]:
        result = await self.inner.paused(incident)
        now = self.record.clock.now
        self.asked = now, self.record.halts.over(str(incident.service), now)
        await self.gate.pass_(Point.ASKED)
        return result


class WatchedLever(WorldLever):
    """A lever whose process may stop before and after the change; it says what is wrong."""

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
        await self._judge(effect_key, "made")
        await self.gate.pass_(Point.CALLING)
        self.record.calls[effect_key] += 1
        before = len(self.world.applied)
        outcome = await super().apply(preparation, effect_key)
        if len(self.world.applied) > before:
            target = preparation.mitigation.target
            playbook = effect_key.split("/")[1]
            service = preparation.mitigation.items[0].key.split(":")[0]
            change = Change(self.record.clock.now, service, playbook, target, effect_key)
            self.record.changes.append(change)
        await self.gate.pass_(Point.CHANGED)
        return outcome

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        self._asked(effect_key, "put back")
        await self.gate.pass_(Point.CALLING)
        outcome = await super().revert(preparation, effect_key, in_steps=in_steps)
        await self.gate.pass_(Point.CHANGED)
        return outcome

    def _asked(self, key: str, what: str) -> None:
        asked, now = self.ledger.asked, self.record.clock.now
        self.record.expect(asked is not None, f"{key} was {what}, and nobody asked for a pause")
        if asked is not None:
            self.record.expect(not asked[1], f"{key} was {what} in a pause")
            self.record.expect(now <= asked[0] + LEASE, f"{key} was {what} long after it was asked")

    async def _judge(self, key: str, what: str) -> None:
        self._asked(key, what)
        mine = select(t.mitigations).where(t.mitigations.c.effect_key == key)
        async with self.ledger._database.read() as connection:
            row = (await connection.execute(mine)).mappings().one()
        expect, now = self.record.expect, self.record.clock.now
        stands = row["state"] == MitigationState.RESERVED and row["in_flight"]
        expect(stands, f"{key} was {what} without a standing reservation: it is {row['state']}")
        expect(now <= row["apply_before"], f"{key} was {what} after {row['apply_before']}")


class OwnEyes(Eyes):
    """Sees what is on of one service."""

    service = ""

    async def look(self) -> Finding:
        self.world.check()
        mine = sorted(thing for thing in self.world.things if thing.startswith(f"{self.service}:"))
        status = FindingStatus.PROBLEM if mine else FindingStatus.FINE
        return Finding(name="things", status=status, summary=" ".join(mine))


@dataclass
class Chat:
    """A notifier that remembers what it said last of each incident."""

    down: bool = False
    said: dict[str, Report] = field(default_factory=dict)
    posts: Counter[str] = field(default_factory=Counter)

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        if self.down:
            raise TemporaryError("the chat is down")
        self.said[report.incident.id] = report
        self.posts[report.incident.id] += handle is None
        return handle or Handle(channel="ops", message=report.incident.id, detailed=True)


@dataclass(frozen=True)
class Build:
    """What the processes are made of; a mutant has one part that is wrong."""

    ledger: type[Ledger] = Ledger
    queue: type[Queue] = Queue
    lever: type[WatchedLever] = WatchedLever
    sees_time: bool = True


@dataclass
class Scene:
    """The world that all processes share."""

    clock: FrozenClock
    services: tuple[Service, ...]
    limits: Limits
    record: Record
    worlds: dict[str, World] = field(default_factory=dict)
    """By the name of the target."""
    eyes: dict[str, OwnEyes] = field(default_factory=dict)
    """By the name of the service."""
    chat: Chat = field(default_factory=Chat)

    def bounds(self, service: str, playbook: str, target: Target) -> tuple[Bound, ...]:
        (one,) = (s for s in self.services if s.name == service)
        return one.bounds(self.limits, playbook, WIDE, target)


def a_scene(clock: FrozenClock, *, budget: int, concurrency: int) -> Scene:
    """Four services: two share a target, one asks first, one has a lever without a condition."""
    minutes = timedelta(minutes=1)
    narrow = Limits(budget=2, window=10 * minutes, cooldown=timedelta(0), concurrency=1)
    wide = Limits(
        budget=budget, window=10 * minutes, cooldown=timedelta(0), concurrency=concurrency
    )
    on_target = Limits(budget=3, window=10 * minutes, cooldown=minutes / 2, concurrency=1)

    def service(name: str, target: str, mode: Mode, **parameters: Any) -> Service:
        made = a_service(
            name, limits=narrow, target_limits=on_target, mode=mode, parameters=parameters
        )
        world = made.targets["world"].model_copy(update={"name": target})
        return made.model_copy(update={"targets": {"world": world}})

    services = (
        service("orders", "shared", Mode.AUTO, hold="5m"),
        service("cart", "shared", Mode.AUTO),
        service("search", "asked", Mode.APPROVE),
        service("pay", "blunt", Mode.AUTO),
    )
    scene = Scene(clock, services, wide, Record(clock))
    scene.worlds = {name: World() for name in ("shared", "asked", "blunt")}
    for one in services:
        scene.eyes[one.name] = OwnEyes(scene.worlds[one.targets["world"].name])
        scene.eyes[one.name].service = one.name
    return scene


class Replica:
    """One process of the service without its loops; stopped, it goes on later or dies."""

    def __init__(self, name: str, store: Store, scene: Scene, build: Build) -> None:
        self.name, self.scene = name, scene
        self.gate = Gate(scene.clock)
        self.lost = 0.0
        """Seconds that its monotonic clock stood still."""
        self.task: asyncio.Task[None] | None = None
        database = store.database
        inner = build.ledger(database, store.lease)
        ledger = WatchedLedger(inner, database, self.gate, scene.record)
        self.queue = build.queue(database, name, store.lease)
        self.store = replace(store, ledger=ledger, queue=self.queue)
        lever = build.lever
        worlds = scene.worlds
        levers = {
            ("world", "shared"): (lever(worlds["shared"], ledger, conditional=True, undo=True),),
            ("world", "asked"): (lever(worlds["asked"], ledger, conditional=True, undo=False),),
            ("world", "blunt"): (lever(worlds["blunt"], ledger, conditional=False, undo=False),),
        }
        self.around = Surroundings(
            catalogue=Catalogue(services=scene.services, limits=scene.limits),
            playbooks=PlaybookSet([SwitchOff, Dim]),
            ports=self._ports,
            levers=Levers(levers),
            ledger=ledger,
            monotonic=self._monotonic if build.sees_time else lambda: 0.0,
        )

    def _ports(self, service: Service) -> Any:
        return {"world": self.scene.eyes[service.name]}

    def _monotonic(self) -> float:
        return self.scene.clock.monotonic() - self.lost

    @property
    def parked(self) -> Point | None:
        return self.gate.parked

    async def work(self, stop: Point | None = None) -> None:
        """Take the steps that are due; stop at the first ``stop`` that is reached."""
        await self._start(self._steps(), stop)

    async def hold(self, stop: Point | None = None) -> None:
        """Take back what is due; stop at the first ``stop`` that is reached."""
        await self._start(self._taking_back(), stop)

    async def go_on(self) -> None:
        """Go on from where it stopped, until nothing is due."""
        assert self.task is not None
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
        while await deliver(self.store, self.scene.chat, lambda result: None):
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
        except OwnershipLost:
            return

    async def _finish(self, claim: Claim, result: Transition) -> None:
        query = select(t.incidents.c.epoch).where(t.incidents.c.id == claim.incident.id)
        async with self.store.database.read() as connection:
            epoch = await connection.scalar(query)
        await self.queue.finish(claim, result)
        mine = epoch == claim.incident.epoch
        self.scene.record.expect(mine, f"a stale owner of {claim.incident.id} wrote {result.phase}")

    async def _steps(self) -> None:
        while (claim := await self.one()) is not None:
            await self.step(claim)

    async def _taking_back(self) -> None:
        await self.gate.pass_(Point.CLAIMED)
        more = True
        while more:
            try:
                more = await take_back(self.store, self.around)
            except OwnershipLost:
                more = True

    async def _start(self, work: Awaitable[None], stop: Point | None) -> None:
        self.gate.arm(stop)
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
            self.gate.arm(None)
            task.result()


# --- mutants: each has one part that is wrong, and the model has to find it ----------------------


class _Unserial:
    def __init__(self, database: Database) -> None:
        self._real = database

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def write(self, operation: Any, *, serial: bool = False) -> Any:
        return await self._real.write(operation)


class WithoutLock(Ledger):
    """Reserves without the lock under which reservations are serial."""

    def __init__(self, database: Database, apply_within: timedelta) -> None:
        super().__init__(cast("Database", _Unserial(database)), apply_within)


class WithoutPause(Ledger):
    """Does not see that something was paused after the reservation."""

    async def paused(self, incident: Incident) -> tuple[datetime, Halt | None]:
        return (await super().paused(incident))[0], None


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


class AppliesAgain(WatchedLever):
    """Makes the change once more where it should look whether it was made."""

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        return await self.apply(preparation, effect_key)


MUTANTS = {
    "without the lock": Build(ledger=WithoutLock),
    "reserves as a stale owner": Build(ledger=UnfencedLedger),
    "finishes as a stale owner": Build(queue=UnfencedQueue),
    "sees no time pass": Build(sees_time=False),
    "applies again": Build(lever=AppliesAgain),
    "asks for no pause": Build(ledger=WithoutPause),
}
