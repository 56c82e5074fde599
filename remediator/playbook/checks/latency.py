"""How slow a service is now, from whichever source it has, and how slow it was before.

Playbooks whose service has a latency take their parameters from ``LatencySource``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from remediator.model.alert import AlertStatus
from remediator.model.base import Value
from remediator.model.errors import BackendUnavailable
from remediator.model.finding import Finding, FindingStatus
from remediator.model.ports import Metrics
from remediator.playbook.base import Context, Parameters

STEP = timedelta(minutes=1)
"""Between two samples of the past."""
ENOUGH = 0.8
"""Share of the samples of a time that must be there for it to be known."""


class Latency(Value):
    """One measured latency beside its limit, both in the unit of the source."""

    value: float = Field(ge=0, allow_inf_nan=False, strict=True)
    limit: float
    unit: str = ""

    @property
    def within(self) -> bool:
        """Whether it is not above its limit."""
        return self.value <= self.limit

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.value:.4g}{unit}, the limit {self.limit:g}{unit}"


class PastLatency(Value):
    """What a stretch of the past says: its worst sample, and how much of it is known."""

    worst: float = Field(ge=0, allow_inf_nan=False)
    limit: float
    unit: str = ""
    samples: int
    expected: int

    @property
    def doubt(self) -> str | None:
        """Why it does not prove that the latency was within its limit; None where it does."""
        if self.samples < ENOUGH * self.expected:
            return f"only {self.samples} of {self.expected} samples are there"
        if self.worst > self.limit:
            unit = f" {self.unit}" if self.unit else ""
            return f"it was {self.worst:.4g}{unit} at its worst, above {self.limit:g}{unit}"
        return None


class LatencySource(Parameters):
    """Where the latency comes from; without a source, the alert's sender has the only word."""

    latency_query: str | None = None
    """PromQL for the latency, one number in the unit of `latency_limit`."""
    latency_path: str | None = None
    """Path on the ``admin`` service that answers a JSON object with the latency in it."""
    latency_field: str | None = None
    """Where in that object it is; dots lead into inner ones."""
    latency_limit: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Most that it may be."""
    latency_unit: str = Field(default="", max_length=10)
    """Unit of query or field and of the limit, such as `ms` or `s`, shown behind the figures."""

    @property
    def is_measured(self) -> bool:
        """Whether a source is set."""
        return self.latency_limit is not None

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        if self.latency_query and self.latency_path:
            raise ValueError("give latency_query or latency_path, not both")
        if bool(self.latency_path) != bool(self.latency_field):
            raise ValueError("latency_path and latency_field need each other")
        has_source = bool(self.latency_query or self.latency_path)
        if self.is_measured and not has_source:
            source = "latency_query, or latency_path with latency_field"
            raise ValueError(f"latency_limit needs a source of the latency: {source}")
        if has_source and not self.is_measured:
            source = "latency_query" if self.latency_query else "latency_path"
            raise ValueError(f"{source} needs latency_limit: the most that the latency may be")
        return self

    async def latency(self, context: Context) -> Latency:
        """Measure it now; ``BackendUnavailable`` for an answer that is missing or no number."""
        if self.latency_query:
            value: Any = await prometheus(context).scalar(self.latency_query)
        else:
            value = await self._field(context)
        try:
            return Latency(value=value, limit=self.latency_limit or 0.0, unit=self.latency_unit)
        except ValidationError as error:
            raise BackendUnavailable(f"the latency makes no sense: {value!r:.80}") from error

    async def latency_finding(self, context: Context) -> Finding:
        """Measure it, or take the sender's word where it is not measured."""
        if not self.is_measured:
            return _senders_word(context)
        latency = await self.latency(context)
        return Finding(
            name="latency",
            status=FindingStatus.FINE if latency.within else FindingStatus.PROBLEM,
            summary=f"The latency is {latency}.",
            value=latency,
        )

    async def latency_between(
        self, context: Context, start: datetime, end: datetime
    ) -> PastLatency | None:
        """Measure the past; None where no query is set, an error where there are no samples."""
        if not self.latency_query:
            return None
        points = await prometheus(context).range(
            self.latency_query, start=start, end=end, step=STEP
        )
        inside = [point for point in points if start <= point.at <= end]
        if len({tuple(sorted(point.labels.items())) for point in inside}) != 1:
            raise BackendUnavailable("the past latency is not exactly one series")
        try:
            return PastLatency(
                worst=max(point.value for point in inside),
                limit=self.latency_limit or 0.0,
                unit=self.latency_unit,
                samples=len({point.at for point in inside}),
                expected=int((end - start) / STEP),
            )
        except ValidationError as error:
            raise BackendUnavailable("the past latency makes no sense") from error

    async def _field(self, context: Context) -> Any:
        admin = context.endpoint()
        if admin is None:
            raise BackendUnavailable("the latency is read from the target admin: there is none")
        found: Any = await admin.get_json(self.latency_path or "")
        for name in (self.latency_field or "").split("."):
            if not isinstance(found, dict) or name not in found:
                raise BackendUnavailable(f"{self.latency_path} has no {self.latency_field!r}")
            found = found[name]
        return float(found) if isinstance(found, int) and not isinstance(found, bool) else found


def _senders_word(context: Context) -> Finding:
    firing = sorted({a.name for a in context.alerts if a.status is AlertStatus.FIRING})
    if not context.alerts:
        status, said = FindingStatus.UNKNOWN, "no alert is known, and nothing is measured"
    elif firing:
        status, said = FindingStatus.PROBLEM, f"Not measured; {', '.join(firing)} fires."
    else:
        status, said = FindingStatus.FINE, "Not measured; no alert of the incident fires."
    return Finding(name="latency", status=status, summary=said)


def prometheus(context: Context) -> Metrics:
    """Return the service's Prometheus; ``BackendUnavailable`` where it has none."""
    metrics = context.metrics
    if metrics is None:
        raise BackendUnavailable("a query is set, but the service has no Prometheus")
    return metrics
