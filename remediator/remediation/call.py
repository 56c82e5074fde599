"""The only module that calls a lever: one attempt gives one outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog

from remediator.model.errors import (
    BackendRefused,
    BackendUnavailable,
    PermanentError,
    TemporaryError,
)
from remediator.model.maintenance import Halt
from remediator.model.mitigation import (
    CONSEQUENCE,
    LedgerEntry,
    Mitigation,
    MitigationState,
    Outcome,
    Preparation,
)
from remediator.model.ports import Mitigator
from remediator.model.transition import Settlement, Transition
from remediator.remediation.step import SEEN_AGAIN, StepContext, says_the_same
from remediator.store.ledger import LATEST

CALL_TIMEOUT = 30.0
"""Seconds that looking, or putting back, may take; a later answer counts as lost."""
SETTLE_TIME = timedelta(seconds=2)
"""Time past ``apply_before`` after which a call begun in time has reached its backend."""
PULL_TIMEOUT = (LATEST - SETTLE_TIME).total_seconds()
"""Seconds that making a change may take, all waiting and reading of its backend included."""
TELLS_WITHIN = timedelta(minutes=1)
"""Time past ``apply_before`` in which what is seen may still come to tell: a half-open breaker closes
or opens. What was removed in part, or has grown again, never will."""

_log = structlog.get_logger(__name__)


async def prepare(lever: Mitigator, mitigation: Mitigation) -> Preparation:
    """Read the live state and the way back. Raises ``BackendUnavailable``/``BackendRefused``."""
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            preparation = await lever.prepare(mitigation)
    except TimeoutError as error:
        raise BackendUnavailable(f"no answer within {CALL_TIMEOUT:g} s") from error
    cut = preparation.mitigation
    grown = any(item not in mitigation.items for item in cut.items)
    if grown or cut.model_copy(update={"items": mitigation.items}) != mitigation:
        raise PermanentError("the lever prepared something else than was proposed")
    said = {CONSEQUENCE: lever.consequences.get(mitigation.kind, "")}
    return preparation.model_copy(update={"before": {**preparation.before, **said}})


async def pull(
    lever: Mitigator,
    entry: LedgerEntry,
    deadline: float,
    paused: Callable[[], Awaitable[Halt | None]],
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Make the reserved change, unless it is too late or has been paused meanwhile.

    ``deadline`` is on ``clock``. Whatever goes wrong after the call began is ``unknown``.
    """
    halt = await paused()
    if halt is not None:
        return Outcome(state=MitigationState.NOT_APPLIED, detail=f"not applied: {halt.reason}")
    if clock() >= deadline:
        detail = "not applied: the time limit for applying it had passed"
        return Outcome(state=MitigationState.NOT_APPLIED, detail=detail)
    return await _called(lambda: lever.apply(preparation_of(entry), entry.effect_key), PULL_TIMEOUT)


async def observe(lever: Mitigator, entry: LedgerEntry) -> Outcome:
    """Look whether the reserved change was made. Raises as ``Mitigator.observe`` does."""
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            return await lever.observe(preparation_of(entry), entry.effect_key)
    except TimeoutError as error:
        raise BackendUnavailable(f"no answer within {CALL_TIMEOUT:g} s") from error


async def revert(lever: Mitigator, entry: LedgerEntry, *, in_steps: bool = False) -> Outcome:
    """Put back what the change did; ``unknown`` when the answer is lost."""
    preparation, key = preparation_of(entry), entry.effect_key

    async def call() -> Outcome:
        try:
            return await lever.revert(preparation, key, in_steps=in_steps)
        except BackendRefused as error:
            return Outcome(state=MitigationState.NOT_APPLIED, detail=str(error))

    return await _called(call, CALL_TIMEOUT)


def preparation_of(entry: LedgerEntry) -> Preparation:
    """Read back what was prepared before the reservation."""
    return Preparation(mitigation=entry.mitigation, before=entry.before, undo=entry.undo)


def not_prepared(
    work: StepContext,
    mitigation: Mitigation,
    error: BackendUnavailable | PermanentError,
    approved: LedgerEntry | None = None,
) -> Transition:
    """Look again where the backend did not answer, afresh where it refused; not for ever."""
    if isinstance(error, BackendUnavailable) and not work.out_of_patience:
        return work.wait(str(error), SEEN_AGAIN, code="backend")
    refused_before = any(
        entry.state is MitigationState.NOT_APPLIED and says_the_same(entry.reason, str(error))
        for entry in work.claim.entries
    )
    if refused_before or not isinstance(error, BackendRefused):
        return work.escalate(f"{mitigation.kind} cannot be applied: {error}")
    event = work.event(f"{mitigation.kind}: not made", str(error))
    if approved is not None:
        settlement = Settlement(
            id=approved.id,
            state=MitigationState.NOT_APPLIED,
            reason=str(error),
            in_flight=False,
        )
        return work.again(str(error), event, settlement)
    preparation = Preparation(mitigation=mitigation)
    entry = work.entry(preparation, MitigationState.NOT_APPLIED, str(error))
    return work.again(str(error), event).model_copy(update={"entry": entry})


async def _called(call: Callable[[], Awaitable[Outcome]], within: float) -> Outcome:
    try:
        async with asyncio.timeout(within):
            return await call()
    except TimeoutError:
        detail = f"no answer within {within:g} s"
    except (TemporaryError, PermanentError) as error:
        detail = str(error)
    except Exception as error:  # noqa: BLE001 - whatever happened, the change may have been made
        _log.exception("lever_failed")
        detail = f"the lever failed: {type(error).__name__}"
    return Outcome(state=MitigationState.UNKNOWN, detail=detail)
