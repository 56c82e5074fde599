"""Which sessions of a database may be ended, in which order, and what is proposed about them.

Used by the playbooks that free a database. Root blockers come first; a waiting victim, a
protected session and our own are never chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import Field, JsonValue

from remediator.model.base import Value
from remediator.model.connections import SPARED, ConnectionUsage, Session
from remediator.model.finding import Finding, FindingStatus
from remediator.model.mitigation import Item, Mitigation
from remediator.model.ports import Sessions
from remediator.model.target import Risk, Target
from remediator.playbook.base import Findings, Parameters
from remediator.playbook.checks.blocking import Blocker, Blocking, blocking_tree

OURSELVES = "remediator"
"""Our own application_name; the reader leaves our sessions out, and so do we."""
SHOWN = 50
"""Sessions that one finding lists at most, the oldest first."""

Reading = asyncio.Future[tuple[Session, ...]]
"""One reading of the sessions that several checks share."""
SessionView = Callable[[tuple[Session, ...]], Finding]
"""One finding from one reading of the sessions."""

_WHO = ("pid", "backend_start")
_WHY = {
    "end_sessions": ("are", "idle in a transaction"),
    "cancel_queries": ("run", "one query"),
    "end_queries": ("still run", "the query that was cancelled before,"),
}


class SessionBounds(Parameters):
    """Which sessions may be touched, and how many at once."""

    idle_tx_s: float = Field(default=60, ge=60)
    """Seconds idle in a transaction after which a session counts as leaked (runbooks: 60)."""
    kill_after_s: float = Field(default=300, ge=30)
    """Seconds after which a query is too long (runbooks: 5 minutes; TradeMaster 30 seconds)."""
    max_kills: int = Field(default=5, ge=1, le=5)
    """Sessions that one mitigation touches at most (runbooks: 5 a run)."""
    app_roles: tuple[str, ...] = ()
    """The application's database roles; empty: no session is touched."""
    spare_applications: tuple[str, ...] = SPARED
    """Applications whose sessions are never touched, whatever their role; `*` is any characters."""

    def impossible(self) -> dict[str, str]:
        """No session is touched unless it is said whose."""
        found = super().impossible()
        return found if self.app_roles else found | dict.fromkeys(_WHY, "no app_roles")

    def least_age(self, kind: str) -> float:
        """Seconds after which a session may be touched by ``kind``."""
        return self.idle_tx_s if kind == "end_sessions" else self.kill_after_s


class SessionList(Value):
    """The oldest of the sessions that have one thing in common, and how many there are."""

    sessions: tuple[Session, ...]
    count: int


# --- looking -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def read_once(database: Sessions, bounds: SessionBounds) -> AsyncIterator[Reading]:
    """Read the sessions in the background, once for all checks, and not beyond the block."""
    asked = database.sessions(
        app_roles=bounds.app_roles, spare_applications=bounds.spare_applications
    )
    reading = asyncio.ensure_future(asked)
    try:
        yield reading
    finally:
        reading.cancel()


async def look_through(reading: Reading, view: SessionView) -> Finding:
    """Look at a reading that others look at too."""
    return view(await asyncio.shield(reading))


def blocking_seen(sessions: tuple[Session, ...]) -> Finding:
    """See who blocks whom: ``Blocking``."""
    blocking = blocking_tree(sessions)
    named = "; ".join(map(str, blocking.roots))
    return Finding(
        name="blocking",
        status=judged(problem=bool(blocking.roots)),
        summary=f"{sessions_that(blocking.waiting, 'wait', 'for a lock')}; root blockers: {named}."
        if blocking.waiting
        else "No session waits for a lock.",
        value=blocking,
    )


def leaks_seen(bounds: SessionBounds, sessions: tuple[Session, ...]) -> Finding:
    """See who is idle in a transaction for too long: ``SessionList``."""
    limit = bounds.idle_tx_s
    leaks = [s for s in sessions if age_in(s, "end_sessions") > limit]
    return _listing("leaks", leaks, f"idle in a transaction for more than {limit:g} s")


def long_queries_seen(bounds: SessionBounds, sessions: tuple[Session, ...]) -> Finding:
    """See whose query runs for too long: ``SessionList``."""
    limit = bounds.kill_after_s
    queries = [s for s in sessions if age_in(s, "cancel_queries") > limit]
    return _listing("long_queries", queries, f"in one query for more than {limit:g} s")


def ended_seen(
    bounds: SessionBounds, mitigation: Mitigation, sessions: tuple[Session, ...]
) -> Finding:
    """See whether what was touched is gone, who waited for it goes on, and no root blocker is left.

    After a mitigation that touches no sessions, only the last is looked at.
    """
    kind = mitigation.kind if mitigation.kind in _WHY else "end_sessions"
    ends = kind != "cancel_queries"  # a session whose query was cancelled stays
    present = {_key(_identity(s, kind), kind) for s in sessions if ends or age_in(s, kind) >= 0}
    still = [item.key for item in mitigation.items if _key(item.identity, kind) in present]
    left = [
        root
        for root in blocking_tree(sessions).roots
        if root.session
        and root.spared is None
        and age_in(root.session, kind) > bounds.least_age(kind)
    ]
    wait = [
        f"pid {session.pid} still waits" for session in sessions if _waited(mitigation, session)
    ]
    problems = [*(f"{key} is still there" for key in still), *wait, *map(str, left)]
    return Finding(
        name="ended",
        status=judged(problem=bool(problems)),
        summary=f"Left: {'; '.join(problems)}." if problems else "What was touched is gone.",
    )


def _waited(mitigation: Mitigation, session: Session) -> bool:
    """Say whether it waits with the same statement as when the mitigation was chosen."""
    waiter = {"pid": session.pid, "since": _written(session.query_start)}
    blocks = (item.seen.get("blocks") for item in mitigation.items)
    known = [one for some in blocks if isinstance(some, list) for one in some]
    return bool(session.blocked_by) and waiter in known


def age_in(session: Session, kind: str) -> float:
    """Seconds that it is in the state that ``kind`` ends; negative when it is in another."""
    if kind == "end_sessions":
        idle = session.state.startswith("idle in transaction")
        return session.state_age.total_seconds() if idle else -1.0
    age = session.query_age if session.state == "active" else None
    return age.total_seconds() if age is not None else -1.0


def sessions_listed(findings: Findings, name: str) -> tuple[Session, ...]:
    """Return the sessions that one finding lists."""
    listing = findings.evidence(name, SessionList)
    return listing.sessions if listing else ()


# --- choosing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Culprits:
    """The sessions of one diagnosis that may be touched."""

    bounds: SessionBounds
    findings: Findings
    tried: tuple[Mitigation, ...] = ()

    @property
    def roots(self) -> dict[int, Blocker]:
        """The root blockers that are sessions and not protected, by pid."""
        blocking = self.findings.evidence("blocking", Blocking)
        return {root.pid: root for root in (blocking.roots if blocking else ()) if not root.spared}

    def holders(self, others: Iterable[Session] = ()) -> list[Session]:
        """Choose root blockers that are idle in their transaction, and ``others`` after them."""
        return self._ranked("end_sessions", others)

    def queries(self, others: Iterable[Session] = ()) -> tuple[list[Session], list[Session]]:
        """Choose root blockers whose query is too long, and ``others`` after them.

        Returns queries to cancel, and those that a cancel did not end.
        """
        kind = "cancel_queries"
        tried = [plan for plan in self.tried if plan.kind == kind]
        cancelled = {_key(item.identity, kind) for plan in tried for item in plan.items}
        queries = self._ranked(kind, others)
        stubborn = [s for s in queries if _key(_identity(s, kind), kind) in cancelled]
        return [s for s in queries if s not in stubborn], stubborn

    @property
    def blocks_for_long(self) -> bool:
        """Whether a root blocker runs a query that is too long and may be touched."""
        fresh, stubborn = self.queries()
        return any(session.pid in self.roots for session in (*fresh, *stubborn))

    @property
    def asks(self) -> str | None:
        """Why a human has to agree before any session is touched, or None."""
        usage = self.findings.evidence("server", ConnectionUsage)
        if usage is None:
            return "whether the database is a standby is unknown"
        return "the database is a standby, which others read from" if usage.standby else None

    def plan(
        self, kind: str, target: Target, sessions: list[Session], asks: str | None = None
    ) -> Mitigation | None:
        """Propose ``kind`` for the first of ``sessions``; None without any.

        ``asks`` says why a human has to agree first, where one has to.
        """
        most, roots = self.bounds.max_kills, self.roots
        taken, more = sessions[:most], len(sessions[most:])
        if not taken:
            return None
        blocking = sum(1 for session in taken if session.pid in roots)
        limit = self.bounds.least_age(kind)
        left = f" {more} more {'is' if more == 1 else 'are'} left." if more else ""
        return Mitigation(
            kind=kind,
            target=target,
            reason=f"{sessions_that(len(taken), *_WHY[kind])} for more than {limit:g} s;"
            f" {blocking} of them block{'s' if blocking == 1 else ''} others.{left}",
            items=tuple(_item(kind, session, roots) for session in taken),
            parameters={
                "app_roles": list(self.bounds.app_roles),
                "min_age_s": limit,
                "max_items": most,
                "spare_applications": list(self.bounds.spare_applications),
            },
            risk=Risk.LOW if kind == "cancel_queries" else Risk.MEDIUM,
            asks=asks or self.asks,
        )

    def cut(
        self, target: Target, others: Iterable[Session], asks: str | None = None
    ) -> Mitigation | None:
        """Propose to cancel queries that are too long, or to end those that a cancel did not end."""
        fresh, stubborn = self.queries(others)
        plan = self.plan("cancel_queries", target, fresh, asks)
        return plan or self.plan("end_queries", target, stubborn, asks)

    def _ranked(self, kind: str, sessions: Iterable[Session]) -> list[Session]:
        """Keep what may be touched and is old enough: root blockers first, then the oldest."""
        roots = self.roots
        blockers = [root.session for root in roots.values() if root.session]
        by_pid = {
            session.pid: session
            for session in (*sessions, *blockers)
            if _touchable(session) and age_in(session, kind) > self.bounds.least_age(kind)
        }
        return sorted(by_pid.values(), key=lambda s: (s.pid not in roots, -age_in(s, kind), s.pid))


def sessions_that(number: int, verb: str, what: str) -> str:
    """Write ``number`` sessions that do something, in the singular where there is one."""
    one = "is" if verb == "are" else f"{verb}s"
    return f"1 session {one} {what}" if number == 1 else f"{number} sessions {verb} {what}"


def _touchable(session: Session) -> bool:
    ours = session.application == OURSELVES
    return session.protected is None and not session.blocked_by and not ours


def _identity(session: Session, kind: str) -> dict[str, JsonValue]:
    marker = "state_change" if kind == "end_sessions" else "query_start"
    since: datetime | None = getattr(session, marker)
    return {
        "pid": session.pid,
        "backend_start": session.backend_start.isoformat(),
        marker: _written(since),
    }


def _key(identity: Mapping[str, JsonValue], kind: str) -> tuple[JsonValue, ...]:
    """What has to be gone: the query where it was only cancelled, else the whole session."""
    names = (*_WHO, "query_start") if kind == "cancel_queries" else _WHO
    return tuple(identity.get(name) for name in names)


def _item(kind: str, session: Session, roots: Mapping[int, Blocker]) -> Item:
    root = roots.get(session.pid)
    return Item(
        key=f"pid {session.pid}",
        summary=_told(kind, session, root),
        identity=_identity(session, kind),
        seen={
            "role": session.role,
            "application": session.application,
            "client": session.client,
            "statement": session.statement,
            "text": session.text,
            "wait_event": session.wait_event,
            "xact_start": _written(session.xact_start),
            "blocks": [
                {"pid": waiter.pid, "since": _written(waiter.since)}
                for waiter in (root.waiters if root else ())
            ],
        },
    )


def _told(kind: str, session: Session, root: Blocker | None) -> str:
    """Write down what has to be known of a session once it is gone."""
    client = f" at {session.client}" if session.client else ""
    said = [
        f"{session.role} ({session.application or 'no name'}{client})",
        f"{session.state} for {age_in(session, kind):.0f} s",
        f"waits for {session.wait_event}" if session.wait_event else "",
        f"in a transaction since {session.xact_start:%H:%M:%S %Z}" if session.xact_start else "",
        f"blocks {root.victims}: {', '.join(map(str, root.waiters[:5]))}" if root else "",
    ]
    text = session.text or session.statement
    return ", ".join(filter(None, said)) + (f"; statement: {text}" if text else "")


def _written(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def judged(*, problem: bool) -> FindingStatus:
    """Return what a finding is, by whether it is a problem."""
    return FindingStatus.PROBLEM if problem else FindingStatus.FINE


def _listing(name: str, sessions: list[Session], what: str) -> Finding:
    oldest = sorted(sessions, key=lambda s: (s.state_change, s.pid))[:SHOWN]
    pids = ", ".join(str(session.pid) for session in oldest[:5])
    return Finding(
        name=name,
        status=judged(problem=bool(sessions)),
        summary=f"{sessions_that(len(sessions), 'are', what)}{f' (pid {pids})' if pids else ''}.",
        value=SessionList(sessions=tuple(oldest), count=len(sessions)),
    )
