"""The step DIAGNOSE: look, and ask the playbook what it would do."""

from __future__ import annotations

from remediator.model import Phase
from remediator.store.queue import Transition
from remediator.triage import diagnose as look
from remediator.work import SEEN_AGAIN, Work, says_the_same

ROUNDS = 8
"""Most rounds of one incident, whatever they find."""


async def diagnose(work: Work) -> Transition:
    """Diagnose; where our senses are impaired and something might be changed, look again later."""
    if not work.claim.firing:
        return work.resolved_by_itself()
    maintained = work.wait_for_maintenance()
    if maintained is not None:
        return maintained
    if work.claim.incident.round >= ROUNDS:
        reason = f"{ROUNDS} diagnoses did not lead to a mitigation that helped; the last"
        return work.escalate(f"{reason}: {work.claim.incident.reason}")
    waiting = work.wait_for_cause()
    if waiting is not None:
        return waiting
    seen = await look.diagnose(work.playbook, work.context)
    if seen.impaired and not work.never_changes and not work.out_of_patience:
        reason = (
            f"a data source cannot be trusted, so nothing is changed: {'; '.join(seen.impaired)}"
        )
        return work.wait(reason, SEEN_AGAIN, code="senses", findings=seen.findings)
    proposal = seen.proposal.model_copy(update={"impaired": seen.impaired})
    known = work.claim.proposal
    if (
        proposal.wait is not None
        and known is not None
        and says_the_same(proposal.reason, known.reason)
    ):
        return Transition(phase=Phase.DECIDE, proposal=proposal, notify=False)
    return Transition(
        phase=Phase.DECIDE,
        reason=proposal.reason,
        findings=seen.findings,
        proposal=proposal,
        events=(work.event("diagnosed", proposal.reason),),
    )
