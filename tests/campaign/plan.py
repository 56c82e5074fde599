"""What happens in one seed: which faults, which processes, what is done to them and when. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

REPLICAS = 3
"""Processes on one PostgreSQL; SQLite serves one."""
AHEAD = (2 * 3600, 24 * 3600)
"""Seconds by which a clock is wrong: more than anything that is due at a time may be from now."""
SPAN = 14.0
"""Seconds in which things go wrong."""


class Point(NamedTuple):
    """Right before or right after a commit that does something to a table."""

    after: bool
    change: str
    """A verb and a table: ``insert mitigations``."""

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} {self.change}"


CHANGES = (
    "insert deliveries",
    "insert incidents",
    "insert alerts",
    "update deliveries",
    "update alerts",
    "update incidents",
    "insert journal",
    "insert findings",
    "insert mitigations",
    "update mitigations",
    "insert samples",
    "insert notices",
    "update notices",
    "insert escalations",
)
"""What every seed commits."""
OWED = ("insert obligations", "update obligations", "delete obligations")
"""What is committed besides where a temporary change is made and taken back."""
ALWAYS = tuple(Point(after, change) for change in CHANGES for after in (False, True))
WITH_HOLD = tuple(Point(after, change) for change in OWED for after in (False, True))
STOPPED = ("insert pauses", "delete pauses")
"""What is committed besides where an operator pauses."""
WITH_PAUSE = tuple(Point(after, change) for change in STOPPED for after in (False, True))
RESERVED = Point(after=True, change="insert mitigations")
"""Between the reservation and the call."""


@dataclass(frozen=True)
class Order:
    """What a process does to itself at a point."""

    point: Point
    nth: int
    """Which commit of that kind it is, from 1."""
    stop: float | None
    """Seconds that it stands still; None: it dies."""

    @property
    def how(self) -> str:
        return "dies" if self.stop is None else f"stops for {self.stop:g} s"


@dataclass(frozen=True)
class EventType:
    """Something that goes wrong, or that an operator does."""

    at: float
    """Seconds since the beginning."""
    what: str
    whom: int
    """Which replica; for what is about a replica."""
    lasts: float


@dataclass(frozen=True)
class Plan:
    """One seed."""

    seed: int
    replicas: int
    """One on SQLite; several on PostgreSQL."""
    faults: tuple[str, ...]
    fires: tuple[float, ...]
    """When the alert of each fault fires, in seconds since the beginning."""
    twin: int | None
    """Which fault makes a second service ill, whose target is the same one."""
    budget: int
    """Mitigations that the whole system may make."""
    concurrency: int
    """Mitigations of the system that may be in flight at the same time."""
    orders: tuple[Order | None, ...]
    """What each process that is started does to itself, in the order of their starts."""
    happenings: tuple[EventType, ...]
    slow_store: float
    """Seconds by which each message between a replica and its store is late: transactions of
    several replicas meet then."""
    cut_over: tuple[float, ...] = ()
    """When each replica is replaced by one of the new version; empty: all are of one version."""
    asked: frozenset[int] = frozenset()
    """Faults whose services ask a human before each change."""
    ahead: int = 0
    """Seconds by which the machine's clock is ahead until it is put back."""

    def has(self, what: str) -> bool:
        """Whether something happens in it."""
        return any(happening.what == what for happening in self.happenings)

    @property
    def postgres(self) -> bool:
        return self.replicas > 1


PLAIN = ("breaker", "sluggish", "session", "breaker", "session", "sluggish")
IN_CLUSTER = ("memory", "scale", "evicted")
_REPLICA = ("kill", "kill", "stop", "stop", "term")
_STORE = ("store crashes", "store restarts", "store hangs", "store drops connections")
_AROUND = ("slack away", "slack hangs", "prometheus away", "redis crashes", "redis hangs")
FULL = "disk full"
PUT_BACK = "clock put back"
RESTORED = "restored from a copy"
OWN_STORE = (FULL, PUT_BACK, RESTORED)
"""What happens to the store of one process; the last also to that of several."""
_NETWORK = ("slow", "answers lost", "answers lost", "connections reset", "black hole")


def plan_of(seed: int, *, postgres: bool, upgrade: bool = False) -> Plan:
    """Work out what happens in ``seed``; the same for the same seed, always."""
    chance = random.Random(f"{seed}/{postgres}/{upgrade}")
    faults = _faults(chance)
    crowd = chance.random() < 0.5
    fires = tuple(0.0 if crowd else round(chance.uniform(0, 6), 1) for _ in faults)
    tight = chance.random() < (0.7 if crowd else 0.3)
    replicas = REPLICAS if postgres else 1
    happenings = _happenings(chance, replicas)
    if not upgrade:
        happenings += _to_the_store(random.Random(f"store {seed}/{postgres}"), replicas)
    orders = _orders(seed, chance, _rare(faults, happenings), replicas)
    if orders[0] is not None and orders[0].point == RESERVED and orders[0].stop is not None:
        happenings = tuple(h for h in happenings if h.what not in _REPLICA or h.whom != 0)
    return Plan(
        seed=seed,
        replicas=replicas,
        faults=faults,
        fires=fires,
        twin=chance.choice((None, 0, 1, 2)),
        budget=chance.choice((1, 2, 2, 3)) if tight else 10,
        concurrency=10 if tight else chance.choice((10, 10, 2, 1)),
        orders=orders,
        happenings=happenings,
        slow_store=0.006 if postgres and crowd and tight else 0.0,
        cut_over=tuple(2.0 + 3.0 * n for n in range(replicas)) if upgrade else (),
        ahead=AHEAD[seed // 2 % 2] if any(h.what == PUT_BACK for h in happenings) else 0,
        asked=_asked(random.Random(f"asked {seed}/{postgres}"), len(faults)),
    )


def _to_the_store(chance: random.Random, replicas: int) -> tuple[EventType, ...]:
    """Do one thing to the store, in most of the seeds on SQLite and some on PostgreSQL."""
    what = chance.choice((*OWN_STORE, "") if replicas == 1 else (RESTORED, "", ""))
    at, lasts = round(chance.uniform(1.0, 6.0), 1), round(chance.uniform(2.0, 5.0), 1)
    return (EventType(at, what, 0, lasts),) if what else ()


def _asked(chance: random.Random, faults: int) -> frozenset[int]:
    """Choose the faults that need an approval, in two seeds of three."""
    many = chance.choice((0, 0, 1, 2, 3, 3))
    return frozenset(chance.sample(range(faults), min(many, faults)))


def _faults(chance: random.Random) -> tuple[str, ...]:
    plain = list(PLAIN[: chance.randint(3, 6)])
    cluster = chance.sample(IN_CLUSTER, chance.choice((0, 1, 1, 2)))
    cache = ["cache"] if chance.random() < 0.25 else []
    return (*plain, *cluster, *cache)


def _rare(faults: Sequence[str], happenings: Sequence[EventType]) -> tuple[Point, ...]:
    """Return the points that are passed only because of what there is in a seed."""
    held = WITH_HOLD if "scale" in faults else ()
    paused = any(happening.what == "pause" for happening in happenings)
    return (*held, *(WITH_PAUSE if paused else ()))


def _orders(
    seed: int, chance: random.Random, rare: Sequence[Point], replicas: int
) -> tuple[Order | None, ...]:
    """Give the first process the seed's own point, in turn; later ones get any, or none.

    A quarter of the seeds begin with a process that is held up between reservation and call; what
    happens to processes leaves it alone then.
    """
    points = (*ALWAYS, *rare)
    own = rare if rare and chance.random() < 0.5 else ALWAYS
    first = _order(chance, own[seed % len(own)], 1)
    if own is not rare and chance.random() < 0.25:
        first = Order(RESERVED, 1, chance.choice((6.0, 10.0)))
    others = (chance.choice((*points, RESERVED, RESERVED)) for _ in range(3 * replicas))
    rest = [
        _order(chance, p, chance.randint(1, 3)) if chance.random() < 0.6 else None for p in others
    ]
    if own is rare:  # passed late, and by any of the processes there are by then
        rest[: replicas + 1] = [_order(chance, first.point, 1) for _ in range(replicas + 1)]
    return (first, *rest)


def _order(chance: random.Random, point: Point, nth: int) -> Order:
    stop = chance.choice((None, None, 0.5, 1.5, 3.0, 6.0))
    return Order(point, nth, stop)


def _happenings(chance: random.Random, replicas: int) -> tuple[EventType, ...]:
    kinds = [chance.choice(_REPLICA) for _ in range(chance.randint(1, 3))]
    kinds += [chance.choice(_AROUND), chance.choice(_NETWORK)]
    if replicas > 1:
        kinds += [chance.choice(_STORE), chance.choice(_NETWORK)]
    if chance.random() < 0.4:
        kinds.append("pause")
    found = [
        EventType(
            at=round(chance.uniform(0.5, SPAN - 5), 1),
            what=what,
            whom=chance.randrange(replicas),
            lasts=round(chance.choice((0.3, 1.0, 2.0, 4.0)), 1),
        )
        for what in kinds
    ]
    return tuple(sorted(found, key=lambda happening: happening.at))
