"""Opens the clients of every configured backend, each only where it is configured."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remediator.config.sections import AlertmanagerBackend, HttpBackend, SecretRef, Section
from remediator.config.settings import Settings
from remediator.config.slack import Places
from remediator.model.catalog import Catalogue, Service
from remediator.model.errors import ConfigError
from remediator.model.notification import Notifier
from remediator.model.ports import Mitigator, Port, Silences
from remediator.model.views import Frame
from remediator.notify.sender import LogNotifier
from remediator.playbook.loader import PlaybookSet

if TYPE_CHECKING:
    from remediator.backends.alertmanager import AlertmanagerSilences
    from remediator.backends.http.client import HttpEndpoint


Key = tuple[str, str]
"""Kind and name of a backend."""
_Opened = tuple[dict[Key, Port], dict[Key, tuple[Mitigator, ...]]]
_Opener = Callable[
    [Settings, Mapping[str, str], contextlib.AsyncExitStack], Coroutine[Any, Any, _Opened]
]
"""Opens every backend of its kind in the settings; ``ConfigError`` for one that cannot be."""


@dataclass(frozen=True)
class Backends:
    """What can be read and what can be changed, by kind and name of the backend."""

    readers: Mapping[Key, Port]
    levers: Mapping[Key, tuple[Mitigator, ...]]
    unopened: Mapping[Key, str] = field(default_factory=dict)
    """Why the others could not be opened."""

    def ports(self, service: Service) -> dict[str, Port]:
        """Return the read ports of ``service`` by role."""
        ports = {
            role: self.readers[target.kind, target.name]
            for role, target in service.targets.items()
            if (target.kind, target.name) in self.readers
        }
        if service.prometheus is not None:
            ports["prometheus"] = self.readers["prometheus", service.prometheus]
        return ports


@contextlib.asynccontextmanager
async def open_backends(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    partly: bool = False,
    playbooks: PlaybookSet | None = None,
) -> AsyncIterator[Backends]:
    """Open all that is configured. A backend that is down does not keep the service from starting.

    Raises ``ConfigError`` with every backend that cannot be opened, such as for a secret or a
    kubeconfig that cannot be read; ``partly`` opens the others and notes it in ``unopened``. With ``playbooks`` the
    levers of clusters can do what those may that are enabled, and are asked for no other right.
    """
    readers: dict[Key, Port] = {}
    levers: dict[Key, tuple[Mitigator, ...]] = {}
    unopened: dict[Key, str] = {}
    async with contextlib.AsyncExitStack() as stack:
        for kind, opener in _openers(settings, playbooks).items():
            for name in getattr(settings.backends, kind):
                try:
                    found, writers = await opener(_only(settings, kind, name), environ, stack)
                except ConfigError as error:
                    unopened[kind, name] = str(error).removeprefix(f"{kind} {name}: ")
                else:
                    readers |= found
                    levers |= writers
        if unopened and not partly:
            wrong = (f"{settings.where('backends', *key)}: {why}" for key, why in unopened.items())
            raise ConfigError("\n".join(wrong))
        yield Backends(readers, levers, unopened)


def _openers(settings: Settings, playbooks: PlaybookSet | None) -> dict[str, _Opener]:
    """Return what opens the backends of each kind."""
    catalogue = settings.catalogue()
    return {
        "prometheus": _prometheus,
        "http": _http,
        "postgres": _postgres,
        "redis": _redis,
        "kubernetes": functools.partial(_kubernetes, catalogue, playbooks),
    }


def _only(settings: Settings, kind: str, name: str) -> Settings:
    """Return ``settings`` with one backend, so that what is wrong with another does not matter."""
    none: dict[str, dict[str, object]] = {k: {} for k in type(settings.backends).model_fields}
    one = none | {kind: {name: getattr(settings.backends, kind)[name]}}
    return settings.model_copy(update={"backends": settings.backends.model_copy(update=one)})


async def _prometheus(
    settings: Settings, environ: Mapping[str, str], stack: contextlib.AsyncExitStack
) -> _Opened:
    from remediator.backends.prometheus import (  # noqa: PLC0415 - only where configured
        PrometheusMetrics,
        PrometheusServer,
    )

    readers: dict[Key, Port] = {}
    for name, backend in settings.backends.prometheus.items():
        server = PrometheusServer(
            url=backend.url,
            name=f"prometheus {name}",
            token=_read(backend.secret("token"), environ),
            basic=_user(backend, environ),
            scrape_interval=backend.scrape_interval,
        )
        metrics = PrometheusMetrics(server)
        readers["prometheus", name] = await stack.enter_async_context(metrics)
    return readers, {}


async def _http(
    settings: Settings, environ: Mapping[str, str], stack: contextlib.AsyncExitStack
) -> _Opened:
    readers: dict[Key, Port] = {}
    levers: dict[Key, tuple[Mitigator, ...]] = {}
    from remediator.backends.http.breakers import (  # noqa: PLC0415 - only where configured
        BreakerMitigator,
    )
    from remediator.backends.http.migrations import (  # noqa: PLC0415 - only where configured
        MigrationMitigator,
    )

    for name, backend in settings.backends.http.items():
        key, shown, url = ("http", name), f"http {name}", backend.url
        endpoint = _endpoint(backend, shown, _read(backend.secret("token"), environ))
        readers[key] = await stack.enter_async_context(endpoint)
        writer = _read(backend.secret("writer_token"), environ)
        found: list[Mitigator] = []
        if backend.breakers and writer:
            lever = BreakerMitigator(url, shape=backend.breakers, name=shown, token=writer)
            found.append(await stack.enter_async_context(lever))
        if backend.migrations and writer:
            mover = MigrationMitigator(url, name=shown, token=writer)
            found.append(await stack.enter_async_context(mover))
        if found:
            levers[key] = tuple(found)
    return readers, levers


def _endpoint(backend: HttpBackend, shown: str, token: str | None) -> HttpEndpoint:
    """Return the reader of all that ``backend`` says the service has."""
    from remediator.backends.http.breakers import (  # noqa: PLC0415 - only where configured
        HttpBreakers,
    )
    from remediator.backends.http.client import (  # noqa: PLC0415 - only where configured
        HttpEndpoint,
    )
    from remediator.backends.http.migrations import (  # noqa: PLC0415 - only where configured
        HttpAdmin,
        HttpMigrations,
    )

    url, shape = backend.url, backend.breakers
    if shape is None:
        kind = HttpMigrations if backend.migrations else HttpEndpoint
        return kind(url, name=shown, token=token)
    both = HttpAdmin if backend.migrations else HttpBreakers
    return both(url, shape=shape, name=shown, token=token)


async def _kubernetes(
    catalogue: Catalogue,
    playbooks: PlaybookSet | None,
    settings: Settings,
    environ: Mapping[str, str],  # noqa: ARG001 - its secrets are in the kubeconfig
    stack: contextlib.AsyncExitStack,
) -> _Opened:
    readers: dict[Key, Port] = {}
    levers: dict[Key, tuple[Mitigator, ...]] = {}
    from remediator.backends.kubernetes.mitigator import (  # noqa: PLC0415 - only where configured
        KubernetesMitigator,
    )
    from remediator.backends.kubernetes.reader import (  # noqa: PLC0415 - only where configured
        KubernetesReader,
    )
    from remediator.service.rbac import (  # noqa: PLC0415 - loads the cluster's client
        levers_by_namespace,
        named_rights,
        with_sets,
        workloads_by_namespace,
    )

    targets = [target for service in catalogue.services for target in service.targets.values()]
    for name, backend in settings.backends.kubernetes.items():
        key = ("kubernetes", name)
        seen = {t.locator["namespace"] for t in targets if (t.kind, t.name) == key}
        sets = with_sets(catalogue, name)
        reader = KubernetesReader(
            backend.kubeconfig, name=f"kubernetes {name}", namespaces=seen, sets_in=sets
        )
        readers[key] = await stack.enter_async_context(reader)
        if backend.writer_kubeconfig is not None:
            writer = backend.writer_kubeconfig
            changes = levers_by_namespace(catalogue, playbooks, name) if playbooks else None
            lever = KubernetesMitigator(
                writer,
                name=f"kubernetes {name}",
                namespaces=seen,
                sets_in=sets,
                changes=changes,
                named=named_rights(workloads_by_namespace(catalogue, name)),
                hands_off=settings.limits.hands_off,
            )
            levers[key] = (await stack.enter_async_context(lever),)
    return readers, levers


async def _postgres(
    settings: Settings, environ: Mapping[str, str], stack: contextlib.AsyncExitStack
) -> _Opened:
    readers: dict[Key, Port] = {}
    levers: dict[Key, tuple[Mitigator, ...]] = {}
    from remediator.backends.postgres.mitigator import (  # noqa: PLC0415 - only where configured
        PostgresMitigator,
    )
    from remediator.backends.postgres.reader import (  # noqa: PLC0415 - only where configured
        PostgresReader,
    )

    for name, backend in settings.backends.postgres.items():
        key = ("postgres", name)
        dsn = _read(backend.secret("dsn"), environ) or ""
        readers[key] = await stack.enter_async_context(PostgresReader(dsn, name=name))
        writer = _read(backend.secret("writer_dsn"), environ)
        if writer is not None:
            lever = await stack.enter_async_context(PostgresMitigator(writer, name=name))
            levers[key] = (lever,)
    return readers, levers


async def _redis(
    settings: Settings, environ: Mapping[str, str], stack: contextlib.AsyncExitStack
) -> _Opened:
    readers: dict[Key, Port] = {}
    levers: dict[Key, tuple[Mitigator, ...]] = {}
    from remediator.backends.redis.mitigator import (  # noqa: PLC0415 - only where configured
        RedisMitigator,
    )
    from remediator.backends.redis.reader import (  # noqa: PLC0415 - only where configured
        RedisReader,
    )

    for name, backend in settings.backends.redis.items():
        key, shown = ("redis", name), f"redis {name}"
        url = _read(backend.secret("url"), environ) or ""
        readers[key] = await stack.enter_async_context(RedisReader(url, name=shown))
        writer = _read(backend.secret("writer_url"), environ)
        if writer is not None:
            lever = RedisMitigator(writer, prefixes=backend.cache_prefixes, name=shown)
            levers[key] = (await stack.enter_async_context(lever),)
    return readers, levers


@contextlib.asynccontextmanager
async def open_silences(
    settings: Settings, environ: Mapping[str, str], *, partly: bool = False
) -> AsyncIterator[dict[str, Silences]]:
    """Open every Alertmanager, by name; one that is down keeps nothing from starting.

    Raises ``ConfigError`` for a secret that cannot be read; ``partly`` leaves such ones out.
    """
    opened: dict[str, Silences] = {}
    async with contextlib.AsyncExitStack() as stack:
        for name, backend in settings.backends.alertmanager.items():
            try:
                silences = _silences(name, backend, environ)
            except ConfigError:
                if partly:
                    continue
                raise
            opened[name] = await stack.enter_async_context(silences)
        yield opened


def _silences(
    name: str, backend: AlertmanagerBackend, environ: Mapping[str, str]
) -> AlertmanagerSilences:
    from remediator.backends.alertmanager import (  # noqa: PLC0415 - only where configured
        AlertmanagerSilences,
    )

    user = _user(backend, environ)
    return AlertmanagerSilences(
        backend.url,
        name=f"alertmanager {name}",
        token=_read(backend.secret("token"), environ),
        basic=None if user is None else ":".join(user),
    )


def open_notifier(settings: Settings, environ: Mapping[str, str]) -> Notifier:
    """Return the chat that is configured, or the log where none is."""
    slack = settings.slack
    if slack is None:
        return LogNotifier()
    from remediator.notify.slack import SlackBot, SlackWebhook  # noqa: PLC0415 - as above

    token = _read(slack.secret("token"), environ)
    buttons = slack.secret("signing_secret") is not None
    places = Places(slack, settings.systems)
    if token is not None:
        return SlackBot(token, places.of, slack.api_url, buttons=buttons)
    url = _read(slack.secret("webhook_url"), environ) or ""
    return SlackWebhook(url, places.of, buttons=buttons)


def frame_of(settings: Settings) -> Frame:
    """Return what all texts for humans have in common."""
    return Frame(timezone=settings.timezone, public_url=settings.public_url)


def _user(backend: Section, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the user and the password of basic authentication; the message holds neither."""
    reference = backend.secret("basic")
    if reference is None:
        return None
    user, colon, password = reference.read(environ).partition(":")
    if not (user and colon and password):
        raise ConfigError(f"{reference} should hold user:password")
    return user, password


def _read(reference: SecretRef | None, environ: Mapping[str, str]) -> str | None:
    return None if reference is None else reference.read(environ)
