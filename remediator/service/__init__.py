"""The composition root: opens and closes every resource and wires them together."""

from __future__ import annotations

from remediator.service.preflight import CheckReport, check
from remediator.service.run import Running, migrate, running
from remediator.service.serve import serve

__all__ = ["CheckReport", "Running", "check", "migrate", "running", "serve"]
