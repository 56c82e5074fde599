"""What the engine and the playbooks need of the outside, one Protocol a role.

Readers are all that a playbook ever sees. A ``Mitigator`` is held by ``remediation/call.py`` alone.
Every method raises only ``BackendUnavailable`` (ask again later) or ``BackendRefused``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from pydantic import AwareDatetime

from remediator.model.alert import Alert
from remediator.model.base import IncidentId, Value
from remediator.model.connections import SPARED, ConnectionUsage, Session
from remediator.model.finding import Sense
from remediator.model.keyspace import KeyCount, MemoryUse, PrefixUse, SlowCommand
from remediator.model.mitigation import Mitigation, Outcome, Preparation
from remediator.model.readings import Breaker, Migration, Point
from remediator.model.target import Target
from remediator.model.workloads import (
    Autoscaler,
    Pod,
    PodLog,
    PodUsage,
    Revision,
    Room,
    Workload,
    WorkloadEvent,
)


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


class Mitigator(Protocol):
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
