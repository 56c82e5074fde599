"""Counts what the worker does, in the service's own metrics."""

from __future__ import annotations

import asyncio

import structlog

from remediator.errors import StoreUnavailable
from remediator.model import Phase
from remediator.store import Store
from remediator.store.claimed import Claim
from remediator.store.queue import Transition
from remediator.telemetry import Telemetry

BACKLOG_EVERY = 5.0
"""Seconds between two counts of what waits."""

_log = structlog.get_logger(__name__)


class Watching:
    """Turns steps and notices into metrics."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def step_taken(self, claim: Claim, result: Transition | None, seconds: float) -> None:
        """Count one step and what came of it."""
        phase = claim.incident.phase
        outcome = "failed" if result is None else str(result.phase)
        self._telemetry.steps.labels(phase, outcome).inc()
        self._telemetry.step_seconds.labels(phase).observe(seconds)
        if result is None:
            return
        if phase is Phase.DIAGNOSE and claim.incident.round == 0 and result.proposal is not None:
            waited = (claim.now - claim.incident.opened_at).total_seconds() + seconds
            self._telemetry.receipt_to_diagnosis.observe(max(waited, 0.0))
        self._count_changes(claim, result)

    def _count_changes(self, claim: Claim, result: Transition) -> None:
        if result.outcome is not None:
            self._telemetry.incidents.labels(result.outcome).inc()
        if result.entry is not None:
            entry = result.entry
            self._telemetry.mitigations.labels(entry.mitigation.kind, entry.state).inc()
            self._telemetry.decisions.labels(entry.state, entry.mode).inc()
        settlement = result.settlement
        if settlement is not None and settlement.verdict is not None:
            self._telemetry.verdicts.labels(settlement.verdict).inc()
        elif settlement is not None:
            kinds = {e.id: e.mitigation.kind for e in claim.entries}
            kind = kinds.get(settlement.id, claim.incident.playbook or "unknown")
            self._telemetry.mitigations.labels(kind, settlement.state).inc()

    def notice_sent(self, result: str) -> None:
        """Count one message to humans."""
        self._telemetry.notices.labels(result).inc()


async def watch_backlog(store: Store, telemetry: Telemetry) -> None:
    """Count what waits, every few seconds, for ever."""
    while True:
        try:
            backlog = await store.records.backlog()
        except StoreUnavailable as error:
            _log.warning("backlog_unknown", reason=str(error))
        except Exception:  # noqa: BLE001 - a count that fails must not stop the service
            _log.exception("backlog_unknown")
        else:
            telemetry.backlog(
                open_incidents=backlog.open_incidents,
                untriaged_deliveries=backlog.untriaged,
                oldest_due_seconds=backlog.oldest_due,
                paused=backlog.paused,
            )
        await asyncio.sleep(BACKLOG_EVERY)
