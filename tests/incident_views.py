"""Incidents as the store shows them, for tests of what is said about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from remediator.model.alert import AlertStatus
from remediator.model.base import AlertId, IncidentId, MitigationId
from remediator.model.finding import FindingStatus
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.mitigation import ItemOutcome, MitigationState
from remediator.model.target import Mode, Risk
from remediator.model.verdict import Assessment
from remediator.model.views import (
    AlertView,
    FindingView,
    IncidentView,
    MitigationView,
    TimelineEvent,
)

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = IncidentId("inc-0198c2f5a1b2-9f8e7d6c5b")


def alert(**changes: Any) -> AlertView:
    return AlertView.model_validate(
        {
            "id": AlertId("alr-1"),
            "fingerprint": "f1",
            "status": AlertStatus.FIRING,
            "labels": {"alertname": "PoolExhausted", "service": "orders"},
            "annotations": {"summary": "Requests wait for a connection"},
            "starts_at": START,
            "last_seen_at": START,
            "resolved_at": None,
            "notifications": 1,
        }
        | changes
    )


def finding(name: str, status: FindingStatus, summary: str, round: int = 1) -> FindingView:  # noqa: A002 - the noun
    return FindingView(round=round, at=START, name=name, status=status, summary=summary)


def mitigation(state: MitigationState, **changes: Any) -> MitigationView:
    return MitigationView.model_validate(
        {
            "id": MitigationId("mit-1"),
            "kind": "end_sessions",
            "target": "postgres/orders-db",
            "state": state,
            "effect_key": "inc/PoolExhausted/1/end_sessions/postgres/orders-db",
            "reason": "5 sessions hold 80 % of the slots",
            "mode": Mode.AUTO,
            "risk": Risk.MEDIUM,
            "plan_hash": "0123456789abcdef",
            "summary": "End 2 sessions that are idle in transaction",
            "planned": [],
            "items": [
                ItemOutcome(key="pid 4711", state=state),
                ItemOutcome(key="pid 4712", state=state, detail="gone already"),
            ],
            "created_at": START + timedelta(seconds=10),
        }
        | changes
    )


def event(step: str, name: str, reason: str = "", seconds: int = 0) -> TimelineEvent:
    return TimelineEvent(
        at=START + timedelta(seconds=seconds), step=step, event=name, reason=reason
    )


def open_in(phase: Phase, **changes: Any) -> IncidentView:
    return view(state=IncidentState.OPEN, phase=phase, outcome=None, closed_at=None, **changes)


def closed_as(outcome: IncidentOutcome, **changes: Any) -> IncidentView:
    return view(state=IncidentState.CLOSED, phase=Phase.DONE, outcome=outcome, **changes)


def view(**changes: Any) -> IncidentView:
    return IncidentView.model_validate(
        {
            "id": ID,
            "state": IncidentState.CLOSED,
            "phase": Phase.DONE,
            "outcome": IncidentOutcome.MITIGATED,
            "system": "shop",
            "service": "orders",
            "playbook": "PoolExhausted",
            "reason": "the pool has free connections again",
            "dry_run": False,
            "replay_of": None,
            "opened_at": START,
            "closed_at": START + timedelta(minutes=7, seconds=30),
            "alerts": [alert()],
            "findings": [
                finding("pool", FindingStatus.PROBLEM, "100 of 100 connections are in use"),
                finding("replication", FindingStatus.UNKNOWN, "no answer within 5 s"),
                finding("disk", FindingStatus.FINE, "40 % full"),
                finding("locks", FindingStatus.FINE, "nobody waits"),
            ],
            "mitigations": [mitigation(MitigationState.APPLIED, verdict=Assessment.BETTER)],
            "timeline": [
                event("triage", "opened"),
                event("act", "applied", "two sessions ended", 11),
            ],
        }
        | changes
    )
