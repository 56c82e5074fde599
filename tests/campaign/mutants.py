"""Engines with one part taken out, which the campaign has to find."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from tests.campaign.replicas import ROOT


class Cut(NamedTuple):
    """What is cut out of a source, wherever it stands there, and what is there instead."""

    file: str
    there: str
    instead: str


_CALL = "await _called(lambda: lever.apply(preparation_of(entry), entry.effect_key), PULL_TIMEOUT)"
_LEASE_WITHOUT_END = Cut(
    "remediator/service/worker.py", "asyncio.timeout_at(since + lasts)", "asyncio.timeout_at(None)"
)
"""Taken out as well where it makes up for what is: a step that lost its incident ends by its own clock."""

MUTANTS: dict[str, tuple[Cut, ...]] = {
    "lock": (
        Cut(
            "remediator/store/database.py",
            "lock = SERIAL_LOCK if serial else None",
            "lock = None",
        ),
    ),
    "epoch": (
        Cut(
            "remediator/store/leases.py",
            "mine = (_key(table) == row_id) & (table.c.epoch == epoch)",
            "mine = _key(table) == row_id",
        ),
        Cut(
            "remediator/store/ledger.py",
            "& (t.incidents.c.epoch == incident.epoch)",
            "",
        ),
        _LEASE_WITHOUT_END,
    ),
    "apply_before": (
        Cut("remediator/remediation/call.py", "if clock() >= deadline:", "if False:"),
        Cut("remediator/remediation/call.py", "halt = await paused()", "halt = None"),
        _LEASE_WITHOUT_END,
    ),
    "observe": (
        Cut(
            "remediator/remediation/act.py",
            "        outcome = await observe(lever, entry)\n",
            "        outcome = await lever.apply(Preparation(mitigation=entry.mitigation,"
            " before=entry.before, undo=entry.undo), entry.effect_key)\n",
        ),
    ),
    "once": (
        Cut(
            "remediator/remediation/call.py",
            f"    return {_CALL}\n",
            f"    {_CALL}\n    return {_CALL}\n",
        ),
    ),
    "approval": (
        Cut("remediator/remediation/decide.py", "    if mode is Mode.APPROVE:", "    if False:"),
        Cut(
            "remediator/remediation/act.py",
            "Mode.AUTO if approved is None else Mode.APPROVE",
            "Mode.APPROVE",
        ),
    ),
    "room": (
        Cut("remediator/service/run.py", "return parts.room.problem", "return None"),
        Cut(
            "remediator/store/database.py",
            "            if not self.full():\n                raise\n",
            "            if not self.full():\n                return [None for _ in batch]\n",
        ),
    ),
    "clock": (
        Cut(
            "remediator/store/clock.py",
            "LONGEST_WAIT = timedelta(hours=1)",
            "LONGEST_WAIT = timedelta(days=9)",
        ),
    ),
}
"""By name: the lock of reservations, the fencing by epoch, the last look before a call (at two clocks,
and whose the incident is), looking instead of repeating after a crash, one call for a reservation,
the question whether a human agrees, the refusal of what a full disk does not take, and the start that
looks for what a clock has put off."""
BREAKS = {
    "lock": {"past a bound"},
    "epoch": {"doubled"},
    "apply_before": {"late"},
    "observe": {"doubled", "late"},
    "once": {"doubled"},
    "approval": {"unapproved"},
    "room": {"lost"},
    "clock": {"stuck"},
}
"""What each does not keep, as ``judge.KINDS``: anything else that is broken does not find it. Who
repeats instead of looking does so after the time, and twice where the first call arrived."""


def tree_of(name: str, folder: Path) -> Path:
    """Copy the service without what the mutant lacks; return the copy."""
    tree = folder / f"mutant-{name}"
    unneeded = shutil.ignore_patterns("__pycache__")
    for part in ("remediator", "playbooks"):
        shutil.copytree(ROOT / part, tree / part, ignore=unneeded)
    for cut in MUTANTS[name]:
        path = tree / cut.file
        source = path.read_text()
        if cut.there not in source:
            raise SystemExit(f"mutant {name}: {cut.file} does not have {cut.there!r}")
        path.write_text(source.replace(cut.there, cut.instead))
    return tree
