"""What a campaign found, as Markdown."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Sequence

from tests.campaign.judge import KINDS
from tests.campaign.plan import ALWAYS, WITH_HOLD
from tests.campaign.run import Result


def report(results: Sequence[Result], seconds: float) -> str:
    """Write the report."""
    parts = [
        _head(results, seconds),
        _promises(results),
        _broken(results),
        _table("What was done to it", _sum(r.did for r in results)),
        _points(results),
        _table("How webhooks were answered", _sum(r.answers for r in results)),
        _table("How incidents ended", _sum(r.outcomes for r in results)),
        _table("What became of changes, by the ledger", _sum(r.states for r in results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def repeat(result: Result) -> str:
    """Return the command that runs one seed again."""
    plan = result.plan
    store = "postgres" if plan.postgres else "sqlite"
    upgrade = " UPGRADE=1" if plan.cut_over else ""
    return f"make campaign SEEDS=1 FIRST={plan.seed} STORE={store}{upgrade}"


def _head(results: Sequence[Result], seconds: float) -> str:
    postgres = [result for result in results if result.plan.postgres]
    upgrades = sum(bool(result.plan.cut_over) for result in results)
    began = sum(r.starts for r in results)
    lost = sum(r.lost_answers for r in results)
    accepted = sum(r.accepted for r in results)
    changes = sum(r.changes for r in results)
    longest = max((r.quiet_after for r in results), default=0)
    where = f"{os.cpu_count()} cores ({platform.system()}, Python {platform.python_version()})"
    return f"""# Campaign

{len(results)} seeds in {seconds / 60:.1f} minutes on {where}: {len(postgres)} with several replicas
on PostgreSQL, {len(results) - len(postgres)} with one on SQLite; {upgrades} of them were upgraded
to this version meanwhile.

Processes started: {began}. Answers lost on the way back: {lost}. Deliveries accepted: {accepted}.
Changes made, by the backends' records: {changes}. Longest time until all was quiet again:
{longest:.0f} s."""


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
    seen = _sum(result.springs for result in results)
    for point in (*ALWAYS, *WITH_HOLD):
        seen.setdefault(str(point), 0)
    return _table("Processes stopped or killed at a named point", seen)


def _table(title: str, counts: Counter[str]) -> str:
    rows = [f"| {name} | {times} |" for name, times in sorted(counts.items())]
    return "\n".join([f"## {title}", "", "| what | times |", "|---|---|", *rows])


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total
