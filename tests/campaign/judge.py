"""Holds what the backends recorded, and what the store says, against what was promised."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from remediator.demo.slack import LocalSlack
from tests.campaign.ground import Cluster
from tests.campaign.plan import Plan
from tests.campaign.records import TABLES, Book
from tests.campaign.sender import Accepted
from tests.campaign.world import Part, World

COUNTED = {"reserved", "applied", "unknown", "reverted"}
SILENT = {"no_match", "suppressed"}
ARRIVES_WITHIN = timedelta(seconds=3)
"""Time past ``apply_before`` within which a call that was begun in time reaches its backend."""
HELD_UP = timedelta(seconds=12)
"""The same where the network may keep it: an adapter's longest call, and settling."""
KINDS = ("lost", "doubled", "past a bound", "late", "stuck", "not taken back", "untold", "wrong")


@dataclass(frozen=True)
class Broken:
    """A promise that was not kept."""

    kind: str
    """One of ``KINDS``."""
    what: str


@dataclass
class Facts:
    """Everything that is known of a seed after its end."""

    plan: Plan
    world: World
    slack: LocalSlack
    accepted: Sequence[Accepted]
    patches: Counter[str]
    """How often the API server took a patch with each effect annotation."""
    tables: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    """By service, how often its backend was changed."""

    def entries(self, part: Part) -> list[Mapping[str, Any]]:
        """Return the ledger's rows of one service."""
        return [row for row in self.tables["mitigations"] if row["service"] == part.service]


async def facts_of(
    plan: Plan,
    world: World,
    slack: LocalSlack,
    accepted: Sequence[Accepted],
    book: Book,
    seen: Cluster,
) -> Facts:
    """Read everything."""
    facts = Facts(plan, world, slack, accepted, _patches(seen))
    for table in TABLES:
        facts.tables[table] = [*await book.rows(table)]
    for part in world.parts:
        facts.changes[part.service] = await part.fault.changes()
    return facts


async def judge(facts: Facts) -> list[Broken]:
    """Return every promise that was not kept."""
    found = [Broken(kind, what) for check in _CHECKS for kind, what in check(facts)]
    for part in facts.world.parts:
        harm = await part.fault.harm()
        if harm:
            kind = "not taken back" if part.kind == "scale" else "wrong"
            if not _handed_over(facts, part):
                found.append(Broken(kind, f"{part.service}: {harm}"))
    return found


Verdicts = Iterator[tuple[str, str]]


def _lost(facts: Facts) -> Verdicts:
    stored = {row["id"]: row for row in facts.tables["deliveries"]}
    alerts = {row["fingerprint"] for row in facts.tables["alerts"]}
    incidents = {row["id"] for row in facts.tables["incidents"]}
    for taken in facts.accepted:
        row = stored.get(taken.delivery)
        if row is None:
            yield "lost", f"{taken.delivery} was answered 202 and is not stored"
        elif row["triaged_at"] is None:
            yield "lost", f"{taken.delivery} was answered 202 and never looked at"
        for fingerprint in set(taken.fingerprints) - alerts:
            yield "lost", f"the alert {fingerprint} was answered 202 and is nowhere"
    for alert in facts.tables["alerts"]:
        if alert["incident_id"] not in incidents:
            yield "lost", f"the alert {alert['fingerprint']} belongs to no incident"


def _doubled(facts: Facts) -> Verdicts:
    for part in facts.world.parts:
        counted = [row for row in facts.entries(part) if row["state"] in COUNTED]
        most = len(counted) + sum(row["undo"] is not None for row in counted)
        made = facts.changes[part.service]
        if made > most:
            what = f"{part.service} was changed {made} times, the ledger has {len(counted)} rows"
            yield "doubled", what
    ours = {row["effect_key"] for row in facts.tables["mitigations"]}
    for key, times in facts.patches.items():
        if times > 1 and key in ours:
            yield "doubled", f"{key} was made {times} times"


def _past_bounds(facts: Facts) -> Verdicts:
    made = sum(facts.changes[part.service] for part in facts.world.parts)
    made -= sum(row["state"] == "reverted" for row in facts.tables["mitigations"])
    if made > facts.plan.budget:
        yield "past a bound", f"{made} changes, the budget of the system is {facts.plan.budget}"
    counted = [row for row in facts.tables["mitigations"] if row["state"] in COUNTED]
    if len(counted) > facts.plan.budget:
        what = f"{len(counted)} rows count against the budget of {facts.plan.budget}"
        yield "past a bound", what
    yield from _in_pauses(facts)


def _in_pauses(facts: Facts) -> Verdicts:
    begun: int | None = None
    for line in sorted(facts.tables["journal"], key=lambda row: int(row["id"])):
        if line["event"] == "paused global":
            begun = line["at"]
        elif line["event"] == "resumed global" and begun is not None:
            for row in facts.tables["mitigations"]:
                if row["reserved_at"] is not None and begun < row["reserved_at"] < line["at"]:
                    yield "past a bound", f"{row['effect_key']} was reserved in a pause"
            begun = None


def _late(facts: Facts) -> Verdicts:
    kept = any(h.what in {"black hole", "slow"} for h in facts.plan.happenings)
    grace = HELD_UP if kept else ARRIVES_WITHIN
    for part in facts.world.parts:
        ends = [_instant(r["apply_before"]) for r in facts.entries(part) if r["apply_before"]]
        for at in part.fault.times:
            if ends and at > max(ends) + grace:
                late = (at - max(ends)).total_seconds()
                yield "late", f"{part.service} was changed {late:.1f} s after its time was over"


def _stuck(facts: Facts) -> Verdicts:
    for row in facts.tables["incidents"]:
        if row["state"] == "open":
            yield "stuck", f"{row['id']} is open at {row['phase']}: {row['reason']}"
        closed = (row["state"] == "closed", row["phase"] == "done", row["outcome"] is not None)
        if len(set(closed)) > 1:
            yield "wrong", f"{row['id']} is {row['state']} at {row['phase']}, {row['outcome']}"
    for row in facts.tables["mitigations"]:
        if row["state"] == "reserved" or row["in_flight"]:
            yield "stuck", f"{row['effect_key']} is {row['state']}, in flight: {row['in_flight']}"
    for row in facts.tables["obligations"]:
        yield "not taken back", f"{row['mitigation_id']} is still owed"


def _twice_in_the_journal(facts: Facts) -> Verdicts:
    closes = Counter(
        line["incident_id"]
        for line in facts.tables["journal"]
        if line["event"].startswith("closed as")
    )
    for incident, times in closes.items():
        if times > 1:
            yield "doubled", f"{incident} was closed {times} times"
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    for line in facts.tables["journal"]:
        if line["event"].endswith(": applied"):
            outcomes[line["incident_id"]][line["event"]] += 1
    made = Counter(
        row["incident_id"] for row in facts.tables["mitigations"] if row["state"] in COUNTED
    )
    for incident, events in outcomes.items():
        if events.total() > made[incident]:
            yield "doubled", f"{incident} says {dict(events)}, with {made[incident]} changes"


def _untold(facts: Facts) -> Verdicts:
    said: dict[str, str] = {}
    for message in facts.slack.posted:
        text = "\n".join([message.text, *message.lines])
        for row in facts.tables["incidents"]:
            if row["id"] in text and row["id"] not in said:
                said[row["id"]] = text
            elif row["id"] in text:
                said[row["id"]] += text
    for row in facts.tables["incidents"]:
        if row["outcome"] in SILENT or row["outcome"] is None:
            continue
        if "Closed" not in said.get(row["id"], ""):
            yield "untold", f"no message says how {row['id']} ended ({row['outcome']})"


_CHECKS = (_lost, _doubled, _past_bounds, _late, _stuck, _twice_in_the_journal, _untold)


def _handed_over(facts: Facts, part: Part) -> bool:
    """Whether a human was told that what is left has to be put back."""
    mine = [row for row in facts.tables["incidents"] if row["service"] == part.service]
    return any("not taken back" in row["reason"] or "not repeated" in row["reason"] for row in mine)


def _patches(seen: Cluster) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in seen.audit.read_text().splitlines() if seen.audit.exists() else ():
        entry = json.loads(line)
        if entry["verb"] != "patch" or "dryRun" in entry["requestURI"]:
            continue
        if entry.get("responseStatus", {}).get("code") != 200:
            continue
        metadata = (entry.get("requestObject") or {}).get("metadata") or {}
        effect = (metadata.get("annotations") or {}).get("remediator.dev/effect")
        if effect:
            counts[effect] += 1
    return counts


def _instant(micros: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros)
