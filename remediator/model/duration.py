"""Durations as they are written: ``90s``, ``5m``, ``1h30m``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")


def parse_duration(text: object) -> object:
    """Read ``1h30m``, ``45s``, ``250ms``; anything that is not a string passes unchanged.

    Raises ``ValueError`` naming the accepted form.
    """
    if not isinstance(text, str):
        return text
    match = _DURATION.fullmatch(text.strip())
    if not text.strip() or match is None:
        raise ValueError(f"{text[:80]!r} is not a duration; write it like 30s, 5m, 1h30m or 250ms")
    days, hours, minutes, seconds, millis = (float(part or 0) for part in match.groups())
    try:
        return timedelta(
            days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=millis
        )
    except OverflowError:
        raise ValueError(f"{text[:80]!r} is too long for a duration") from None


def format_duration(duration: timedelta) -> str:
    """Write a duration as ``parse_duration`` reads it, exact to the millisecond."""
    millis = round(duration.total_seconds() * 1000)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, millis = divmod(millis, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration, json_schema_input_type=str),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    Field(ge=timedelta(0)),
]
"""A length of time, written ``30s``, ``5m``, ``1h30m`` in files and JSON."""
