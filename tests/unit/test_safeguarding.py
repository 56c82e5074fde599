"""What our own past says to one more change: the edges of every rule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from remediator.model.base import IncidentId
from remediator.model.kinds import KINDS, Kind
from remediator.model.limits import Bound, Limits, Usage
from remediator.model.lookback import Allowance, Growth, Relapses, Safeguards, Spread
from remediator.model.mitigation import (
    Decision,
    Effect,
    Figure,
    Instances,
    Mitigation,
    MitigationState,
    Preparation,
)
from remediator.model.target import Mode, Target
from remediator.model.transition import LedgerHistory, LimitUsage, Mended, Past
from remediator.remediation.decide import apply_policy as decide
from remediator.remediation.limits import judge

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
WIDE = Limits(budget=100, window=HOUR, cooldown=timedelta(0), concurrency=100)
TARGET = Target(system="shop", service="orders", role="workload", kind="kubernetes", name="main")


def plan(kind: str) -> Mitigation:
    return Mitigation(kind=kind, target=TARGET, reason="a test")


def prepared(
    kind: str, figure: Figure | None = None, instances: Instances | None = None
) -> Preparation:
    return Preparation(mitigation=plan(kind)).noting(figure, instances)


def raising(was: int, will: int, name: str = "replicas") -> Figure:
    return Figure(name=name, was=was, will=will)


def ending(touched: int, of_all: int) -> Instances:
    return Instances(touched=touched, of_all=of_all)


def past(kind: str, ago: timedelta, **values: Any) -> Past:
    notes = Preparation(mitigation=plan(kind)).noting(
        values.pop("figure", None), values.pop("instances", None)
    )
    given: dict[str, Any] = {
        "incident": "inc-before",
        "system": "shop",
        "service": "orders",
        "playbook": "Other",
        "target_key": TARGET.key,
        "kind": kind,
        "state": MitigationState.APPLIED,
        "at": NOW - ago,
        "before": notes.before,
    }
    return Past.model_validate(given | values)


def mended(number: int, ago: timedelta, back: timedelta | None) -> Mended:
    at = NOW - ago
    back_at = None if back is None else at + back
    return Mended(incident=IncidentId(f"inc-{number}"), at=at, back_at=back_at)


def standing(**facts: Any) -> LimitUsage:
    return LimitUsage(
        now=NOW,
        incident=IncidentId("inc-now"),
        system="shop",
        service="orders",
        paused=None,
        firing=True,
        usages=(Usage(scope="global", reserved=0, in_flight=0),),
        busy_with=None,
        held_by=None,
        last_on_target=None,
        past=LedgerHistory(**facts),
    )


def allowance(services: int = 1, **rules: Any) -> Allowance:
    bounds = (Bound(scope="global", limits=WIDE),)
    kinds = {**KINDS, "set_share": Kind(limits=(WIDE,))}
    return Allowance(bounds=bounds, safeguards=Safeguards(**rules), services=services, kinds=kinds)


def verdict(
    what: Mitigation | Preparation, seen: LimitUsage, allowed: Allowance | None = None, **more: Any
) -> Decision:
    return judge(seen, allowed or allowance(), what, **more)


# --- successes that do not last -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("backs", "effect"),
    [
        ([], Effect.ALLOW),
        ([MINUTE, MINUTE], Effect.ALLOW),
        ([MINUTE, MINUTE, None], Effect.ALLOW),
        ([MINUTE, MINUTE, HOUR + MINUTE], Effect.ALLOW),
        ([MINUTE, MINUTE, HOUR], Effect.ASK),
        ([MINUTE, None, MINUTE, None, MINUTE], Effect.ASK),
    ],
)
def test_three_successes_that_did_not_last_have_to_ask(
    backs: list[timedelta | None], effect: Effect
) -> None:
    past_ones = tuple(mended(n, 10 * HOUR - n * HOUR, back) for n, back in enumerate(backs))
    decision = verdict(plan("switch_off"), standing(mended=past_ones))
    assert decision.effect is effect
    assert decision.code == ("demoted" if effect is Effect.ASK else "allowed")


def test_the_reason_names_the_incidents_and_who_has_agreed_is_not_asked_again() -> None:
    relapsing = standing(mended=tuple(mended(n, HOUR, MINUTE) for n in range(3)))
    decision = verdict(plan("switch_off"), relapsing)
    assert "inc-0, inc-1, inc-2" in decision.reason
    assert "worked 3 times in 1d" in decision.reason
    assert verdict(plan("switch_off"), relapsing, agreed=True).effect is Effect.ALLOW


def test_what_is_denied_is_not_asked_for() -> None:
    relapsing = tuple(mended(n, HOUR, MINUTE) for n in range(3))
    seen = standing(mended=relapsing, on_target=(past("set_memory", MINUTE),))
    assert verdict(plan("undo_rollout"), seen).code == "oscillation"


@pytest.mark.parametrize(
    ("mode", "effect", "said"),
    [
        (Mode.AUTO, Effect.ASK, "it worked 3 times"),
        (Mode.APPROVE, Effect.ASK, "the mode is approve"),
        (Mode.SHADOW, Effect.SHADOW, "a human would have been asked: it worked 3 times"),
    ],
)
def test_every_mode_says_what_becomes_of_a_demoted_playbook(
    mode: Mode, effect: Effect, said: str
) -> None:
    decision = decide(
        mode,
        dry_run=False,
        impaired=(),
        standing=standing(mended=tuple(mended(n, HOUR, MINUTE) for n in range(3))),
        allowance=allowance(),
        plan=plan("switch_off"),
    )
    assert decision.effect is effect
    assert said in decision.reason


# --- growing for ever ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("earlier", "now", "code"),
    [
        ([], (4, 8), "allowed"),
        ([], (4, 9), "cumulative"),
        ([(4, 6)], (6, 8), "allowed"),
        ([(4, 6)], (6, 9), "cumulative"),
        ([(4, 5), (5, 6), (6, 8)], (8, 9), "cumulative"),
        ([(4, 8)], (2, 3), "cumulative"),  # a release took it back; what we did still counts
    ],
)
def test_our_raises_together_stay_within_the_factor(
    earlier: list[tuple[int, int]], now: tuple[int, int], code: str
) -> None:
    before = tuple(
        past("scale", DAY - n * HOUR, figure=raising(*one)) for n, one in enumerate(earlier)
    )
    assert verdict(prepared("scale", raising(*now)), standing(on_target=before)).code == code


def test_what_was_taken_back_is_over_or_is_another_figure_does_not_count() -> None:
    plans = prepared("scale", raising(8, 16))
    for other in (
        past("scale", DAY, figure=raising(4, 8), state=MitigationState.REVERTED),
        past("scale", 7 * DAY, figure=raising(4, 8)),
        past("scale", DAY, figure=raising(4, 8, name="workers")),
        past("set_memory", DAY, figure=raising(4, 8)),
    ):
        assert verdict(plans, standing(on_target=(other,))).code == "allowed"


def test_what_cannot_be_read_is_refused() -> None:
    assert verdict(prepared("scale"), standing()).code == "cumulative"
    unread = past("scale", DAY).model_copy(update={"before": {"figure": "of another version"}})
    decision = verdict(prepared("scale", raising(4, 5)), standing(on_target=(unread,)))
    assert (decision.effect, decision.code) == (Effect.DENY, "cumulative")
    assert "inc-before" in decision.reason


def test_before_the_live_state_is_known_no_figure_is_missed() -> None:
    assert verdict(plan("scale"), standing()).effect is Effect.ALLOW
    assert verdict(plan("evict_pod"), standing()).effect is Effect.ALLOW


def test_another_factor_and_window_hold_where_they_are_configured() -> None:
    rules = allowance(growth=Growth(factor=3, window=HOUR))
    assert verdict(prepared("scale", raising(4, 12)), standing(), rules).code == "allowed"
    seen = standing(on_target=(past("scale", 2 * HOUR, figure=raising(4, 12)),))
    assert verdict(prepared("scale", raising(12, 36)), seen, rules).code == "allowed"


def test_what_is_configured_does_not_widen_what_a_kind_may_raise() -> None:
    rules = allowance(growth=Growth(factor=10))
    assert verdict(prepared("scale", raising(4, 40)), standing(), rules).code == "allowed"
    memory = prepared("set_memory", raising(4, 9), ending(0, 4))
    assert verdict(memory, standing(), rules).code == "cumulative"


def test_a_kind_that_is_not_declared_passes_no_bound_that_it_says_nothing_of() -> None:
    assert verdict(prepared("new"), standing()).code == "cumulative"
    assert verdict(prepared("new", raising(4, 8)), standing()).code == "blast_radius"
    assert verdict(prepared("new", raising(4, 9), ending(1, 4)), standing()).code == "cumulative"
    two = prepared("new", raising(4, 8), ending(2, 4))
    wide = allowance(spread=Spread(instances=1.0), growth=Growth(factor=10))
    assert verdict(two, standing(), wide).code == "blast_radius"
    one = prepared("new", raising(4, 8), ending(1, 4))
    assert verdict(one, standing()).code == "allowed"
    before = past("new", MINUTE)  # of which nothing is noted, so it may have ended all
    evicting = prepared("evict_pod", instances=ending(1, 100))
    assert verdict(evicting, standing(lately=(before,))).code == "blast_radius"


# --- to and fro ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["set_memory", "restart_rollout"])
def test_going_back_a_release_does_not_undo_what_another_playbook_changed(kind: str) -> None:
    decision = verdict(plan("undo_rollout"), standing(on_target=(past(kind, 29 * MINUTE),)))
    assert (decision.effect, decision.code) == (Effect.DENY, "oscillation")
    assert f"Other (inc-before) made {kind} here 29 min ago" in decision.reason


def test_a_figure_is_not_moved_back_just_after_another_incident_moved_it() -> None:
    lower = prepared("set_share", raising(8, 4))
    raised = past("scale", MINUTE, figure=raising(4, 8))
    assert verdict(lower, standing(on_target=(raised,))).code == "oscillation"
    onward = prepared("set_share", raising(8, 9))
    assert verdict(onward, standing(on_target=(raised,))).code == "allowed"


def test_what_is_old_is_taken_back_or_is_our_own_is_no_oscillation() -> None:
    for one in (
        past("set_memory", 30 * MINUTE),
        past("set_memory", MINUTE, state=MitigationState.REVERTED),
        past("set_memory", MINUTE, incident="inc-now"),
        past("scale", MINUTE, figure=raising(4, 8)),
    ):
        seen = standing(on_target=(one,))
        going_back = prepared("undo_rollout", instances=ending(0, 4))
        assert verdict(going_back, seen).code == "allowed"


# --- at a stroke --------------------------------------------------------------------------------


def touched(*services: str) -> tuple[Past, ...]:
    return tuple(
        past("switch_off", MINUTE, service=name, target_key=f"world/{name}") for name in services
    )


@pytest.mark.parametrize(
    ("services", "others", "effect"),
    [
        (4, "abc", Effect.DENY),
        (4, "ab", Effect.ALLOW),
        (15, "abc", Effect.DENY),
        (16, "abc", Effect.ALLOW),
        (16, "abcd", Effect.DENY),
    ],
)
def test_a_quarter_of_the_services_may_be_changed_at_once_and_three_in_any_case(
    services: int, others: str, effect: Effect
) -> None:
    decision = verdict(plan("switch_off"), standing(lately=touched(*others)), allowance(services))
    assert decision.effect is effect
    assert decision.code == ("blast_radius" if effect is Effect.DENY else "allowed")


def test_a_service_that_is_being_changed_is_not_one_service_more() -> None:
    seen = standing(lately=touched("a", "b", "orders", "orders"))
    assert verdict(plan("switch_off"), seen, allowance(4)).effect is Effect.ALLOW


def test_two_systems_may_have_a_service_of_one_name() -> None:
    elsewhere = tuple(
        past("switch_off", MINUTE, system=name, service="orders") for name in ("x", "y", "z")
    )
    assert verdict(plan("switch_off"), standing(lately=elsewhere)).code == "blast_radius"


@pytest.mark.parametrize(
    ("ours", "before", "code"),
    [
        ((1, 1), [], "allowed"),
        ((1, 4), [], "allowed"),
        ((2, 4), [], "blast_radius"),
        ((1, 4), [1], "blast_radius"),
        ((1, 8), [1], "allowed"),
        ((1, 8), [1, 1], "blast_radius"),
        ((0, 4), [1, 1], "allowed"),
        ((2, 8), [], "allowed"),
        ((3, 8), [], "blast_radius"),
    ],
)
def test_a_quarter_of_the_instances_may_be_ended_within_the_window(
    ours: tuple[int, int], before: list[int], code: str
) -> None:
    lately = tuple(past("evict_pod", MINUTE, instances=ending(one, ours[1])) for one in before)
    what = prepared("restart_rollout", instances=ending(*ours))
    assert verdict(what, standing(lately=lately)).code == code


def test_unknown_instances_are_refused_and_count_as_all() -> None:
    assert verdict(prepared("evict_pod"), standing()).code == "blast_radius"
    seen = standing(lately=(past("evict_pod", MINUTE),))
    assert verdict(prepared("evict_pod", instances=ending(1, 100)), seen).code == "blast_radius"


def test_what_is_configured_does_not_widen_which_pods_are_evicted() -> None:
    rules = allowance(spread=Spread(instances=1.0))
    assert verdict(prepared("evict_pod", None, ending(2, 4)), standing(), rules).code == (
        "blast_radius"
    )
    rolling = prepared("restart_rollout", None, ending(2, 4))  # as the deployment itself allows
    assert verdict(rolling, standing(), rules).code == "allowed"


def test_instances_of_another_workload_do_not_count() -> None:
    other = past("evict_pod", MINUTE, instances=ending(1, 4), target_key="kubernetes/other")
    what = prepared("evict_pod", instances=ending(1, 4))
    assert verdict(what, standing(lately=(other,))).code == "allowed"


# --- what may be configured ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (Relapses, {"count": 0}),
        (Relapses, {"within": "0s"}),
        (Growth, {"factor": 1}),
        (Growth, {"factor": 11}),
        (Spread, {"instances": 0}),
        (Spread, {"services": 1.5}),
        (Spread, {"at_least": 0}),
    ],
)
def test_no_rule_can_be_configured_away(rule: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        rule.model_validate(values)
