"""The stage of the model: the replicas on one store, and how what the rules say is done."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine
from sqlalchemy import delete, func, select

from remediator.model.alert import Alert, DeadLetter, Delivery
from remediator.model.errors import Refused, StoreUnavailable
from remediator.model.incident import IncidentState
from remediator.model.maintenance import MaintenanceOrder
from remediator.model.verdict import Assessment
from remediator.remediation.call import SETTLE_TIME
from remediator.store import Store, open_store
from remediator.store import tables as t
from remediator.store.ledger import LATEST
from remediator.triage.correlate import correlate
from remediator.triage.match import Match, match
from tests.engine_gates import Point
from tests.engine_processes import Build, Replica
from tests.engine_promises import Promises, facts_of
from tests.engine_senders import MINUTE, SECOND, Senders
from tests.engine_world import SCOPES, Clock, Scene, a_scene

CALL = LATEST - SETTLE_TIME
"""The longest that a call may take."""


@dataclass
class Ground:
    """What all examples of a test share: a loop, a clock and the stores of three processes."""

    runner: asyncio.Runner
    clock: Clock
    stores: Sequence[Store]
    reached: Counter[str] = field(default_factory=Counter)
    """How often what the model is there for happened."""

    async def clear(self) -> None:
        self.clock.restart()

        async def operation(connection: Any) -> None:
            for table in reversed(t.metadata.sorted_tables):
                await connection.execute(delete(table))

        await self.stores[0].database.write(operation)


@contextlib.contextmanager
def the_ground(url: str) -> Iterator[Ground]:
    """Open the stores: on PostgreSQL three, on SQLite one, which serves one process."""
    clock = Clock()
    names = ("one", "two", "three") if url.startswith("postgres") else ("one",)

    async def opened(stack: contextlib.AsyncExitStack) -> list[Store]:
        return [
            await stack.enter_async_context(
                open_store(url, owner=name, changed=lambda: None, clock=clock, scopes=SCOPES)
            )
            for name in names
        ]

    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        try:
            stores = runner.run(opened(stack))
            yield Ground(runner, clock, stores * (3 // len(stores)))
        finally:
            runner.run(stack.aclose())


class Stage(RuleBasedStateMachine):
    """The service, its operators, its senders and its world; ``Engine`` says what happens."""

    def __init__(self, ground: Ground, build: Build, *, heals: bool) -> None:
        """Run on ``ground``; ``heals`` says whether an example has its end, when all is well."""
        super().__init__()
        self.heals = heals
        self.ground, self.build, self.clock = ground, build, ground.clock
        self.replicas: list[Replica] = []
        self.sound = False
        self.steady = True

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        self.sound = False
        result = self.ground.runner.run(what)
        self.sound = True
        return result

    @property
    def store(self) -> Store:
        return self.ground.stores[0]

    def set_up(self, *, budget: int, concurrency: int, steady: bool) -> None:
        """Begin afresh; while it is ``steady`` no clock jumps or stands still."""
        self.run(self.ground.clear())
        self.steady = steady
        self.scene: Scene = a_scene(
            self.clock, self.ground.reached, budget=budget, concurrency=concurrency
        )
        self.senders = Senders(self.scene)
        self.promises = Promises(self.scene, self.senders)
        self.replicas = [
            Replica(f"replica-{n}", store, self.scene, self.build)
            for n, store in enumerate(self.ground.stores)
        ]

    @property
    def is_calling(self) -> bool:
        return any(r.parked in (Point.ASKED, Point.CALLING) for r in self.replicas)

    async def _send(self, alerts: Sequence[Alert], *dead: DeadLetter) -> None:
        inbox = self.replicas[0].store.inbox
        await self.senders.send(inbox, alerts, dead)
        await self._triage(0)  # soon, so that what is late stays what it is

    async def _send_to(self, replicas: Sequence[int], alerts: Sequence[Alert]) -> None:
        doors = [self.replicas[n % len(self.replicas)].store.inbox for n in replicas]
        await asyncio.gather(*(self.senders.send(inbox, alerts) for inbox in doors))
        await asyncio.gather(*(self._triage(n) for n in range(len(self.replicas))))

    async def _triage(self, replica: int) -> None:
        around = self.replicas[replica].around

        def matching(alert: Alert, delivery: Delivery) -> Match:
            return match(alert, around.catalogue, around.playbooks, delivery.playbook)

        found: Any = True
        while found is not None:
            with contextlib.suppress(StoreUnavailable):
                found = await self.replicas[replica].store.inbox.triage(
                    self.senders.read,
                    lambda alert, delivery: matching(alert, delivery).key(alert),
                    lambda batch, snapshot, now: correlate(batch, snapshot, now, matching),
                )

    async def _on(self, replica: Replica, point: Point | None = None) -> None:
        if replica.task is None:
            await replica.work(point)

    async def _dying(self, replica: Replica, point: Point) -> None:
        if replica.task is not None:
            return
        await self._on(replica, point)
        if replica.task is not None:
            await replica.die()

    async def _together(self) -> None:
        idle = [replica for replica in self.replicas if replica.task is None]
        for _ in range(4):
            claims = [await replica.one() for replica in idle]
            steps = [r.step(c) for r, c in zip(idle, claims, strict=True) if c is not None]
            ends = await asyncio.gather(*steps, return_exceptions=True)
            for failure in (end for end in ends if end is not None):
                raise failure  # only now: no step may be left running

    async def _later(
        self, replica: Replica, seconds: int, fate: Point | None, *, suspended: bool = False
    ) -> None:
        await self._pass(timedelta(seconds=seconds))
        for other in self.replicas:
            await (self._on(other) if fate is None else self._dying(other, fate))
        if replica.task is not None:
            await replica.go_on(suspended=suspended)

    async def _take_over(self, within: timedelta) -> None:
        """Let the others work for some time, as often as something may be due."""
        end = self.clock.now + within
        while True:
            for other in self.replicas:
                await self._on(other)
            if self.clock.now >= end:
                return
            await self._pass(min(end - self.clock.now, 8 * SECOND))

    async def _resolve(self, service: str) -> None:
        firing = self.senders.fires.values()
        mine = [alert for alert in firing if alert.labels.get("service") == service]
        await self._send([self.senders.ends(alert) for alert in mine])

    async def _hold(self) -> None:
        """Let something of the first service be changed, resolve, and be due to be taken back."""
        self.clock.advance(SECOND)
        alert = self.senders.breaks("orders", "ThingsOn")
        await self._send([alert])
        await self._settle(MINUTE)
        self.clock.advance(SECOND)
        await self._resolve("orders")
        await self._settle(MINUTE)
        await self._pass(5 * MINUTE)

    async def _pass(self, time: timedelta) -> None:
        end = self.clock.now + time
        for replica in self.replicas:
            # what was sent has reached its backend by then, or never will
            stopped = self.clock.monotonic() + time.total_seconds() - replica.gate.since
            if replica.parked is Point.CALLING and stopped > CALL.total_seconds():
                await replica.go_on()
        self.clock.now = max(end, self.clock.now)

    async def _settle(self, time: timedelta) -> None:
        end = self.clock.now + time
        for turn in count():
            idle = [replica for replica in self.replicas if replica.task is None]
            if idle:
                await idle[turn % len(idle)].work()
                await idle[turn % len(idle)].hold()
            if self.clock.now >= end:
                return
            async with self.store.database.read() as connection:
                dues = [
                    await connection.scalar(select(func.min(table.c.due_at)))
                    for table in (t.incidents, t.obligations)
                ]
            soonest = min((due for due in dues if due is not None), default=end)
            await self._pass(max(min(end, soonest) - self.clock.now, 15 * SECOND))

    async def _resume(self) -> None:
        for scope in sorted(self.scene.record.halts.paused):
            await self.store.commands.resume(scope, "ann")
        self.scene.record.halts.paused.clear()

    async def _maintain(self, scope: str, minutes: int) -> None:
        order = MaintenanceOrder(scope=scope, lasts=minutes * MINUTE, reason="disks")
        window = await self.store.commands.start_maintenance(order, "ann")
        self.scene.record.halts.windows[window.id] = scope, window.until

    async def _end_windows(self) -> None:
        for window in sorted(self.scene.record.halts.windows):
            with contextlib.suppress(Refused):
                await self.store.commands.end_maintenance(window, "ann")
        self.scene.record.halts.windows.clear()

    async def _order(self, n: int, order: str) -> None:
        found = (await facts_of(self.store)).incidents
        mine = [i["id"] for i in found if i["state"] == IncidentState.OPEN][n : n + 1]
        for incident in mine:
            with contextlib.suppress(Refused):
                if order == "approve":
                    await self.store.commands.approve(incident, None, "ann")
                elif order == "reject":
                    await self.store.commands.reject(incident, None, "ann", "no")
                else:
                    await self.store.commands.cancel(incident, "ann", "mine")

    # --- what must hold -----------------------------------------------------------------------

    def check(self) -> None:
        """Hold the promises against what is stored, unless something has failed already."""
        if not self.replicas or not self.sound:
            return
        facts = self.run(facts_of(self.store))
        self.ground.reached.update({f"in the ledger, {row['state']}" for row in facts.mitigations})
        self.sound = False
        self.promises.hold(facts)
        self.sound = True

    # --- the end ------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if self.replicas and self.sound and self.heals:
                self._ends()
        finally:
            for replica in self.replicas:
                if replica.task is not None:
                    self.run(replica.die())

    def _ends(self) -> None:
        self.run(self._heal())
        self.run(self._settle(16 * MINUTE + self.clock.put_back))
        self.clock.advance(timedelta(hours=1))  # nobody answers what was asked
        self.run(self._settle(3 * MINUTE))
        self.check()
        self.promises.whatever_is_open_waits(self.run(facts_of(self.store)))
        self.clock.advance(SECOND)
        fires = list(self.senders.fires.values())
        self.run(self._send([self.senders.ends(alert) for alert in fires]))
        self.run(self._settle(10 * MINUTE))
        self.check()
        facts = self.run(facts_of(self.store))
        self.promises.nothing_is_left(facts)
        self.scene.chat.down = False
        self.clock.advance(timedelta(hours=1))
        self.run(self.replicas[0].tell())
        self.promises.everybody_knows(facts)

    async def _heal(self) -> None:
        for world in self.scene.worlds.values():
            world.lose_answers, world.refuse, world.unavailable = 0, None, None
        for eyes in self.scene.eyes.values():
            eyes.assessment = Assessment.BETTER
        await self._resume()
        await self._end_windows()
        for replica in self.replicas:
            if replica.task is not None:
                await (replica.go_on() if replica.parked is Point.CALLING else replica.die())
