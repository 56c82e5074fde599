"""A playbook uses optional roles where a service has them, and is bound and checked there too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from remediator.config.settings import Settings, load_settings
from remediator.model.errors import ConfigError
from remediator.service.loading import every_bound, load
from remediator.service.preflight import check

BACKENDS = {
    "postgres": {"db": {"dsn_env": "READ_DB", "writer_dsn_env": "WRITE_DB"}},
    "redis": {"cache": {"url_env": "READ_CACHE", "cache_prefixes": ["cache:"]}},
    "http": {"web": {"url": "http://127.0.0.1:1"}},
}
SECRETS = {
    "READ_DB": "postgresql://r@127.0.0.1:1/d",
    "WRITE_DB": "postgresql://w@127.0.0.1:1/d",
    "READ_CACHE": "redis://r@127.0.0.1:1/0",
}


def loaded(folder: Path, targets: dict[str, str], **parameters: Any) -> Settings:
    orders = {
        "match": {"service": "orders"},
        "targets": targets,
        "playbooks": {"HighLatency": parameters or None},
    }
    config = {
        "state_dir": "state",
        "mode": "auto",
        "backends": BACKENDS,
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": orders}}},
    }
    (folder / "remediator.yaml").write_text(yaml.safe_dump(config))
    return load_settings(None, {"HOME": "/home/ann"}, folder)


def test_a_service_needs_none_of_the_optional_roles(tmp_path: Path) -> None:
    catalogue, playbooks = load(loaded(tmp_path, {}))
    scopes = [bound.scope for bound in every_bound(catalogue, playbooks)]
    assert scopes == ["global"]


def test_a_target_in_an_optional_role_must_be_of_the_right_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the target 'database' to be postgres, but 'web'"):
        load(loaded(tmp_path, {"database": "web"}))


def test_the_bounds_of_optional_targets_are_known_beforehand(tmp_path: Path) -> None:
    targets = {"database": "db", "cache": "cache", "spare": "web"}
    catalogue, playbooks = load(loaded(tmp_path, targets))
    scopes = {bound.scope for bound in every_bound(catalogue, playbooks)}
    assert {"target/postgres/db", "target/redis/cache"} <= scopes
    assert "target/http/web" not in scopes
    assert "playbook/shop/orders/HighLatency" in scopes


async def said_of(settings: Settings) -> list[tuple[str, str]]:
    report = await check(settings, SECRETS)
    return [(level, text) for level, of, text in report.lines if of == "shop/orders HighLatency"]


async def test_check_names_the_optional_targets_without_a_writer(tmp_path: Path) -> None:
    said = await said_of(loaded(tmp_path, {"database": "db", "cache": "cache"}))
    assert ("warning", "cannot change cache: no writer is configured for it") in said


async def test_check_says_that_nothing_can_be_done_where_no_target_has_a_writer(
    tmp_path: Path,
) -> None:
    said = await said_of(loaded(tmp_path, {"cache": "cache"}))
    assert [level for level, _ in said] == ["error"]
