"""How answers and failures of the commands are written."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from remediator.model.redact import one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


UNFOLDED = 100_000
"""Columns that no line reaches."""


def plain(value: object) -> str:
    """Return ``value`` as one line without control and formatting characters."""
    return one_line(value)


def machine_readable(text: str) -> str:
    """Return JSON as it came; for a terminal in ASCII, so that nothing in it moves the cursor."""
    if not sys.stdout.isatty():
        return text.rstrip("\n")
    lines = (json.dumps(json.loads(line)) for line in text.splitlines() if line.strip())
    return "\n".join(lines).replace("\x7f", "\\u007f")


def styled(value: object, style: str = "") -> Text:
    """Return ``value`` as rich text that is never read as markup."""
    from rich.text import Text

    return Text().append(plain(value), style)


def console(*, stderr: bool = False) -> Console:
    """Return a console on today's stdout (or stderr).

    Lines are folded for a terminal, or where ``COLUMNS`` gives a width; a pipe or a file has none.
    """
    from rich.console import Console

    file = sys.stderr if stderr else sys.stdout
    folded = file.isatty() or "COLUMNS" in os.environ
    width = None if folded else UNFOLDED
    return Console(file=file, width=width, highlight=False, emoji=False, markup=False)


def moment(at: datetime | None, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Write a time in UTC; a dash for none."""
    return "-" if at is None else at.astimezone(UTC).strftime(form)


def lasting(duration: timedelta) -> str:
    """Write a length of time roughly, as people say it: ``45 s``, ``12 min``, ``3 h``."""
    seconds = max(0, round(duration.total_seconds()))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def since_then(typed: str) -> datetime:
    """Read a time, or how long ago it was: ``30m``, ``2h``, ``7d``, ``2026-01-31T00:00:00Z``."""
    from remediator.model.duration import parse_duration

    try:
        ago = parse_duration(typed)
    except ValueError:
        ago = None
    if isinstance(ago, timedelta):
        return datetime.now(UTC) - ago
    try:
        at = datetime.fromisoformat(typed)
    except ValueError:
        form = "write a duration such as 30m, 2h or 7d, or a time such as 2026-01-31T00:00:00Z"
        raise Failure(USAGE, f"{typed!r} is no time; {form}") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def words(code: object) -> str:
    """Write an identifier such as ``resolved_by_itself`` as words."""
    return plain(code).replace("_", " ")


def show(page: RenderableType) -> None:
    """Print a page; off the terminal without the spaces that a table fills its lines with."""
    screen = console()
    if screen.is_terminal:
        screen.print(page)
        return
    with screen.capture() as held:
        screen.print(page)
    screen.file.write("".join(f"{line.rstrip()}\n" for line in held.get().splitlines()))


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
