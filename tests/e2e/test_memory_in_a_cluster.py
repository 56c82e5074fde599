"""Containers killed for want of memory in a real cluster, from the rule to the resolve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remediator.backends.kubernetes.reader import KubernetesReader
from tests.lossy_proxy import lossy_cluster
from tests.monitored_shop import QUICK, OpenShop, Shop, rules_of

EFFECT = "remediator.dev/effect"


@pytest.fixture
async def short_of_memory(shop: Shop) -> Shop:
    """A deployment one of whose pods was killed, until its limit is raised."""
    await shop.cluster.deploy(2)
    await shop.kill_for_memory()

    async def killed() -> float:
        return float(await shop.memory_limit() == "256Mi")

    shop.readings["orders_oom_killed"] = killed
    shop.alert_when("PodOOMKilled", "orders_oom_killed > 0")
    shop.orders["playbooks"]["OOM"] = {
        "memory_max": "1Gi",
        "verification": QUICK,
        "evidence": "optional",  # no kubelet runs there that could tell what was written
    }
    return shop


def _changes(deployment: dict[str, Any]) -> int:
    return int(deployment["metadata"]["generation"]) - 1


async def test_the_limit_is_raised_exactly_once_and_the_effect_is_written_on_it(
    short_of_memory: Shop, open_shop: OpenShop
) -> None:
    shop = short_of_memory
    async with open_shop(shop):
        incident = await shop.service.incident(within=60, state="closed")
    assert incident["outcome"] == "mitigated", incident["reason"]
    deployment = await shop.cluster.deployment()
    assert (_changes(deployment), await shop.memory_limit()) == (1, "512Mi")
    (made,) = incident["mitigations"]
    assert made["state"] == "applied"
    assert deployment["metadata"]["annotations"][EFFECT] == made["effect_key"]


async def test_a_limit_that_the_namespace_refuses_is_put_back_at_once_with_the_reason(
    short_of_memory: Shop, open_shop: OpenShop
) -> None:
    """The deployment's dry run passes: only its new pods are refused."""
    shop = short_of_memory

    async def fires() -> float:
        return 1.0

    shop.readings["orders_oom_killed"] = fires
    await shop.cluster.most_memory("300Mi")
    shop.orders["playbooks"]["OOM"]["verification"] = QUICK | {"deadline": "10m"}
    async with open_shop(shop):
        incident = await shop.service.incident(within=60, state="closed")
    (made,) = incident["mitigations"]
    assert (incident["outcome"], made["state"]) == ("reverted", "reverted"), incident["reason"]
    assert "maximum memory usage per Container is 300Mi" in made["evidence"]
    assert await shop.memory_limit() == "256Mi"


async def test_a_stale_version_leads_to_a_fresh_look_and_not_to_a_second_change(
    short_of_memory: Shop, open_shop: OpenShop, tmp_path: Path
) -> None:
    """T-26: somebody writes to the deployment between our look and our patch."""
    shop = short_of_memory
    main = shop.service.config["backends"]["kubernetes"]["main"]
    reached = tmp_path / "meddled.kubeconfig"

    async def meddle() -> None:
        body = {"metadata": {"labels": {"team": "was-here"}}}
        await shop.cluster.patch("/apis/apps/v1", "deployments", "orders", body)

    async with lossy_cluster(Path(main["writer_kubeconfig"]), reached, holds=False) as proxy:
        proxy.lost.set()  # this one loses nothing
        proxy.meddle = meddle
        main["writer_kubeconfig"] = str(reached)
        async with open_shop(shop):
            incident = await shop.service.incident(within=60, state="closed")
    assert incident["outcome"] == "mitigated", incident["reason"]
    assert [made["state"] for made in incident["mitigations"]] == ["not_applied", "applied"]
    assert len(proxy.changes) == 2, "the first was refused as stale"
    assert (_changes(await shop.cluster.deployment()), await shop.memory_limit()) == (1, "512Mi")


async def test_without_the_right_to_write_it_is_found_escalated_and_nothing_is_changed(
    short_of_memory: Shop, open_shop: OpenShop
) -> None:
    shop = short_of_memory
    limited = await shop.cluster.account("limited", *rules_of(KubernetesReader.rights))
    main = shop.service.config["backends"]["kubernetes"]["main"]
    main["writer_kubeconfig"] = str(limited)
    async with open_shop(shop):
        incident = await shop.service.incident(within=60, state="closed")
    assert incident["outcome"] == "escalated"
    assert "cannot patch resource" in incident["reason"]
    assert any(
        "was killed" in f["summary"] or "Killed" in f["summary"] for f in incident["findings"]
    )
    assert (_changes(await shop.cluster.deployment()), await shop.memory_limit()) == (0, "256Mi")


async def test_in_shadow_the_change_is_asked_for_as_a_dry_run_and_nothing_moves(
    short_of_memory: Shop, open_shop: OpenShop
) -> None:
    shop = short_of_memory
    shop.service.config["mode"] = "shadow"
    async with open_shop(shop):
        incident = await shop.service.incident(within=60, state="closed")
    assert incident["outcome"] == "shadowed"
    (planned,) = incident["mitigations"]
    assert (planned["state"], planned["kind"]) == ("shadowed", "set_memory")
    assert "not validated" not in planned["reason"], "the API server was asked and agreed"
    assert (_changes(await shop.cluster.deployment()), await shop.memory_limit()) == (0, "256Mi")
