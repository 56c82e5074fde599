"""Putting foreign text into PromQL without letting it speak PromQL."""

from __future__ import annotations

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def quote_label(value: str) -> str:
    r"""Return ``value`` as a double-quoted PromQL string, for use after ``=`` in a matcher.

    Not for ``=~``: there ``value`` would still be read as a regular expression.

    >>> 'up{job=' + quote_label('a"b') + '}'
    'up{job="a\\"b"}'
    """
    return f'"{value.translate(_ESCAPES)}"'
