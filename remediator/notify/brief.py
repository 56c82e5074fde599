"""An incident in a few short lines: what a person reads on a telephone, and no more. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from remediator.model.alert import AlertStatus
from remediator.model.duration import format_duration
from remediator.model.finding import FindingStatus
from remediator.model.incident import IncidentState
from remediator.model.verdict import Assessment
from remediator.model.views import Frame, IncidentView, MitigationView
from remediator.notify import sentences
from remediator.notify.actions import action
from remediator.notify.approvals import waits

LINE = 95
"""Characters of one line."""


def brief(view: IncidentView, frame: Frame) -> Iterable[str]:
    """Say what fires, what was found, what was done about it, and what comes next."""
    found = list(_found(view)) or list(_said(view))
    lines = (*_alert(view, frame), *found, *_done(view, frame))
    yield from (_short(line) for line in lines)
    dry = " (dry run)" if view.dry_run else ""
    if view.closed_at is None:
        yield f"Open since {frame.local(view.opened_at, '%H:%M')}. Incident {view.id}{dry}"
    else:
        lasted = timedelta(seconds=max(0, round((view.closed_at - view.opened_at).total_seconds())))
        yield f"Closed after {format_duration(lasted)}. Incident {view.id}{dry}"


def _alert(view: IncidentView, frame: Frame) -> Iterable[str]:
    for alert in view.alerts[:1]:
        name = alert.labels.get("alertname", "An unnamed alert")
        fires = alert.status is AlertStatus.FIRING
        word = f" ({view.severity_word})" if view.severity_word else ""
        since = frame.local(alert.starts_at, "%H:%M")
        more = f" and {len(view.alerts) - 1} more" if len(view.alerts) > 1 else ""
        state = "firing since" if fires else "resolved; it began at"
        yield f"{name}{more} {state} {since}, SEV{view.severity}{word}"


def _said(view: IncidentView) -> Iterable[str]:
    for alert in view.alerts[:1]:
        said = (alert.annotations.get(key) for key in ("summary", "description", "message"))
        yield from [text for text in said if text][:1]


def _found(view: IncidentView) -> Iterable[str]:
    latest = max((finding.round for finding in view.findings), default=0)
    for status, word in ((FindingStatus.PROBLEM, "Found"), (FindingStatus.UNKNOWN, "Unknown")):
        for finding in view.findings:
            if finding.round == latest and finding.status is status:
                yield f"{word}: {finding.name}: {finding.summary}"
                return


def _done(view: IncidentView, frame: Frame) -> Iterable[str]:
    last = max(view.mitigations, key=lambda m: m.created_at, default=None)
    if last is None:
        is_open = view.state is IncidentState.OPEN
        yield from [] if is_open else [sentences.nothing_done(view)]
        return
    what = action(last)
    if waits(view, last):
        until = f" before {frame.local(last.expires_at, '%H:%M')}" if last.expires_at else ""
        yield f"Approval needed{until}: {what}"
        return
    yield f"{sentences.fate(last)}: {what}{_verdict(last)}"
    if view.state is IncidentState.CLOSED and view.reason:
        yield f"Why: {view.reason}"


def _verdict(mitigation: MitigationView) -> str:
    match mitigation.verdict:
        case Assessment.BETTER:
            return "; it helped"
        case Assessment.NOT_BETTER:
            return "; it did not help"
        case Assessment.CANNOT_TELL:
            return "; cannot tell whether it helped"
        case None:
            return ""


def _short(line: str) -> str:
    return line if len(line) <= LINE else f"{line[: LINE - 1].rstrip()}…"
