"""Turns what the API says of an incident into facts for people, each told once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from remediator.model.finding import FindingStatus
from remediator.model.incident import IncidentOutcome
from remediator.model.mitigation import MitigationState
from remediator.model.verdict import Assessment
from remediator.model.views import FindingView, IncidentView, MitigationView

GOOD, BAD, DOUBT = "green", "red", "yellow"
OUTCOMES = {IncidentOutcome.MITIGATED: GOOD, IncidentOutcome.RESOLVED_BY_ITSELF: DOUBT}
VERDICTS = {Assessment.BETTER: GOOD, Assessment.NOT_BETTER: BAD, Assessment.CANNOT_TELL: DOUBT}
PULLED = {MitigationState.APPLIED, MitigationState.UNKNOWN, MitigationState.NOT_APPLIED}


@dataclass(frozen=True)
class Fact:
    """One thing that became known."""

    what: str
    details: tuple[str, ...] = ()
    style: str = ""


class Told(set[str]):
    """The keys of what was told already."""

    def first(self, key: str) -> bool:
        """Say whether ``key`` is new, and keep it."""
        new = key not in self
        self.add(key)
        return new


@dataclass
class Story:
    """What was told of one incident so far."""

    told: Told = field(default_factory=Told)

    def news(self, incident: IncidentView) -> Iterator[Fact]:
        """Yield what is new since the last look, in the order in which it happened."""
        if self.told.first("opened"):
            playbook = f"playbook {incident.playbook}" if incident.playbook else "no playbook"
            yield Fact(f"Incident {incident.id} is open: {playbook}")
        rounds = sorted({finding.round for finding in incident.findings})
        for number in rounds:
            if self.told.first(f"findings {number}"):
                yield _found([f for f in incident.findings if f.round == number])
        for mitigation in incident.mitigations:
            yield from self._mitigation(mitigation)
        if incident.outcome is not None and self.told.first("outcome"):
            yield self._closed(incident, incident.outcome)

    def _closed(self, incident: IncidentView, outcome: IncidentOutcome) -> Fact:
        new = self.told.first(incident.reason)  # a verdict's evidence is the reason of the end
        return Fact(
            f"The incident is closed as {outcome.replace('_', ' ')}",
            (incident.reason,) if new else (),
            style=OUTCOMES.get(outcome, BAD),
        )

    def _mitigation(self, mitigation: MitigationView) -> Iterator[Fact]:
        if self.told.first(f"plan {mitigation.id}"):
            yield Fact(
                f"Plan {mitigation.plan_hash}: {mitigation.kind.replace('_', ' ')}"
                f" on {mitigation.target}",
                (mitigation.reason, f"risk {mitigation.risk}, mode {mitigation.mode}"),
            )
        if mitigation.state in PULLED and self.told.first(f"pulled {mitigation.id}"):
            applied = mitigation.state is MitigationState.APPLIED
            yield Fact(
                f"The lever is pulled: {mitigation.state.replace('_', ' ')}",
                tuple(
                    f"{item.key}: {item.detail or item.state.replace('_', ' ')}"
                    for item in mitigation.items
                ),
                style=GOOD if applied else BAD,
            )
        if mitigation.verdict is not None and self.told.first(f"verdict {mitigation.id}"):
            self.told.add(mitigation.evidence)
            yield Fact(
                f"Verdict: {mitigation.verdict.replace('_', ' ')}",
                (mitigation.evidence,),
                style=VERDICTS[mitigation.verdict],
            )


def _found(findings: list[FindingView]) -> Fact:
    notable = [f for f in findings if f.status is not FindingStatus.FINE]
    fine = len(findings) - len(notable)
    details = [f"{f.name.replace('_', ' ')} ({f.status}): {f.summary}" for f in notable]
    if fine:
        details.append(f"{fine} more checks found nothing wrong")
    return Fact(f"Found after {len(findings)} read-only checks:", tuple(details))
