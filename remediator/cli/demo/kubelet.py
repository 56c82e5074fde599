"""Plays the controllers and the kubelet of the emulated cluster: pods that start, grow and die.

A pod's memory is a figure that grows; beyond the limit of its container the container is killed,
as the kernel would do it, and started again. A changed template is rolled out pod by pod.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from remediator.cli.demo.cluster import NAME, NAMESPACE, Cluster, Json, stamp

REPLICAS = 2
IDLE, NEED = 150, 340
"""Mebibytes that the application uses when it starts, and once its catalogue has grown."""
LIMIT = 256
"""Mebibytes that its container may use at first."""
TICK = 0.1
GROWTHS = (8, 6)
"""Mebibytes that the pods gain in a tick: no two are alike."""
BACK_OFF = 100
"""Ticks that a container waits after its second kill: the kubelet's first back-off, 10 s."""
READY_AFTER = 8
"""Ticks from the start of a container until it is ready."""
_OWNED = {"apiVersion": "apps/v1", "controller": True}
_COMPLETE, _ROLLING = "NewReplicaSetAvailable", "ReplicaSetUpdated"


def new_cluster() -> Cluster:
    """Make a cluster with the deployment, not yet with its pods."""
    resources = {key: {"memory": f"{LIMIT}Mi"} for key in ("requests", "limits")}
    template = {
        "metadata": {"labels": {"app": NAME}},
        "spec": {"containers": [{"name": "app", "image": "orders:1", "resources": resources}]},
    }
    spec = {"replicas": REPLICAS, "selector": {"matchLabels": {"app": NAME}}, "template": template}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**_metadata(NAME, "deployment-1"), "generation": 1},
        "spec": spec,
        "status": {},
    }
    return Cluster(deployment)


@dataclass
class Process:
    """What runs in a pod's one container."""

    pod: Json
    limit: int
    """Mebibytes."""
    growth: int
    used: int = IDLE
    age: int = 0
    """Ticks since it was started."""
    pause: int = 0
    """Ticks that it still has to wait before it is started again."""
    measured: int = IDLE
    """What it used when it last ran, as a metrics server knows it."""

    def as_metrics(self) -> Json:
        """Describe what it uses as a metrics server does."""
        usage = {"cpu": "20m", "memory": f"{self.measured}Mi"}
        return {
            "metadata": {"name": self.pod["metadata"]["name"], "namespace": NAMESPACE},
            "timestamp": stamp(),
            "window": "1s",
            "containers": [{"name": "app", "usage": usage}],
        }


@dataclass
class Kubelet:
    """Controllers and kubelet in one, a tick at a time."""

    cluster: Cluster
    grown: bool = False
    """Whether the application's catalogue has grown."""
    processes: list[Process] = field(default_factory=list)
    killed: int = 0
    """Containers killed so far."""

    @property
    def ready(self) -> int:
        """Pods that are ready."""
        return sum(p.age >= READY_AFTER for p in self.processes)

    @property
    def fullest(self) -> Process | None:
        """The process that uses most of its limit."""
        return max(self.processes, key=lambda p: p.used / p.limit, default=None)

    @property
    def marked(self) -> int:
        """Pods whose container was killed for want of memory, as kube-state-metrics counts."""
        return sum("lastState" in p.pod["status"]["containerStatuses"][0] for p in self.processes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the pods, and play them until the block is left."""
        for _ in range(REPLICAS * (READY_AFTER + 1)):
            self.tick()
        playing = asyncio.create_task(self._play(), name="kubelet")
        try:
            yield
        finally:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)

    async def _play(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self.tick()

    def tick(self) -> None:
        """Let a tenth of a second pass: a controller's turn, then every container's."""
        self._roll_out()
        for process in self.processes:
            self._grow(process)
        self.cluster.metrics[:] = [process.as_metrics() for process in self.processes]
        self._count()

    # --- the controllers -------------------------------------------------------------------------

    def _roll_out(self) -> None:
        """Take one step towards ``REPLICAS`` pods of the present template, one too many at most."""
        current = self._replica_set()
        uid = current["metadata"]["uid"]
        new = [p for p in self.processes if p.pod["metadata"]["ownerReferences"][0]["uid"] == uid]
        old = [p for p in self.processes if p not in new]
        starting = any(p.age < READY_AFTER for p in new)
        if len(new) < REPLICAS and not starting:
            self.processes.append(self._start(current))
        elif old and not starting:
            self.processes.remove(old[0])
        self.cluster.pods[:] = [p.pod for p in self.processes]

    def _replica_set(self) -> Json:
        """Return the replica set of the present template; make it when there is none."""
        template = self.cluster.deployment["spec"]["template"]
        for found in self.cluster.replica_sets:
            if found["spec"]["template"] == template:
                return found
        digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
        number = len(self.cluster.replica_sets) + 1
        metadata = _metadata(f"{NAME}-{digest}", f"replicaset-{number}")
        revision = {"deployment.kubernetes.io/revision": str(number)}
        metadata["annotations"] = revision
        annotations = self.cluster.deployment["metadata"].setdefault("annotations", {})
        annotations.update(revision)
        metadata["ownerReferences"] = [_owner(self.cluster.deployment, "Deployment")]
        spec = {"replicas": REPLICAS, "template": copy.deepcopy(template)}
        self.cluster.replica_sets.append({"metadata": metadata, "spec": spec, "status": {}})
        return self.cluster.replica_sets[-1]

    def _start(self, replica_set: Json) -> Process:
        number = next(self.cluster.numbers)
        name = f"{replica_set['metadata']['name']}-{number:x}"
        metadata = _metadata(name, f"pod-{number}")
        metadata["ownerReferences"] = [_owner(replica_set, "ReplicaSet")]
        spec = copy.deepcopy(replica_set["spec"]["template"]["spec"])
        limit = int(spec["containers"][0]["resources"]["limits"]["memory"].removesuffix("Mi"))
        container = {"name": "app", "restartCount": 0, "ready": False}
        status = {"phase": "Running", "containerStatuses": [container]}
        pod = {"metadata": metadata, "spec": {**spec, "nodeName": "node-1"}, "status": status}
        return Process(pod, limit, GROWTHS[len(self.processes) % len(GROWTHS)])

    def _count(self) -> None:
        """Write the deployment's status, as its controller does; it is a version of its own."""
        deployment, current = self.cluster.deployment, self.cluster.replica_sets[-1]
        owner = current["metadata"]["uid"]
        pods = [p.pod["metadata"]["ownerReferences"][0]["uid"] for p in self.processes]
        complete = pods == [owner] * REPLICAS and self.ready == REPLICAS
        reason = _COMPLETE if complete or self._only_killed(pods, owner) else _ROLLING
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": pods.count(owner),
            "readyReplicas": self.ready,
            "conditions": [{"type": "Progressing", "status": "True", "reason": reason}],
        }
        if status != deployment["status"]:
            deployment["status"] = status
            self.cluster.write(deployment)

    def _only_killed(self, pods: list[str], owner: str) -> bool:
        """Whether every pod is of this revision and was ready once: a kill is no rollout."""
        return pods == [owner] * REPLICAS and all(
            p.age >= READY_AFTER or "lastState" in p.pod["status"]["containerStatuses"][0]
            for p in self.processes
        )

    # --- the kubelet -----------------------------------------------------------------------------

    def _grow(self, process: Process) -> None:
        if process.pause:
            process.pause -= 1
        else:
            process.age += 1
            process.used = min(NEED, process.used + process.growth) if self.grown else IDLE
        if process.used > process.limit:
            self._kill(process)
        else:
            process.measured = process.measured if process.pause else process.used
        self._report(process)

    def _kill(self, process: Process) -> None:
        self.killed += 1
        process.used, process.age = IDLE, 0
        container = process.pod["status"]["containerStatuses"][0]
        ended = {"reason": "OOMKilled", "exitCode": 137, "finishedAt": stamp()}
        container["lastState"] = {"terminated": ended}
        container["restartCount"] += 1
        process.pause = 0 if container["restartCount"] == 1 else BACK_OFF
        self._note(process.pod["metadata"]["name"], container["restartCount"])

    def _note(self, pod: str, count: int) -> None:
        """Write the one event of a pod that keeps being killed, as often as it was."""
        event = {
            "metadata": _metadata(f"{pod}.back-off", f"event-{pod}"),
            "involvedObject": {"kind": "Pod", "name": pod},
            "type": "Warning",
            "reason": "BackOff",
            "message": "Back-off restarting failed container app",
            "lastTimestamp": stamp(),
            "count": count,
        }
        others = [e for e in self.cluster.events if e["involvedObject"]["name"] != pod]
        self.cluster.events[:] = [*others, event]

    def _report(self, process: Process) -> None:
        ready = process.age >= READY_AFTER
        state = {"waiting": {"reason": "CrashLoopBackOff"}} if process.pause else {"running": {}}
        status = process.pod["status"]
        container = status["containerStatuses"][0]
        if (container["ready"], container.get("state")) != (ready, state):
            self.cluster.write(process.pod)
        container |= {"ready": ready, "state": state}
        status["conditions"] = [{"type": "Ready", "status": "True" if ready else "False"}]


def _metadata(name: str, uid: str) -> Json:
    return {
        "name": name,
        "namespace": NAMESPACE,
        "uid": uid,
        "resourceVersion": "1",
        "creationTimestamp": stamp(),
        "annotations": {},
        "labels": {"app": NAME},
    }


def _owner(found: Json, kind: str) -> Json:
    metadata = found["metadata"]
    return {**_OWNED, "kind": kind, "name": metadata["name"], "uid": metadata["uid"]}
