"""Where a scenario is played: a temporary folder, a Slack, and the configuration's file."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from remediator.cli.demo.slack import LocalSlack
from remediator.config.settings import Settings, load_settings

CHANNEL = "#orders-alerts"
SLACK_TOKEN = "xoxb-demo"  # noqa: S105 - guards nothing but the demo's own Slack
SYSTEM, SERVICE = "shop", "orders"
VERIFICATION = {
    "interval": "500ms",
    "hold": "3s",
    "hold_resolved": "2s",
    "deadline": "20s",
    "resolve_within": "20s",
}
"""The playbooks' own times, cut down to seconds; their limits are not."""


@dataclass(frozen=True)
class Site:
    """What every scenario is given to build upon."""

    folder: Path
    slack: LocalSlack
    on_step: Callable[[str], None]
    """Told what is being done while things start."""

    def secret(self, name: str, text: str) -> str:
        """Write ``text`` to a file of the folder that only we can read; return its path."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        return str(path)

    def configure(self, backends: Mapping[str, Any], service: Mapping[str, Any]) -> Settings:
        """Write a real remediator.yaml with its one service, and load it as ``serve`` does."""
        orders = {"match": {"service": SERVICE}, **service}
        configuration = {
            "listen": "127.0.0.1:0",
            "slack": {
                "channel": CHANNEL,
                "token_file": self.secret("slack.token", self.slack.token),
                "api_url": self.slack.api_url,
            },
            "backends": dict(backends),
            "systems": {SYSTEM: {"match": {"system": SYSTEM}, "services": {SERVICE: orders}}},
        }
        path = self.folder / "remediator.yaml"
        path.write_text(yaml.safe_dump(configuration, sort_keys=False))
        environ = {"REMEDIATOR_STATE_DIR": str(self.folder / "state")}
        return load_settings(path, environ, self.folder)


@asynccontextmanager
async def open_site(on_step: Callable[[str], None]) -> AsyncIterator[Site]:
    """Make the folder and open the Slack; leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="remediator-demo-") as name:
        async with LocalSlack(token=SLACK_TOKEN, channel=CHANNEL) as slack:
            yield Site(Path(name), slack, on_step)
