"""The steps VERIFY, REVERT and SETTLE: did it help, and what follows from that."""

from __future__ import annotations

from datetime import timedelta

from remediator.errors import PermanentError
from remediator.mitigation import act
from remediator.mitigation.verify import take_sample, verdict
from remediator.model import (
    Assessment,
    IncidentOutcome,
    MitigationState,
    Phase,
    Sample,
    Verdict,
)
from remediator.store.ledger import Settlement
from remediator.store.queue import Transition
from remediator.work import SEEN_AGAIN, Work, close


async def verify(work: Work) -> Transition:
    """Take one sample, and judge once there is enough."""
    entry = work.find(MitigationState.APPLIED)
    if entry is None:
        return work.escalate("no applied change was found to verify")
    sample = await take_sample(work.playbook, work.context, entry.mitigation)
    judged = verdict(
        (*work.claim.samples, sample),
        work.playbook.parameters.verification,
        resolved=not work.claim.firing,
        since=work.claim.incident.phase_since,
        now=work.claim.now,
    )
    if judged is None:
        return _look_again(work, sample).model_copy(update={"sample": (entry.id, sample)})
    undo = judged.assessment is Assessment.NOT_BETTER and entry.undo is not None
    settlement = Settlement(
        id=entry.id,
        state=entry.state,
        in_flight=undo,
        verdict=judged.assessment,
        evidence=judged.reason,
    )
    following = _revert_next(work, judged) if undo else _follow(work, judged)
    return following.model_copy(update={"settlement": settlement, "sample": (entry.id, sample)})


async def revert(work: Work) -> Transition:
    """Put the change back, then look afresh; what cannot be put back is a human's."""
    entry = work.find(MitigationState.APPLIED)
    if entry is None:
        return work.escalate("no applied change was found to revert")
    halted = work.wait_for_maintenance() or await _halted(work)
    if halted is not None:
        return halted
    if work.around.monotonic() >= work.around.ledger.apply_deadline(work.started):
        return work.wait("not reverted yet: the step was delayed", SEEN_AGAIN, code="late")
    try:
        outcome = await act.revert(work.lever(entry.mitigation), entry)
    except PermanentError as error:
        return work.escalate(f"the change could not be reverted: {error}")
    if outcome.state is not MitigationState.REVERTED:
        if not (outcome.final or work.out_of_patience):
            return work.wait(outcome.detail, SEEN_AGAIN, code="revert")
        return work.escalate(f"the change could not be reverted: {outcome.detail}")
    settlement = Settlement(
        id=entry.id, state=MitigationState.REVERTED, items=outcome.items, in_flight=False
    )
    reason = f"it did not help and was reverted: {outcome.detail}"
    return work.again(reason, work.event("put back", outcome.detail), settlement)


async def _halted(work: Work) -> Transition | None:
    halt = await work.around.paused(work.claim.incident)
    if halt is None:
        return None
    if halt.until is not None:  # a window began just now: the next look waits for its end
        return Transition(phase=Phase.REVERT, notify=False)
    if work.out_of_patience:
        return work.escalate(f"the change was not reverted: {halt.reason}")
    return work.wait(f"not reverted yet: {halt.reason}", SEEN_AGAIN, code=halt.code)


async def settle(work: Work) -> Transition:
    """Wait for the sender to say that the alert resolved: nothing is fixed while it fires."""
    incident = work.claim.incident
    if not work.claim.firing:
        return close(work.claim, IncidentOutcome.MITIGATED, incident.reason)
    within = work.playbook.parameters.verification.resolve_within
    left = incident.phase_since + within - work.claim.now
    if left > timedelta(0):
        return Transition(phase=Phase.SETTLE, due_in=left, notify=False)
    maintained = work.wait_for_maintenance()
    if maintained is not None:  # it may well be the work that makes it fire
        return maintained
    return work.escalate(
        f"the measurements are good ({incident.reason}), but the alert still fires:"
        " it may mean something else"
    )


def _look_again(work: Work, sample: Sample) -> Transition:
    return Transition(
        phase=Phase.VERIFY,
        due_in=work.playbook.parameters.verification.interval,
        events=(work.event(f"looks {sample.assessment}", sample.evidence),),
        notify=False,
    )


def _revert_next(work: Work, judged: Verdict) -> Transition:
    event = work.event(f"verdict: {judged.assessment}", judged.reason)
    return Transition(phase=Phase.REVERT, reason=judged.reason, events=(event,))


def _follow(work: Work, judged: Verdict) -> Transition:
    event = work.event(f"verdict: {judged.assessment}", judged.reason)
    match judged.assessment:
        case Assessment.CANNOT_TELL:
            return work.escalate(f"it is not known whether it helped: {judged.reason}")
        case Assessment.NOT_BETTER:
            return work.again(f"it did not help: {judged.reason}", event)
        case Assessment.BETTER:
            if not work.claim.firing or work.claim.incident.replay_of is not None:
                closing = close(work.claim, IncidentOutcome.MITIGATED, judged.reason)
                return closing.model_copy(update={"events": (event, *closing.events)})
            within = work.playbook.parameters.verification.resolve_within
            return Transition(
                phase=Phase.SETTLE, due_in=within, reason=judged.reason, events=(event,)
            )
