"""What a scenario of the demo is made of; ``run`` plays any of them.

A scenario says which alert is played and opens a world; the world is the system that breaks. It
breaks by itself: nothing in it knows of the remediator, but for the configuration that names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from remediator.cli.demo.alerts import AlertRule
from remediator.cli.demo.sandbox import Site
from remediator.cli.demo.story import Fact, Told
from remediator.config.settings import Settings
from remediator.model.views import IncidentView


class DemoFailed(Exception):
    """The demo did not go as it should; says what was seen."""


class Look(Protocol):
    """The world's figures at one moment; ``str`` is the line that moves under the facts."""

    @property
    def well(self) -> bool:
        """Whether the system does its work again."""
        ...

    def news(self, told: Told) -> Iterator[Fact]:
        """Yield what is new in it, and note it in ``told``."""
        ...


@dataclass(kw_only=True)
class World(ABC):
    """The system that breaks, while it is open."""

    runs: str
    """What runs, and where."""
    figures_url: str
    """Where the alert's rule reads its figures, as JSON."""
    settings: Settings
    """The remediator's configuration, as ``serve`` would load it."""

    @abstractmethod
    def under_load(self) -> AbstractAsyncContextManager[None]:
        """Let it work, and break, while the block runs."""

    @abstractmethod
    def look(self, now: float) -> Look:
        """Read its figures at the second ``now``."""

    @abstractmethod
    def ending(self, incident: IncidentView) -> Fact:
        """Hold the end against the world's own counts; ``DemoFailed`` when it did not happen."""


@dataclass(frozen=True)
class Scenario:
    """One way in which a system breaks, and the one lever that mends it."""

    title: str
    alert: AlertRule
    lever: str
    """Kind of the one mitigation that has to be made."""
    parts: str
    """What of it was real, and what was not."""
    open: Callable[[Site], AbstractAsyncContextManager[World]] = field(repr=False)


@dataclass
class Rate:
    """What a counter gains a second, over the last few looks."""

    counts: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=6))
    """Seconds and counts."""

    def at(self, now: float, count: int) -> float:
        """Note ``count`` at the second ``now`` and return the rate; 0 before there are enough."""
        self.counts.append((now, count))
        (start, before), (end, after) = self.counts[0], self.counts[-1]
        return (after - before) / (end - start) if len(self.counts) == self.counts.maxlen else 0.0
