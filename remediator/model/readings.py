"""What single readings of the outside are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

from pydantic import AwareDatetime

from remediator.model.base import Value

# --- readers ----------------------------------------------------------------------------------


class Point(Value):
    """One sample of one series; never NaN (NaN is no data, and no data is an error)."""

    labels: dict[str, str]
    at: AwareDatetime
    value: float


class BreakerState(StrEnum):
    """What a circuit breaker does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    """It lets a few calls through to find out whether it may close: it heals itself."""
    FORCED_OPEN = "forced_open"
    """A human opened it; it never closes by itself."""
    DISABLED = "disabled"
    """A human switched it off, or lets it only count: it protects nothing."""
    UNKNOWN = "unknown"


class Breaker(Value):
    """One circuit breaker of one instance of a service."""

    name: str
    state: BreakerState
    failure_rate: float | None = None
    """Share of failed calls, 0..1; None where the service does not say."""
    reason: str = ""
    """Why it is open, in the service's words, where it says so."""

    def seen_through(self, manual: Iterable[re.Pattern[str]]) -> Breaker:
        """Return it as forced open where it is open for a reason that only a human gives."""
        if self.state is not BreakerState.OPEN or not any(m.search(self.reason) for m in manual):
            return self
        return self.model_copy(update={"state": BreakerState.FORCED_OPEN})


class Migration(Value):
    """How much of one trading pair's traffic a gradual migration has moved."""

    pair: str
    percentage: float
    """0..100; 0 means that the old way takes everything."""
