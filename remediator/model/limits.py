"""Rate limits: how many changes, in which time, how far apart, how many at once."""

from __future__ import annotations

from pydantic import Field

from remediator.model.base import Value
from remediator.model.duration import Duration


class Limits(Value):
    """Bounds of one scope. All of them hold at every level; the narrowest does not win."""

    budget: int = Field(ge=0)
    """Mitigations allowed in any ``window``."""
    window: Duration
    cooldown: Duration
    """Least time between mitigations of one target by different incidents."""
    concurrency: int = Field(ge=0)
    """Mitigations in flight (reserved, or applied and not yet judged) at the same time."""


class Bound(Value):
    """The limits of one scope, as the reservation checks them."""

    scope: str
    """``global``, ``system/S``, ``service/S/T``, ``playbook/P`` or ``target/KEY``."""
    limits: Limits


class Usage(Value):
    """What the ledger counts in one scope."""

    scope: str
    reserved: int
    """Mitigations reserved within the scope's window."""
    in_flight: int
