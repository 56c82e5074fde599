"""How a command ends when it cannot do what was asked: its message, one exit code."""

from __future__ import annotations

REFUSED = 1
"""The service refused, or ``check`` and ``demo`` found that something is wrong."""
USAGE = 2
"""The command line or the configuration is wrong."""
UNREACHABLE = 3
"""The service does not answer."""


class Failure(Exception):
    """Ends a command with ``code``; the message says what is wrong, where, and what to do."""

    def __init__(self, code: int, message: str, *, passes: bool = False) -> None:
        """Keep the exit code with the message; ``passes`` is whether trying again may help."""
        super().__init__(message)
        self.code = code
        self.passes = passes
