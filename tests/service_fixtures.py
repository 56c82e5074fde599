"""The whole service as a process, beside a real PostgreSQL with an application that leaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from remediator.cli.demo.slack import LocalSlack
from remediator.model.fingerprint import fingerprint_of
from tests.postgres_fixtures import Scene

FAST = {
    "interval": "200ms",
    "hold": "2s",
    "hold_resolved": "500ms",
    "deadline": "20s",
    "resolve_within": "60s",
}


@dataclass
class Service:
    """One ``remediator serve``, that can be killed and started again on the same state."""

    folder: Path
    config: dict[str, Any]
    environ: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    url: str = ""

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("REMEDIATOR_")}
        return kept | {"REMEDIATOR_STATE_DIR": str(self.state)} | self.environ

    async def start(self) -> None:
        (self.folder / "remediator.yaml").write_text(yaml.safe_dump(self.config))
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "remediator", "serve"),
                *("--config", str(self.folder / "remediator.yaml")),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=self.folder,
                env=self.environment,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(90):  # a start on a machine that is busy with other tests
            line = (await self.process.stdout.readline()).decode()
        match = re.search(r"http://\S+", line)
        assert match is not None, f"{line!r}\n{self.log()}"
        self.url = match[0]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it runs."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)  # subprocess would look for an end, and take it

    async def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.send(how)
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode

    async def kill(self) -> None:
        await self.end(signal.SIGKILL)

    def _client(self, token_file: str) -> httpx.AsyncClient:
        token = (self.state / token_file).read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        # plain HTTP: without `verify=False` each client would first load all authorities (40 ms)
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20, verify=False)

    async def post(self, *alerts: dict[str, Any]) -> httpx.Response:
        """Deliver alerts as Alertmanager does."""
        async with self._client("token") as client:
            return await client.post("/webhooks/alertmanager", json=group(*alerts))

    async def api(self, method: str, path: str, **options: Any) -> httpx.Response:
        async with self._client("operator-token") as client:
            return await client.request(method, f"/api/v1{path}", **options)

    async def api_text(self, path: str) -> str:
        """Return what one of the open routes says."""
        async with self._client("token") as client:
            return (await client.get(path)).text

    async def incidents(self) -> list[dict[str, Any]]:
        items = (await self.api("GET", "/incidents")).json()["items"]
        found = [(await self.api("GET", f"/incidents/{item['id']}")).json() for item in items]
        return list(reversed(found))

    async def incident(self, within: float = 30, **expected: Any) -> dict[str, Any]:
        """Wait until the only incident is as expected, and return it."""
        seen: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(within):
                while True:
                    seen = await self.incidents()
                    if len(seen) == 1 and expected.items() <= seen[0].items():
                        return seen[0]
                    await asyncio.sleep(0.1)
        except TimeoutError:
            shown = json.dumps(seen, indent=1)[-6000:]
            raise AssertionError(f"no incident with {expected}:\n{shown}\n{self.log()}") from None

    async def closed(self, incident_id: str) -> dict[str, Any]:
        """Wait until one incident is closed, and return it."""
        async with asyncio.timeout(30):
            while True:
                incident: dict[str, Any] = (
                    await self.api("GET", f"/incidents/{incident_id}")
                ).json()
                if incident["state"] == "closed":
                    return incident
                await asyncio.sleep(0.1)

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run a command of the command line against the service."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "remediator", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self.folder,
            env=self.environment | {"REMEDIATOR_URL": self.url, "COLUMNS": "200"},
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()


def group(*alerts: dict[str, Any]) -> dict[str, Any]:
    """Wrap alerts in an Alertmanager body."""
    firing = any(alert["status"] == "firing" for alert in alerts)
    return {
        "version": "4",
        "groupKey": '{}:{alertname="DatabaseConnectionPoolExhausted"}',
        "status": "firing" if firing else "resolved",
        "receiver": "remediator",
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example.com",
        "truncatedAlerts": 0,
        "alerts": list(alerts),
    }


def pool_alert(status: str = "firing", **labels: str) -> dict[str, Any]:
    """Make the alert of an exhausted pool as Alertmanager would deliver it."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    everything = {
        "alertname": "DatabaseConnectionPoolExhausted",
        "system": "shop",
        "service": "orders",
        "severity": "critical",
    } | labels
    return {
        "status": status,
        "labels": everything,
        "annotations": {"summary": "every connection is in use"},
        "startsAt": now,
        "endsAt": now if status == "resolved" else "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example.com/graph",
        "fingerprint": fingerprint_of(everything),
    }


def configuration(scene: Scene, slack: LocalSlack, folder: Path, mode: str) -> dict[str, Any]:
    """Write the secrets and return the configuration for the scene's database."""
    files = {
        "reader.dsn": scene.dsn_as("reader"),
        "writer.dsn": scene.dsn_as("lever"),
        "slack.token": slack.token,
    }
    for name, secret in files.items():
        (folder / name).write_text(secret)
    playbook = {
        "mode": mode,
        "idle_tx_s": 60,
        "app_roles": [scene.app],
        "pool_max": 1,  # so that one leaked session fills it
        "verification": FAST,
    }
    orders = {
        "match": {"service": "orders"},
        "targets": {"database": "orders-db"},
        "playbooks": {"PoolExhausted": playbook},
    }
    database = {"dsn_file": "reader.dsn", "writer_dsn_file": "writer.dsn"}
    return {
        "listen": "127.0.0.1:0",
        "slack": {
            "channel": slack.channel,
            "token_file": "slack.token",
            "api_url": slack.api_url,
        },
        "backends": {"postgres": {"orders-db": database}},
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": orders}}},
    }


@pytest.fixture
async def slack() -> AsyncIterator[LocalSlack]:
    async with LocalSlack() as local:
        yield local


@pytest.fixture
def mode() -> str:
    """How far the service may go; a test overrides it by parametrize."""
    return "auto"


@pytest.fixture
async def service(
    scene: Scene, slack: LocalSlack, tmp_path: Path, mode: str
) -> AsyncIterator[Service]:
    """A running service for the scene's database."""
    service = Service(tmp_path, configuration(scene, slack, tmp_path, mode))
    await service.start()
    try:
        yield service
    finally:
        assert service.process is not None
        if service.process.returncode is None:
            await service.kill()
