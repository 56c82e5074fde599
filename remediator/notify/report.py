"""REPORT: what is said to humans about an incident, in sentences that are read at 3 a.m.

Pure: the same view gives the same report, whatever the hour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

from remediator.model.alert import AlertStatus
from remediator.model.duration import format_duration
from remediator.model.finding import FindingStatus
from remediator.model.incident import NEEDS_A_HUMAN, IncidentOutcome, IncidentState, Phase
from remediator.model.mitigation import MitigationState
from remediator.model.redact import flat, redact
from remediator.model.views import (
    AlertView,
    FindingView,
    Frame,
    IncidentView,
    MitigationView,
    PlannedItem,
    Report,
    TimelineEvent,
)
from remediator.notify import sentences
from remediator.notify.approvals import requests
from remediator.notify.brief import brief
from remediator.notify.links import links

_SHOWN_ALERTS = 5
_SHOWN_ITEMS = 10
_SHOWN_REASONS = 5
_SHOWN_SUMMARIES = 4
"""Items that are described; with `_ITEM_LENGTH` they leave room for the rest in a chat."""
_ITEM_LENGTH = 400
"""Characters: a session takes up to 200, its statement as many."""


def summarise(view: IncidentView, frame: Frame = Frame()) -> Report:  # noqa: B008 - frozen
    """Say what happened, what was found and done, whether it helped, and what comes next.

    Secrets in labels and texts are masked, and what came from outside is on one line, also in the
    report's own copy of the incident.
    """
    view = IncidentView.model_validate(flat(redact(view.model_dump())))
    done = _done(view)
    return Report(
        incident=view,
        headline=_headline(view),
        happened=tuple(_happened(view, frame)),
        found=tuple(_found(view)),
        done=(*done, *_reasons(view, frame, said=" ".join(done))),
        helped=_helped(view),
        next_step=sentences.next_step(view, frame),
        urgent=_urgent(view),
        final=view.state is IncidentState.CLOSED,
        brief=tuple(brief(view, frame)),
        links=links(view, frame),
        requests=tuple(requests(view, frame)),
    )


def _urgent(view: IncidentView) -> bool:
    if view.dry_run:
        return False
    if view.state is IncidentState.OPEN:
        return view.phase is Phase.APPROVAL
    return view.outcome in NEEDS_A_HUMAN


def _headline(view: IncidentView) -> str:
    place = "/".join(part for part in (view.system, view.service) if part)
    subject = place or (view.alerts[0].labels.get("alertname") if view.alerts else None)
    words = [
        f"{sentences.symbol(view, urgent=_urgent(view))} {sentences.standing(view)}:",
        f"{subject or 'unknown service'},",
        f"{view.playbook or 'no playbook'}" + (" (dry run)" if view.dry_run else ""),
    ]
    return " ".join(" ".join(words).split())


# --- what happened ----------------------------------------------------------------------------


def _happened(view: IncidentView, frame: Frame) -> Iterable[str]:
    yield from (_alert(alert, frame) for alert in view.alerts[:_SHOWN_ALERTS])
    if not view.alerts:
        yield f"The record has no alert. The incident was opened at {frame.local(view.opened_at)}."
    yield from _crowd(view.alerts)
    yield from _said(view.alerts)
    yield _where(view)
    if view.replay_of is not None:
        yield f"This is a replay of {view.replay_of}."
    if view.dry_run:
        yield "This is a dry run: nothing is changed, whatever the mode."
    if view.closed_at is not None:
        lasted = format_duration(_whole(view.opened_at, view.closed_at))
        yield f"Closed at {frame.local(view.closed_at)}, {lasted} after it was opened. Incident {view.id}."
    else:
        yield f"Opened at {frame.local(view.opened_at)}. Incident {view.id}."


def _alert(alert: AlertView, frame: Frame) -> str:
    name = alert.labels.get("alertname", "An unnamed alert")
    since = frame.local(alert.starts_at)
    if alert.status is AlertStatus.FIRING:
        return f"{name} has been firing since {since}."
    at = alert.resolved_at
    until = f"resolved at {frame.local(at)}" if at is not None else "has resolved"
    return f"{name} started firing at {since} and {until}."


def _crowd(alerts: list[AlertView]) -> Iterable[str]:
    notifications = sum(alert.notifications for alert in alerts)
    if len(alerts) > 1 or notifications > 1:
        firing = sum(alert.status is AlertStatus.FIRING for alert in alerts)
        yield (
            f"{_count(len(alerts), 'alert')} in total, {firing} still firing,"
            f" in {_count(notifications, 'notification')}."
        )


def _said(alerts: list[AlertView]) -> Iterable[str]:
    for alert in alerts[:1]:
        for key in ("summary", "description", "message"):
            if alert.annotations.get(key):
                yield f"The alert says: {alert.annotations[key]}"
                return


def _where(view: IncidentView) -> str:
    if view.service is None:
        return "No service in the catalogue matches its labels."
    place = f"Service {view.service} of system {view.system}"
    return f"{place}, playbook {view.playbook}." if view.playbook else f"{place}, no playbook."


# --- what was found ---------------------------------------------------------------------------


def _found(view: IncidentView) -> Iterable[str]:
    latest = max((finding.round for finding in view.findings), default=0)
    findings = [finding for finding in view.findings if finding.round == latest]
    for status, word in ((FindingStatus.PROBLEM, "Problem"), (FindingStatus.UNKNOWN, "Unknown")):
        yield from (f"{word}: {f.name}: {f.summary}" for f in _of(findings, status))
    fine = [finding.name for finding in _of(findings, FindingStatus.FINE)]
    if fine:
        yield f"Fine: {', '.join(fine)}."
    if len(findings) < len(view.findings):
        yield f"This is diagnosis {latest}, the latest; the record has the earlier ones."
    if not findings:
        yield "Nothing was checked." if view.closed_at else "Nothing has been checked yet."


def _of(findings: list[FindingView], status: FindingStatus) -> list[FindingView]:
    return [finding for finding in findings if finding.status is status]


# --- what was done ----------------------------------------------------------------------------


def _done(view: IncidentView) -> tuple[str, ...]:
    lines: list[str] = []
    for mitigation in sorted(view.mitigations, key=lambda m: m.created_at):
        lines += (sentences.attempt(mitigation), *_items(mitigation))
    if not lines:
        lines.append(sentences.nothing_done(view))
    elif view.reason and view.reason not in {m.evidence for m in view.mitigations}:
        lines.append(f"Result: {sentences.sentence(view.reason)}")
    return tuple(lines)


def _items(mitigation: MitigationView) -> Iterable[str]:
    by_state: dict[MitigationState, list[str]] = defaultdict(list)
    for item in mitigation.items:
        by_state[item.state].append(f"{item.key} ({item.detail})" if item.detail else item.key)
    for state, items in by_state.items():
        yield f"{_count(len(items), 'item')} {sentences.ITEM_STATES[state]}: {_listed(items)}."
    if mitigation.planned and not mitigation.items:
        planned = [item.key for item in mitigation.planned]
        yield f"{_count(len(planned), 'item')} {_planned(mitigation.state)}: {_listed(planned)}."
    yield from _seen(mitigation.planned)


def _seen(planned: list[PlannedItem]) -> Iterable[str]:
    """Say what each item was when it was chosen, such as a session with its statement."""
    described = [item for item in planned if item.summary]
    yield from (f"{item.key}: {_cut(item.summary)}" for item in described[:_SHOWN_SUMMARIES])
    more = len(described) - _SHOWN_SUMMARIES
    if more > 0:
        yield f"{_count(more, 'more item')}: the incident has the rest, by the API or the command line."


def _cut(text: str) -> str:
    return text if len(text) <= _ITEM_LENGTH else f"{text[: _ITEM_LENGTH - 1].rstrip()}…"


def _planned(state: MitigationState) -> str:
    """Say what is known of the items of a plan whose outcome does not name them."""
    tried = {*sentences.TOUCHED, MitigationState.NOT_APPLIED, MitigationState.UNKNOWN}
    return "planned" if state in tried else sentences.ITEM_STATES[state]


def _listed(items: list[str]) -> str:
    more = len(items) - _SHOWN_ITEMS
    return ", ".join(items[:_SHOWN_ITEMS]) + (f" and {more} more" if more > 0 else "")


def _reasons(view: IncidentView, frame: Frame, said: str) -> list[str]:
    """Return the journal's latest reasons that the report has not given yet."""
    reasons: dict[str, str] = {}
    evidence = {m.evidence for m in view.mitigations}
    for event in view.timeline:
        told = event.reason in said or event.reason in evidence
        if event.reason and not told and not _is_routine(event):
            reasons[event.reason] = (
                f"{frame.local(event.at, '%H:%M:%S')} {event.step}, {event.event}:"
                f" {sentences.sentence(event.reason)}"
            )
    return list(reasons.values())[-_SHOWN_REASONS:]


def _is_routine(event: TimelineEvent) -> bool:
    """Whether it is a look or a notification among many: the thread's detail has them all."""
    return event.step == "triage" or event.event.startswith("looks ")


# --- did it help ------------------------------------------------------------------------------


def _helped(view: IncidentView) -> str:
    judged = [m for m in view.mitigations if m.verdict is not None]
    if judged:
        return sentences.verdict(max(judged, key=lambda m: m.created_at))
    if view.outcome is IncidentOutcome.RESOLVED_BY_ITSELF:
        return "The alert resolved without intervention; there was nothing to verify."
    if any(m.state in sentences.TOUCHED for m in view.mitigations):
        closed = view.state is IncidentState.CLOSED
        return "It was never verified whether it helped." if closed else "Not known yet."
    if any(m.state is MitigationState.UNKNOWN for m in view.mitigations):
        return "Cannot tell: it is not known whether the change was applied."
    return "Nothing was changed, so there was nothing to verify."


def _whole(start: datetime, end: datetime) -> timedelta:
    return timedelta(seconds=max(0, round((end - start).total_seconds())))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
