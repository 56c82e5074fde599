"""Bounds that look back: at what our own changes came to, over all playbooks together.

The values of the configuration; ``kinds`` says which kinds of change each is about. What happened is
read in the reservation's transaction; ``remediation.limits`` judges it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import ConfigDict, Field

from remediator.model.base import Value
from remediator.model.duration import Duration, format_duration
from remediator.model.kinds import KINDS, STRICTEST, ApprovalClass, Kind
from remediator.model.limits import Bound

HandsOff = Annotated[Duration, Field(strict=True)]
_Period = Annotated[Duration, Field(strict=True, gt=timedelta(0))]


class _Rule(Value):
    model_config = ConfigDict(use_attribute_docstrings=True, hide_input_in_errors=True)


class Relapses(_Rule):
    """When a playbook whose successes do not last has to ask first."""

    count: Annotated[int, Field(ge=1, strict=True)] = 3
    """So many incidents that were mitigated while their alert came back."""
    within: _Period = timedelta(hours=1)
    """Time after the end of an incident in which a new one of the same cause is a relapse."""
    window: _Period = timedelta(hours=24)
    """Time over which they are counted; once it has passed, nothing is held against it."""


class Growth(_Rule):
    """How far our own changes may raise one figure of one target, one upon the other."""

    factor: Annotated[float, Field(gt=1, le=10)] = 2.0
    """Times the figure before the first of them."""
    window: _Period = timedelta(days=7)
    """Time over which those that stand are added up; what was taken back does not count."""


class Spread(_Rule):
    """How much may be touched within a short time, by all playbooks together."""

    instances: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of a workload's instances, one at least."""
    services: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of all configured services, `at_least` in any case."""
    at_least: Annotated[int, Field(ge=1, strict=True)] = 3
    """Services that may be changed however few there are."""
    window: _Period = timedelta(minutes=10)
    """Time that counts; a change in flight counts however old it is."""


class Safeguards(Value):
    """All of them."""

    relapses: Relapses = Relapses()
    growth: Growth = Growth()
    spread: Spread = Spread()
    hands_off: HandsOff = timedelta(minutes=30)
    """Time in which nothing is changed back that somebody else, or another playbook, has changed."""

    @property
    def looks_back(self) -> timedelta:
        """Time that what was done is needed for."""
        windows = (self.relapses.window, self.growth.window, self.spread.window)
        return max(*windows, self.hands_off)

    def services_at_once(self, services: int) -> int:
        """Return how many of so many services may be changed within the window."""
        return max(self.spread.at_least, int(services * self.spread.services))

    def instances_at_once(self, instances: int, share: float = 1.0) -> int:
        """Return how many of so many instances may be touched within the window.

        ``share`` is the most that the kind of change allows.
        """
        return max(1, int(instances * min(self.spread.instances, share)))

    def described(self, services: int) -> str:
        """Say all of it in one sentence, for so many services."""
        back, most, spread = self.relapses, self.growth, self.spread
        return (
            f"a playbook whose alert was back within {format_duration(back.within)} {back.count}"
            f" times in {format_duration(back.window)} asks first; a figure is raised"
            f" {most.factor:g} times at most in {format_duration(most.window)}; within"
            f" {format_duration(spread.window)} at most {spread.instances:.0%} of a workload's"
            f" instances are ended and {self.services_at_once(services)} services changed; what"
            f" others changed is left alone for {format_duration(self.hands_off)}"
        )


class Allowance(Value):
    """Everything that one mitigation has to keep."""

    bounds: tuple[Bound, ...]
    """Those of every scope, widest first."""
    safeguards: Safeguards = Safeguards()
    services: int = 1
    """How many services are configured."""
    approval: ApprovalClass = ApprovalClass.AUTO
    """What the service says of its kind."""
    kinds: dict[str, Kind] = Field(default_factory=lambda: dict(KINDS))
    """What is declared of each kind of change."""

    def kind(self, name: str) -> Kind:
        """Return what is declared of ``name``; the strictest where nothing is."""
        return self.kinds.get(name, STRICTEST)
