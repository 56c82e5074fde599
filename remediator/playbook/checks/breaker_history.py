"""What a playbook saw hold, and since when, kept from one look at an incident to the next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from pydantic import AwareDatetime, Field, JsonValue, ValidationError

from remediator.model.base import Value
from remediator.playbook.base import Context

NOTED = "watched"
"""Where it stands in what a proposal notes."""


class _Seen(Value):
    since: AwareDatetime
    last: AwareDatetime


class Watched(Value):
    """Since when each of several things holds, unbroken from look to look."""

    seen: dict[str, _Seen] = Field(default_factory=dict)

    @classmethod
    def of(cls, noted: Mapping[str, JsonValue]) -> Watched:
        """Read what the last look noted; what cannot be read was not seen."""
        try:
            return cls.model_validate(noted.get(NOTED, {}))
        except ValidationError:
            return cls()

    @property
    def noted(self) -> dict[str, JsonValue]:
        """Write it for the next look."""
        return {NOTED: self.model_dump(mode="json")}

    def after(self, context: Context, holding: Iterable[str], gap: timedelta) -> Watched:
        """Go on with what is ``holding`` now; a time without a look longer than ``gap`` breaks it."""
        now, found = context.now, {}
        for what in holding:
            before = self.seen.get(what)
            unbroken = before is not None and timedelta(0) <= now - before.last <= gap
            since = before.since if before is not None and unbroken else now
            found[what] = _Seen(since=since, last=now)
        return Watched(seen=found)

    def lasted(self, what: str) -> timedelta:
        """Return how long it has held."""
        seen = self.seen.get(what)
        return timedelta(0) if seen is None else seen.last - seen.since
