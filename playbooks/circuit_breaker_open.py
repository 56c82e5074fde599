"""A circuit breaker is open: close it when what it protects from is over, and not before.

A breaker is a messenger. While the upstream fails it does its work and is waited for; when
several are open there is a common cause, which no reset cures; one that a human opened or
disabled stays as the human left it. Where the breaker's pair is being migrated, the migration is
stopped first: a reset comes into question only after that has not been enough.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping
from datetime import timedelta
from typing import ClassVar

from pydantic import Field

from remediator import (
    Alert,
    AlertStatus,
    Assessment,
    Breaker,
    BreakerList,
    BreakerProof,
    BreakerState,
    Context,
    Finding,
    Findings,
    FindingStatus,
    Item,
    Limits,
    Migration,
    MigrationList,
    Migrations,
    Mitigation,
    Playbook,
    Proposal,
    Risk,
    Sample,
    Value,
    Verification,
    Watched,
    alertnames,
    breaker_described,
    listed_names,
)

RESET, SET = "reset_breaker", "set_migration"

_EMERGENCY = "a human decides about an emergency stop"
_EXACT = ("breaker", "pair")
"""Labels that say which breaker is meant."""
_MAYBE = "name"
"""A label that does so only where its value is a listed breaker: it is also used for others."""
_MANUAL = re.compile(r"(?i)manual|maintenance|operator|activat|emergency|human|do not|don't")


class Hindrance(Value):
    """Why a breaker is not reset."""

    said: str
    passes: bool = False
    """Whether it may pass by itself, so that waiting for it makes sense."""


_Judged = Mitigation | Hindrance


class BreakerParameters(BreakerProof):
    """What a service may set."""

    verification: Verification = Verification(
        hold=timedelta(minutes=10),
        deadline=timedelta(minutes=12),
    )
    manual_reasons: tuple[re.Pattern[str], ...] = (_MANUAL,)
    """Regular expressions: an open breaker whose reason one of them finds was opened by a human."""
    multi_threshold: int = Field(default=2, ge=2)
    """Number of open breakers from which on there is a common cause (runbooks: 2)."""

    def impossible(self) -> dict[str, str]:
        """Nothing is reset where nothing can prove that the cause is gone."""
        proven = self.upstreams or self.error_query
        return {} if proven else {RESET: "neither upstreams nor error_query"}


class CircuitBreakerOpen(Playbook[BreakerParameters]):
    """Resets one open circuit breaker once its cause is proven gone."""

    matches = (
        alertnames(
            "CircuitBreakerOpen",
            "MultipleCircuitBreakersOpen",
            "TradingPairFailure",
            "PaymentProcessingFailures",
        ),
    )
    targets: ClassVar[Mapping[str, str]] = {"admin": "http"}
    senses = frozenset({"admin", "prometheus"})
    levers = frozenset({RESET, SET})
    limits = Limits(  # a migration stopped and a breaker reset; the cooldown keeps others away
        budget=2, window=timedelta(minutes=30), cooldown=timedelta(minutes=30), concurrency=1
    )
    parameters_type = BreakerParameters

    async def diagnose(self, context: Context) -> Findings:
        """Read breakers and migrations, then the proofs for those that might be reset."""
        admin, checks = context.endpoint(), {"breakers": self._breakers(context)}
        if isinstance(admin, Migrations):
            checks["migrations"] = _migrations(admin)
        findings = await context.gather(checks)
        listing = findings.evidence("breakers", BreakerList)
        if listing is None or listing.many(self.parameters.multi_threshold):
            return findings
        proofs: dict[str, Awaitable[Finding]] = {}
        if self.parameters.sees_deadlocks(context):
            proofs["deadlocks"] = self.parameters.deadlocks(context)
        for breaker in self._meant(context, listing):
            if breaker.state is BreakerState.OPEN and not _moving(findings, breaker):
                proofs |= self._proofs(context, breaker.name, self.parameters.clean_probes)
        return Findings(findings | await context.gather(proofs, within=BreakerParameters.probing))

    def propose(self, context: Context, findings: Findings) -> Proposal:
        """Stop one migration or reset one breaker, if everything speaks for it; else wait or not."""
        watched = self.parameters.watched(context, findings)
        proposal = self._choose(context, findings, watched)
        return proposal.model_copy(update={"noted": watched.noted})

    def _choose(self, context: Context, findings: Findings, watched: Watched) -> Proposal:
        listing = findings.evidence("breakers", BreakerList)
        if listing is None:
            reason = "; ".join(findings.unknown("breakers"))
            return Proposal(reason=f"The circuit breakers cannot be read: {reason}")
        if listing.many(self.parameters.multi_threshold):
            return Proposal(reason=f"{listing.common_cause()} None is reset; {_EMERGENCY}.")
        if context.alerts and not _firing(context):
            said = "No alert of the incident fires any more; nothing is reset."
            return Proposal(reason=said, wait=self.parameters.look_again)
        unlisted = sorted(_labelled(context, *_EXACT) - {b.name for b in listing.breakers})
        if unlisted:
            listed = listed_names(unlisted)
            reason = f"The alert names {listed}, which the service does not list"
            return Proposal(reason=f"{reason}; nothing is reset.")
        plans, hindrances, meant = [], [], self._meant(context, listing)
        for breaker in meant:
            judged = self._judge(context, findings, breaker, watched)
            if isinstance(judged, Mitigation):
                plans.append(judged)
            else:
                hindrances.append(judged)
        migrations = findings.evidence("migrations", MigrationList)
        note = migrations.finished(*(breaker.name for breaker in meant)) if migrations else ""
        return self._chosen(plans, hindrances, note)

    async def verify(self, context: Context, mitigation: Mitigation) -> Sample:
        """Better while the breaker is closed and its calls succeed, or its pair is at 0 %.

        After a stopped migration a breaker that is still open is not better: that is what
        leads to its reset, in the next round.
        """
        name = mitigation.items[0].key
        checks: dict[str, Awaitable[Finding]] = {"breaker": _closed(context, name)}
        if mitigation.kind == SET:
            checks["migrations"] = _stopped(context, name)
        else:
            checks |= self._proofs(context, name, 1, now_only=True)
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

    async def _breakers(self, context: Context) -> Finding:
        manual = self.parameters.manual_reasons
        listed = await context.breakers().breakers()
        return BreakerList(breakers=tuple(b.seen_through(manual) for b in listed)).finding()

    def _meant(self, context: Context, listing: BreakerList) -> tuple[Breaker, ...]:
        """Return the breakers that the alerts name; those that are not closed if they name none."""
        named = _labelled(context, *_EXACT, _MAYBE)
        chosen = tuple(breaker for breaker in listing.breakers if breaker.name in named)
        if chosen or _labelled(context, *_EXACT):
            return chosen
        return tuple(b for b in listing.breakers if b.state is not BreakerState.CLOSED)

    def _proofs(
        self, context: Context, name: str, probes: int, *, now_only: bool = False
    ) -> dict[str, Awaitable[Finding]]:
        """Return the checks that can prove that the cause is gone; none where none is configured."""
        proofs: dict[str, Awaitable[Finding]] = {}
        if name in self.parameters.upstreams:
            proofs[f"upstream {name}"] = self.parameters.upstream(context, name, probes)
        if self.parameters.error_query:
            proofs[f"calls {name}"] = self.parameters.calls(context, name, now_only=now_only)
        return proofs

    # --- choosing ------------------------------------------------------------------------------

    def _chosen(self, plans: list[Mitigation], others: list[Hindrance], note: str) -> Proposal:
        """Propose one plan, a migration's stop first; else wait if all that hinders may pass."""
        said = [*(hindrance.said for hindrance in others), *([note] if note else [])]
        if plans:
            best = min(plans, key=lambda plan: plan.kind != SET)
            return Proposal(mitigations=(best,), reason=" ".join([best.reason, *said]))
        if not others:
            said.insert(0, "No circuit breaker is open; the alert has not noticed yet.")
        passes = all(hindrance.passes for hindrance in others)
        wait = self.parameters.look_again if passes else None
        return Proposal(reason=" ".join(said), wait=wait)

    def _judge(
        self, context: Context, findings: Findings, breaker: Breaker, watched: Watched
    ) -> _Judged:
        """Say what is to be done about ``breaker``, or why nothing is."""
        name, tried = breaker.name, _tried(context)
        if (RESET, name) in tried and breaker.state in _TRIPPED:
            said = f"Breaker {name} opened again after its reset: its cause is not gone."
            return Hindrance(said=said)
        if breaker.state in _LEFT_ALONE:
            why = f" ({breaker.reason})" if breaker.reason else ""
            return Hindrance(
                said=f"Breaker {name} {_LEFT_ALONE[breaker.state]}{why}.",
                passes=breaker.state in _PASSES,
            )
        if any(kind == RESET for kind, _ in tried):
            said = f"Breaker {name} is open after another was reset: look for a common cause."
            return Hindrance(said=said)
        migrations = findings.get("migrations")
        if migrations is not None and migrations.status is FindingStatus.UNKNOWN:
            why = migrations.summary
            return Hindrance(said=f"Whether {name} is being migrated cannot be read: {why}.")
        moving = _moving(findings, breaker)
        if moving and (SET, name) in tried:
            said = f"The migration of {name} was stopped and is at {moving.percentage:g} % again."
            return Hindrance(said=f"{said} Somebody is at work on it; nothing is changed.")
        if moving:
            return _stop(context, moving)
        hindrance = self._cause(context, findings, name) or self._locked(findings, name)
        return (
            hindrance
            or self._early(context, watched, name)
            or self._reset(context, findings, breaker)
        )

    def _locked(self, findings: Findings, name: str) -> Hindrance | None:
        said, passes = self.parameters.locked(findings)
        if not said:
            return None
        return Hindrance(said=f"Breaker {name} is open, and not reset: {said}", passes=passes)

    def _early(self, context: Context, watched: Watched, name: str) -> Hindrance | None:
        half_opens = context.breakers().half_opens
        said = self.parameters.early(watched, name, half_opens=half_opens)
        return Hindrance(said=said, passes=True) if said else None

    def _reset(self, context: Context, findings: Findings, breaker: Breaker) -> Mitigation:
        name = breaker.name
        proofs = [findings[f] for f in (f"upstream {name}", f"calls {name}") if f in findings]
        proof = " ".join(finding.summary for finding in proofs)
        return Mitigation(
            kind=RESET,
            target=context.targets["admin"],
            reason=f"Breaker {name} is open although its cause is gone. {proof}",
            items=(Item(key=name, summary=breaker_described(breaker), identity={"name": name}),),
            parameters={"manual_reasons": [m.pattern for m in self.parameters.manual_reasons]},
            risk=Risk.MEDIUM,
        )

    def _cause(self, context: Context, findings: Findings, name: str) -> Hindrance | None:
        """Say why it is not proven that the cause is gone, or nothing. Figures: in the findings."""
        upstream, calls = findings.get(f"upstream {name}"), findings.get(f"calls {name}")
        if upstream is None and calls is None:
            said = f"Breaker {name} is open, and that its upstream is healthy cannot be proven"
            return Hindrance(said=f"{said}: set upstreams.{name} or error_query.")
        if upstream is not None and upstream.status is FindingStatus.UNKNOWN:
            said = f"Breaker {name} is open; whether its upstream is healthy: {upstream.summary}."
            return Hindrance(said=said)
        if upstream is not None and upstream.status is FindingStatus.PROBLEM:
            said = f"Breaker {name} does its work, wait for the upstream: {upstream.summary}"
            return Hindrance(said=said, passes=True)
        if calls is not None and calls.status is FindingStatus.UNKNOWN:
            said = f"Breaker {name} is open; whether its calls succeed again: {calls.summary}."
            return Hindrance(said=said, passes=context.metrics is not None)
        if calls is not None and calls.status is FindingStatus.PROBLEM:
            limit = f"{self.parameters.error_limit:.1%}"
            said = f"Breaker {name} does its work, wait until at most {limit} of the calls fail."
            return Hindrance(said=said, passes=True)
        return None


_LEFT_ALONE = {
    BreakerState.CLOSED: "is closed: there is nothing to reset",
    BreakerState.HALF_OPEN: "is half-open: wait, it heals itself",
    BreakerState.FORCED_OPEN: "counts as opened by a human and is not touched",
    BreakerState.DISABLED: "was disabled by a human and is not touched",
    BreakerState.UNKNOWN: "is in a state that we do not know, so it is not touched",
}
_PASSES = (BreakerState.CLOSED, BreakerState.HALF_OPEN)
_TRIPPED = (BreakerState.OPEN, BreakerState.HALF_OPEN)


async def _migrations(admin: Migrations) -> Finding:
    return MigrationList(migrations=await admin.migrations()).finding()


async def _closed(context: Context, name: str) -> Finding:
    breaker = BreakerList(breakers=await context.breakers().breakers()).named(name)
    status = FindingStatus.PROBLEM
    if breaker is None or breaker.state is BreakerState.UNKNOWN:
        status = FindingStatus.UNKNOWN
    elif breaker.state is BreakerState.CLOSED:
        status = FindingStatus.FINE
    said = breaker_described(breaker) if breaker else f"{name} is no longer listed"
    return Finding(name="breaker", status=status, summary=f"Breaker {said}.")


async def _stopped(context: Context, name: str) -> Finding:
    return MigrationList(migrations=await context.migrations().migrations()).stopped(name)


def _firing(context: Context) -> list[Alert]:
    return [alert for alert in context.alerts if alert.status is AlertStatus.FIRING]


def _labelled(context: Context, *labels: str) -> set[str]:
    return {a.labels.get(label, "") for a in _firing(context) for label in labels} - {""}


def _tried(context: Context) -> set[tuple[str, str]]:
    return {(plan.kind, item.key) for plan in context.tried for item in plan.items}


def _moving(findings: Findings, breaker: Breaker) -> Migration | None:
    """Return the migration of the pair of the breaker's name, where one is under way."""
    listing = findings.evidence("migrations", MigrationList)
    return listing.under_way(breaker.name) if listing is not None else None


def _stop(context: Context, moving: Migration) -> Mitigation:
    why = (
        f"Breaker {moving.pair} is open while {moving.percentage:g} % of {moving.pair} is migrated:"
        " the migration goes back to 0 % before the breaker is touched."
    )
    return MigrationList.stop(context.targets["admin"], (moving,), why, Risk.LOW)
