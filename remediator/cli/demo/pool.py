"""The scenario ``pool``: a bug leaks database connections until the shop's pool is exhausted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from remediator.cli.demo.alerts import AlertRule
from remediator.cli.demo.database import ShopDatabase, open_database
from remediator.cli.demo.sandbox import VERIFICATION, Site
from remediator.cli.demo.scenario import Rate, Scenario, World
from remediator.cli.demo.shop import APP_ROLE, Load, Shop, customers, open_shop
from remediator.cli.demo.story import BAD, DOUBT, GOOD, Fact, Told
from remediator.config.settings import Settings
from remediator.model.views import IncidentView


@dataclass(frozen=True)
class PoolLook:
    """The shop's figures at one moment."""

    active: int
    size: int
    waiting: int
    leaked: int
    rate: float
    """Orders served a second; 0 in the first second."""
    enough: float = 0.0
    """Orders a second from which on they flow."""

    @property
    def exhausted(self) -> bool:
        """Whether every connection is taken and orders wait."""
        return self.waiting > 0 and self.active == self.size

    @property
    def well(self) -> bool:
        """Whether orders flow."""
        return not self.exhausted and self.rate >= self.enough

    def __str__(self) -> str:
        return f"{self._pool}, {self.rate:.0f} orders/s"

    @property
    def _pool(self) -> str:
        return f"{self.active} of {self.size} connections in use, {self.waiting} orders wait"

    def news(self, told: Told) -> Iterator[Fact]:
        """Yield what is new since the last look."""
        if self.rate > 0 and told.first("calm"):
            yield Fact(
                f"The shop serves {self.rate:.0f} orders/s over a pool of {self.size} connections"
            )
        if self.leaked and told.first("bug"):
            yield Fact(
                "The bug strikes: orders with an expired voucher leave their transaction open,"
                " each with a row locked",
                style=DOUBT,
            )
        if self.exhausted and told.first("exhausted"):
            yield Fact(f"The pool is exhausted: {self._pool}", style=BAD)
        if "exhausted" in told and self.waiting == 0 and told.first("recovered"):
            yield Fact(f"The pool recovered: {self._pool}", style=GOOD)


@dataclass(kw_only=True)
class PoolWorld(World):
    """The shop with its leaking pool."""

    shop: Shop
    load: Load = field(default_factory=Load)
    rate: Rate = field(default_factory=Rate)

    def under_load(self) -> AbstractAsyncContextManager[None]:
        """Send orders, a few of which run into the bug."""
        return customers(self.shop, self.load)

    def look(self, now: float) -> PoolLook:
        """Read the shop's figures at the second ``now``."""
        shop = self.shop
        return PoolLook(
            active=shop.active,
            size=shop.size,
            waiting=shop.waiting,
            leaked=shop.leaked,
            rate=self.rate.at(now, shop.served),
            enough=self.load.rate / 2,
        )

    def ending(self, incident: IncidentView) -> Fact:
        """Say how many orders were served."""
        return Fact(
            f"Orders flow again: {self.shop.served} served, {self.shop.failed} failed", style=GOOD
        )


def exhausted(pool: Mapping[str, int]) -> bool:
    """The rule's expression: ``waiting > 0 and active == max``."""
    return pool["waiting"] > 0 and pool["active"] == pool["max"]


@asynccontextmanager
async def _open(site: Site) -> AsyncIterator[World]:
    async with open_database(site) as database, open_shop(database.dsn()) as running:
        yield PoolWorld(
            runs=f"{database.where} runs, with the database of a small shop",
            figures_url=f"{running.admin_url}/pool",
            settings=_settings(site, database, running.admin_url),
            shop=running.shop,
        )


def _settings(site: Site, database: ShopDatabase, admin_url: str) -> Settings:
    playbook = {
        "mode": "auto",
        "app_roles": [APP_ROLE],
        "idle_tx_s": 60,
        "max_kills": 5,
        "pool_path": "/pool",
        "verification": VERIFICATION,
    }
    return site.configure(
        {"postgres": {"orders-db": database.backend}, "http": {"orders-admin": {"url": admin_url}}},
        {
            "targets": {"database": "orders-db", "admin": "orders-admin"},
            "playbooks": {"PoolExhausted": playbook},
        },
    )


POOL = Scenario(
    title="A small shop on a real PostgreSQL will now break; remediator is watching it.",
    alert=AlertRule(
        name="DatabaseConnectionPoolExhausted",
        summary="Every connection of the orders pool is in use and requests wait.",
        holds=exhausted,
    ),
    lever="end_sessions",
    parts="All of it ran on real parts: PostgreSQL, the webhook, the API, the Slack client.",
    open=_open,
)
