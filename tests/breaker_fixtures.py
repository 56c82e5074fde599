"""A real HTTP service with circuit breakers, in both shapes, that counts what it is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.scripted_http import serving

READER, WRITER = "reader-token", "writer-token"
SHAPES = ("actuator", "admin")


@dataclass
class BreakerService:
    """Its breakers by name, as the actuator writes their states, and its health."""

    breakers: dict[str, str]
    url: str = ""
    health: list[int] = field(default_factory=lambda: [200])
    """Statuses of the coming health checks; the last one stays."""
    posts: list[str] = field(default_factory=list)
    probes: int = 0
    created: list[str] = field(default_factory=list)
    effective: bool = True
    """Whether a reset closes the breaker."""
    drop: bool = False
    """Whether the connection breaks after a reset took effect."""
    status: int = 200
    """What a reset is answered with."""
    listing: Any = None
    """What a list is answered with, when it is not the breakers."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Play Resilience4j's actuator, the admin interface, and a health check."""
        path = request.raw_path
        if path == "/health":
            return self._health()
        if path.startswith("/redirected"):
            raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/evil")
        if request.method == "POST":
            return await self._reset(request, request.path.rpartition("/")[2])
        if request.headers.get("Authorization") not in {f"Bearer {READER}", f"Bearer {WRITER}"}:
            return web.json_response({}, status=401)
        if self.listing is not None:
            return web.json_response(self.listing)
        if path == "/actuator/circuitbreakers":
            return web.json_response({"circuitBreakers": self._actuator()})
        if path == "/admin/circuit-breaker/status":
            return web.json_response(self._admin())
        return web.json_response({}, status=404)

    def _health(self) -> web.Response:
        self.probes += 1
        status = self.health.pop(0) if len(self.health) > 1 else self.health[0]
        return web.json_response({"status": "UP" if status == 200 else "DOWN"}, status=status)

    def _actuator(self) -> dict[str, Any]:
        return {
            name: {"state": state, "failureRate": "62.5%", "bufferedCalls": 8}
            for name, state in self.breakers.items()
        }

    def _admin(self) -> list[dict[str, Any]]:
        return [
            {"pair": name, "open": state == "OPEN", "reason": "error rate"}
            for name, state in self.breakers.items()
        ]

    async def _reset(self, request: web.Request, name: str) -> web.StreamResponse:
        self.posts.append(request.path)
        if request.headers.get("Authorization") != f"Bearer {WRITER}":
            return web.json_response({}, status=403)
        if request.path.startswith("/actuator/"):
            assert await request.json() == {"updateState": "CLOSE"}
        if name not in self.breakers:
            self.created.append(name)
        if self.effective:
            self.breakers[name] = "CLOSED"
        if self.drop:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({}, status=self.status)


@asynccontextmanager
async def breaker_service(**breakers: str) -> AsyncIterator[BreakerService]:
    """Serve ``breakers`` on a free port."""
    service = BreakerService(dict(breakers))
    async with serving(service.answer) as url:
        service.url = url
        yield service
