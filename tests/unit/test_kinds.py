"""Every kind of mitigation is declared, and its bounds hold whatever is configured."""

from __future__ import annotations

import importlib
import pkgutil
from datetime import timedelta

import pytest

from remediator import backends
from remediator.backends.kubernetes.quorum import MEMBERWISE
from remediator.model.kinds import KINDS, STRICTEST, Kind, longest_look_back
from remediator.model.lookback import Growth, Safeguards, Spread
from remediator.playbook.loader import builtin_folder, load_playbooks
from remediator.service.retention import age_of


def announced() -> set[str]:
    """Every kind that a lever of any backend makes, and that a playbook of ours proposes."""
    found: set[str] = set()
    for module in pkgutil.walk_packages(backends.__path__, f"{backends.__name__}."):
        loaded = importlib.import_module(module.name)
        for one in vars(loaded).values():
            if isinstance(one, type) and all(hasattr(one, verb) for verb in ("apply", "observe")):
                kinds = getattr(one, "kinds", None)
                assert isinstance(kinds, frozenset), f"{one} does not say which kinds it makes"
                found |= kinds
    return found


def test_every_kind_that_a_lever_makes_or_a_playbook_proposes_is_declared() -> None:
    assert announced() - KINDS.keys() == set()
    assert {kind for cls in load_playbooks() for kind in cls.levers} - KINDS.keys() == set()
    assert builtin_folder().is_dir()
    assert KINDS.keys() - announced() == set(), "declared, but nobody makes it"
    assert set(MEMBERWISE) <= KINDS.keys()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_declaration_says_what_is_shown_of_it(kind: Kind) -> None:
    assert kind.backend is not None
    assert "unknown" not in (kind.usual_risk, kind.way_back)
    assert all(limits.concurrency == 1 for limits in kind.limits)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_what_is_not_declared_is_bounded_more_tightly_than_anything_else(kind: Kind) -> None:
    (least,) = STRICTEST.limits
    for limits in kind.limits:
        assert least.budget <= limits.budget
        assert least.window >= limits.window
        assert least.cooldown >= limits.cooldown
    assert (STRICTEST.raises, STRICTEST.touches) == (True, True)
    assert STRICTEST.factor <= min(kind.factor, Growth().factor)
    assert STRICTEST.share <= min(kind.share, Spread().instances)


def test_the_figures_are_those_of_the_runbooks() -> None:
    half_hour, hour, day = timedelta(minutes=30), timedelta(hours=1), timedelta(days=1)

    def counted(name: str) -> set[tuple[int, timedelta]]:
        return {(limits.budget, limits.window) for limits in KINDS[name].limits}

    assert counted("reset_breaker") == {(1, half_hour)}  # M-AP-04, M-AP-10
    assert counted("restart_rollout") == {(1, half_hour), (3, day)}  # M-K8-05
    assert counted("undo_rollout") == {(1, day)}  # M-K8-07
    assert counted("scale") == {(1, timedelta(minutes=15))}  # M-K8-01
    assert counted("cancel_queries") == {(2, hour)}  # M-PG-01: 10 an hour, five at a time
    assert KINDS["evict_pod"].share == 0.25  # M-K8-06
    assert KINDS["set_memory"].factor == 2.0  # M-K8-09


def test_nothing_is_deleted_that_the_bounds_of_a_kind_still_count() -> None:
    minute = timedelta(minutes=1)
    brief = Safeguards(growth=Growth(window=minute), hands_off=minute)
    brief = brief.model_copy(
        update={"relapses": brief.relapses.model_copy(update={"window": minute})}
    )
    assert age_of(minute, [], brief) == longest_look_back() == timedelta(days=1)


def test_a_kind_without_any_limit_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        Kind(limits=())
