"""What a playbook is, and how playbooks are found.

A playbook reads through read-only ports and returns values. It cannot change anything: the
engine decides, reserves, acts and asks it whether that helped.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, cast

import structlog
from pydantic import ConfigDict, JsonValue, model_validator

from remediator.model.alert import Alert
from remediator.model.base import Value
from remediator.model.duration import format_duration
from remediator.model.errors import PermanentError, TemporaryError
from remediator.model.finding import Finding, FindingStatus
from remediator.model.incident import Incident
from remediator.model.limits import Limits
from remediator.model.mitigation import Mitigation, Proposal
from remediator.model.ports import (
    Breakers,
    Endpoint,
    KeySpace,
    Metrics,
    Migrations,
    Pods,
    Port,
    Sessions,
    Workloads,
)
from remediator.model.target import Target
from remediator.model.verdict import Sample, Verification

CHECK_TIMEOUT = 5.0
"""Seconds that one check of a diagnosis may take (procedures: connectivity checks, 5 s)."""

_log = structlog.get_logger(__name__)


class Matcher(Value):
    """A condition on one label, with Alertmanager's operators; regexes are anchored."""

    label: str
    op: Literal["=", "!=", "=~", "!~"] = "="
    value: str

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Say whether ``labels`` satisfy it; a missing label counts as empty."""
        actual = labels.get(self.label, "")
        match self.op:
            case "=":
                return actual == self.value
            case "!=":
                return actual != self.value
            case "=~":
                return re.fullmatch(self.value, actual) is not None
            case "!~":
                return re.fullmatch(self.value, actual) is None


def alertnames(*names: str) -> Matcher:
    """Match alerts of any of these names."""
    return Matcher(label="alertname", op="=~", value="|".join(re.escape(name) for name in names))


class Parameters(Value):
    """What a service may set for a playbook; subclass it to add keys of your own.

    The docstring under a key is what ``remediator playbooks NAME`` says of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    verification: Verification = Verification()
    """How long it is watched whether a change helped."""

    @model_validator(mode="before")
    @classmethod
    def _keep_the_rest_of_verification(cls, given: Any) -> Any:
        """Lay single keys of ``verification`` over the playbook's own default."""
        own = cls.model_fields["verification"].default
        some = given.get("verification") if isinstance(given, Mapping) else None
        if isinstance(some, Mapping) and isinstance(own, Verification):
            return {**given, "verification": {**own.model_dump(), **some}}
        return given

    @model_validator(mode="after")
    def _verification_can_succeed(self) -> Self:
        times = self.verification
        hold, deadline = format_duration(times.hold), format_duration(times.deadline)
        if times.hold >= times.deadline:
            raise ValueError(f"verification: hold ({hold}) should be below deadline ({deadline})")
        if times.interval > times.hold:
            interval = format_duration(times.interval)
            raise ValueError(f"verification: interval ({interval}) should be up to hold ({hold})")
        return self

    def impossible(self) -> dict[str, str]:
        """Say of each lever that can never be proposed with these values why: ``no scale_cap``."""
        return {}

    def needs(self) -> dict[str, frozenset[str]]:
        """Name what must be readable for a lever to be proposed: ``usage``, ``room``.

        They are what the cluster of the role ``workload`` tells: ``Pods.usage``, ``Workloads.room``.
        """
        return {}


T = TypeVar("T", bound=Value)
P = TypeVar("P", bound=Parameters)
R = TypeVar("R")


class Findings(dict[str, Finding]):
    """The findings of one diagnosis by name."""

    def evidence(self, name: str, kind: type[T]) -> T | None:
        """Return the typed evidence of one finding; None when it is missing or unknown."""
        finding = self.get(name)
        value = finding.value if finding is not None else None
        return value if isinstance(value, kind) else None

    def unknown(self, *names: str) -> list[str]:
        """Say, a sentence each, which of ``names`` could not be found out."""
        return [
            f"{name}: {self[name].summary if name in self else 'was not checked'}"
            for name in names
            if name not in self or self[name].status is FindingStatus.UNKNOWN
        ]


@dataclass(frozen=True)
class Context:
    """What a playbook sees: the incident, its service's read ports, its parameters, the time."""

    incident: Incident
    alerts: tuple[Alert, ...]
    targets: Mapping[str, Target]
    """The service's targets by role, from the catalogue."""
    ports: Mapping[str, Port] = field(repr=False)
    """Read ports by role of the target; ``prometheus`` where the service has one."""
    now: datetime
    tried: tuple[Mitigation, ...] = ()
    """Mitigations of this incident whose lever was pulled in earlier rounds, oldest first."""
    beside: tuple[Alert, ...] = ()
    """Alerts of the same service that fire now, but belong to other recent incidents."""
    noted: Mapping[str, JsonValue] = field(default_factory=dict)
    """What the playbook's last proposal for this incident noted for this look."""

    @property
    def metrics(self) -> Metrics | None:
        """The service's Prometheus, or None where none is configured."""
        return cast("Metrics | None", self.ports.get("prometheus"))

    def sessions(self, role: str = "database") -> Sessions:
        """Return the reader of the database in that role; ``PermanentError`` if there is none."""
        return cast("Sessions", self._port(role))

    def endpoint(self, role: str = "admin") -> Endpoint | None:
        """Return the HTTP service in that role, or None where none is configured."""
        return cast("Endpoint | None", self.ports.get(role))

    def breakers(self, role: str = "admin") -> Breakers:
        """Return the reader of the circuit breakers in that role; ``PermanentError`` if none."""
        port = self._port(role)
        if not isinstance(port, Breakers):
            raise PermanentError(f"no breakers are configured: set breakers for {self._name(role)}")
        return port

    def migrations(self, role: str = "admin") -> Migrations:
        """Return the reader of the migrations in that role; ``PermanentError`` if none."""
        port = self._port(role)
        if not isinstance(port, Migrations):
            name = self._name(role)
            raise PermanentError(f"no migrations are configured: set migrations for {name}")
        return port

    def keyspace(self, role: str = "cache") -> KeySpace:
        """Return the reader of the Redis in that role; ``PermanentError`` if there is none."""
        return cast("KeySpace", self._port(role))

    def workloads(self, role: str = "workload") -> Workloads:
        """Return the reader of the cluster in that role; ``PermanentError`` if there is none."""
        return cast("Workloads", self._port(role))

    def pods(self, role: str = "workload") -> Pods:
        """Return the reader of the cluster's pods in that role; ``PermanentError`` if none."""
        return cast("Pods", self._port(role))

    def _name(self, role: str) -> str:
        return repr(self.targets[role].name if role in self.targets else role)

    def _port(self, role: str) -> Port:
        try:
            return self.ports[role]
        except KeyError:
            raise PermanentError(f"the service has no target in the role {role!r}") from None

    async def gather(
        self, checks: Mapping[str, Awaitable[Finding]], within: float = CHECK_TIMEOUT
    ) -> Findings:
        """Run read-only checks in parallel, each with its own timeout in seconds.

        A check that fails or is late becomes an ``unknown`` finding with the reason; its
        neighbours go on. Programming errors become ``unknown`` too, and are logged loudly.
        """
        names = list(checks)
        results = await asyncio.gather(*(_check(n, checks[n], within) for n in names))
        return Findings(zip(names, results, strict=True))


async def _check(name: str, check: Awaitable[Finding], within: float) -> Finding:
    try:
        async with asyncio.timeout(within):
            return returned(await check, Finding, name)
    except TimeoutError:
        reason = f"no answer within {within:g} s"
    except (TemporaryError, PermanentError) as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - author's code: its failure is a finding
        _log.exception("check_failed", check=name)
        said = str(error).partition("\n")[0][:200]
        reason = f"the check itself failed: {type(error).__name__}: {said}"
    return Finding(name=name, status=FindingStatus.UNKNOWN, summary=reason)


def returned(value: object, kind: type[R], by: str) -> R:
    """Return what author's code returned; ``TypeError`` says what it should have been."""
    if not isinstance(value, kind):
        raise TypeError(f"{by} returned {type(value).__name__}, not {kind.__name__}")
    return value


class Playbook(ABC, Generic[P]):
    """One automated procedure. Subclass it, one class a file, and import only ``remediator``."""

    name: ClassVar[str]
    """Name in configuration and reports; the class name unless set."""
    matches: ClassVar[tuple[Matcher, ...]]
    """Conditions on the alert's labels; all must hold."""
    targets: ClassVar[Mapping[str, str]]
    """Roles that the service must have, with the kind of backend: ``{"database": "postgres"}``."""
    optional: ClassVar[Mapping[str, str]] = {}
    """Roles that it uses where the service has them, with the kind of backend."""
    senses: ClassVar[frozenset[str]]
    """Roles (or ``prometheus``) that must be readable and sane before anything is changed.

    A role that the service does not have is absent, which is not impaired."""
    levers: ClassVar[frozenset[str]]
    """Kinds of the mitigations that it may propose; anything else is refused."""
    explains: ClassVar[frozenset[str]] = frozenset()
    """Playbooks whose symptom this one's cause explains."""
    limits: ClassVar[Limits] = Limits(
        budget=3, window=timedelta(hours=1), cooldown=timedelta(minutes=5), concurrency=1
    )
    """Bounds of this playbook on one service where the configuration says nothing."""
    parameters_type: ClassVar[type[Parameters]] = Parameters
    """The model of what a service may set; the same class as in ``Playbook[...]``."""

    def __init_subclass__(cls) -> None:
        """Name the playbook after its class."""
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def __init__(self, parameters: P) -> None:
        """Keep the service's parameters, already validated by ``parameters_type``."""
        self.parameters = parameters

    def impossible(self) -> Mapping[str, str]:
        """Say of each lever that it can never propose with its parameters why."""
        return self.parameters.impossible()

    @abstractmethod
    async def diagnose(self, context: Context) -> Findings:
        """Read, in parallel (``context.gather``); change nothing."""

    @abstractmethod
    def propose(self, context: Context, findings: Findings) -> Proposal:
        """Choose levers, best first. Pure: no I/O. What is not proven is not proposed."""

    @abstractmethod
    async def verify(self, context: Context, mitigation: Mitigation) -> Sample:
        """Look once whether ``mitigation`` helped. Missing data is ``cannot_tell``."""
