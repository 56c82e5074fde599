"""Opens what the replicas share besides the store, where a Redis is configured; else what one has.

Nothing of it is needed: without it, or while it does not answer, all goes on, slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from remediator.api.events import LISTENERS, Hub
from remediator.config.settings import Settings
from remediator.model.catalog import Catalogue
from remediator.model.events import Announce, EventType, LiveEvent
from remediator.playbook.loader import PlaybookSet
from remediator.service.metrics import Telemetry
from remediator.store.duplicates import NoRepeats, Repeats

if TYPE_CHECKING:
    from remediator.service.replicas.redis import SharedRedis


UNLIMITED = "unlimited"
"""The admission rate of who may post as often as he likes."""
_RINGING = frozenset({EventType.OPENED, EventType.PAUSED, EventType.RESUMED})
"""What another replica looks at the store for at once. Not for a delivery, which the replica that
took it triages at once, nor for each step of an incident, which goes on where it is."""


@dataclass(frozen=True)
class Place:
    """Which service this is, and which of its replicas."""

    store: str
    """The store's URL: replicas of one store share, others never do, also on one Redis."""
    owner: str
    """This process."""
    version: str
    """Digest of all that decides what becomes of an alert."""

    @property
    def namespace(self) -> str:
        """What all keys begin with; the store's user and password are not in it."""
        parts = urlsplit(self.store)
        host = parts.netloc.rpartition("@")[2] or socket.gethostname()
        where = parts._replace(netloc=host).geturl()
        return f"remediator:{hashlib.sha256(where.encode()).hexdigest()[:12]}"


def version_of(release: str, catalogue: Catalogue, playbooks: PlaybookSet) -> str:
    """Return the same for replicas by which an alert is matched alike."""
    named = ",".join(cls.name for cls in playbooks)
    text = "\n".join((release, named, repr(catalogue)))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Shared:
    """What the service asks of it."""

    wait: Callable[[str], Awaitable[float]]
    """Returns the seconds until a credential may post; 0 for now."""
    repeats: Repeats = field(default_factory=NoRepeats)
    hub: Hub = field(default_factory=Hub)
    """The events of this replica, and of the others where they are heard."""
    send: Callable[[LiveEvent], None] = lambda _event: None
    """Tells the other replicas."""

    @property
    def announce(self) -> Announce:
        """What the store tells of what happened here."""

        def announce(kind: EventType, what: str) -> None:
            scoped = kind in (EventType.PAUSED, EventType.RESUMED)
            named = {"scope" if scoped else "id": what}
            event = LiveEvent(kind=kind, at=datetime.now(UTC), **named)
            self.hub.publish(event)
            self.send(event)

        return announce


@contextlib.asynccontextmanager
async def open_shared(
    settings: Settings,
    environ: Mapping[str, str],
    place: Place,
    telemetry: Telemetry,
    ring: Callable[[], None],
) -> AsyncIterator[Shared]:
    """Open it, also where Redis is down; ``ring`` is called when others have work for us.

    Raises ``ConfigError`` for a URL that cannot be read.
    """
    reference, rate = settings.redis.secret("url"), settings.admission.rate
    hub = Hub(_listeners(settings))
    if reference is None:
        yield Shared(_waiting(rate), hub=hub)
        return
    from remediator.service.replicas.duplicates import (  # noqa: PLC0415 - only where configured
        shared_repeats,
    )
    from remediator.service.replicas.pubsub import (  # noqa: PLC0415 - only where configured
        shared_events,
    )
    from remediator.service.replicas.redis import (  # noqa: PLC0415 - only where configured
        shared_redis,
    )

    url = reference.read(environ)

    def heard(event: LiveEvent) -> None:
        hub.publish(event)
        if event.kind in _RINGING:
            ring()

    async with (
        shared_redis(url, place.namespace, telemetry.shared_redis_impaired) as redis,
        shared_events(redis, place.owner, heard) as events,
        shared_repeats(redis, place.version) as known,
    ):
        repeats = known if settings.redis.duplicates else NoRepeats()
        yield Shared(_waiting(rate, redis), repeats, hub, events.send)


async def look_at_shared(settings: Settings, environ: Mapping[str, str]) -> str | None:
    """Ask the configured Redis for all that is needed of it; return what is wrong.

    Raises ``ConfigError`` for a URL that cannot be read.
    """
    from remediator.service.replicas.redis import look  # noqa: PLC0415 - only where configured

    reference = settings.redis.secret("url")
    return None if reference is None else await look(reference.read(environ))


def serves_what(settings: Settings) -> str:
    """Say what the replicas have of a shared Redis."""
    serves = ["live events of all replicas"]
    if settings.redis.duplicates:
        serves.append("a cache of duplicates")
    if settings.admission.rate != UNLIMITED:
        serves.append(f"one admission limit over all ({settings.admission.rate})")
    return ", ".join(serves)


def _waiting(rate: str, redis: SharedRedis | None = None) -> Callable[[str], Awaitable[float]]:
    if rate == UNLIMITED:
        return _never
    from remediator.service.replicas.ratelimit import (  # noqa: PLC0415 - only where configured
        Admission,
    )

    return Admission(rate, redis).wait


def _listeners(settings: Settings) -> int:
    """Leave most connections to those who do not stay."""
    return max(1, min(LISTENERS, settings.max_connections // 4))


async def _never(_credential: str) -> float:
    return 0.0
