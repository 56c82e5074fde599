"""Several processes of the service on one store, started fast, each with its own ways to things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.campaign import zygote
from tests.crashing_service import CrashingService, Moment


@dataclass
class Replica(CrashingService):
    """A service on any store, that can be told to kill or stop itself at a commit."""

    order: dict[str, Any] | None = None
    """``change`` names the commit, as in ``insert mitigations``, ``nth`` which one of them,
    ``after`` whether it is done then; ``stop`` is None to die and anything else to stand still."""

    def _becoming(self, moment: Moment | None) -> tuple[Callable[..., None], tuple[Any, ...]]:
        task = {
            "folder": str(self.folder),
            "environ": self.environment,
            "config": str(self.folder / "remediator.yaml"),
            "order": self.order,
            "ahead": 0,
        }
        return zygote.serve, (task,)

    @property
    def sprung(self) -> bool:
        """Whether it did what it was told to do to itself."""
        return bool((self.folder / "trace").read_text())
