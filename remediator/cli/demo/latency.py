"""The scenario ``latency``: a job forgets its transaction, and every order waits for its lock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from remediator.cli.demo.alerts import AlertRule
from remediator.cli.demo.database import ShopDatabase, open_database
from remediator.cli.demo.sandbox import VERIFICATION, Site
from remediator.cli.demo.scenario import DemoFailed, Rate, Scenario, World
from remediator.cli.demo.shop import APP_ROLE, Load, Shop, customers, open_shop
from remediator.cli.demo.story import BAD, DOUBT, GOOD, Fact, Told
from remediator.config.settings import Settings
from remediator.model.views import IncidentView

ARCHIVE_ROLE = "orders_archive"
ARCHIVE = f"""
CREATE ROLE {ARCHIVE_ROLE} LOGIN;
GRANT SELECT, DELETE ON orders TO {ARCHIVE_ROLE};
"""
LIMIT = 500
"""Milliseconds within which 95 of 100 orders have to be answered."""
CALM = 2.5
"""Seconds before the archive job begins."""
POOL_SIZE = 60
"""Connections that the shop may open: enough for all that wait, so that it is only slow."""


@dataclass(frozen=True)
class LatencyLook:
    """The shop's figures at one moment."""

    p95: float
    """Milliseconds."""
    waiting: int
    """Orders under way."""
    rate: float
    """Orders served a second; 0 in the first second."""
    holder: int | None
    """The archive job's pid, once it holds the lock."""
    enough: float = 0.0
    """Orders a second from which on they flow."""

    @property
    def well(self) -> bool:
        """Whether orders flow within the limit."""
        return self.p95 <= LIMIT and self.rate >= self.enough

    def __str__(self) -> str:
        return f"p95 {self.p95:.0f} ms, {self.waiting} orders under way, {self.rate:.0f} orders/s"

    def news(self, told: Told) -> Iterator[Fact]:
        """Yield what is new since the last look."""
        if self.rate > 0 and told.first("calm"):
            yield Fact(
                f"The shop serves {self.rate:.0f} orders/s, 95 of 100 within {self.p95:.0f} ms"
                f" (limit {LIMIT} ms)"
            )
        if self.holder and told.first("locked"):
            yield Fact(
                f"A job that archives orders (pid {self.holder}) locks the table orders, and then"
                " waits for a file share that does not answer: idle in its transaction",
                style=DOUBT,
            )
        if self.p95 > LIMIT and told.first("slow"):
            yield Fact(f"Orders wait for that lock: {self}", style=BAD)
        if "slow" in told and self.p95 <= LIMIT and told.first("recovered"):
            yield Fact(f"Orders are fast again: {self}", style=GOOD)


@dataclass
class ArchiveJob:
    """A job with a bug: it calls the world outside while it holds a lock."""

    dsn: str = field(repr=False)
    pid: int | None = None
    """Of its session, once it holds the lock."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Begin after the calm, and forget the transaction until the block is left."""
        job = asyncio.create_task(self._archive(), name="archive job")
        try:
            yield
        finally:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)

    async def _archive(self) -> None:
        await asyncio.sleep(CALM)
        connection = await asyncpg.connect(
            self.dsn, server_settings={"application_name": "orders-archive"}
        )
        try:
            await connection.execute("BEGIN; LOCK TABLE orders IN EXCLUSIVE MODE")
            self.pid = connection.get_server_pid()
            await asyncio.Event().wait()  # the file share that never answers
        finally:
            connection.terminate()


@dataclass(kw_only=True)
class LatencyWorld(World):
    """The shop and the job beside it."""

    shop: Shop
    job: ArchiveJob
    load: Load = field(default_factory=lambda: Load(rate=6, expired_vouchers=0))
    rate: Rate = field(default_factory=Rate)

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Send orders; the job begins after a while."""
        async with customers(self.shop, self.load), self.job.running():
            yield

    def look(self, now: float) -> LatencyLook:
        """Read the shop's figures at the second ``now``."""
        return LatencyLook(
            p95=self.shop.durations.p95() * 1000,
            waiting=len(self.shop.durations.begun),
            rate=self.rate.at(now, self.shop.served),
            holder=self.job.pid,
            enough=self.load.rate / 2,
        )

    def ending(self, incident: IncidentView) -> Fact:
        """Require that the job's session, and nothing else, was ended."""
        ended = [item.key for mitigation in incident.mitigations for item in mitigation.items]
        if ended != [f"pid {self.job.pid}"]:
            raise DemoFailed(f"only pid {self.job.pid} held the lock, but ended were {ended}")
        return Fact(
            f"1 session was ended, the one that held the lock; nothing was scaled:"
            f" {self.shop.served} orders served, {self.shop.failed} failed",
            style=GOOD,
        )


def slow(figures: Mapping[str, float]) -> bool:
    """The rule's expression: ``p95_ms > 500``."""
    return figures["p95_ms"] > LIMIT


@asynccontextmanager
async def _open(site: Site) -> AsyncIterator[World]:
    async with (
        open_database(site, more=ARCHIVE, max_connections=POOL_SIZE + 20) as database,
        open_shop(database.dsn(), pool_size=POOL_SIZE) as running,
    ):
        yield LatencyWorld(
            runs=f"{database.where} runs, with the database of a small shop",
            figures_url=f"{running.admin_url}/latency",
            settings=_settings(site, database, running.admin_url),
            shop=running.shop,
            job=ArchiveJob(database.dsn(ARCHIVE_ROLE)),
        )


def _settings(site: Site, database: ShopDatabase, admin_url: str) -> Settings:
    playbook = {
        "mode": "auto",
        "app_roles": [APP_ROLE, ARCHIVE_ROLE],
        "latency_path": "/latency",
        "latency_field": "p95_ms",
        "latency_limit": LIMIT,
        "idle_tx_s": 60,
        "settle": "2500ms",  # the shop's figure looks 2 seconds back
        "verification": VERIFICATION,
    }
    return site.configure(
        {"postgres": {"orders-db": database.backend}, "http": {"orders-admin": {"url": admin_url}}},
        {
            "targets": {"database": "orders-db", "admin": "orders-admin"},
            "playbooks": {"HighLatency": playbook},
        },
    )


LATENCY = Scenario(
    title="A small shop on a real PostgreSQL will now become slow; remediator is watching it.",
    alert=AlertRule(
        name="HighLatencyP95",
        summary=f"95 of 100 orders take longer than {LIMIT} ms.",
        holds=slow,
    ),
    lever="end_sessions",
    parts="All of it ran on real parts: PostgreSQL, the webhook, the API, the Slack client.",
    open=_open,
)
