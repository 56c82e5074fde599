"""The scenario ``oom``: a deployment outgrows its memory limit, on an emulated Kubernetes API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import yaml
from aiohttp import web

from remediator.cli.demo.alerts import AlertRule
from remediator.cli.demo.cluster import (
    NAME,
    NAMESPACE,
    READER_TOKEN,
    WRITER_TOKEN,
    Cluster,
    kubeconfig,
    serve_cluster,
)
from remediator.cli.demo.kubelet import LIMIT, REPLICAS, Kubelet, new_cluster
from remediator.cli.demo.sandbox import VERIFICATION, Site
from remediator.cli.demo.scenario import DemoFailed, Scenario, World
from remediator.cli.demo.serving import serving
from remediator.cli.demo.story import BAD, DOUBT, GOOD, Fact, Told
from remediator.config.settings import Settings
from remediator.model.views import IncidentView

CALM = 1.5
"""Seconds before the catalogue grows."""
CAP = "1Gi"
"""What the limit may be raised to at most."""
RAISED = 2 * LIMIT
"""Mebibytes of the limit after one step."""


@dataclass(frozen=True)
class OOMLook:
    """The emulated pods at one moment. Memory is in mebibytes."""

    ready: int
    killed: int
    grown: bool
    used: int
    """Of the fullest pod."""
    limit: int
    marked: int
    """Pods whose container was killed."""
    patches: int

    @property
    def well(self) -> bool:
        """Whether all pods are ready, and none was ever killed."""
        return self.ready == REPLICAS and not self.marked

    def __str__(self) -> str:
        return (
            f"{self.ready} of {REPLICAS} pods ready, the fullest uses"
            f" {self.used} of {self.limit} MiB, {self.killed} kills"
        )

    def news(self, told: Told) -> Iterator[Fact]:
        """Yield what is new since the last look."""
        if told.first("calm"):
            yield Fact(f"{self}")
        if self.grown and told.first("grown"):
            yield Fact(
                "The catalogue that every pod keeps in memory grows (played by the emulation)",
                style=DOUBT,
            )
        if self.killed and told.first("killed"):
            yield Fact(f"A container is OOMKilled: {self}", style=BAD)
        if self.patches and told.first("patched"):
            yield Fact("The emulation rolls the new limit out, pod by pod")
        if "patched" in told and self.well and told.first("recovered"):
            yield Fact(f"The new pods are up: {self}", style=GOOD)


@dataclass(kw_only=True)
class OOMWorld(World):
    """The emulated cluster and who plays it."""

    cluster: Cluster
    kubelet: Kubelet

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Let the catalogue grow after a while."""
        growing = asyncio.create_task(self._grow(), name="catalogue")
        try:
            yield
        finally:
            growing.cancel()
            await asyncio.gather(growing, return_exceptions=True)

    async def _grow(self) -> None:
        await asyncio.sleep(CALM)
        self.kubelet.grown = True

    def look(self, now: float) -> OOMLook:
        """Read the emulated pods."""
        fullest = self.kubelet.fullest
        return OOMLook(
            ready=self.kubelet.ready,
            killed=self.kubelet.killed,
            grown=self.kubelet.grown,
            used=fullest.used if fullest else 0,
            limit=fullest.limit if fullest else 0,
            marked=self.kubelet.marked,
            patches=self.cluster.patches,
        )

    def ending(self, incident: IncidentView) -> Fact:
        """Require that the API took exactly one change, of one step, within the cap."""
        template = self.cluster.deployment["spec"]["template"]["spec"]
        limit = template["containers"][0]["resources"]["limits"]["memory"]
        if (self.cluster.patches, limit) != (1, f"{RAISED}Mi"):
            raise DemoFailed(f"{self.cluster.patches} changes were made, the limit is {limit}")
        if self.kubelet.marked:
            raise DemoFailed(f"{self.kubelet.marked} of the new pods were killed")
        return Fact(
            f"1 change was made, as the emulated API counted: the limit went from {LIMIT}Mi to"
            f" {limit} (cap {CAP}); no new pod was killed",
            style=GOOD,
        )


def killed(figures: Mapping[str, int]) -> bool:
    """The rule's expression: a container's last end was the OOM killer's."""
    return figures["oom_killed"] > 0


@asynccontextmanager
async def _open(site: Site) -> AsyncIterator[World]:
    site.on_step("starting the emulated cluster")
    cluster = new_cluster()
    kubelet = Kubelet(cluster)

    async def figures(_: web.Request) -> web.Response:
        return web.json_response({"oom_killed": kubelet.marked})

    async with (
        kubelet.running(),
        serve_cluster(cluster) as api,
        serving([web.get("/figures", figures)]) as metrics,
    ):
        yield OOMWorld(
            runs=f"An emulated Kubernetes API answers on {api}:"
            f" deployment {NAMESPACE}/{NAME}, {REPLICAS} pods, no real cluster",
            figures_url=f"{metrics}/figures",
            settings=_settings(site, api),
            cluster=cluster,
            kubelet=kubelet,
        )


def _settings(site: Site, api: str) -> Settings:
    accounts = {
        "kubeconfig": site.secret(
            "reader.kubeconfig", yaml.safe_dump(kubeconfig(api, READER_TOKEN))
        ),
        "writer_kubeconfig": site.secret(
            "writer.kubeconfig", yaml.safe_dump(kubeconfig(api, WRITER_TOKEN))
        ),
    }
    workload = {"cluster": "main", "namespace": NAMESPACE, "deployment": NAME}
    playbook = {"mode": "auto", "memory_max": CAP, "verification": VERIFICATION}
    return site.configure(
        {"kubernetes": {"main": accounts}},
        {"targets": {"workload": workload}, "playbooks": {"OOM": playbook}},
    )


OOM = Scenario(
    title="A deployment on an EMULATED Kubernetes API will now run out of memory; remediator is"
    " watching it.",
    alert=AlertRule(
        name="ContainerOOMKilled",
        summary="A container of the orders service was killed for want of memory.",
        holds=killed,
    ),
    lever="set_memory",
    parts="The cluster was emulated: a small HTTP server that speaks the Kubernetes API, and pods"
    " that are figures. The service, its Kubernetes client, the webhook, the API and the Slack"
    " client were real.",
    open=_open,
)
