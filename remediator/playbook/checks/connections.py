"""The use of an application's own connection pool, from whichever source a service has.

Playbooks whose services have a pool take their parameters from ``PoolSource``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from remediator.model.base import Value
from remediator.model.connections import Session
from remediator.model.errors import BackendUnavailable
from remediator.model.ports import Endpoint
from remediator.playbook.base import Context, Parameters

POOL_ALERTS = (
    "DatabaseConnectionPoolExhaustion",
    "DatabaseConnectionPoolExhausted",
    "DatabaseConnectionsHigh",
    "DatabaseConnectionIssues",
    "PoolExhausted",
)
"""Names of the alerts that say that connections run out."""


class PoolUse(Value):
    """Use of the application's own connection pool."""

    active: float = Field(ge=0, allow_inf_nan=False)
    size: float = Field(gt=0, allow_inf_nan=False)
    waiting: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Requests that wait for a connection; None when the source does not say."""

    @property
    def ratio(self) -> float:
        """Used share of the pool, 0..1; above 1 where the stated size is too small."""
        return self.active / self.size

    def __str__(self) -> str:
        waits = "" if self.waiting is None else f", {self.waiting:g} requests wait"
        return f"{self.active:g} of {self.size:g} connections ({self.ratio:.0%}){waits}"


class PoolSource(Parameters):
    """Where the pool's figures come from. One source is enough; the first that is set is read."""

    pool_path: str | None = None
    """Path on the ``admin`` service that answers ``{"active": n, "max": n, "waiting": n}``."""
    actuator: bool = False
    """Whether the ``admin`` service has Spring Boot's ``/actuator/metrics/hikaricp.*``."""
    pool_active_query: str | None = None
    """PromQL for the pool's connections in use, one number over all instances."""
    pool_max_query: str | None = None
    """PromQL for the pool's size, one number over all instances."""
    pool_pending_query: str | None = None
    """PromQL for the requests that wait for a connection, one number over all instances."""
    pool_max: int | None = Field(default=None, ge=1)
    """The pool's size over all instances; compared with the application's sessions in use."""

    @property
    def has_pool(self) -> bool:
        """Whether any source is set."""
        return bool(self.pool_path or self.actuator or self.pool_active_query or self.pool_max)

    @model_validator(mode="after")
    def _queries_are_complete(self) -> Self:
        if self.pool_active_query and not (self.pool_max_query or self.pool_max):
            raise ValueError("pool_active_query needs pool_max_query or pool_max beside it")
        if not self.pool_active_query and (self.pool_max_query or self.pool_pending_query):
            raise ValueError("pool_max_query and pool_pending_query need pool_active_query")
        return self

    async def pool_use(
        self, context: Context, sessions: tuple[Session, ...], app_roles: tuple[str, ...]
    ) -> PoolUse:
        """Read the pool; where only its size is known, count the application's ``sessions``.

        Raises ``BackendUnavailable`` when the source does not answer or makes no sense.
        """
        try:
            return PoolUse.model_validate(await self._figures(context, sessions, app_roles))
        except (ValidationError, KeyError, TypeError, StopIteration) as error:
            raise BackendUnavailable(f"the pool's figures make no sense: {error!r}") from error

    async def _figures(
        self, context: Context, sessions: tuple[Session, ...], app_roles: tuple[str, ...]
    ) -> Mapping[str, Any]:
        if self.pool_path:
            answer = await _admin(context).get_json(self.pool_path)
            return {"active": answer["active"], "size": answer["max"], "waiting": answer["waiting"]}
        if self.actuator:
            return await _hikari(_admin(context))
        if self.pool_active_query:
            return await self._measured(context, self.pool_active_query)
        used = [s for s in sessions if s.state != "idle"]  # a pool keeps idle ones open
        own = set(app_roles) or {s.role for s in used}
        return {"active": sum(s.role in own for s in used), "size": self.pool_max}

    async def _measured(self, context: Context, active: str) -> Mapping[str, Any]:
        metrics, pending = context.metrics, self.pool_pending_query
        if metrics is None:
            raise BackendUnavailable("the pool is given as PromQL; the service has no Prometheus")
        size = self.pool_max_query
        return {
            "active": await metrics.scalar(active),
            "size": await metrics.scalar(size) if size else self.pool_max,
            "waiting": await metrics.scalar(pending) if pending else None,
        }


def _admin(context: Context) -> Endpoint:
    admin = context.endpoint()
    if admin is None:
        raise BackendUnavailable("the pool is read from the target admin, which the service lacks")
    return admin


async def _hikari(admin: Endpoint) -> Mapping[str, Any]:
    """Read HikariCP's gauges, of the one instance that answers behind the address."""
    found = {}
    for ours, theirs in (("active", "active"), ("size", "max"), ("waiting", "pending")):
        answer = await admin.get_json(f"/actuator/metrics/hikaricp.connections.{theirs}")
        values = [m["value"] for m in answer["measurements"] if m["statistic"] == "VALUE"]
        (found[ours],) = values or (None,)
    return found
