"""Maintenance windows as the file has them, and the plans that they mean. Pure."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from remediator.config.sections import Period, Section, Text
from remediator.model.maintenance import (
    LONGEST,
    Plan,
    Recurring,
    Window,
    parse_cron,
    parse_moment,
    parse_zone,
)

Moment = Annotated[datetime, BeforeValidator(parse_moment), WithJsonSchema({"type": "string"})]
"""A time with its offset."""


def _bounded(duration: timedelta) -> timedelta:
    if duration > LONGEST:
        raise ValueError("should be at most 7d")
    return duration


class MaintenanceEntry(Section):
    """A time in which humans work on the scope themselves: recurring, or once."""

    cron: Annotated[str, AfterValidator(parse_cron)] | None = None
    """When each window begins: minute, hour, day of the month, month, day of the week."""
    duration: Annotated[Period, AfterValidator(_bounded)] | None = None
    """How long each window lasts; at most 7d. Goes with `cron`."""
    timezone: Annotated[str, AfterValidator(parse_zone)] | None = None
    """Time zone of `cron`, such as `Europe/Berlin`. Default `UTC`."""
    since: Moment | None = Field(default=None, alias="from")
    """Begin of a single window, with its offset: `2026-12-01T22:00:00+01:00`."""
    until: Moment | None = None
    """End of a single window, with its offset; at most 7d after `from`."""
    reason: Text = "planned"
    """What is done; said wherever something waits for the end."""

    @field_validator("until")
    @classmethod
    def _later(cls, until: datetime | None, others: ValidationInfo) -> datetime | None:
        since = others.data.get("since")
        if until is not None and since is not None and until <= since:
            raise ValueError("should be later than from")
        if until is not None and since is not None and until - since > LONGEST:
            raise ValueError("should be at most 7d after from")
        return until

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        recurring = (self.cron, self.duration, self.timezone)
        once = (self.since, self.until)
        by_cron = None not in recurring[:2] and once == (None, None)
        by_date = None not in once and recurring == (None, None, None)
        if not by_cron and not by_date:
            raise ValueError("needs either cron and duration (and timezone), or from and until")
        return self

    def plan(self, scope: str) -> Plan:
        """Make the plan; its id stays the same as long as it is written the same."""
        written = f"{scope} {self.model_dump_json(exclude_defaults=True)}"
        name = f"file-{hashlib.sha256(written.encode()).hexdigest()[:10]}"
        if self.since is not None and self.until is not None:
            return Window(
                id=name, scope=scope, since=self.since, until=self.until, reason=self.reason
            )
        if self.cron is None or self.duration is None:
            raise ValueError("built past validation: a plan needs its times")
        return Recurring(
            id=name,
            scope=scope,
            cron=self.cron,
            duration=self.duration,
            timezone=self.timezone or "UTC",
            reason=self.reason,
        )


Maintenance = tuple[MaintenanceEntry, ...]
"""All entries of one scope."""
