"""Holds what the backends recorded, and what the store says, against what was promised."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from tests.campaign.approver import Answer
from tests.campaign.facts import COUNTED, MADE, Broken, Facts, Row, instant
from tests.campaign.network import Span
from tests.campaign.world import Part

SILENT = {"no_match", "suppressed"}
ARRIVES_WITHIN = timedelta(seconds=3)
"""Time past ``apply_before`` within which a call that was begun in time reaches its backend."""
HELD_UP = timedelta(seconds=12)
"""The same while the network keeps messages: an adapter's longest call, and settling."""
TAKEN, REFUSED = 200, range(400, 500)
"""Status of an order that was taken, and of one that was not; of any other nobody knows."""
COOLDOWN = timedelta(minutes=5)
"""Of every playbook, where the configuration says nothing."""


async def judge(facts: Facts) -> list[Broken]:
    """Return every promise that was not kept."""
    found = [Broken(kind, what) for check in _CHECKS for kind, what in check(facts)]
    for part in facts.world.parts:
        harm = await part.fault.harm()
        excused_by = _handed_over(facts, part) or facts.forgets(part)
        if harm and not (part.kind == "scale" and excused_by):
            kind = "not taken back" if part.kind == "scale" else "wrong"
            found.append(Broken(kind, f"{part.service}: {harm}"))
    return found


Verdicts = Iterator[tuple[str, str]]


def _lost(facts: Facts) -> Verdicts:
    stored = {row["id"]: row for row in facts.tables["deliveries"]}
    alerts = {row["fingerprint"] for row in facts.tables["alerts"]}
    incidents = {row["id"] for row in facts.tables["incidents"]}
    gone = frozenset[str]() if facts.forgotten is None else facts.forgotten.deliveries
    for taken in facts.accepted:
        row = stored.get(taken.delivery)
        if taken.delivery in gone:
            continue
        if row is None:
            yield "lost", f"{taken.delivery} was answered 202 and is not stored"
        elif row["triaged_at"] is None:
            yield "lost", f"{taken.delivery} was answered 202 and never looked at"
        for fingerprint in set(taken.fingerprints) - alerts:
            yield "lost", f"the alert {fingerprint} was answered 202 and is nowhere"
    for alert in facts.tables["alerts"]:
        if alert["incident_id"] not in incidents:
            yield "lost", f"the alert {alert['fingerprint']} belongs to no incident"


# --- what was changed, and how often ------------------------------------------------------------


def _doubled(facts: Facts) -> Verdicts:
    """One change cures each fault, whatever the ledger says; taking it back is another."""
    for parts in facts.ills:
        made, most = facts.changes[parts[0].service], 1 + _taken_back(facts, parts)
        most += facts.may_again(parts)
        if made > most:
            yield "doubled", f"{parts[0].backends} was changed {made} times, and once was enough"


def _seen_twice(facts: Facts) -> Verdicts:
    known = {row["effect_key"] for row in facts.ledger}
    again = Counter(row["effect_key"] for row in facts.gone if row["state"] == "reverted")
    patches = Counter((one.effect, one.back) for one in facts.seen if one.effect)
    for (effect, back), times in patches.items():
        if times > 1 + again[effect]:
            yield "doubled", f"{effect} was {'taken back' if back else 'made'} {times} times"
        if effect not in known:
            yield "doubled", f"{effect} was made and is in no ledger"
    evicted = {(one.namespace, one.pod) for one in facts.seen if one.pod}
    for namespace, pods in Counter(namespace for namespace, _ in evicted).items():
        if pods > 1:
            yield "doubled", f"{pods} pods of {namespace} were evicted, and one was enough"


def _only_said(facts: Facts) -> Verdicts:
    """What is said to be made was made."""
    for parts in facts.ills:
        if facts.changes[parts[0].service]:
            continue
        said = [row["effect_key"] for row in facts.entries(parts) if row["state"] in MADE]
        said += [row["id"] for row in facts.incidents(parts) if row["outcome"] == "mitigated"]
        for what in said:
            yield "wrong", f"{what} says that something was changed, and nothing was"


def _taken_back(facts: Facts, parts: Sequence[Part]) -> bool:
    return any(one.back and one.namespace == parts[0].namespace for one in facts.seen)


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


def _unasked(facts: Facts) -> Verdicts:
    """What may or may not have been made is a human's."""
    outcomes = {row["id"]: row["outcome"] for row in facts.tables["incidents"]}
    for row in facts.tables["mitigations"]:
        if row["state"] == "unknown" and outcomes[row["incident_id"]] != "escalated":
            told = outcomes[row["incident_id"]]
            yield "untold", f"{row['effect_key']} is unknown, and its incident ended as {told}"


# --- bounds -------------------------------------------------------------------------------------


def _past_budget(facts: Facts) -> Verdicts:
    rows = facts.tables["mitigations"]
    made = sum(facts.changes[parts[0].service] for parts in facts.ills)
    made -= sum(_taken_back(facts, parts) for parts in facts.ills)
    counted = sum(row["state"] in COUNTED for row in rows)
    lost = sum(row["state"] in COUNTED for row in facts.gone)
    for what, number in (("changes were made", made - lost), ("rows count", counted)):
        if number > facts.plan.budget:
            yield "past a bound", f"{number} {what}, the budget is {facts.plan.budget}"


def _past_concurrency(facts: Facts) -> Verdicts:
    flights = [*_flights(facts)]
    for target, begin, _ in flights:
        now = [other for other in flights if other[1] <= begin < other[2]]
        if len(now) > facts.plan.concurrency:
            most = facts.plan.concurrency
            yield "past a bound", f"{len(now)} changes were in flight together, {most} may be"
        if sum(other[0] == target for other in now) > 1:
            yield "past a bound", f"two changes of {target} were in flight together"


def _flights(facts: Facts) -> Iterator[tuple[str, int, int]]:
    """Give target, and first and last line of the ledger on each change that was reserved.

    By the numbers of the lines: who has seen another's line has a later one. The times in them are
    from the begin of their transactions.
    """
    lines: dict[str, list[int]] = defaultdict(list)
    for line in sorted(facts.tables["journal"], key=lambda line: int(line["id"])):
        key = line["data"].get("effect_key") if line["step"] == "ledger" else None
        if key is not None and (line["event"] == "reserved" or key in lines):
            lines[key].append(int(line["id"]))
    for row in facts.tables["mitigations"]:
        found = lines[row["effect_key"]]
        if found:
            yield row["target_key"], min(found), max(found)


def _past_cooldown(facts: Facts) -> Verdicts:
    last: dict[str, Row] = {}
    counted = [row for row in facts.tables["mitigations"] if row["state"] in COUNTED]
    for row in sorted(counted, key=lambda row: int(row["reserved_at"])):
        before = last.get(row["target_key"])
        last[row["target_key"]] = row
        if before is None or before["incident_id"] == row["incident_id"]:
            continue
        if instant(row["reserved_at"]) - instant(before["reserved_at"]) < COOLDOWN:
            yield "past a bound", f"{row['effect_key']} came too soon after {before['effect_key']}"


def _in_pauses(facts: Facts) -> Verdicts:
    for pause in facts.paused:
        span = _until_forgotten(facts, pause.span)
        for row in facts.ledger:
            at = row["reserved_at"]
            mine = pause.covers(row["system"], row["service"])
            if mine and at is not None and span.begin < instant(at) < span.end:
                yield "past a bound", f"{row['effect_key']} was reserved in a pause"


def _until_forgotten(facts: Facts, span: Span) -> Span:
    """Cut what a store that was restored does not know of what was ordered."""
    if facts.forgotten is None or not facts.forgotten.covers(span.begin):
        return span
    return span._replace(end=min(span.end, facts.forgotten.span.end))


# --- approvals ----------------------------------------------------------------------------------


def _unapproved(facts: Facts) -> Verdicts:
    """Nothing is begun before a human agreed in time, nor what one refused."""
    asking = {part.service for part in facts.world.parts if part.asks}
    for row in facts.ledger:
        if row["service"] not in asking or row["reserved_at"] is None:
            continue
        plan = (row["incident_id"], row["plan_hash"])
        said = [answer for answer in facts.answers if (answer.incident, answer.plan) == plan]
        until = instant(min(row["reserved_at"], row["expires_at"] or row["reserved_at"]))
        if not any(a.approves and a.at < until and a.status not in REFUSED for a in said):
            yield "unapproved", f"{row['effect_key']} was begun, and nobody had agreed in time"
        if any(a.status == TAKEN and not a.approves and not _forgot(facts, a, row) for a in said):
            yield "unapproved", f"{row['effect_key']} was begun, and it had been refused"


def _forgot(facts: Facts, answer: Answer, row: Row) -> bool:
    """Whether the store had forgotten ``answer`` when it reserved ``row``."""
    known = facts.forgotten
    return known is not None and known.covers(answer.at) and row not in known.reservations


# --- when ---------------------------------------------------------------------------------------


def _late(facts: Facts) -> Verdicts:
    """Each call has a reservation, and was begun in the time of it.

    Excused is what was kept by the network, and a process that was stopped at any moment: no
    fence is between its last look at the clock and its call. One that stopped at the commit of
    this reservation has that look before it.
    """
    for service, row, at in _reserved_calls(facts):
        if row is None:
            yield "wrong", f"{service} was changed at {at} without a reservation"
        elif _is_late(facts, row, at) and not _stood_still(facts, row, at):
            late = (at - instant(row["apply_before"])).total_seconds()
            yield "late", f"{row['effect_key']} was made {late:.1f} s after its time was over"


def excused(facts: Facts) -> int:
    """Count the calls that came too late because their process was stopped right before them."""
    return sum(
        row is not None and _is_late(facts, row, at) and _stood_still(facts, row, at)
        for _, row, at in _reserved_calls(facts)
    )


def _is_late(facts: Facts, row: Row, at: datetime) -> bool:
    begin, end = instant(row["reserved_at"]), instant(row["apply_before"])
    kept = any(span.meets(begin, at) for span in facts.kept)
    lost = sum((span.within(begin, at) for span in facts.stood_still), timedelta(0))
    return at - lost > end + (HELD_UP if kept else ARRIVES_WITHIN)


def _stood_still(facts: Facts, row: Row, at: datetime) -> bool:
    effect = row["effect_key"]
    return any(
        span.meets(instant(row["reserved_at"]), at)
        and span.who == facts.reserved_by.get(effect)
        and effect not in span.written
        for span in facts.stopped
    )


def _reserved_calls(facts: Facts) -> Iterator[tuple[str, Row | None, datetime]]:
    """Give each change that a backend saw, with what had been reserved for it."""
    for parts, effect, at in _calls(facts):
        yield parts[0].backends, _reserved_for(facts.entries(parts), effect, at), at


def _calls(facts: Facts) -> Iterator[tuple[list[Part], str, datetime]]:
    for parts in facts.ills:
        for at in parts[0].fault.times:
            yield parts, "", at
        for one in facts.seen:
            if one.namespace == parts[0].namespace and not one.back:
                yield parts, one.effect, one.at


def _reserved_for(rows: Sequence[Row], effect: str, at: datetime) -> Row | None:
    """Return the row of ``effect``, or the one that was reserved last before ``at``.

    Rather one of those that are said to be made, or may have been: the others were dropped.
    """
    before = [
        row
        for row in rows
        if row["reserved_at"] is not None and instant(row["reserved_at"]) <= at
        if not effect or row["effect_key"] == effect
    ]
    return max(
        before, key=lambda row: (row["state"] in COUNTED, int(row["reserved_at"])), default=None
    )


# --- ends ---------------------------------------------------------------------------------------


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


def _untold(facts: Facts) -> Verdicts:
    said: dict[str, str] = {}
    for message in facts.slack.posted:
        text = "\n".join([message.text, *message.lines])
        for row in facts.tables["incidents"]:
            if row["id"] in text:
                said[row["id"]] = said.get(row["id"], "") + text
    for row in facts.tables["incidents"]:
        if row["outcome"] in SILENT or row["outcome"] is None:
            continue
        if "Closed" not in said.get(row["id"], ""):
            yield "untold", f"no message says how {row['id']} ended ({row['outcome']})"


_CHECKS = (
    *(_lost, _doubled, _seen_twice, _only_said, _twice_in_the_journal, _unasked),
    *(_past_budget, _past_concurrency, _past_cooldown, _in_pauses, _unapproved),
    *(_late, _stuck, _untold),
)


def _handed_over(facts: Facts, part: Part) -> bool:
    """Whether a human was told that what is left has to be put back."""
    return any("not taken back" in row["reason"] for row in facts.incidents([part]))
