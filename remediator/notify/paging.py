"""ESCALATE: call humans, level after level, until one of them has what needs one.

One loop decides who is told; one loop a channel tells it, so that a channel that hangs holds up
neither the others nor the next level. One message a second goes to a channel at most.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta

import structlog

from remediator.model.catalog import Catalogue, Escalation, Service
from remediator.model.errors import OwnershipLost, PermanentError, TemporaryError
from remediator.model.maintenance import running
from remediator.model.notification import Channel, Notifier, Summons, Word
from remediator.model.target import Mode
from remediator.model.views import Frame, IncidentView
from remediator.notify.escalation import NOTES, calls_of, compose, next_step, notes_due
from remediator.store import Store
from remediator.store.database import patiently
from remediator.store.leases import given_back
from remediator.store.paging import EscalationState, Message, Step, Telling

SEND_TIMEOUT = 30.0
"""Seconds that a channel may take; less than the lease of a message."""
ATTEMPTS = 12
"""Times that a message which calls nobody is tried: for about half an hour."""
LABEL = "pagerduty_incident"
"""Label with the id of the incident of PagerDuty's that an alert came from."""
_SHORTEST, _LONGEST = 1.0, 300.0
"""Seconds between two attempts, whatever the channel asks for."""
_SILENT = frozenset({Mode.OBSERVE, Mode.SHADOW})

_log = structlog.get_logger(__name__)


class Escalating:
    """Calls humans over ``channels``, by the levels of the catalogue."""

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        frame: Frame,
        channels: Mapping[str, Channel],
        count: Callable[[str, str], None],
    ) -> None:
        """``count`` takes a channel's name and ``told``, ``delayed`` or ``failed``."""
        self._store = store
        self._catalogue, self._frame = catalogue, frame
        self._channels = dict(channels)
        self._count = count
        self._due: frozenset[str] = frozenset()

    @property
    def loops(self) -> Iterator[Callable[[], Awaitable[bool]]]:
        """What is to be run again and again, each on its own."""
        yield self.decide
        for name in self._channels:
            yield functools.partial(self.send, name)

    async def decide(self) -> bool:
        """Decide about what is due, and see what is to be sent; return whether there is more."""
        due = await self._store.escalations.due()
        self._due = due.channels
        more = due.deciding and bool(await self._store.escalations.advance(self._next))
        for name in sorted(due.channels - self._channels.keys()):
            await self._miss(name)
        return more

    async def _miss(self, name: str) -> None:
        """Say that a message waits for a channel that is not there; another process may have it."""
        telling = await self._store.escalations.claim(name)
        if telling is None:
            return
        reason = f"there is no channel {name} in the configuration"
        try:
            if telling.word is Word.LEVEL:
                await self._elsewhere(telling)
                await self._not_told(telling, reason, _pause(telling))
            else:
                await self._later(telling, reason, None)
        except OwnershipLost as error:
            _log.warning("message_lost", reason=str(error))

    async def _elsewhere(self, telling: Telling) -> None:
        """Tell the level to whom it names by now; who was asked before is not asked again."""
        view = await self._store.records.legible(telling.incident_id)
        if view is not None:
            plan = self._plan(self._catalogue.service(view.system, view.service))
            calls = calls_of(self._reachable(plan), int(telling.subject))
            await self._store.escalations.ask(view.id, calls)

    def _next(self, standing: EscalationState) -> Step:
        incident, now = standing.incident, standing.now
        planned = self._catalogue.windows(incident, now, now)
        window = running([*planned, *standing.windows], now)
        service = self._catalogue.service(incident.system, incident.service)
        plan = self._plan(service)
        silent = service is not None and self._is_silent(service, incident.playbook)
        if silent and not standing.stays:
            plan = Escalation()
        return next_step(standing, self._reachable(plan), window)

    def _plan(self, service: Service | None) -> Escalation:
        return self._catalogue.escalation if service is None else service.escalation

    def _reachable(self, plan: Escalation) -> Escalation:
        """Leave out channels that are not there: what nobody sends would wait for ever."""
        levels = tuple(
            level.model_copy(
                update={"notify": tuple(n for n in level.notify if n in self._channels)}
            )
            for level in plan.levels
        )
        return plan.model_copy(update={"levels": levels})

    def _is_silent(self, service: Service, playbook: str | None) -> bool:
        enabled = service.playbooks.get(playbook or "")
        return enabled is not None and set(enabled.modes.values()) <= _SILENT

    # --- one message --------------------------------------------------------------------------

    async def send(self, name: str) -> bool:
        """Send one message that is due to the channel ``name``; the next one comes in a while."""
        if name not in self._due:
            return False
        telling = await self._store.escalations.claim(name)
        if telling is not None:
            try:
                async with given_back(self._store.escalations.release, telling):
                    await self._send(telling)
            except OwnershipLost as error:
                _log.warning("message_lost", reason=str(error))
        return False

    async def _send(self, telling: Telling) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                summons = await self._compose(telling)
                await self._channels[telling.channel].tell(summons)
        except TimeoutError:
            await self._later(telling, f"no answer within {SEND_TIMEOUT:g} s", None)
        except TemporaryError as error:
            await self._later(telling, str(error), error.retry_after)
        except PermanentError as error:
            await self._refused(telling, str(error))
        except Exception as error:  # noqa: BLE001 - a fault of ours may not silence a channel
            _log.exception("message_failed", channel=telling.channel)
            await self._later(telling, f"failed: {type(error).__name__}", None)
        else:
            await patiently(lambda: self._store.escalations.told(telling))
            self._count(telling.channel, "told")

    async def _compose(self, telling: Telling) -> Summons:
        records, known = self._store.records, telling.incident_id
        is_call = telling.word is Word.LEVEL
        view = await (records.legible(known) if is_call else records.incident(known))
        if view is None:
            raise PermanentError("the incident is gone")
        service = self._catalogue.service(view.system, view.service)
        severities = (service or self._catalogue).severities
        return compose(view, telling, self._plan(service), severities, self._frame)

    async def _later(self, telling: Telling, reason: str, after: float | None) -> None:
        """Try again; a level for as long as it is wanted, which ``claim`` knows."""
        tries = telling.attempts + 1
        calls, long = telling.word is Word.LEVEL, tries % ATTEMPTS == 0
        if long and not calls:
            await self._give_up(telling, f"{reason}; tried {tries} times")
            return
        seconds = _pause(telling, after)
        if long:
            await self._not_told(telling, f"{reason}; tried {tries} times, and tried on", seconds)
            return
        _log.warning(
            "message_delayed", channel=telling.channel, reason=reason, again_in=round(seconds)
        )
        await self._store.escalations.failed(telling, reason, timedelta(seconds=seconds))
        self._count(telling.channel, "delayed")

    async def _refused(self, telling: Telling, reason: str) -> None:
        """Try a level all the same, slowly: a key or a configuration may be mended."""
        if telling.word is Word.LEVEL:
            await self._not_told(telling, reason, _LONGEST)
        else:
            await self._give_up(telling, reason)

    async def _not_told(self, telling: Telling, reason: str, seconds: float) -> None:
        """Say loudly that nobody is called over this channel now, and try again."""
        _log.error(
            "call_not_taken",
            channel=telling.channel,
            incident_id=telling.incident_id,
            reason=reason,
            again_in=round(seconds),
        )
        again_in = timedelta(seconds=seconds)
        await self._store.escalations.failed(telling, reason, again_in, loudly=True)
        self._count(telling.channel, "failed")

    async def _give_up(self, telling: Telling, reason: str) -> None:
        _log.error(
            "message_given_up",
            channel=telling.channel,
            incident_id=telling.incident_id,
            reason=reason,
        )
        await self._store.escalations.given_up(telling, reason)
        self._count(telling.channel, "failed")

    # --- the incidents of PagerDuty's that alerts came from -------------------------------------

    async def note(self, view: IncidentView) -> None:
        """Ask for what should stand by now in the incidents of PagerDuty's behind ``view``."""
        if NOTES not in self._channels:
            return
        service = self._catalogue.service(view.system, view.service)
        enabled = service.playbooks.get(view.playbook or "") if service is not None else None
        acts = enabled is not None and Mode.AUTO in enabled.modes.values()
        theirs = await self._store.escalations.reported(view.id, LABEL)
        resolves = service is not None and service.pagerduty_resolve and theirs.alone
        words = notes_due(view, acts=acts, resolves=resolves)
        messages = [
            Message(channel=NOTES, word=word, subject=one)
            for one in theirs.incidents
            for word in words
        ]
        if messages:
            await self._store.escalations.ask(view.id, messages)


def _pause(telling: Telling, asked: float | None = None) -> float:
    """Return the seconds until the next attempt; ``asked`` is what the channel wants.

    What has a number of tries does not use them up in the short pauses of a busy channel.
    """
    seconds = 2.0 ** min(telling.attempts, 10)
    if asked is not None:
        seconds = asked if telling.word is Word.LEVEL else max(asked, seconds)
    return min(max(seconds, _SHORTEST), _LONGEST)


class ChatChannel:
    """Calls by a new message in the chat: an edit of the old one wakes nobody."""

    def __init__(self, notifier: Notifier) -> None:
        """Send with ``notifier``, which also looks after the incident's own message."""
        self._notifier = notifier

    async def tell(self, summons: Summons) -> None:
        """Post it; its detail is in the thread of the incident's own message."""
        if summons.word is not Word.LEVEL:
            return
        await self._notifier.call(summons.report.model_copy(update={"headline": summons.headline}))
