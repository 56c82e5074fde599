"""LIMIT, in hindsight: what our own past says to one more mitigation. Pure.

What depends on the live state is judged once there is a ``Preparation``; the reservation always
has one. What cannot be read is a refusal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from remediator.model import (
    Decision,
    Effect,
    Figure,
    Instances,
    Mitigation,
    Preparation,
    format_duration,
)
from remediator.safeguards import Allowance, Growth, Spread
from remediator.store.hindsight import Past
from remediator.store.ledger import Standing

Plan = Mitigation | Preparation
"""What is proposed, or what the live state made of it."""
_SHOWN = 5


def safeguard(standing: Standing, allowance: Allowance, plan: Plan) -> Decision | None:
    """Deny what our own past forbids, or nothing."""
    return (
        _swaying(standing, allowance, plan)
        or _sweeping(standing, allowance)
        or _growing(standing, allowance, plan)
        or _spreading(standing, allowance, plan)
    )


def demoted(standing: Standing, allowance: Allowance) -> Decision | None:
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


def _swaying(standing: Standing, allowance: Allowance, plan: Plan) -> Decision | None:
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


def _growing(standing: Standing, allowance: Allowance, plan: Plan) -> Decision | None:
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


def _standing_raises(standing: Standing, kind: str, rule: Growth) -> Iterator[Past]:
    for past in standing.past.on_target:
        if past.kind == kind and past.stands and standing.now - past.at < rule.window:
            yield past


# --- at a stroke --------------------------------------------------------------------------------


def _sweeping(standing: Standing, allowance: Allowance) -> Decision | None:
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


def _spreading(standing: Standing, allowance: Allowance, plan: Plan) -> Decision | None:
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
