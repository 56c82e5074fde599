"""VERIFY and REVERT: did it help? Samples over time, and what follows from their verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import structlog

from remediator.model.errors import PermanentError, TemporaryError
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.mitigation import Mitigation, MitigationState
from remediator.model.transition import Settlement, Transition
from remediator.model.verdict import Assessment, Sample, Verdict, Verification
from remediator.playbook.base import Context, Parameters, Playbook, returned
from remediator.remediation import call
from remediator.remediation.step import SEEN_AGAIN, StepContext, close

SAMPLE_TIMEOUT = 20.0
"""Seconds that one look may take."""

_log = structlog.get_logger(__name__)


async def take_sample(
    playbook: Playbook[Parameters], context: Context, mitigation: Mitigation
) -> Sample:
    """Ask the playbook once; whatever fails is ``cannot_tell`` with the reason."""
    try:
        async with asyncio.timeout(SAMPLE_TIMEOUT):
            return returned(await playbook.verify(context, mitigation), Sample, "verify")
    except TimeoutError:
        reason = f"no answer within {SAMPLE_TIMEOUT:g} s"
    except (TemporaryError, PermanentError) as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - author's code: its failure proves nothing
        _log.exception("verification_failed", playbook=playbook.name)
        reason = f"the playbook {playbook.name} failed: {type(error).__name__}: {error}"
    return Sample(at=context.now, assessment=Assessment.CANNOT_TELL, evidence=reason)


def verdict(
    samples: Sequence[Sample],
    verification: Verification,
    *,
    resolved: bool,
    since: datetime,
    now: datetime,
) -> Verdict | None:
    """Judge what was seen since ``since``; None while it is too early.

    Better needs an unbroken run of good samples over the hold time; a resolve shortens it only
    where that is configured. At the deadline the last sample decides, but a good run under way is
    given the time to complete. A sample that is final and not better decides at once.

    Nobody looked in a long gap, nor in one that a clock made: it breaks a run, and proves nothing
    else. So the deadline is counted in time in which looks were taken. What looks better whenever
    somebody can look is never put back for want of looks: a human gets it in the end.
    """
    gap = 2 * verification.interval + timedelta(seconds=SAMPLE_TIMEOUT)
    good = _good_run(samples, gap)
    hold = verification.held(resolved=resolved)
    if len(good) > 1 and good[0].at - good[-1].at >= hold:
        seconds = (good[0].at - good[-1].at).total_seconds()
        reason = f"{good[0].evidence} (held for {seconds:.0f} s over {len(good)} samples)"
        return Verdict(assessment=Assessment.BETTER, reason=reason)
    if samples and samples[-1].final and samples[-1].assessment is Assessment.NOT_BETTER:
        return Verdict(assessment=Assessment.NOT_BETTER, reason=samples[-1].evidence)
    looked = _looked([since, *(sample.at for sample in samples), now], gap, verification.interval)
    if not samples or looked < verification.deadline:
        return None
    last = samples[-1]
    if last.assessment is not Assessment.BETTER:
        return Verdict(assessment=last.assessment, reason=last.evidence)
    if looked < verification.deadline + 2 * hold + gap:
        return None
    reason = (
        f"it looks better, but there were too many gaps between samples to be sure: {last.evidence}"
    )
    return Verdict(assessment=Assessment.CANNOT_TELL, reason=reason)


def _good_run(samples: Sequence[Sample], gap: timedelta) -> list[Sample]:
    """Return the unbroken run of good samples at the end, newest first."""
    run: list[Sample] = []
    for sample in reversed(samples):
        seen = not run or timedelta(0) <= run[-1].at - sample.at <= gap
        if sample.assessment is not Assessment.BETTER or not seen:
            break
        run.append(sample)
    return run


def _looked(times: Sequence[datetime], gap: timedelta, interval: timedelta) -> timedelta:
    """Add the time up between looks; a gap counts as one interval, so that there is an end."""
    passed = (after - before for before, after in pairwise(times))
    return sum((one if timedelta(0) <= one <= gap else interval for one in passed), timedelta(0))


async def verify(work: StepContext) -> Transition:
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


async def revert(work: StepContext) -> Transition:
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
        outcome = await call.revert(work.lever(entry.mitigation), entry)
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


async def _halted(work: StepContext) -> Transition | None:
    halt = await work.around.paused(work.claim.incident)
    if halt is None:
        return None
    if halt.until is not None:  # a window began just now: the next look waits for its end
        return Transition(phase=Phase.REVERT, notify=False)
    if work.out_of_patience:
        return work.escalate(f"the change was not reverted: {halt.reason}")
    return work.wait(f"not reverted yet: {halt.reason}", SEEN_AGAIN, code=halt.code)


async def settle(work: StepContext) -> Transition:
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


def _look_again(work: StepContext, sample: Sample) -> Transition:
    return Transition(
        phase=Phase.VERIFY,
        due_in=work.playbook.parameters.verification.interval,
        events=(work.event(f"looks {sample.assessment}", sample.evidence),),
        notify=False,
    )


def _revert_next(work: StepContext, judged: Verdict) -> Transition:
    event = work.event(f"verdict: {judged.assessment}", judged.reason)
    return Transition(phase=Phase.REVERT, reason=judged.reason, events=(event,))


def _follow(work: StepContext, judged: Verdict) -> Transition:
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
