"""The scenario ``breaker``: a circuit breaker stays open although its upstream is well again."""

from __future__ import annotations

import asyncio
import hmac
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from aiohttp import web

from remediator.cli.demo.alerts import AlertRule
from remediator.cli.demo.sandbox import VERIFICATION, Site
from remediator.cli.demo.scenario import DemoFailed, Rate, Scenario, World
from remediator.cli.demo.serving import serving
from remediator.cli.demo.story import BAD, DOUBT, GOOD, Fact, Told
from remediator.config.settings import Settings
from remediator.model.views import IncidentView

NAME = "payments"
WRITER_TOKEN = "writer-of-the-demo"  # noqa: S105 - guards nothing but the demo's own service
LAST_CALLS = 10
"""Calls that the breaker judges."""
RATE = 20.0
"""Orders a second."""
WAIT = "3s"
"""The breaker's own time until it would try again."""
CALM, OUTAGE = 2.5, 2.0
"""Seconds until the payments go down, and that they are down."""


@dataclass
class Payments:
    """The upstream."""

    down: bool = False

    def routes(self) -> list[web.RouteDef]:
        """Take payments, and say whether all is well."""

        async def answer(_: web.Request) -> web.Response:
            status = "DOWN" if self.down else "UP"
            return web.json_response({"status": status}, status=503 if self.down else 200)

        return [web.post("/payments", answer), web.get("/health", answer)]


@dataclass
class Breaker:
    """A circuit breaker that opens when half of its last calls failed, and stays open.

    As many do: it would try again at the first call after ``WAIT``, but its service turns all orders
    away before they reach it, so that no call ever comes.
    """

    calls: deque[bool] = field(default_factory=lambda: deque(maxlen=LAST_CALLS))
    """Whether each of the last calls succeeded."""
    is_open: bool = False

    @property
    def failure_rate(self) -> float:
        """Share of the last calls that failed."""
        return self.calls.count(False) / len(self.calls) if self.calls else 0.0

    def note(self, *, succeeded: bool) -> None:
        """Count one call."""
        self.calls.append(succeeded)
        full = len(self.calls) == self.calls.maxlen
        self.is_open = self.is_open or (full and self.failure_rate >= 0.5)

    def close(self) -> None:
        """Begin anew."""
        self.calls.clear()
        self.is_open = False

    def as_json(self) -> dict[str, Any]:
        """Describe it as Spring Boot's actuator does."""
        state = "OPEN" if self.is_open else "CLOSED"
        return {"state": state, "failureRate": f"{self.failure_rate:.1%}"}


@dataclass
class Orders:
    """The service that is looked after: it charges every order through its breaker."""

    breakers: dict[str, Breaker] = field(
        default_factory=lambda: {NAME: Breaker(), "mail": Breaker()}
    )
    resets: list[str] = field(default_factory=list)
    """Breakers that calls asked it to close, in order; refused calls included."""
    served: int = 0
    refused: int = 0
    """Orders that the open breaker refused."""
    failed: int = 0

    @property
    def breaker(self) -> Breaker:
        """The breaker before the payments."""
        return self.breakers[NAME]

    def routes(self) -> list[web.RouteDef]:
        """Serve the breakers as Spring Boot's actuator does."""
        path = "/actuator/circuitbreakers"
        return [web.get(path, self._list), web.post(path + "/{name}", self._reset)]

    async def _list(self, _: web.Request) -> web.Response:
        found = {name: breaker.as_json() for name, breaker in self.breakers.items()}
        return web.json_response({"circuitBreakers": found})

    async def _reset(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.resets.append(name)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(token.encode(), WRITER_TOKEN.encode()):
            return web.json_response({"error": "not allowed"}, status=403)
        if name not in self.breakers or await request.json() != {"updateState": "CLOSE"}:
            return web.json_response({"error": "no such breaker or state"}, status=400)
        self.breakers[name].close()
        return web.json_response(self.breakers[name].as_json())

    async def order(self, http: httpx.AsyncClient) -> None:
        """Take one order."""
        if self.breaker.is_open:
            self.refused += 1
            return
        try:
            answer = await http.post("/payments")
            succeeded = answer.is_success
        except httpx.HTTPError:
            succeeded = False
        self.breaker.note(succeeded=succeeded)
        self.served += succeeded
        self.failed += not succeeded


@dataclass(frozen=True)
class BreakerLook:
    """The figures at one moment."""

    is_open: bool
    failure_rate: float
    down: bool
    """Whether the payments are down."""
    refused: int
    resets: int
    rate: float

    @property
    def well(self) -> bool:
        """Whether orders flow through a closed breaker."""
        return not self.is_open and self.rate >= RATE / 2

    def __str__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"breaker {NAME} is {state}, {self.rate:.0f} orders/s, {self.refused} refused"

    def news(self, told: Told) -> Iterator[Fact]:
        """Yield what is new since the last look."""
        if self.rate > 0 and told.first("calm"):
            yield Fact(f"Orders are charged, {self.rate:.0f}/s, through the breaker {NAME}")
        if self.down and told.first("down"):
            yield Fact("The payments service goes down: 503 to every call", style=DOUBT)
        if self.is_open and told.first("open"):
            yield Fact(
                f"The breaker {NAME} opens: {self.failure_rate:.0%} of its last calls failed;"
                " every order is refused",
                style=BAD,
            )
        if "down" in told and not self.down and told.first("up"):
            yield Fact(
                "The payments service is well again, but the breaker stays open: the remediator"
                f" waits for twice its wait duration of {WAIT}, to see whether it closes by itself"
            )
        if "open" in told and not self.is_open and told.first("closed"):
            yield Fact(f"The breaker {NAME} is closed: {self.resets} reset call so far", style=GOOD)


@dataclass(kw_only=True)
class BreakerWorld(World):
    """Two services, one of which calls the other."""

    orders: Orders
    payments: Payments
    payments_url: str
    rate: Rate = field(default_factory=Rate)

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Send orders; the payments go down for a while."""
        tasks = [
            asyncio.create_task(self._customers(), name="customers"),
            asyncio.create_task(self._outage(), name="outage"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _customers(self) -> None:
        async with httpx.AsyncClient(base_url=self.payments_url, trust_env=False) as http:
            while True:
                await self.orders.order(http)
                await asyncio.sleep(1 / RATE)

    async def _outage(self) -> None:
        await asyncio.sleep(CALM)
        self.payments.down = True
        await asyncio.sleep(OUTAGE)
        self.payments.down = False

    def look(self, now: float) -> BreakerLook:
        """Read the figures at the second ``now``."""
        return BreakerLook(
            is_open=self.orders.breaker.is_open,
            failure_rate=self.orders.breaker.failure_rate,
            down=self.payments.down,
            refused=self.orders.refused,
            resets=len(self.orders.resets),
            rate=self.rate.at(now, self.orders.served),
        )

    def ending(self, incident: IncidentView) -> Fact:
        """Require that the service itself counted exactly one reset."""
        if self.orders.resets != [NAME]:
            raise DemoFailed(f"one reset of {NAME} was due, but were made: {self.orders.resets}")
        return Fact(
            "1 reset call was made, as the service counted; orders are charged again:"
            f" {self.orders.served} served, {self.orders.refused} refused,"
            f" {self.orders.failed} failed",
            style=GOOD,
        )


def any_open(figures: Mapping[str, Mapping[str, Mapping[str, str]]]) -> bool:
    """The rule's expression: a breaker is open."""
    return any(one["state"] == "OPEN" for one in figures["circuitBreakers"].values())


@asynccontextmanager
async def _open(site: Site) -> AsyncIterator[World]:
    site.on_step("opening the two services")
    orders, payments = Orders(), Payments()
    async with serving(payments.routes()) as payments_url, serving(orders.routes()) as orders_url:
        yield BreakerWorld(
            runs=f"Two HTTP services run: orders on {orders_url},"
            f" and what it calls, payments, on {payments_url}",
            figures_url=f"{orders_url}/actuator/circuitbreakers",
            settings=_settings(site, orders_url, payments_url),
            orders=orders,
            payments=payments,
            payments_url=payments_url,
        )


def _settings(site: Site, orders_url: str, payments_url: str) -> Settings:
    admin = {
        "url": orders_url,
        "breakers": "actuator",
        "writer_token_file": site.secret("writer.token", WRITER_TOKEN),
    }
    playbook = {
        "mode": "auto",
        "upstreams": {NAME: {"role": "upstream", "path": "/health"}},
        "probe_gap": "500ms",
        "look_again": "1s",
        "wait_duration": WAIT,
        "clean_for": WAIT,
        "verification": VERIFICATION,
    }
    return site.configure(
        {"http": {"orders-admin": admin, "payments": {"url": payments_url}}},
        {
            "targets": {"admin": "orders-admin", "upstream": "payments"},
            "playbooks": {"CircuitBreakerOpen": playbook},
        },
    )


BREAKER = Scenario(
    title="A circuit breaker will now open, and stay open; remediator is watching it.",
    alert=AlertRule(
        name="CircuitBreakerOpen",
        summary=f"The circuit breaker {NAME} of the orders service is open.",
        holds=any_open,
        extra={"breaker": NAME},
    ),
    lever="reset_breaker",
    parts="The two services were small ones of the demo, with a circuit breaker that counts real"
    " calls; the webhook, the API, the probes, the reset and the Slack client were real.",
    open=_open,
)
