"""Runs the service: state folder, store, backends, worker, HTTP server, in this order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

import structlog

from remediator.api.audit import audit_routes
from remediator.api.auth import Access, generate_credentials
from remediator.api.body import BodyLimits
from remediator.api.events import live_routes
from remediator.api.listener import ConnectionLimits, listening
from remediator.api.openapi import with_description
from remediator.api.operator import api_routes
from remediator.api.origin import Names
from remediator.api.routing import STOPPING, Route, Watch, build_app
from remediator.config.credentials import spoken_for
from remediator.config.settings import Credential as ConfiguredCredential
from remediator.config.settings import Settings
from remediator.intake.pagerduty_fetch import Fetch, Fetching
from remediator.intake.pagerduty_webhook import pagerduty_routes
from remediator.intake.ratelimit import Turnstile
from remediator.intake.reader import Reader
from remediator.intake.replay import Replays, replay_routes
from remediator.intake.slack_actions import slack_routes
from remediator.intake.webhooks import Door, health_routes, webhook_routes
from remediator.model.access import Credential
from remediator.model.catalog import Catalogue
from remediator.model.errors import ConfigError
from remediator.model.notification import Channel
from remediator.model.ports import Silences
from remediator.notify.paging import Escalating
from remediator.playbook.loader import PlaybookSet
from remediator.remediation.silences import Silencing
from remediator.remediation.step import EngineContext, Mitigators
from remediator.service.audit_keys import STORE_FILE, sealing_keys
from remediator.service.backends import (
    Backends,
    frame_of,
    open_backends,
    open_notifier,
    open_silences,
)
from remediator.service.channels import open_channels
from remediator.service.disk import DiskRoom, Readiness
from remediator.service.inbox import CountingInbox, decoded, foreign_to
from remediator.service.loading import (
    LoadedPlaybooks,
    every_bound,
    every_decider,
    every_scope,
    load,
)
from remediator.service.metrics import Telemetry, Watching, watch_backlog
from remediator.service.pagerduty import (
    CountingEvents,
    incident_door,
    open_pagerduty,
    signing_secrets,
)
from remediator.service.replicas.wiring import Place, Shared, open_shared, version_of
from remediator.service.retention import age_of, keep_within, kept_of
from remediator.service.slack import open_desk
from remediator.service.state_folder import state_folder
from remediator.service.windows import Windows
from remediator.service.worker import Doorbell, Worker
from remediator.store import Store, open_store
from remediator.store.stop_file import STOP_FILE, StopFile, SureCommands

BACKLOG = 2000
"""Writes that may wait for the store before new deliveries are turned away with 503."""
STORE_COMES_WITHIN = timedelta(minutes=1)
"""Time that a start waits for a store that is away; whoever starts it has to try again then."""

_REQUESTS_WITHIN = 5.0
"""Seconds, after the steps have ended, for the answers that are still owed."""

_CANNOT_LISTEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Running:
    """A service that listens."""

    url: str
    """Such as ``http://127.0.0.1:8080``."""
    state_dir: Path


@dataclass(frozen=True)
class Parts:
    """Everything that is open while the service runs."""

    settings: Settings
    environ: Mapping[str, str]
    telemetry: Telemetry
    catalogue: Catalogue
    playbooks: PlaybookSet
    store: Store
    backends: Backends
    silences: Mapping[str, Silences]
    """Alertmanagers by name."""
    signing_secrets: Callable[[], Sequence[bytes]]
    """Reads what PagerDuty's webhooks are signed with."""
    fetch: Fetch | None
    """Reads the alerts of a PagerDuty incident; None where that is not configured."""
    bell: Doorbell
    channels: Mapping[str, Channel]
    """Ways to people by name."""
    shared: Shared
    """What the replicas share besides the store."""
    reader: Reader
    """Reads Alertmanager bodies."""
    stop: StopFile
    """The pauses that the store has not taken."""
    room: DiskRoom


@contextlib.asynccontextmanager
async def running(
    settings: Settings, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[Running]:
    """Run the service inside the block; drain it at the end.

    Raises ``ConfigError`` before anything listens, and ``StoreUnavailable``.
    """
    settings.check_listen()
    catalogue, playbooks = load(settings)
    bell, telemetry = Doorbell(), Telemetry()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(state_folder(settings.state_dir))
        stop = StopFile(settings.state_dir / STOP_FILE)
        stack.callback(stop.close)
        access = Access(_credentials(settings, environ))
        place = Place(
            store=store_url(settings, environ),
            owner=f"{socket.gethostname()}-{os.getpid()}-{token_hex(4)}",
            version=version_of(metadata.version("remediator"), catalogue, playbooks),
        )
        shared = await stack.enter_async_context(
            open_shared(settings, environ, place, telemetry, bell.ring)
        )
        with_sqlite = settings.store.secret("dsn") is None
        room = DiskRoom(
            settings.state_dir if with_sqlite else None, int(settings.store.reserve), telemetry
        )
        room.begin()
        _log.info("keeps", **kept_of(settings))
        store = await stack.enter_async_context(
            open_store(
                place.store,
                owner=place.owner,
                changed=bell.ring,
                bounds=every_bound(catalogue, playbooks),
                scopes=every_scope(catalogue),
                deciders=every_decider(catalogue),
                lease=settings.store.lease,
                keys=sealing_keys(settings, environ),
                announce=shared.announce,
                repeats=shared.repeats,
                records_by_sender=settings.limits.unmatched,
                wait=STORE_COMES_WITHIN,
                stop=stop,
                full=room.give_way,
            )
        )
        backends = await stack.enter_async_context(open_backends(settings, environ))
        silences = await stack.enter_async_context(open_silences(settings, environ))
        secrets = signing_secrets(settings, environ)
        fetch = await stack.enter_async_context(open_pagerduty(settings, environ))
        channels = await stack.enter_async_context(open_channels(settings, environ))
        parts = Parts(
            settings=settings,
            environ=environ,
            telemetry=telemetry,
            catalogue=catalogue,
            playbooks=playbooks,
            store=store,
            backends=backends,
            silences=silences,
            signing_secrets=secrets,
            fetch=fetch,
            bell=bell,
            channels=channels,
            shared=shared,
            reader=Reader(
                settings.max_alerts, foreign_to(catalogue, spoken_for(settings.credentials))
            ),
            stop=stop,
            room=room,
        )
        worker = await stack.enter_async_context(_working(parts, bell))
        host, port = await stack.enter_async_context(_listening(parts, access, worker))
        _log.info("listening", host=host, port=port, services=len(catalogue.services))
        shown = f"[{host}]" if ":" in host else host
        try:
            yield Running(url=f"http://{shown}:{port}", state_dir=settings.state_dir)
        finally:
            _log.info("stopping")


async def migrate(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """Bring the store's schema to this version; return what was done."""
    with state_folder(settings.state_dir):
        url = store_url(settings, environ)
        async with open_store(url, owner="migrate", changed=lambda: None) as store:
            return store.schema


def store_url(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return where the store is: the configured PostgreSQL, or SQLite in the state folder."""
    reference = settings.store.secret("dsn")
    if reference is None:
        return f"sqlite:///{settings.state_dir / STORE_FILE}"
    dsn = reference.read(environ)
    if not dsn.startswith(("postgres://", "postgresql://")) or not _has_place(dsn):
        raise ConfigError(f"{reference} should hold a URL like postgresql://user@host/database")
    return dsn


def _has_place(dsn: str) -> bool:
    try:
        hosts = urlsplit(dsn).netloc.rpartition("@")[2].split(",")  # one, or several
        return all(urlsplit(f"//{host}").port != 0 for host in hosts)
    except ValueError:
        return False


def _credentials(settings: Settings, environ: Mapping[str, str]) -> Sequence[Credential]:
    if not settings.credentials:
        return generate_credentials(settings.state_dir)
    return [_credential(entry, entry.read(environ)) for entry in settings.credentials]


def _credential(entry: ConfiguredCredential, secret: str) -> Credential:
    if entry.scheme == "token":
        return Credential(entry.name, entry.role, token=secret)
    user, _, password = secret.partition(":")
    return Credential(entry.name, entry.role, user=user, password=password)


@contextlib.asynccontextmanager
async def _working(parts: Parts, bell: Doorbell) -> AsyncIterator[Worker]:
    """Run the worker and the count of the backlog inside the block; drain at the end."""
    around = EngineContext(
        catalogue=parts.catalogue,
        playbooks=parts.playbooks,
        ports=parts.backends.ports,
        levers=Mitigators(parts.backends.levers),
        ledger=parts.store.ledger,
        frame=frame_of(parts.settings),
        stopped=parts.stop.halt,
        confirms=parts.settings.slack is not None,
    )
    notifier = open_notifier(parts.settings, parts.environ)
    watching = Watching(parts.telemetry)
    silencing = [one.look for one in _silencing(parts, around)]
    worker = Worker(
        parts.store,
        around,
        functools.partial(decoded, parts.reader),
        notifier,
        watching,
        bell,
        silencing=silencing,
        fetching=Fetching(parts.store.events, parts.fetch).look,
        escalating=Escalating(
            parts.store, around.catalogue, around.frame, parts.channels, _called(parts.telemetry)
        ),
    )
    async with asyncio.TaskGroup() as group:
        loops = group.create_task(worker.run(), name="worker")
        beside = [group.create_task(watch_backlog(parts.store, parts.telemetry), name="backlog")]
        beside.append(group.create_task(parts.room.watch(), name="disk"))
        if isinstance(parts.store.commands, SureCommands):
            beside.append(group.create_task(parts.store.commands.hand_over(), name="pauses"))
        retention = parts.settings.store.retention
        if isinstance(retention, timedelta):
            bounds = every_bound(parts.catalogue, parts.playbooks)
            age = age_of(retention, bounds, parts.catalogue.safeguards)
            beside.append(group.create_task(keep_within(parts.store, age), name="retention"))
        try:
            yield worker
        finally:
            await worker.drain(parts.settings.shutdown_within.total_seconds())
            loops.cancel()
            for task in beside:
                task.cancel()


def _called(telemetry: Telemetry) -> Callable[[str, str], None]:
    return lambda channel, result: telemetry.calls.labels(channel, result).inc()


def names_of(settings: Settings) -> Names:
    """Return the names that callers may call the service by."""
    hosts = frozenset(settings.http.hosts)
    return Names(hosts, only=settings.listen.is_loopback or bool(hosts))


def _closing(telemetry: Telemetry) -> Callable[[str], None]:
    return lambda reason: telemetry.closed_connections.labels(reason).inc()


def _refusing(telemetry: Telemetry) -> Callable[[str], None]:
    return lambda reason: telemetry.rejected_requests.labels(reason).inc()


def _silencing(parts: Parts, around: EngineContext) -> Iterator[Silencing]:
    """Yield one for each Alertmanager that a service wants its alerts to be silenced in."""
    asked = {s.alertmanager for s in parts.catalogue.services if s.silence}
    for name, silences in parts.silences.items():
        if name in asked:
            yield Silencing(name, silences, parts.store, around)


@contextlib.asynccontextmanager
async def _listening(
    parts: Parts, access: Access, worker: Worker
) -> AsyncIterator[tuple[str, int]]:
    settings = parts.settings
    body = BodyLimits(
        max_body=int(settings.max_body), timeout=settings.body_timeout.total_seconds()
    )
    app = build_app(
        _routes(parts, worker, body),
        access,
        Watch(refused=_refusing(parts.telemetry)),
        body,
        names=names_of(settings),
    )
    limits = ConnectionLimits(
        header_timeout=settings.header_timeout.total_seconds(),
        max_connections=settings.max_connections,
        per_address=settings.http.connections_per_address,
        write_timeout=settings.http.write_timeout.total_seconds(),
        stop_within=min(_REQUESTS_WITHIN, settings.shutdown_within.total_seconds()),
    )
    try:
        async with listening(
            app, settings.listen.host, settings.listen.port, limits, _closing(parts.telemetry)
        ) as address:
            try:
                yield address
            finally:  # it says that it stops for as long as there is work to end
                app[STOPPING].set()
                await worker.drain(settings.shutdown_within.total_seconds())
    except OSError as error:
        if error.errno not in _CANNOT_LISTEN:
            raise
        raise ConfigError(f"cannot listen on {settings.listen}: {error.strerror}") from error


def _routes(parts: Parts, worker: Worker, body: BodyLimits) -> tuple[Route, ...]:
    store = parts.store
    inbox = CountingInbox(store, worker, parts.telemetry, parts.reader)

    def overloaded() -> str | None:
        waiting = store.database.backlog
        if waiting > BACKLOG:
            return f"{waiting} writes wait for the store"
        return parts.room.problem

    ready = Readiness(parts.room, store.records.ping, store.probe.write).problems
    replays = Replays(
        inbox=inbox,
        stored_alerts=inbox.stored_alerts,
        playbooks=[cls.name for cls in parts.playbooks],
        fetch=parts.fetch,
        limits=body,
        reader=parts.reader,
    )
    loaded = LoadedPlaybooks(parts.catalogue, parts.playbooks)
    fetching = None if parts.fetch is None else parts.bell.fetches.set
    events = CountingEvents(store, parts.telemetry, fetching)
    turnstile = Turnstile(parts.shared.wait, _refusing(parts.telemetry))
    door = Door(
        inbox=inbox, overloaded=overloaded, limits=body, reader=parts.reader, turnstile=turnstile
    )
    routes = (
        *webhook_routes(door),
        *pagerduty_routes(incident_door(door, events, parts.signing_secrets)),
        *slack_routes(open_desk(parts.settings, parts.environ, store, parts.telemetry)),
        *health_routes(ready, lambda: (parts.telemetry.render(), Telemetry.content_type)),
        *replay_routes(replays),
        *live_routes(parts.shared.hub),
        *api_routes(store.records, loaded, store.commands, Windows(store, parts.catalogue)),
        *audit_routes(store.audit),
    )
    return with_description(routes, metadata.version("remediator"))
