"""Silences in Alertmanager, while a mitigation works, the alerts that it is about.

Alertmanager itself is the memory: our silences carry the incident in their comment, and each look
brings them in line with what is in flight. Nothing is locked, so two replicas may both silence the
same alert; both then see both silences and both keep the older one, and making or ending one again
does no harm. A silence ends by itself soon after the last look: our death makes the world loud.

What is silenced is not sent to us either, neither its resolve nor a new start. So Alertmanager is
asked what fires, and what differs from our own record is put into the inbox as a delivery of its
own, also after the silence ended: the change may lie between our last question and the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from remediator.model.alert import Alert, AlertStatus, Delivery, Source
from remediator.model.base import DeliveryId, IncidentId, new_id
from remediator.model.errors import BackendRefused, BackendUnavailable, ConfigError
from remediator.model.ports import Silence, Silences
from remediator.remediation.silence_plan import (
    Key,
    Order,
    Seen,
    Wish,
    key_of,
    labels_of,
    plan,
    surplus,
    unheard,
    without,
)
from remediator.remediation.step import EngineContext
from remediator.store import Store
from remediator.store.silences import InFlight

MOST_ALERTS = 20
"""Alerts of one incident that are silenced; further ones stay loud."""
_LONGEST = 200
"""Characters of a credential's name in the store."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SilenceBounds:
    """How long silences last, and how often they are looked after."""

    margin: timedelta = timedelta(minutes=5)
    """Time past the verification's deadline after which a silence ends without us."""
    most: timedelta = timedelta(hours=1)
    """Longest time from an incident's first silence to the end of its last one."""
    linger: timedelta = timedelta(days=1)
    """Time after the end of a silence in which a new start of its alert is looked for.

    Where the resolve was silenced, Alertmanager takes the new start for a repetition, and tells
    nobody of it before its ``repeat_interval`` is over (4 hours, if nobody set it).
    """
    busy: timedelta = timedelta(seconds=5)
    """Time between two looks at Alertmanager while something is or should be silenced."""
    idle: timedelta = timedelta(seconds=30)
    """Time between two looks otherwise."""


BOUNDS = SilenceBounds()


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class _Memory:
    """When to look again, and what was said last: losing it costs one more look."""

    wanted: frozenset[Key] = frozenset()
    due: float = 0.0
    trouble: str = ""


class Silencing:
    """Keeps the silences of one Alertmanager in line with what is in flight."""

    def __init__(
        self,
        name: str,
        silences: Silences,
        store: Store,
        around: EngineContext,
        bounds: SilenceBounds = BOUNDS,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """Serve the services of ``around`` that ask for silences in the Alertmanager ``name``."""
        self._name = name
        self._silences = silences
        self._store = store
        self._around = around
        self._bounds = bounds
        self._now = now
        self._memory = _Memory()
        self._services = frozenset(
            (service.system, service.name)
            for service in around.catalogue.services
            if service.silence and service.alertmanager == name
        )

    async def look(self) -> bool:
        """Look once where that is due; nothing waits for it, and trouble is said once.

        Returns False, as nothing more is to be done at once. Raises ``StoreUnavailable``.
        """
        wishes = await self._wishes()
        wanted = frozenset(wish.key for wish in wishes)
        if wanted == self._memory.wanted and self._around.monotonic() < self._memory.due:
            return False
        trouble, pause = "", self._bounds.busy
        try:
            if not await self._reconcile(wishes):
                pause = self._bounds.idle
        except (BackendUnavailable, BackendRefused) as error:
            trouble = str(error)
        self._say(trouble)
        self._memory = _Memory(wanted, self._around.monotonic() + pause.total_seconds(), trouble)
        return False

    def _say(self, trouble: str) -> None:
        if bool(trouble) == bool(self._memory.trouble):
            return
        if trouble:
            _log.warning("silences_not_kept", alertmanager=self._name, reason=trouble)
        else:
            _log.info("silences_kept_again", alertmanager=self._name)

    async def _wishes(self) -> list[Wish]:
        found = await self._store.silenced.in_flight(self._services, MOST_ALERTS)
        return [wish for one in found for wish in self._wishes_of(one)]

    def _wishes_of(self, found: InFlight) -> Iterator[Wish]:
        lasting = self._lasting(found)
        for alert in found.alerts:
            if lasting is not None and any(alert.labels.values()):
                yield Wish(incident_id=found.id, labels=alert.labels, lasting=lasting)

    def _lasting(self, found: InFlight) -> timedelta | None:
        """Return how long a silence stands unless renewed; None for what is not configured."""
        service = self._around.catalogue.service(found.system, found.service)
        enabled = service.playbooks.get(found.playbook) if service is not None else None
        if enabled is None:
            return None
        try:
            playbook = self._around.playbooks.build(enabled.name, enabled.parameters)
        except ConfigError:
            return None
        deadline: timedelta = playbook.parameters.verification.deadline
        return min(deadline + self._bounds.margin, self._bounds.most)

    async def _reconcile(self, wishes: Sequence[Wish]) -> bool:
        """Bring Alertmanager in line; return whether anything is silenced, or should be."""
        seen = await self._seen()
        ends = list(surplus(wishes, seen))
        await self._carry_out(ends)
        # what fires is asked after the ends: whatever changes from here on is sent to us
        if not wishes and not self._to_be_watched(seen):
            return False
        firing = await self._silences.firing()
        await self._receive(list(unheard(seen, firing, self._bounds.linger)))
        rest = Seen(without(seen.silences, ends), seen.alerts, self._now())
        await self._carry_out(plan(wishes, rest, firing, self._bounds.most))
        return bool(wishes) or bool(rest.standing)

    async def _seen(self) -> Seen:
        silences = await self._silences.silences()
        alerts = await self._store.silenced.alerts_of({s.incident_id for s in silences})
        # another installation may use the same Alertmanager: its incidents are none of ours
        ours = tuple(silence for silence in silences if silence.incident_id in alerts)
        return Seen(ours, alerts, self._now())

    def _to_be_watched(self, seen: Seen) -> bool:
        """Whether something could have changed without our being told."""
        keys = {key_of(silence) for silence in seen.silences}
        firing = {
            (incident, labels_of(alert.labels))
            for incident, alerts in seen.alerts.items()
            for alert in alerts
            if alert.status is AlertStatus.FIRING
        }
        return bool(keys & firing) or any(self._of_late(s) for s in seen.silences)

    def _of_late(self, silence: Silence) -> bool:
        return self._now() - silence.ends_at < self._bounds.linger

    # --- what is done -------------------------------------------------------------------------

    async def _carry_out(self, orders: Iterable[Order]) -> None:
        """Do them all; one that is refused does not keep the others from being done."""
        done: list[Order] = []
        refused: BackendRefused | None = None
        try:
            for order in orders:
                try:
                    await self._do(order)
                    done.append(order)
                except BackendRefused as error:
                    refused = refused or error
        finally:
            await self._note(done)
        if refused is not None:
            raise refused

    async def _do(self, order: Order) -> None:
        if order.silence is not None and order.until is not None:
            await self._silences.renew(order.silence, order.until)
        elif order.silence is not None:
            await self._silences.end(order.silence)
        elif order.until is not None:
            await self._silences.mute(order.incident_id, order.labels, order.until)

    async def _note(self, done: Sequence[Order]) -> None:
        """Tell the journal, a line for all that was done alike for an incident."""
        alike: dict[tuple[IncidentId, str, str], int] = {}
        for order in done:
            line = order.incident_id, _event(order), order.reason
            alike[line] = alike.get(line, 0) + 1
        for (incident, event, reason), count in alike.items():
            alerts = f"{count} alert{'s' if count > 1 else ''} in {self._name}"
            await self._store.silenced.note(incident, event, f"{alerts}: {reason}")

    async def _receive(self, alerts: Sequence[Alert]) -> None:
        """Put what was not sent to us into the inbox, as Alertmanager would have written it."""
        if not alerts:
            return
        now, body = self._now(), _body(alerts)
        delivery = Delivery(
            id=DeliveryId(new_id("dlv", now)),
            source=Source.ALERTMANAGER,
            received_at=now,
            credential=f"asked of alertmanager {self._name}"[:_LONGEST],
            digest=hashlib.sha256(body).hexdigest(),
            size=len(body),
            body=body,
        )
        await self._store.inbox.put(delivery, alerts, ())
        _log.info("asked_alertmanager", delivery=delivery.id, alerts=len(alerts))


def _event(order: Order) -> str:
    if order.until is None:
        return "silence ended"
    return f"silenced in Alertmanager until {order.until.astimezone(UTC):%H:%M:%S} UTC"


def _body(alerts: Sequence[Alert]) -> bytes:
    """Write alerts as the body of an Alertmanager webhook, version 4."""
    firing = any(alert.status is AlertStatus.FIRING for alert in alerts)
    content = {
        "version": "4",
        "receiver": "remediator",
        "status": "firing" if firing else "resolved",
        "truncatedAlerts": 0,
        "alerts": [
            {
                "status": alert.status,
                "labels": alert.labels,
                "annotations": alert.annotations,
                "startsAt": alert.starts_at.isoformat(),
                "endsAt": _NEVER if alert.ends_at is None else alert.ends_at.isoformat(),
                "fingerprint": alert.fingerprint,
            }
            for alert in alerts
        ],
    }
    return json.dumps(content).encode()


_NEVER = "0001-01-01T00:00:00Z"
