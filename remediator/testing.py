"""For playbook authors and our own tests: a frozen clock, a small world with a lever, one run.

Nothing here is used by the service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import JsonValue

from remediator.model.alert import Alert, AlertStatus, Source
from remediator.model.base import IncidentId
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.finding import Finding, Sense, SenseState
from remediator.model.incident import Incident, IncidentState, Phase
from remediator.model.mitigation import (
    Item,
    ItemOutcome,
    Mitigation,
    MitigationState,
    Outcome,
    Preparation,
    Proposal,
)
from remediator.model.ports import Port
from remediator.model.target import Target
from remediator.playbook.base import Context, Playbook


class FrozenClock:
    """A clock that moves only when told to; also a monotonic one, in seconds."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self.now = start

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self.now.timestamp()

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        self.now += by


@dataclass
class World:
    """Things that a ``WorldMitigator`` can switch off, and faults to come.

    ``applied`` lists the effect keys of every call that changed something, so a test can count.
    """

    things: set[str] = field(default_factory=set)
    applied: list[tuple[str, str]] = field(default_factory=list)
    lose_answers: int = 0
    """So many of the next changes take effect, but their answer is lost."""
    refuse: str | None = None
    changed_by: str | None = None
    """Who has changed things since we did: then nothing is put back."""
    unavailable: str | None = None

    def check(self) -> None:
        """Raise what a broken or unwilling backend would raise."""
        if self.unavailable is not None:
            raise BackendUnavailable(self.unavailable)
        if self.refuse is not None:
            raise BackendRefused(self.refuse)


class WorldMitigator:
    """Switches things of a ``World`` off: conditional, with or without an undo."""

    kinds = frozenset({"switch_off"})
    consequences: Mapping[str, str] = {"switch_off": "These things go dark."}

    pause = timedelta(minutes=10)
    """Time between two steps of taking back."""

    def __init__(self, world: World, *, conditional: bool = True, undo: bool = False) -> None:
        self.world = world
        self.conditional = conditional
        self._undo = undo

    async def probe(self) -> Sense:
        """Say whether the world lets itself be changed."""
        state = SenseState.IMPAIRED if self.world.refuse else SenseState.OK
        return Sense(name="world", state=state, reason=self.world.refuse or "")

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        """Keep the items that are still on."""
        self.world.check()
        left = tuple(item for item in mitigation.items if item.key in self.world.things)
        if not left:
            raise BackendRefused("nothing is left to switch off")
        before: dict[str, JsonValue] = {"on": [item.key for item in left]}
        return Preparation(
            mitigation=mitigation.model_copy(update={"items": left}),
            before=before,
            undo=before if self._undo else None,
        )

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Switch them off, each at most once."""
        self.world.check()
        items = []
        for item in preparation.mitigation.items:
            gone = item.key not in self.world.things
            if not gone:
                self.world.things.discard(item.key)
                self.world.applied.append((effect_key, item.key))
            state = MitigationState.NOT_APPLIED if gone else MitigationState.APPLIED
            items.append(ItemOutcome(key=item.key, state=state))
        if self.world.lose_answers:
            self.world.lose_answers -= 1
            return Outcome(state=MitigationState.UNKNOWN, detail="the answer was lost")
        return _outcome(items)

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Look which are off."""
        self.world.check()
        on = self.world.things
        return _outcome(
            [
                ItemOutcome(
                    key=item.key,
                    state=MitigationState.NOT_APPLIED
                    if item.key in on
                    else MitigationState.APPLIED,
                )
                for item in preparation.mitigation.items
            ]
        )

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        """Switch them on again; in steps, one at a time."""
        self.world.check()
        if preparation.undo is None:
            raise BackendRefused("this cannot be put back")
        if self.world.changed_by is not None:
            detail = f"{self.world.changed_by} has changed it since"
            return Outcome(state=MitigationState.NOT_APPLIED, detail=detail, final=True)
        off = [i.key for i in preparation.mitigation.items if i.key not in self.world.things]
        step = off[:1] if in_steps else off
        self.world.things.update(step)
        if len(step) == len(off):
            return Outcome(state=MitigationState.REVERTED, detail="switched on again")
        detail = f"{', '.join(step)} switched on again, {len(off) - len(step)} left"
        return Outcome(state=MitigationState.APPLIED, detail=detail, again_in=self.pause)


def _outcome(items: Sequence[ItemOutcome]) -> Outcome:
    done = sum(item.state is MitigationState.APPLIED for item in items)
    state = MitigationState.APPLIED if done else MitigationState.NOT_APPLIED
    return Outcome(state=state, detail=f"{done} of {len(items)} switched off", items=tuple(items))


def firing_alert(name: str, labels: Mapping[str, str], starts_at: datetime) -> Alert:
    """Make an alert as Alertmanager would report it."""
    everything = {"alertname": name, **labels}
    fingerprint = "-".join(f"{k}={v}" for k, v in sorted(everything.items()))
    return Alert(
        source=Source.ALERTMANAGER,
        fingerprint=fingerprint,
        status=AlertStatus.FIRING,
        labels=everything,
        starts_at=starts_at,
    )


def items(*keys: str) -> tuple[Item, ...]:
    """Make items that have nothing but a key."""
    return tuple(Item(key=key, identity={"key": key}) for key in keys)


@dataclass(frozen=True)
class PlaybookRun:
    """What a playbook saw, and what it would do."""

    findings: Mapping[str, Finding]
    proposal: Proposal


def context_for(
    playbook: Playbook[Any],
    *,
    targets: Mapping[str, Target],
    ports: Mapping[str, Port],
    now: datetime,
    alerts: Sequence[Alert] = (),
    since: datetime | None = None,
) -> Context:
    """Make what ``playbook`` would see of an incident of the service that ``targets`` belong to.

    ``since`` is when the change that ``verify`` looks at was made; without it the incident is
    diagnosed. ``dataclasses.replace`` adds the rest: what was ``tried``, what fires ``beside``.
    """
    at = now if since is None else since
    incident = Incident(
        id=IncidentId("inc-test"),
        correlation_key="test",
        state=IncidentState.OPEN,
        phase=Phase.DIAGNOSE if since is None else Phase.VERIFY,
        outcome=None,
        reason="",
        system=next((target.system for target in targets.values()), None),
        service=next((target.service for target in targets.values()), None),
        playbook=playbook.name,
        dry_run=True,
        replay_of=None,
        round=0,
        epoch=0,
        opened_at=at,
        closed_at=None,
        phase_since=at,
        progressed_at=at,
    )
    return Context(
        incident=incident, alerts=tuple(alerts), targets=dict(targets), ports=dict(ports), now=now
    )


async def run_playbook(  # noqa: PLR0913 - by keyword, each with a meaning of its own
    playbook: Playbook[Any],
    *,
    alert: Alert,
    targets: Mapping[str, Target],
    ports: Mapping[str, Port],
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    tried: tuple[Mitigation, ...] = (),
    noted: Mapping[str, JsonValue] | None = None,
) -> PlaybookRun:
    """Diagnose and propose once, as the engine would; nothing is changed.

    ``noted`` is what the proposal of the last look says.
    """
    seen = context_for(playbook, targets=targets, ports=ports, now=now(), alerts=(alert,))
    context = replace(seen, tried=tried, noted=noted or {})
    findings = await playbook.diagnose(context)
    return PlaybookRun(findings=findings, proposal=playbook.propose(context, findings))
