"""A real HTTP service with breakers and migrations that counts what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.scripted_http import serving

READER, WRITER = "reader-token", "writer-token"
SHAPES = ("actuator", "admin")


@dataclass
class BreakerService:
    """Its breakers by name, as the actuator writes their states, its migrations and its health."""

    breakers: dict[str, str]
    url: str = ""
    health: list[int] = field(default_factory=lambda: [200])
    """Statuses of the coming health checks; the last one stays."""
    posts: list[str] = field(default_factory=list)
    posted_at: list[datetime] = field(default_factory=list)
    probes: int = 0
    created: list[str] = field(default_factory=list)
    effective: bool = True
    """Whether a change takes effect."""
    closes_after: float = 0.0
    """Seconds that a breaker is still open after its reset was taken."""
    drop: bool = False
    """Whether the connection breaks after a change was taken."""
    status: int = 200
    """What a change is answered with."""
    listing: Any = None
    """What a list is answered with, when it is not the breakers."""
    migrations: dict[str, float] = field(default_factory=dict)
    """Percentages by pair."""
    moved: list[Any] = field(default_factory=list)
    """Bodies of the calls that set a percentage."""
    status_of_migrations: Any = None
    """What the status of the migrations is answered with, when it is not the migrations."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Play Resilience4j's actuator, the admin interface, and a health check."""
        path = request.raw_path
        if path == "/health":
            return self._health()
        if request.method == "POST":
            return await self._change(request)
        if request.headers.get("Authorization") not in {f"Bearer {READER}", f"Bearer {WRITER}"}:
            return web.json_response({}, status=401)
        if path == "/admin/migration/status":
            return web.json_response(self._moving())
        if self.listing is not None:
            return web.json_response(self.listing)
        if path == "/actuator/circuitbreakers":
            return web.json_response({"circuitBreakers": self._actuator()})
        if path == "/admin/circuit-breaker/status":
            return web.json_response(self._admin())
        return web.json_response({}, status=404)

    async def _change(self, request: web.Request) -> web.StreamResponse:
        if request.raw_path == "/admin/migration/percentage":
            return await self._move(request)
        return await self._reset(request, request.path.rpartition("/")[2])

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

    def _moving(self) -> Any:
        if self.status_of_migrations is not None:
            return self.status_of_migrations
        return [{"pair": p, "current_percentage": at} for p, at in self.migrations.items()]

    async def _move(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {WRITER}":
            return web.json_response({}, status=403)
        assert request.content_type == "application/json", "a form is not read by the service"
        body = await request.json()
        self.moved.append(body)
        if self.effective:
            self.migrations[body["pair"]] = body["percentage"]
        if self.drop:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({}, status=self.status)

    async def _reset(self, request: web.Request, name: str) -> web.StreamResponse:
        self.posts.append(request.path)
        self.posted_at.append(datetime.now(UTC))
        if request.headers.get("Authorization") != f"Bearer {WRITER}":
            return web.json_response({}, status=403)
        if request.path.startswith("/actuator/"):
            assert await request.json() == {"updateState": "CLOSE"}
        if name not in self.breakers:
            self.created.append(name)
        if self.effective and self.closes_after:
            loop = asyncio.get_running_loop()
            loop.call_later(self.closes_after, self.breakers.update, {name: "CLOSED"})
        elif self.effective:
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
