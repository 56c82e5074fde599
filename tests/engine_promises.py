"""The promises of the engine, held against what is stored and against the world's own record."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select

from remediator.model.incident import IncidentOutcome, IncidentState
from remediator.model.limits import Limits
from remediator.model.mitigation import MitigationState
from remediator.model.target import Target
from remediator.model.transition import LEASE
from remediator.store import Store
from remediator.store import tables as t
from remediator.store.ledger import LATEST
from tests.engine_senders import Senders
from tests.engine_world import Scene

COUNTED = {
    MitigationState.RESERVED,
    MitigationState.APPLIED,
    MitigationState.UNKNOWN,
    MitigationState.REVERTED,
}
_WAITING = {MitigationState.APPROVED, MitigationState.AWAITING_APPROVAL}


@dataclass(frozen=True)
class Facts:
    """What is stored, read at once."""

    incidents: Sequence[Any]
    mitigations: Sequence[Any]
    alerts: Sequence[Any]
    deliveries: Sequence[Any]
    letters: Sequence[Any]
    owed: Sequence[Any]


async def facts_of(store: Store) -> Facts:
    """Read the facts."""
    async with store.database.read() as connection:

        async def rows(*columns: Any, where: Any = True) -> Sequence[Any]:
            found = await connection.execute(select(*columns).where(where))
            return found.mappings().all()

        of, latest = t.deliveries.c, t.alerts.c.latest
        return Facts(
            await rows(t.incidents),
            await rows(t.mitigations),
            await rows(t.alerts.c.fingerprint, t.alerts.c.status, where=latest),
            await rows(of.id, of.alerts, of.dead, of.triaged_at, of.incidents),
            await rows(t.dead_letters.c.delivery_id),
            await rows(t.obligations.c.mitigation_id),
        )


@dataclass
class Promises:
    """What must be true after every rule, and what must be true when all has healed."""

    scene: Scene
    senders: Senders
    epochs: dict[str, int] = field(default_factory=dict)

    def hold(self, facts: Facts) -> None:
        """Fail with the first promise that is broken."""
        assert not self.scene.record.wrong, "; ".join(self.scene.record.wrong)
        self._no_bound_is_passed(facts)
        self._one_in_flight_a_target(facts)
        self._nothing_is_made_twice(facts)
        self._every_change_is_counted(facts)
        self._every_delivery_is_accounted_for(facts)
        self._every_alert_is_accounted_for(facts)
        self._epochs_only_grow(facts)

    def _no_bound_is_passed(self, facts: Facts) -> None:
        limits: dict[str, Limits] = {}
        rows, changes = defaultdict(list), defaultdict(list)
        for row in facts.mitigations:
            target = Target.model_validate(row["mitigation"]["target"])
            for bound in self.scene.bounds(row["service"], row["playbook"], target):
                limits[bound.scope] = bound.limits
                rows[bound.scope].append(row)
        for one in self.scene.record.changes:
            for bound in self.scene.bounds(one.service, one.playbook, one.target):
                changes[bound.scope].append(one.at)
        for scope, own in limits.items():
            _is_kept(scope, own, rows[scope])
            if self.scene.clock.jumped_at is None:
                # a call may be made, and take, that much longer than it was reserved
                _within(own.budget, own.window - LEASE - LATEST, changes[scope], scope)

    def _one_in_flight_a_target(self, facts: Facts) -> None:
        flying = [row["target_key"] for row in facts.mitigations if row["in_flight"]]
        assert len(flying) == len(set(flying)), f"two in flight: {flying}"

    def _nothing_is_made_twice(self, facts: Facts) -> None:
        keys = [row["effect_key"] for row in facts.mitigations]
        assert len(keys) == len(set(keys)), "an effect key was stored twice"
        for world in self.scene.worlds.values():
            assert len(world.applied) == len(set(world.applied)), "applied twice"
        again = [key for key, calls in self.scene.record.calls.items() if calls > 1]
        assert again == [], f"called again: {again}"

    def _every_change_is_counted(self, facts: Facts) -> None:
        states = {row["effect_key"]: row["state"] for row in facts.mitigations}
        for change in self.scene.record.changes:
            state = states[change.effect_key]
            assert state in COUNTED, f"{change.effect_key} was made, the ledger says {state}"

    def _every_delivery_is_accounted_for(self, facts: Facts) -> None:
        stored = {row["id"]: row for row in facts.deliveries}
        assert self.senders.accepted <= stored.keys(), "accepted, and not there"
        letters = Counter(row["delivery_id"] for row in facts.letters)
        incidents = {row["id"] for row in facts.incidents}
        for delivery, row in stored.items():
            alerts, dead = self.senders.sent[delivery]
            assert (row["alerts"], row["dead"]) == (len(alerts), len(dead))
            assert letters[delivery] == len(dead), "not a dead letter for each that cannot be used"
            assert set(row["incidents"]) <= incidents

    def _every_alert_is_accounted_for(self, facts: Facts) -> None:
        if any(row["triaged_at"] is None for row in facts.deliveries):
            return
        stored = {row["fingerprint"]: row["status"] for row in facts.alerts}
        over, fires = self.senders.over, self.senders.fires
        assert stored == dict.fromkeys(over, "resolved") | dict.fromkeys(fires, "firing")

    def _epochs_only_grow(self, facts: Facts) -> None:
        for row in facts.incidents:
            assert row["epoch"] >= self.epochs.get(row["id"], 0)
            self.epochs[row["id"]] = row["epoch"]

    # --- the end ------------------------------------------------------------------------------

    def whatever_is_open_waits(self, facts: Facts) -> None:
        """Nothing is stuck: what is open says why, and when it is looked at again."""
        for row in facts.incidents:
            if row["state"] == IncidentState.OPEN:
                assert row["reason"], f"{row['id']} waits for nothing at {row['phase']}"
                assert row["due_at"], f"{row['id']} waits for ever at {row['phase']}"

    def nothing_is_left(self, facts: Facts) -> None:
        """Every incident and every reservation has its end, and nothing is owed any more."""
        open_ = [(i["phase"], i["reason"]) for i in facts.incidents if i["outcome"] is None]
        assert open_ == []
        rows = facts.mitigations
        assert all(row["triaged_at"] for row in facts.deliveries), "a delivery waits for triage"
        assert _keys(r for r in rows if r["state"] == MitigationState.RESERVED) == []
        assert _keys(r for r in rows if r["in_flight"]) == []
        assert _keys(r for r in rows if r["state"] in _WAITING) == []
        ends = {row["id"]: row for row in facts.incidents}
        for row in rows:
            escalated = ends[row["incident_id"]]["outcome"] == IncidentOutcome.ESCALATED
            unknown = row["state"] == MitigationState.UNKNOWN
            assert escalated or not unknown, f"nobody was asked about {row['effect_key']}"
        self._holds_are_taken_back(facts, ends)

    def _holds_are_taken_back(self, facts: Facts, ends: dict[str, Any]) -> None:
        assert [row["mitigation_id"] for row in facts.owed] == [], "still owed"
        for row in facts.mitigations:
            temporary = row["mitigation"]["hold"] is not None and row["undo"] is not None
            if temporary and row["state"] == MitigationState.APPLIED:
                reason = ends[row["incident_id"]]["reason"]
                assert "is not taken back" in reason, f"{row['effect_key']} is held for ever"

    def everybody_knows(self, facts: Facts) -> None:
        """Who was told of an incident was told its end, in one message."""
        silent = {IncidentOutcome.NO_MATCH, IncidentOutcome.SUPPRESSED}
        chat = self.scene.chat
        for row in facts.incidents:
            said = chat.said.get(row["id"])
            if said is None:
                assert row["outcome"] in silent, f"nobody was told of {row['reason']}"
                continue
            assert (said.incident.outcome, said.incident.reason) == (row["outcome"], row["reason"])
            assert chat.posts[row["id"]] == 1


def _keys(rows: Iterable[Any]) -> list[str]:
    return [row["effect_key"] for row in rows]


def _is_kept(scope: str, own: Limits, rows: Sequence[Any]) -> None:
    in_flight = _keys(row for row in rows if row["in_flight"])
    assert len(in_flight) <= own.concurrency, f"{scope}: {in_flight}"
    reserved = [row for row in rows if row["state"] in COUNTED]
    _within(own.budget, own.window, [row["reserved_at"] for row in reserved], scope)
    if scope.startswith("target/"):
        _apart(own.cooldown, reserved)


def _within(budget: int, window: timedelta, times: list[datetime], scope: str) -> None:
    for end in times:
        found = sum(end - window < time <= end for time in times)
        assert found <= budget, f"{found} in {window} of {scope}, not {budget}"


def _apart(cooldown: timedelta, rows: Sequence[Any]) -> None:
    ordered = sorted(rows, key=lambda row: row["reserved_at"])
    for n, one in enumerate(ordered):
        for other in ordered[n + 1 :]:
            near = other["reserved_at"] - one["reserved_at"] < cooldown
            assert not near or one["incident_id"] == other["incident_id"], "within the cooldown"
