"""A disk that is full, a real one: what is said, what is kept back, and that the stop switch works."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from remediator.model.base import IncidentId
from remediator.model.errors import DiskFull, Refused, StoreUnavailable
from remediator.model.incident import Incident, IncidentState, Phase
from remediator.model.maintenance import Halt
from remediator.model.mitigation import MitigationState
from remediator.model.views import Kept, PauseView
from remediator.service.disk import RESERVE_FILE, DiskRoom, Readiness
from remediator.service.metrics import Telemetry
from remediator.store import Store, open_store
from remediator.store.faults import translated
from remediator.store.stop_file import STOP_FILE, StopFile, SureCommands
from tests.disk_fixtures import SmallDisk, small_disk
from tests.store_fixtures import Bench

RESERVE = 512 * 1024
NOW = datetime(2026, 1, 2, tzinfo=UTC)
ORDERS = Incident(
    id=IncidentId("inc-1"),
    correlation_key="key",
    state=IncidentState.OPEN,
    phase=Phase.ACT,
    outcome=None,
    reason="",
    system="shop",
    service="orders",
    playbook="SwitchOff",
    dry_run=False,
    replay_of=None,
    round=0,
    epoch=1,
    opened_at=NOW,
    closed_at=None,
    phase_since=NOW,
    progressed_at=NOW,
)
PAUSE = PauseView(scope="global", by="ann", reason="stop", since=NOW, kept=Kept.REPLICA)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


@dataclass
class Service:
    """A store on the small disk, with what looks after its room."""

    store: Store
    room: DiskRoom
    stop: StopFile
    telemetry: Telemetry

    @property
    def commands(self) -> SureCommands:
        assert isinstance(self.store.commands, SureCommands)
        return self.store.commands

    async def problems(self) -> list[str]:
        return await Readiness(
            self.room, self.store.records.ping, self.store.probe.write
        ).problems()

    def metric(self, name: str) -> float | None:
        return self.telemetry.registry.get_sample_value(f"remediator_{name}")


@contextlib.asynccontextmanager
async def opened(disk: SmallDisk) -> AsyncIterator[Service]:
    telemetry = Telemetry()
    room = DiskRoom(disk.path, RESERVE, telemetry)
    room.begin()
    stop = StopFile(disk.path / STOP_FILE)
    try:
        async with open_store(
            f"sqlite:///{disk.path / 'state.db'}",
            owner="one",
            changed=lambda: None,
            scopes=("global", "shop", "shop/orders"),
            stop=stop,
            full=room.give_way,
            wait=timedelta(seconds=30),
        ) as store:
            yield Service(store, room, stop, telemetry)
    finally:
        stop.close()


async def fill_all(service: Service, disk: SmallDisk) -> None:
    """Fill the disk, the room that was kept back too, and all that the store has of its own."""
    disk.fill()
    service.room.give_way()
    disk.fill()
    scopes = ("shop", "shop/orders")
    for _ in range(2_000):
        pause = await service.commands.pause(scopes[_ % 2], "ann", "x" * 2_000)
        if pause.kept is Kept.REPLICA:
            return
    raise AssertionError("the store takes whatever comes")


# --- what is said, and what is kept back --------------------------------------------------------


async def test_room_is_kept_back_and_given_up_for_a_pause_when_the_disk_is_full(
    disk: SmallDisk,
) -> None:
    async with opened(disk) as service:
        assert (disk.path / RESERVE_FILE).stat().st_blocks * 512 >= RESERVE
        assert (service.metric("disk_reserve_bytes"), service.metric("store_full")) == (RESERVE, 0)
        disk.fill()
        with capture_logs() as logs:
            taken = 0
            while service.room.problem is None:  # until what the store has of its own is used up
                pause = await service.commands.pause("shop", "ann", "x" * 2_000)
                taken += 1
                assert taken < 2_000
        assert pause.kept is Kept.STORE
        assert [p.scope for p in await service.store.records.pauses()] == ["shop"]
        assert [line["event"] for line in logs] == ["disk_full"]
        assert (service.metric("disk_reserve_bytes"), service.metric("store_full")) == (0, 1)
        assert "disk full" in (service.room.problem or "")
        assert await service.problems() == [service.room.problem]
        disk.free()
        service.room.look()
        assert service.room.problem is None
        assert service.metric("disk_reserve_bytes") == RESERVE
        assert await service.problems() == []


async def test_readiness_tries_a_write(disk: SmallDisk) -> None:
    async with opened(disk) as service:
        assert await service.problems() == []
        await fill_all(service, disk)
        await service.store.records.ping()  # which reads, and finds nothing
        assert ["disk full" in problem for problem in await service.problems()] == [True]


async def test_a_write_is_tried_once_in_a_while_whoever_asks() -> None:
    asked: list[float] = []
    times = iter([0.0, 0.0, 1.0, 5.0, 5.0])

    async def ask() -> None:
        asked.append(1)

    room = DiskRoom(None, 0, Telemetry(), clock=lambda: 1_000.0)
    readiness = Readiness(room, ask, ask, clock=lambda: next(times))
    for _ in range(3):
        assert await readiness.problems() == []
    assert len(asked) == 4


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.DiskFullError("could not extend file: No space left on device"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_a_full_disk_of_postgresql_is_called_so(error: Exception) -> None:
    with pytest.raises(DiskFull, match="disk full"), translated():
        raise error


def test_another_fault_of_the_files_is_not_called_a_full_disk() -> None:
    error = sqlite3.OperationalError("disk I/O error")
    with pytest.raises(sqlite3.OperationalError), translated():
        raise error  # nothing of ours lets a bare one through
    lost = asyncpg.ConnectionDoesNotExistError("gone")
    with pytest.raises(StoreUnavailable) as caught, translated():
        raise lost
    assert not isinstance(caught.value, DiskFull)


async def test_a_start_on_a_full_disk_takes_no_work_and_says_why(disk: SmallDisk) -> None:
    async with opened(disk):
        pass
    (disk.path / RESERVE_FILE).unlink()
    disk.fill()
    with capture_logs() as logs:
        room = DiskRoom(disk.path, RESERVE, Telemetry())
        room.begin()
    assert "disk full" in (room.problem or "")
    assert [line["event"] for line in logs] == ["disk_full"]


async def test_a_start_on_a_full_disk_gets_the_room_that_was_kept_back(disk: SmallDisk) -> None:
    async with opened(disk):
        pass
    disk.fill()
    async with opened(disk) as service:
        assert "disk full" in (service.room.problem or "")
        pause = await service.commands.pause("global", "ann", "")
        assert pause.kept is Kept.STORE


# --- the stop switch ----------------------------------------------------------------------------


async def test_a_pause_works_on_a_disk_that_takes_nothing_and_reaches_the_store_later(
    disk: SmallDisk,
) -> None:
    async with opened(disk) as service:
        await fill_all(service, disk)
        pause = await service.commands.pause("global", "ann", "the disk is full")
        assert (pause.kept, pause.by) == (Kept.REPLICA, "ann")
        halt = service.stop.halt(ORDERS)
        assert halt is not None
        assert halt.code == "paused"
        assert "ann" in halt.reason
    again = StopFile(disk.path / STOP_FILE)  # after a restart
    assert again.halt(ORDERS) is not None
    again.close()
    disk.free()
    async with opened(disk) as service:
        handing = asyncio.create_task(service.commands.hand_over())
        async with asyncio.timeout(10):
            while service.commands.held():  # noqa: ASYNC110 - it is the loop that is watched
                await asyncio.sleep(0.01)
        handing.cancel()
        stored = {p.scope: p for p in await service.store.records.pauses()}
        assert (stored["global"].by, stored["global"].kept) == ("ann", Kept.STORE)
        assert stored["global"].reason == "the disk is full"
    assert (disk.path / STOP_FILE).read_bytes().strip() == b""


async def test_what_is_paused_here_alone_can_be_resumed_here(disk: SmallDisk) -> None:
    async with opened(disk) as service:
        await service.commands.pause("shop", "ann", "")
        await fill_all(service, disk)
        await service.commands.pause("global", "ann", "")
        await service.commands.resume("global", "bob")
        assert "global" not in [p.scope for p in service.commands.held()]
        with pytest.raises(StoreUnavailable):  # the store has that one, and takes nothing
            await service.commands.resume("shop", "bob")
        with pytest.raises(Refused, match="nothing called"):
            await service.commands.pause("nowhere", "ann", "")


async def test_nothing_is_changed_that_is_paused_here_alone(bench: Bench, tmp_path: Path) -> None:
    stop = StopFile(tmp_path / STOP_FILE)
    await bench.receive(bench.alert())
    while (await bench.incident()).phase is not Phase.ACT:
        await bench.step()
    stop.add(PAUSE)
    bench.around = replace(bench.around, stopped=stop.halt)
    await bench.settle(60)
    assert bench.world.applied == []
    stop.remove(PAUSE)
    await bench.settle(60)
    assert bench.world.applied != []
    stop.close()


async def test_a_pause_here_is_seen_between_the_reservation_and_its_call(bench: Bench) -> None:
    looks: list[str] = []

    def stopped(incident: Incident) -> Halt | None:
        looks.append(incident.id)
        return Halt(reason="paused here") if len(looks) > 1 else None  # past the judge's look

    await bench.receive(bench.alert())
    while (await bench.incident()).phase is not Phase.ACT:
        await bench.step()
    bench.around = replace(bench.around, stopped=stopped)
    await bench.step()
    assert bench.world.applied == []
    (change,) = (await bench.incident()).mitigations
    assert change.state is MitigationState.NOT_APPLIED


# --- the file -----------------------------------------------------------------------------------


def test_a_stop_file_that_cannot_be_read_stops_everything(
    tmp_path: Path,
) -> None:
    for content in (b"{", b"[{}]", b"stop", b"\xff"):
        (tmp_path / STOP_FILE).write_bytes(content)
        stop = StopFile(tmp_path / STOP_FILE)
        halt = stop.halt(ORDERS)
        assert halt is not None
        assert "cannot be read" in halt.reason
        stop.close()


@pytest.mark.parametrize(
    ("scope", "halts"), [("global", True), ("shop", True), ("shop/orders", True), ("bank", False)]
)
def test_a_stop_file_halts_what_is_in_its_scope(tmp_path: Path, scope: str, *, halts: bool) -> None:
    first = StopFile(tmp_path / STOP_FILE)
    assert first.add(PAUSE.model_copy(update={"scope": scope, "reason": "ü" * 2_000}))
    first.close()
    for stop in (first, StopFile(tmp_path / STOP_FILE)):
        assert (stop.halt(ORDERS) is not None) is halts
    assert (tmp_path / STOP_FILE).stat().st_mode & 0o777 == 0o600


def test_more_than_fits_into_the_stop_file_stops_everything_after_a_restart(
    tmp_path: Path,
) -> None:
    stop = StopFile(tmp_path / STOP_FILE)
    for number in range(200):
        stop.add(PAUSE.model_copy(update={"scope": f"bank{number}", "reason": "x" * 200}))
    stop.close()
    again = StopFile(tmp_path / STOP_FILE)
    assert again.halt(ORDERS) is not None
    again.close()


async def test_a_store_that_hangs_does_not_hold_up_a_pause(bench: Bench, tmp_path: Path) -> None:
    """Any write that is before it in the queue hangs; the switch is thrown here meanwhile."""
    stop = StopFile(tmp_path / STOP_FILE)
    let = asyncio.Event()
    commands = SureCommands(
        stop, bench.store.records.pauses, bench.store.database, lambda: None, ("global",), {}
    )
    begun = asyncio.Event()

    async def hang(_: object) -> bool:
        begun.set()
        return await let.wait()

    hanging = asyncio.create_task(bench.store.database.write(hang))
    await begun.wait()
    began = asyncio.get_running_loop().time()
    pause = await commands.pause("global", "ann", "now")
    assert asyncio.get_running_loop().time() - began < timedelta(seconds=8).total_seconds()
    assert pause.kept is Kept.REPLICA
    let.set()
    with contextlib.suppress(StoreUnavailable):  # PostgreSQL ends a session that holds its locks
        await hanging
    stop.close()


async def test_an_order_that_hangs_holds_up_no_pause_and_does_not_end_it(
    bench: Bench, tmp_path: Path
) -> None:
    """A resume is waiting for the store; whoever pauses meanwhile is served, and stays served."""
    stop = StopFile(tmp_path / STOP_FILE)
    stop.add(PAUSE)
    let = asyncio.Event()
    commands = SureCommands(
        stop, bench.store.records.pauses, bench.store.database, lambda: None, ("global",), {}
    )
    begun = asyncio.Event()

    async def hang(_: object) -> bool:
        begun.set()
        return await let.wait()

    hanging = asyncio.create_task(bench.store.database.write(hang))
    await begun.wait()
    resuming = asyncio.create_task(commands.resume("global", "bob"))
    await asyncio.sleep(0)  # it has its turn before the pause
    began = asyncio.get_running_loop().time()
    pause = await commands.pause("global", "ann", "now")
    assert asyncio.get_running_loop().time() - began < timedelta(seconds=8).total_seconds()
    assert pause.kept is Kept.REPLICA
    let.set()
    with contextlib.suppress(StoreUnavailable):  # PostgreSQL ends a session that holds its locks
        await hanging
    with contextlib.suppress(StoreUnavailable):
        await resuming
    assert [kept.by for kept in stop.pauses] == ["ann"]
    stop.close()
