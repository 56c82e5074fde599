"""DIAGNOSE: the playbook looks, in parallel and within bounds, and says what it would do."""

from __future__ import annotations

import asyncio

import structlog

from remediator.model.base import Value
from remediator.model.errors import PermanentError, TemporaryError
from remediator.model.finding import Finding, FindingStatus, Sense, SenseState
from remediator.model.incident import Phase
from remediator.model.mitigation import Proposal
from remediator.model.transition import Transition
from remediator.playbook.base import Context, Findings, Parameters, Playbook, returned
from remediator.remediation.step import SEEN_AGAIN, StepContext, probe, says_the_same

DIAGNOSIS_TIMEOUT = 30.0
"""Seconds that a whole diagnosis may take, whatever its checks do."""

_log = structlog.get_logger(__name__)


class Diagnosis(Value):
    """What was seen, and what the playbook would do about it."""

    findings: tuple[Finding, ...]
    proposal: Proposal
    impaired: tuple[str, ...]
    """Senses that the playbook needs and that cannot be trusted now, a sentence each."""


async def look_and_propose(playbook: Playbook[Parameters], context: Context) -> Diagnosis:
    """Look, in parallel and within a bound; whatever fails is an unknown finding."""
    senses, findings = await asyncio.gather(
        probe(context.ports, playbook.senses), _look(playbook, context)
    )
    impaired = tuple(
        f"{sense.name}: {sense.reason}" for sense in senses if sense.state is SenseState.IMPAIRED
    )
    seen = (*_as_findings(senses), *findings.values())
    return Diagnosis(
        findings=seen, proposal=_propose(playbook, context, findings), impaired=impaired
    )


def _as_findings(senses: list[Sense]) -> list[Finding]:
    status = {SenseState.OK: FindingStatus.FINE, SenseState.IMPAIRED: FindingStatus.PROBLEM}
    return [
        Finding(
            name=f"sense {sense.name}",
            status=status[sense.state],
            summary=f"{sense.name} can be trusted" if not sense.reason else sense.reason,
            value=sense,
        )
        for sense in senses
        if sense.state in status
    ]


async def _look(playbook: Playbook[Parameters], context: Context) -> Findings:
    try:
        async with asyncio.timeout(DIAGNOSIS_TIMEOUT):
            return returned(await playbook.diagnose(context), Findings, "diagnose")
    except TimeoutError:
        reason = f"the diagnosis took longer than {DIAGNOSIS_TIMEOUT:g} s"
    except (TemporaryError, PermanentError) as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - author's code: its failure is a finding
        _log.exception("diagnosis_failed", playbook=playbook.name)
        reason = f"the playbook {playbook.name} failed: {_first_line(error)}"
    unknown = Finding(name="diagnosis", status=FindingStatus.UNKNOWN, summary=reason)
    return Findings({unknown.name: unknown})


def _propose(playbook: Playbook[Parameters], context: Context, findings: Findings) -> Proposal:
    if "diagnosis" in findings and findings["diagnosis"].status is FindingStatus.UNKNOWN:
        return Proposal(reason=f"nothing is proposed: {findings['diagnosis'].summary}")
    try:
        proposal = returned(playbook.propose(context, findings), Proposal, "propose")
    except Exception as error:  # noqa: BLE001 - author's code: its failure is no reason to act
        _log.exception("proposal_failed", playbook=playbook.name)
        return Proposal(reason=f"the playbook {playbook.name} failed: {_first_line(error)}")
    return _checked(playbook, context, proposal)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _checked(playbook: Playbook[Parameters], context: Context, proposal: Proposal) -> Proposal:
    """Drop what the playbook may not propose: undeclared levers, foreign or empty targets."""
    allowed = list(context.targets.values())
    kept = tuple(
        mitigation
        for mitigation in proposal.mitigations
        if mitigation.kind in playbook.levers and mitigation.target in allowed
    )
    if len(kept) == len(proposal.mitigations):
        return proposal
    reason = f"{proposal.reason}; left out: levers or targets that {playbook.name} does not declare"
    return Proposal(mitigations=kept, reason=reason)


ROUNDS = 8
"""Most rounds of one incident, whatever they find."""


async def diagnose(work: StepContext) -> Transition:
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
    seen = await look_and_propose(work.playbook, work.context)
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
