"""A service that is slow, behind ports whose answers a test gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from playbooks.high_latency import HighLatency, LatencyParameters
from remediator.backends.http.migrations import HttpMigrations
from remediator.backends.postgres.reader import PostgresReader
from remediator.backends.redis.reader import RedisReader
from remediator.model.alert import Alert, AlertStatus, Source
from remediator.model.base import IncidentId
from remediator.model.connections import ConnectionUsage, Holder, Session
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.finding import Sense, SenseState
from remediator.model.incident import Incident, IncidentState, Phase
from remediator.model.keyspace import KeyCount, MemoryUse, PrefixUse, SlowCommand
from remediator.model.mitigation import Mitigation, Proposal
from remediator.model.ports import Port
from remediator.model.readings import Migration, Point
from remediator.model.target import Target
from remediator.model.verdict import Sample
from remediator.model.workloads import (
    Autoscaler,
    ContainerResources,
    Pod,
    PodLog,
    PodUsage,
    Revision,
    Room,
    Workload,
    WorkloadEvent,
)
from remediator.playbook.base import Context, Findings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
FIRED = NOW - 5 * MINUTE
KINDS = {"database": "postgres", "workload": "kubernetes", "admin": "http", "cache": "redis"}


def target_of(role: str) -> Target:
    locator = {"namespace": "shop", "deployment": "orders"} if role == "workload" else {}
    kind = KINDS[role]
    return Target(system="shop", service="orders", role=role, kind=kind, name=role, locator=locator)


def alert_of(
    name: str = "HighLatencyP95", starts_at: datetime = FIRED, *, firing: bool = True
) -> Alert:
    return Alert(
        source=Source.ALERTMANAGER,
        fingerprint=name,
        status=AlertStatus.FIRING if firing else AlertStatus.RESOLVED,
        labels={"alertname": name},
        starts_at=starts_at,
    )


class Fake:
    """What every port has."""

    async def probe(self) -> Sense:
        return Sense(name="it", state=SenseState.OK)


@dataclass
class Prometheus(Fake):
    """Numbers that are given by query, and a past of the latency, a sample a minute."""

    values: dict[str, float] = field(default_factory=dict)
    past: list[float] = field(default_factory=list)
    series: int = 1
    ready: float = 4
    """Most pods of the earlier revision that were ready."""

    async def instant(self, query: str) -> tuple[Point, ...]:
        raise NotImplementedError

    async def scalar(self, query: str) -> float:
        values = {'ready{set="orders-6"}': self.ready} | self.values
        if query not in values:
            raise BackendUnavailable(f"prometheus: no data: {query}")
        return values[query]

    async def range(
        self, query: str, *, start: datetime, end: datetime, step: timedelta
    ) -> tuple[Point, ...]:
        if not self.past:
            raise BackendUnavailable(f"prometheus: no data: {query}")
        return tuple(
            Point(labels={"le": str(number)}, at=end - back * MINUTE, value=value)
            for number in range(self.series)
            for back, value in enumerate(self.past)
        )


@dataclass
class Database(Fake):
    listed: tuple[Session, ...] = ()
    used: int = 10
    broken: bool = False
    uncounted: bool = False
    standby: bool = False

    async def usage(self) -> ConnectionUsage:
        if self.uncounted:
            raise BackendUnavailable("postgres: no answer in time")
        return ConnectionUsage(
            used=self.used,
            available=100,
            by_state={},
            database="orders",
            holders=(Holder(database="orders", role="app", count=self.used),),
            standby=self.standby,
        )

    async def sessions(
        self, *, app_roles: tuple[str, ...], spare_applications: tuple[str, ...] = ()
    ) -> tuple[Session, ...]:
        if self.broken:
            raise BackendUnavailable("postgres: no answer in time")
        return self.listed

    async def connect_once(self) -> float:
        return 0.01


@dataclass
class Cluster(Fake):
    replicas: int = 4
    ready: int | None = None
    rollout: str | None = None
    refused: str | None = None
    gitops: str | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    scaler: Autoscaler | None = None
    space: Room | str = field(default_factory=lambda: Room(quota=None, nodes=10))
    kept: tuple[Revision, ...] = ()
    cpu: int = 900
    """Thousandths of a core that each pod uses."""
    limit: int | None = 1000
    measured: int | None = None
    age: timedelta = timedelta(seconds=30)
    silent: bool = False
    """Whether no log can be read."""

    async def workload(self, target: Target) -> Workload:
        ready = self.replicas if self.ready is None else self.ready
        container = ContainerResources(
            name="app", init=False, memory_request=None, memory_limit=None, cpu_limit=self.limit
        )
        init = container.model_copy(update={"name": "init", "init": True, "cpu_limit": None})
        return Workload(
            namespace="shop",
            name="orders",
            uid="u",
            resource_version="1",
            replicas=self.replicas,
            ready=ready,
            updated=ready,
            paused=False,
            rollout=self.rollout,
            refused=self.refused,
            gitops=self.gitops,
            annotations=self.annotations,
            containers=(init, container),
        )

    async def autoscaler(self, target: Target) -> Autoscaler | None:
        return self.scaler

    async def events(self, target: Target) -> tuple[WorkloadEvent, ...]:
        return ()

    async def revisions(self, target: Target) -> tuple[Revision, ...]:
        return self.kept

    async def room(self, target: Target) -> Room:
        if isinstance(self.space, str):
            raise BackendRefused(self.space)
        return self.space

    async def pods(self, target: Target) -> tuple[Pod, ...]:
        return ()

    async def usage(self, target: Target) -> tuple[PodUsage, ...]:
        if self.measured == 0:
            raise BackendRefused("the cluster measures nothing")
        number = self.replicas if self.measured is None else self.measured
        use = PodUsage(pod="p", at=NOW - self.age, cpu=self.cpu, memory=1)
        return (use,) * number

    async def logs(self, target: Target, lines: int = 50) -> tuple[PodLog, ...]:
        if self.silent:
            raise BackendRefused("main: no right to get pods/log")
        line = PodLog(pod="orders-7-a", container="app", previous=False, lines=("it works",))
        return (line,)


@dataclass
class Admin(Fake):
    """An HTTP service whose answers and migrations are given."""

    answers: Mapping[str, Any] = field(default_factory=dict)
    pairs: dict[str, float] = field(default_factory=dict)
    broken: bool = False

    async def get_json(self, path: str, params: dict[str, str] | None = None) -> Any:
        if path not in self.answers:
            raise BackendUnavailable(f"{path}: no answer")
        return self.answers[path]

    async def get_samples(self, path: str) -> tuple[Point, ...]:
        raise NotImplementedError

    async def migrations(self) -> tuple[Migration, ...]:
        if self.broken:
            raise BackendUnavailable("admin: no answer")
        return tuple(Migration(pair=pair, percentage=p) for pair, p in self.pairs.items())


HOLDING = PrefixUse(keys=10, complete=True, sampled=10, by_type={"string": 10}, lasting=0, bytes=60)


@dataclass
class Cache(Fake):
    used: int = 95
    limit: int = 100
    evicting: int = 7
    evicted: int = 0
    broken: bool = False
    holding: PrefixUse | str = HOLDING

    async def info(self) -> MemoryUse:
        if self.broken:
            raise BackendUnavailable("redis: no answer")
        self.evicted += self.evicting
        return MemoryUse(
            used=self.used, limit=self.limit, evicted=self.evicted, hits=1, misses=1, clients=1
        )

    async def slow_log(self, most: int = 20) -> tuple[SlowCommand, ...]:
        return ()

    async def count(self, prefixes: tuple[str, ...]) -> KeyCount:
        raise NotImplementedError

    async def holds(self, prefix: str) -> PrefixUse:
        if isinstance(self.holding, str):
            raise BackendRefused(self.holding)
        return self.holding


def session(pid: int, **fields: Any) -> Session:
    start = NOW - timedelta(hours=1)
    values = {
        "pid": pid,
        "role": "app",
        "application": "orders",
        "state": "active",
        "backend_start": start,
        "state_change": start,
        "xact_start": None,
        "query_start": start,
        "state_age": timedelta(seconds=20),
        "query_age": timedelta(seconds=20),
        "statement": "SELECT",
        "protected": None,
        "blocked_by": (),
    }
    return Session.model_validate(values | fields)


OLD = {"state_age": timedelta(minutes=10), "query_age": timedelta(minutes=10)}
IDLE_BLOCKER = session(1, state="idle in transaction", **OLD)
LONG_QUERY = session(3, **OLD)
LONG_BLOCKER = (LONG_QUERY, session(4, blocked_by=(3,)))
LOCK = (IDLE_BLOCKER, session(2, blocked_by=(1,)))


def revision(number: int, age: timedelta) -> Revision:
    return Revision(
        number=number,
        name=f"orders-{number}",
        uid=f"uid-{number}",
        created_at=NOW - age,
        replicas=4,
        ready=4,
        images=(f"orders:{number}",),
    )


RELEASED = (revision(7, 20 * MINUTE), revision(6, timedelta(days=2)))
WELL = [0.1] * 31


@dataclass
class Slow:
    """A service that is slow, with everything else well unless a test says otherwise."""

    prometheus: Prometheus | None = field(
        default_factory=lambda: Prometheus({"latency": 0.9}, WELL)
    )
    database: Database | PostgresReader | None = field(default_factory=Database)
    workload: Cluster | None = field(default_factory=lambda: Cluster(cpu=300))
    admin: Admin | HttpMigrations | None = field(default_factory=Admin)
    cache: Cache | RedisReader | None = field(default_factory=lambda: Cache(used=10))
    parameters: dict[str, Any] = field(default_factory=dict)
    tried: tuple[Mitigation, ...] = ()
    alerts: tuple[Alert, ...] = field(default_factory=lambda: (alert_of(),))
    beside: tuple[Alert, ...] = ()
    phase_since: datetime = NOW - 6 * MINUTE

    def playbook(self) -> HighLatency:
        given: dict[str, Any] = {
            "latency_query": "latency",
            "latency_limit": 0.5,
            "scale_cap": 10,
            "pool_size": 5,
            "undo_release": True,
            "ready_query": "ready{set={replica_set}}",
            "cache_prefix": "cache:",
            "cache_gap": "0s",
            "app_roles": ["app"],
        }
        chosen = {key: value for key, value in (given | self.parameters).items() if value != ""}
        ages = ("idle_tx_s", "kill_after_s")  # below the floors, so that no test has to wait
        quick = {name: chosen.pop(name) for name in ages if name in chosen}
        return HighLatency(LatencyParameters.model_validate(chosen).model_copy(update=quick))

    def context(self) -> Context:
        roles = {role: getattr(self, role) for role in KINDS}
        ports: dict[str, Port] = {role: port for role, port in roles.items() if port is not None}
        if self.prometheus is not None:
            ports["prometheus"] = self.prometheus
        incident = Incident(
            id=IncidentId("inc-1"),
            correlation_key="shop/orders",
            state=IncidentState.OPEN,
            phase=Phase.DIAGNOSE,
            outcome=None,
            reason="",
            system="shop",
            service="orders",
            playbook="HighLatency",
            dry_run=False,
            replay_of=None,
            round=1,
            epoch=1,
            opened_at=FIRED,
            closed_at=None,
            phase_since=self.phase_since,
            progressed_at=FIRED,
        )
        return Context(
            incident=incident,
            alerts=self.alerts,
            targets={role: target_of(role) for role, port in roles.items() if port is not None},
            ports=ports,
            now=NOW,
            tried=self.tried,
            beside=self.beside,
        )

    async def diagnosed(self) -> tuple[Findings, Proposal]:
        playbook, context = self.playbook(), self.context()
        findings = await playbook.diagnose(context)
        return findings, playbook.propose(context, findings)

    async def proposed(self) -> Proposal:
        return (await self.diagnosed())[1]

    async def verified(self, mitigation: Mitigation) -> Sample:
        return await self.playbook().verify(self.context(), mitigation)


async def plan_of(slow: Slow) -> Mitigation:
    (plan,) = (await slow.proposed()).mitigations
    return plan
