"""Who makes whom wait in a database: the blocking tree and its roots. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from pydantic import AwareDatetime

from remediator.model.base import Value
from remediator.model.connections import Session

SHOWN = 20
"""Waiting sessions that one blocker names at most."""


class Waiter(Value):
    """A session that waits, and since when: another statement of it is another wait."""

    pid: int
    since: AwareDatetime | None
    """Start of the statement that waits."""
    application: str
    statement: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.application or 'no name'}, {self.statement or '?'})"


class Blocker(Value):
    """A root of the blocking tree: it makes others wait, and waits for nobody itself."""

    pid: int
    victims: int
    """Sessions that wait for it, directly or behind others."""
    session: Session | None
    """None when it is no client session of this database; it can then not be a target."""
    waiters: tuple[Waiter, ...] = ()
    """The first of them by pid."""

    @property
    def spared(self) -> str | None:
        """Why it may never be touched, or None."""
        if self.session is not None:
            return self.session.protected
        return "a prepared transaction" if self.pid == 0 else "no client session of this database"

    def __str__(self) -> str:
        what = f"{self.session.role}, {self.session.state}" if self.session else self.spared
        spared = f", never touched: {self.spared}" if self.session and self.spared else ""
        return f"pid {self.pid} ({what}) blocks {self.victims}{spared}"


class Blocking(Value):
    """The blocking tree, by its roots, the one with the most victims first."""

    roots: tuple[Blocker, ...]
    waiting: int
    """Sessions that wait for a lock."""
    longest: timedelta = timedelta(0)
    """Age of the oldest statement among those that wait."""


def blocking_tree(sessions: Iterable[Session]) -> Blocking:
    """Find the roots of the blocking tree.

    A cycle has no root: the server's deadlock detector ends it. A root that is no session of
    this database (autovacuum, a prepared transaction as pid 0) is named without a session.
    """
    known = {session.pid: session for session in sessions}
    victims: dict[int, set[int]] = {}
    for pid in known:
        for above in _above(pid, known) - {pid}:
            victims.setdefault(above, set()).add(pid)
    roots = (
        Blocker(
            pid=pid,
            victims=len(blocked),
            session=known.get(pid),
            waiters=tuple(_waiter(known[victim]) for victim in sorted(blocked)[:SHOWN]),
        )
        for pid, blocked in victims.items()
        if pid not in known or not known[pid].blocked_by
    )
    waiting = [session for session in known.values() if session.blocked_by]
    return Blocking(
        roots=tuple(sorted(roots, key=lambda root: (-root.victims, root.pid))),
        waiting=len(waiting),
        longest=max((s.query_age for s in waiting if s.query_age), default=timedelta(0)),
    )


def _waiter(session: Session) -> Waiter:
    return Waiter(
        pid=session.pid,
        since=session.query_start,
        application=session.application,
        statement=session.statement,
    )


def _above(pid: int, known: Mapping[int, Session]) -> set[int]:
    """Follow who waits for whom from ``pid`` upwards."""
    found: set[int] = set()
    todo = list(known[pid].blocked_by)
    while todo:
        above = todo.pop()
        if above not in found:
            found.add(above)
            todo.extend(known[above].blocked_by if above in known else ())
    return found
