"""What a campaign found, as Markdown."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence

from tests.campaign.facts import KINDS
from tests.campaign.plan import ALWAYS, OWN_STORE, WITH_HOLD, WITH_PAUSE
from tests.campaign.run import Result

SCOPES = ("everything", "a system", "a service")
"""What an operator may pause."""
ANSWERED = ("approves", "rejects", "is late")
ENOUGH, ENOUGH_FOR_CHANCE = 20, 50
"""Seeds from which on what is planned, and what comes of chance, has to have been tried."""
ENOUGH_UPGRADES = 8
"""Upgraded seeds from which on one has to have changed something: others only show that nothing fails."""
PLANNED = 2
"""Times that something is planned for the store of one process for it to be tried for certain."""
OFTEN = 8
"""Times that a fault has to be planned for one of its kind to be cured for certain."""


def report(results: Sequence[Result], seconds: float, asked: int) -> str:
    """Write the report of a campaign of so many seeds; 0 for one without an end."""
    parts = [
        _head(results, seconds, asked),
        _promises(results),
        _broken(results),
        _list("Not tried", untried(results)),
        _table("Faults cured, by the backends' records", _sum(r.cured for r in results)),
        _table("What was done to it", _sum(r.did for r in results)),
        _points(results),
        _table("How webhooks were answered", _sum(r.answers for r in results)),
        _table("How incidents ended", _sum(r.outcomes for r in results)),
        _table("What became of changes, by the ledger", _sum(r.states for r in results)),
        _table("Why changes were denied", _sum(r.denials for r in results)),
        _table("Open when alerts were given up", _sum(r.given_up for r in results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def untried(results: Sequence[Result]) -> list[str]:
    """Say what a campaign that is long enough should have tried, and has not."""
    upgraded = [result for result in results if result.plan.cut_over]
    idle = len(upgraded) >= ENOUGH_UPGRADES and not sum(result.changes for result in upgraded)
    missing = ["a change in an upgraded seed"] if idle else []
    if len(results) < ENOUGH:
        return missing
    states, did = _sum(r.states for r in results), _sum(r.did for r in results)
    cured, planned = _sum(r.cured for r in results), _planned(results)
    happened = {
        "a change for every seed": sum(r.changes for r in results) >= len(results),
        "a denial by a budget": _sum(r.denials for r in results)["budget"] > 0,
        "a pause": did["pause"] > 0,
        "a process killed, stopped and ended": min(did[w] for w in ("kill", "stop", "term")) > 0,
    }
    happened |= {f"the cure of a fault of the kind {kind}": cured[kind] > 0 for kind in planned}
    happened |= {what: did[what] > 0 for what in OWN_STORE if _happen(results, what) >= PLANNED}
    if len(results) >= ENOUGH_FOR_CHANCE:
        found = sum(result.found for result in results)
        happened |= {
            "an approval, a refusal, a late one": min(did[f"the operator {w}"] for w in ANSWERED)
            > 0,
            "a change that was taken back": states["reverted"] > 0,
            "a lost answer that was found by looking": found > 0,
            "a change of which nobody knows": states["unknown"] > 0,
            "a pause of everything, a system, a service": min(did[f"pause of {k}"] for k in SCOPES)
            > 0,
        }
    return missing + [what for what, yes in happened.items() if not yes]


def _planned(results: Sequence[Result]) -> set[str]:
    times = Counter(kind for result in results for kind in result.plan.faults)
    return {kind for kind, number in times.items() if number >= OFTEN}


def _happen(results: Sequence[Result], what: str) -> int:
    return sum(result.plan.has(what) for result in results)


def repeat(result: Result) -> str:
    """Return the command that runs one seed again."""
    plan = result.plan
    store = "postgres" if plan.postgres else "sqlite"
    upgrade = " UPGRADE=1" if plan.cut_over else ""
    return f"make campaign SEEDS=1 FIRST={plan.seed} STORE={store}{upgrade}"


def _head(results: Sequence[Result], seconds: float, asked: int) -> str:
    postgres = [result for result in results if result.plan.postgres]
    upgrades = sum(bool(result.plan.cut_over) for result in results)
    began = sum(r.starts for r in results)
    lost = sum(r.lost_answers for r in results)
    accepted = sum(r.accepted for r in results)
    changes = sum(r.changes for r in results)
    longest = max((r.quiet_after for r in results), default=0)
    where = f"{os.cpu_count()} cores ({platform.system()}, Python {platform.python_version()})"
    found = sum(result.found for result in results)
    excused = sum(result.excused for result in results)
    still = max((r.stood_still for r in results), default=0)
    missing = f", of {asked} that were asked for," if len(results) < asked else ""
    return f"""# Campaign

{len(results)} seeds{missing} in {seconds / 60:.1f} minutes on {where}: {len(postgres)} with several replicas
on PostgreSQL, {len(results) - len(postgres)} with one on SQLite; {upgrades} of them were upgraded
to this version meanwhile.

Processes started: {began}. Answers lost on the way back: {lost}. Deliveries accepted: {accepted}.
Changes made, by the backends' records: {changes}; found by looking, because their answer was lost:
{found}; too late, because their process was stopped right before: {excused}.
Longest time until all was quiet again: {longest:.0f} s; longest time for which the campaign
itself stood still: {still:.1f} s."""


def _promises(results: Sequence[Result]) -> str:
    found = Counter(broken.kind for result in results for broken in result.broken)
    rows = [f"| {kind} | {found[kind]} |" for kind in KINDS]
    return "\n".join(["| promise broken | times |", "|---|---|", *rows])


def _broken(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        if result.broken:
            lines += [f"### `{repeat(result)}`", ""]
            lines += [f"- {broken.kind}: {broken.what}" for broken in result.broken]
            lines += [""]
    return "\n".join(["## Broken", "", *lines]).strip() if lines else ""


def _points(results: Sequence[Result]) -> str:
    return _table("Processes stopped or killed at a named point", _at_points(results))


def _at_points(results: Sequence[Result]) -> Counter[str]:
    seen = _sum(result.springs for result in results)
    for point in (*ALWAYS, *WITH_HOLD, *WITH_PAUSE):
        seen.setdefault(str(point), 0)
    return seen


def _list(title: str, items: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {item}" for item in items)]) if items else ""


def _table(title: str, counts: Counter[str]) -> str:
    if not counts:
        return ""
    rows = [f"| {name} | {times} |" for name, times in sorted(counts.items())]
    return "\n".join([f"## {title}", "", "| what | times |", "|---|---|", *rows])


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total
