"""Which level of an escalation is due, who is told, and when it stops. Pure.

Level follows level at its time. An acknowledgement holds them up for a time; then the next one is
told at once, or the last one again. It ends when the alert resolves or a later incident has it;
where a temporary change stays in production, when somebody has it as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from remediator.model.catalog import Escalation, Level
from remediator.model.duration import format_duration
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.maintenance import Window
from remediator.model.notification import Summons, Word
from remediator.model.severity import Severities
from remediator.model.views import Frame, IncidentView, Report
from remediator.notify.report import summarise
from remediator.store.paging import EscalationState, Message, Step, Telling

PAGERDUTY = "pagerduty"
"""The channel that is also told when somebody has the incident, and when it is over."""
NOTES = "pagerduty/notes"
"""The channel of what is written to the incidents of PagerDuty's that alerts came from."""
LOOK_AGAIN = timedelta(seconds=30)
"""Time between two looks at whether the alert still fires, when nothing else is due."""
_LONGEST_HEADLINE = 1024
_NAMED = 10
"""Incidents that a page names besides its own."""


def next_step(standing: EscalationState, plan: Escalation, window: Window | None) -> Step:
    """Decide what comes next; ``window`` is the maintenance that runs: nobody is called in it."""
    if not standing.fires and not standing.stays:
        return _end(standing)
    if not standing.fires and _is_taken(standing):
        reason = f"{standing.acknowledged_by} has it, and no alert fires"
        ended = (("escalation ended", reason),)
        return _step(standing, ended=True, messages=_acknowledged(standing), events=ended)
    if not plan.levels:
        return _step(standing, ended=True)
    if window is not None:
        return _step(standing, due_at=min(window.until, standing.now + LOOK_AGAIN))
    if standing.acknowledged_at is None:
        return _levels(standing, plan)
    over = standing.acknowledged_at + plan.acknowledged_for
    if standing.now < over:
        soon = min(over, standing.now + LOOK_AGAIN)
        return _step(standing, due_at=soon, messages=_acknowledged(standing))
    return _resumed(standing, plan)


def _step(
    standing: EscalationState,
    *,
    due_at: datetime | None = None,
    ended: bool = False,
    messages: tuple[Message, ...] = (),
    events: tuple[tuple[str, str], ...] = (),
) -> Step:
    """Stay at the level."""
    return Step(
        level=standing.level,
        since=standing.since,
        due_at=due_at,
        ended=ended,
        messages=messages,
        events=events,
    )


def _end(standing: EscalationState) -> Step:
    if not standing.told and standing.acknowledged_at is None and standing.level == 0:
        return _step(standing, ended=True)  # nobody was called, so nothing has to be said
    if standing.successor is not None:
        reason = f"the alert is with the later incident {standing.successor}"
        return _step(standing, ended=True, events=(("escalation ended", reason),))
    resolved = Message(channel=PAGERDUTY, word=Word.RESOLVED, subject="")
    return _step(
        standing,
        ended=True,
        messages=(resolved,) if PAGERDUTY in standing.told else (),
        events=(("escalation ended", "the alert resolved"),),
    )


def _is_taken(standing: EscalationState) -> bool:
    """Say whether somebody has what it is for; who had the incident before has it for a time."""
    return standing.acknowledged_at is not None and standing.acknowledged_at > standing.since


def _acknowledged(standing: EscalationState) -> tuple[Message, ...]:
    """Tell PagerDuty that somebody has it, unless it was PagerDuty that told us."""
    if standing.acknowledged_at is None or standing.echoed or PAGERDUTY not in standing.told:
        return ()
    at = standing.acknowledged_at.isoformat()
    return (Message(channel=PAGERDUTY, word=Word.ACKNOWLEDGED, subject=at),)


def _resumed(standing: EscalationState, plan: Escalation) -> Step:
    """Go on at the next level, at once; where every level was told, at the last one again."""
    level = plan.levels[min(standing.level, len(plan.levels) - 1)]
    rest = standing.model_copy(
        update={"since": standing.now - level.after, "acknowledged_at": None}
    )
    held = format_duration(plan.acknowledged_for)
    still = "the alert still fires" if standing.fires else "a temporary change stays in production"
    reason = f"{standing.acknowledged_by} has had it for {held}, and {still}"
    step = _levels(rest, plan, again=True)
    events = (("acknowledgement over", reason), *step.events)
    return step.model_copy(update={"lapsed": True, "events": events})


def _levels(standing: EscalationState, plan: Escalation, *, again: bool = False) -> Step:
    """Tell every level whose time has come."""
    messages: list[Message] = []
    events: list[tuple[str, str]] = []
    number = standing.level
    while _is_due(standing, plan, number) or (again and number == standing.level):
        level = plan.levels[min(number, len(plan.levels) - 1)]
        messages += _calls(level, number)
        event = f"level {number + 1} of {len(plan.levels)}"
        if number >= len(plan.levels):
            event = f"level {len(plan.levels)} once more"
        events.append((event, f"nobody has it yet; told: {', '.join(level.notify)}"))
        number += 1
    due_at = standing.now + LOOK_AGAIN
    if number < len(plan.levels):
        due_at = min(due_at, standing.since + plan.levels[number].after)
    return Step(
        level=number,
        since=standing.since,
        due_at=due_at,
        messages=tuple(messages),
        events=tuple(events),
    )


def _is_due(standing: EscalationState, plan: Escalation, number: int) -> bool:
    if number >= len(plan.levels):
        return False
    return standing.since + plan.levels[number].after <= standing.now


def calls_of(plan: Escalation, number: int) -> tuple[Message, ...]:
    """Name whom a level is told to; what the plan has no more is as its last one."""
    if not plan.levels:
        return ()
    return tuple(_calls(plan.levels[min(number, len(plan.levels) - 1)], number))


def _calls(level: Level, number: int) -> Iterable[Message]:
    for name in dict.fromkeys(level.notify):
        yield Message(channel=name, word=Word.LEVEL, subject=str(number))


# --- the incidents of PagerDuty's that alerts came from ------------------------------------------


def notes_due(view: IncidentView, *, acts: bool, resolves: bool) -> tuple[Word, ...]:
    """List what should stand in PagerDuty by now; each is written once, however often it is due.

    ``acts`` says that the playbook may change something by itself, ``resolves`` that an incident
    may be resolved there: no other sender's alert fires. What waits for an approval is not
    acknowledged, because somebody has to see it. What only waits for PagerDuty to say that it
    resolved was measured to be good, so it is resolved; nobody else would.
    """
    if view.dry_run or view.replay_of is not None or view.playbook is None:
        return ()
    closed = view.state is IncidentState.CLOSED
    changing = view.phase in {Phase.ACT, Phase.VERIFY, Phase.REVERT, Phase.SETTLE}
    wanted = {
        Word.ACKNOWLEDGED: not closed and (changing or (acts and view.phase is not Phase.APPROVAL)),
        Word.FOUND: bool(view.findings) and (closed or view.phase is not Phase.DIAGNOSE),
        Word.DONE: closed,
        Word.RESOLVED: resolves
        and (view.outcome is IncidentOutcome.MITIGATED or view.phase is Phase.SETTLE),
    }
    return tuple(word for word, due in wanted.items() if due)


# --- what is said ------------------------------------------------------------------------------


def compose(
    view: IncidentView,
    telling: Telling,
    plan: Escalation,
    severities: Severities,
    frame: Frame = Frame(),  # noqa: B008 - frozen
) -> Summons:
    """Say what ``telling`` is to say, with every secret masked."""
    report = summarise(view, frame)
    headline = report.headline
    if telling.word is Word.LEVEL:
        headline = f"{_stage(int(telling.subject), plan)}. {_count(telling)}{headline}"
    return Summons(
        word=telling.word,
        subject=telling.subject,
        report=report,
        headline=headline[:_LONGEST_HEADLINE],
        text="\n".join([*_lines(report, telling.word), *_others(telling)]),
        severity=severity(view, severities),
        links=report.links,
    )


def _lines(report: Report, word: Word) -> Iterable[str]:
    if word is Word.FOUND:
        return report.found
    end = (f"Did it help? {report.helped}", f"Next: {report.next_step}")
    if word is Word.DONE:
        return (*report.done, *end)
    take = f"If you have it: `remediator acknowledge {report.incident.id}`."
    return (*report.happened, *report.found, *report.done, *end, take)


def _count(telling: Telling) -> str:
    """Say for how many incidents the page is, where it is not for one."""
    return f"{len(telling.all)} incidents of one kind, such as: " if telling.others else ""


def _others(telling: Telling) -> Iterable[str]:
    """Name the other incidents that the page is for."""
    ids = [other.incident_id for other in telling.others]
    if ids:
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        named = ", ".join(ids[:_NAMED]) + more
        yield f"This page is also for {named}. Who acknowledges this one has all of them."


def _stage(number: int, plan: Escalation) -> str:
    """Say which level it is; the plan may have become shorter meanwhile."""
    count = len(plan.levels)
    if number >= count:
        return "Still needs a human"
    return f"Escalation level {number + 1} of {count}"


def severity(view: IncidentView, severities: Severities) -> str:
    """Return the incident's severity in PagerDuty's four words.

    What has no known word, or is mild only by default, is an error there: a warning wakes nobody.
    """
    if view.severity > _ERROR and not severities.knows(view.severity_word):
        return _SEVERITIES[_ERROR]
    return _SEVERITIES[view.severity]


_ERROR = 2
_SEVERITIES = {1: "critical", _ERROR: "error", 3: "warning", 4: "info"}
