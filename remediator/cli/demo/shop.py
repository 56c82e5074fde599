"""A small order application under continuous load, with a bug that leaks its connections.

It plays the customer's system: its own asyncpg pool, a checkout in a transaction, and an admin
endpoint. The bug is a real one of its kind: an order with an expired voucher leaves the checkout
through a path that neither rolls back nor returns the connection. Each such order keeps a row
locked; later orders for that item wait on the lock, each with a connection of its own, until the
pool is exhausted. Nothing here helps the remediator: the pool recovers only when the forgotten
sessions end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count

import asyncpg
from aiohttp import web

from remediator.cli.demo.serving import serving

APP_ROLE = "orders_app"
ITEMS = ("teapot", "kettle", "mug", "tray")
SCHEMA = f"""
CREATE TABLE stock (item text PRIMARY KEY, quantity bigint NOT NULL);
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item text NOT NULL REFERENCES stock,
    placed_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO stock SELECT unnest(ARRAY{list(ITEMS)!r}), 1000000;
GRANT SELECT, UPDATE ON stock TO {APP_ROLE};
GRANT SELECT, INSERT ON orders TO {APP_ROLE};
"""
"""What the owner of an empty database runs once, after the role was made."""


class ExpiredVoucher(Exception):
    """The order came with a voucher that is no longer valid."""


@dataclass(frozen=True)
class Order:
    """One request of a customer."""

    item: str
    expired_voucher: bool = False


@dataclass(frozen=True)
class Load:
    """What the customers do."""

    rate: float = 20.0
    """Orders a second."""
    calm: int = 40
    """Orders before the first expired voucher."""
    expired_vouchers: int = 3
    """Orders that run into the bug; at most one an item."""

    def orders(self) -> Iterator[Order]:
        """Yield orders for ever: calm ones, then the bad ones, then calm ones again."""
        chosen = random.Random(7)  # noqa: S311 - the same load on every run
        for number in count():
            bad = number - self.calm
            if 0 <= bad < min(self.expired_vouchers, len(ITEMS)):
                yield Order(ITEMS[bad], expired_voucher=True)
            else:
                yield Order(chosen.choice(ITEMS))


@dataclass
class Durations:
    """How long requests take; one that still waits counts with its time so far."""

    window: float = 2.0
    """Seconds for which a request that ended counts."""
    ended: deque[tuple[float, float]] = field(default_factory=deque)
    """When it ended, and the seconds that it took."""
    begun: dict[int, float] = field(default_factory=dict)
    """When those began that are under way."""
    numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure one request: the block."""
        number, start = next(self.numbers), time.monotonic()
        self.begun[number] = start
        try:
            yield
        finally:
            del self.begun[number]
            now = time.monotonic()
            self.ended.append((now, now - start))

    def p95(self) -> float:
        """Return the seconds within which 95 of 100 are done; 0 when there was none."""
        now = time.monotonic()
        while self.ended and self.ended[0][0] < now - self.window:
            self.ended.popleft()
        taken = sorted([*(took for _, took in self.ended), *(now - b for b in self.begun.values())])
        return taken[int(len(taken) * 0.95)] if taken else 0.0


@dataclass
class Shop:
    """The application: its pool and what it has counted since the start."""

    pool: asyncpg.Pool[asyncpg.Record] = field(repr=False)
    patience: float
    waiting: int = 0
    """Orders that wait for a connection now."""
    served: int = 0
    failed: int = 0
    leaked: int = 0
    durations: Durations = field(default_factory=Durations)

    @property
    def active(self) -> int:
        """Connections that are checked out."""
        return self.pool.get_size() - self.pool.get_idle_size()

    @property
    def size(self) -> int:
        """Connections that the pool may open."""
        return self.pool.get_max_size()

    async def order(self, order: Order) -> None:
        """Take one order and count how it ended."""
        try:
            with self.durations.measured():
                await self.checkout(order)
            self.served += 1
        except ExpiredVoucher:
            self.leaked += 1
            self.failed += 1
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            self.failed += 1

    async def checkout(self, order: Order) -> None:
        """Take one item out of the stock and write the order down."""
        with self._queued():
            connection = await self.pool.acquire(timeout=self.patience)
        try:
            await self._sell(connection, order)
        except ExpiredVoucher:
            raise  # the bug: no rollback, and the connection never goes back to the pool
        except BaseException:
            await self.pool.release(connection)
            raise
        await self.pool.release(connection)

    @contextmanager
    def _queued(self) -> Iterator[None]:
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def _sell(
        self, connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], order: Order
    ) -> None:
        await connection.execute("BEGIN")
        await connection.fetchval(
            "SELECT quantity FROM stock WHERE item = $1 FOR UPDATE", order.item
        )
        if order.expired_voucher:
            raise ExpiredVoucher(order.item)
        await connection.execute(
            "UPDATE stock SET quantity = quantity - 1 WHERE item = $1", order.item
        )
        await connection.execute("INSERT INTO orders (item) VALUES ($1)", order.item)
        await connection.execute("COMMIT")


@dataclass(frozen=True)
class RunningShop:
    """A shop that is open, and where its admin endpoint is."""

    shop: Shop
    admin_url: str


@asynccontextmanager
async def open_shop(
    dsn: str, *, pool_size: int = 8, patience: float = 5.0
) -> AsyncIterator[RunningShop]:
    """Run the shop on the database at ``dsn`` (as ``orders_app``) until the block is left.

    An order waits ``patience`` seconds for a free connection.
    """
    pool = await asyncpg.create_pool(
        dsn, min_size=1, max_size=pool_size, server_settings={"application_name": "orders"}
    )
    shop = Shop(pool, patience)
    try:
        async with _admin(shop) as url:
            yield RunningShop(shop, url)
    finally:
        pool.terminate()


@asynccontextmanager
async def customers(shop: Shop, load: Load) -> AsyncIterator[None]:
    """Send the shop its load until the block is left."""
    sending = asyncio.create_task(_send(shop, load), name="customers")
    try:
        yield
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _send(shop: Shop, load: Load) -> None:
    """Send orders at the given rate, late ones at once, each on its own."""
    clock = asyncio.get_running_loop().time
    start = clock()
    async with asyncio.TaskGroup() as group:
        for number, order in enumerate(load.orders()):
            await asyncio.sleep(max(0.0, start + number / load.rate - clock()))
            group.create_task(shop.order(order), name=f"order {number}")


@asynccontextmanager
async def _admin(shop: Shop) -> AsyncIterator[str]:
    """Serve the shop's figures on a free loopback port, as JSON."""

    async def pool(_: web.Request) -> web.Response:
        return web.json_response({"active": shop.active, "max": shop.size, "waiting": shop.waiting})

    async def orders(_: web.Request) -> web.Response:
        return web.json_response({"served": shop.served, "failed": shop.failed})

    async def latency(_: web.Request) -> web.Response:
        return web.json_response({"p95_ms": round(shop.durations.p95() * 1000, 1)})

    routes = {"/pool": pool, "/orders": orders, "/latency": latency}
    async with serving([web.get(path, answer) for path, answer in routes.items()]) as url:
        yield url
