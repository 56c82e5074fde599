"""The keys that the journal is sealed with: configured, or generated beside a SQLite store."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import structlog

from remediator.api.auth import generated_secret
from remediator.config.sections import SecretRef
from remediator.config.settings import Settings
from remediator.model.errors import ConfigError
from remediator.store.audit.chain import Key, Keys

KEY_FILE = "audit-key"
"""Name of the generated key in the state folder."""
STORE_FILE = "remediator.db"
"""Name of the SQLite store in the same."""
UNSEALED = (
    "nothing is sealed, so the audit proves nothing: set audit.key_file or audit.key_env to a key"
    " that all replicas share"
)

Level = Literal["ok", "warning", "error"]

_log = structlog.get_logger(__name__)


def sealing_keys(settings: Settings, environ: Mapping[str, str]) -> Keys | None:
    """Return the keys; None, said loudly, where replicas share a store and no key is configured.

    Raises ``ConfigError`` for a key that cannot be read or is too short, and for a generated one
    that is gone.
    """
    others = tuple(_key(reference, environ) for reference in settings.audit.others)
    reference = settings.audit.secret("key")
    if reference is not None:
        return Keys(_key(reference, environ), others)
    if settings.store.secret("dsn") is None:
        _require_not_lost(settings.state_dir)
        secret = generated_secret(settings.state_dir / KEY_FILE)
        return Keys(Key(secret.encode()), others)
    _log.warning("audit_not_sealed", reason=UNSEALED)
    return None


def look_at_key(settings: Settings, environ: Mapping[str, str]) -> tuple[Level, str, str]:
    """Say, for ``check``, what the journal is sealed with; nothing is generated."""
    try:
        for other in settings.audit.others:
            _key(other, environ)
        reference = settings.audit.secret("key")
        if reference is not None:
            return "ok", "audit", f"sealed with the key {_key(reference, environ).id}"
        if settings.store.secret("dsn") is not None:
            return "warning", "audit", UNSEALED
        _require_not_lost(settings.state_dir)
    except ConfigError as error:
        return "error", "audit", str(error)
    where = f"a key that is generated in {settings.state_dir / KEY_FILE}"
    return "ok", "audit", f"sealed with {where}, beside the store: keep one elsewhere"


def _require_not_lost(state: Path) -> None:
    """Refuse to make another key where there was one: the next one would hide that it is gone."""
    if not (state / KEY_FILE).exists() and _is_sealed(state / STORE_FILE):
        raise ConfigError(
            f"the key of the audit, {state / KEY_FILE}, is gone, and the store is sealed with it:"
            " restore it, or set audit.key_file to another key"
        )


def _is_sealed(store: Path) -> bool:
    sealed = "SELECT 1 FROM chains WHERE seal <> '' UNION ALL SELECT 1 FROM journal WHERE mac <> ''"
    if not store.exists():
        return False
    try:
        read = sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(read):
            return read.execute(f"{sealed} LIMIT 1").fetchone() is not None
    except sqlite3.Error:  # no store of this version yet, or none at all: opening it says more
        return False


def _key(reference: SecretRef, environ: Mapping[str, str]) -> Key:
    secret = reference.read(environ)
    try:
        return Key(secret.encode())
    except ConfigError as error:
        raise ConfigError(f"{reference}: {error}") from None
