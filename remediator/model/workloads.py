"""What a cluster says of one deployment: its pods, its autoscaler, its events and its past.

Values only, free of the cluster's field names. Memory is in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import AwareDatetime

from remediator.model.base import Value

EFFECT = "remediator.dev/effect"
"""Annotation with the effect key of the last change that we made to an object."""


def effect_of(kind: str) -> str:
    """Name the annotation with the effect key of our last change of this kind."""
    return f"{EFFECT}.{kind}"


class Granted(Value):
    """What a container, or a pod as a whole, asks for and may use at most."""

    memory_request: int | None = None
    memory_limit: int | None = None
    cpu_request: int | None = None
    """Thousandths of a core."""
    cpu_limit: int | None = None
    """Thousandths of a core."""

    @property
    def cpu(self) -> int | None:
        """Thousandths of a core that it may use, or asked for where nothing limits it."""
        return self.cpu_limit or self.cpu_request


class Container(Granted):
    """What is the same of a container in a template and in a pod."""

    name: str
    init: bool
    sidecar: bool = False
    """An init container that runs beside the others (``restartPolicy: Always``)."""

    @property
    def stays(self) -> bool:
        """Whether it runs as long as its pod does."""
        return self.sidecar or not self.init


class Contained(Value):
    """A pod, or a workload by the template of its pods."""

    containers: tuple[Container, ...]
    whole: Granted = Granted()
    """What is set for a pod as a whole (``spec.resources``), above its containers."""

    @property
    def memory_limit(self) -> int | None:
        """Bytes that all that runs in a pod may use together; None where something has no limit."""
        return self.whole.memory_limit or _sum(c.memory_limit for c in self.containers if c.stays)

    @property
    def cpu(self) -> int | None:
        """Thousandths of a core that they may use, or asked for where nothing limits them."""
        together = _sum(container.cpu for container in self.containers if container.stays)
        return self.whole.cpu_limit or together or self.whole.cpu_request


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = tuple(sizes)
    return sum(size for size in known if size) if known and all(known) else None


class Termination(Value):
    """The end of one run of a container."""

    reason: str
    """As the kubelet says: ``OOMKilled``, ``Error``, ``Completed``..."""
    exit_code: int
    finished_at: AwareDatetime | None


class ContainerState(Container):
    """One container of a pod, with what it has been granted as it runs, resized or not."""

    state: Literal["running", "waiting", "terminated", "unknown"]
    reason: str
    """Why it waits or ended, such as ``CrashLoopBackOff``; empty while it runs."""
    ready: bool
    restarts: int
    ended: Termination | None
    """Its most recent end: the present one where it is terminated, else the one before."""

    @property
    def oom_killed(self) -> bool:
        """Whether its most recent end was the OOM killer's."""
        return self.ended is not None and self.ended.reason == "OOMKilled"


class Pod(Contained):
    """One pod, with what identifies it beyond doubt."""

    name: str
    uid: str
    phase: str
    """``Pending``, ``Running``, ``Succeeded``, ``Failed`` or ``Unknown``; says little alone."""
    ready: bool
    terminating: bool
    created_at: AwareDatetime
    node: str | None
    containers: tuple[ContainerState, ...]
    revision: str = ""
    """Tells pods that were made from different templates."""

    @property
    def stays(self) -> bool:
        """Whether it is neither going nor kept as a record of what ended (evicted by its node)."""
        return not self.terminating and self.phase not in ("Succeeded", "Failed")


class ContainerResources(Container):
    """What the deployment asks for one container of its pods; admission may set more."""


class Workload(Contained):
    """A deployment as it is now."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    replicas: int
    """As asked for; the others are as counted."""
    ready: int
    updated: int
    paused: bool
    rollout: str | None
    """How far a rollout is that is not complete, or None."""
    refused: str | None = None
    """Why its new pods are not made (LimitRange, admission policy, quota), or None."""
    gitops: str | None
    """Name of the GitOps controller that would undo a change, or None."""
    annotations: dict[str, str]
    """Without the copy of the whole manifest that kubectl keeps there."""
    containers: tuple[ContainerResources, ...]


class Autoscaler(Value):
    """The horizontal autoscaler that sets the number of a deployment's pods."""

    name: str
    resource_version: str
    minimum: int
    maximum: int
    current: int
    desired: int
    managed_by: str | None
    """What would undo a change of it (a GitOps controller, a ScaledObject), or None."""


class WorkloadEvent(Value):
    """Something that the cluster noted about a deployment, its replica sets or its pods."""

    at: AwareDatetime | None
    warning: bool
    reason: str
    about: str
    """Such as ``Pod/orders-5d8-x2x``."""
    message: str
    count: int


class Revision(Value):
    """One state of a deployment's pod template that the cluster still keeps."""

    number: int
    name: str
    """Of the replica set that keeps it."""
    uid: str
    created_at: AwareDatetime
    """When the template was first rolled out; going back to it raises its number only."""
    replicas: int
    ready: int
    images: tuple[str, ...]


class PodUsage(Value):
    """What one pod uses, as the metrics API of the cluster measured it."""

    pod: str
    at: AwareDatetime
    cpu: int
    """Thousandths of a core."""
    memory: int


class PodLog(Value):
    """The last lines that one container of one pod wrote, oldest first."""

    pod: str
    container: str
    previous: bool
    """Whether they are of the run before the present one."""
    lines: tuple[str, ...]
    missing: str = ""
    """Why they could not be read; then there are none, and the evidence is not whole."""


class Room(Value):
    """How many more pods like the present ones would find a place."""

    quota: int | None
    """By the namespace's quotas; None where there is none that counts."""
    nodes: int
    """By what is left on the nodes that may take them."""
    spare_memory: int | None = None
    """Bytes that one more pod on the best of these nodes might ask for beyond what they ask for
    now; None where not one fits, or it was not counted."""

    @property
    def pods(self) -> int:
        """How many fit in both."""
        return self.nodes if self.quota is None else min(self.quota, self.nodes)
