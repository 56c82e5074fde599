"""One claimed incident with everything that its next step may use.

Made by the pipeline for each claim and handed to the step. Steps return a ``Transition``; the
phrases that several steps share (wait, try again, escalate, close) are methods here.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from remediator.model.base import MitigationId, new_id
from remediator.model.catalog import Catalogue, EnabledPlaybook, Service
from remediator.model.errors import PermanentError, TemporaryError
from remediator.model.finding import Finding, Sense, SenseState
from remediator.model.incident import Incident, IncidentOutcome, Phase
from remediator.model.kinds import KINDS, STRICTEST, Kind
from remediator.model.limits import Bound
from remediator.model.lookback import Allowance
from remediator.model.maintenance import Halt, Window, covered, longest, running
from remediator.model.mitigation import (
    Decision,
    LedgerEntry,
    Mitigation,
    MitigationState,
    Preparation,
)
from remediator.model.ports import Mitigator, Port
from remediator.model.target import Mode, Target
from remediator.model.transition import Claim, LimitUsage, Settlement, Transition
from remediator.model.views import Frame, TimelineEvent
from remediator.playbook.base import CHECK_TIMEOUT, Context, Parameters, Playbook
from remediator.playbook.loader import PlaybookSet
from remediator.store.ledger import Ledger

PATIENCE = timedelta(minutes=10)
"""Time that a remediation waits for a passing cause (paused, busy, impaired) to pass."""
CAUSE_GRACE = timedelta(seconds=10)
"""Time that a symptom's first decision waits for the alert of a possible cause."""
CAUSE_PATIENCE = timedelta(minutes=30)
"""Time that a symptom waits for its cause's verdict: several levers, each held for its time."""
WINDOW_SEEN_AGAIN = timedelta(minutes=5)
"""Time after which a planned window is looked up again: the file may have changed since."""
SEEN_AGAIN = timedelta(seconds=10)
"""Time after which impaired senses or an unreachable backend are looked at again."""

_FIGURES = re.compile(r"\d[\d.,:]*")
_MADE = (MitigationState.APPLIED, MitigationState.REVERTED, MitigationState.UNKNOWN)


class Mitigators:
    """The levers of every writable backend, by kind and name of the backend."""

    def __init__(self, levers: Mapping[tuple[str, str], Sequence[Mitigator]]) -> None:
        self._levers = dict(levers)

    def find(self, target: Target, kind: str) -> Mitigator:
        """Return the lever for ``kind`` on ``target``; ``PermanentError`` says what is missing."""
        levers = self._levers.get((target.kind, target.name), ())
        if not levers:
            raise PermanentError(
                f"{target.kind}/{target.name} has no writer configured, so nothing can be changed"
            )
        for lever in levers:
            if kind in lever.kinds:
                return lever
        raise PermanentError(f"{target.kind}/{target.name} has no lever {kind!r}")


@dataclass(frozen=True)
class EngineContext:
    """What all steps work with, for the life of the process."""

    catalogue: Catalogue
    playbooks: PlaybookSet
    ports: Callable[[Service], Mapping[str, Port]]
    """The read ports of a service, by role."""
    levers: Mitigators
    ledger: Ledger
    confirms: bool = field(default=False, kw_only=True)
    """Whether a chat confirms that a request for an approval was delivered."""
    frame: Frame = field(default_factory=Frame)
    """Of what is said to humans."""
    kinds: Mapping[str, Kind] = field(default_factory=lambda: KINDS)
    """What each kind of mitigation may do at most."""
    monotonic: Callable[[], float] = time.monotonic
    stopped: Callable[[Incident], Halt | None] = lambda _incident: None
    """Says what this process alone has paused, while the store takes no pause."""

    async def paused(
        self, incident: Incident, before: datetime | None = None, *, claimed: bool = True
    ) -> Halt | None:
        """Say why nothing may be changed right now: a window, planned or ordered, or a pause.

        Or that ``before`` is over by the store's clock: ours may have stood still meanwhile.
        ``OwnershipLost`` when ``incident`` was claimed and is no longer ours.
        """
        now, halt = await self.ledger.paused(incident, claimed=claimed)
        if before is not None and now >= before:
            return Halt(reason="the time limit for applying it had passed")
        return longest(self._planned(incident, now), halt, self.stopped(incident))

    def whole(self, incident: Incident, standing: LimitUsage) -> LimitUsage:
        """Return ``standing`` with what the file plans for its moment."""
        planned = self._planned(incident, standing.now)
        halt = longest(planned, standing.paused, self.stopped(incident))
        return standing.model_copy(update={"paused": halt})

    def _planned(self, incident: Incident, now: datetime) -> Halt | None:
        window = running(self.catalogue.windows(incident, now, now), now)
        return None if window is None else window.halt


@dataclass(frozen=True)
class StepContext:
    """One claim, its service and its playbook."""

    around: EngineContext
    claim: Claim
    service: Service
    enabled: EnabledPlaybook
    playbook: Playbook[Parameters]
    started: float
    """When the step began, by ``around.monotonic``: a claim that is older may be another's."""

    @property
    def context(self) -> Context:
        """What the playbook may see."""
        return Context(
            incident=self.claim.incident,
            alerts=self.claim.alerts,
            targets=self.service.targets,
            ports=self.around.ports(self.service),
            now=self.claim.now,
            tried=tuple(entry.mitigation for entry in self.made),
            beside=self.claim.neighbours,
            noted={} if self.claim.proposal is None else self.claim.proposal.noted,
        )

    @property
    def made(self) -> list[LedgerEntry]:
        """Changes of this incident that happened, or may have."""
        return [entry for entry in self.claim.entries if entry.state in _MADE]

    def find(self, state: MitigationState) -> LedgerEntry | None:
        """Return the latest ledger entry in ``state``."""
        return next((e for e in reversed(self.claim.entries) if e.state is state), None)

    def mode(self, mitigation: Mitigation) -> Mode:
        """Return how far a mitigation of this risk may go here; a dry run goes no further."""
        mode = self.enabled.modes[mitigation.risk]
        if self.claim.incident.dry_run and mode is not Mode.OBSERVE:
            return Mode.SHADOW
        return mode

    def approvers(self, mitigation: Mitigation) -> int:
        """Return how many different persons must approve this mitigation here."""
        by_kind = self.service.approval(mitigation.kind).approvals
        return max(self.service.approvals[mitigation.risk], by_kind)

    @property
    def never_changes(self) -> bool:
        """Whether no mitigation of any risk could be made in the modes that hold here."""
        silent = {Mode.OBSERVE, Mode.SHADOW}
        return self.claim.incident.dry_run or set(self.enabled.modes.values()) <= silent

    @property
    def cause(self) -> str | None:
        """A playbook at work on the same service whose cause explains this one's symptom."""
        return next((name for name in self.claim.beside if self._explains(name)), None)

    def still_configured(self, mitigation: Mitigation) -> bool:
        """Whether the service still has the target, and the playbook the lever, of a stored plan."""
        targets = self.service.targets.values()
        return mitigation.target in targets and mitigation.kind in self.playbook.levers

    def allowance(self, mitigation: Mitigation) -> Allowance:
        """Return all that ``mitigation`` has to keep."""
        own = self.enabled.limits.over(self.playbook.limits)
        catalogue = self.around.catalogue
        name, target, kind = self.enabled.name, mitigation.target, mitigation.kind
        declared = self.around.kinds.get(kind, STRICTEST).limits
        of_kind = (Bound(scope=f"lever/{kind}/{target.key}", limits=one) for one in declared)
        return Allowance(
            bounds=(*self.service.bounds(catalogue.limits, name, own, target), *of_kind),
            safeguards=catalogue.safeguards,
            services=len(catalogue.services),
            approval=self.service.approval(kind),
            kinds=dict(self.around.kinds),
        )

    def lever(self, mitigation: Mitigation) -> Mitigator:
        """Return the lever; ``PermanentError`` when there is none."""
        return self.around.levers.find(mitigation.target, mitigation.kind)

    def entry(self, preparation: Preparation, state: MitigationState, reason: str) -> LedgerEntry:
        """Make a row for the ledger, with the next effect key of this incident."""
        incident, mitigation = self.claim.incident, preparation.mitigation
        number = len(self.claim.entries)
        # what comes later is later, also when the clock was put back meanwhile
        before = [entry.created_at + timedelta(microseconds=1) for entry in self.claim.entries]
        key = (
            f"{incident.id}/{self.enabled.name}/{number}/{mitigation.kind}/{mitigation.target.key}"
        )
        return LedgerEntry(
            id=MitigationId(new_id("mit", self.claim.now)),
            incident_id=incident.id,
            effect_key=key,
            system=self.service.system,
            service=self.service.name,
            playbook=self.enabled.name,
            mitigation=mitigation,
            mode=self.mode(mitigation),
            state=state,
            reason=reason,
            plan_hash=mitigation.plan_hash,
            before=preparation.before,
            undo=preparation.undo,
            created_at=max(self.claim.now, *before) if before else self.claim.now,
        )

    @property
    def out_of_patience(self) -> bool:
        """Whether too much time has passed since the incident last got anywhere."""
        return self._patience_left < timedelta(0)

    def can_wait_for(self, decision: Decision) -> bool:
        """Whether the patience lasts until what ``decision`` waits for will have passed."""
        return self._patience_left >= (decision.again_in or timedelta(0))

    @property
    def _patience_left(self) -> timedelta:
        incident = self.claim.incident
        progress = [incident.progressed_at]
        progress += [e.finished_at for e in self.claim.entries if e.finished_at is not None]
        if incident.phase in (Phase.ACT, Phase.REVERT):
            progress.append(incident.phase_since)
        return PATIENCE - self.waited_since(max(progress))

    def waited_since(self, moment: datetime) -> timedelta:
        """Return the time since ``moment``, less what maintenance windows took of it."""
        now = self.claim.now
        return now - moment - covered(self.windows, moment, now)

    @property
    def windows(self) -> list[Window]:
        """Maintenance windows since the incident was opened, planned and ordered."""
        incident, now = self.claim.incident, self.claim.now
        begin = min(incident.opened_at, now)  # the clock may have been put back since
        planned = self.around.catalogue.windows(incident, begin, now)
        return [*planned, *self.claim.windows]

    @property
    def maintenance(self) -> Window | None:
        """The window that runs; none holds up a dry run."""
        return None if self.claim.incident.dry_run else running(self.windows, self.claim.now)

    # --- transitions that several steps make --------------------------------------------------

    def event(self, event: str, reason: str, **data: str) -> TimelineEvent:
        """Make a line for the journal."""
        step = self.claim.incident.phase
        return TimelineEvent(at=self.claim.now, step=step, event=event, reason=reason, data=data)

    def wait(
        self,
        reason: str,
        due_in: timedelta,
        *,
        code: str = "waiting",
        findings: tuple[Finding, ...] = (),
    ) -> Transition:
        """Stay at this step and look again later; said once for each reason."""
        known = says_the_same(self.claim.incident.reason, reason)
        return Transition(
            phase=self.claim.incident.phase,
            due_in=due_in,
            reason=reason,
            findings=() if known else findings,
            events=() if known else (self.event(f"waiting: {code}", reason),),
            notify=not known,
        )

    def wait_for_cause(self) -> Transition | None:
        """Let the symptom wait while its cause is treated; None when there is none, or too long."""
        waited = self.waited_since(self.claim.incident.opened_at)
        if self.cause is None or waited > CAUSE_PATIENCE:
            return None
        reason = f"{self.cause} is working on this service and may explain this alert: waiting for its verdict"
        waiting = self.wait(reason, SEEN_AGAIN, code="cause")
        return waiting.model_copy(update={"progress": True})

    def wait_for_causes_alert(self) -> Transition | None:
        """Give the alert of a possible cause the time to come a little later than its symptom's."""
        left = CAUSE_GRACE - self.waited_since(self.claim.incident.opened_at)
        causes = [name for name in self.service.playbooks if self._explains(name)]
        if not causes or left <= timedelta(0) or self.claim.incident.replay_of is not None:
            return None
        reason = f"{', '.join(causes)} may explain this alert: waiting a moment for its own alert"
        return self.wait(reason, left, code="cause")

    def _explains(self, name: str) -> bool:
        cls = self.around.playbooks.get(name)
        return cls is not None and self.enabled.name in cls.explains

    def wait_for_maintenance(self, phase: Phase | None = None) -> Transition | None:
        """Let a window pass in silence, at ``phase`` or here; None when none runs."""
        window = self.maintenance
        if window is None:
            return None
        left = min(window.until - self.claim.now, WINDOW_SEEN_AGAIN)
        waiting = self.wait(window.halt.reason, left, code="maintenance")
        return waiting.model_copy(update={"phase": phase or waiting.phase, "notify": False})

    def again(
        self, reason: str, event: TimelineEvent, settlement: Settlement | None = None
    ) -> Transition:
        """Look afresh: the next round begins with a diagnosis."""
        return Transition(
            phase=Phase.DIAGNOSE,
            next_round=True,
            reason=reason,
            settlement=settlement,
            events=(event,),
        )

    def escalate(self, reason: str) -> Transition:
        """Hand over to a human."""
        return close(self.claim, IncidentOutcome.ESCALATED, reason)

    def resolved_by_itself(self) -> Transition:
        """Close: nothing fires any more and nothing is being judged."""
        window = self._resolved_within
        if window is not None and not self.made:
            reason = f"the alert resolved during {window.halt.reason}"
            closing = close(self.claim, IncidentOutcome.SUPPRESSED, reason)
            return closing.model_copy(update={"notify": False})
        reason = "the alert resolved before anything was changed"
        if self.made:
            reason = "the alert resolved, but not while a mitigation was being judged"
        return close(self.claim, IncidentOutcome.RESOLVED_BY_ITSELF, reason)

    @property
    def _resolved_within(self) -> Window | None:
        """The window in which the last alert resolved, also when this step comes after it."""
        now = self.claim.now
        ends = [min(alert.ends_at or now, now) for alert in self.claim.alerts]
        return self.maintenance or running(self.windows, max(ends, default=now))


def close(claim: Claim, outcome: IncidentOutcome, reason: str) -> Transition:
    """End the incident's remediation."""
    pending = [e.effect_key for e in claim.entries if e.state is MitigationState.RESERVED]
    if pending:
        reason = f"{reason}; a change may have been made: {', '.join(pending)}"
    event = TimelineEvent(
        at=claim.now, step=claim.incident.phase, event=f"closed as {outcome}", reason=reason
    )
    return Transition(
        phase=Phase.DONE, due_in=None, outcome=outcome, reason=reason, events=(event,)
    )


def says_the_same(one: str, other: str) -> bool:
    """Whether two reasons differ in nothing but their figures: what waits is said once."""
    return _FIGURES.sub("", one) == _FIGURES.sub("", other)


async def probe(ports: Mapping[str, Port | Mitigator], names: frozenset[str]) -> list[Sense]:
    """Say of each named sense whether it can be trusted now; not configured is absent."""
    return list(await asyncio.gather(*(_probe(ports.get(n), n) for n in sorted(names))))


async def _probe(port: Port | Mitigator | None, name: str) -> Sense:
    if port is None:
        return Sense(name=name, state=SenseState.ABSENT, reason="not configured")
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            sense = await port.probe()
    except TimeoutError:
        reason = f"no answer within {CHECK_TIMEOUT:g} s"
    except (TemporaryError, PermanentError) as error:
        reason = str(error)
    else:
        return sense.model_copy(update={"name": name})
    return Sense(name=name, state=SenseState.IMPAIRED, reason=reason)
