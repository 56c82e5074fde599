"""The part ``limits`` of the file: budgets of every scope, and the bounds that look back."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from remediator.config.sections import Section
from remediator.model.catalog import LimitsOverride
from remediator.model.lookback import Growth, HandsOff, Relapses, Safeguards, Spread
from remediator.model.unmatched import RecordBound


class LimitsByScope(Section):
    """Bounds on what is done. All of them hold together; each field may be left out."""

    everywhere: LimitsOverride = Field(default=LimitsOverride(), alias="global")
    """Over all systems together. Default 10 in 1h, cooldown 5m, concurrency 3."""
    system: LimitsOverride = LimitsOverride()
    """Of each system. Default 10 in 1h, cooldown 5m, concurrency 1: one change at a time."""
    service: LimitsOverride = LimitsOverride()
    """Of each service. Default 5 in 1h, cooldown 5m, concurrency 1."""
    target: LimitsOverride = LimitsOverride()
    """Of each target, over all services that share it. Default 5 in 1h, cooldown 5m, concurrency 1."""
    relapses: Relapses = Relapses()
    """When a playbook whose successes do not last has to ask first. Default 3 within 1h, in 24h."""
    growth: Growth = Growth()
    """How far our own changes may raise one figure together. Default 2 times, in 7d."""
    spread: Spread = Spread()
    """How many instances and services may be touched within a short time. Default 25 % in 10m."""
    hands_off: HandsOff = timedelta(minutes=30)
    """Time in which nothing is changed back that somebody else, or another playbook, has changed."""
    unmatched: RecordBound = RecordBound()
    """Records of one sender and service about alerts that no playbook takes. Default 20 in 10m."""

    @property
    def safeguards(self) -> Safeguards:
        """The bounds that look back."""
        return Safeguards(
            relapses=self.relapses,
            growth=self.growth,
            spread=self.spread,
            hands_off=self.hands_off,
        )
