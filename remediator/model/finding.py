"""What a diagnosis found, and whether its data sources can be trusted."""

from __future__ import annotations

from enum import StrEnum

from pydantic import SerializeAsAny

from remediator.model.base import Value

# --- diagnosis --------------------------------------------------------------------------------


class FindingStatus(StrEnum):
    """What a finding says. ``unknown`` is missing data: it is never ``fine``."""

    FINE = "fine"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


class Finding(Value):
    """One piece of evidence from one read-only check."""

    name: str
    status: FindingStatus
    summary: str
    """One sentence for a human, with the figures."""
    value: SerializeAsAny[Value] | None = None
    """The evidence itself, typed by the check that made it; None when unknown."""


class SenseState(StrEnum):
    """Whether a backend that we read can be trusted right now."""

    OK = "ok"
    IMPAIRED = "impaired"
    ABSENT = "absent"
    """Not configured, which is not impaired."""


class Sense(Value):
    """The result of probing one backend that a service's playbooks read."""

    name: str
    state: SenseState
    reason: str = ""
