"""The state folder of a running service: who can read it, and what happens when its disk is full."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from remediator.service.audit_keys import STORE_FILE
from tests.disk_fixtures import SmallDisk, small_disk
from tests.postgres_fixtures import eventually
from tests.service_fixtures import Service, pool_alert

SECONDS_UNTIL_NOTICED = 20
ANY_PORT: dict[str, Any] = {"listen": "127.0.0.1:0"}


@contextlib.asynccontextmanager
async def running(service: Service) -> AsyncIterator[Service]:
    await service.start()
    try:
        yield service
    finally:
        await service.kill()


@contextlib.contextmanager
def _umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}


async def test_whatever_the_umask_nobody_else_reads_the_state(tmp_path: Path) -> None:
    with _umask(0):
        async with running(Service(tmp_path, dict(ANY_PORT))) as service:
            assert (await service.post(pool_alert())).status_code == 202
            found = modes(service.state)
            assert service.state.stat().st_mode & 0o777 == 0o700
    assert {STORE_FILE, f"{STORE_FILE}-wal", f"{STORE_FILE}-shm", "lock", "token", "stop"} <= set(
        found
    )
    assert set(found.values()) == {0o600}, found
    assert "state_folder_open" not in service.log()


async def test_a_folder_that_others_can_look_into_is_warned_of_and_its_files_are_closed(
    tmp_path: Path,
) -> None:
    service = Service(tmp_path, dict(ANY_PORT))
    service.state.mkdir()
    service.state.chmod(0o755)
    (service.state / STORE_FILE).touch(mode=0o644)
    async with running(service):
        assert set(modes(service.state).values()) == {0o600}
    assert "chmod 700" in service.log()


async def test_a_full_disk_is_not_ready_takes_no_webhook_and_leaves_the_stop_switch(
    tmp_path: Path,
) -> None:
    service = Service(tmp_path, ANY_PORT | {"store": {"reserve": "256KiB"}})
    with small_disk(service.state, "4m") as disk:
        async with running(service):
            await _fills_and_frees(service, disk)
            assert '"disk_full"' in service.log()


async def _fills_and_frees(service: Service, disk: SmallDisk) -> None:
    async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
        assert (await client.get("/readyz")).status_code == 200

        async def is_full() -> bool:
            disk.fill()  # the room that was kept back, too
            answer = await client.get("/readyz")
            return answer.status_code == 503 and "disk full" in answer.text

        await eventually(is_full, "the disk is full", within=SECONDS_UNTIL_NOTICED)
        refused = await service.post(pool_alert())
        assert (refused.status_code, "disk full" in refused.text) == (503, True)
        paused = await service.api("POST", "/pause", json={"reason": "no room"})
        assert (paused.status_code, paused.json()["reason"]) == (200, "no room")
        assert "remediator_store_full 1.0" in (await client.get("/metrics")).text
        disk.free()

        async def is_stored() -> bool:
            found = (await service.api("GET", "/limits")).json()["paused"]
            assert [pause["scope"] for pause in found] == ["global"]
            return bool(found[0]["kept"] == "store")

        await eventually(is_stored, "the pause is in the store", within=SECONDS_UNTIL_NOTICED)

        async def is_ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await eventually(is_ready, "it is ready again", within=SECONDS_UNTIL_NOTICED)
        assert (await service.post(pool_alert())).status_code == 202


@pytest.mark.parametrize("rate", [None, "unlimited"])
async def test_what_is_kept_and_taken_is_said_at_the_start(
    tmp_path: Path, rate: str | None
) -> None:
    config: dict[str, Any] = (
        {} if rate is None else {"admission": {"rate": rate}, "store": {"retention": "never"}}
    )
    async with running(Service(tmp_path, ANY_PORT | config)) as service:
        said = next(line for line in service.log().splitlines() if '"keeps"' in line)
    kept = ('"retention": "90d"', '"admission": "6000/minute"', '"reserve": "16.0MiB"')
    other = ('"retention": "never"', '"admission": "unlimited"')
    assert all(word in said for word in (kept if rate is None else other)), said
