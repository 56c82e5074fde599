"""What people are asked to approve, and what became of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.mitigation import MitigationState
from remediator.model.views import ApprovalRequest, Frame, IncidentView, MitigationView
from remediator.notify.actions import action

_EVERYBODY = 1
"""Approvals needed where one person's is enough."""


def requests(view: IncidentView, frame: Frame) -> Iterable[ApprovalRequest]:
    """Return what was asked for in the incident, the oldest first."""
    for mitigation in sorted(view.mitigations, key=lambda m: m.created_at):
        if waits(view, mitigation) or mitigation.expires_at is not None:
            yield _request(view, mitigation, frame)


def waits(view: IncidentView, mitigation: MitigationView) -> bool:
    """Whether people may still decide about ``mitigation``."""
    is_open = view.state is IncidentState.OPEN and view.phase is Phase.APPROVAL
    return is_open and mitigation.state is MitigationState.AWAITING_APPROVAL


def _request(view: IncidentView, mitigation: MitigationView, frame: Frame) -> ApprovalRequest:
    place = "/".join(part for part in (view.system, view.service) if part)
    subject = ", ".join(part for part in (place, view.playbook) if part)
    ends = mitigation.expires_at
    summary = mitigation.summary or mitigation.kind
    return ApprovalRequest(
        id=mitigation.id,
        plan_hash=mitigation.plan_hash,
        waits=waits(view, mitigation),
        headline=f"{_standing(view, mitigation)}: {subject or view.id}",
        action=f"{action(mitigation)} ({mitigation.risk} risk)",
        consequence=mitigation.consequence,
        why=" ".join(summary.split()),
        who=who(mitigation),
        expires_at=ends,
        deadline="" if ends is None else frame.local(ends, "%H:%M"),
    )


def who(mitigation: MitigationView) -> str:
    """Say who has to decide."""
    needed = mitigation.approvals_needed
    if needed == _EVERYBODY:
        return "An operator"
    agreed = ", ".join(one.by for one in mitigation.approvals)
    if agreed:
        return f"{needed} different operators must approve, and {agreed} did: another one"
    return f"{needed} different operators"


def _standing(view: IncidentView, mitigation: MitigationView) -> str:
    """Say in a few words how the request stands."""
    if waits(view, mitigation):
        return "▲ Approval needed"
    by = f" by {mitigation.decided_by}" if mitigation.decided_by else ""
    match mitigation.state:
        case MitigationState.REJECTED:
            return f"Rejected{by}"
        case MitigationState.AWAITING_APPROVAL | MitigationState.EXPIRED:
            resolved = view.outcome is IncidentOutcome.RESOLVED_BY_ITSELF
            return "No longer needed" if resolved else "Expired, not approved in time"
        case MitigationState.DENIED | MitigationState.SHADOWED:
            return "Not approved"
        case _:
            return f"Approved{by}"
