"""Schema migrations: forward only, one process at a time, run at start and by ``migrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from remediator.errors import ConfigError
from remediator.store.database import SERIAL_LOCK, Database

MIGRATIONS = Path(__file__).parent / "migrations"


async def require_schema(database: Database) -> str:
    """Bring the schema to this version; return what was done.

    Raises ``ConfigError`` when the schema is newer than this program.
    """

    async def operation(connection: AsyncConnection) -> str:
        if database.is_postgres:
            lock = text("SELECT pg_advisory_xact_lock(:key)")
            await connection.execute(lock, {"key": SERIAL_LOCK + 1})
        return await connection.run_sync(_upgrade)

    return await database.write(operation)


def _upgrade(connection: Connection) -> str:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current == head:
        return f"the schema is at version {head} already"
    if current is not None and not _known(scripts, current):
        raise ConfigError(
            f"the store's schema is at version {current}, which this program does not know"
            f" (it knows up to {head}): start a newer version of the program"
        )
    command.upgrade(config, "head")
    return f"the schema was brought from {current or 'nothing'} to version {head}"


def _known(scripts: Any, revision: str) -> bool:
    return any(script.revision == revision for script in scripts.walk_revisions())
