"""Logs and events are read, and so kept, before pods are replaced: a replacement deletes them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Literal

from remediator.model.errors import BackendUnavailable
from remediator.model.finding import Finding, FindingStatus
from remediator.model.kinds import KINDS, STRICTEST
from remediator.model.mitigation import Mitigation, Proposal
from remediator.playbook.base import Context, Findings, Parameters
from remediator.playbook.checks.logs import LogEvidence, events_finding, log_evidence

LINES = 50
"""Of each container's log."""
WITHIN = 15.0
"""Seconds for all logs, of as many pods as there are."""
AGAIN = timedelta(seconds=30)
"""Until what could not be read is looked at again."""


class EvidenceBounds(Parameters):
    """For playbooks that replace pods."""

    evidence: Literal["required", "optional"] = "required"
    """Whether pods are replaced only after their logs and events were read (runbooks: M-EV-01), or
    also where they cannot be."""

    def kept_first(self, proposal: Proposal, findings: Findings) -> Proposal:
        """Return ``proposal``, or a wait where it would replace pods whose traces were not read."""
        replacing = [one for one in proposal.mitigations if _replaces(one)]
        lost = [what for one in replacing for what in _unread(one, findings)]
        if self.evidence == "optional" or not lost:
            return proposal
        why = f"Nothing is replaced until its logs and events have been read: {'; '.join(lost)}."
        said = f"{proposal.reason} {why} (evidence: optional would do without)"
        return Proposal(reason=said, wait=AGAIN, noted=proposal.noted)


async def traces_read(context: Context) -> Findings:
    """Read logs and events of the workload, at the same time."""
    logs, events = await asyncio.gather(
        context.gather({"logs": _logs(context)}, WITHIN),
        context.gather({"events": events_finding(context)}),
    )
    return Findings(logs | events)


def _replaces(mitigation: Mitigation) -> bool:
    return KINDS.get(mitigation.kind, STRICTEST).touches


def _unread(mitigation: Mitigation, findings: Findings) -> list[str]:
    """Say what was not read of all that ``mitigation`` would end."""
    unknown = findings.unknown("logs", "events")
    kept = findings.evidence("logs", LogEvidence)
    if unknown or kept is None:
        return unknown
    read = {log.pod for log in kept.logs if not log.missing}
    pods = {str(item.identity["pod"]) for item in mitigation.items if "pod" in item.identity}
    return [f"no log of {pod} could be read" for pod in sorted(pods - read)]


async def _logs(context: Context) -> Finding:
    """Keep what the containers wrote, above all those that were killed."""
    kept = log_evidence(await context.pods().logs(context.targets["workload"], lines=LINES))
    if not kept.read:
        raise BackendUnavailable("no container's log can be read")
    status = FindingStatus.PROBLEM if kept.telling else FindingStatus.FINE
    return Finding(name="logs", status=status, summary=kept.summary, value=kept)
