"""The state machine of the model: what may happen, in any order, to the service and around it.

Replicas on one store work, stall, sleep, die and go on; senders retry, operators order, the world
fails, the store fails, and its clock jumps. After every rule the promises are held against it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from remediator.model.alert import DeadLetter
from remediator.model.verdict import Assessment
from tests.engine_gates import Loss, Point
from tests.engine_processes import Build
from tests.engine_senders import SECOND
from tests.engine_stage import Ground, Stage
from tests.engine_world import SCOPES, SERVICES

replicas = st.integers(0, 2)
services = st.sampled_from(SERVICES)
scopes = st.sampled_from(SCOPES)
points = st.sampled_from(list(Point))
losses = st.sampled_from(Loss)
stalls = st.sampled_from([6, 8, 3, 30, 6, 120])
jumps = st.sampled_from([6, 60, 1200, 10800, -2, -30, -300]).map(lambda s: timedelta(seconds=s))
"""How far the store's clock may jump: a correction, or another server's clock."""


OFTEN = 20
"""How much likelier a danger that is looked for is than any other rule."""
BEGIN: dict[str, Any] = {
    "budget": st.integers(3, 5),
    "concurrency": st.integers(1, 3),
    "steady": st.sampled_from([False, True, False]),
}
DANGERS: dict[str, dict[str, Any]] = {
    "is_overtaken": {
        "replica": replicas,
        "point": st.sampled_from([Point.RESERVE, Point.PREPARE, *Point]),
        "service": services,
        "fate": st.sampled_from([Point.CLAIMED, Point.CLAIMED, *Point]),
    },
    "is_halted_meanwhile": {
        "replica": replicas,
        "point": st.sampled_from([Point.RESERVED, Point.RESERVED, *Point]),
        "service": services,
        "scope": st.sampled_from(["global", "shop", "shop/{service}"]),
        "window": st.booleans(),
        "back": st.sampled_from([0, 2, 0, 30]),
    },
    "break_again": {
        "told": st.lists(services, min_size=2, max_size=4),
        "seconds": st.sampled_from([12, 60]),
    },
    "stalls_before_its_call": {
        "replica": replicas,
        "how": st.sampled_from(
            [(Point.ASKED, False), (Point.RESERVED, True), (Point.RESERVED, False)]
        ),
        "service": services,
        "seconds": stalls,
    },
    "dies_at_its_call": {
        "replica": replicas,
        "point": st.sampled_from([Point.RESERVED, Point.CALLING, Point.CHANGED]),
        "service": st.sampled_from(["pay", "pay", *SERVICES]),
        "seconds": st.sampled_from([30, 60, 12]),
    },
    "sleeps_through_a_jump": {
        "replica": replicas,
        "point": st.sampled_from([*[Point.RESERVED] * 4, Point.CALLING, Point.CALLING, *Point]),
        "service": services,
        "how": st.sampled_from(
            [
                (6, 3, True),
                (1200, 3, True),
                (10800, 3, True),
                (60, 30, True),
                (60, 3, False),
                (1200, 30, False),
                (-2, 6, False),
                (-300, 6, False),
            ]
        ),
    },
    "a_hold_ends": {
        "replica": replicas,
        "point": st.none() | st.sampled_from([Point.CALLING, Point.ASKED, Point.CALLING]),
        "meanwhile": st.sampled_from([Point.CALLING, None]),
    },
    "loses_the_store": {
        "replica": replicas,
        "point": st.sampled_from([Point.CLAIMED, Point.RESERVE, Point.FINISH]),
        "loses": losses,
        "service": services,
    },
    "work_at_the_same_time": {
        "told": st.sets(services, min_size=2),
    },
}
"""What the rules draw under which an engine that is wrong is most likely to show it."""


class Engine(Stage):
    """Everything that may happen."""

    @initialize(**BEGIN)
    def begins(self, budget: int, concurrency: int, *, steady: bool) -> None:
        self.set_up(budget=budget, concurrency=concurrency, steady=steady)

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
        self.run(self._send([self.senders.breaks(*which) for which in told]))

    @rule(
        n=st.integers(0, 9),
        of=st.sampled_from(["repeat", "resolve", "resolve", "old resolve", "late"]),
        loses=st.none() | losses,
    )
    def sends(self, n: int, of: str, loses: Loss | None) -> None:
        self.clock.advance(SECOND)
        self.replicas[0].door.fails = loses
        self.run(self._send(self.senders.known(n, of)))

    @rule(told=st.sets(services, min_size=1), replica=replicas)
    def sends_to_two_at_the_same_time(self, told: set[str], replica: int) -> None:
        """Two senders have the same to say, and every replica triages."""
        self.clock.advance(SECOND)
        alerts = [self.senders.breaks(service, "ThingsOn") for service in sorted(told)]
        self.run(self._send_to([replica, replica + 1], alerts))

    @rule(loses=st.none() | losses)
    def sends_what_cannot_be_used(self, loses: Loss | None) -> None:
        self.replicas[0].door.fails = loses
        dead = DeadLetter(reason="alerts[0]: no labels", position=0, excerpt="{}")
        self.run(self._send([self.senders.stray()], dead))

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

    @rule(**DANGERS["loses_the_store"])
    def loses_the_store(self, replica: int, point: Point, loses: Loss, service: str) -> None:
        """Something breaks, and at the work on it the store fails for a moment."""
        self.fires_anew([(service, "ThingsOn")])
        if self.replicas[replica].task is None:
            self.run(self.replicas[replica].work(point, loses))

    @rule(**DANGERS["work_at_the_same_time"])
    def work_at_the_same_time(self, told: set[str]) -> None:
        """Several things break, and every replica takes one of them."""
        self.fires_anew([(service, "ThingsOn") for service in sorted(told)])
        self.run(self._together())

    @rule(**DANGERS["is_overtaken"])
    def is_overtaken(self, replica: int, point: Point, service: str, fate: Point) -> None:
        """It stops for longer than its lease, and whoever takes over dies at ``fate``."""
        one = self.replicas[replica]
        self.stops(replica, point, service)
        if one.task is not None:
            self.run(self._later(one, 6, fate))

    @rule(**DANGERS["is_halted_meanwhile"])
    def is_halted_meanwhile(
        self, replica: int, point: Point, service: str, scope: str, *, window: bool, back: int
    ) -> None:
        """It stops for a moment, in which an operator halts it, and the clock may be put back."""
        halted = scope.format(service=service)
        one = self.replicas[replica]
        self.stops(replica, point, service)
        if window:
            self.maintains(halted, 20)
        else:
            self.pauses(halted)
        if not self.steady and not self.is_calling:
            self.clock.jump(-back * SECOND)
        if one.task is not None:
            self.run(one.go_on())
        self.run(self._end_windows() if window else self._resume())

    @rule(**DANGERS["break_again"])
    def break_again(self, told: list[str], seconds: int) -> None:
        """One thing after the other breaks, is mended and resolves."""
        for service in told:
            self.fires_anew([(service, "ThingsOn")])
            self.time_passes_at_work(seconds)
            self.clock.advance(SECOND)
            self.run(self._resolve(service))
            self.time_passes_at_work(12)

    @rule(**DANGERS["stalls_before_its_call"])
    def stalls_before_its_call(
        self, replica: int, how: tuple[Point, bool], service: str, seconds: int
    ) -> None:
        """It stops between its reservation and its call, and nobody else comes by."""
        one, (point, suspended) = self.replicas[replica], how
        self.stops(replica, point, service)
        if one.task is not None:
            self.run(self._pass(timedelta(seconds=seconds)))
        if one.task is not None:
            self.run(one.go_on(suspended=suspended and not self.steady))

    @rule(**DANGERS["dies_at_its_call"])
    def dies_at_its_call(self, replica: int, point: Point, service: str, seconds: int) -> None:
        """It dies at its call, and whoever takes over has to find out whether that was made."""
        self.dies(replica, point, service)
        self.time_passes_at_work(seconds)

    @rule(**DANGERS["sleeps_through_a_jump"])
    def sleeps_through_a_jump(
        self, replica: int, point: Point, service: str, how: tuple[int, int, bool]
    ) -> None:
        """It stops, the store's clock jumps, others take over; the clock may be put right again."""
        one, (by, seconds, back) = self.replicas[replica], how
        if self.steady or self.is_calling:
            return
        self.stops(replica, point, service)
        if one.task is None:
            return
        self.clock.jump(by * SECOND)
        self.run(self._take_over(seconds * SECOND))
        if back:
            self.clock.jump(-by * SECOND)
        if one.task is not None:
            self.run(one.go_on(suspended=True))

    @precondition(lambda self: any(replica.task for replica in self.replicas))
    @rule(
        n=replicas,
        seconds=st.sampled_from([6, 0, 4, 8, 30, 120]),
        fate=st.sampled_from([Point.CLAIMED, *Point, None]),
        suspended=st.booleans(),
    )
    def goes_on(self, n: int, seconds: int, fate: Point | None, suspended: bool) -> None:
        """It goes on after some time, in which the others work, or die at it."""
        stopped = [replica for replica in self.replicas if replica.task is not None]
        suspended = suspended and not self.steady
        self.run(self._later(stopped[n % len(stopped)], seconds, fate, suspended=suspended))

    @rule(
        replica=replicas,
        point=st.none() | st.sampled_from([Point.ASKED, Point.CALLING, Point.CHANGED]),
        loses=st.none() | losses,
    )
    def takes_back(self, replica: int, point: Point | None, loses: Loss | None) -> None:
        one = self.replicas[replica]
        if one.task is None:
            self.run(one.hold(point, loses))

    @rule(**DANGERS["a_hold_ends"])
    def a_hold_ends(self, replica: int, point: Point | None, meanwhile: Point | None) -> None:
        """A temporary change is due, and while it is taken back its target is wanted."""
        self.run(self._hold())
        one, other = self.replicas[replica], self.replicas[replica - 1]
        if one.task is None:
            self.run(one.hold(point))
        self.fires_anew([("cart", "ThingsOn")])
        self.run(self._on(other, meanwhile))
        if one.task is not None:
            self.run(one.go_on())

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

    @precondition(lambda self: not self.steady and not self.is_calling)
    @rule(by=jumps)
    def jumps(self, by: timedelta) -> None:
        """The store's clock jumps; not twice within the time that a call may take."""
        self.clock.jump(by)

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

    # --- the promises -------------------------------------------------------------------------

    @invariant()
    def every_promise_is_kept(self) -> None:
        self.check()


def engine(ground: Ground, build: Build, *, danger: str = "", heals: bool = True) -> type[Engine]:
    """Return the machine on ``ground``; each example begins with ``danger``, and meets it often.

    ``heals`` says whether an example has its end, when all is well.
    """

    def made(self: Engine) -> None:
        Engine.__init__(self, ground, build, heals=heals)

    def begins(self: Engine, budget: int, concurrency: int, *, steady: bool, **drawn: Any) -> None:
        self.set_up(budget=budget, concurrency=concurrency, steady=steady)
        getattr(self, danger)(**drawn)

    def again(number: int) -> Any:
        def more(self: Engine, **drawn: Any) -> None:
            getattr(self, danger)(**drawn)

        more.__name__ = f"{danger}_{number}"  # each a rule that an example may leave out
        drawing: Any = rule(**DANGERS[danger])
        return drawing(more)

    members: dict[str, Any] = {"__init__": made}
    if danger:
        beginning: Any = initialize(**BEGIN, **DANGERS[danger])
        members |= {f"{danger}_{n}": again(n) for n in range(OFTEN)}
        members["begins"] = beginning(begins)
    return type("Built", (Engine,), members)
