"""Text that came from outside, made safe to show: on one line, and read as it is written."""

from __future__ import annotations

import unicodedata
from typing import Any

UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that move the cursor, turn the text round, cannot be seen or cannot be written."""


def one_line(value: object) -> str:
    """Return ``value`` as one line without control, bidirectional and zero-width characters."""
    text = " ".join(str(value).split())
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text if unicodedata.category(c) not in UNSEEN)


def flat(value: Any) -> Any:
    """Return plain data with each text of it on one line, also those in the names of mappings."""
    match value:
        case str():
            return one_line(value)
        case dict():
            return {one_line(key): flat(inner) for key, inner in value.items()}
        case list() | tuple():
            return [flat(inner) for inner in value]
        case _:
            return value
