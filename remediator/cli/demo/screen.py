"""What the demo prints: facts with the time they came, and a status line that moves.

Without a terminal the facts are plain lines and the status line is left out.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, ConsoleRenderable, RichCast
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

INDENT = " " * 9
"""Under the times."""


@dataclass
class Screen:
    """Prints facts as they arrive, each with the seconds since the start."""

    console: Console
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)
    status: str = ""
    """The line that moves under the facts."""

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the status line moving on a terminal while the block runs."""
        if not self.console.is_terminal:
            yield
            return
        spinner = Spinner("dots", style="cyan")

        def line() -> ConsoleRenderable | RichCast | str:
            spinner.update(text=Text(f"{self.elapsed:4.1f} s  {self.status}", style="cyan"))
            return spinner

        with Live(console=self.console, get_renderable=line, transient=True):
            yield

    def fact(self, what: str, details: Iterable[str] = (), style: str = "") -> None:
        """Print one fact, with its details below it."""
        when = f"{self.elapsed:5.1f} s  "
        self.console.print(Text.assemble((when, "dim"), (self._fitted(what), style)))
        for detail in details:
            self.console.print(Text(INDENT + self._fitted(f"- {detail}", "  "), "dim"))

    def _fitted(self, text: str, hanging: str = "") -> str:
        lines = textwrap.wrap(
            text, max(20, self.console.width - len(INDENT)), subsequent_indent=hanging
        )
        return f"\n{INDENT}".join(lines)

    def title(self, text: str) -> None:
        """Print a headline."""
        self.console.print(Text(textwrap.fill(text, self.console.width), style="bold"))
