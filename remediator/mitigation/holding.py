"""Takes a temporary change back at its hold time, whatever became of its incident."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import structlog

from remediator.errors import PermanentError
from remediator.mitigation import act
from remediator.model import MitigationState, Outcome
from remediator.store import Store
from remediator.store.database import patiently
from remediator.store.obligations import Obligation
from remediator.work import Levers

ATTEMPTS = 20
"""Attempts after which a human has to take the change back."""
UNSTABLE = timedelta(hours=24)
"""Time past the hold time after which a human decides about what still cannot be taken back."""
_AGAIN = timedelta(seconds=30)

_log = structlog.get_logger(__name__)


async def take_back(store: Store, levers: Levers, clock: Callable[[], float]) -> bool:
    """Take back what is due; return whether there may be more."""
    owed = await store.obligations.claim(1)
    for obligation in owed:
        await _take_back(store, levers, obligation, clock)
    return bool(owed)


async def _take_back(
    store: Store, levers: Levers, owed: Obligation, clock: Callable[[], float]
) -> None:
    deadline = store.ledger.apply_deadline(clock())
    if owed.entry.state is not MitigationState.APPLIED:
        await _settle(store, owed, taken_back=True, reason="it was taken back before")
        return
    hindrance = await _hindrance(store, owed)
    if hindrance is not None and _too_long(owed):
        await _settle(store, owed, taken_back=False, reason=_cannot(owed, hindrance))
        return
    if hindrance is not None or clock() >= deadline:
        _log.info("not_taken_back_yet", effect_key=owed.entry.effect_key, reason=hindrance)
        await store.obligations.postpone(owed, _AGAIN, attempts=owed.attempts)
        return
    try:
        lever = levers.find(owed.entry.mitigation.target, owed.entry.mitigation.kind)
        outcome = await act.revert(lever, owed.entry, in_steps=True)
    except PermanentError as error:
        await _settle(store, owed, taken_back=False, reason=_cannot(owed, str(error)))
        return
    await _follow(store, owed, outcome)


async def _hindrance(store: Store, owed: Obligation) -> str | None:
    """Say why it is not the time to take the change back, or None."""
    if owed.busy:
        return "a mitigation of the same target is in flight"
    if owed.firing is not None:
        return f"{owed.firing} fires: the service is not stable"
    return await store.ledger.paused(owed.incident)


def _too_long(owed: Obligation) -> bool:
    entry = owed.entry
    over = (entry.reserved_at or entry.created_at) + (entry.mitigation.hold or timedelta(0))
    return owed.now - over > UNSTABLE


async def _follow(store: Store, owed: Obligation, outcome: Outcome) -> None:
    if outcome.state is MitigationState.REVERTED:
        await _settle(store, owed, taken_back=True, reason=outcome.detail)
    elif outcome.state is MitigationState.APPLIED and outcome.again_in is not None:
        again, step = outcome.again_in, outcome.detail
        await patiently(lambda: store.obligations.postpone(owed, again, attempts=0, step=step))
    elif owed.attempts + 1 >= ATTEMPTS:
        await _settle(store, owed, taken_back=False, reason=_cannot(owed, outcome.detail))
    else:
        await store.obligations.postpone(owed, _AGAIN, attempts=owed.attempts + 1)


async def _settle(store: Store, owed: Obligation, *, taken_back: bool, reason: str) -> None:
    await patiently(lambda: store.obligations.settled(owed, taken_back=taken_back, reason=reason))


def _cannot(owed: Obligation, reason: str) -> str:
    mitigation = owed.entry.mitigation
    return f"the temporary {mitigation.kind} on {mitigation.target.key} is not taken back: {reason}"
