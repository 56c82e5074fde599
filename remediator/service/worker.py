"""Runs the pipeline: takes what is due, one step at a time, and writes what came of it.

Five loops, owned by one task group: what a delivery lacks is fetched, deliveries become incidents,
incidents take steps, temporary changes are taken back, humans are told. One more for each
Alertmanager that is silenced meanwhile.
A doorbell wakes a loop at once; a poll every second is the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import structlog

from remediator.model.alert import Alert, Delivery
from remediator.model.base import DeliveryId, IncidentId
from remediator.model.correlation import Correlation
from remediator.model.errors import OwnershipLost, StoreUnavailable
from remediator.model.incident import IncidentOutcome
from remediator.model.notification import Notifier
from remediator.model.transition import Claim, Transition
from remediator.notify.pace import Pace
from remediator.notify.paging import Escalating
from remediator.notify.report import summarise
from remediator.notify.sender import Telling, deliver
from remediator.remediation.expire import take_back
from remediator.remediation.pipeline import take_step
from remediator.remediation.step import EngineContext, close
from remediator.store import Store
from remediator.store.database import patiently
from remediator.store.leases import GIVEN_BACK_WITHIN, given_back
from remediator.triage.correlate import correlate
from remediator.triage.match import Match, match

POLL = 1.0
"""Seconds between two looks at the store when nobody rings."""
STEPS_AT_ONCE = 16
"""Incidents that one process works on at the same time."""
FAILURES = 5
"""Unexpected failures of one step in a row after which a human gets the incident."""


Decode = Callable[[Delivery], Awaitable[Sequence[Alert]]]

_log = structlog.get_logger(__name__)


class Watcher(Protocol):
    """Counts what happens, for the service's own metrics."""

    def step_taken(self, claim: Claim, result: Transition | None, seconds: float) -> None:
        """A step ended; ``result`` is None when it failed."""
        ...

    def notice_sent(self, result: str) -> None:
        """A notice was ``sent``, ``delayed`` or ``failed``."""
        ...


class Doorbell:
    """Wakes the loops at once; whoever changes something rings."""

    def __init__(self) -> None:
        self.fetches = asyncio.Event()
        """Set by itself: few deliveries lack anything."""
        self.deliveries = asyncio.Event()
        self.incidents = asyncio.Event()
        self.notices = asyncio.Event()

    def ring(self) -> None:
        """Say that something changed: a delivery came, or an operator ordered something."""
        self.deliveries.set()
        self.incidents.set()
        self.notices.set()


class Worker:
    """Owns the loops. ``run`` ends when ``stop`` was called and every step has ended.

    ``drain`` does not wait for longer than it is told to.
    """

    def __init__(  # noqa: PLR0913 - each a part of its own
        self,
        store: Store,
        around: EngineContext,
        decode: Decode,
        notifier: Notifier,
        watcher: Watcher,
        bell: Doorbell,
        *,
        silencing: Sequence[Callable[[], Awaitable[bool]]] = (),
        fetching: Callable[[], Awaitable[bool]] | None = None,
        escalating: Escalating | None = None,
    ) -> None:
        """Take steps of ``store``; ``silencing`` looks after the silences of one server each.

        ``fetching`` brings what deliveries lack before they can be triaged, ``escalating`` calls
        humans where one is needed.
        """
        self._store = store
        self._around = around
        self._decode = decode
        self._notifier = notifier
        self._watcher = watcher
        self._bell = bell
        self._silencing = tuple(silencing)
        self._escalating = escalating
        self._fetching = fetching
        self._pace = Pace(time.monotonic)
        self._stopping = asyncio.Event()
        self._steps: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        """Claim nothing any more."""
        self._stopping.set()
        self._bell.ring()
        self._bell.fetches.set()

    async def drain(self, within: float) -> None:
        """Stop, and wait ``within`` seconds for the steps; then end them and give them back."""
        self.stop()
        if self._running is None:
            return
        await asyncio.wait([self._running], timeout=within)
        if not self._running.done():
            _log.warning("steps_given_back", incidents=len(self._steps))
            self._running.cancel()
            await asyncio.wait([self._running], timeout=2 * GIVEN_BACK_WITHIN)

    async def run(self) -> None:
        """Run the loops until ``stop``; steps under way are finished first."""
        self._running = asyncio.current_task()
        async with asyncio.TaskGroup() as group:
            self._group = group
            if self._fetching is not None:
                group.create_task(self._loop(self._bell.fetches, self._fetching), name="fetches")
            group.create_task(self._loop(self._bell.deliveries, self._triage), name="triage")
            group.create_task(self._loop(self._bell.incidents, self._claim), name="incidents")
            group.create_task(self._loop(self._bell.notices, self._tell), name="notices")
            group.create_task(self._loop(asyncio.Event(), self._take_back), name="holds")
            for look in self._silencing:
                group.create_task(self._loop(asyncio.Event(), look), name="silences")
            for call in self._escalating.loops if self._escalating is not None else ():
                group.create_task(self._loop(asyncio.Event(), call), name="escalations")

    async def _loop(self, doorbell: asyncio.Event, work: Callable[[], Awaitable[bool]]) -> None:
        while not self._stopping.is_set():
            doorbell.clear()
            try:
                more = await work()
            except StoreUnavailable as error:
                _log.warning("store_unavailable", reason=str(error))
                more = False
            except Exception:  # noqa: BLE001 - a loop that dies would lose all that is due
                _log.exception("loop_failed")
                more = False
            if not more:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(doorbell.wait(), POLL)

    # --- deliveries ---------------------------------------------------------------------------

    async def triage_now(self, delivery: DeliveryId) -> list[IncidentId]:
        """Turn one delivery into incidents at once; return them."""
        while await self._triage_batch(delivery) is not None:  # unless the loop was quicker
            pass
        self._bell.incidents.set()
        return await self._store.inbox.incidents_of(delivery)

    async def _triage(self) -> bool:
        try:
            correlation = await self._triage_batch(None)
        except StoreUnavailable:
            raise
        except Exception:  # noqa: BLE001 - one bad delivery must not block the others
            _log.exception("triage_failed")
            await self._triage_one_by_one()
            return False
        self._bell.incidents.set()
        return correlation is not None

    async def _triage_one_by_one(self) -> None:
        """Find the one that fails; what comes after it may be about the same, and waits for it."""
        for delivery in await self._store.inbox.waiting():
            try:
                await self._triage_batch(delivery)
            except StoreUnavailable:
                raise
            except Exception:  # noqa: BLE001 - counted; in the end it is a dead letter
                _log.exception("triage_failed", delivery=delivery)
                return

    async def _triage_batch(self, only: DeliveryId | None) -> Correlation | None:
        return await self._store.inbox.triage(
            self._decode,
            lambda alert, delivery: self._match(alert, delivery).key(alert),
            lambda batch, snapshot, now: correlate(batch, snapshot, now, self._match),
            only,
        )

    def _match(self, alert: Alert, delivery: Delivery) -> Match:
        return match(alert, self._around.catalogue, self._around.playbooks, delivery.playbook)

    # --- incidents ----------------------------------------------------------------------------

    async def _claim(self) -> bool:
        free = STEPS_AT_ONCE - len(self._steps)
        asked = asyncio.get_running_loop().time()
        claims = await self._store.queue.claim(free) if free > 0 else []
        for claim in claims:
            if self._stopping.is_set():  # claimed in the moment of stopping: for whoever comes
                await self._store.queue.release(claim)
                continue
            name = f"step {claim.incident.id}"
            task = self._group.create_task(self._work_on(claim, asked), name=name)
            self._steps.add(task)
            task.add_done_callback(self._step_ended)
        return free > 0 and len(claims) == free

    def _step_ended(self, task: asyncio.Task[None]) -> None:
        self._steps.discard(task)
        self._bell.incidents.set()
        self._bell.notices.set()

    async def _work_on(self, claim: Claim, since: float) -> None:
        incident = claim.incident
        with structlog.contextvars.bound_contextvars(
            incident_id=incident.id, playbook=incident.playbook, phase=incident.phase
        ):
            started = asyncio.get_running_loop().time()
            result = None
            try:
                async with (
                    given_back(self._store.queue.release, claim),
                    self._leased(claim, since) as lease,
                ):
                    result = await self._step(claim, lease)
            except OwnershipLost as error:
                _log.warning("ownership_lost", reason=str(error))
            except StoreUnavailable as error:  # the lease runs out and somebody takes over
                _log.warning("step_not_finished", reason=str(error))
            except Exception:  # noqa: BLE001 - one incident's fault must not end the others
                _log.exception("step_lost")
            seconds = asyncio.get_running_loop().time() - started
            self._watcher.step_taken(claim, result, seconds)

    async def _step(self, claim: Claim, lease: asyncio.Timeout) -> Transition | None:
        """Take the step and store its result; count what fails unexpectedly, and give up."""
        try:
            result = await take_step(self._around, claim)
            lease.reschedule(None)  # a result may come late: the epoch says whether it still counts
            await self._finish(claim, result)
        except (OwnershipLost, StoreUnavailable):
            raise
        except Exception as error:  # noqa: BLE001 - counted; a human gets it in the end
            _log.exception("step_failed")
            what = f"{type(error).__name__}: {str(error)[:200]}"
        else:
            return result
        failures, flying = await self._store.queue.retry_later(claim, timedelta(seconds=5))
        if failures < FAILURES or flying:
            return None
        reason = f"the step {claim.incident.phase} failed {failures} times ({what}); see the log"
        result = close(claim, IncidentOutcome.ESCALATED, reason)
        await self._finish(claim, result)
        return result

    async def _finish(self, claim: Claim, result: Transition) -> None:
        await patiently(lambda: self._store.queue.finish(claim, result))
        _log.info("step", next=result.phase, outcome=result.outcome, reason=result.reason)
        if result.due_in is not None and timedelta(0) < result.due_in < timedelta(seconds=POLL):
            loop = asyncio.get_running_loop()
            loop.call_later(result.due_in.total_seconds(), self._bell.incidents.set)

    @contextlib.asynccontextmanager
    async def _leased(self, claim: Claim, since: float) -> AsyncIterator[asyncio.Timeout]:
        """Keep the claim, asked for at ``since``, while the step runs; end the step with its lease.

        By our own clock: a store that is away says to nobody that the lease is over. What the step
        was at is left as it is, for whoever claims it next to look at.
        """
        clock, lasts = asyncio.get_running_loop().time, claim.lease.total_seconds()
        slow = True

        async def renew(lease: asyncio.Timeout) -> None:
            nonlocal slow
            while True:
                await asyncio.sleep(lasts / 3)
                until = clock() + lasts
                try:
                    await self._store.queue.renew(claim)
                    slow = True
                except StoreUnavailable as error:
                    slow = False
                    _log.warning("lease_not_renewed", reason=str(error))
                    continue
                except OwnershipLost:
                    slow = False
                    _ends(lease, clock())
                    return
                _ends(lease, until)

        try:
            async with asyncio.timeout_at(since + lasts) as lease:
                renewal = asyncio.create_task(renew(lease), name=f"lease {claim.incident.id}")
                try:
                    yield lease
                finally:
                    renewal.cancel()
        except TimeoutError:
            if slow:  # it neither refused nor failed
                self._store.queue.outpaced()
            raise OwnershipLost(f"the lease of {claim.incident.id} is over") from None

    async def _take_back(self) -> bool:
        return await take_back(self._store, self._around)

    # --- humans -------------------------------------------------------------------------------

    async def _tell(self) -> bool:
        note = None if self._escalating is None else self._escalating.note
        compose = functools.partial(summarise, frame=self._around.frame)
        telling = Telling(self._notifier, self._watcher.notice_sent, compose, note, self._pace)
        return await deliver(self._store, telling)


def _ends(lease: asyncio.Timeout, at: float) -> None:
    """Let a lease end ``at`` a time of the loop's, unless the step has its result, or was ended."""
    if lease.when() is not None and not lease.expired():
        lease.reschedule(at)
