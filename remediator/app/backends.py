"""Opens the clients of every configured backend, each only where it is configured."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from remediator.catalogue import Service
from remediator.ports import Lever, Notifier, Port
from remediator.report.deliver import LogNotifier
from remediator.sections import SecretRef
from remediator.settings import Settings

Key = tuple[str, str]
"""Kind and name of a backend."""


@dataclass(frozen=True)
class Backends:
    """What can be read and what can be changed, by kind and name of the backend."""

    readers: Mapping[Key, Port]
    levers: Mapping[Key, tuple[Lever, ...]]

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
async def open_backends(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[Backends]:
    """Open all that is configured. A backend that is down does not keep the service from starting.

    Raises ``ConfigError`` for a secret that cannot be read.
    """
    async with contextlib.AsyncExitStack() as stack:
        readers: dict[Key, Port] = {}
        readers |= await _prometheus(settings, environ, stack)
        levers: dict[Key, tuple[Lever, ...]] = {}
        for opened in (_http, _postgres, _redis):
            found, writers = await opened(settings, environ, stack)
            readers |= found
            levers |= writers
        clusters, writers = await _kubernetes(settings, stack)
        yield Backends(readers | clusters, levers | writers)


async def _prometheus(
    settings: Settings, environ: Mapping[str, str], stack: contextlib.AsyncExitStack
) -> dict[Key, Port]:
    if not settings.backends.prometheus:
        return {}
    from remediator.adapters.prometheus import (  # noqa: PLC0415 - only where configured
        PrometheusMetrics,
        PrometheusServer,
    )

    readers: dict[Key, Port] = {}
    for name, backend in settings.backends.prometheus.items():
        server = PrometheusServer(
            url=backend.url,
            name=f"prometheus {name}",
            token=_read(backend.secret("token"), environ),
            scrape_interval=backend.scrape_interval,
        )
        metrics = PrometheusMetrics(server)
        readers["prometheus", name] = await stack.enter_async_context(metrics)
    return readers


async def _http(
    settings: Settings, environ: Mapping[str, str], stack: contextlib.AsyncExitStack
) -> tuple[dict[Key, Port], dict[Key, tuple[Lever, ...]]]:
    readers: dict[Key, Port] = {}
    levers: dict[Key, tuple[Lever, ...]] = {}
    if not settings.backends.http:
        return readers, levers
    from remediator.adapters.breakers import (  # noqa: PLC0415 - only where configured
        BreakerLever,
        HttpBreakers,
    )
    from remediator.adapters.http import HttpEndpoint  # noqa: PLC0415 - only where configured

    for name, backend in settings.backends.http.items():
        key, shown, shape = ("http", name), f"http {name}", backend.breakers
        token = _read(backend.secret("token"), environ)
        endpoint = (
            HttpEndpoint(backend.url, name=shown, token=token)
            if shape is None
            else HttpBreakers(backend.url, shape=shape, name=shown, token=token)
        )
        readers[key] = await stack.enter_async_context(endpoint)
        writer = _read(backend.secret("writer_token"), environ)
        if shape is not None and writer is not None:
            lever = BreakerLever(backend.url, shape=shape, name=shown, token=writer)
            levers[key] = (await stack.enter_async_context(lever),)
    return readers, levers


async def _kubernetes(
    settings: Settings, stack: contextlib.AsyncExitStack
) -> tuple[dict[Key, Port], dict[Key, tuple[Lever, ...]]]:
    readers: dict[Key, Port] = {}
    levers: dict[Key, tuple[Lever, ...]] = {}
    if not settings.backends.kubernetes:
        return readers, levers
    from remediator.adapters.kubernetes import (  # noqa: PLC0415 - only where configured
        KubernetesLever,
        KubernetesReader,
    )

    targets = [t for s in settings.catalogue().services for t in s.targets.values()]
    for name, backend in settings.backends.kubernetes.items():
        key = ("kubernetes", name)
        seen = {t.locator["namespace"] for t in targets if (t.kind, t.name) == key}
        reader = KubernetesReader(backend.kubeconfig, name=f"kubernetes {name}", namespaces=seen)
        readers[key] = await stack.enter_async_context(reader)
        if backend.writer_kubeconfig is not None:
            writer = backend.writer_kubeconfig
            lever = KubernetesLever(writer, name=f"kubernetes {name}", namespaces=seen)
            levers[key] = (await stack.enter_async_context(lever),)
    return readers, levers


async def _postgres(
    settings: Settings, environ: Mapping[str, str], stack: contextlib.AsyncExitStack
) -> tuple[dict[Key, Port], dict[Key, tuple[Lever, ...]]]:
    readers: dict[Key, Port] = {}
    levers: dict[Key, tuple[Lever, ...]] = {}
    if not settings.backends.postgres:
        return readers, levers
    from remediator.adapters.postgres import (  # noqa: PLC0415 - only where configured
        PostgresLever,
        PostgresReader,
    )

    for name, backend in settings.backends.postgres.items():
        key = ("postgres", name)
        dsn = _read(backend.secret("dsn"), environ) or ""
        readers[key] = await stack.enter_async_context(PostgresReader(dsn, name=name))
        writer = _read(backend.secret("writer_dsn"), environ)
        if writer is not None:
            lever = await stack.enter_async_context(PostgresLever(writer, name=name))
            levers[key] = (lever,)
    return readers, levers


async def _redis(
    settings: Settings, environ: Mapping[str, str], stack: contextlib.AsyncExitStack
) -> tuple[dict[Key, Port], dict[Key, tuple[Lever, ...]]]:
    readers: dict[Key, Port] = {}
    levers: dict[Key, tuple[Lever, ...]] = {}
    if not settings.backends.redis:
        return readers, levers
    from remediator.adapters.redis import (  # noqa: PLC0415 - only where configured
        RedisLever,
        RedisReader,
    )

    for name, backend in settings.backends.redis.items():
        key, shown = ("redis", name), f"redis {name}"
        url = _read(backend.secret("url"), environ) or ""
        readers[key] = await stack.enter_async_context(RedisReader(url, name=shown))
        writer = _read(backend.secret("writer_url"), environ)
        if writer is not None:
            lever = RedisLever(writer, prefixes=backend.cache_prefixes, name=shown)
            levers[key] = (await stack.enter_async_context(lever),)
    return readers, levers


def open_notifier(settings: Settings, environ: Mapping[str, str]) -> Notifier:
    """Return the chat that is configured, or the log where none is."""
    slack = settings.slack
    if slack is None:
        return LogNotifier()
    from remediator.adapters.slack import SlackBot, SlackWebhook  # noqa: PLC0415 - as above

    token = _read(slack.secret("token"), environ)
    if token is not None:
        return SlackBot(token, slack.channel or "", slack.api_url)
    return SlackWebhook(_read(slack.secret("webhook_url"), environ) or "")


def _read(reference: SecretRef | None, environ: Mapping[str, str]) -> str | None:
    return None if reference is None else reference.read(environ)
