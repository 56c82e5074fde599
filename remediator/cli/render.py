"""What the API's answers look like in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from remediator.cli.output import lasting, moment, plain, styled, words
from remediator.model.duration import format_duration
from remediator.model.finding import FindingStatus
from remediator.model.incident import IncidentOutcome, Phase
from remediator.model.limits import Limits
from remediator.model.mitigation import MitigationState
from remediator.model.verdict import Assessment
from remediator.model.views import (
    AlertView,
    DeadLetterView,
    FindingView,
    IncidentSummary,
    IncidentView,
    LimitView,
    MitigationView,
    PauseView,
    TimelineEvent,
    WindowView,
)

GOOD, BAD, DOUBT, ASIDE = "green", "red", "yellow", "dim"
_UNSEALED = "  (not sealed)"

FINDING_STYLES = {
    FindingStatus.FINE: GOOD,
    FindingStatus.PROBLEM: BAD,
    FindingStatus.UNKNOWN: DOUBT,
}
OUTCOME_STYLES = {
    IncidentOutcome.MITIGATED: GOOD,
    IncidentOutcome.RESOLVED_BY_ITSELF: GOOD,
    IncidentOutcome.ESCALATED: BAD,
    IncidentOutcome.REVERTED: DOUBT,
}
STATE_STYLES = {
    MitigationState.APPLIED: GOOD,
    MitigationState.UNKNOWN: BAD,
    MitigationState.AWAITING_APPROVAL: DOUBT,
}
VERDICT_STYLES = {
    Assessment.BETTER: GOOD,
    Assessment.NOT_BETTER: BAD,
    Assessment.CANNOT_TELL: DOUBT,
}
OPEN_MEANS = {
    Phase.ACT: "the change is being made",
    Phase.VERIFY: "changed; checking whether that helped",
    Phase.REVERT: "the change is being reverted",
    Phase.SETTLE: "better; waiting for the alert to resolve",
}
TRY_AGAIN = frozenset({IncidentOutcome.SHADOWED, IncidentOutcome.DENIED, IncidentOutcome.ESCALATED})
"""Outcomes after which an operator may want the same alert handled once more."""
SHOWN_ALERTS = 5
REPEATED = 60
"""Characters up to which a sentence may stand on a page more than once."""
SHOWN_TEXT = 200
"""Characters of one label or annotation."""


def table(*columns: str, fixed: int = 0) -> Table:
    """Return an empty table without frames; the first ``fixed`` columns never wrap."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, no_wrap=number < fixed, overflow="fold")
    return made


def where(system: str | None, service: str | None) -> str:
    """Name a service as ``SYSTEM/SERVICE``."""
    return f"{plain(system)}/{plain(service)}" if system and service else "-"


class Said:
    """The sentences of one page so far: a long one is not said again."""

    def __init__(self) -> None:
        """Begin a page."""
        self._lines: list[str] = []

    def once(self, sentence: str) -> str:
        """Return ``sentence`` as one line, or a word that it stands above."""
        line = plain(sentence)
        if len(line) > REPEATED and any(line in told for told in self._lines):
            return "(as above)"
        self._lines.append(line)
        return line


# --- incidents ----------------------------------------------------------------------------------


WIDE = 110
"""Columns from which on an incident is one row of a table, and not two lines."""


def incident_rows(
    incidents: Iterable[IncidentSummary], now: datetime, width: int
) -> RenderableType:
    """Draw the list of incidents for a terminal of ``width`` columns, as of ``now``."""
    if width < WIDE:
        return Group(*(_two_lines(incident, now) for incident in incidents))
    made = table("Incident", "Age", "Severity", "Alert", "Service", "Playbook", "Status", fixed=3)
    for incident in incidents:
        made.add_row(
            styled(incident.id),
            styled(age(incident.opened_at, now)),
            graded(incident),
            styled(incident.alertname or "-"),
            styled(where(incident.system, incident.service)),
            styled(incident.playbook or "-"),
            _marked(incident),
        )
    return made


def _two_lines(incident: IncidentSummary, now: datetime) -> Text:
    text = styled(incident.id).append(f"  {age(incident.opened_at, now)}  ", ASIDE)
    text.append_text(graded(incident))
    text.append("\n  ").append(plain(incident.alertname) or "an alert", "bold")
    if incident.system and incident.service:
        text.append(f" on {where(incident.system, incident.service)}")
    return text.append(": ").append_text(_marked(incident))


def graded(incident: IncidentSummary) -> Text:
    """Write a severity, 1 the worst, with the sender's own word for it."""
    word = plain(incident.severity_word)
    text = f"{incident.severity} {word}" if word not in {"", str(incident.severity)} else word
    return styled(text or incident.severity, BAD if incident.severity == 1 else "")


def age(at: datetime, now: datetime) -> str:
    """Write how long ago something was."""
    return lasting(now - at)


def standing(incident: IncidentSummary) -> Text:
    """Say in a word or two where an incident stands: its outcome, or the step it is at."""
    if incident.outcome is not None:
        return styled(words(incident.outcome), OUTCOME_STYLES.get(incident.outcome, ""))
    if incident.phase is Phase.APPROVAL:
        return styled("approval needed", DOUBT)
    return styled(f"open: {words(incident.phase)}", DOUBT)


def _marked(incident: IncidentSummary) -> Text:
    """Say where an incident stands, and that it is a dry run or a replay."""
    marks = {"dry run": incident.dry_run, "replay": incident.replay_of is not None}
    said = "".join(f", {mark}" for mark, holds in marks.items() if holds)
    return standing(incident).append(said, ASIDE)


def incident_line(incident: IncidentSummary) -> str:
    """Write an incident as one line of a log."""
    service = where(incident.system, incident.service)
    return f"{plain(incident.id)}  {service}  {_marked(incident).plain}  {plain(incident.reason)}"


def incident_page(incident: IncidentView, now: datetime) -> Group:
    """Draw one incident as a page to read from top to bottom, as of ``now``."""
    said = Said()
    parts: list[RenderableType] = [_title(incident, said)]
    parts += _section("Alerts", _alerts(incident.alerts, now))
    parts += _section("Findings", (_finding(finding) for finding in incident.findings))
    parts += _section("Decision", _decisions(incident, said))
    parts += _section("Mitigations", (mitigation_block(m, said) for m in incident.mitigations))
    parts += _section("Timeline (UTC)", [_timeline(incident.timeline, said)])
    parts += _section("Next", _way_on(incident))
    return Group(*parts)


def _title(incident: IncidentView, said: Said) -> Text:
    title = Text.assemble(styled(incident.id, "bold"), "  ", standing(incident))
    if incident.dry_run:
        title.append("  dry run", DOUBT)
    title.append(_meaning(incident), ASIDE)
    title.append(f"\n{where(incident.system, incident.service)}")
    title.append(f", playbook {plain(incident.playbook or 'none')}", ASIDE)
    title.append(f"\nopened {moment(incident.opened_at)} UTC", ASIDE)
    if incident.closed_at is not None:
        title.append(f", closed after {lasting(incident.closed_at - incident.opened_at)}", ASIDE)
    if incident.replay_of is not None:
        of = "a body given by hand" if incident.replay_of == "manual" else plain(incident.replay_of)
        title.append(f"\nreplay of {of}", ASIDE)
    return title.append(f"\n{said.once(incident.reason)}")


def _meaning(incident: IncidentView) -> str:
    """Say what an open incident waits for, and until when where that is known."""
    rejected = [m.decided_by for m in incident.mitigations if m.state is MitigationState.REJECTED]
    if incident.outcome is not None:
        return f"  rejected by {plain(rejected[-1] or 'nobody known')}" if rejected else ""
    if incident.phase is Phase.APPROVAL:
        asked = MitigationState.AWAITING_APPROVAL
        ends = [m.expires_at for m in incident.mitigations if m.state is asked and m.expires_at]
        return f"  until {moment(min(ends))} UTC" if ends else ""
    return f"  {OPEN_MEANS[incident.phase]}" if incident.phase in OPEN_MEANS else ""


def _way_on(incident: IncidentView) -> Iterator[Text]:
    """Name the command that takes a closed incident up again."""
    if incident.outcome in TRY_AGAIN:
        text = styled(f"remediator replay {incident.id} --for-real", "bold")
        yield text.append("  tries again under today's mode and limits")


def _section(name: str, lines: Iterable[RenderableType]) -> Iterator[RenderableType]:
    shown = list(lines)
    if shown:
        yield Text(f"\n{name}", "bold")
        yield from (Padding(line, (0, 0, 0, 2), expand=False) for line in shown)


def _alerts(alerts: list[AlertView], now: datetime) -> Iterator[Text]:
    yield from (_alert(alert, now) for alert in alerts[:SHOWN_ALERTS])
    if len(alerts) > SHOWN_ALERTS:
        yield styled(f"and {len(alerts) - SHOWN_ALERTS} more (--json shows them all)", ASIDE)


def _alert(alert: AlertView, now: datetime) -> Text:
    firing = alert.resolved_at is None
    text = styled("firing" if firing else "resolved", BAD if firing else GOOD)
    text.append(f"  {plain(alert.labels.get('alertname', 'unnamed'))}")
    end = f" to {_when(alert.resolved_at, now)}" if alert.resolved_at else ""
    text.append(f"  from {_when(alert.starts_at, now)}{end} UTC", ASIDE)
    if alert.starts_at > now:
        text.append(" (in the future: the sender's clock?)", DOUBT)
    times = "once" if alert.notifications == 1 else f"{alert.notifications} times"
    text.append(f", notified {times}", ASIDE)
    text.append(f"\n  {_labels(alert.labels)}", ASIDE)
    summary = alert.annotations.get("summary")
    return text.append(f"\n  {_short(summary)}") if summary else text


def _when(at: datetime, now: datetime) -> str:
    """Write a time in UTC, with its date unless that is today's."""
    today = moment(at, "%Y-%m-%d") == moment(now, "%Y-%m-%d")
    return moment(at, "%H:%M:%S") if today else moment(at)


def _labels(labels: Mapping[str, str]) -> str:
    rest = (f"{plain(k)}={_short(v)}" for k, v in sorted(labels.items()) if k != "alertname")
    return ", ".join(rest)


def _short(value: str) -> str:
    text = plain(value)
    return text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}..."


def _finding(finding: FindingView) -> Text:
    status = styled(finding.status, FINDING_STYLES[finding.status])
    return status.append(f"  {words(finding.name)}: {plain(finding.summary)}")


def _decisions(incident: IncidentView, said: Said) -> Iterator[Text]:
    for event in incident.timeline:
        if event.step == "decide":
            yield Text.assemble(styled(words(event.event), "bold"), "  ", said.once(event.reason))


def mitigation_block(mitigation: MitigationView, said: Said | None = None) -> Text:
    """Draw one lever: what, on what, why, with which items and how it went."""
    state = styled(words(mitigation.state), STATE_STYLES.get(mitigation.state, ""))
    text = Text.assemble(
        styled(words(mitigation.kind), "bold"), " on ", styled(mitigation.target), "  ", state
    )
    if mitigation.summary not in ("", mitigation.reason):
        text.append(f"\n  what: {plain(mitigation.summary)}")
    text.append(f"\n  why:  {(said or Said()).once(mitigation.reason)}")
    text.append(f"\n  plan: {plain(mitigation.plan_hash)}", ASIDE)
    text.append(f", risk {mitigation.risk}, mode {mitigation.mode}", ASIDE)
    if mitigation.decided_by is not None:
        rejected = mitigation.state is MitigationState.REJECTED
        decided = "rejected" if rejected else "approved"
        text.append(f"\n  {decided} by {plain(mitigation.decided_by)}")
    text.append_text(_agreed(mitigation))
    if mitigation.expires_at is not None and mitigation.state is MitigationState.AWAITING_APPROVAL:
        text.append(f"\n  can be approved until {moment(mitigation.expires_at)} UTC", DOUBT)
    text.append_text(_items(mitigation))
    if mitigation.verdict is not None:
        text.append("\n  verdict: ").append(
            words(mitigation.verdict), VERDICT_STYLES[mitigation.verdict]
        )
        text.append(f" - {plain(mitigation.evidence)}")
    return text


def _agreed(mitigation: MitigationView) -> Text:
    """List who agreed, where it takes more than one."""
    text = Text()
    if mitigation.approvals_needed > 1:
        text.append(f"\n  approvals: {len(mitigation.approvals)} of {mitigation.approvals_needed}")
        for one in mitigation.approvals:
            text.append(f"\n  - {plain(one.by)} at {moment(one.at)} UTC by {plain(one.via)}")
    return text


def _items(mitigation: MitigationView) -> Text:
    """List what became of each item, or, as long as that is not known, what each is."""
    text = Text()
    for item in mitigation.items:
        text.append("\n  - ").append(plain(item.key))
        text.append(f"  {words(item.state)}", STATE_STYLES.get(item.state, ASIDE))
        text.append(f"  {plain(item.detail)}")
    for planned in () if mitigation.items else mitigation.planned:
        text.append(f"\n  - {plain(planned.key)}  {plain(planned.summary)}")
    return text


def _timeline(events: Iterable[TimelineEvent], said: Said) -> Table:
    grid = Table.grid(padding=(0, 2))
    for event in events:
        what = styled(words(event.event), "bold").append(f"  {said.once(event.reason)}")
        what.append(_UNSEALED if event.unsealed else "", DOUBT)
        grid.add_row(styled(moment(event.at, "%H:%M:%S"), ASIDE), styled(event.step), what)
    return grid


def timeline_line(event: TimelineEvent) -> Text:
    """Write one line of the journal."""
    text = styled(moment(event.at, "%H:%M:%S"), ASIDE)
    text.append(f"  {plain(event.step):<9} {words(event.event)}")
    text.append(f"  {plain(event.reason)}" if event.reason else "")
    return text.append(_UNSEALED if event.unsealed else "", DOUBT)


# --- the rest -----------------------------------------------------------------------------------


def budget(limits: Limits) -> str:
    """Write a budget as ``3 in 1h``."""
    return f"{limits.budget} in {format_duration(limits.window)}"


def limit_table(limits: Iterable[LimitView]) -> Table:
    """Draw every bound with what is used of it."""
    made = table("Scope", "Used", "Budget", "In flight", "Cooldown")
    for limit in limits:
        used = BAD if limit.reserved >= limit.limits.budget else ""
        busy = DOUBT if limit.in_flight >= limit.limits.concurrency else ""
        made.add_row(
            styled(limit.scope),
            styled(limit.reserved, used),
            styled(budget(limit.limits)),
            styled(f"{limit.in_flight} of {limit.limits.concurrency}", busy),
            styled(format_duration(limit.limits.cooldown)),
        )
    return made


def window_table(windows: Iterable[WindowView]) -> Table:
    """Draw the maintenance windows that run or come."""
    rows = table("Window", "Scope", "From (UTC)", "Until (UTC)", "Why", fixed=1)
    for window in windows:
        begin = "now" if window.running else moment(window.since)
        until = moment(window.until)
        why = f"{window.reason} ({window.by or 'configuration'})".strip()
        style = DOUBT if window.running else ""
        rows.add_row(
            styled(window.id), styled(window.scope), styled(begin, style), until, styled(why)
        )
    return rows


def pause_line(pause: PauseView) -> Text:
    """Write one stop switch that is on."""
    text = styled(f"Paused: {plain(pause.scope)}", DOUBT)
    text.append(f" by {plain(pause.by)} since {moment(pause.since)} UTC")
    return text.append(f": {plain(pause.reason)}") if pause.reason else text


def dead_letter_page(letters: Iterable[DeadLetterView]) -> Group:
    """Draw what was received and could not be used."""
    return Group(*(_dead_letter(letter) for letter in letters))


def _dead_letter(letter: DeadLetterView) -> Text:
    place = "the body" if letter.position is None else f"alerts[{letter.position}]"
    text = styled(letter.id, "bold").append(f"  {moment(letter.at)} UTC  {letter.source}", ASIDE)
    text.append(f"\n  {place} of {plain(letter.delivery_id)}: {plain(letter.reason)}")
    shown = _short(letter.excerpt)
    return text.append(f"\n  {shown}", ASIDE) if shown else text
