"""How a command ends when it cannot do what was asked: one line, one exit code."""

from __future__ import annotations

REFUSED = 1
"""The service said no, or ``check`` and ``demo`` found that something is wrong."""
USAGE = 2
"""The command line or the configuration is wrong."""
UNREACHABLE = 3
"""The service does not answer."""


class Failure(Exception):
    """Ends a command with ``code``; the message says what is wrong, where, and what to do."""

    def __init__(self, code: int, message: str) -> None:
        """Keep the exit code with the message."""
        super().__init__(message)
        self.code = code
