"""The demo's world: a PostgreSQL, the shop, a Slack, and the configuration that names them."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import yaml

from remediator.demo.postgres import EmbeddedPostgres, ServerOptions
from remediator.demo.shop import APP_ROLE, SCHEMA, RunningShop, open_shop
from remediator.demo.slack import LocalSlack
from remediator.settings import Settings, load_settings

DATABASE = "shop"
READER, WRITER = "remediator_reader", "remediator_writer"
CHANNEL = "#orders-alerts"
SLACK_TOKEN = "xoxb-demo"  # noqa: S105 - guards nothing but the demo's own Slack
ROLES = f"""
CREATE ROLE {APP_ROLE} LOGIN;
CREATE ROLE {READER} LOGIN IN ROLE pg_monitor;
CREATE ROLE {WRITER} LOGIN IN ROLE pg_monitor, pg_signal_backend;
"""
"""The application, and the remediator's two accounts with no right beyond what they need."""


@dataclass(frozen=True)
class Sandbox:
    """Everything of the demo but the remediator itself."""

    server: str
    """The database server's version and address."""
    shop: RunningShop
    slack: LocalSlack
    settings: Settings


@asynccontextmanager
async def open_sandbox(on_step: Callable[[str], None]) -> AsyncIterator[Sandbox]:
    """Start it in a temporary folder, telling each step; leave nothing behind."""
    on_step("starting PostgreSQL")
    with tempfile.TemporaryDirectory(prefix="remediator-demo-") as name:
        folder = Path(name)
        async with EmbeddedPostgres(ServerOptions(max_connections=30)) as postgres:
            version = await _prepare(await postgres.create_database(DATABASE))
            on_step("opening the shop")
            async with (
                LocalSlack(token=SLACK_TOKEN, channel=CHANNEL) as slack,
                open_shop(postgres.dsn(DATABASE, APP_ROLE)) as shop,
            ):
                settings = _configure(folder, postgres, shop.admin_url, slack.api_url)
                yield Sandbox(
                    server=f"PostgreSQL {version} on 127.0.0.1:{postgres.port}",
                    shop=shop,
                    slack=slack,
                    settings=settings,
                )


async def _prepare(dsn: str) -> str:
    """Make the roles and the shop's tables; return the server's version."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(ROLES + SCHEMA)
        return str(await connection.fetchval("SHOW server_version"))
    finally:
        await connection.close()


def _configure(folder: Path, postgres: EmbeddedPostgres, admin: str, slack: str) -> Settings:
    """Write a real remediator.yaml with its secrets beside it, and load it as ``serve`` does."""
    files = {
        "reader.dsn": postgres.dsn(DATABASE, READER),
        "writer.dsn": postgres.dsn(DATABASE, WRITER),
        "slack.token": SLACK_TOKEN,
    }
    for name, secret in files.items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(secret)
    config = folder / "remediator.yaml"
    config.write_text(yaml.safe_dump(configuration(folder, admin, slack), sort_keys=False))
    return load_settings(config, {"REMEDIATOR_STATE_DIR": str(folder / "state")}, folder)


def configuration(folder: Path, admin: str, slack: str) -> dict[str, Any]:
    """Return the demo's configuration; the times are cut down to seconds, the limits are not."""
    playbook = {
        "mode": "auto",
        "app_roles": [APP_ROLE],
        "idle_tx_s": 2,
        "max_kills": 5,
        "pool_path": "/pool",
        "verification": {
            "interval": "500ms",
            "hold": "3s",
            "hold_resolved": "2s",
            "deadline": "20s",
            "resolve_within": "20s",
        },
    }
    orders = {
        "match": {"service": "orders"},
        "targets": {"database": "orders-db", "admin": "orders-admin"},
        "playbooks": {"PoolExhausted": playbook},
    }
    database = {
        "dsn_file": str(folder / "reader.dsn"),
        "writer_dsn_file": str(folder / "writer.dsn"),
    }
    return {
        "listen": "127.0.0.1:0",
        "slack": {
            "channel": CHANNEL,
            "token_file": str(folder / "slack.token"),
            "api_url": slack,
        },
        "backends": {
            "postgres": {"orders-db": database},
            "http": {"orders-admin": {"url": admin}},
        },
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": orders}}},
    }
