"""LIMITS: budgets, cooldowns and the bounds that look back, against what the ledger says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

from remediator.model.duration import format_duration
from remediator.model.kinds import ApprovalClass
from remediator.model.limits import Bound
from remediator.model.lookback import Allowance, Growth, Spread
from remediator.model.mitigation import Decision, Effect, Figure, Instances, Mitigation, Preparation
from remediator.model.transition import LimitUsage, Past

Plan = Mitigation | Preparation
"""What is proposed, or what the live state made of it."""
_SHOWN = 5


def safeguard(standing: LimitUsage, allowance: Allowance, plan: Plan) -> Decision | None:
    """Deny what our own past forbids, or nothing."""
    return (
        _swaying(standing, allowance, plan)
        or _sweeping(standing, allowance)
        or _growing(standing, allowance, plan)
        or _spreading(standing, allowance, plan)
    )


def demoted(standing: LimitUsage, allowance: Allowance) -> Decision | None:
    """Ask a human first where what worked did not last: it treats a symptom."""
    rule = allowance.safeguards.relapses
    back = [
        one.incident
        for one in standing.past.mended
        if one.back_at is not None and one.back_at - one.at <= rule.within
    ]
    if len(back) < rule.count:
        return None
    shown = ", ".join(back[-max(rule.count, _SHOWN) :])
    reason = (
        f"it worked {len(back)} times in {format_duration(rule.window)}, and each time the alert"
        f" was back within {format_duration(rule.within)} ({shown}): a human has to agree first"
    )
    return Decision(effect=Effect.ASK, code="demoted", reason=reason)


def _denied(code: str, reason: str) -> Decision:
    return Decision(effect=Effect.DENY, code=code, reason=reason)


# --- to and fro ---------------------------------------------------------------------------------


def _swaying(standing: LimitUsage, allowance: Allowance, plan: Plan) -> Decision | None:
    """Refuse to change back what another incident or playbook of ours changed just now."""
    hands_off = allowance.safeguards.hands_off
    for past in reversed(standing.past.on_target):
        ago = standing.now - past.at
        if ago >= hands_off or not past.stands or past.incident == standing.incident:
            continue
        how = _undoes(plan, past, allowance)
        if how is not None:
            reason = (
                f"{past.playbook} ({past.incident}) {how} {_seconds(ago.total_seconds())} ago,"
                f" and this would change it back; within {format_duration(hands_off)} that is a"
                " human's decision"
            )
            return _denied("oscillation", reason)
    return None


def _undoes(plan: Plan, past: Past, allowance: Allowance) -> str | None:
    kind = _mitigation(plan).kind
    if past.kind in allowance.kind(kind).replaces:
        return f"made {past.kind} here"
    if not isinstance(plan, Preparation):
        return None
    ours, other = Figure.of(plan.before), past.figure
    if ours is None or other is None or ours.name != other.name:
        return None
    if (ours.will - ours.was) * (other.will - other.was) >= 0:
        return None
    return f"set {other.name} from {other.written(other.was)} to {other.written(other.will)}"


# --- for ever more ------------------------------------------------------------------------------


def _growing(standing: LimitUsage, allowance: Allowance, plan: Plan) -> Decision | None:
    """Refuse what would raise a figure beyond the factor, together with what still stands."""
    kind, rule = _mitigation(plan).kind, allowance.safeguards.growth
    declared = allowance.kind(kind)
    if not declared.raises or not isinstance(plan, Preparation):
        return None
    ours = Figure.of(plan.before)
    if ours is None:
        return _denied("cumulative", f"what {kind} would raise, and from where, is not known")
    earlier: list[Figure] = []
    for past in _standing_raises(standing, kind, rule):
        if past.figure is None:
            reason = f"what {past.incident} changed with {kind} cannot be read, so not counted"
            return _denied("cumulative", reason)
        if past.figure.name == ours.name:
            earlier.append(past.figure)
    first = earlier[0].was if earlier else ours.was
    sum_of_all = first + sum(one.will - one.was for one in (*earlier, ours))
    factor = min(rule.factor, declared.factor)
    if sum_of_all <= first * factor:
        return None
    reason = (
        f"our changes of {ours.name} in {format_duration(rule.window)} would together raise"
        f" {ours.written(first)} to {ours.written(sum_of_all)}, which is more than {factor:g}"
        " times: a human has to decide about the next step"
    )
    return _denied("cumulative", reason)


def _standing_raises(standing: LimitUsage, kind: str, rule: Growth) -> Iterator[Past]:
    for past in standing.past.on_target:
        if past.kind == kind and past.stands and standing.now - past.at < rule.window:
            yield past


# --- at a stroke --------------------------------------------------------------------------------


def _sweeping(standing: LimitUsage, allowance: Allowance) -> Decision | None:
    """Refuse to touch one service more when too many are touched already."""
    rule = allowance.safeguards.spread
    mine = (standing.system, standing.service)
    others = sorted({(past.system, past.service) for past in standing.past.lately} - {mine})
    most = allowance.safeguards.services_at_once(allowance.services)
    if len(others) < most:
        return None
    names = ", ".join("/".join(other) for other in others[:_SHOWN])
    reason = (
        f"{len(others)} other services are being changed or were within"
        f" {format_duration(rule.window)} ({names}); at most {most} of {allowance.services} may:"
        " a wrong signal must not change every service"
    )
    return _denied("blast_radius", reason)


def _spreading(standing: LimitUsage, allowance: Allowance, plan: Plan) -> Decision | None:
    """Refuse to touch more instances when enough were touched (procedures C.2: M-K8-06, 25 %)."""
    mitigation, rule = _mitigation(plan), allowance.safeguards.spread
    declared = allowance.kind(mitigation.kind)
    if not declared.touches or not isinstance(plan, Preparation):
        return None
    ours = Instances.of(plan.before)
    if ours is None:
        return _denied("blast_radius", f"how many instances {mitigation.kind} ends is not known")
    if ours.touched == 0:
        return None
    here = (past for past in standing.past.lately if past.target_key == mitigation.target.key)
    touched = _touched((one for one in here if allowance.kind(one.kind).touches), ours.of_all)
    most = allowance.safeguards.instances_at_once(ours.of_all, declared.share)
    if touched + ours.touched <= most:
        return None
    return _denied("blast_radius", _too_many(ours, touched, most, rule))


def _touched(those: Iterable[Past], all_of_them: int) -> int:
    # what cannot be read may have touched every one
    return sum(past.instances.touched if past.instances else all_of_them for past in those)


def _too_many(ours: Instances, touched: int, most: int, rule: Spread) -> str:
    return (
        f"it would end {ours.touched} of {ours.of_all} instances at once, and {touched} were ended"
        f" within {format_duration(rule.window)}; at most {most} may be"
    )


def _mitigation(plan: Plan) -> Mitigation:
    return plan.mitigation if isinstance(plan, Preparation) else plan


def _seconds(seconds: float) -> str:
    return f"{int(seconds)} s" if seconds < 120 else f"{int(seconds / 60)} min"


WAITED_OUT = timedelta(minutes=5)
"""Longest rest of a cooldown that is waited for; more is refused, so that a human has the time."""


def judge(
    standing: LimitUsage, allowance: Allowance, plan: Plan, *, agreed: bool = False
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


def _over_budget(standing: LimitUsage, bounds: Sequence[Bound]) -> Decision | None:
    for bound, usage in zip(bounds, standing.usages, strict=True):
        limits = bound.limits
        if usage.reserved >= limits.budget:
            reason = (
                f"the budget of {bound.scope} is used up: {usage.reserved} of {limits.budget}"
                f" mitigations in {format_duration(limits.window)}"
            )
            return Decision(effect=Effect.DENY, code="budget", reason=reason)
    return None


def _held(standing: LimitUsage) -> Decision | None:
    """Refuse a second temporary change of a kind: the first could not be taken back any more."""
    if standing.held_by is None:
        return None
    reason = (
        f"the temporary change that {standing.held_by} made to this target has not been taken"
        " back yet; a human has to decide about another one of the same kind"
    )
    return Decision(effect=Effect.DENY, code="held", reason=reason)


def _cooling_down(standing: LimitUsage, bounds: Sequence[Bound]) -> Decision | None:
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


def _busy(standing: LimitUsage, bounds: Sequence[Bound]) -> Decision | None:
    if standing.busy_with is not None:
        reason = f"a mitigation by {standing.busy_with} on the same target is in progress"
        return Decision(effect=Effect.WAIT, code="target_busy", reason=reason)
    for bound, usage in zip(bounds, standing.usages, strict=True):
        if usage.in_flight >= bound.limits.concurrency:
            reason = f"{usage.in_flight} mitigations of {bound.scope} are in progress already"
            effect = Effect.WAIT if bound.limits.concurrency else Effect.DENY
            return Decision(effect=effect, code="concurrency", reason=reason)
    return None
