"""Kill -9 between any two commits, of any mitigation: nothing is lost and nothing done twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.crash_trials import answer_lost, around_act, everywhere, sweep, undisturbed
from tests.fault_rigs import (
    Monitoring,
    full_pod,
    killed_container,
    leaked_session,
    monitoring,
    open_breaker,
    restarted_pods,
)
from tests.latency_rigs import slow_migration, too_few_replicas, too_low_minimum
from tests.lossy_proxy import lossy_cluster, lossy_database, lossy_proxy

pytestmark = pytest.mark.timeout(300)
CLUSTER = {
    "set_memory": killed_container,
    "evict_pod": full_pod,
    "restart_rollout": restarted_pods,
    "scale": too_few_replicas,
    "scale with an autoscaler": too_low_minimum,
}
LOSSES = {
    "dropped": {"holds": False, "kills": False},
    "held": {"holds": True, "kills": True},
    "dropped and killed": {"holds": False, "kills": True},
}


@pytest.fixture
async def known(tmp_path: Path) -> AsyncIterator[Monitoring]:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    async with monitoring(folder) as known:
        yield known


async def test_ending_a_session_survives_kill_9_between_any_two_commits(
    postgres_server: str, tmp_path: Path
) -> None:
    arrange = leaked_session(postgres_server)
    trace = await undisturbed(arrange, tmp_path / "undisturbed")
    await sweep(everywhere(trace), arrange, tmp_path)


async def test_a_reset_survives_kill_9_between_any_two_commits_and_is_sent_once_at_most(
    tmp_path: Path,
) -> None:
    arrange = open_breaker()
    trace = await undisturbed(arrange, tmp_path / "undisturbed")
    await sweep(everywhere(trace), arrange, tmp_path)


async def test_stopping_a_migration_survives_kill_9_and_is_sent_once_at_most(
    known: Monitoring, tmp_path: Path
) -> None:
    arrange = slow_migration(known)
    trace = await undisturbed(arrange, tmp_path / "undisturbed")
    await sweep(around_act(trace), arrange, tmp_path)


@pytest.mark.parametrize("kind", CLUSTER)
async def test_a_change_of_a_cluster_survives_kill_9_from_the_decision_to_the_verdict(
    control_plane: Path, known: Monitoring, tmp_path: Path, kind: str
) -> None:
    arrange = CLUSTER[kind](control_plane, known, control_plane)
    trace = await undisturbed(arrange, tmp_path / "undisturbed")
    await sweep(around_act(trace), arrange, tmp_path)


async def test_an_end_of_a_session_whose_answer_is_lost_is_looked_up_and_not_repeated(
    postgres_server: str, tmp_path: Path
) -> None:
    async def lose(name: str, *, holds: bool, kills: bool) -> None:
        async with lossy_database(postgres_server, holds=holds) as proxy:
            arrange = leaked_session(postgres_server, proxy=proxy)
            await answer_lost(arrange, proxy, tmp_path / name, kills=kills)

    await asyncio.gather(*(lose(name, **loss) for name, loss in LOSSES.items()))


@pytest.mark.parametrize("effective", [True, False])
async def test_a_reset_whose_answer_is_lost_is_looked_up_and_not_sent_again(
    tmp_path: Path, *, effective: bool
) -> None:
    async def lose(name: str, *, holds: bool, kills: bool) -> None:
        async with lossy_proxy(holds=holds) as proxy:
            arrange = open_breaker(effective=effective, proxy=proxy)
            await answer_lost(arrange, proxy, tmp_path / name, kills=kills)

    await asyncio.gather(*(lose(name, **loss) for name, loss in LOSSES.items()))


async def test_a_stop_of_a_migration_whose_answer_is_lost_is_looked_up_and_not_sent_again(
    known: Monitoring, tmp_path: Path
) -> None:
    async def lose(name: str, *, holds: bool, kills: bool) -> None:
        async with lossy_proxy(holds=holds) as proxy:
            arrange = slow_migration(known, proxy=proxy)
            await answer_lost(arrange, proxy, tmp_path / name, kills=kills)

    await asyncio.gather(*(lose(name, **loss) for name, loss in LOSSES.items()))


@pytest.mark.parametrize("kind", CLUSTER)
async def test_a_change_of_a_cluster_whose_answer_is_lost_is_found_by_looking(
    control_plane: Path, known: Monitoring, tmp_path: Path, kind: str
) -> None:
    async def lose(name: str, *, holds: bool, kills: bool) -> None:
        kubeconfig = tmp_path / f"{name}.kubeconfig"
        async with lossy_cluster(control_plane, kubeconfig, holds=holds) as proxy:
            arrange = CLUSTER[kind](control_plane, known, kubeconfig)
            await answer_lost(arrange, proxy, tmp_path / name, kills=kills)

    await asyncio.gather(*(lose(name, **loss) for name, loss in LOSSES.items()))
