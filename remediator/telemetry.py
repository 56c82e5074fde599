"""What the service tells of itself: its log (structlog) and its metrics (Prometheus).

A log line is an event with keys. Whatever libraries log goes the same way. Secrets are masked by
the name of their key, and where they can be told by their form.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter as Counts
from collections.abc import Callable, MutableMapping
from typing import Any, Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from structlog.typing import Processor

from remediator import redaction

LogFormat = Literal["json", "console", "auto"]
LogLevel = Literal["debug", "info", "warning", "error"]

_TALKATIVE = ("httpx", "httpcore", "urllib3", "slack_sdk", "sqlalchemy", "alembic", "asyncpg")
"""Libraries whose chatter holds URLs, parameters and headers, or says nothing to an operator: only
their warnings are kept."""


# --- log --------------------------------------------------------------------------------------


def configure_logging(format: LogFormat, level: LogLevel, stream: TextIO) -> None:  # noqa: A002 - the setting's name
    """Send every event and every library's log record to ``stream``, one line each.

    ``auto`` is for people when ``stream`` is a terminal, else JSON. May be called again.
    """
    people = stream.isatty() if format == "auto" else format == "console"
    common = _common()
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                _renderer(people=people, colors=people and stream.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handler as ours, so that a second call takes back no one else's."""


def _common() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _renderer(*, people: bool, colors: bool) -> Processor:
    if people:  # plain: a traceback with local variables would show secrets
        plain = structlog.dev.plain_traceback
        return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)
    return structlog.processors.JSONRenderer()


def redact(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Mask secrets in ``event``, as a structlog processor."""
    masked: dict[str, Any] = redaction.redact(dict(event), whole=True)
    return masked


class Seldom:
    """Writes what others can cause at will at most once a second for each reason, with a count."""

    def __init__(self, log: Any, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to ``log``, a bound logger; ``clock`` is in seconds."""
        self._log = log
        self._clock = clock
        self._said: dict[tuple[str, str], float] = {}
        self._unsaid: Counts[tuple[str, str]] = Counts()

    def warn(self, event: str, reason: str, **keys: Any) -> None:
        """Write a warning, or count it for the next one; reasons are few and our own."""
        key, now = (event, reason), self._clock()
        if now - self._said.get(key, -math.inf) < 1:
            self._unsaid[key] += 1
            return
        self._said[key] = now
        more = self._unsaid.pop(key, 0)
        self._log.warning(event, reason=reason, more_since_last=more, **keys)


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
