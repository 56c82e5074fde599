"""The model: whatever happens, and wherever a replica stops, no promise of the engine is broken.

Replicas on one store work, stall, die and go on in any order, while alerts come, operators order
and the world fails. After every rule the promises are held against the ledger and against the
world's own record; at the end everything heals and nothing may be left over.

``REMEDIATOR_MODEL_EXAMPLES=500`` tries so many examples, chosen anew each time;
``REMEDIATOR_MODEL_MUTANTS=1`` also proves that the model finds engines that are wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from remediator.errors import Refused
from remediator.maintenance import MaintenanceOrder
from remediator.mitigation.act import SETTLE_TIME
from remediator.model import (
    Alert,
    AlertStatus,
    Assessment,
    DeadLetter,
    Delivery,
    DeliveryId,
    IncidentOutcome,
    IncidentState,
    Limits,
    MitigationState,
    Target,
)
from remediator.store import Store, open_store
from remediator.store import tables as t
from remediator.store.queue import LEASE
from remediator.testing import FrozenClock, firing_alert
from remediator.triage.incidents import STALE_WITHIN, correlate
from remediator.triage.match import Match, match
from tests.engine_model import MUTANTS, Build, Point, Replica, Scene, a_scene
from tests.store_fixtures import a_delivery, resolved

EXAMPLES = os.environ.get("REMEDIATOR_MODEL_EXAMPLES")
SCOPES = ("global", "shop", "shop/orders", "shop/pay")
SERVICES = ("orders", "cart", "search", "pay")
COUNTED = {
    MitigationState.RESERVED,
    MitigationState.APPLIED,
    MitigationState.UNKNOWN,
    MitigationState.REVERTED,
}
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


@dataclass
class Ground:
    """What all examples of a test share: a loop, a clock and the stores of three processes."""

    runner: asyncio.Runner
    clock: FrozenClock
    stores: Sequence[Store]

    async def clear(self) -> None:
        self.clock.now = FrozenClock().now

        async def operation(connection: Any) -> None:
            for table in reversed(t.metadata.sorted_tables):
                await connection.execute(delete(table))

        await self.stores[0].database.write(operation)


@contextlib.contextmanager
def the_ground(url: str) -> Iterator[Ground]:
    """Open the stores: on PostgreSQL three, on SQLite one, which serves one process."""
    clock = FrozenClock()
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


@dataclass(frozen=True)
class Facts:
    """What is stored, read at once."""

    incidents: Sequence[Any]
    mitigations: Sequence[Any]
    alerts: Sequence[Any]
    untriaged: int
    dead: int


async def facts_of(store: Store) -> Facts:
    async with store.database.read() as connection:

        async def rows(*columns: Any, where: Any = True) -> Sequence[Any]:
            found = await connection.execute(select(*columns).where(where))
            return found.mappings().all()

        waits = t.deliveries.c.triaged_at.is_(None)
        untriaged = await connection.scalar(select(func.count(t.deliveries.c.id)).where(waits))
        dead = await connection.scalar(select(func.count(t.dead_letters.c.id)))
        return Facts(
            await rows(t.incidents),
            await rows(t.mitigations),
            await rows(t.alerts, where=t.alerts.c.latest),
            untriaged or 0,
            dead or 0,
        )


replicas = st.integers(0, 2)
services = st.sampled_from(SERVICES)
scopes = st.sampled_from(SCOPES)
points = st.sampled_from(list(Point))


class Engine(RuleBasedStateMachine):
    """The service, its operators, its senders and its world."""

    def __init__(self, ground: Ground, build: Build, *, heals: bool) -> None:
        """Run on ``ground``; ``heals`` says whether an example has its end, when all is well."""
        super().__init__()
        self.heals = heals
        self.ground, self.build, self.clock = ground, build, ground.clock
        self.replicas: list[Replica] = []
        self.sound = False
        self.fires: dict[str, Alert] = {}
        """What fires, as its sender knows it."""
        self.over: dict[str, Alert] = {}
        """What resolved, as it was when it fired."""
        self.ended: dict[str, datetime] = {}
        self.sent: dict[DeliveryId, Sequence[Alert]] = {}
        self.dead = self.things = 0
        self.epochs: dict[str, int] = {}

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        self.sound = False
        result = self.ground.runner.run(what)
        self.sound = True
        return result

    @property
    def store(self) -> Store:
        return self.ground.stores[0]

    @initialize(budget=st.integers(3, 5), concurrency=st.integers(1, 3))
    def begins(self, budget: int, concurrency: int) -> None:
        self.run(self.ground.clear())
        self.scene: Scene = a_scene(self.clock, budget=budget, concurrency=concurrency)
        self.replicas = [
            Replica(f"replica-{n}", store, self.scene, self.build)
            for n, store in enumerate(self.ground.stores)
        ]

    # --- senders ------------------------------------------------------------------------------

    @rule(
        told=st.lists(
            st.tuples(services, st.sampled_from(["ThingsOn", "ThingsOn", "Dim"])),
            min_size=1,
            max_size=3,
        )
    )
    def fires_anew(self, told: list[tuple[str, str]]) -> None:
        self.clock.advance(SECOND)
        self.run(self._send([self._new(*which) for which in told]))

    @rule(
        n=st.integers(0, 9),
        of=st.sampled_from(["repeat", "resolve", "resolve", "old resolve", "late"]),
    )
    def sends(self, n: int, of: str) -> None:
        self.clock.advance(SECOND)
        self.run(self._send(self._known(n, of)))

    @rule(replica=replicas)
    def sends_what_cannot_be_used(self, replica: int) -> None:
        self.dead += 1
        dead = DeadLetter(reason="alerts[0]: no labels", position=0, excerpt="{}")
        stray = firing_alert("ThingsOn", {"system": "elsewhere"}, self.clock.now)
        self.fires.setdefault(stray.fingerprint, stray)
        self.run(self._send([self.fires[stray.fingerprint]], dead))

    @rule(replica=replicas)
    def triages(self, replica: int) -> None:
        self.run(self._triage(replica))

    # --- replicas -----------------------------------------------------------------------------

    @rule(replica=replicas)
    def works(self, replica: int) -> None:
        self.run(self._on(self.replicas[replica]))

    @rule(replica=replicas, point=points, service=services)
    def stops(self, replica: int, point: Point, service: str) -> None:
        """Something breaks, and the replica that works on it stops."""
        self.fires_anew([(service, "ThingsOn")])
        self.run(self._on(self.replicas[replica], point))

    @rule(replica=replicas, point=points, service=services)
    def dies(self, replica: int, point: Point, service: str) -> None:
        """Something breaks, and the replica that works on it dies."""
        self.fires_anew([(service, "ThingsOn")])
        self.run(self._dying(self.replicas[replica], point))

    @rule(told=st.sets(services, min_size=2))
    def work_at_the_same_time(self, told: set[str]) -> None:
        """Several things break, and every replica takes one of them."""
        self.fires_anew([(service, "ThingsOn") for service in sorted(told)])
        self.run(self._together())

    @rule(
        replica=replicas,
        point=st.sampled_from([Point.RESERVE, Point.PREPARE, *Point]),
        service=services,
        fate=st.sampled_from([Point.CLAIMED, Point.CLAIMED, *Point]),
    )
    def is_overtaken(self, replica: int, point: Point, service: str, fate: Point) -> None:
        """It stops for longer than its lease, and whoever takes over dies at ``fate``."""
        one = self.replicas[replica]
        self.stops(replica, point, service)
        if one.task is not None:
            self.run(self._later(one, 6, fate))

    @rule(replica=replicas, point=st.sampled_from([Point.RESERVED, *Point]), service=services)
    def is_paused_meanwhile(self, replica: int, point: Point, service: str) -> None:
        """It stops for a moment, in which an operator orders a pause."""
        one = self.replicas[replica]
        self.stops(replica, point, service)
        self.pauses("global")
        if one.task is not None:
            self.run(one.go_on())
        self.run(self._resume())

    @precondition(lambda self: any(replica.task for replica in self.replicas))
    @rule(
        n=replicas,
        seconds=st.sampled_from([6, 0, 4, 8, 30, 120]),
        fate=st.sampled_from([Point.CLAIMED, *Point, None]),
    )
    def goes_on(self, n: int, seconds: int, fate: Point | None) -> None:
        """It goes on after some time, in which the others work, or die at it."""
        stopped = [replica for replica in self.replicas if replica.task is not None]
        self.run(self._later(stopped[n % len(stopped)], seconds, fate))

    @rule(
        replica=replicas,
        point=st.none() | st.sampled_from([Point.ASKED, Point.CALLING, Point.CHANGED]),
    )
    def takes_back(self, replica: int, point: Point | None) -> None:
        one = self.replicas[replica]
        if one.task is None:
            self.run(one.hold(point))

    @rule(replica=replicas, down=st.booleans())
    def tells(self, replica: int, down: bool) -> None:
        self.scene.chat.down = down
        if self.replicas[replica].task is None:
            self.run(self.replicas[replica].tell())

    # --- time and the world -------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 3, 6, 10, 10, 30, 60, 300, 700, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.run(self._pass(timedelta(seconds=seconds)))

    @rule(seconds=st.sampled_from([30, 60, 200]))
    def time_passes_at_work(self, seconds: int) -> None:
        self.run(self._settle(timedelta(seconds=seconds)))

    @rule(
        world=st.sampled_from(["shared", "asked", "blunt"]),
        fault=st.sampled_from(["", "lost", "lost", "refused", "down"]),
    )
    def the_world_fails(self, world: str, fault: str) -> None:
        one = self.scene.worlds[world]
        one.lose_answers = int(fault == "lost")
        one.refuse = "no right to do it" if fault == "refused" else None
        one.unavailable = "no answer" if fault == "down" else None

    @rule(service=services, assessment=st.sampled_from(Assessment))
    def it_looks(self, service: str, assessment: Assessment) -> None:
        self.scene.eyes[service].assessment = assessment

    # --- operators ----------------------------------------------------------------------------

    @rule(scope=scopes)
    def pauses(self, scope: str) -> None:
        self.run(self.store.commands.pause(scope, "ann", "hands off"))
        self.scene.record.halts.paused.add(scope)

    @precondition(lambda self: self.replicas and self.scene.record.halts.paused)
    @rule()
    def resumes(self) -> None:
        self.run(self._resume())

    @rule(scope=scopes, minutes=st.integers(1, 60))
    def maintains(self, scope: str, minutes: int) -> None:
        self.run(self._maintain(scope, minutes))

    @rule()
    def ends_maintenance(self) -> None:
        self.run(self._end_windows())

    @rule(n=st.integers(0, 5), order=st.sampled_from(["approve", "approve", "reject", "cancel"]))
    def orders(self, n: int, order: str) -> None:
        self.run(self._order(n, order))

    # --- how it is done -----------------------------------------------------------------------

    def _new(self, service: str, name: str) -> Alert:
        self.things += 1
        labels = {"system": "shop", "service": service, "pod": str(self.things % 3)}
        alert = firing_alert(name, labels, self.clock.now)
        target = next(s for s in self.scene.services if s.name == service).targets["world"]
        self.scene.worlds[target.name].things.add(f"{service}:{self.things}")
        return self.fires.setdefault(alert.fingerprint, alert)

    def _known(self, n: int, of: str) -> list[Alert]:
        if of == "late":
            recent = [
                alert
                for print_, alert in self.over.items()
                if print_ not in self.fires
                and self.clock.now - self.ended[print_] < STALE_WITHIN - MINUTE
            ]
            return recent[n : n + 1]
        chosen = list(self.fires.values())[n : n + 1]
        if of == "old resolve":
            old = {"status": AlertStatus.RESOLVED}
            return [a.model_copy(update=old | {"ends_at": a.starts_at - SECOND}) for a in chosen]
        if of == "repeat":
            return chosen
        return [self._end(alert) for alert in chosen]

    def _end(self, alert: Alert) -> Alert:
        self.over[alert.fingerprint] = self.fires.pop(alert.fingerprint)
        self.ended[alert.fingerprint] = self.clock.now
        return resolved(alert, self.clock)

    async def _send(self, alerts: Sequence[Alert], *dead: DeadLetter) -> None:
        delivery = a_delivery(self.clock)
        self.sent[delivery.id] = alerts
        await self.store.inbox.put(delivery, alerts, dead)
        await self._triage(0)  # soon, so that what is late stays what it is

    async def _triage(self, replica: int) -> None:
        around = self.replicas[replica].around

        def matching(alert: Alert, delivery: Delivery) -> Match:
            return match(alert, around.catalogue, around.playbooks, delivery.playbook)

        found: Any = True
        while found is not None:
            found = await self.ground.stores[replica].inbox.triage(
                lambda delivery: self.sent[delivery.id],
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

    async def _later(self, replica: Replica, seconds: int, fate: Point | None) -> None:
        await self._pass(timedelta(seconds=seconds))
        for other in self.replicas:
            await (self._on(other) if fate is None else self._dying(other, fate))
        if replica.task is not None:
            await replica.go_on()

    async def _pass(self, time: timedelta) -> None:
        end = self.clock.now + time
        for replica in self.replicas:
            # what was sent has reached its backend by then, or never will
            if replica.parked is Point.CALLING and end > replica.gate.since + SETTLE_TIME:
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

    # --- the promises -------------------------------------------------------------------------

    @invariant()
    def every_promise_is_kept(self) -> None:
        if not self.replicas or not self.sound:
            return
        facts = self.run(facts_of(self.store))
        self.sound = False
        assert self.scene.record.wrong == []
        self._bounds_are_kept(facts)
        self._what_changed_is_counted(facts)
        self._every_alert_is_accounted_for(facts)
        self._epochs_only_grow(facts)
        self.sound = True

    def _bounds_are_kept(self, facts: Facts) -> None:
        limits: dict[str, Limits] = {}
        rows, changes = defaultdict(list), defaultdict(list)
        for row in facts.mitigations:
            target = Target.model_validate(row["mitigation"]["target"])
            for bound in self.scene.bounds(row["service"], row["playbook"], target):
                limits[bound.scope] = bound.limits
                rows[bound.scope].append(row)
        for one in self.scene.record.changes:
            for bound in self.scene.bounds(one.service, one.playbook, one.target):
                changes[bound.scope].append(one.at)
        for scope, own in limits.items():
            _is_kept(scope, own, rows[scope], changes[scope])

    def _what_changed_is_counted(self, facts: Facts) -> None:
        states = {row["effect_key"]: row["state"] for row in facts.mitigations}
        record = self.scene.record
        for change in record.changes:
            state = states[change.effect_key]
            assert state in COUNTED, f"{change.effect_key} was made, the ledger says {state}"
        for world in self.scene.worlds.values():
            assert len(world.applied) == len(set(world.applied)), "applied twice"
        assert [key for key, calls in record.calls.items() if calls > 1] == []

    def _every_alert_is_accounted_for(self, facts: Facts) -> None:
        assert facts.dead == self.dead
        if facts.untriaged:
            return
        stored = {row["fingerprint"]: row["status"] for row in facts.alerts}
        known = dict.fromkeys(self.over, "resolved") | dict.fromkeys(self.fires, "firing")
        assert stored == known

    def _epochs_only_grow(self, facts: Facts) -> None:
        for row in facts.incidents:
            assert row["epoch"] >= self.epochs.get(row["id"], 0)
            self.epochs[row["id"]] = row["epoch"]

    # --- the end ------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if self.replicas and self.sound and self.heals:
                self.run(self._heal())
                self.run(self._settle(16 * MINUTE))
                self.clock.advance(timedelta(hours=1))  # nobody answers what was asked
                self.run(self._settle(3 * MINUTE))
                self.every_promise_is_kept()
                self._whatever_is_open_waits(self.run(facts_of(self.store)))
                self.clock.advance(SECOND)
                self.run(self._send([self._end(alert) for alert in list(self.fires.values())]))
                self.run(self._settle(10 * MINUTE))
                self.every_promise_is_kept()
                self.run(self._nothing_is_left())
        finally:
            for replica in self.replicas:
                if replica.task is not None:
                    self.run(replica.die())

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

    def _whatever_is_open_waits(self, facts: Facts) -> None:
        for row in facts.incidents:
            if row["state"] == IncidentState.OPEN:
                assert row["reason"], f"{row['id']} waits for nothing at {row['phase']}"
                assert row["due_at"], f"{row['id']} waits for ever at {row['phase']}"

    async def _nothing_is_left(self) -> None:
        self.scene.chat.down = False
        facts = await facts_of(self.store)
        left = [r["effect_key"] for r in facts.mitigations if r["state"] == "reserved"]
        assert left == [], "reserved, and nobody knows what became of it"
        assert [r["effect_key"] for r in facts.mitigations if r["in_flight"]] == []
        waiting = [
            r["state"] for r in facts.mitigations if r["state"] in ("approved", "awaiting_approval")
        ]
        assert waiting == []
        open_ = [(i["phase"], i["reason"]) for i in facts.incidents if i["outcome"] is None]
        assert open_ == []
        self._temporary_changes_are_taken_back(facts)
        await self._everybody_knows(facts)

    def _temporary_changes_are_taken_back(self, facts: Facts) -> None:
        outcomes = {row["id"]: row["outcome"] for row in facts.incidents}
        for row in facts.mitigations:
            temporary = row["mitigation"]["hold"] is not None and row["undo"] is not None
            if temporary and row["state"] == MitigationState.APPLIED:
                assert outcomes[row["incident_id"]] == IncidentOutcome.ESCALATED, row["effect_key"]

    async def _everybody_knows(self, facts: Facts) -> None:
        self.clock.advance(timedelta(hours=1))
        await self.replicas[0].tell()
        silent = {IncidentOutcome.NO_MATCH, IncidentOutcome.SUPPRESSED}
        chat = self.scene.chat
        for row in facts.incidents:
            said = chat.said.get(row["id"])
            if said is None:
                assert row["outcome"] in silent, f"nobody was told of {row['reason']}"
                continue
            assert (said.incident.outcome, said.incident.reason) == (row["outcome"], row["reason"])
            assert chat.posts[row["id"]] == 1


def _is_kept(scope: str, own: Limits, rows: Sequence[Any], changes: list[datetime]) -> None:
    in_flight = [row["effect_key"] for row in rows if row["in_flight"]]
    assert len(in_flight) <= own.concurrency, f"{scope}: {in_flight}"
    reserved = [row for row in rows if row["state"] in COUNTED]
    _within(own.budget, own.window, [row["reserved_at"] for row in reserved], scope)
    # a call may be made that much later than it was reserved
    _within(own.budget, own.window - LEASE - SETTLE_TIME, changes, scope)
    if scope.startswith("target/"):
        _apart(own.cooldown, reserved)


def _within(budget: int, window: timedelta, times: list[datetime], scope: str) -> None:
    for end in times:
        found = sum(end - window < time <= end for time in times)
        assert found <= budget, f"{found} in {window} of {scope}, not {budget}"


def _apart(cooldown: timedelta, rows: Sequence[Any]) -> None:
    ordered = sorted(rows, key=lambda row: row["reserved_at"])
    for n, one in enumerate(ordered):
        for other in ordered[n + 1 :]:
            near = other["reserved_at"] - one["reserved_at"] < cooldown
            assert not near or one["incident_id"] == other["incident_id"], "within the cooldown"


def _settings(examples: int, steps: int = 25) -> settings:
    more = int(EXAMPLES or 0)
    return settings(
        max_examples=more or examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=not more,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def _engine(ground: Ground, build: Build, *, heals: bool = True) -> type[Engine]:
    class Built(Engine):
        def __init__(self) -> None:
            super().__init__(ground, build, heals=heals)

    return Built


@pytest.mark.timeout(900 if EXAMPLES is None else 0)
def test_no_promise_is_broken_wherever_a_replica_stops(store_url: str) -> None:
    with the_ground(store_url) as ground:
        run_state_machine_as_test(_engine(ground, Build()), settings=_settings(12))


@pytest.mark.skipif("REMEDIATOR_MODEL_MUTANTS" not in os.environ, reason="slow")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_finds_an_engine_that_is_wrong(mutant: str, postgres_database: str) -> None:
    found = settings(_settings(150), phases=[Phase.generate])
    failures = (AssertionError, IntegrityError, FlakyFailure)
    with the_ground(postgres_database) as ground:
        wrong = _engine(ground, MUTANTS[mutant], heals=False)
        with pytest.raises(failures):
            run_state_machine_as_test(wrong, settings=found)
