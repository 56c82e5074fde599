"""The sentences for each state of an incident and of a mitigation.

Every state has its line in a table; the tests walk through all of them.
"""

from __future__ import annotations

from remediator.model import (
    Assessment,
    FindingStatus,
    IncidentOutcome,
    IncidentState,
    MitigationState,
    Phase,
)
from remediator.report.asking import waits, who
from remediator.views import Frame, IncidentView, MitigationView

TOUCHED = frozenset({MitigationState.APPLIED, MitigationState.REVERTED})
"""States of a mitigation that has changed the world, if only for a while."""

ITEM_STATES: dict[MitigationState, str] = {
    MitigationState.SHADOWED: "would have been touched",
    MitigationState.DENIED: "denied",
    MitigationState.AWAITING_APPROVAL: "awaiting approval",
    MitigationState.APPROVED: "approved",
    MitigationState.REJECTED: "rejected",
    MitigationState.EXPIRED: "not approved in time",
    MitigationState.RESERVED: "about to be touched",
    MitigationState.APPLIED: "done",
    MitigationState.NOT_APPLIED: "not done",
    MitigationState.UNKNOWN: "with an unknown outcome",
    MitigationState.REVERTED: "put back",
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
        return f"rejected by {by}, nothing changed"
    if _unplanned(view):
        return f"shadow mode, nothing {'could be' if _unseen(view) else 'was'} planned"
    return _CLOSED[view.outcome] if view.outcome else "closed without an outcome"


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
    Phase.DIAGNOSE: "being diagnosed",
    Phase.DECIDE: "being decided",
    Phase.APPROVAL: "waiting for your approval",
    Phase.ACT: "being mitigated",
    Phase.VERIFY: "changed, being watched",
    Phase.REVERT: "being put back",
    Phase.SETTLE: "better, waiting for the alert to resolve",
    Phase.DONE: "being closed",
}
_CLOSED: dict[IncidentOutcome, str] = {
    IncidentOutcome.MITIGATED: "mitigated",
    IncidentOutcome.RESOLVED_BY_ITSELF: "resolved by itself",
    IncidentOutcome.REVERTED: "did not help, put back",
    IncidentOutcome.ESCALATED: "escalated, a human must take over",
    IncidentOutcome.SHADOWED: "shadow mode, nothing changed",
    IncidentOutcome.DENIED: "denied, nothing changed",
    IncidentOutcome.NO_MATCH: "nothing matches, nothing done",
    IncidentOutcome.SUPPRESSED: "suppressed, nothing done",
}


# --- what was done ----------------------------------------------------------------------------


def attempt(mitigation: MitigationView) -> str:
    """Say what became of one mitigation, and why."""
    what = f"{mitigation.summary or mitigation.kind} [{mitigation.kind} on {mitigation.target}]"
    fate = _FATES[mitigation.state].format(
        what=" ".join(what.split()),
        risk=mitigation.risk,
        by=f" by {mitigation.decided_by}" if mitigation.decided_by else "",
        approved=f", approved by {mitigation.decided_by}" if mitigation.decided_by else "",
    )
    why = mitigation.reason if mitigation.reason != mitigation.summary else ""
    return f"{fate} Reason: {sentence(why)}" if why else fate


_FATES: dict[MitigationState, str] = {
    MitigationState.SHADOWED: "Nothing was changed. In mode auto this would have been done: {what}.",
    MitigationState.DENIED: "Denied, so not done: {what}.",
    MitigationState.AWAITING_APPROVAL: "Not done, it needs an approval: {what}, risk {risk}.",
    MitigationState.APPROVED: "Approved{by}, not done yet: {what}.",
    MitigationState.REJECTED: "Rejected{by}, so not done: {what}.",
    MitigationState.EXPIRED: "Nobody approved in time, so not done: {what}.",
    MitigationState.RESERVED: "Being done{approved}: {what}.",
    MitigationState.APPLIED: "Done{approved}: {what}.",
    MitigationState.NOT_APPLIED: "Tried, but not done: {what}.",
    MitigationState.UNKNOWN: "Tried, and it is unknown whether it was done: {what}.",
    MitigationState.REVERTED: "Done and put back{approved}: {what}.",
}


def nothing_done(view: IncidentView) -> str:
    """Say why no mitigation is on record."""
    if view.reason:
        why = sentence(view.reason)
    elif view.state is IncidentState.OPEN:
        why = f"the incident is {standing(view)}."
    else:
        why = "no reason was recorded, which is a fault of this service."
    yet = "Nothing has been done yet" if view.state is IncidentState.OPEN else "Nothing was done"
    return f"{yet}: {why}"


def verdict(mitigation: MitigationView) -> str:
    """Say whether ``mitigation`` helped, with the evidence."""
    evidence = sentence(mitigation.evidence or "no evidence was recorded")
    return f"{_VERDICTS[mitigation.verdict or Assessment.CANNOT_TELL]}: {evidence}"


_VERDICTS: dict[Assessment, str] = {
    Assessment.BETTER: "Yes",
    Assessment.NOT_BETTER: "No",
    Assessment.CANNOT_TELL: "Cannot tell, which does not count as success",
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
    return f"Nothing for now: the incident is {standing(view)}, and this message will follow it."


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
        return "Look at the timeline: it was closed without an outcome, which is a fault."
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
        f"{step} To have it tried again under today's mode and limits:"
        f" `remediator replay {view.id} --for-real`."
    )


def _by_hand(unseen: list[str]) -> str:
    """Say what to do where nothing was planned: a wider mode would not have changed that."""
    if not unseen:
        return "Handle the alert by hand: in no mode would anything have been done about it."
    return (
        "Handle the alert by hand: in no mode could anything have been done. Mend what could not"
        f" be seen: {sentence('; '.join(unseen))}"
    )


_TRY_AGAIN = frozenset(
    {IncidentOutcome.SHADOWED, IncidentOutcome.DENIED, IncidentOutcome.ESCALATED}
)
"""Outcomes after which a person may want the same alert handled once more."""

_STEPS: dict[IncidentOutcome, str] = {
    IncidentOutcome.MITIGATED: (
        "Nothing now. The symptom is gone, the cause may not be: look in working hours. {start}"
    ),
    IncidentOutcome.RESOLVED_BY_ITSELF: "Nothing.",
    IncidentOutcome.REVERTED: (
        "Take over: the change did not help and {service} is as it was before. {start}"
    ),
    IncidentOutcome.ESCALATED: "Take over now: {reason} {start}",
    IncidentOutcome.SHADOWED: (
        "Handle the alert as you would without this service. If what it would have done is"
        " right, raise the mode of {playbook} on {service}."
    ),
    IncidentOutcome.DENIED: "Decide by hand whether to do what was denied: {reason} {start}",
    IncidentOutcome.NO_MATCH: "Handle the alert by hand. {enable}",
    IncidentOutcome.SUPPRESSED: "Nothing, as long as the reason above holds.",
}


def _start(view: IncidentView) -> str:
    """Point at the first thing worth a human's look."""
    for status, words in (
        (FindingStatus.PROBLEM, "Start with {}: {}"),
        (FindingStatus.UNKNOWN, "Start with what could not be found out, {}: {}"),
    ):
        for finding in reversed(view.findings):
            if finding.status is status:
                return sentence(words.format(finding.name, finding.summary))
    return f"Start with the alert itself and the timeline of {view.id}."


def _enable(view: IncidentView) -> str:
    if view.service is None:
        return "To have it handled next time, add its labels to a service of the catalogue."
    return f"To have it handled next time, enable a playbook for it on {view.service}."


def _loose(mitigation: MitigationView) -> list[str]:
    """Name what may or may not have been changed."""
    if mitigation.state is MitigationState.UNKNOWN:
        return [f"{mitigation.kind} on {mitigation.target}"]
    return [item.key for item in mitigation.items if item.state is MitigationState.UNKNOWN]


def _look_at(loose: list[str]) -> str:
    more = f" and {len(loose) - 5} more" if len(loose) > 5 else ""
    return f"Look by hand what became of {', '.join(loose[:5])}{more}: the outcome is unknown."
