"""Kubernetes as a target: deployments and their pods, and what can be done about them.

Reader and lever are two classes, for two accounts. Both see one namespace at a time, so that
Roles suffice for all but counting the room on nodes; the rights are in ``kubernetes_rights``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import structlog

from remediator.backends.kubernetes import descriptions
from remediator.backends.kubernetes.changes import (
    CONSEQUENCES,
    PLANNERS,
    PREPARED,
    change_of,
    prepared,
)
from remediator.backends.kubernetes.client import (
    Change,
    Conflict,
    Forbidden,
    NotDone,
    NotFound,
    Right,
)
from remediator.backends.kubernetes.cluster import Cluster
from remediator.backends.kubernetes.objects import Object, uid_of
from remediator.backends.kubernetes.preconditions import Scene
from remediator.backends.kubernetes.rbac import COUNTING_QUOTAS, READS, WRITES
from remediator.backends.kubernetes.revert import next_step, recognising, stands
from remediator.backends.kubernetes.rollback import KIND as UNDO_ROLLOUT
from remediator.backends.kubernetes.rollback import change_back, pinned
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.mitigation import Mitigation, MitigationState, Outcome, Preparation

UNDO_AGAIN = 3
"""Times that taking back looks afresh after it was refused or met a conflict."""


_log = structlog.get_logger(__name__)


class NoRight(BackendRefused):
    """A right that our account can do without is wanting; says which."""


class KubernetesMitigator(Cluster):
    """Changes the deployments of one cluster, one request each (``ports.Mitigator``).

    Every request is asked with ``dryRun=All`` when it is prepared, so that a missing right, a
    quota, a webhook or a disruption budget says no before anything is reserved.
    """

    rights = READS | WRITES
    kinds = frozenset(PLANNERS)
    consequences = CONSEQUENCES
    conditional = True

    def __init__(  # noqa: PLR0913 - by keyword, each with a meaning of its own
        self,
        kubeconfig: Path | None,
        *,
        name: str = "kubernetes",
        namespaces: Iterable[str] = (),
        sets_in: Iterable[str] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        changes: Mapping[str, frozenset[str]] | None = None,
        named: Mapping[tuple[Right, str], frozenset[str]] = MappingProxyType({}),
        hands_off: timedelta = timedelta(0),
    ) -> None:
        """Use ``kubeconfig``; the probe asks for the rights of ``changes``, kinds by namespace.

        Without ``changes`` it asks for the rights of every kind in ``namespaces``. Those in ``named``
        it asks for by the names of their objects. What others have
        set within ``hands_off`` is not changed.
        """
        super().__init__(kubeconfig, name=name, namespaces=namespaces, sets_in=sets_in)
        self._clock = clock
        self._changes = changes
        self._named = named
        self._hands_off = hands_off
        if changes is not None:
            self.kinds = frozenset[str]().union(*changes.values())

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        """Read the live objects, hold the bounds against them, ask the API with a dry run."""
        preparation = await self._planned(mitigation)
        change = await self._change(preparation, PREPARED)
        try:
            answer = await self._client.send(change, dry_run=True)
        except Conflict as error:  # between our look and this: the next look sees it
            raise BackendUnavailable(f"it changed while it was looked at: {error}") from error
        with self._reading():
            return recognising(preparation, answer)

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Send the one request; a conflict or a refusal changes nothing."""
        try:
            change = await self._change(preparation, effect_key)
        except (BackendRefused, BackendUnavailable) as error:  # nothing has been sent
            outcome = Outcome(state=MitigationState.NOT_APPLIED, detail=str(error))
        else:
            done = Outcome(state=MitigationState.APPLIED, detail=descriptions.done(preparation))
            outcome = await self._send(change, done)
        _log.info("cluster_changed", effect_key=effect_key, state=outcome.state.value)
        return outcome

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Look for our annotation on the object; an evicted pod is gone or going."""
        kind = preparation.mitigation.kind
        live = await self._live(preparation)
        if kind == "evict_pod":
            done = live is None or live["metadata"].get("deletionTimestamp") is not None
        else:
            done = live is not None and stands(live, kind, effect_key)
        if done:
            return Outcome(state=MitigationState.APPLIED, detail=descriptions.done(preparation))
        return Outcome(state=MitigationState.NOT_APPLIED, detail="the object is without the change")

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        """Put the old figure back where our annotation and our figure still stand.

        In steps, a number of pods goes down by a share at a time, each step with its pause. A
        controller may write the object's status in between, so a conflict is looked at afresh.
        """
        if preparation.undo is None:
            raise BackendRefused(f"{preparation.mitigation.kind} cannot be taken back")
        outcome = await self._undo(preparation, effect_key, in_steps=in_steps)
        for _ in range(UNDO_AGAIN):
            if outcome.final or outcome.state is not MitigationState.NOT_APPLIED:
                break
            outcome = await self._undo(preparation, effect_key, in_steps=in_steps)
        return outcome

    async def _missing(self) -> list[str]:
        if self._changes is None:
            return await super()._missing()
        return await self._missing_for(self._changes, self._named)

    async def _undo(self, preparation: Preparation, effect: str, *, in_steps: bool) -> Outcome:
        live = await self._live(preparation)
        step = next_step(preparation, effect, live, self._clock(), in_steps=in_steps)
        return step if isinstance(step, Outcome) else await self._send(step.change, step.outcome)

    async def _send(self, change: Change, done: Outcome) -> Outcome:
        try:
            await self._client.send(change, dry_run=False)
        except (BackendRefused, NotDone) as error:
            return Outcome(state=MitigationState.NOT_APPLIED, detail=str(error))
        except BackendUnavailable as error:
            return Outcome(state=MitigationState.UNKNOWN, detail=f"answer lost: {error}")
        return done

    async def _change(self, preparation: Preparation, effect: str) -> Change:
        """Make the request; a template to go back to is read here, and not kept in any ledger."""
        if preparation.mitigation.kind != UNDO_ROLLOUT:
            return change_of(preparation, effect)
        mitigation = preparation.mitigation
        deployment = await self._workload(mitigation.target)
        kept = await self._replica_sets(mitigation.target, deployment)
        with self._reading():
            return change_back(preparation, effect, pinned(kept, mitigation.items[0]))

    async def _planned(self, mitigation: Mitigation) -> Preparation:
        target = mitigation.target
        deployment = await self._workload(target)
        autoscalers, pods, sets, quotas = await asyncio.gather(
            self._autoscalers(target),
            self._pods(target, deployment),
            self._replica_sets(target, deployment),
            self._quotas_if_allowed(mitigation),
        )
        with self._reading():
            now = self._clock()
            scene = Scene(deployment, autoscalers, pods, sets, quotas, now, self._hands_off)
            return prepared(mitigation, scene)

    async def _quotas_if_allowed(self, mitigation: Mitigation) -> list[Object] | None:
        if mitigation.kind not in COUNTING_QUOTAS:
            return None
        try:
            return await self._quotas(mitigation.target)
        except Forbidden:
            return None

    async def _live(self, preparation: Preparation) -> Object | None:
        """Read the object that was prepared; None when it is gone, or is another of its name."""
        try:
            live = await self._client.get(str(preparation.before["object"]))
        except NotFound:
            return None
        return live if uid_of(live) == preparation.before["uid"] else None
