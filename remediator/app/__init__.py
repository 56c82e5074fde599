"""The composition root: opens and closes every resource and wires them together."""

from remediator.app.checking import CheckReport, check
from remediator.app.service import Running, migrate, running
from remediator.app.serving import serve

__all__ = ["CheckReport", "Running", "check", "migrate", "running", "serve"]
