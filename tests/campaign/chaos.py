"""Does what a plan says to the processes, the servers and the network, and undoes it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx

from tests.campaign.ground import Slot
from tests.campaign.network import Link, Weather
from tests.campaign.plan import Happening, Plan
from tests.campaign.replicas import OPERATOR, Replica
from tests.campaign.world import World

WEATHER = {
    "slow": Weather(delay=0.4),
    "answers lost": Weather(lose=0.3),
    "connections reset": Weather(reset=0.1),
    "black hole": Weather(hole=True),
}


@dataclass
class Chaos:
    """One seed's trouble."""

    plan: Plan
    slot: Slot
    world: World
    replicas: list[Replica]
    client: httpx.AsyncClient
    did: Counter[str] = field(default_factory=Counter)
    springs: Counter[str] = field(default_factory=Counter)
    """How often each named point was reached by a process that stopped or died there."""
    _resuming: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, happening: Happening) -> None:
        """Wait until it is time, do it, and undo it."""
        await asyncio.sleep(happening.at)
        self.did[happening.what] += 1
        await _HOW[happening.what](self, happening)

    async def watch_points(self) -> None:
        """Let processes that stopped themselves go on in their time, until cancelled."""
        while True:
            for replica in self.replicas:
                for order in replica.sprung():
                    when = "after" if order["after"] else "before"
                    self.springs[f"{when} {order['change']}"] += 1
                    if order["stop"] is not None:
                        task = asyncio.create_task(self._go_on(replica, order["stop"]))
                        self._resuming.add(task)
                        task.add_done_callback(self._resuming.discard)
            await asyncio.sleep(0.1)

    async def _go_on(self, replica: Replica, after: float) -> None:
        pid = replica.pid
        await asyncio.sleep(after)
        if replica.pid == pid:
            replica.send(signal.SIGCONT)

    async def cut_over(self, replica: Replica, at: float) -> None:
        """Replace a process by one of the new version."""
        await asyncio.sleep(at)
        self.did["replaced by the new version"] += 1
        replica.upgrade()
        replica.send(signal.SIGTERM)
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
        await self._order("resume", until=True)

    # --- processes ----------------------------------------------------------------------------

    async def kill(self, happening: Happening) -> None:
        self.replicas[happening.whom].send(signal.SIGKILL)

    async def stop(self, happening: Happening) -> None:
        replica = self.replicas[happening.whom]
        if replica.send(signal.SIGSTOP):
            await self._go_on(replica, happening.lasts)

    async def term(self, happening: Happening) -> None:
        replica = self.replicas[happening.whom]
        replica.send(signal.SIGTERM)

    # --- servers ------------------------------------------------------------------------------

    async def store_crashes(self, happening: Happening) -> None:
        await self.slot.store.kill()
        await asyncio.sleep(happening.lasts)
        await self.slot.store.start()

    async def store_restarts(self, happening: Happening) -> None:
        await self.slot.store.stop()
        await asyncio.sleep(happening.lasts)
        await self.slot.store.start()

    async def store_hangs(self, happening: Happening) -> None:
        self.slot.signal_store(signal.SIGSTOP)
        await asyncio.sleep(happening.lasts)
        self.slot.signal_store(signal.SIGCONT)

    async def store_drops(self, happening: Happening) -> None:
        self.world.links["store"].cut()

    async def redis_crashes(self, happening: Happening) -> None:
        self.slot.shared.kill()
        await asyncio.sleep(happening.lasts)
        await self.slot.shared.start()

    async def redis_hangs(self, happening: Happening) -> None:
        self.slot.shared.send(signal.SIGSTOP)
        await asyncio.sleep(happening.lasts)
        self.slot.shared.send(signal.SIGCONT)

    # --- the network --------------------------------------------------------------------------

    async def slack_away(self, happening: Happening) -> None:
        await self._during(happening, [self.world.links["slack"]], Weather(down=True))

    async def slack_hangs(self, happening: Happening) -> None:
        await self._during(happening, [self.world.links["slack"]], Weather(hole=True))

    async def prometheus_away(self, happening: Happening) -> None:
        await self._during(happening, [self.world.links["prometheus"]], Weather(down=True))

    async def weather(self, happening: Happening) -> None:
        links = [*self.world.backends.values()]
        if happening.whom == 0 and self.plan.postgres:
            links = [self.world.links["store"]]
        await self._during(happening, links, WEATHER[happening.what])

    async def _during(self, happening: Happening, links: list[Link], weather: Weather) -> None:
        for link in links:
            link.turn(weather)
        await asyncio.sleep(happening.lasts)
        for link in links:
            link.turn()

    # --- operators ----------------------------------------------------------------------------

    async def pause(self, happening: Happening) -> None:
        await self._order("pause")
        await asyncio.sleep(happening.lasts)
        await self._order("resume", until=True)

    async def _order(self, what: str, *, until: bool = False) -> None:
        """Give an order to any replica; with ``until`` as often as it takes."""
        while True:
            for replica in (r for r in self.replicas if r.url):
                if await self._ordered(replica, what):
                    return
            if not until:
                return
            await asyncio.sleep(0.3)

    async def _ordered(self, replica: Replica, what: str) -> bool:
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        url = f"{replica.url}/api/v1/{what}"
        with contextlib.suppress(httpx.HTTPError):
            answer = await self.client.post(url, json={"scope": "global"}, headers=headers)
            return answer.status_code in {200, 409}
        return False


_HOW: dict[str, Callable[[Chaos, Happening], Awaitable[None]]] = {
    "kill": Chaos.kill,
    "stop": Chaos.stop,
    "term": Chaos.term,
    "store crashes": Chaos.store_crashes,
    "store restarts": Chaos.store_restarts,
    "store hangs": Chaos.store_hangs,
    "store drops connections": Chaos.store_drops,
    "redis crashes": Chaos.redis_crashes,
    "redis hangs": Chaos.redis_hangs,
    "slack away": Chaos.slack_away,
    "slack hangs": Chaos.slack_hangs,
    "prometheus away": Chaos.prometheus_away,
    **dict.fromkeys(WEATHER, Chaos.weather),
    "pause": Chaos.pause,
}
