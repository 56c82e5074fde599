"""The sentences for each state of an incident and of a mitigation.

Every state has its line in a table; the tests walk through all of them.
"""

from __future__ import annotations

from remediator.model.finding import FindingStatus
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.mitigation import MitigationState
from remediator.model.verdict import Assessment
from remediator.model.views import Frame, IncidentView, MitigationView
from remediator.notify.actions import action
from remediator.notify.approvals import waits, who

TOUCHED = frozenset({MitigationState.APPLIED, MitigationState.REVERTED})
"""States of a mitigation that has changed the world, if only for a while."""

ITEM_STATES: dict[MitigationState, str] = {
    MitigationState.SHADOWED: "would have been changed",
    MitigationState.DENIED: "not allowed",
    MitigationState.AWAITING_APPROVAL: "waiting for approval",
    MitigationState.APPROVED: "approved",
    MitigationState.REJECTED: "rejected",
    MitigationState.EXPIRED: "not approved in time",
    MitigationState.RESERVED: "about to be changed",
    MitigationState.APPLIED: "changed",
    MitigationState.NOT_APPLIED: "not changed",
    MitigationState.UNKNOWN: "with an unknown outcome",
    MitigationState.REVERTED: "reverted",
}


def sentence(text: str) -> str:
    """Return ``text`` on one line with a full stop; reasons are written with and without."""
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?", ")")) else f"{line}."


# --- the headline -----------------------------------------------------------------------------


def symbol(view: IncidentView, *, urgent: bool) -> str:
    """Return the one sign that the eye finds in a channel: needed now, well, or neither."""
    if urgent:
        return "▲"
    good = {IncidentOutcome.MITIGATED, IncidentOutcome.RESOLVED_BY_ITSELF}
    return "✔" if view.state is IncidentState.CLOSED and view.outcome in good else "●"


def standing(view: IncidentView) -> str:
    """Say in a few words where the incident stands."""
    if view.state is IncidentState.OPEN:
        return _OPEN[view.phase]
    by = _rejected_by(view)
    if by is not None and view.outcome is IncidentOutcome.DENIED:
        return f"Rejected by {by}, nothing changed"
    if _unplanned(view):
        return f"Shadow mode: nothing {'could be' if _unseen(view) else 'was'} proposed"
    return _CLOSED[view.outcome] if view.outcome else "Closed without an outcome"


def _unplanned(view: IncidentView) -> bool:
    """Whether it was only watched, and even so nothing was proposed."""
    return view.outcome is IncidentOutcome.SHADOWED and not view.mitigations


def _unseen(view: IncidentView) -> list[str]:
    """Say, a clause each, what the last diagnosis could not see."""
    latest = max((finding.round for finding in view.findings), default=0)
    unknown = (f for f in view.findings if f.status is FindingStatus.UNKNOWN)
    found = [f"{f.name}: {f.summary.rstrip('.')}" for f in unknown if f.round == latest]
    _, _, impaired = view.reason.partition("; impaired: ")
    return found or ([impaired] if impaired else [])


def _rejected_by(view: IncidentView) -> str | None:
    rejected = [m.decided_by for m in view.mitigations if m.state is MitigationState.REJECTED]
    return rejected[-1] if rejected else None


_OPEN: dict[Phase, str] = {
    Phase.DIAGNOSE: "Diagnosing",
    Phase.DECIDE: "Deciding what may be done",
    Phase.APPROVAL: "Approval needed",
    Phase.ACT: "Applying a change",
    Phase.VERIFY: "Applied, verifying",
    Phase.REVERT: "Reverting",
    Phase.SETTLE: "Improved, waiting for the alert to resolve",
    Phase.DONE: "Closing",
}
_CLOSED: dict[IncidentOutcome, str] = {
    IncidentOutcome.MITIGATED: "Mitigated",
    IncidentOutcome.RESOLVED_BY_ITSELF: "Resolved without intervention",
    IncidentOutcome.REVERTED: "Reverted, the change did not help",
    IncidentOutcome.ESCALATED: "Escalated, a human must take over",
    IncidentOutcome.SHADOWED: "Shadow mode: recorded only, nothing changed",
    IncidentOutcome.DENIED: "Not allowed, nothing changed",
    IncidentOutcome.NO_MATCH: "No playbook matches, nothing changed",
    IncidentOutcome.SUPPRESSED: "Suppressed, nothing changed",
}


# --- what was done ----------------------------------------------------------------------------


def attempt(mitigation: MitigationView) -> str:
    """Say what became of one mitigation: the action first, then why."""
    said = action(mitigation)
    what = said if said.startswith(f"{mitigation.kind} ") else f"{said} ({mitigation.kind})"
    fate = _FATES[mitigation.state].format(
        what=" ".join(what.split()),
        risk=mitigation.risk,
        by=f" by {mitigation.decided_by}" if mitigation.decided_by else "",
        approved=f", approved by {mitigation.decided_by}" if mitigation.decided_by else "",
    )
    why = mitigation.reason if mitigation.reason != mitigation.summary else ""
    reasons = (("Reason", why), ("Proposed because", mitigation.summary))
    return " ".join((fate, *(f"{word}: {sentence(text)}" for word, text in reasons if text)))


_FATES: dict[MitigationState, str] = {
    MitigationState.SHADOWED: (
        "Shadow mode: recorded only, nothing changed. Mode auto would have applied: {what}."
    ),
    MitigationState.DENIED: "Not allowed: {what}.",
    MitigationState.AWAITING_APPROVAL: "Approval needed: {what}, {risk} risk.",
    MitigationState.APPROVED: "Approved{by}, not applied yet: {what}.",
    MitigationState.REJECTED: "Rejected{by}, not applied: {what}.",
    MitigationState.EXPIRED: "Not approved in time, not applied: {what}.",
    MitigationState.RESERVED: "Being applied{approved}: {what}.",
    MitigationState.APPLIED: "Applied{approved}: {what}.",
    MitigationState.NOT_APPLIED: "Not applied: {what}.",
    MitigationState.UNKNOWN: "Outcome unknown: {what}.",
    MitigationState.REVERTED: "Applied and reverted{approved}: {what}.",
}
_SHORTLY: dict[MitigationState, str] = {
    MitigationState.SHADOWED: "Shadow mode, not applied",
    MitigationState.DENIED: "Not allowed",
    MitigationState.AWAITING_APPROVAL: "Not approved in time",
    MitigationState.APPROVED: "Approved{by}, not applied yet",
    MitigationState.REJECTED: "Rejected{by}",
    MitigationState.EXPIRED: "Not approved in time",
    MitigationState.RESERVED: "Being applied{approved}",
    MitigationState.APPLIED: "Applied{approved}",
    MitigationState.NOT_APPLIED: "Not applied",
    MitigationState.UNKNOWN: "Outcome unknown",
    MitigationState.REVERTED: "Applied and reverted{approved}",
}


def fate(mitigation: MitigationView) -> str:
    """Say in a few words what became of one mitigation, and who decided it."""
    by = f" by {mitigation.decided_by}" if mitigation.decided_by else ""
    approved = f", approved{by}" if by else ""
    return _SHORTLY[mitigation.state].format(by=by, approved=approved)


def nothing_done(view: IncidentView) -> str:
    """Say why no mitigation is on record."""
    if view.reason:
        why = sentence(view.reason)
    elif view.state is IncidentState.OPEN:
        why = f"{standing(view).lower()}."
    else:
        why = "no reason was recorded, which is a bug in this service."
    is_open = view.state is IncidentState.OPEN
    yet = "Nothing has been changed yet" if is_open else "Nothing was changed"
    return f"{yet}: {why}"


def verdict(mitigation: MitigationView) -> str:
    """Say whether ``mitigation`` helped, with the evidence."""
    evidence = sentence(mitigation.evidence or "no evidence was recorded")
    return f"{_VERDICTS[mitigation.verdict or Assessment.CANNOT_TELL]}: {evidence}"


_VERDICTS: dict[Assessment, str] = {
    Assessment.BETTER: "Yes",
    Assessment.NOT_BETTER: "No",
    Assessment.CANNOT_TELL: "Cannot tell, which is not a success",
}


# --- what comes next --------------------------------------------------------------------------


def next_step(view: IncidentView, frame: Frame) -> str:
    """Say what a human should do now: something concrete, or nothing."""
    if view.state is IncidentState.OPEN:
        return _while_open(view, frame)
    step = _once_closed(view)
    loose = [item for m in view.mitigations for item in _loose(m)]
    return f"{step} {_look_at(loose)}" if loose else step


def _while_open(view: IncidentView, frame: Frame) -> str:
    if view.phase is Phase.APPROVAL:
        return _ask(view, frame)
    return f"Nothing for now: {standing(view).lower()}. This message is updated as it goes on."


def _ask(view: IncidentView, frame: Frame) -> str:
    """Say who has to do what by when, for a mitigation that waits for its approval."""
    asked = [m for m in view.mitigations if waits(view, m)]
    ends = [m.expires_at for m in asked if m.expires_at]
    until = f" before {frame.local(min(ends), '%H:%M')}" if ends else ""
    people = who(asked[-1]) if asked else "An operator"
    return (
        f"{people} must run `remediator approve {view.id}`{until},"
        f" or `remediator reject {view.id}`."
    )


def _once_closed(view: IncidentView) -> str:
    if view.outcome is None:
        return "Look at the timeline: it was closed without an outcome, which is a bug."
    if _unplanned(view):
        return _by_hand(_unseen(view))
    step = _STEPS[view.outcome].format(
        service=view.service or "the service",
        playbook=view.playbook or "the playbook",
        reason=sentence(view.reason or "no reason was recorded"),
        start=_start(view),
        enable=_enable(view),
    )
    if view.outcome not in _TRY_AGAIN:
        return step
    return (
        f"{step} To try again under the current mode and limits:"
        f" `remediator replay {view.id} --for-real`."
    )


def _by_hand(unseen: list[str]) -> str:
    """Say what to do where nothing was planned: a wider mode would not have changed that."""
    if not unseen:
        return "Handle the alert manually: no mode would have changed anything."
    return (
        "Handle the alert manually: no mode could have changed anything. Fix what could not be"
        f" read: {sentence('; '.join(unseen))}"
    )


_TRY_AGAIN = frozenset(
    {IncidentOutcome.SHADOWED, IncidentOutcome.DENIED, IncidentOutcome.ESCALATED}
)
"""Outcomes after which a person may want the same alert handled once more."""

_STEPS: dict[IncidentOutcome, str] = {
    IncidentOutcome.MITIGATED: (
        "Nothing now. The symptom is gone, the cause may not be: investigate in working hours."
        " {start}"
    ),
    IncidentOutcome.RESOLVED_BY_ITSELF: "Nothing.",
    IncidentOutcome.REVERTED: (
        "Take over: the change did not help, and {service} is as it was before. {start}"
    ),
    IncidentOutcome.ESCALATED: "Take over now: {reason} {start}",
    IncidentOutcome.SHADOWED: (
        "Handle the alert as you would without this service. If the proposed change is right,"
        " raise the mode of {playbook} on {service}."
    ),
    IncidentOutcome.DENIED: "Decide whether to make the change manually: {reason} {start}",
    IncidentOutcome.NO_MATCH: "Handle the alert manually. {enable}",
    IncidentOutcome.SUPPRESSED: "Nothing, as long as the reason above holds.",
}


def _start(view: IncidentView) -> str:
    """Point at the first thing worth a human's look."""
    for status, words in (
        (FindingStatus.PROBLEM, "Start with {}: {}"),
        (FindingStatus.UNKNOWN, "Start with what could not be checked, {}: {}"),
    ):
        for finding in reversed(view.findings):
            if finding.status is status:
                return sentence(words.format(finding.name, finding.summary))
    return f"Start with the alert itself and the timeline of {view.id}."


def _enable(view: IncidentView) -> str:
    if view.service is None:
        return "To automate it, add its labels to a service in the catalogue."
    return f"To automate it, enable a playbook for it on {view.service}."


def _loose(mitigation: MitigationView) -> list[str]:
    """Name what may or may not have been changed."""
    if mitigation.state is MitigationState.UNKNOWN:
        return [f"{mitigation.kind} on {mitigation.target}"]
    return [item.key for item in mitigation.items if item.state is MitigationState.UNKNOWN]


def _look_at(loose: list[str]) -> str:
    more = f" and {len(loose) - 5} more" if len(loose) > 5 else ""
    return f"Check manually what became of {', '.join(loose[:5])}{more}: the outcome is unknown."
