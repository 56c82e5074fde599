"""Whether a change helped: samples over time, and what they come to."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

from pydantic import AwareDatetime, Field, JsonValue

from remediator.model.base import Value
from remediator.model.duration import Duration


class Verification(Value):
    """How long a mitigation is watched before it is judged."""

    interval: Duration = timedelta(seconds=15)
    """Time between two samples."""
    hold: Duration = timedelta(minutes=5)
    """Time over which every sample must be better."""
    hold_resolved: Duration | None = None
    """The same, once the sender of the alert itself says that it resolved; None: as long as
    ``hold``. The runbooks' times do not become shorter because an alert resolved."""
    deadline: Duration = timedelta(minutes=10)
    """Time after which it is judged as it stands."""
    resolve_within: Duration = timedelta(minutes=15)
    """Time for the alert to resolve after a good verdict; then a human looks."""

    def held(self, *, resolved: bool) -> timedelta:
        """Return how long it has to be better, where the alert ``resolved`` or still fires."""
        shorter = self.hold_resolved if resolved else None
        return self.hold if shorter is None else shorter


# --- verification -----------------------------------------------------------------------------


class Assessment(StrEnum):
    """Three-valued: missing data is neither success nor failure."""

    BETTER = "better"
    NOT_BETTER = "not_better"
    CANNOT_TELL = "cannot_tell"


FINAL = "final"
"""In the ``data`` of a sample: true where no later look can say otherwise."""


class Sample(Value):
    """One look at whether a mitigation helped, with the evidence."""

    at: AwareDatetime
    assessment: Assessment
    evidence: str
    data: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether no later look can say otherwise, as ``data`` notes: nothing is waited for then."""
        return self.data.get(FINAL) is True


class Verdict(Value):
    """What several samples, held over time, say together."""

    assessment: Assessment
    reason: str
