"""What every noun is made of: frozen values, and the ids."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import NewType

from pydantic import BaseModel, ConfigDict

DeliveryId = NewType("DeliveryId", str)
AlertId = NewType("AlertId", str)
IncidentId = NewType("IncidentId", str)
MitigationId = NewType("MitigationId", str)


def new_id(prefix: str, now: datetime) -> str:
    """Return an id that sorts by time: ``inc-0198c2f5a1b2-9f8e7d6c5b``."""
    return f"{prefix}-{int(now.timestamp() * 1000):012x}-{secrets.token_hex(5)}"


class Value(BaseModel):
    """Base of everything that flows: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
