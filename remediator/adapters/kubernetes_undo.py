"""Taking a change back: at once, or lowering a number of pods in steps. Pure.

Our annotation says whose change stands and how far it has been taken back, in the same request as
the figure. Where the figure is another than the annotation says, somebody else has changed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pydantic import JsonValue

from remediator.adapters.kubernetes_bounds import ScaleBounds, effect_on, patch_of, read_bounds
from remediator.adapters.kubernetes_client import Change
from remediator.adapters.kubernetes_objects import Object, amount
from remediator.model import MitigationState, Outcome, Preparation

_SOMEBODY = "somebody else has changed it since, so it is left as it is"


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


def stands(live: Object, effect: str) -> bool:
    """Say whether the object carries the change, be it lowered in part."""
    return effect_on(live) == effect or _lowered_to(live, effect) is not None


def next_step(
    preparation: Preparation, effect: str, live: Object | None, now: datetime, *, in_steps: bool
) -> Step | Outcome:
    """Decide what takes ``live`` back, or why nothing does now."""
    if live is not None and effect_on(live) == undone(effect):
        return Outcome(state=MitigationState.REVERTED, detail="it has been put back before")
    asked = preparation.before["change"]
    so_far = None if live is None else _lowered_to(live, effect)
    if so_far is not None and isinstance(asked, Mapping):
        asked = dict.fromkeys(asked, so_far.figure)
    if live is None or not stands(live, effect) or not holds(live["spec"], asked):
        return Outcome(state=MitigationState.NOT_APPLIED, detail=_SOMEBODY)
    undo = (preparation.undo or {})["change"]
    scaled = preparation.mitigation.kind == "scale"
    if in_steps and scaled and isinstance(asked, Mapping) and isinstance(undo, Mapping):
        return _one_down(preparation, effect, live, _Descent(asked, undo, so_far, now))
    return _all(preparation, effect, live)


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
    if waited < bounds.step_pause:  # the answer to the last step was lost, or we are early
        left = min(bounds.step_pause - waited, bounds.step_pause)
        return _lowering(f"{field} has been lowered to {present} before", old, left)
    wanted = max(old, present - max(1, int(present * bounds.step_down)))
    if wanted == old:
        return _all(preparation, effect, live)
    change = _change(preparation, lowered(effect, wanted, way.at), live, {field: wanted})
    said = f"{field} lowered from {present} to {wanted}"
    return Step(change, _lowering(said, old, bounds.step_pause))


def _lowering(said: str, old: int, pause: timedelta) -> Outcome:
    detail = f"{said}, on the way to {old}"
    return Outcome(state=MitigationState.APPLIED, detail=detail, again_in=pause)


def _all(preparation: Preparation, effect: str, live: Object) -> Step:
    spec = (preparation.undo or {})["change"]
    change = _change(preparation, undone(effect), live, spec)
    detail = f"put back: {preparation.undo}"
    return Step(change, Outcome(state=MitigationState.REVERTED, detail=detail))


def _change(preparation: Preparation, mark: str, live: Object, spec: object) -> Change:
    metadata = live["metadata"]
    seen = {"uid": metadata["uid"], "resource_version": metadata["resourceVersion"]}
    return Change("PATCH", str(preparation.before["object"]), patch_of(seen, mark, spec))


def _lowered_to(live: Object, effect: str) -> _Lowered | None:
    mark, _, at = (effect_on(live) or "").rpartition("@")
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
