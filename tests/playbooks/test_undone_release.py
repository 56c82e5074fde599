"""A release is undone only to a revision that is known to have been ready."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from remediator.model.mitigation import Proposal
from remediator.playbook.checks.releases import ReleaseBounds
from tests.slow_service import RELEASED, WELL, Cluster, Prometheus, Slow


async def proposed(ready: float = 4, **parameters: Any) -> Proposal:
    return await Slow(
        workload=Cluster(cpu=300, kept=RELEASED),
        prometheus=Prometheus({"latency": 0.9}, WELL, ready=ready),
        parameters=parameters,
    ).proposed()


async def test_a_revision_that_had_ready_pods_is_gone_back_to() -> None:
    proposal = await proposed(ready=1)
    assert [plan.kind for plan in proposal.mitigations] == ["undo_rollout"]
    assert "revision 6 had ready pods" in proposal.reason


@pytest.mark.parametrize("evidence", ["required", "optional"])
async def test_a_release_is_undone_only_after_the_logs_of_its_pods_were_read(evidence: str) -> None:
    """They go with the pods: a rollback would leave nobody anything to look at."""
    slow = Slow(
        workload=Cluster(cpu=300, kept=RELEASED, silent=True),
        prometheus=Prometheus({"latency": 0.9}, WELL, ready=4),
        parameters={"evidence": evidence},
    )
    proposal = await slow.proposed()
    assert bool(proposal.mitigations) is (evidence == "optional")
    assert ("logs: main: no right to get pods/log" in proposal.reason) is (evidence == "required")


async def test_a_revision_that_never_was_ready_is_not_gone_back_to() -> None:
    """Its image may not even exist: going back to it would be the outage."""
    proposal = await proposed(ready=0)
    assert proposal.mitigations == ()
    assert "revision 6 was never ready" in proposal.reason


async def test_without_ready_query_nothing_is_undone_and_it_is_said_what_to_set() -> None:
    proposal = await proposed(ready_query=None)
    assert proposal.mitigations == ()
    assert "ever ready: set ready_query" in proposal.reason


async def test_a_ready_query_without_an_answer_ends_the_search() -> None:
    proposal = await proposed(ready_query="lost{set={replica_set}}")
    assert (proposal.mitigations, proposal.wait is not None) == ((), True)
    assert 'no data: lost{set="orders-6"}' in proposal.reason


def test_a_ready_query_that_asks_for_no_replica_set_is_refused() -> None:
    with pytest.raises(ValidationError, match="must name the replica set"):
        ReleaseBounds.model_validate({"ready_query": "max(ready)"})
