"""A circuit breaker is open: close it when what it protects from is over, and not before.

A breaker is a messenger. While the upstream fails it does its work and is left alone; when
several are open there is a common cause, which no reset cures; one that a human forced open or
disabled stays as the human left it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from remediator import (
    Assessment,
    BackendRefused,
    BackendUnavailable,
    Breaker,
    BreakerState,
    Context,
    Duration,
    Endpoint,
    Finding,
    Findings,
    FindingStatus,
    Item,
    Limits,
    Mitigation,
    Parameters,
    PermanentError,
    Playbook,
    Proposal,
    Risk,
    Sample,
    Value,
    Verification,
    alertnames,
)

PROBING = 22.0
"""Seconds that all probes of one upstream may take together."""
LONGEST_PAUSES = timedelta(seconds=12)
"""Time that the pauses between the probes may take together."""
SHOWN = 10
"""Names that one sentence lists at most."""

_EXACT = ("breaker", "pair")
"""Labels that say which breaker is meant."""
_MAYBE = "name"
"""A label that does so only where its value is a listed breaker: it is also used for others."""
_HEALTHY = frozenset({"UP", "OK", "HEALTHY", "PASS"})


class Upstream(Value):
    """Where the health of what a breaker protects from is read."""

    role: str = "upstream"
    """Role of a target of this service, of kind http."""
    path: str = "/health"
    """Path that answers 2xx and JSON while it is healthy."""


class BreakerParameters(Parameters):
    """What a service may set."""

    verification: Verification = Verification(
        hold=timedelta(minutes=10),
        hold_resolved=timedelta(minutes=2),
        deadline=timedelta(minutes=20),
    )
    upstreams: dict[str, Upstream] = Field(default_factory=dict)
    """What each breaker calls, by the breaker's name; one without an entry is never reset."""
    clean_probes: int = Field(default=2, ge=2, le=5)
    """Probes of the upstream that must succeed one after the other (runbooks: 2)."""
    probe_gap: Duration = timedelta(seconds=2)
    """Time between two probes."""
    multi_threshold: int = Field(default=2, ge=2)
    """Number of open breakers from which on there is a common cause (runbooks: 2)."""

    @model_validator(mode="after")
    def _probes_fit(self) -> Self:
        if self.probe_gap * (self.clean_probes - 1) > LONGEST_PAUSES:
            raise ValueError("the pauses between the probes are longer than 12 s together")
        return self


class BreakerList(Value):
    """The breakers of one reading."""

    breakers: tuple[Breaker, ...]

    def of(self, *states: BreakerState) -> tuple[Breaker, ...]:
        """Return those in one of ``states``."""
        return tuple(breaker for breaker in self.breakers if breaker.state in states)

    def named(self, name: str) -> Breaker | None:
        """Return the breaker of that name."""
        return next((breaker for breaker in self.breakers if breaker.name == name), None)


class CircuitBreakerOpen(Playbook[BreakerParameters]):
    """Resets one open circuit breaker once its upstream is proven healthy."""

    matches = (
        alertnames(
            "CircuitBreakerOpen",
            "MultipleCircuitBreakersOpen",
            "TradingPairFailure",
            "PaymentProcessingFailures",
        ),
    )
    targets: ClassVar[Mapping[str, str]] = {"admin": "http"}
    senses = frozenset({"admin"})
    levers = frozenset({"reset_breaker"})
    limits = Limits(
        budget=1, window=timedelta(minutes=30), cooldown=timedelta(minutes=30), concurrency=1
    )
    parameters_type = BreakerParameters

    async def diagnose(self, context: Context) -> Findings:
        """Read the breakers, then probe the upstreams of those that might be reset."""
        findings = await context.gather({"breakers": _breakers(context)})
        listing = findings.evidence("breakers", BreakerList)
        if listing is None or self._many(listing):
            return findings
        checks = {
            _finding_of(breaker): self._upstream(context, breaker, self.parameters.clean_probes)
            for breaker in self._meant(context, listing)
            if breaker.state is BreakerState.OPEN and breaker.name in self.parameters.upstreams
        }
        return Findings(findings | await context.gather(checks, within=PROBING))

    def propose(self, context: Context, findings: Findings) -> Proposal:
        """Reset one breaker, if everything speaks for it."""
        listing = findings.evidence("breakers", BreakerList)
        if listing is None:
            reason = "; ".join(findings.unknown("breakers"))
            return Proposal(reason=f"The circuit breakers cannot be read: {reason}")
        if self._many(listing):
            return Proposal(reason=self._common_cause(listing))
        unlisted = _unlisted(context, listing)
        if unlisted:
            return Proposal(
                reason=f"The alert names {_names(unlisted)}, which the service does not list;"
                " nothing is reset."
            )
        said, chosen = [], None
        for breaker in self._meant(context, listing):
            problem = self._problem(context, findings, breaker)
            if problem:
                said.append(problem)
            elif chosen is None:
                chosen = breaker
        if chosen is None:
            return Proposal(reason=" ".join(said) or "No circuit breaker is open.")
        plan = self._plan(context, findings, chosen)
        return Proposal(mitigations=(plan,), reason=" ".join([plan.reason, *said]))

    async def verify(self, context: Context, mitigation: Mitigation) -> Sample:
        """Better while the breaker is closed and its upstream healthy."""
        name = mitigation.items[0].key
        closed = Breaker(name=name, state=BreakerState.CLOSED)
        checks = {"breaker": _closed(context, name)}
        if name in self.parameters.upstreams:
            checks["upstream"] = self._upstream(context, closed, 1)
        findings = await context.gather(checks)
        statuses = {finding.status for finding in findings.values()}
        assessment = Assessment.BETTER
        if FindingStatus.PROBLEM in statuses:
            assessment = Assessment.NOT_BETTER
        elif FindingStatus.UNKNOWN in statuses:
            assessment = Assessment.CANNOT_TELL
        evidence = " ".join(finding.summary for finding in findings.values())
        return Sample(at=context.now, assessment=assessment, evidence=evidence)

    # --- looking -------------------------------------------------------------------------------

    def _meant(self, context: Context, listing: BreakerList) -> tuple[Breaker, ...]:
        """Return the breakers that the alerts name; those that are not closed if they name none."""
        named = _labelled(context, *_EXACT, _MAYBE)
        chosen = tuple(breaker for breaker in listing.breakers if breaker.name in named)
        if chosen or _labelled(context, *_EXACT):
            return chosen
        return tuple(b for b in listing.breakers if b.state is not BreakerState.CLOSED)

    def _many(self, listing: BreakerList) -> bool:
        """Whether too many are open; one in an unknown state may be open as well."""
        opened = listing.of(BreakerState.OPEN)
        unknown = listing.of(BreakerState.UNKNOWN)
        return bool(opened) and len(opened) + len(unknown) >= self.parameters.multi_threshold

    async def _upstream(self, context: Context, breaker: Breaker, probes: int) -> Finding:
        """Probe until one probe fails; an upstream that does not answer is a problem, not a gap."""
        upstream = self.parameters.upstreams[breaker.name]
        endpoint = _endpoint(context, upstream)
        name, status = _finding_of(breaker), FindingStatus.FINE
        where = f"the upstream of {breaker.name} ({upstream.role}{upstream.path})"
        summary = f"Healthy in {probes} of {probes} probes: {where}."
        for number in range(probes):
            if number:
                await asyncio.sleep(self.parameters.probe_gap.total_seconds())
            problem = await _unhealthy(endpoint, upstream.path)
            if problem:
                status, summary = FindingStatus.PROBLEM, f"Not healthy: {where}: {problem}."
                break
        return Finding(name=name, status=status, summary=summary)

    # --- choosing ------------------------------------------------------------------------------

    def _common_cause(self, listing: BreakerList) -> str:
        opened = listing.of(BreakerState.OPEN)
        unknown = listing.of(BreakerState.UNKNOWN)
        more = f", and unknown: {_names(b.name for b in unknown)}" if unknown else ""
        return (
            f"{len(opened)} circuit breakers are open ({_names(b.name for b in opened)}{more}):"
            " look for their common cause. None is reset; a human decides about an emergency stop."
        )

    def _problem(self, context: Context, findings: Findings, breaker: Breaker) -> str:
        """Say why ``breaker`` is not to be reset, or nothing."""
        if breaker.state in _LEFT_ALONE:
            return f"Breaker {breaker.name} {_LEFT_ALONE[breaker.state]}."
        if breaker.name in _reset_before(context):
            return f"Breaker {breaker.name} opened again after its reset: its cause is not gone."
        if breaker.name not in self.parameters.upstreams:
            return (
                f"Breaker {breaker.name} is open, and that its upstream is healthy cannot be proven:"
                f" set upstreams.{breaker.name}."
            )
        finding = findings.get(_finding_of(breaker))
        if finding is None or finding.status is FindingStatus.UNKNOWN:
            why = finding.summary if finding else "it was not probed"
            return f"Breaker {breaker.name} is open; whether its upstream is healthy: {why}."
        if finding.status is FindingStatus.PROBLEM:
            return f"Breaker {breaker.name} does its work, wait for the upstream: {finding.summary}"
        return ""

    def _plan(self, context: Context, findings: Findings, breaker: Breaker) -> Mitigation:
        proof = findings[_finding_of(breaker)].summary
        return Mitigation(
            kind="reset_breaker",
            target=context.targets["admin"],
            reason=f"Breaker {breaker.name} is open although its cause is gone. {proof}",
            items=(
                Item(
                    key=breaker.name, summary=_described(breaker), identity={"name": breaker.name}
                ),
            ),
            risk=Risk.MEDIUM,
        )


_LEFT_ALONE = {
    BreakerState.CLOSED: "is closed: there is nothing to reset",
    BreakerState.HALF_OPEN: "is half-open: wait, it heals itself",
    BreakerState.FORCED_OPEN: "was forced open by a human and is not touched",
    BreakerState.DISABLED: "was disabled by a human and is not touched",
    BreakerState.UNKNOWN: "is in a state that we do not know, so it is not touched",
}


async def _breakers(context: Context) -> Finding:
    found = await context.breakers().breakers()
    listing = BreakerList(breakers=found)
    off = tuple(b for b in found if b.state is not BreakerState.CLOSED)
    shown = "; ".join(_described(b) for b in off[:SHOWN])
    more = f"; and {len(off) - SHOWN} more" if len(off) > SHOWN else ""
    return Finding(
        name="breakers",
        status=FindingStatus.PROBLEM if off else FindingStatus.FINE,
        summary=f"{len(off)} of {len(found)} circuit breakers are not closed: {shown}{more}."
        if off
        else f"All {len(found)} circuit breakers are closed.",
        value=listing,
    )


async def _closed(context: Context, name: str) -> Finding:
    breaker = BreakerList(breakers=await context.breakers().breakers()).named(name)
    status = FindingStatus.PROBLEM
    if breaker is None or breaker.state is BreakerState.UNKNOWN:
        status = FindingStatus.UNKNOWN
    elif breaker.state is BreakerState.CLOSED:
        status = FindingStatus.FINE
    said = _described(breaker) if breaker else f"{name} is no longer listed"
    return Finding(name="breaker", status=status, summary=f"Breaker {said}.")


async def _unhealthy(endpoint: Endpoint, path: str) -> str:
    """Probe once; say what is wrong, or nothing. ``BackendRefused`` proves neither."""
    try:
        answer: Any = await endpoint.get_json(path)
    except BackendUnavailable as error:
        return str(error)
    except BackendRefused as error:
        raise PermanentError(f"the probe itself was refused, correct it: {error}") from error
    status = answer.get("status") if isinstance(answer, dict) else None
    if status is not None and str(status).upper() not in _HEALTHY:
        return f"its status is {str(status)[:40]!r}"
    return ""


def _endpoint(context: Context, upstream: Upstream) -> Endpoint:
    endpoint = context.endpoint(upstream.role)
    target = context.targets.get(upstream.role)
    if endpoint is None or target is None or target.kind != "http":
        raise PermanentError(f"the service has no http target in the role {upstream.role!r}")
    return endpoint


def _labelled(context: Context, *labels: str) -> set[str]:
    found = (alert.labels.get(label, "") for alert in context.alerts for label in labels)
    return {value for value in found if value}


def _unlisted(context: Context, listing: BreakerList) -> list[str]:
    listed = {breaker.name for breaker in listing.breakers}
    return sorted(_labelled(context, *_EXACT) - listed)


def _reset_before(context: Context) -> set[str]:
    return {item.key for plan in context.tried for item in plan.items}


def _finding_of(breaker: Breaker) -> str:
    return f"upstream {breaker.name}"


def _described(breaker: Breaker) -> str:
    rate = "" if breaker.failure_rate is None else f", {breaker.failure_rate:.0%} of calls failed"
    why = f" ({breaker.reason})" if breaker.reason else ""
    return f"{breaker.name} is {breaker.state.replace('_', ' ')}{rate}{why}"


def _names(names: Iterable[str]) -> str:
    listed = [name[:80] for name in names]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
