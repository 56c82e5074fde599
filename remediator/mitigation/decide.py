"""DECIDE: may this mitigation be made now? Pure, and always with a reason.

The reservation asks the bounds again under its lock and has the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from remediator.mitigation.limits import judge
from remediator.mitigation.safeguarding import Plan
from remediator.model import (
    Decision,
    Effect,
    Item,
    LedgerEntry,
    Mitigation,
    MitigationState,
    Mode,
    Proposal,
)
from remediator.safeguards import Allowance
from remediator.store.ledger import Standing

_MADE = (MitigationState.APPLIED, MitigationState.UNKNOWN, MitigationState.REVERTED)


def choose(proposal: Proposal | None, entries: Iterable[LedgerEntry]) -> Mitigation | None:
    """Return the best proposed mitigation that this incident has not made already."""
    made = [
        (entry.mitigation.kind, entry.mitigation.target.key, _identities(entry.mitigation.items))
        for entry in entries
        if entry.state in _MADE
    ]
    for mitigation in proposal.mitigations if proposal is not None else ():
        this = (mitigation.kind, mitigation.target.key, _identities(mitigation.items))
        if this not in made:
            return mitigation
    return None


def _identities(items: Sequence[Item]) -> list[dict[str, object]]:
    return [dict(item.identity) for item in items]


def decide(
    mode: Mode,
    *,
    dry_run: bool,
    impaired: Sequence[str],
    standing: Standing,
    allowance: Allowance,
    plan: Plan,
) -> Decision:
    """Say what policy, senses and bounds make of a mitigation at this moment."""
    limits = judge(standing, allowance, plan, agreed=mode is Mode.APPROVE)
    if dry_run or mode in (Mode.OBSERVE, Mode.SHADOW):
        code = "dry_run" if dry_run else str(mode)
        would = _would(limits, impaired)
        reason = f"{_only_recorded(mode, dry_run=dry_run)}; {_AT_MOST[mode]} {would}"
        return Decision(effect=Effect.SHADOW, code=code, reason=reason)
    if impaired:
        reason = f"a data source cannot be trusted, so nothing is changed: {'; '.join(impaired)}"
        return Decision(effect=Effect.WAIT, code="senses", reason=reason)
    if limits.effect is not Effect.ALLOW:
        return limits
    if mode is Mode.APPROVE:
        reason = "the mode is approve: a human has to agree first"
        return Decision(effect=Effect.ASK, code="approve", reason=reason)
    return limits


def _would(limits: Decision, impaired: Sequence[str]) -> str:
    if limits.effect is Effect.ALLOW and not impaired:
        return "it would have been applied"
    if limits.effect is Effect.ASK and not impaired:
        return f"a human would have been asked: {limits.reason}"
    return f"it would not have been applied: {'; '.join(impaired) or limits.reason}"


_AT_MOST = {
    Mode.OBSERVE: "in mode auto",
    Mode.SHADOW: "in mode auto",
    Mode.APPROVE: "for real, once a human agrees,",
    Mode.AUTO: "for real",
}
"""When it would have been more than recorded."""


def _only_recorded(mode: Mode, *, dry_run: bool) -> str:
    if not dry_run:
        return f"the mode is {mode}, so it is only recorded"
    if mode in (Mode.OBSERVE, Mode.SHADOW):
        return f"this is a dry run, and the mode is {mode}: for real it would only be recorded too"
    return f"this is a dry run, and the mode is {mode}"
