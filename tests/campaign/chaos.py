"""Does what a plan says to the processes, the servers and the network, and undoes it.

What is noted as done was done: a signal that reached nobody, or a pause that nobody took, is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from tests.campaign.ground import Slot
from tests.campaign.network import Link, Pause, Span, Weather
from tests.campaign.plan import FULL, PUT_BACK, RESTORED, EventType, Plan
from tests.campaign.replicas import OPERATOR, Replica
from tests.campaign.restoring import Forgotten, Vault
from tests.campaign.world import World
from tests.disk_fixtures import SmallDisk

WEATHER = {
    "slow": Weather(delay=0.4),
    "answers lost": Weather(lose=0.3),
    "connections reset": Weather(reset=0.1),
    "black hole": Weather(hole=True),
}

TAKEN, THERE_IS_NONE = 200, 409
"""Status of an order: it is done; there is nothing to be done."""
_PAUSES = 20
"""Tries to pause on a full disk, where a process that died may not be able to start."""


@dataclass
class Chaos:
    """One seed's trouble."""

    plan: Plan
    slot: Slot
    world: World
    replicas: list[Replica]
    client: httpx.AsyncClient
    vault: Vault
    disk: SmallDisk | None = None
    """That of the one process's state, where it may be filled."""
    wrong: list[str] = field(default_factory=list)
    forgotten: Forgotten | None = None
    """What a store that was restored from a copy knows no more."""
    did: Counter[str] = field(default_factory=Counter)
    springs: Counter[str] = field(default_factory=Counter)
    """How often each named point was reached by a process that stopped or died there."""
    paused: list[Pause] = field(default_factory=list)
    stopped: list[Span] = field(default_factory=list)
    """When a process stood still anywhere."""
    kept: list[Span] = field(default_factory=list)
    """When the network kept messages to the backends."""
    _resuming: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, happening: EventType) -> None:
        """Wait until it is time, do it, and undo it."""
        await asyncio.sleep(happening.at)
        if await _HOW[happening.what](self, happening):
            self.did[happening.what] += 1

    async def watch_points(self) -> None:
        """Let processes that stopped themselves go on in their time, until cancelled."""
        while True:
            for replica in self.replicas:
                for order in replica.sprung():
                    when = "after" if order["after"] else "before"
                    self.springs[f"{when} {order['change']}"] += 1
                    if order["stop"] is not None:
                        self.stopped.append(_stop(replica, order))
                        going_on = self._go_on(replica, order["pid"], order["stop"])
                        task = asyncio.create_task(going_on)
                        self._resuming.add(task)
                        task.add_done_callback(self._resuming.discard)
            await asyncio.sleep(0.1)

    async def _go_on(self, replica: Replica, pid: int, after: float) -> None:
        await asyncio.sleep(after)
        if replica.pid == pid:
            replica.send(signal.SIGCONT)

    async def cut_over(self, replica: Replica, at: float) -> None:
        """Replace a process by one of the new version."""
        await asyncio.sleep(at)
        replica.upgrade()
        if replica.send(signal.SIGTERM):
            self.did["replaced by the new version"] += 1
        replica.send(signal.SIGCONT)

    async def heal(self) -> None:
        """Let everything run, and the weather be fine."""
        for link in self.world.links.values():
            link.base_delay = 0.0
            link.turn()
        self.slot.signal_store(signal.SIGCONT)
        await self.slot.store.start()
        self.slot.shared.send(signal.SIGCONT)
        await self.slot.shared.start()
        for replica in self.replicas:
            replica.send(signal.SIGCONT)
        for scope in {pause.scope for pause in self.paused} | {"global"}:
            await self._order("resume", scope, until=True)

    # --- processes ----------------------------------------------------------------------------

    async def kill(self, happening: EventType) -> bool:
        return self.replicas[happening.whom].send(signal.SIGKILL)

    async def stop(self, happening: EventType) -> bool:
        replica = self.replicas[happening.whom]
        async with _noted(self.stopped, replica.name):
            stopped = replica.send(signal.SIGSTOP)
            if stopped:
                await self._go_on(replica, replica.pid, happening.lasts)
        return stopped

    async def term(self, happening: EventType) -> bool:
        return self.replicas[happening.whom].send(signal.SIGTERM)

    async def clock_put_back(self, happening: EventType) -> bool:
        """Let the machine start again with a clock that is right."""
        (replica,) = self.replicas
        was_ahead = replica.ahead > 0
        while not replica.url:  # noqa: ASYNC110 - it starts again, as Replica.keep does
            await asyncio.sleep(0.05)
        replica.ahead = 0
        number = signal.SIGTERM if self.plan.seed % 3 == 1 else signal.SIGKILL
        return was_ahead and replica.send(number)

    # --- servers ------------------------------------------------------------------------------

    async def store_crashes(self, happening: EventType) -> bool:
        await self.slot.store.kill()
        await asyncio.sleep(happening.lasts)
        await self.slot.store.start()
        return True

    async def store_restarts(self, happening: EventType) -> bool:
        await self.slot.store.stop()
        await asyncio.sleep(happening.lasts)
        await self.slot.store.start()
        return True

    async def store_hangs(self, happening: EventType) -> bool:
        self.slot.signal_store(signal.SIGSTOP)
        try:
            await asyncio.sleep(happening.lasts)
        finally:
            self.slot.signal_store(signal.SIGCONT)
        return True

    async def store_drops(self, happening: EventType) -> bool:
        connected = self.world.links["store"].connections > 0
        self.world.links["store"].cut()
        return connected

    async def redis_crashes(self, happening: EventType) -> bool:
        self.slot.shared.kill()
        await asyncio.sleep(happening.lasts)
        await self.slot.shared.start()
        return True

    async def redis_hangs(self, happening: EventType) -> bool:
        self.slot.shared.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(happening.lasts)
        finally:
            self.slot.shared.send(signal.SIGCONT)
        return True

    async def disk_full(self, happening: EventType) -> bool:
        """Fill it, with all that was kept back, and pause meanwhile."""
        if self.disk is None:
            return False
        filling = asyncio.create_task(_keep_full(self.disk))
        try:
            await asyncio.sleep(happening.lasts)
            paused = await self._pause_without_store()
        finally:
            filled = not filling.done()
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)
            self.disk.free()
        await asyncio.sleep(happening.lasts)
        if paused is not None:
            self.paused.append(Pause("global", Span(paused, datetime.now(UTC))))
        await self._order("resume", "global", until=True)
        return filled

    async def _pause_without_store(self) -> datetime | None:
        """Pause, and say when that was answered: a process that listens takes it, store or not."""
        (replica,) = self.replicas
        for _ in range(_PAUSES):  # it may have died
            pid = replica.pid
            status = await self._ordered(replica, "pause", "global")
            if status == TAKEN:
                self.did["pause on a full disk"] += 1
                return datetime.now(UTC)
            if status and not replica.told_to_end(pid):
                self.wrong.append(f"a pause was answered {status} while the disk was full")
            await asyncio.sleep(0.2)
        return None

    async def restore(self, happening: EventType) -> bool:
        """Copy the store, replace it by the copy later, and pause at once, as is written."""
        copied = await self.vault.copy()
        await asyncio.sleep(happening.lasts)
        await asyncio.gather(*(replica.hold() for replica in self.replicas))
        self.forgotten = await self.vault.restore(copied)
        for replica in self.replicas:
            replica.free.set()
        await self._order("pause", "global", until=True)
        answered = datetime.now(UTC)
        await asyncio.sleep(1.0)
        self.paused.append(Pause("global", Span(answered, datetime.now(UTC))))
        await self._order("resume", "global", until=True)
        return True

    # --- the network --------------------------------------------------------------------------

    async def slack_away(self, happening: EventType) -> bool:
        return await self._during(happening, [self.world.links["slack"]], Weather(down=True))

    async def slack_hangs(self, happening: EventType) -> bool:
        return await self._during(happening, [self.world.links["slack"]], Weather(hole=True))

    async def prometheus_away(self, happening: EventType) -> bool:
        return await self._during(happening, [self.world.links["prometheus"]], Weather(down=True))

    async def weather(self, happening: EventType) -> bool:
        if happening.whom == 0 and self.plan.postgres:
            links = [self.world.links["store"]]
            return await self._during(happening, links, WEATHER[happening.what])
        async with _noted(self.kept):
            links = [*self.world.backends.values()]
            return await self._during(happening, links, WEATHER[happening.what])

    async def _during(self, happening: EventType, links: list[Link], weather: Weather) -> bool:
        for link in links:
            link.turn(weather)
        await asyncio.sleep(happening.lasts)
        for link in links:
            if link.weather is weather:  # nobody has turned it since
                link.turn()
        return True

    # --- operators ----------------------------------------------------------------------------

    async def pause(self, happening: EventType) -> bool:
        scope, kind = self._scope(happening)
        paused = await self._order("pause", scope)
        answered = datetime.now(UTC)
        await asyncio.sleep(happening.lasts)
        if paused:
            self.paused.append(Pause(scope, Span(answered, datetime.now(UTC))))
            self.did[f"pause of {kind}"] += 1
        await self._order("resume", scope, until=True)
        return paused

    def _scope(self, happening: EventType) -> tuple[str, str]:
        """Choose everything, the system or one of its services, and say which of them."""
        services = sorted({part.service for part in self.world.parts})
        one = services[self.plan.seed % len(services)]
        scopes = (("global", "everything"), ("shop", "a system"), (f"shop/{one}", "a service"))
        return scopes[int(10 * happening.at) % 3]

    async def _order(self, what: str, scope: str, *, until: bool = False) -> bool:
        """Give an order to any replica; with ``until`` as often as it takes."""
        while True:
            for replica in (r for r in self.replicas if r.url):
                if await self._ordered(replica, what, scope) in {TAKEN, THERE_IS_NONE}:
                    return True
            if not until:
                return False
            await asyncio.sleep(0.3)

    async def _ordered(self, replica: Replica, what: str, scope: str) -> int:
        """Return the status of the answer; 0: there was none."""
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        url = f"{replica.url}/api/v1/{what}"
        with contextlib.suppress(httpx.HTTPError):
            answer = await self.client.post(url, json={"scope": scope}, headers=headers)
            return answer.status_code
        return 0


async def _keep_full(disk: SmallDisk) -> None:
    """Fill it again and again, as something is given up for room; until cancelled."""
    while True:
        disk.fill()
        await asyncio.sleep(0.1)


def _stop(replica: Replica, order: dict[str, Any]) -> Span:
    begin = datetime.fromtimestamp(order["at"], UTC)
    end = begin + timedelta(seconds=order["stop"])
    return Span(begin, end, replica.name, frozenset(order["written"]))


@contextlib.asynccontextmanager
async def _noted(spans: list[Span], who: str = "") -> AsyncIterator[None]:
    begin = datetime.now(UTC)
    try:
        yield
    finally:
        spans.append(Span(begin, datetime.now(UTC), who))


_HOW: dict[str, Callable[[Chaos, EventType], Awaitable[bool]]] = {
    "kill": Chaos.kill,
    "stop": Chaos.stop,
    "term": Chaos.term,
    "store crashes": Chaos.store_crashes,
    "store restarts": Chaos.store_restarts,
    "store hangs": Chaos.store_hangs,
    "store drops connections": Chaos.store_drops,
    FULL: Chaos.disk_full,
    RESTORED: Chaos.restore,
    PUT_BACK: Chaos.clock_put_back,
    "redis crashes": Chaos.redis_crashes,
    "redis hangs": Chaos.redis_hangs,
    "slack away": Chaos.slack_away,
    "slack hangs": Chaos.slack_hangs,
    "prometheus away": Chaos.prometheus_away,
    **dict.fromkeys(WEATHER, Chaos.weather),
    "pause": Chaos.pause,
}
