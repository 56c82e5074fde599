"""LIMIT: what the bounds say to one more mitigation. Pure; the reservation asks it under lock.

Refusals for good come first, so that nobody waits for what will be refused anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from remediator.kinds import ApprovalClass
from remediator.mitigation.safeguarding import Plan, demoted, safeguard
from remediator.model import Bound, Decision, Effect, Preparation, format_duration
from remediator.safeguards import Allowance
from remediator.store.ledger import Standing

WAITED_OUT = timedelta(minutes=5)
"""Longest rest of a cooldown that is waited for; more is refused, so that a human has the time."""


def judge(
    standing: Standing, allowance: Allowance, plan: Plan, *, agreed: bool = False
) -> Decision:
    """Allow one more mitigation, deny it for good, or say what has to pass first.

    Or ask a human first, unless one has ``agreed`` already.
    """
    bounds = allowance.bounds
    if standing.paused is not None:
        halt = standing.paused
        return Decision(effect=Effect.WAIT, code=halt.code, reason=halt.reason)
    if not standing.firing:
        reason = "no alert of the incident is firing any more"
        return Decision(effect=Effect.DENY, code="resolved", reason=reason)
    return (
        _forbidden(allowance, plan)
        or _over_budget(standing, bounds)
        or _held(standing)
        or safeguard(standing, allowance, plan)
        or _cooling_down(standing, bounds)
        or _busy(standing, bounds)
        or (None if agreed else _asked_by(allowance, plan) or demoted(standing, allowance))
        or Decision(effect=Effect.ALLOW, code="allowed", reason="within all limits")
    )


def _forbidden(allowance: Allowance, plan: Plan) -> Decision | None:
    if allowance.approval is not ApprovalClass.NEVER:
        return None
    kind = _kind(plan)
    reason = f"the configuration forbids {kind} on this service (mitigations: {kind}: never)"
    return Decision(effect=Effect.DENY, code="forbidden", reason=f"{reason}; a human may do it")


def _to_be_asked(allowance: Allowance, plan: Plan) -> Decision | None:
    needed, kind = allowance.approval.approvals, _kind(plan)
    if not needed:
        return None
    who = "a human has" if needed == 1 else f"{needed} different persons have"
    reason = f"{who} to approve {kind} on this service (mitigations: {kind}: {allowance.approval})"
    return Decision(effect=Effect.ASK, code="kind", reason=reason)


def _kind(plan: Plan) -> str:
    return plan.mitigation.kind if isinstance(plan, Preparation) else plan.kind


def _left_to_a_human(plan: Plan) -> Decision | None:
    """Ask a human first where the playbook itself leaves the choice to one."""
    mitigation = plan.mitigation if isinstance(plan, Preparation) else plan
    if mitigation.asks is None:
        return None
    reason = f"{mitigation.asks}: a human has to agree first"
    return Decision(effect=Effect.ASK, code="asks", reason=reason)


def _asked_by(allowance: Allowance, plan: Plan) -> Decision | None:
    return _to_be_asked(allowance, plan) or _left_to_a_human(plan)


def _over_budget(standing: Standing, bounds: Sequence[Bound]) -> Decision | None:
    for bound, usage in zip(bounds, standing.usages, strict=True):
        limits = bound.limits
        if usage.reserved >= limits.budget:
            reason = (
                f"the budget of {bound.scope} is used up: {usage.reserved} of {limits.budget}"
                f" mitigations in {format_duration(limits.window)}"
            )
            return Decision(effect=Effect.DENY, code="budget", reason=reason)
    return None


def _held(standing: Standing) -> Decision | None:
    """Refuse a second temporary change of a kind: the first could not be taken back any more."""
    if standing.held_by is None:
        return None
    reason = (
        f"the temporary change that {standing.held_by} made to this target has not been taken"
        " back yet; a human has to decide about another one of the same kind"
    )
    return Decision(effect=Effect.DENY, code="held", reason=reason)


def _cooling_down(standing: Standing, bounds: Sequence[Bound]) -> Decision | None:
    if standing.last_on_target is None:
        return None
    longest = max(bounds, key=lambda bound: bound.limits.cooldown)
    passed = standing.now - standing.last_on_target
    if passed >= longest.limits.cooldown:
        return None
    reason = (
        f"another incident changed this target {int(passed.total_seconds())} s ago; the cooldown"
        f" of {longest.scope} is {format_duration(longest.limits.cooldown)}"
    )
    left = longest.limits.cooldown - passed
    if left > WAITED_OUT:
        return Decision(effect=Effect.DENY, code="cooldown", reason=reason)
    return Decision(effect=Effect.WAIT, code="cooldown", reason=reason, again_in=left)


def _busy(standing: Standing, bounds: Sequence[Bound]) -> Decision | None:
    if standing.busy_with is not None:
        reason = f"a mitigation by {standing.busy_with} on the same target is in progress"
        return Decision(effect=Effect.WAIT, code="target_busy", reason=reason)
    for bound, usage in zip(bounds, standing.usages, strict=True):
        if usage.in_flight >= bound.limits.concurrency:
            reason = f"{usage.in_flight} mitigations of {bound.scope} are in progress already"
            effect = Effect.WAIT if bound.limits.concurrency else Effect.DENY
            return Decision(effect=effect, code="concurrency", reason=reason)
    return None
