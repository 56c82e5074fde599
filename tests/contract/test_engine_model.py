"""The model: whatever happens, and wherever a replica stops, no promise of the engine is broken.

``tests/engine_machine.py`` says what may happen, ``tests/engine_promises.py`` what must hold.
``REMEDIATOR_MODEL_EXAMPLES=500`` tries so many examples, chosen anew each time.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import get_state_machine_test
from sqlalchemy.exc import IntegrityError

from tests.engine_gates import Loss, Point
from tests.engine_machine import DANGERS, engine
from tests.engine_mutants import MUTANTS
from tests.engine_processes import Build
from tests.engine_stage import Ground, the_ground

WANTED = (
    *(f"stopped {point}" for point in Point),
    *(f"at a gate, {loss}" for loss in Loss),
    *(f"in the ledger, {state}" for state in ("applied", "reverted", "unknown", "denied")),
)
"""What has to happen, so that it means something that no promise was broken."""
EXAMPLES = os.environ.get("REMEDIATOR_MODEL_EXAMPLES")
MORE = 6
"""Rounds of further examples in which what has not happened yet may."""


def _settings(examples: int, steps: int, **more: Any) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        **more,
    )


@pytest.mark.timeout(900 if EXAMPLES is None else 0)
def test_no_promise_is_broken_wherever_a_replica_stops(store_url: str) -> None:
    with the_ground(store_url) as ground:
        for danger, examples, steps in (("", 12, 25), *((name, 3, 6) for name in DANGERS)):
            chosen = _settings(int(EXAMPLES or examples), steps, derandomize=EXAMPLES is None)
            sound = engine(ground, Build(), danger=danger)
            get_state_machine_test(sound, settings=chosen)()
        for _ in range(MORE):  # what comes of the servers' own pace differs from run to run
            if _missing(ground):
                sound = engine(ground, Build(), danger="")
                get_state_machine_test(sound, settings=_settings(12, 25))()
        assert _missing(ground) == set()


def _missing(ground: Ground) -> set[str]:
    return {what for what in WANTED if not ground.reached[what]}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MUTANTS)
def test_the_model_finds_an_engine_that_is_wrong(name: str, postgres_database: str) -> None:
    mutant = MUTANTS[name]
    chosen = _settings(150, 8, derandomize=True, phases=[Phase.generate])
    with the_ground(postgres_database) as ground:
        wrong = engine(ground, mutant.build, danger=mutant.danger, heals=False)
        with pytest.raises((AssertionError, IntegrityError, Flaky)) as caught:
            get_state_machine_test(wrong, settings=chosen)()
    failures = getattr(caught.value, "exceptions", [caught.value])  # of one that is not repeatable
    assert any(re.search(mutant.breaks, str(failure)) for failure in failures), failures
