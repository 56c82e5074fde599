"""DECIDE and APPROVAL: what policy and limits make of the proposal, and who is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

from remediator.model.errors import BackendUnavailable, PermanentError
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.lookback import Allowance
from remediator.model.mitigation import (
    Decision,
    Effect,
    Item,
    LedgerEntry,
    Mitigation,
    MitigationState,
    Preparation,
    Proposal,
)
from remediator.model.target import Mode
from remediator.model.transition import LimitUsage, Settlement, Transition
from remediator.remediation.call import not_prepared, prepare
from remediator.remediation.limits import Plan, judge
from remediator.remediation.step import SEEN_AGAIN, StepContext, close

_MADE = (MitigationState.APPLIED, MitigationState.UNKNOWN, MitigationState.REVERTED)


def choose(proposal: Proposal | None, entries: Iterable[LedgerEntry]) -> Mitigation | None:
    """Return the best proposed mitigation that this incident has not made already."""
    made = [
        (entry.mitigation.kind, entry.mitigation.target.key, _identities(entry.mitigation.items))
        for entry in entries
        if entry.state in _MADE
    ]
    for mitigation in proposal.mitigations if proposal is not None else ():
        this = (mitigation.kind, mitigation.target.key, _identities(mitigation.items))
        if this not in made:
            return mitigation
    return None


def _identities(items: Sequence[Item]) -> list[dict[str, object]]:
    return [dict(item.identity) for item in items]


def apply_policy(
    mode: Mode,
    *,
    dry_run: bool,
    impaired: Sequence[str],
    standing: LimitUsage,
    allowance: Allowance,
    plan: Plan,
) -> Decision:
    """Say what policy, senses and bounds make of a mitigation at this moment."""
    limits = judge(standing, allowance, plan, agreed=mode is Mode.APPROVE)
    if dry_run or mode in (Mode.OBSERVE, Mode.SHADOW):
        code = "dry_run" if dry_run else str(mode)
        would = _would(limits, impaired)
        reason = f"{_only_recorded(mode, dry_run=dry_run)}; {_AT_MOST[mode]} {would}"
        return Decision(effect=Effect.SHADOW, code=code, reason=reason)
    if impaired:
        reason = f"a data source cannot be trusted, so nothing is changed: {'; '.join(impaired)}"
        return Decision(effect=Effect.WAIT, code="senses", reason=reason)
    if limits.effect is not Effect.ALLOW:
        return limits
    if mode is Mode.APPROVE:
        reason = "the mode is approve: a human has to agree first"
        return Decision(effect=Effect.ASK, code="approve", reason=reason)
    return limits


def _would(limits: Decision, impaired: Sequence[str]) -> str:
    if limits.effect is Effect.ALLOW and not impaired:
        return "it would have been applied"
    if limits.effect is Effect.ASK and not impaired:
        return f"a human would have been asked: {limits.reason}"
    return f"it would not have been applied: {'; '.join(impaired) or limits.reason}"


_AT_MOST = {
    Mode.OBSERVE: "in mode auto",
    Mode.SHADOW: "in mode auto",
    Mode.APPROVE: "for real, once a human agrees,",
    Mode.AUTO: "for real",
}
"""When it would have been more than recorded."""


def _only_recorded(mode: Mode, *, dry_run: bool) -> str:
    if not dry_run:
        return f"the mode is {mode}, so it is only recorded"
    if mode in (Mode.OBSERVE, Mode.SHADOW):
        return f"this is a dry run, and the mode is {mode}: for real it would only be recorded too"
    return f"this is a dry run, and the mode is {mode}"


MUTATIONS_PER_INCIDENT = 3
"""Most changes that one incident may make (procedures, section 0)."""
RECHECK = timedelta(seconds=2)
"""Time between two decisions while waiting; an event wakes it earlier."""
DELIVERED_WITHIN = timedelta(seconds=60)
"""Time in which the request for an approval has to be delivered; then the levels of the escalation
begin, and what they deliver counts as the request."""
FRESH = timedelta(seconds=30)
"""Age up to which a diagnosis may be acted upon without looking again."""


async def decide(work: StepContext) -> Transition:
    """Decide about the best proposal that this incident has not tried yet."""
    claim = work.claim
    if not claim.firing:
        return work.resolved_by_itself()
    maintained = work.wait_for_maintenance(Phase.DIAGNOSE)
    if maintained is not None:
        return maintained
    if claim.now - claim.incident.phase_since > FRESH:
        return Transition(phase=Phase.DIAGNOSE, notify=False)
    waiting = work.wait_for_cause() or work.wait_for_causes_alert()
    if waiting is not None:
        return waiting
    proposal = claim.proposal or Proposal(reason="the playbook proposed nothing")
    mitigation = choose(proposal, claim.entries)
    if mitigation is None:
        return _nothing_left(work, proposal)
    if not work.still_configured(mitigation):  # the configuration changed: look afresh
        return Transition(phase=Phase.DIAGNOSE, next_round=True, notify=False)
    if len(work.made) >= MUTATIONS_PER_INCIDENT:
        return work.escalate(f"{MUTATIONS_PER_INCIDENT} mitigations did not fix it")
    return await _follow(work, mitigation, await _decided(work, mitigation))


async def _decided(work: StepContext, plan: Plan) -> Decision:
    """Decide about what is proposed, or about what the live state made of it."""
    mitigation = plan.mitigation if isinstance(plan, Preparation) else plan
    incident, allowance = work.claim.incident, work.allowance(mitigation)
    standing = await work.around.ledger.standing(incident, mitigation, allowance)
    proposal = work.claim.proposal
    return apply_policy(
        work.enabled.modes[mitigation.risk],
        dry_run=incident.dry_run,
        impaired=() if proposal is None else proposal.impaired,
        standing=work.around.whole(incident, standing),
        allowance=allowance,
        plan=plan,
    )


async def await_approval(work: StepContext) -> Transition:
    """Wait for a human; no answer in time is a no, and a human is told, but not in a window."""
    entry = work.find(MitigationState.AWAITING_APPROVAL)
    if not work.claim.firing:
        return work.resolved_by_itself()
    if entry is not None and work.maintenance is not None and _over(entry, work):
        return expired(work, entry)
    if entry is not None and entry.answer_within is not None and entry.asked_at is None:
        return _unheard(work, entry, entry.answer_within)
    if entry is None or entry.expires_at is None or _over(entry, work):
        return work.escalate(f"{_agreed(entry)} the plan in time; it was not applied")
    return Transition(phase=Phase.APPROVAL, due_in=entry.expires_at - work.claim.now, notify=False)


def _unheard(work: StepContext, entry: LedgerEntry, within: timedelta) -> Transition:
    """Wait for the request to be delivered, call humans another way, and give up at last."""
    waited = work.claim.now - entry.created_at
    if waited >= DELIVERED_WITHIN + within:
        reason = "the request for an approval could not be delivered, so nobody was asked"
        return work.escalate(f"{reason}; the plan was not carried out")
    late = waited >= DELIVERED_WITHIN
    left = (DELIVERED_WITHIN + within if late else DELIVERED_WITHIN) - waited
    return Transition(phase=Phase.APPROVAL, due_in=left, calls=late, notify=False)


def expired(work: StepContext, entry: LedgerEntry) -> Transition:
    """Forget a plan whose time a maintenance window took: after it, look afresh and ask again."""
    reason = "the plan expired during maintenance; the incident is diagnosed again"
    settlement = Settlement(
        id=entry.id, state=MitigationState.EXPIRED, reason=reason, in_flight=False
    )
    again = work.again(reason, work.event("plan expired", reason), settlement)
    return again.model_copy(update={"notify": False})


def _agreed(entry: LedgerEntry | None) -> str:
    if entry is None or not entry.approvals:
        return "nobody approved"
    return f"{len(entry.approvals)} of {entry.approvals_needed} approved"


def _over(entry: LedgerEntry, work: StepContext) -> bool:
    return entry.expires_at is not None and work.claim.now >= entry.expires_at


async def _follow(work: StepContext, mitigation: Mitigation, decision: Decision) -> Transition:
    match decision.effect:
        case Effect.ALLOW:
            event = work.event("allowed", decision.reason)
            return Transition(phase=Phase.ACT, reason=mitigation.reason, events=(event,))
        case Effect.ASK:
            return await _ask(work, mitigation, decision)
        case Effect.SHADOW:
            return await _shadow(work, mitigation, decision)
        case Effect.DENY | Effect.WAIT:
            return refused(work, mitigation, decision)


def refused(work: StepContext, mitigation: Mitigation, decision: Decision) -> Transition:
    """Wait for what passes; close as denied, with the reason, for what does not."""
    if decision.code == "resolved":
        return work.resolved_by_itself()
    if decision.code == "maintenance":  # it began just now: the diagnosis waits for its end
        return Transition(phase=Phase.DIAGNOSE, notify=False)
    if decision.effect is Effect.ASK:  # what worked came back just now
        return Transition(phase=Phase.DECIDE, notify=False)
    if decision.effect is Effect.WAIT and work.can_wait_for(decision):
        return work.wait(decision.reason, decision.again_in or RECHECK, code=decision.code)
    preparation = Preparation(mitigation=mitigation)
    entry = work.entry(preparation, MitigationState.DENIED, decision.reason)
    reason = f"{decision.code}: {decision.reason}"
    closing = close(work.claim, IncidentOutcome.DENIED, reason)
    return closing.model_copy(update={"entry": entry})


async def _ask(work: StepContext, mitigation: Mitigation, decision: Decision) -> Transition:
    try:
        preparation = await prepare(work.lever(mitigation), mitigation)
    except (BackendUnavailable, PermanentError) as error:
        return not_prepared(work, mitigation, error)
    again = await _decided(work, preparation)
    if again.effect in (Effect.DENY, Effect.WAIT):  # nobody is asked for what would be refused
        return refused(work, mitigation, again)
    incident, plan = work.claim.incident, preparation.mitigation
    other = await work.around.ledger.asked_elsewhere(incident, plan)
    if other is not None:
        reason = (
            f"{other} already asks for approval to change the same items: waiting for that decision"
        )
        return work.wait(reason, SEEN_AGAIN, code="asked").model_copy(update={"progress": True})
    asked_for = mitigation.reason
    if decision.code != "approve":
        asked_for = f"{asked_for}; {decision.reason}"
    within = work.service.approval_times[work.claim.incident.severity]
    waiting = MitigationState.AWAITING_APPROVAL
    entry = work.entry(preparation, waiting, decision.reason)
    asked = {
        "expires_at": work.claim.now + within,
        "approvals_needed": work.approvers(mitigation),
        "answer_within": within if work.around.confirms else None,
    }
    return Transition(
        phase=Phase.APPROVAL,
        due_in=DELIVERED_WITHIN if work.around.confirms else within,
        reason=f"waiting for approval: {mitigation.reason}",
        entry=entry.model_copy(update=asked),
        events=(work.event("approval asked", asked_for, plan=entry.plan_hash),),
    )


async def _shadow(work: StepContext, mitigation: Mitigation, decision: Decision) -> Transition:
    reason, preparation = decision.reason, Preparation(mitigation=mitigation)
    try:
        preparation = await prepare(work.lever(mitigation), mitigation)
        reason = (await _decided(work, preparation)).reason
    except (BackendUnavailable, PermanentError) as error:
        reason = f"{reason}; not validated: {error}"
    entry = work.entry(preparation, MitigationState.SHADOWED, reason)
    summary = f"{reason} ({mitigation.reason})"
    closing = close(work.claim, IncidentOutcome.SHADOWED, summary)
    return closing.model_copy(update={"entry": entry})


def _nothing_left(work: StepContext, proposal: Proposal) -> Transition:
    made = work.made
    reason = f"{proposal.reason}; changes made before: {len(made)}" if made else proposal.reason
    if proposal.impaired:
        reason = f"{reason}; impaired: {'; '.join(proposal.impaired)}"
    if work.never_changes:
        return close(work.claim, IncidentOutcome.SHADOWED, f"nothing would be done: {reason}")
    if proposal.wait is not None and not work.out_of_patience:
        waiting = work.wait(f"waiting: {proposal.reason}", proposal.wait, code="playbook")
        return waiting.model_copy(update={"phase": Phase.DIAGNOSE})
    if any(entry.state is MitigationState.REVERTED for entry in made):
        return close(work.claim, IncidentOutcome.REVERTED, reason)
    return work.escalate(reason)
