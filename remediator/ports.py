"""What the engine and the playbooks need of the outside, one Protocol a role.

Readers are all that a playbook ever sees. A ``Lever`` is held by ``mitigation/act.py`` alone.
Every method raises only ``BackendUnavailable`` (ask again later) or ``BackendRefused``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from pydantic import AwareDatetime

from remediator.connections import SPARED, ConnectionUsage, Session
from remediator.keyspace import KeyCount, MemoryUse, PrefixUse, SlowCommand
from remediator.model import (
    Alert,
    IncidentId,
    Mitigation,
    Outcome,
    Preparation,
    Sense,
    Target,
    Value,
)
from remediator.views import IncidentView, Report
from remediator.workloads import (
    Autoscaler,
    Pod,
    PodLog,
    PodUsage,
    Revision,
    Room,
    Workload,
    WorkloadEvent,
)

# --- readers ----------------------------------------------------------------------------------


class Point(Value):
    """One sample of one series; never NaN (NaN is no data, and no data is an error)."""

    labels: dict[str, str]
    at: AwareDatetime
    value: float


class Metrics(Protocol):
    """Reads Prometheus. Empty, NaN, error and timeout all raise ``BackendUnavailable``."""

    async def probe(self) -> Sense:
        """Say whether what it answers can be trusted: reachable, not empty, not stale."""
        ...

    async def instant(self, query: str) -> tuple[Point, ...]:
        """Evaluate ``query`` now; at least one point."""
        ...

    async def scalar(self, query: str) -> float:
        """Evaluate ``query`` now and require exactly one point."""
        ...

    async def range(
        self, query: str, *, start: datetime, end: datetime, step: timedelta
    ) -> tuple[Point, ...]:
        """Evaluate ``query`` over a time; at least one point."""
        ...


class Sessions(Protocol):
    """Reads the sessions of one PostgreSQL database."""

    async def probe(self) -> Sense:
        """Say whether the server answers and lets us see other roles' sessions."""
        ...

    async def usage(self) -> ConnectionUsage:
        """Count connections against the server's limit."""
        ...

    async def sessions(
        self, *, app_roles: tuple[str, ...], spare_applications: tuple[str, ...] = SPARED
    ) -> tuple[Session, ...]:
        """List the client backends of the database, our own excluded.

        Those of a role that is none of ``app_roles`` are protected, and so are those of an
        application that ``spare_applications`` names, where ``*`` stands for any characters.
        """
        ...

    async def connect_once(self) -> float:
        """Open a new connection, run ``SELECT 1``, close it; return the seconds it took."""
        ...


class Endpoint(Protocol):
    """Reads one HTTP service of the catalogue. Stays on its host; answers are size-limited."""

    async def probe(self) -> Sense:
        """Say whether the host answers HTTP at all."""
        ...

    async def get_json(self, path: str, params: dict[str, str] | None = None) -> Any:
        """GET ``path`` below the configured URL; 2xx and JSON or an error."""
        ...

    async def get_samples(self, path: str) -> tuple[Point, ...]:
        """GET ``path`` and read it as Prometheus text; the label ``__name__`` is the metric."""
        ...


class BreakerState(StrEnum):
    """What a circuit breaker does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    """It lets a few calls through to find out whether it may close: it heals itself."""
    FORCED_OPEN = "forced_open"
    """A human opened it; it never closes by itself."""
    DISABLED = "disabled"
    """A human switched it off, or lets it only count: it protects nothing."""
    UNKNOWN = "unknown"


class Breaker(Value):
    """One circuit breaker of one instance of a service."""

    name: str
    state: BreakerState
    failure_rate: float | None = None
    """Share of failed calls, 0..1; None where the service does not say."""
    reason: str = ""
    """Why it is open, in the service's words, where it says so."""

    def seen_through(self, manual: Iterable[re.Pattern[str]]) -> Breaker:
        """Return it as forced open where it is open for a reason that only a human gives."""
        if self.state is not BreakerState.OPEN or not any(m.search(self.reason) for m in manual):
            return self
        return self.model_copy(update={"state": BreakerState.FORCED_OPEN})


@runtime_checkable
class Breakers(Protocol):
    """Reads the circuit breakers of one HTTP service of the catalogue."""

    @property
    def half_opens(self) -> bool:
        """Whether an open breaker tries again by itself after a time: it is half-open then."""
        ...

    async def probe(self) -> Sense:
        """Say whether the breakers can be read."""
        ...

    async def breakers(self) -> tuple[Breaker, ...]:
        """List them; at least one, each name once."""
        ...


class Migration(Value):
    """How much of one trading pair's traffic a gradual migration has moved."""

    pair: str
    percentage: float
    """0..100; 0 means that the old way takes everything."""


@runtime_checkable
class Migrations(Protocol):
    """Reads the gradual migrations of one HTTP service of the catalogue."""

    async def probe(self) -> Sense:
        """Say whether the migrations can be read."""
        ...

    async def migrations(self) -> tuple[Migration, ...]:
        """List them, each pair once; none where nothing was ever migrated."""
        ...


@runtime_checkable
class KeySpace(Protocol):
    """Reads one database of a Redis server. Never lists all keys at once, never reads values."""

    async def probe(self) -> Sense:
        """Say whether the server answers and lets us read what we need."""
        ...

    async def info(self) -> MemoryUse:
        """Read memory, evictions, hits and clients."""
        ...

    async def slow_log(self, most: int = 20) -> tuple[SlowCommand, ...]:
        """List the newest slow commands."""
        ...

    async def count(self, prefixes: tuple[str, ...]) -> KeyCount:
        """Count keys by prefix within the reader's budget of keys and time."""
        ...

    async def holds(self, prefix: str) -> PrefixUse:
        """Look at a sample of the keys of one prefix: types, times to live, memory."""
        ...


class Workloads(Protocol):
    """Reads the deployments of one cluster, each named by a target of the catalogue."""

    async def probe(self) -> Sense:
        """Say whether the cluster answers, and which rights our account lacks to read."""
        ...

    async def workload(self, target: Target) -> Workload:
        """Read the deployment itself."""
        ...

    async def autoscaler(self, target: Target) -> Autoscaler | None:
        """Read the autoscaler that sets its replicas; ``BackendRefused`` when there are two."""
        ...

    async def events(self, target: Target) -> tuple[WorkloadEvent, ...]:
        """List what was noted about it and its pods, newest first (kept for about an hour)."""
        ...

    async def revisions(self, target: Target) -> tuple[Revision, ...]:
        """List the revisions that are kept, newest first."""
        ...

    async def room(self, target: Target) -> Room:
        """Say how many more of its pods would find a place; ``BackendRefused`` without the right.

        Reads the namespace's quotas and all nodes with all that is asked of them.
        """
        ...


class Pods(Protocol):
    """Reads the pods of the deployments of one cluster."""

    async def probe(self) -> Sense:
        """Say whether the cluster answers, and which rights our account lacks to read."""
        ...

    async def pods(self, target: Target) -> tuple[Pod, ...]:
        """List the deployment's pods, oldest first; those that only share its labels are left out."""
        ...

    async def usage(self, target: Target) -> tuple[PodUsage, ...]:
        """Read what its pods use now; ``BackendRefused`` where the cluster measures nothing."""
        ...

    async def logs(self, target: Target, lines: int = 50) -> tuple[PodLog, ...]:
        """Read the last lines of all containers of all its pods, of their previous runs too."""
        ...


# --- writers ----------------------------------------------------------------------------------


class Lever(Protocol):
    """The four verbs of the mitigations that one backend can make, for the kinds it names."""

    @property
    def kinds(self) -> frozenset[str]:
        """The mitigations' kinds that this lever makes."""
        ...

    @property
    def consequences(self) -> Mapping[str, str]:
        """What each of its kinds does to those it hits: a sentence that an approver reads."""
        ...

    @property
    def conditional(self) -> bool:
        """Whether the backend itself refuses a late or second application."""
        ...

    async def probe(self) -> Sense:
        """Say, by asking the backend, whether our account has the rights that its kinds need."""
        ...

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        """Read the live state, refuse (``BackendRefused``) what is out of bounds or already so.

        Changes nothing. The preparation never holds more items than ``mitigation`` does.
        """
        ...

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Make the change once, within 10 s. Never raises for a lost answer: that is ``unknown``."""
        ...

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Look whether the change was made. Changes nothing.

        ``unknown`` is what was seen and tells neither. Raises ``BackendUnavailable`` or
        ``BackendRefused`` when nothing could be seen.
        """
        ...

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        """Put back what ``preparation.undo`` says. ``BackendRefused`` where there is no undo.

        With ``in_steps`` a lever that knows steps takes one: the outcome stays ``applied``, and
        its ``again_in`` says when the next one is due.
        """
        ...


class Post(Value):
    """One further message about an incident."""

    key: str
    """What it says, such as ``request/MITIGATION``."""
    message: str
    """Message timestamp; empty where messages cannot be edited."""
    digest: str
    """Of what it says now, so that it is edited only when that changes."""


class Handle(Value):
    """Where a notifier's messages about one incident are, so that they can be edited."""

    channel: str
    message: str
    """Timestamp of the incident's own message; empty where messages cannot be edited."""
    detailed: bool = False
    """Whether the detail was posted into its thread."""
    posts: tuple[Post, ...] = ()
    """The other messages, each once."""
    more: bool = False
    """Whether more is to be posted: keep this handle, then send again with it."""

    def post(self, key: str) -> Post | None:
        """Return the message that says ``key``; None where none was posted."""
        return next((post for post in self.posts if post.key == key), None)

    def having(self, post: Post) -> Handle:
        """Return it with ``post``, in the place of one that says the same."""
        others = tuple(one for one in self.posts if one.key != post.key)
        return self.model_copy(update={"posts": (*others, post)})

    @property
    def asks(self) -> frozenset[str]:
        """Mitigations that people were asked to approve."""
        prefix = request_key("")
        keys = (post.key for post in self.posts)
        return frozenset(key.removeprefix(prefix) for key in keys if key.startswith(prefix))

    def asked(self, mitigation_id: str) -> bool:
        """Whether people were asked to approve this mitigation."""
        return self.post(request_key(mitigation_id)) is not None


def request_key(mitigation_id: str) -> str:
    """Return the key of the message that asks people to approve a mitigation."""
    return f"request/{mitigation_id}"


class Notifier(Protocol):
    """Tells humans. Raises ``TemporaryError`` (with ``retry_after``) or ``PermanentError``."""

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        """Post ``report``, or edit the messages at ``handle``; return where they are now.

        At most one message is new in each call: with ``more`` in the result, the caller keeps it
        and calls again, so that a crash repeats one message at most.
        """
        ...

    def channel(self, incident: IncidentView) -> str:
        """Name where the incident is told: each channel has a pace of its own."""
        ...

    async def call(self, report: Report) -> None:
        """Post ``report`` as a new message that calls people, beside the incident's own."""
        ...


class Silence(Value):
    """One silence of ours in an Alertmanager: it mutes one alert while its incident is worked on."""

    id: str
    incident_id: IncidentId
    labels: dict[str, str]
    """Its matchers, every one of them an equality."""
    starts_at: AwareDatetime
    ends_at: AwareDatetime
    ended: bool


class Silences(Protocol):
    """Reads an Alertmanager, and silences in it what is being mended. Never touches others' silences."""

    async def probe(self) -> Sense:
        """Say whether the Alertmanager answers; the right to silence shows when it is used."""
        ...

    async def silences(self) -> tuple[Silence, ...]:
        """List our own, with the ended ones that it still remembers."""
        ...

    async def firing(self) -> tuple[Alert, ...]:
        """List all that fires there, silenced or not; unavailable while it may not know yet."""
        ...

    async def mute(self, incident: IncidentId, labels: Mapping[str, str], until: datetime) -> None:
        """Silence what carries ``labels``; ``BackendRefused`` where that would be everything."""
        ...

    async def renew(self, silence: Silence, until: datetime) -> None:
        """Let ``silence`` end at ``until`` instead; it stays the same silence."""
        ...

    async def end(self, silence: Silence) -> None:
        """End ``silence`` now; one that has ended already is no error."""
        ...


# --- for the playbooks' context ----------------------------------------------------------------

Port = Metrics | Sessions | Endpoint | Breakers | Migrations | KeySpace | Workloads | Pods
