"""The world of the model: what all processes share, and what keeps its own record of it.

What the world sees is compared with what the store says, as it happens and after every rule.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from remediator.model.catalog import Service
from remediator.model.errors import TemporaryError
from remediator.model.finding import Finding, FindingStatus
from remediator.model.limits import Bound, Limits
from remediator.model.mitigation import Proposal
from remediator.model.notification import Handle
from remediator.model.target import Mode, Target
from remediator.model.views import IncidentView, Report
from remediator.playbook.base import Context, Findings
from remediator.playbook.loader import PlaybookSet
from remediator.testing import FrozenClock, World
from tests.store_fixtures import WIDE, Dim, Eyes, SwitchOff, a_service

SERVICES = ("orders", "cart", "search", "pay")
SCOPES = ("global", "shop", *(f"shop/{service}" for service in SERVICES))


class Clock(FrozenClock):
    """The store's clock, which may jump, and the time that really passes meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = self.put_back = timedelta(0)
        """How far it is ahead of the time that passed, and by how much it was put back in all."""
        self.jumped_at: float | None = None

    @property
    def real(self) -> datetime:
        """The time that nothing moves: what the senders of alerts and our own monotonic clocks see."""
        return self.now - self.ahead

    def monotonic(self) -> float:
        return self.real.timestamp()

    def jump(self, by: timedelta) -> None:
        """Correct the store's clock, or go on with another one."""
        self.now += by
        self.ahead += by
        self.put_back += max(-by, timedelta(0))
        self.jumped_at = self.monotonic()

    def restart(self) -> None:
        self.__init__()  # type: ignore[misc] # the same clock, for the next example


class Unplug(SwitchOff):
    """Does the same by another kind of change: on one target, two kinds may be temporary."""

    levers = frozenset({"unplug"})

    def propose(self, context: Context, findings: Findings) -> Proposal:
        proposed = super().propose(context, findings)
        kinds = tuple(m.model_copy(update={"kind": "unplug"}) for m in proposed.mitigations)
        return proposed.model_copy(update={"mitigations": kinds})


PLAYBOOKS = PlaybookSet([SwitchOff, Dim, Unplug])


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

    clock: Clock
    halts: Halts = field(default_factory=Halts)
    calls: Counter[str] = field(default_factory=Counter)
    taken_back: Counter[str] = field(default_factory=Counter)
    """Targets on which something is being put back right now."""
    changes: list[Change] = field(default_factory=list)
    reached: Counter[str] = field(default_factory=Counter)
    """How often what the model is there for happened, over all examples."""
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        # said later: what a lever raises is taken for its failure
        if not holds:
            self.wrong.append(f"{self.clock.now:%H:%M:%S} {otherwise}")


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

    def channel(self, incident: IncidentView) -> str:
        return incident.service or ""

    async def call(self, report: Report) -> None:
        await self.send(report, None)


@dataclass
class Scene:
    """The world that all processes share."""

    clock: Clock
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


def a_scene(clock: Clock, reached: Counter[str], *, budget: int, concurrency: int) -> Scene:
    """Four services: two share a target, one asks first, one has a lever without a condition."""
    minutes = timedelta(minutes=1)
    narrow = Limits(budget=2, window=10 * minutes, cooldown=timedelta(0), concurrency=1)
    wide = Limits(
        budget=budget, window=10 * minutes, cooldown=timedelta(0), concurrency=concurrency
    )
    on_target = Limits(budget=3, window=10 * minutes, cooldown=minutes, concurrency=1)

    def service(name: str, target: str, mode: Mode, **parameters: Any) -> Service:
        made = a_service(
            name, limits=narrow, target_limits=on_target, mode=mode, parameters=parameters
        )
        world = made.targets["world"].model_copy(update={"name": target})
        return made.model_copy(update={"targets": {"world": world}})

    cart = service("cart", "shared", Mode.AUTO)
    unplug = cart.playbooks["SwitchOff"].model_copy(update={"name": "Unplug"})
    services = (
        service("orders", "shared", Mode.AUTO, hold="5m"),
        cart.model_copy(update={"playbooks": {"Unplug": unplug, "Dim": cart.playbooks["Dim"]}}),
        service("search", "asked", Mode.APPROVE),
        service("pay", "blunt", Mode.AUTO),
    )
    scene = Scene(clock, services, wide, Record(clock, reached=reached))
    scene.worlds = {name: World() for name in ("shared", "asked", "blunt")}
    for one in services:
        scene.eyes[one.name] = OwnEyes(scene.worlds[one.targets["world"].name])
        scene.eyes[one.name].service = one.name
    return scene
