"""What is known of a seed after its end, and what a broken promise is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from remediator.cli.demo.slack import LocalSlack
from tests.campaign.apiserver import Seen
from tests.campaign.approver import Answer
from tests.campaign.network import Pause, Span
from tests.campaign.plan import Plan
from tests.campaign.records import TABLES, Book
from tests.campaign.restoring import Forgotten
from tests.campaign.sender import Accepted
from tests.campaign.world import Part, World

MICROS = 1_000_000
COUNTED = {"reserved", "applied", "unknown", "reverted"}
MADE = {"applied", "reverted"}
KINDS = (
    *("lost", "doubled", "past a bound", "late", "unapproved", "stuck", "not taken back"),
    *("untold", "wrong", "harness"),
)
"""The last is a fault of the campaign itself: what it wanted to try was not tried."""


@dataclass(frozen=True)
class Broken:
    """A promise that was not kept."""

    kind: str
    """One of ``KINDS``."""
    what: str


Row = Mapping[str, Any]


@dataclass
class Facts:
    """Everything that is known of a seed after its end."""

    plan: Plan
    world: World
    slack: LocalSlack
    accepted: Sequence[Accepted]
    seen: Sequence[Seen] = ()
    """What the API server recorded in the namespaces of this seed."""
    paused: Sequence[Pause] = ()
    stopped: Sequence[Span] = ()
    kept: Sequence[Span] = ()
    """When the network kept messages."""
    stood_still: Sequence[Span] = ()
    """When the campaign itself did, whose process the network is."""
    reserved_by: Mapping[str, str] = field(default_factory=dict)
    """By effect, which replica wrote it into the ledger."""
    answers: Sequence[Answer] = ()
    """What the operator said to plans that waited for an approval."""
    forgotten: Forgotten | None = None
    """What a store that was restored from a copy knows no more."""
    tables: dict[str, list[Row]] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    """By service, how often its backend was changed."""

    @property
    def ills(self) -> list[list[Part]]:
        """The parts, those of one fault together."""
        by_fault: dict[str, list[Part]] = defaultdict(list)
        for part in self.world.parts:
            by_fault[part.backends].append(part)
        return [*by_fault.values()]

    @property
    def gone(self) -> Sequence[Row]:
        """Reservations that the store has forgotten."""
        return () if self.forgotten is None else self.forgotten.reservations

    @property
    def ledger(self) -> list[Row]:
        """All that was ever in the ledger."""
        return [*self.tables["mitigations"], *self.gone]

    def may_again(self, parts: Sequence[Part]) -> int:
        """Count the changes that nobody remembers, and that may so be made once more.

        Where the backend refuses what it has taken already, only those that were taken back.
        """
        services = {part.service for part in parts}
        states = {"reverted"} if parts[0].fault.conditional else COUNTED
        return sum(row["service"] in services and row["state"] in states for row in self.gone)

    def forgets(self, part: Part) -> bool:
        """Whether a change of it is not remembered, and nobody takes it back."""
        return any(row["service"] == part.service for row in self.gone)

    def entries(self, parts: Sequence[Part]) -> list[Row]:
        """Return the ledger's rows of some parts."""
        services = {part.service for part in parts}
        return [row for row in self.ledger if row["service"] in services]

    def incidents(self, parts: Sequence[Part]) -> list[Row]:
        """Return the incidents of some parts."""
        services = {part.service for part in parts}
        return [row for row in self.tables["incidents"] if row["service"] in services]


async def facts_of(facts: Facts, book: Book) -> Facts:
    """Read the store and the backends."""
    for table in TABLES:
        facts.tables[table] = [_by_the_right_clock(facts, row) for row in await book.rows(table)]
    for part in facts.world.parts:
        facts.changes[part.service] = await part.fault.changes()
    return facts


def _by_the_right_clock(facts: Facts, row: dict[str, Any]) -> Row:
    """Undo what a clock that was ahead has made of the times in a row."""
    wrong, soon = facts.plan.ahead * MICROS, (time.time() + facts.plan.ahead / 2) * MICROS
    times = {name: row.get(name) for name in ("reserved_at", "apply_before", "expires_at")}
    return {**row, **{name: at - wrong for name, at in times.items() if wrong and at and at > soon}}


def instant(micros: int) -> datetime:
    """Read a time of the store."""
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros)
