"""The pipeline: which step an incident takes next. The only module that knows all steps.

    DIAGNOSE -> DECIDE -> (APPROVAL ->) ACT -> VERIFY -> SETTLE -> closed
        ^                               |        |
        +---- not made, or not better --+--------+ (after REVERT where there is an undo)

Each step reads a claim and returns one ``Transition``; the worker writes it in one transaction.
A crash repeats the step, except ACT: a reservation without an outcome is looked at instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from remediator.model.errors import ConfigError
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.mitigation import MitigationState
from remediator.model.transition import Claim, Transition
from remediator.remediation import act, decide, diagnose, verify
from remediator.remediation.step import EngineContext, StepContext, close
from remediator.store.ledger import LATEST

Step = Callable[[StepContext], Awaitable[Transition]]

STEPS: Mapping[Phase, Step] = {
    Phase.DIAGNOSE: diagnose.diagnose,
    Phase.DECIDE: decide.decide,
    Phase.APPROVAL: decide.await_approval,
    Phase.ACT: act.act,
    Phase.VERIFY: verify.verify,
    Phase.REVERT: verify.revert,
    Phase.SETTLE: verify.settle,
}


async def take_step(around: EngineContext, claim: Claim) -> Transition:
    """Take the one step that ``claim`` is at."""
    started = around.monotonic()
    incident = claim.incident
    service = around.catalogue.service(incident.system, incident.service)
    enabled = service.playbooks.get(incident.playbook or "") if service is not None else None
    if service is None or enabled is None:
        reason = f"the configuration no longer has {incident.playbook} for {incident.service}"
        return _given_up(claim, reason)
    try:
        playbook = around.playbooks.build(enabled.name, enabled.parameters)
    except ConfigError as error:
        return _given_up(claim, str(error))
    work = StepContext(around, claim, service, enabled, playbook, started)
    return await STEPS[incident.phase](work)


def _given_up(claim: Claim, reason: str) -> Transition:
    """Close what cannot go on, once no call of it can be on its way any more."""
    reserved = [e for e in claim.entries if e.state is MitigationState.RESERVED]
    landed = [e.apply_before + LATEST for e in reserved if e.apply_before is not None]
    left = max(landed, default=claim.now) - claim.now
    if left > timedelta(0):
        return Transition(phase=claim.incident.phase, due_in=left, notify=False)
    return close(claim, IncidentOutcome.ESCALATED, reason)
