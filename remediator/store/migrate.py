"""Schema migrations: forward only, one process at a time, run at start and by ``migrate``."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from remediator.model.errors import ConfigError, StoreUnavailable
from remediator.store.database import Database
from remediator.store.engines import Pooling

MIGRATIONS = Path(__file__).parent / "migrations"
_LOOKS_AGAIN = 2.0
"""Seconds between two looks whether the store is there."""

_log = structlog.get_logger(__name__)


async def require_schema(database: Database, wait: timedelta) -> str:
    """Bring the schema to this version; return what was done.

    Waits so long for a store that is away. Raises ``StoreUnavailable``, and ``ConfigError`` when
    the schema is newer than this program.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + wait.total_seconds()
    while True:
        try:
            return await _bring(database)
        except StoreUnavailable as error:
            if clock() >= end:
                raise
            _log.warning("waiting_for_the_store", reason=str(error), seconds=round(end - clock()))
        await asyncio.sleep(_LOOKS_AGAIN)


async def _bring(database: Database) -> str:
    pooling = await database.meet()
    if pooling is not Pooling.NONE:
        _log.info("store_behind_a_pooler", mode=pooling)
    return await database.migrate(lambda connection: connection.run_sync(_upgrade))


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
