"""Takes a temporary change back at its hold time, whatever became of its incident."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import structlog

from remediator.errors import PermanentError
from remediator.mitigation import act
from remediator.model import MitigationState
from remediator.store import Store
from remediator.store.database import patiently
from remediator.store.obligations import Obligation
from remediator.work import Levers

ATTEMPTS = 20
"""Attempts after which a human has to take the change back."""
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
    deadline = act.apply_deadline(clock())
    if owed.entry.state is not MitigationState.APPLIED:
        await _settle(store, owed, taken_back=True, reason="it was taken back before")
        return
    paused = await store.ledger.paused(owed.incident)
    if owed.busy or paused is not None or clock() >= deadline:
        _log.info("not_taken_back_yet", effect_key=owed.entry.effect_key, paused=paused)
        await store.obligations.postpone(owed, _AGAIN)
        return
    try:
        lever = levers.find(owed.entry.mitigation.target, owed.entry.mitigation.kind)
        outcome = await act.revert(lever, owed.entry)
    except PermanentError as error:
        await _settle(store, owed, taken_back=False, reason=_cannot(owed, str(error)))
        return
    if outcome.state is MitigationState.REVERTED:
        await _settle(store, owed, taken_back=True, reason=outcome.detail)
    elif owed.attempts + 1 >= ATTEMPTS:
        await _settle(store, owed, taken_back=False, reason=_cannot(owed, outcome.detail))
    else:
        await store.obligations.postpone(owed, _AGAIN)


async def _settle(store: Store, owed: Obligation, *, taken_back: bool, reason: str) -> None:
    await patiently(lambda: store.obligations.settled(owed, taken_back=taken_back, reason=reason))


def _cannot(owed: Obligation, reason: str) -> str:
    mitigation = owed.entry.mitigation
    return f"the temporary {mitigation.kind} on {mitigation.target.key} is not taken back: {reason}"
