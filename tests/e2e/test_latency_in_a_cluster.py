"""Latency that more replicas cure, in a real cluster, from the rule to the hold time and back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from remediator.backends.kubernetes.reader import KubernetesReader
from tests.kubernetes_fixtures import until
from tests.monitored_shop import QUICK, OpenShop, Shop, rules_of
from tests.postgres_fixtures import Scene
from tests.service_fixtures import FAST

EFFECT = "remediator.dev/effect"
AUTOSCALING = "/apis/autoscaling/v1"


@dataclass
class Load:
    """The load on the application; a test lets it pass."""

    high: bool = True


@pytest.fixture
def load() -> Load:
    return Load()


@pytest.fixture
async def slow(shop: Shop, load: Load) -> Shop:
    """Four replicas that are too few while the load is high; six would do."""
    await shop.cluster.deploy(4)

    async def too_few() -> bool:
        status = (await shop.cluster.deployment())["status"]
        return load.high and int(status.get("readyReplicas", 0)) < 6

    async def latency() -> float:
        return 0.9 if await too_few() else 0.1

    async def cpu() -> float:
        return 0.95 if await too_few() else 0.5

    shop.readings |= {"orders_latency_seconds": latency, "orders_cpu_share": cpu}
    shop.alert_when("HighLatencyP95", "orders_latency_seconds > 0.5")
    shop.orders["playbooks"]["HighLatency"] = {
        "latency_query": "orders_latency_seconds",
        "latency_limit": 0.5,
        "cpu_query": "orders_cpu_share",
        "scale_cap": 8,
        "node_headroom": False,
        "hold": "3s",
        "step_pause": "1s",
        "verification": QUICK,
    }
    return shop


async def test_it_is_scaled_exactly_once_and_taken_back_in_steps_after_its_hold_time(
    slow: Shop, load: Load, open_shop: OpenShop
) -> None:
    async with open_shop(slow):
        incident = await slow.service.incident(within=60, state="closed")
        assert incident["outcome"] == "mitigated", incident["reason"]
        (made,) = incident["mitigations"]
        deployment = await slow.cluster.deployment()
        assert (deployment["metadata"]["generation"], deployment["spec"]["replicas"]) == (2, 6)
        assert deployment["metadata"]["annotations"][EFFECT] == made["effect_key"]
        load.high = False
        seen = [6]

        async def back() -> bool:
            now = await slow.replicas()
            if now != seen[-1]:
                seen.append(now)
            return now == 4

        await until(back, "the replicas are taken back", 60)
        assert seen == [6, 5, 4]

        async def recorded() -> bool:
            (incident,) = await slow.service.incidents()
            return bool(incident["mitigations"][0]["state"] == "reverted")

        await until(recorded, "the ledger says that it is taken back", 10)
    assert (await slow.cluster.deployment())["metadata"]["generation"] == 4


async def test_with_an_autoscaler_its_minimum_moves_and_is_taken_back_in_steps(
    slow: Shop, load: Load, open_shop: OpenShop
) -> None:
    await slow.cluster.autoscaler(minimum=4, maximum=10)
    playing = asyncio.create_task(_play_autoscaler(slow))
    try:
        async with open_shop(slow):
            incident = await slow.service.incident(within=60, state="closed")
            assert incident["outcome"] == "mitigated", incident["reason"]
            path = slow.cluster.path(AUTOSCALING, "horizontalpodautoscalers", "orders")
            scaler = await slow.cluster.admin.get(path)
            assert scaler["spec"]["minReplicas"] == 6
            (made,) = incident["mitigations"]
            assert scaler["metadata"]["annotations"][EFFECT] == made["effect_key"]
            deployment = await slow.cluster.deployment()
            assert EFFECT not in deployment["metadata"]["annotations"]
            load.high = False

            async def back() -> bool:
                return await slow.cluster.minimum() == 4

            await until(back, "the minimum is taken back", 60)
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)


async def _play_autoscaler(shop: Shop) -> None:
    """Do what the controller would: never fewer replicas than the minimum."""
    while True:
        minimum = await shop.cluster.minimum()
        if await shop.replicas() < minimum:
            body = {"spec": {"replicas": minimum}}
            await shop.cluster.patch("/apis/apps/v1", "deployments", "orders", body)
        await asyncio.sleep(0.2)


async def test_without_the_right_to_write_it_is_found_escalated_and_nothing_is_changed(
    slow: Shop, open_shop: OpenShop
) -> None:
    limited = await slow.cluster.account("limited", *rules_of(KubernetesReader.rights))
    main = slow.service.config["backends"]["kubernetes"]["main"]
    main["writer_kubeconfig"] = str(limited)
    async with open_shop(slow):
        incident = await slow.service.incident(within=60, state="closed")
    assert incident["outcome"] == "escalated"
    assert "cannot patch resource" in incident["reason"]
    assert (await slow.cluster.deployment())["metadata"]["generation"] == 1


async def test_in_shadow_the_scaling_is_asked_for_as_a_dry_run_and_nothing_moves(
    slow: Shop, open_shop: OpenShop
) -> None:
    slow.service.config["mode"] = "shadow"
    async with open_shop(slow):
        incident = await slow.service.incident(within=60, state="closed")
    assert incident["outcome"] == "shadowed"
    (planned,) = incident["mitigations"]
    assert (planned["state"], planned["kind"]) == ("shadowed", "scale")
    assert "not validated" not in planned["reason"]
    assert (await slow.cluster.deployment())["metadata"]["generation"] == 1


async def test_a_full_pool_is_treated_latency_waits_for_it_and_nothing_is_scaled(
    slow: Shop, load: Load, scene: Scene, open_shop: OpenShop
) -> None:
    """T-15: more replicas would open more connections to a database that has none left."""
    leak = (await scene.leak()).get_server_pid()

    async def latency() -> float:
        return 0.9 if await scene.is_(leak) else 0.1

    async def pool_active() -> float:
        return 10 if await scene.is_(leak) else 1

    async def pool_size() -> float:
        return 10

    slow.readings |= {
        "orders_latency_seconds": latency,
        "orders_cpu_share": latency,
        "orders_pool_active": pool_active,
        "orders_pool_size": pool_size,
    }
    full = "orders_pool_active / orders_pool_size > 0.9"
    slow.alert_when("DatabaseConnectionPoolExhausted", full)
    _use_database(slow, scene)
    async with open_shop(slow):
        by_playbook: dict[str, dict[str, Any]] = {}
        async with asyncio.timeout(60):
            while len(by_playbook) < 2 or any(i["state"] == "open" for i in by_playbook.values()):
                by_playbook = {i["playbook"]: i for i in await slow.service.incidents()}
                await asyncio.sleep(0.2)
    pool, symptom = by_playbook["PoolExhausted"], by_playbook["HighLatency"]
    assert pool["outcome"] == "mitigated", pool["reason"]
    assert [item["key"] for item in pool["mitigations"][0]["items"]] == [f"pid {leak}"]
    assert symptom["outcome"] == "resolved_by_itself", symptom["reason"]
    assert symptom["mitigations"] == []
    assert (await slow.cluster.deployment())["metadata"]["generation"] == 1


def _use_database(shop: Shop, scene: Scene) -> None:
    folder = shop.service.folder
    (folder / "reader.dsn").write_text(scene.dsn_as("reader"))
    (folder / "writer.dsn").write_text(scene.dsn_as("lever"))
    database = {"dsn_file": "reader.dsn", "writer_dsn_file": "writer.dsn"}
    shop.service.config["backends"]["postgres"] = {"orders-db": database}
    shop.orders["targets"]["database"] = "orders-db"
    shop.orders["playbooks"]["PoolExhausted"] = {
        "idle_tx_s": 60,
        "app_roles": [scene.app],
        "pool_active_query": "orders_pool_active",
        "pool_max_query": "orders_pool_size",
        "verification": FAST,
    }
