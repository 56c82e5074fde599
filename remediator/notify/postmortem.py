"""The post-incident report: what happened and why, from the first alert to the end, as Markdown.

Pure. Secrets are masked as in the chat; what comes from labels or backends is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from remediator.model.duration import format_duration
from remediator.model.finding import FindingStatus
from remediator.model.views import (
    AlertView,
    FindingView,
    IncidentView,
    MitigationView,
    Report,
    TimelineEvent,
)
from remediator.notify.report import summarise

_MARKS = {FindingStatus.FINE: "fine", FindingStatus.PROBLEM: "**problem**"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")
_BLANK = re.compile(r"\s+")


def markdown(view: IncidentView) -> str:
    """Write the report of one incident; a human adds what the machine cannot know."""
    report = summarise(view)
    sections = (
        ("Summary", _summary(report)),
        ("Alerts", _alerts(report.incident.alerts)),
        ("What was found", _findings(report.incident.findings)),
        ("What was done", _mitigations(report.incident.mitigations)),
        ("Timeline (UTC)", _timeline(report.incident.timeline)),
        ("To be filled in", ["- Cause:", "- What would have prevented it:", "- Follow-ups:"]),
    )
    lines = [f"# {_escaped(report.headline)}"]
    for title, content in sections:
        lines += ["", f"## {title}", "", *content]
    return "\n".join([*lines, ""])


def _summary(report: Report) -> Iterator[str]:
    view = report.incident
    yield f"- Incident: `{view.id}`"
    yield f"- Playbook: {_escaped(view.playbook or 'none')}"
    yield f"- Outcome: {view.outcome or 'still open'}: {_escaped(view.reason)}"
    yield f"- From {_moment(view.opened_at)} to {_moment(view.closed_at)}{_took(view)}"
    yield from (f"- {_escaped(line)}" for line in (*report.done, report.helped, report.next_step))


def _took(view: IncidentView) -> str:
    if view.closed_at is None:
        return ""
    took = timedelta(seconds=round((view.closed_at - view.opened_at).total_seconds()))
    return f" ({format_duration(took)})"


def _alerts(alerts: Iterable[AlertView]) -> Iterator[str]:
    yield from _head("alert", "since", "resolved", "notifications", "labels")
    for alert in alerts:
        name = alert.labels.get("alertname", "unnamed")
        labels = ", ".join(f"{k}={v}" for k, v in sorted(alert.labels.items()) if k != "alertname")
        yield _row(
            name,
            _moment(alert.starts_at),
            _moment(alert.resolved_at),
            str(alert.notifications),
            labels,
        )


def _findings(findings: Iterable[FindingView]) -> Iterator[str]:
    yield from _head("round", "finding", "says", "evidence")
    for finding in findings:
        status = _MARKS.get(finding.status, "unknown")
        cells = map(_escaped, (str(finding.round), finding.name, finding.summary))
        number, name, summary = cells
        yield f"| {number} | {name} | {status} | {summary} |"


def _mitigations(mitigations: Iterable[MitigationView]) -> Iterator[str]:
    none = True
    for made in mitigations:
        none = False
        yield f"- {_escaped(made.kind)} on {_escaped(made.target)}: **{made.state}**"
        yield f"  - Why: {_escaped(made.summary)}"
        yield from (f"  - {_escaped(item.key)}: {_escaped(item.summary)}" for item in made.planned)
        if made.decided_by:
            yield f"  - Decided by: {_escaped(made.decided_by)}"
        if made.verdict:
            yield f"  - Verdict: {made.verdict}: {_escaped(made.evidence)}"
        yield f"  - Effect key: `{made.effect_key}`"
    if none:
        yield "Nothing was changed."


def _timeline(events: Iterable[TimelineEvent]) -> Iterator[str]:
    yield from _head("time", "step", "event", "reason")
    for event in events:
        what = f"{event.event} (not sealed)" if event.unsealed else event.event
        yield _row(_moment(event.at), event.step, what, event.reason)


def _head(*names: str) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", _BLANK.sub(" ", text).strip())


def _moment(at: datetime | None) -> str:
    return "not yet" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"
