"""Takes a temporary change back at its hold time, whatever became of its incident."""

from __future__ import annotations

from datetime import timedelta

import structlog

from remediator.model.errors import OwnershipLost, PermanentError
from remediator.model.maintenance import Halt, covered
from remediator.model.mitigation import MitigationState, Outcome
from remediator.remediation.call import revert
from remediator.remediation.step import EngineContext
from remediator.store import Store
from remediator.store.database import patiently
from remediator.store.expirations import PendingRevert

ATTEMPTS = 20
"""Refusals after which a human has to take the change back."""
UNSTABLE = timedelta(hours=24)
"""Time past the hold time after which a human decides about what still cannot be taken back."""
_AGAIN = timedelta(seconds=30)

_log = structlog.get_logger(__name__)


async def take_back(store: Store, around: EngineContext) -> bool:
    """Take back what is due; return whether there may be more."""
    owed = await store.obligations.claim(1)
    for obligation in owed:
        try:
            await _take_back(store, around, obligation)
        except OwnershipLost as error:
            _log.warning("ownership_lost", reason=str(error))
    return bool(owed)


async def _take_back(store: Store, around: EngineContext, owed: PendingRevert) -> None:
    deadline = store.ledger.apply_deadline(around.monotonic())
    if owed.entry.state is not MitigationState.APPLIED:
        await _settle(store, owed, taken_back=True, reason="it was taken back before")
        return
    free = await store.obligations.begin(owed)
    halt = await around.paused(owed.incident, claimed=False)
    hindrance = _hindrance(owed, halt, free=free)
    in_window = halt is not None and halt.until is not None
    if hindrance is not None and not in_window and await _too_long(store, around, owed):
        await _settle(store, owed, taken_back=False, reason=_cannot(owed, hindrance))
        return
    if hindrance is not None or around.monotonic() >= deadline:
        _log.info("not_taken_back_yet", effect_key=owed.entry.effect_key, reason=hindrance)
        await store.obligations.postpone(owed, _AGAIN, attempts=owed.attempts)
        return
    try:
        lever = around.levers.find(owed.entry.mitigation.target, owed.entry.mitigation.kind)
        outcome = await revert(lever, owed.entry, in_steps=True)
    except PermanentError as error:  # another replica's configuration may have what ours lacks
        outcome = Outcome(state=MitigationState.NOT_APPLIED, detail=str(error))
    await _follow(store, owed, outcome, too_long=await _too_long(store, around, owed))


def _hindrance(owed: PendingRevert, halt: Halt | None, *, free: bool) -> str | None:
    """Say why it is not the time to take the change back, or None."""
    if not free:
        return "a mitigation of the same target is in progress"
    if owed.firing is not None:
        return f"{owed.firing} is firing: the service is not stable"
    return None if halt is None else halt.reason


async def _too_long(store: Store, around: EngineContext, owed: PendingRevert) -> bool:
    """Say whether it is owed for too long, less what maintenance windows took of the time."""
    entry, now = owed.entry, owed.now
    over = (entry.reserved_at or entry.created_at) + (entry.mitigation.hold or timedelta(0))
    planned = around.catalogue.windows(owed.incident, over, now)
    ordered = await store.windows.over(owed.incident, over, now)
    return now - over - covered([*planned, *ordered], over, now) > UNSTABLE


async def _follow(store: Store, owed: PendingRevert, outcome: Outcome, *, too_long: bool) -> None:
    if outcome.state is MitigationState.REVERTED:
        await _settle(store, owed, taken_back=True, reason=outcome.detail)
    elif outcome.state is MitigationState.APPLIED and outcome.again_in is not None:
        again, step = outcome.again_in, outcome.detail
        await patiently(lambda: store.obligations.postpone(owed, again, attempts=0, step=step))
    elif outcome.final or owed.attempts + 1 >= ATTEMPTS or too_long:
        await _settle(store, owed, taken_back=False, reason=_cannot(owed, outcome.detail))
    else:  # a backend that cannot be reached is no refusal
        refused = outcome.state is not MitigationState.UNKNOWN
        await store.obligations.postpone(owed, _AGAIN, attempts=owed.attempts + refused)


async def _settle(store: Store, owed: PendingRevert, *, taken_back: bool, reason: str) -> None:
    await patiently(lambda: store.obligations.settled(owed, taken_back=taken_back, reason=reason))


def _cannot(owed: PendingRevert, reason: str) -> str:
    mitigation = owed.entry.mitigation
    return f"the temporary {mitigation.kind} on {mitigation.target.key} is not taken back: {reason}"
