"""The step ACT: reserve, re-check, write once; or look at what somebody left unfinished."""

from __future__ import annotations

from datetime import timedelta

from remediator.model.errors import BackendUnavailable, PermanentError, TemporaryError
from remediator.model.finding import SenseState
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.mitigation import (
    Decision,
    Effect,
    LedgerEntry,
    Mitigation,
    MitigationState,
    Outcome,
    Preparation,
)
from remediator.model.target import Mode
from remediator.model.transition import Settlement, Transition
from remediator.model.verdict import Assessment, Sample
from remediator.remediation.call import (
    SETTLE_TIME,
    TELLS_WITHIN,
    not_prepared,
    observe,
    prepare,
    pull,
)
from remediator.remediation.decide import RECHECK, choose, expired, refused
from remediator.remediation.limits import judge
from remediator.remediation.step import PATIENCE, SEEN_AGAIN, StepContext, close, probe
from remediator.store.ledger import LATEST


async def act(work: StepContext) -> Transition:
    """Make the allowed or approved change, once."""
    reserved = work.find(MitigationState.RESERVED)
    if reserved is not None:
        return await _look(work, reserved)
    if not work.claim.firing:
        return work.resolved_by_itself()
    approved = work.find(MitigationState.APPROVED)
    maintained = work.wait_for_maintenance(Phase.DIAGNOSE if approved is None else None)
    if maintained is not None:
        return maintained
    if approved is not None and _stale(work, approved):
        return expired(work, approved)
    mitigation = (
        choose(work.claim.proposal, work.claim.entries) if approved is None else approved.mitigation
    )
    needed = Mode.AUTO if approved is None else Mode.APPROVE
    if mitigation is None or not _allows(work, mitigation, needed) or _too_few(work, approved):
        return _configuration_changed(work, approved)
    impaired = await _impaired(work)
    if impaired is not None:
        decision = Decision(effect=Effect.WAIT, code="senses", reason=impaired)
        return _refused(work, mitigation, decision, approved)
    try:
        preparation = await prepare(work.lever(mitigation), mitigation)
    except (BackendUnavailable, PermanentError) as error:
        return not_prepared(work, mitigation, error, approved)
    return await _reserve_and_pull(work, preparation, approved)


async def _reserve_and_pull(
    work: StepContext, preparation: Preparation, approved: LedgerEntry | None
) -> Transition:
    mitigation, incident = preparation.mitigation, work.claim.incident
    allowance = work.allowance(mitigation)
    entry = work.entry(preparation, MitigationState.RESERVED, mitigation.reason)
    if approved is not None:
        live = {"mitigation": mitigation, "before": entry.before, "undo": entry.undo}
        entry = approved.model_copy(update=live)
    deadline = work.around.ledger.apply_deadline(work.around.monotonic())
    decision, reserved = await work.around.ledger.reserve(
        incident,
        entry,
        allowance,
        lambda standing: judge(
            work.around.whole(incident, standing),
            allowance,
            preparation,
            agreed=approved is not None,
        ),
    )
    if reserved is None:
        return _refused(work, mitigation, decision, approved)
    outcome = await pull(
        work.lever(mitigation),
        reserved,
        deadline,
        lambda: work.around.paused(incident, reserved.apply_before),
        work.around.monotonic,
    )
    return _after(work, reserved, outcome)


async def _look(work: StepContext, entry: LedgerEntry) -> Transition:
    # a reservation without an outcome: somebody died, or an answer was lost
    left = _certain_in(work, entry)
    if left > timedelta(0):
        return Transition(phase=Phase.ACT, due_in=left, notify=False)
    try:
        lever = work.lever(entry.mitigation)
    except PermanentError as error:
        landed = _certain_in(work, entry, LATEST) <= timedelta(0)
        return _unsure(work, entry, str(error), over=landed)
    try:
        outcome = await observe(lever, entry)
    except (TemporaryError, PermanentError) as error:
        unseen = f"its state cannot be read: {error}"
        return _unsure(work, entry, unseen, over=work.out_of_patience)
    if outcome.state is MitigationState.NOT_APPLIED:
        unsure = _not_seen_yet(work, entry, outcome)
        if unsure is not None:
            return unsure
    if outcome.state is MitigationState.UNKNOWN:
        over = _certain_in(work, entry, TELLS_WITHIN) <= timedelta(0)
        return _unsure(work, entry, outcome.detail, over=over)
    if outcome.state is MitigationState.NOT_APPLIED and not lever.conditional:
        return _unknown(work, entry, f"the change is not visible on the backend: {outcome.detail}")
    detail = f"{outcome.detail} (found by looking at the backend: the answer was lost, or the process ended)"
    return _after(work, entry, outcome.model_copy(update={"detail": detail}))


def _not_seen_yet(work: StepContext, entry: LedgerEntry, outcome: Outcome) -> Transition | None:
    """Look again before it is taken for not made; None once that is certain.

    By the time of the reservation, and by that of the first look as well: were the clock put
    forward meanwhile, the call may have only just begun.
    """
    now, looks = work.claim.now, work.claim.samples
    first = min([look.at for look in looks], default=now)
    after_look = first + work.around.ledger.apply_within + LATEST - now
    left = max(_certain_in(work, entry, LATEST), after_look)
    if left <= timedelta(0):
        return None
    look = Sample(at=now, assessment=Assessment.CANNOT_TELL, evidence=outcome.detail)
    waiting = Transition(phase=Phase.ACT, due_in=left, notify=False)
    return waiting if looks else waiting.model_copy(update={"sample": (entry.id, look)})


def _after(work: StepContext, entry: LedgerEntry, outcome: Outcome) -> Transition:
    event = work.event(f"{entry.mitigation.kind}: {outcome.state}", outcome.detail)
    settlement = Settlement(
        id=entry.id,
        state=outcome.state,
        items=outcome.items,
        in_flight=outcome.state is MitigationState.APPLIED,
        evidence=outcome.detail,
    )
    match outcome.state:
        case MitigationState.APPLIED:
            return Transition(
                phase=Phase.VERIFY,
                due_in=work.playbook.parameters.verification.interval,
                reason=outcome.detail,
                settlement=settlement,
                events=(event,),
            )
        case MitigationState.NOT_APPLIED:
            return work.again(outcome.detail, event, settlement)
        case _:  # it stays reserved: whoever claims it next looks
            due = max(_certain_in(work, entry), RECHECK)
            return Transition(phase=Phase.ACT, due_in=due, events=(event,))


def _certain_in(work: StepContext, entry: LedgerEntry, after: timedelta = SETTLE_TIME) -> timedelta:
    """Return the time until a call that was begun in time has reached its backend."""
    return (entry.apply_before or work.claim.now) + after - work.claim.now


def _unsure(work: StepContext, entry: LedgerEntry, reason: str, *, over: bool) -> Transition:
    if over:
        return _unknown(work, entry, reason)
    return work.wait(reason, SEEN_AGAIN, code="outcome unknown")


def _unknown(work: StepContext, entry: LedgerEntry, reason: str) -> Transition:
    settlement = Settlement(
        id=entry.id, state=MitigationState.UNKNOWN, in_flight=False, evidence=reason
    )
    why = f"it is not known whether {entry.mitigation.kind} was applied ({reason})"
    escalation = work.escalate(f"{why}; it is not repeated")
    return escalation.model_copy(update={"settlement": settlement})


def _refused(
    work: StepContext, mitigation: Mitigation, decision: Decision, approved: LedgerEntry | None
) -> Transition:
    if approved is None:
        return refused(work, mitigation, decision)
    if decision.code == "maintenance":  # it began just now: what was approved waits for its end
        return Transition(phase=Phase.ACT, notify=False)
    if decision.effect is Effect.WAIT and work.can_wait_for(decision):
        again = decision.again_in or RECHECK
        return work.wait(decision.reason, again, code=decision.code)
    settlement = Settlement(
        id=approved.id,
        state=MitigationState.DENIED,
        reason=f"approved, but refused: {decision.reason}",
        in_flight=False,
    )
    closing = close(work.claim, IncidentOutcome.DENIED, f"{decision.code}: {decision.reason}")
    return closing.model_copy(update={"settlement": settlement})


def _stale(work: StepContext, approved: LedgerEntry) -> bool:
    # nothing but a window makes a plan wait for longer than our patience
    return approved.expires_at is not None and work.claim.now > approved.expires_at + PATIENCE


def _allows(work: StepContext, mitigation: Mitigation, needed: Mode) -> bool:
    order = list(Mode)
    reaches = order.index(work.mode(mitigation)) >= order.index(needed)
    return reaches and work.still_configured(mitigation)


def _too_few(work: StepContext, approved: LedgerEntry | None) -> bool:
    # more persons must agree today than when it was asked
    return approved is not None and len(approved.approvals) < work.approvers(approved.mitigation)


def _configuration_changed(work: StepContext, approved: LedgerEntry | None) -> Transition:
    if approved is None:  # decide again
        return Transition(phase=Phase.DECIDE, notify=False)
    reason = (
        "the configuration no longer allows it: its mode, target, lever or approvals have changed"
    )
    decision = Decision(effect=Effect.DENY, code="configuration", reason=reason)
    return _refused(work, approved.mitigation, decision, approved)


async def _impaired(work: StepContext) -> str | None:
    senses = await probe(work.context.ports, work.playbook.senses)
    bad = [f"{s.name}: {s.reason}" for s in senses if s.state is SenseState.IMPAIRED]
    return (
        f"a data source cannot be trusted, so nothing is changed: {'; '.join(bad)}" if bad else None
    )
