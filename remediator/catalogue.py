"""The service catalogue: which systems exist, how each is reached, its limits and its mode.

Built once by ``settings``; pure lookups from then on. Nothing in an alert addresses a backend:
labels select among these services by exact match and name nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, JsonValue

from remediator.model import Bound, Limits, Mode, Risk, Target, Value


class EnabledPlaybook(Value):
    """One playbook switched on for one service."""

    name: str
    modes: dict[Risk, Mode]
    """How far it may go, by the risk of what it proposes."""
    limits: Limits | None = None
    """Bounds of this playbook on this service; None for the playbook's own."""
    alertnames: tuple[str, ...] = ()
    """Alert names that it takes here besides its own."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """As written in the file; the playbook's own model reads them."""


class Service(Value):
    """One service of one system."""

    system: str
    name: str
    match: dict[str, str]
    """Labels that an alert must carry, the system's and the service's together."""
    targets: dict[str, Target]
    """By role."""
    prometheus: str | None
    """Name of the Prometheus that watches it; None where none is configured."""
    playbooks: dict[str, EnabledPlaybook]
    limits: Limits
    system_limits: Limits
    target_limits: Limits

    def bounds(
        self, everywhere: Limits, playbook: str, own: Limits, target: Target
    ) -> tuple[Bound, ...]:
        """List every bound that a mitigation of ``target`` has to keep, widest first."""
        return (
            Bound(scope="global", limits=everywhere),
            Bound(scope=f"system/{self.system}", limits=self.system_limits),
            Bound(scope=f"service/{self.system}/{self.name}", limits=self.limits),
            Bound(scope=f"playbook/{self.system}/{self.name}/{playbook}", limits=own),
            Bound(scope=f"target/{target.key}", limits=self.target_limits),
        )


class Catalogue(Value):
    """Every service that the remediator may look at."""

    services: tuple[Service, ...] = ()
    limits: Limits
    """The global bounds."""

    def locate(self, labels: Mapping[str, str]) -> Service | None:
        """Return the service whose labels the alert carries; the most specific one wins.

        Services that match equally well are taken in the order of the file.
        """
        matching = [s for s in self.services if s.match.items() <= labels.items()]
        return max(matching, key=lambda s: len(s.match), default=None)

    def service(self, system: str | None, name: str | None) -> Service | None:
        """Return the service of that name."""
        return next((s for s in self.services if (s.system, s.name) == (system, name)), None)
