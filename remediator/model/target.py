"""What may be changed: a target of a service, how far, and at what risk."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from remediator.model.base import Value

# --- the catalogue's side of things -----------------------------------------------------------


class Mode(StrEnum):
    """How far the service may go. Ordered: each mode includes what the ones before it do."""

    OBSERVE = "observe"
    SHADOW = "shadow"
    APPROVE = "approve"
    AUTO = "auto"


class Risk(StrEnum):
    """How much a mitigation can hurt when it is the wrong one."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Target(Value):
    """One thing that may be acted on. Comes from the catalogue only, never from an alert."""

    system: str
    service: str
    role: str
    """The service's name for it: ``database``, ``workload``, ``admin``."""
    kind: str
    """Kind of backend: ``postgres``, ``http``, ``kubernetes``, ``redis``."""
    name: str
    """The backend's name in the configuration."""
    locator: dict[str, str] = Field(default_factory=dict)
    """What inside the backend is meant, such as namespace and deployment."""

    @property
    def key(self) -> str:
        """Identity for locks and budgets: two services that share a database share this key."""
        inner = ",".join(f"{k}={v}" for k, v in sorted(self.locator.items()))
        return f"{self.kind}/{self.name}" + (f"/{inner}" if inner else "")
