"""``remediator check`` promises only levers for which all that they rest upon can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from remediator.config.settings import load_settings
from remediator.service import check
from remediator.service.rbac import Account, Wanted, chart_values, reader_rights, rules
from tests.kubernetes_fixtures import Cluster, served
from tests.recorded_cluster import Recorded, sample

NO_NODES = "our account may not list nodes in all namespaces"
NO_METRICS = "metrics-server is not installed"


def configured(folder: Path, kubeconfig: Path, target: dict[str, str], **playbooks: Any) -> Path:
    service = {
        "match": {"service": "orders"},
        "targets": {"workload": {"cluster": "main", **target}},
        "playbooks": playbooks,
    }
    content = {
        "backends": {"kubernetes": {"main": {"kubeconfig": str(kubeconfig)}}},
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": service}}},
    }
    path = folder / "remediator.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


async def promised(path: Path) -> dict[str, tuple[str, str]]:
    """Return how it is and what is said of each playbook of the service."""
    report = await check(load_settings(path, {"HOME": str(path.parent)}, path.parent), {})
    words = (("shop/orders ", level, of, said) for level, of, said in report.lines)
    return {
        of.removeprefix(begins): (level, said)
        for begins, level, of, said in words
        if of.startswith(begins)
    }


async def test_without_rights_and_metrics_a_real_cluster_promises_no_scaling_and_no_eviction(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.deploy(2)
    reader = await cluster.account("reader", *rules(reader_rights()))
    target = {"namespace": cluster.namespace, "deployment": "orders"}
    playbooks = {"HighLatency": {"scale_cap": 4}, "OOM": {"memory_max": "1Gi"}}
    found = await promised(configured(tmp_path, reader, target, **playbooks))
    level, said = found["HighLatency"]
    assert level == "warning"
    assert "could do nothing; not now scale" in said
    assert NO_NODES in said
    assert NO_METRICS in said
    level, said = found["OOM"]
    assert level == "warning"
    assert "could set_memory; not now evict_pod" in said
    assert NO_METRICS in said
    assert NO_NODES not in said


async def test_what_can_be_read_or_need_not_be_read_is_promised(tmp_path: Path) -> None:
    recorded = Recorded(sample("deployment_after_kubectl_scale"), sample("pods_scmem")["items"])
    target = dict(recorded.target.locator)
    latency: dict[str, Any] = {"scale_cap": 4}
    async with served(tmp_path, recorded.app(), {}) as kubeconfig:
        recorded.uses("1m", "1Mi")
        found = await promised(configured(tmp_path, kubeconfig, target, HighLatency=latency))
        assert "not now scale" in found["HighLatency"][1]
        assert NO_NODES in found["HighLatency"][1]
        latency["node_headroom"] = False
        playbooks = {"HighLatency": latency, "OOM": {}}
        found = await promised(configured(tmp_path, kubeconfig, target, **playbooks))
        assert "could scale" in found["HighLatency"][1]
        assert "could evict_pod, restart_rollout" in found["OOM"][1]
        recorded.nodes = []
        del latency["node_headroom"]
        found = await promised(configured(tmp_path, kubeconfig, target, HighLatency=latency))
        assert "could scale" in found["HighLatency"][1]
        recorded.usage = None
        found = await promised(configured(tmp_path, kubeconfig, target, HighLatency=latency))
        assert NO_METRICS in found["HighLatency"][1]


def room_of(path: Path) -> Any:
    settings = load_settings(path, {"HOME": str(path.parent)}, path.parent)
    wanted = Wanted(Account("ops", "reads"), Account("ops", "writes"))
    return yaml.safe_load(chart_values(settings, wanted))["rbac"].get("room")


def test_the_values_of_the_chart_grant_the_room_where_something_rests_on_it(
    tmp_path: Path,
) -> None:
    target = {"namespace": "shop", "deployment": "orders"}
    nowhere = tmp_path / "none"
    for parameters, room in (
        ({"scale_cap": 4}, True),
        ({"scale_cap": 4, "mode": "shadow"}, True),
        ({}, None),
        ({"scale_cap": 4, "node_headroom": False}, None),
        ({"scale_cap": 4, "scale": False}, None),
    ):
        assert room_of(configured(tmp_path, nowhere, target, HighLatency=parameters)) is room
    assert room_of(configured(tmp_path, nowhere, target, OOM={"memory_max": "1Gi"})) is None
    members = {"namespace": "shop", "statefulset": "store"}
    assert room_of(configured(tmp_path, nowhere, members, HighLatency={"scale_cap": 4})) is None
