"""What ``kubectl scale`` set is noted without a time: it is recent until something says otherwise.

The deployment is as a real Kubernetes 1.36 gave it, after ``kubectl scale`` from 2 to 3 replicas.
"""

from __future__ import annotations

import copy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.model.errors import BackendRefused
from remediator.model.mitigation import Mitigation
from tests.recorded_cluster import Recorded, sample

SCALED_AT = datetime.fromisoformat("2026-11-30T21:10:00Z")
HALF_AN_HOUR = timedelta(minutes=30)
Json = dict[str, Any]


def scaled_by_hand() -> Recorded:
    return Recorded(sample("deployment_after_kubectl_scale"))


def replica_set(recorded: Recorded, replicas: int, at: datetime | None) -> Json:
    """Make the replica set as the controller writes it: its number, and apart from it its status."""
    owner = {"uid": recorded.deployment["metadata"]["uid"], "controller": True}
    entry: Json = {
        "manager": "kube-controller-manager",
        "operation": "Update",
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
    }
    if at is not None:
        entry["time"] = at.isoformat()
    metadata = {"name": "set", "uid": "set", "ownerReferences": [owner], "managedFields": [entry]}
    return {"metadata": metadata, "spec": {"replicas": replicas}}


def pods_came_and_went(recorded: Recorded, at: datetime) -> None:
    """Let the deployment's status change, as it does with every pod that becomes ready or fails."""
    for entry in recorded.deployment["metadata"]["managedFields"]:
        if entry.get("subresource") == "status":
            entry["time"] = at.isoformat()


async def prepare(recorded: Recorded, folder: Path, now: datetime) -> None:
    scale = Mitigation(
        kind="scale",
        target=recorded.target,
        reason="a test",
        parameters={"replicas": 5, "cap": 6},
    )
    async with recorded.lever(folder, now, HALF_AN_HOUR) as lever:
        await lever.prepare(scale)


async def test_replicas_set_by_kubectl_scale_ten_seconds_ago_are_left_alone(tmp_path: Path) -> None:
    recorded = scaled_by_hand()
    with pytest.raises(BackendRefused, match="kubectl set it 0 min ago"):
        await prepare(recorded, tmp_path, SCALED_AT + timedelta(seconds=10))
    assert not recorded.changes


async def test_they_may_be_changed_once_the_controller_acted_on_them_long_ago(
    tmp_path: Path,
) -> None:
    recorded = scaled_by_hand()
    await prepare(recorded, tmp_path, SCALED_AT + timedelta(minutes=31))
    assert recorded.changes


async def test_where_nothing_says_how_long_ago_they_are_left_alone(tmp_path: Path) -> None:
    much_later = SCALED_AT + timedelta(days=3)
    recorded = scaled_by_hand()
    recorded.deployment["metadata"]["generation"] += 1  # the controller has not seen it yet
    recorded.deployment["status"]["replicas"] = 3
    with pytest.raises(BackendRefused, match=r"rollout|not known"):
        await prepare(recorded, tmp_path, much_later)
    recorded = scaled_by_hand()
    fields = recorded.deployment["metadata"]["managedFields"]
    fields[:] = [entry for entry in fields if entry.get("subresource") != "status"]
    with pytest.raises(BackendRefused, match="kubectl set it at a time that is not known"):
        await prepare(recorded, tmp_path, much_later)


async def test_pods_that_fail_now_do_not_make_an_old_change_recent(tmp_path: Path) -> None:
    now = SCALED_AT + timedelta(hours=5)
    recorded = scaled_by_hand()
    pods_came_and_went(recorded, now - timedelta(minutes=1))
    with pytest.raises(BackendRefused, match="kubectl set it 1 min ago"):
        await prepare(recorded, tmp_path, now)
    recorded.replica_sets = [replica_set(recorded, 3, SCALED_AT)]
    await prepare(recorded, tmp_path, now)


@pytest.mark.parametrize(
    ("replicas", "at"), [(2, SCALED_AT), (3, None), (3, SCALED_AT + timedelta(hours=4, minutes=45))]
)
async def test_a_replica_set_of_another_size_or_time_proves_nothing(
    tmp_path: Path, replicas: int, at: datetime | None
) -> None:
    now = SCALED_AT + timedelta(hours=5)
    recorded = scaled_by_hand()
    pods_came_and_went(recorded, now - timedelta(minutes=1))
    recorded.replica_sets = [replica_set(recorded, replicas, at)]
    with pytest.raises(BackendRefused, match="kubectl set it"):
        await prepare(recorded, tmp_path, now)


async def test_what_we_scaled_ourselves_is_nobody_elses(tmp_path: Path) -> None:
    recorded = scaled_by_hand()
    fields = copy.deepcopy(recorded.deployment["metadata"]["managedFields"])
    fields[0] |= {"manager": "remediator"}
    recorded.deployment["metadata"]["managedFields"] = fields
    await prepare(recorded, tmp_path, SCALED_AT + timedelta(seconds=10))
