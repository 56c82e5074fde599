"""Trials: a fault, a service that dies at a given moment and starts again, and the judgement."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from remediator.api.auth import generated_secret
from remediator.model.audit import Verification
from remediator.store import open_store
from remediator.store.audit.chain import Key, Keys
from tests.crashing_service import CrashingService, Moment
from tests.fault_rigs import Arrange, Fault
from tests.lossy_proxy import Loss

WITHIN = 90.0
"""Seconds until an incident is closed, with many others beside it on a small machine."""
AT_ONCE = 10


KILLED = frozenset({-signal.SIGKILL, 255})
"""Exit codes of a killed process; 255 where its fork server could not tell."""


@dataclass
class Alertmanager:
    """Sends an alert until it is taken, and its end once the service waits for that."""

    fault: Fault
    fired: bool = False
    resolved: bool = False

    async def follow(self, service: CrashingService) -> dict[str, Any] | None:
        """Go on until the incident is closed; None when the service dies before."""
        incident: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(WITHIN):
                while service.alive:
                    try:
                        incident = await self._look(service)
                    except httpx.TransportError:
                        incident = None  # it is dying
                    if incident is not None and incident["state"] == "closed":
                        return incident
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"not closed: {incident}\n{service.log()[-3000:]}") from None
        return None

    async def _look(self, service: CrashingService) -> dict[str, Any] | None:
        self.fired = self.fired or await self._taken(service, "firing")
        incidents = await service.incidents()
        assert len(incidents) <= 1, "one alert opened two incidents"
        if not incidents:
            return None
        if incidents[0]["phase"] == "settle":
            self.resolved = self.resolved or await self._taken(service, "resolved")
        return incidents[0]

    async def _taken(self, service: CrashingService, status: str) -> bool:
        return (await service.post(self.fault.alert(status))).status_code == 202


@asynccontextmanager
async def beside(arrange: Arrange, folder: Path) -> AsyncIterator[tuple[Fault, CrashingService]]:
    """Make the fault, and a service for it that is not started yet."""
    folder.mkdir()  # noqa: ASYNC240 - a test's own folder
    async with arrange(folder) as fault:
        service = CrashingService(folder, fault.config, fault.environ)
        try:
            yield fault, service
        finally:
            await service.kill()


async def undisturbed(arrange: Arrange, folder: Path) -> list[list[str]]:
    """Let the service mend the fault; return which tables each commit changed."""
    async with beside(arrange, folder) as (fault, service):
        await service.start()
        incident = await Alertmanager(fault).follow(service)
        assert incident is not None, service.log()
        assert incident["outcome"] == "mitigated", incident
        await judge(fault, incident, service)
        return service.trace


async def killed_at(moment: Moment, arrange: Arrange, folder: Path) -> bool:
    """Kill the service at ``moment``, start it again, judge; return whether it was killed."""
    async with beside(arrange, folder) as (fault, service):
        sender = Alertmanager(fault)
        await service.start(moment)
        incident = await sender.follow(service)
        killed = incident is None
        if killed:
            ended = await service.end(signal.SIGKILL)
            assert ended in KILLED, f"{ended}: {service.log()}"
            await service.start()
            incident = await sender.follow(service)
        assert incident is not None, service.log()
        await judge(fault, incident, service)
        return killed


async def judge(fault: Fault, incident: dict[str, Any], service: CrashingService) -> None:
    """Hold what became of the fault against what must be."""
    told = f"{incident['outcome']}: {incident['reason']}"
    await service.kill()
    audit = await verified(service.state)
    assert (audit.ok, audit.unsealed) == (True, 0), audit
    rows = ledger(service.state / "remediator.db")
    applied = [key for key, state, _ in rows if state == "applied"]
    changes, harm = await fault.changes(), await fault.harm()
    assert not harm
    assert not [row for row in rows if row[1] == "reserved" or row[2]], "left in flight"
    assert len({key for key, *_ in rows}) == len(rows), rows
    if not fault.conditional and incident["outcome"] == "escalated":
        assert "it is not repeated" in incident["reason"], told
        assert (len(applied), changes) in {(0, 0), (0, 1)}, told
    else:
        assert incident["outcome"] == "mitigated", told
        assert (len(applied), changes) == (1, 1), f"{rows}: {told}"
        (made,) = (m for m in incident["mitigations"] if m["state"] == "applied")
        assert made["kind"] == fault.kind


async def verified(state: Path) -> Verification:
    """Check every seal of what the killed service left."""
    keys = Keys(Key(generated_secret(state / "audit-key").encode()))
    url = f"sqlite:///{state / 'remediator.db'}"
    async with open_store(url, owner="judge", changed=lambda: None, keys=keys) as store:
        return await store.audit.verify()


def ledger(database: Path) -> list[tuple[str, str, bool]]:
    """Read effect key, state and whether it is in flight, of every mitigation."""
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT effect_key, state, in_flight FROM mitigations")
        return [(key, state, bool(flying)) for key, state, flying in found]


def everywhere(trace: list[list[str]]) -> list[Moment]:
    """Before every commit of a run until its incident is closed, and after those of a change."""
    last = max(n for n, tables in enumerate(trace, 1) if tables != ["notices"])
    return [Moment(n, after=False) for n in range(1, last + 1)] + _after(trace)


def around_act(trace: list[list[str]]) -> list[Moment]:
    """From the decision on to the first look at the change, and at the verdict."""
    reserved, made, *_, judged = _of_mitigations(trace)
    numbers = [*range(reserved - 2, made + 3), judged]
    return [Moment(n, after=False) for n in numbers] + _after(trace)


def _after(trace: list[list[str]]) -> list[Moment]:
    """Right after the reservation and right after the outcome: the change lies in between."""
    return [Moment(n, after=True) for n in _of_mitigations(trace)[:2]]


def _of_mitigations(trace: list[list[str]]) -> list[int]:
    return [n for n, tables in enumerate(trace, 1) if "mitigations" in tables]


async def sweep(points: Sequence[Moment], arrange: Arrange, folder: Path) -> None:
    """Kill at every one of ``points``, a few at a time; say of each that failed why."""
    turn, failed, missed = asyncio.Semaphore(AT_ONCE), [], []

    async def attempt(moment: Moment) -> None:
        async with turn:
            try:
                if not await killed_at(moment, arrange, folder / str(moment)):
                    missed.append(moment)
            except AssertionError as error:
                failed.append(f"{moment}: {error}")

    await asyncio.gather(*map(attempt, points))
    assert not failed, "\n\n".join(failed)
    assert len(missed) <= len(points) // 4, f"not killed at all: {missed} of {points}"


async def answer_lost(arrange: Arrange, proxy: Loss, folder: Path, *, kills: bool) -> None:
    """Lose the answer to the change, kill the service then if wanted, and judge."""

    async def kill(service: CrashingService) -> None:
        await proxy.lost.wait()
        await service.kill()

    async with beside(arrange, folder) as (fault, service):
        sender = Alertmanager(fault)
        await service.start()
        killing = asyncio.create_task(kill(service)) if kills else None
        incident = await sender.follow(service)
        assert proxy.lost.is_set(), incident
        if killing is not None:
            await killing
            await service.start()
            incident = await sender.follow(service)
        assert incident is not None, service.log()
        await judge(fault, incident, service)
        assert len(proxy.changes) == 1, proxy.changes
