"""Counts what the worker does, in the service's own metrics."""

from __future__ import annotations

import asyncio

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector

from remediator.model.errors import StoreUnavailable
from remediator.model.incident import Phase
from remediator.model.transition import Claim, Transition
from remediator.store import Store

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


# --- metrics ----------------------------------------------------------------------------------


class Telemetry:
    """The service's own metrics, in a registry of their own. One instance a running service."""

    content_type = CONTENT_TYPE_LATEST
    """Content type of what ``render`` returns."""

    def __init__(self) -> None:
        """Make every metric, at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._make_intake()
        self._make_work()
        self._make_backlog()

    def _make_intake(self) -> None:
        self.deliveries = self._counter("deliveries", "HTTP calls received.", "source", "result")
        self.delivery_alerts = self._counter("delivery_alerts", "Alerts received.", "source")
        self.rejected_requests = self._counter("rejected_requests", "Refused calls.", "reason")
        self.closed_connections = self._counter(
            "closed_connections", "Connections that we ended ourselves.", "reason"
        )

    def _make_work(self) -> None:
        self.incidents = self._counter("incidents", "Incidents closed.", "outcome")
        self.decisions = self._counter("decisions", "Decisions on mitigations.", "effect", "code")
        self.mitigations = self._counter("mitigations", "Mitigations by state.", "kind", "state")
        self.verdicts = self._counter("verdicts", "Verdicts on mitigations.", "assessment")
        self.steps = self._counter("steps", "Steps of the pipeline.", "phase", "result")
        self.notices = self._counter("notices", "Messages to people.", "result")
        self.calls = self._counter(
            "escalation_messages", "Messages of escalations.", "channel", "result"
        )
        self.step_seconds = Histogram(
            "remediator_step_seconds",
            "Time that one step took.",
            ["phase"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.receipt_to_diagnosis = Histogram(
            "remediator_receipt_to_diagnosis_seconds",
            "Time from the receipt of an alert to the end of its first diagnosis.",
            buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=self.registry,
        )

    def _make_backlog(self) -> None:
        self._open_incidents = self._gauge("open_incidents", "Incidents that are open.")
        self._untriaged = self._gauge("untriaged_deliveries", "Deliveries not yet triaged.")
        self._oldest_due = self._gauge("oldest_due_seconds", "Age of the oldest step that is due.")
        self._paused = self._gauge("paused", "Stop switches that are on.")
        self._redis_impaired = self._gauge(
            "shared_redis_impaired", "1 while the Redis of the replicas does not answer."
        )

        self._store_full = self._gauge("store_full", "1 while the disk of the store is full.")
        self._reserve = self._gauge(
            "disk_reserve_bytes", "Room that is kept back for a full disk; 0 while it is in use."
        )
        self._free = self._gauge("disk_free_bytes", "Room on the disk of the state folder.")

    def disk(self, *, full: bool, reserve: int, free: int) -> None:
        """Set what there is of the store's disk, in bytes."""
        self._store_full.set(full)
        self._reserve.set(reserve)
        self._free.set(free)

    def backlog(
        self,
        *,
        open_incidents: int,
        untriaged_deliveries: int,
        oldest_due_seconds: float,
        paused: int,
    ) -> None:
        """Set how much waits; ``paused`` counts the stop switches that are on."""
        self._open_incidents.set(open_incidents)
        self._untriaged.set(untriaged_deliveries)
        self._oldest_due.set(oldest_due_seconds)
        self._paused.set(paused)

    def shared_redis_impaired(self, impaired: bool) -> None:
        """Say whether the Redis of the replicas, where there is one, does not answer."""
        self._redis_impaired.set(impaired)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"remediator_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"remediator_{name}", text, registry=self.registry)
