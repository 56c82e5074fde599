"""Circuit breakers and migrations as one look found them, and whether calls succeed again.

Playbooks that need that proof take their parameters from ``CallsGate``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Self

from pydantic import Field, model_validator

from remediator.model.base import Value
from remediator.model.duration import Duration, format_duration
from remediator.model.errors import BackendUnavailable, PermanentError
from remediator.model.finding import Finding, FindingStatus
from remediator.model.mitigation import Item, Mitigation
from remediator.model.readings import Breaker, BreakerState, Migration
from remediator.model.target import Risk, Target
from remediator.playbook.base import Context, Parameters
from remediator.playbook.promql import quote_label

FINISHED = 100.0
"""Percentage at which a migration is no longer under way."""
SHOWN = 10
"""Names that one sentence lists at most."""
_SAMPLES = 20
"""Samples that the time of a gate is cut into."""
_MISQUOTED = re.compile(r"""["']\{breaker\}|\{breaker\}["']|~\s*\{breaker\}""")


class BreakerList(Value):
    """The circuit breakers of one reading."""

    breakers: tuple[Breaker, ...]

    def of(self, *states: BreakerState) -> tuple[Breaker, ...]:
        """Return those in one of ``states``."""
        return tuple(breaker for breaker in self.breakers if breaker.state in states)

    def named(self, name: str) -> Breaker | None:
        """Return the breaker of that name."""
        return next((breaker for breaker in self.breakers if breaker.name == name), None)

    def many(self, threshold: int) -> bool:
        """Whether ``threshold`` are open; one in an unknown state may be open as well."""
        opened, unknown = self.of(BreakerState.OPEN), self.of(BreakerState.UNKNOWN)
        return bool(opened) and len(opened) + len(unknown) >= threshold

    def common_cause(self) -> str:
        """Say which are open together, and which may be."""
        opened, unknown = self.of(BreakerState.OPEN), self.of(BreakerState.UNKNOWN)
        more = f", and unknown: {listed_names(b.name for b in unknown)}" if unknown else ""
        return (
            f"{len(opened)} circuit breakers are open"
            f" ({listed_names(b.name for b in opened)}{more}): look for their common cause."
        )

    def finding(self) -> Finding:
        """Say which of them are not closed."""
        off = tuple(b for b in self.breakers if b.state is not BreakerState.CLOSED)
        shown = "; ".join(breaker_described(b) for b in off[:SHOWN])
        more = f"; and {len(off) - SHOWN} more" if len(off) > SHOWN else ""
        total = len(self.breakers)
        return Finding(
            name="breakers",
            status=FindingStatus.PROBLEM if off else FindingStatus.FINE,
            summary=f"{len(off)} of {total} circuit breakers are not closed: {shown}{more}."
            if off
            else f"All {total} circuit breakers are closed.",
            value=self,
        )


class MigrationList(Value):
    """The gradual migrations of one reading."""

    migrations: tuple[Migration, ...]

    def of(self, pair: str) -> Migration | None:
        """Return the migration of ``pair``; None where it was never migrated."""
        return next((one for one in self.migrations if one.pair == pair), None)

    @property
    def moving(self) -> tuple[Migration, ...]:
        """Return those that are under way; at 100 % one is finished, and there is no way back."""
        return tuple(one for one in self.migrations if 0 < one.percentage < FINISHED)

    def under_way(self, pair: str) -> Migration | None:
        """Return the migration of ``pair`` while it is under way."""
        return next((one for one in self.moving if one.pair == pair), None)

    def finished(self, *pairs: str) -> str:
        """Say which, of ``pairs`` or of all, are finished, so that a human thinks of it."""
        done = [m.pair for m in self.migrations if m.percentage >= FINISHED]
        named = listed_names(pair for pair in done if not pairs or pair in pairs)
        return named and f"Migrated to 100 %, which only a human takes back: {named}."

    def finding(self) -> Finding:
        """Say which pairs are being migrated; that is a fact and not a problem."""
        moving = [f"{m.pair} at {m.percentage:g} %" for m in self.moving]
        said = (
            f"Pairs are being migrated: {listed_names(moving)}."
            if moving
            else "No pair is being migrated."
        )
        said = " ".join(filter(None, [said, self.finished()]))
        return Finding(name="migrations", status=FindingStatus.FINE, summary=said, value=self)

    def stopped(self, *pairs: str) -> Finding:
        """Say whether ``pairs`` are at 0; one that is no longer listed proves nothing."""
        gone = [pair for pair in pairs if self.of(pair) is None]
        meant = [one for one in self.migrations if one.pair in pairs]
        said = [f"{one.pair} is at {one.percentage:g} %" for one in meant]
        status = FindingStatus.UNKNOWN if gone else FindingStatus.FINE
        if any(one.percentage > 0 for one in meant):
            status = FindingStatus.PROBLEM
        summary = "; ".join(said + [f"{pair} is no longer listed" for pair in gone])
        return Finding(name="migrations", status=status, summary=f"Migrations: {summary}.")

    @staticmethod
    def stop(target: Target, moving: Iterable[Migration], why: str, risk: Risk) -> Mitigation:
        """Propose to set ``moving`` to 0; only a human sets them back."""
        items = (
            Item(
                key=one.pair,
                summary=f"at {one.percentage:g} %",
                identity={"pair": one.pair, "percentage": one.percentage},
            )
            for one in moving
        )
        return Mitigation(
            kind="set_migration",
            target=target,
            reason=why,
            items=tuple(items),
            parameters={"percentage": 0},
            risk=risk,
        )


class CallsGate(Parameters):
    """The proof that a breaker's calls succeed again, from the service's Prometheus."""

    error_query: str | None = None
    """PromQL for the share of failed calls, one series; `{breaker}` is the quoted name."""
    error_limit: float = Field(default=0.01, ge=0, le=0.01)
    """Share of failed calls up to which the cause is gone (runbooks: 0.01)."""
    error_for: Duration = Field(default=timedelta(minutes=5), ge=timedelta(minutes=5))
    """Time over which every sample must keep it (runbooks: 5 minutes)."""

    @model_validator(mode="after")
    def _name_is_a_whole_string(self) -> Self:
        if self.error_query and _MISQUOTED.search(self.error_query):
            raise ValueError("error_query: write pair={breaker}, without quotes and without ~")
        return self

    async def calls(self, context: Context, name: str, *, now_only: bool = False) -> Finding:
        """Read the share of failed calls of breaker ``name`` over the time, or its last sample.

        Raises ``BackendUnavailable`` where a sample is missing: a gap proves nothing.
        """
        metrics, query = context.metrics, self.error_query
        if metrics is None or query is None:
            raise PermanentError("error_query is set, but the service has no Prometheus")
        step = timedelta(seconds=max(1, self.error_for // timedelta(seconds=_SAMPLES)))
        steps = 0 if now_only else -(-self.error_for // step)
        end = context.now.replace(microsecond=0)  # whole seconds, so that the last step is there
        points = await metrics.range(
            query.replace("{breaker}", quote_label(name)),
            start=end - steps * step,
            end=end,
            step=step,
        )
        over = "now" if now_only else f"in the last {format_duration(steps * step)}"
        if len({tuple(sorted(point.labels.items())) for point in points}) > 1:
            raise BackendUnavailable("error_query returns several series; aggregate it to one")
        if len({point.at for point in points}) < steps + 1:
            got = f"{len(points)} of {steps + 1} samples"
            raise BackendUnavailable(f"the share of failed calls is not known throughout: {got}")
        if any(point.value < 0 for point in points):
            raise BackendUnavailable("the share of failed calls is negative: correct error_query")
        return self._judged(name, max(point.value for point in points), over)

    def _judged(self, name: str, worst: float, over: str) -> Finding:
        fine = worst <= self.error_limit
        limit = f"at most {self.error_limit:.1%} may"
        return Finding(
            name=f"calls {name}",
            status=FindingStatus.FINE if fine else FindingStatus.PROBLEM,
            summary=f"Up to {worst:.1%} of the calls of {name} failed {over}; {limit}.",
        )


def breaker_described(breaker: Breaker) -> str:
    """Write a breaker with its state and figures."""
    rate = "" if breaker.failure_rate is None else f", {breaker.failure_rate:.0%} of calls failed"
    why = f" ({breaker.reason})" if breaker.reason else ""
    return f"{breaker.name} is {breaker.state.replace('_', ' ')}{rate}{why}"


def listed_names(found: Iterable[str]) -> str:
    """List names for a human, not endlessly."""
    listed = [name[:80] for name in found]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
