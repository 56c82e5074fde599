"""Facts of seeds that never ran, for the campaign's judge."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from remediator.cli.demo.slack import LocalSlack
from tests.campaign.facts import Facts
from tests.campaign.network import Span
from tests.campaign.plan import plan_of
from tests.campaign.restoring import Forgotten
from tests.campaign.sender import Accepted
from tests.campaign.world import Part, World
from tests.fault_rigs import Fault, configuration

Row = Mapping[str, Any]
INCIDENT = {
    "id": "inc-1",
    "state": "closed",
    "phase": "done",
    "outcome": "no_match",
    "reason": "",
    "system": "shop",
    "service": "orders",
}
ENTRY = {
    "effect_key": "k",
    "incident_id": "inc-1",
    "system": "shop",
    "service": "orders",
    "state": "applied",
    "in_flight": False,
    "target_key": "t",
    "reserved_at": 1_795_773_600_000_000,
    "apply_before": 1_795_773_601_000_000,
}
LINE = {"incident_id": "inc-1", "at": 0, "reason": "", "data": {}}
AT = datetime(2026, 11, 27, 10, 0, tzinfo=UTC)


def micros(seconds: float) -> int:
    """Return the store's time so long after ``AT``."""
    return int((AT.timestamp() + seconds) * 1_000_000)


def changed(times: int, *rows: Row, harm: str = "", at: datetime | None = None) -> Facts:
    """Facts of one breaker that was reset so many times."""

    async def changes() -> int:
        return times

    async def harmed() -> str:
        return harm

    config = configuration("CircuitBreakerOpen", {})
    posts = () if at is None else (at,)
    fault = Fault("reset_breaker", config, {}, changes, harmed, times=posts)
    facts = some_facts(mitigations=rows, incidents=[INCIDENT])
    facts.world.parts.append(Part("orders", "breaker", fault, Path(), "orders"))
    facts.changes["orders"] = times
    facts.reserved_by = {"k": "replica-0"}
    return facts


def forgotten(*rows: Row, deliveries: Collection[str] = ()) -> Forgotten:
    """What a store forgot that was copied ten seconds before ``AT``, and stopped right before it."""
    span = Span(AT - timedelta(seconds=10), AT - timedelta(seconds=2))
    return Forgotten(span, frozenset(deliveries), rows)


def some_facts(accepted: Sequence[Accepted] = (), **rows: Sequence[Row]) -> Facts:
    """Facts of a seed without parts, with the given rows."""
    plan = next(p for p in (plan_of(n, postgres=True) for n in range(99)) if p.budget == 10)
    facts = Facts(plan, World(), LocalSlack(), accepted)
    empty = ("deliveries", "incidents", "alerts", "mitigations", "obligations", "notices")
    facts.tables = {name: [*rows.get(name, ())] for name in (*empty, "journal")}
    return facts
