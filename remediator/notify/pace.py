"""How soon each channel may be written to again: one that is slow holds up no other one."""

from __future__ import annotations

from collections.abc import Callable

PACE = 1.0
"""Seconds between two messages to a channel: Slack takes about one a second in each."""


class Pace:
    """Knows which channels are busy, by a clock of this process alone."""

    def __init__(self, clock: Callable[[], float], seconds: float = PACE) -> None:
        """Keep ``seconds`` between two messages, by ``clock``, which never goes back."""
        self._clock = clock
        self._seconds = seconds
        self._free: dict[str, float] = {}

    @property
    def busy(self) -> frozenset[str]:
        """The channels that have to be left alone now."""
        now = self._clock()
        self._free = {name: at for name, at in self._free.items() if at > now}
        return frozenset(self._free)

    def used(self, channel: str, seconds: float | None = None) -> None:
        """Leave ``channel`` alone for a while, or for the ``seconds`` that it asks for."""
        pause = self._seconds if seconds is None else max(seconds, self._seconds)
        self._free[channel] = max(self._free.get(channel, 0.0), self._clock() + pause)
