"""Proxies that let the first change through and lose its answer: for HTTP, and for PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yaml
from aiohttp import web
from kubernetes_asyncio import client, config
from yarl import URL

from tests.scripted_http import serving

_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


@dataclass
class Loss:
    """What became of the changes."""

    holds: bool
    """Whether the answer is kept for ever, instead of the connection being broken."""
    changes: list[str] = field(default_factory=list)
    """What was let through."""
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer has been lost: the change has taken effect."""


@dataclass
class LossyProxy(Loss):
    """Stands in front of one HTTP server; a change is a PATCH or POST that is no dry run."""

    session: aiohttp.ClientSession | None = None
    url: str = ""
    upstream: str = ""
    """Base URL of the server."""
    meddle: Callable[[], Awaitable[None]] | None = None
    """What somebody else does right before the first change arrives."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on, and its answer back unless it is to be lost."""
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        target = URL(f"{self.upstream}{request.raw_path}", encoded=True)
        body = await request.read()
        changing = _is_change(request)
        if changing:
            self.changes.append(f"{request.method} {request.path}")
            meddle, self.meddle = self.meddle, None
            await (meddle() if meddle is not None else asyncio.sleep(0))
        assert self.session is not None
        async with self.session.request(
            request.method, target, headers=headers, data=body, allow_redirects=False
        ) as answer:
            content = await answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
        if changing and not self.lost.is_set():
            await self._lose(request)
        return web.Response(status=answer.status, headers=kept, body=content)

    async def _lose(self, request: web.Request) -> None:
        self.lost.set()
        if self.holds:
            await asyncio.Event().wait()  # until the connection breaks, or the server ends
        if request.transport is not None:
            request.transport.abort()


def _is_change(request: web.Request) -> bool:
    asks = "dryRun" in request.query or "/authorization.k8s.io/" in request.path
    return request.method in {"PATCH", "POST"} and not asks


@asynccontextmanager
async def lossy_proxy(
    *, holds: bool, upstream: str = "", tls: ssl.SSLContext | bool = True
) -> AsyncIterator[LossyProxy]:
    """Run a proxy on a free port."""
    connector = aiohttp.TCPConnector(ssl=tls)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        proxy = LossyProxy(holds, session=session, upstream=upstream)
        async with serving(proxy.answer) as url:
            proxy.url = url
            yield proxy


@asynccontextmanager
async def lossy_cluster(
    kubeconfig: Path, reached: Path, *, holds: bool
) -> AsyncIterator[LossyProxy]:
    """Run a proxy before an API server; write to ``reached`` the kubeconfig that leads there."""
    own = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=own, persist_config=False)
    async with lossy_proxy(holds=holds, upstream=str(own.host), tls=_trust(own)) as proxy:
        content = yaml.safe_load(kubeconfig.read_text())  # noqa: ASYNC240 - a small file
        for cluster in content["clusters"]:
            cluster["cluster"] = {"server": proxy.url}
        reached.write_text(yaml.safe_dump(content))  # noqa: ASYNC240 - the same
        yield proxy


def _trust(own: Any) -> ssl.SSLContext:
    trust = ssl.create_default_context(cafile=own.ssl_ca_cert)
    if not own.verify_ssl:
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    if own.cert_file:
        trust.load_cert_chain(own.cert_file, own.key_file)
    return trust


@dataclass
class LossyDatabase(Loss):
    """Stands in front of a PostgreSQL; a change is the execution of a marked statement."""

    dsn: str = ""
    """Of the server itself."""
    marker: bytes = b"pg_terminate_backend"
    port: int = 0
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    def through(self, dsn: str) -> str:
        """Return ``dsn`` by way of the proxy."""
        parts = urlsplit(dsn)
        user = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{user}@127.0.0.1:{self.port}").geturl()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on, both ways."""
        server = urlsplit(self.dsn)
        answers, requests = await asyncio.open_connection(server.hostname, server.port)
        back = asyncio.create_task(_pump(answers, writer))
        try:
            await self._pass(reader, requests, answers, back)
            if not self.holds:
                writer.transport.abort()
            await reader.read()  # until the client leaves
        except OSError:
            return  # it was killed
        finally:
            back.cancel()
            for end in (writer, requests):
                end.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        requests: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        back: asyncio.Task[None],
    ) -> None:
        """Pass requests on until the connection ends, or the answer to a change is lost."""
        marked: set[bytes] = set()
        while data := await reader.read(1 << 16):
            messages = list(_messages(data))
            marked |= {
                _name(text) for kind, text in messages if kind == b"P" and self.marker in text
            }
            bound = {text.split(b"\0", 2)[1] for kind, text in messages if kind == b"B"}
            executes = bool(bound & marked) and any(kind == b"E" for kind, _ in messages)
            if executes:
                self.changes.append(self.marker.decode())
            if executes and not self.lost.is_set():
                back.cancel()
                await asyncio.wait([back])
                requests.write(data)
                await answers.read(1 << 16)
                self.lost.set()
                return
            requests.write(data)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection, until the proxy ends at the latest."""
        task = asyncio.create_task(self.serve(reader, writer))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)


@asynccontextmanager
async def lossy_database(dsn: str, *, holds: bool) -> AsyncIterator[LossyDatabase]:
    """Run a proxy before a PostgreSQL on a free port."""
    proxy = LossyDatabase(holds, dsn=dsn)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in proxy.serving:
            task.cancel()
        await asyncio.gather(*proxy.serving, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)


def _messages(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield a client's messages, kind and content: P(arse), D(escribe), B(ind), E(xecute)..."""
    while len(data) > 4:
        end = 1 + int.from_bytes(data[1:5])
        yield data[:1], data[5:end]
        data = data[end:]


def _name(parse: bytes) -> bytes:
    """Return the name of the statement that a Parse message prepares."""
    return parse.partition(b"\0")[0]
