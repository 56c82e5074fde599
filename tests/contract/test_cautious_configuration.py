"""What no configuration may ask for is an error with its file and line; ``check`` says the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from remediator.config.settings import Settings, load_settings
from remediator.model.errors import ConfigError
from remediator.service.loading import load
from remediator.service.preflight import check
from tests.redis_fixtures import READER, RedisScene

FILE = """
backends:
  postgres: {{orders-db: {{dsn_env: DSN}}}}
  redis:
    cache:
      url_env: CACHE
      cache_prefixes: ["{prefix}"]
systems:
  shop:
    services:
      orders:
        match: {{service: orders}}
        targets: {{database: orders-db, cache: cache}}
        playbooks:
          {playbook}:
            mode: auto
            {parameter}
"""


def settings_of(
    folder: Path,
    prefix: str = "cache:",
    playbook: str = "PoolExhausted",
    parameter: str = "idle_tx_s: 60",
) -> Settings:
    text = FILE.format(prefix=prefix, playbook=playbook, parameter=parameter)
    assert yaml.safe_load(text)
    (folder / "remediator.yaml").write_text(text.lstrip())
    environ = {"REMEDIATOR_STATE_DIR": str(folder / "state")}
    return load_settings(folder / "remediator.yaml", environ, folder)


@pytest.mark.parametrize(
    ("playbook", "parameter"),
    [
        ("PoolExhausted", "idle_tx_s: 59.9"),
        ("PoolExhausted", "kill_after_s: 29"),
        ("PoolExhausted", "pool_full: 0.89"),
        ("HighLatency", "idle_tx_s: 1"),
        ("HighLatency", "kill_after_s: 0.001"),
        ("HighLatency", 'cache_prefix: "session:"'),
        ("HighLatency", "cache_prefix: s"),
    ],
)
def test_a_parameter_below_its_floor_stops_the_start_with_file_and_line(
    tmp_path: Path, playbook: str, parameter: str
) -> None:
    settings = settings_of(tmp_path, playbook=playbook, parameter=parameter)
    with pytest.raises(ConfigError) as caught:
        load(settings)
    name = parameter.partition(":")[0]
    where = f"remediator.yaml:16: systems.shop.services.orders.playbooks.{playbook}.{name}"
    assert where in str(caught.value)


@pytest.mark.parametrize(
    ("playbook", "parameter"),
    [
        ("PoolExhausted", "idle_tx_s: 60"),
        ("PoolExhausted", "kill_after_s: 30"),
        ("PoolExhausted", "pool_full: 0.9"),
        ("HighLatency", 'cache_prefix: "cache:"'),
    ],
)
def test_a_parameter_at_its_floor_is_taken(tmp_path: Path, playbook: str, parameter: str) -> None:
    load(settings_of(tmp_path, playbook=playbook, parameter=parameter))


@pytest.mark.parametrize(
    "prefix",
    ["s", "se", "session:", "SESSIONS:", "q", "queue:", "app:queue:", "lock:", "cart:", "c"],
)
def test_a_prefix_of_sessions_or_queues_is_no_cache_prefix(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"remediator\.yaml:6: .*cache_prefixes"):
        settings_of(tmp_path, prefix=prefix)


@pytest.mark.parametrize("prefix", ["cache:", "cache:analytics:", "page-", "catalogue:"])
def test_a_prefix_of_a_cache_is_taken(tmp_path: Path, prefix: str) -> None:
    settings_of(tmp_path, prefix=prefix)


async def test_check_says_what_a_prefix_holds_and_whether_it_would_be_removed(
    tmp_path: Path, redis_scene: RedisScene
) -> None:
    await redis_scene.fill(40, 10)
    environ = {
        "CACHE": await redis_scene.user("watcher", *READER),
        "DSN": "postgresql://x@127.0.0.1:1/x",
    }
    settings = settings_of(tmp_path)
    for key, level, said in (
        (None, "ok", "'cache:' has 40 keys"),
        (
            "cache:queue",
            "warning",
            "nothing will be removed: 'cache:' holds values of the type list",
        ),
    ):
        if key:
            await redis_scene.client.rpush(key, "job")
        lines = (await check(settings, environ)).lines
        found = [(how, text) for how, of, text in lines if of == "redis cache"]
        assert any(how == level and text.startswith(said) for how, text in found), found


async def test_check_says_that_nothing_is_ended_without_named_roles(
    tmp_path: Path, redis_scene: RedisScene
) -> None:
    environ = {"CACHE": redis_scene.url, "DSN": "postgresql://x@127.0.0.1:1/x"}
    lines = (await check(settings_of(tmp_path), environ)).lines
    (said,) = [text for _, of, text in lines if of == "shop/orders PoolExhausted"]
    for lever in ("end_sessions", "cancel_queries", "end_queries"):
        assert f"{lever} (no app_roles)" in said
