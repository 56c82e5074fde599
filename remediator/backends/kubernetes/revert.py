"""Taking a change back: at once, or lowering a number of pods in steps. Pure.

Our annotation says whose change stands and how far it has been taken back, in the same request as
the figure. Where the figure is another than the annotation says, somebody else has changed it. So
has whoever the API server notes as a writer of it beside us, and whoever changed the template.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pydantic import JsonValue

from remediator.backends.kubernetes import descriptions
from remediator.backends.kubernetes.client import MANAGER, Change
from remediator.backends.kubernetes.objects import Object, amount, read_workload
from remediator.backends.kubernetes.preconditions import (
    ScaleBounds,
    effect_on,
    patch_of,
    read_bounds,
)
from remediator.backends.kubernetes.rollback import digest
from remediator.model.mitigation import MitigationState, Outcome, Preparation

SKEW = timedelta(minutes=1)
"""How far the clock of another replica of ours may be ahead of this one."""
_SOMEBODY = "somebody else has changed it since, so it is left as it is"


TEMPLATE = "template_after"
"""Where a preparation keeps what the whole pod template is recognised by once it is changed."""


class Step(NamedTuple):
    """One request that takes back, and what it comes to when it is answered."""

    change: Change
    outcome: Outcome


class _Lowered(NamedTuple):
    """How far a figure has been lowered, and when."""

    figure: int
    at: datetime


def undone(effect: str) -> str:
    """Return what the annotation says after a change was put back."""
    return f"{effect}/reverted"


def lowered(effect: str, figure: int, at: datetime) -> str:
    """Return what the annotation says between two steps."""
    return f"{effect}/lowered/{figure}@{at.isoformat(timespec='seconds')}"


def stands(live: Object, kind: str, effect: str) -> bool:
    """Say whether the object carries the change, be it lowered in part."""
    return effect_on(live, kind) == effect or _lowered_to(live, kind, effect) is not None


def recognising(preparation: Preparation, answer: Object) -> Preparation:
    """Keep what the template will be recognised by, as the server answered a dry run."""
    change = (preparation.undo or {}).get("change")
    if not isinstance(change, Mapping) or "template" not in change:
        return preparation
    before = {**preparation.before, TEMPLATE: digest(answer)}
    return preparation.model_copy(update={"before": before})


def next_step(
    preparation: Preparation, effect: str, live: Object | None, now: datetime, *, in_steps: bool
) -> Step | Outcome:
    """Decide what takes ``live`` back, or why nothing does now."""
    kind = preparation.mitigation.kind
    if live is not None and effect_on(live, kind) == undone(effect):
        return Outcome(state=MitigationState.REVERTED, detail="it has been put back before")
    asked = preparation.before["change"]
    so_far = None if live is None else _lowered_to(live, kind, effect)
    if so_far is not None and isinstance(asked, Mapping):
        asked = dict.fromkeys(asked, so_far.figure)
    if live is None or not stands(live, kind, effect) or not holds(live["spec"], asked):
        return Outcome(state=MitigationState.NOT_APPLIED, detail=_SOMEBODY, final=True)
    left = _left(preparation, live)
    if left is not None:
        return left
    undo = (preparation.undo or {})["change"]
    if in_steps and kind == "scale" and isinstance(asked, Mapping) and isinstance(undo, Mapping):
        return _one_down(preparation, effect, live, _Descent(asked, undo, so_far, now))
    return _all(preparation, effect, live)


def _left(preparation: Preparation, live: Object) -> Outcome | None:
    """Leave what somebody else has a hand in, for now or for good; None where nobody has."""
    asked = preparation.before["change"]
    if not isinstance(asked, Mapping) or "template" not in asked:
        return _as_it_is(_written_by_another(live, asked), final=True)
    if live["spec"].get("paused"):
        return _as_it_is("its rollout is paused: somebody works on it", final=False)
    ours, rollout = preparation.before.get(TEMPLATE), read_workload(live).rollout
    if ours is None:
        why = f"a rollout is in progress: {rollout}" if rollout else None
        return _as_it_is(why, final=False)
    # a rollout of our own template may be stuck, and is what has to be taken back
    why = None if ours == digest(live) else "somebody else has changed the pod template since"
    return _as_it_is(why, final=True)


def _as_it_is(why: str | None, *, final: bool) -> Outcome | None:
    if why is None:
        return None
    detail = f"left as it is: {why}"
    return Outcome(state=MitigationState.NOT_APPLIED, detail=detail, final=final)


def _written_by_another(live: Object, fields: object) -> str | None:
    """Name who wrote the figure since: our own write left no other writer of it."""
    for entry in live["metadata"].get("managedFields") or ():
        spec = (entry.get("fieldsV1") or {}).get("f:spec") or {}
        wrote = isinstance(fields, Mapping) and any(f"f:{field}" in spec for field in fields)
        if wrote and entry.get("manager") != MANAGER:
            return f"{entry.get('manager')} has set it since"
    return None


class _Descent(NamedTuple):
    now_is: Mapping[str, JsonValue]
    shall_be: Mapping[str, JsonValue]
    last: _Lowered | None
    at: datetime


def _one_down(preparation: Preparation, effect: str, live: Object, way: _Descent) -> Step | Outcome:
    bounds = read_bounds(preparation.mitigation, ScaleBounds)
    ((field, figure),) = way.now_is.items()
    present, old = int(str(figure)), int(str(way.shall_be[field]))
    waited = bounds.step_pause if way.last is None else way.at - way.last.at
    # a mark of a time to come is of a clock that was ahead: nobody waits for that
    if -min(SKEW, bounds.step_pause) <= waited < bounds.step_pause:  # an answer was lost
        left = min(bounds.step_pause - waited, bounds.step_pause)
        return _lowering(f"{descriptions.lowered(preparation, present)} before", old, left)
    wanted = max(old, present - max(1, int(present * bounds.step_down)))
    if wanted == old:
        return _all(preparation, effect, live)
    change = _change(preparation, lowered(effect, wanted, way.at), live, {field: wanted})
    said = descriptions.lowered(preparation, wanted, present)
    return Step(change, _lowering(said, old, bounds.step_pause))


def _lowering(said: str, old: int, pause: timedelta) -> Outcome:
    detail = f"{said}, on the way to {old}"
    return Outcome(state=MitigationState.APPLIED, detail=detail, again_in=pause)


def _all(preparation: Preparation, effect: str, live: Object) -> Step:
    spec = (preparation.undo or {})["change"]
    change = _change(preparation, undone(effect), live, spec)
    detail = descriptions.put_back(preparation, live)
    return Step(change, Outcome(state=MitigationState.REVERTED, detail=detail))


def _change(preparation: Preparation, mark: str, live: Object, spec: object) -> Change:
    metadata = live["metadata"]
    seen = {"uid": metadata["uid"], "resource_version": metadata["resourceVersion"]}
    body = patch_of(preparation.mitigation.kind, seen, mark, spec)
    return Change("PATCH", str(preparation.before["object"]), body)


def _lowered_to(live: Object, kind: str, effect: str) -> _Lowered | None:
    mark, _, at = (effect_on(live, kind) or "").rpartition("@")
    figure = mark.removeprefix(f"{effect}/lowered/")
    if figure == mark:
        return None
    try:
        return _Lowered(int(figure), datetime.fromisoformat(at).astimezone(UTC))
    except ValueError:
        return None


def holds(live: object, asked: object) -> bool:
    """Say whether everything in ``asked`` is so in ``live``; lists are matched by name."""
    if isinstance(asked, Mapping):
        return isinstance(live, Mapping) and all(holds(live.get(k), v) for k, v in asked.items())
    if isinstance(asked, list):
        named = {part["name"]: part for part in live} if isinstance(live, list) else {}
        return all(holds(named.get(part["name"]), part) for part in asked)
    return live == asked or _same_quantity(live, asked)


def _same_quantity(one: object, other: object) -> bool:
    try:
        return None not in (one, other) and amount(one) == amount(other)
    except ValueError:
        return False
