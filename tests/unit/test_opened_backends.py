"""What is configured is what can be read and changed: no writer, no lever."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from remediator.app.backends import open_backends
from remediator.errors import ConfigError
from remediator.ports import Breakers, KeySpace
from remediator.settings import Settings, load_settings

SECRETS = {"READ": "redis://r@127.0.0.1:1/0", "WRITE": "redis://w@127.0.0.1:1/0", "TOKEN": "t"}


def loaded(folder: Path, backends: str) -> Settings:
    text = "backends:\n" + textwrap.indent(textwrap.dedent(backends), "  ")
    (folder / "remediator.yaml").write_text(text)
    return load_settings(None, {"HOME": "/home/ann"}, folder)


async def test_breakers_are_read_where_configured_and_reset_only_with_a_token(
    tmp_path: Path,
) -> None:
    settings = loaded(
        tmp_path,
        """
        http:
          plain: {url: "http://h"}
          read: {url: "http://h", breakers: admin}
          both: {url: "http://h", breakers: actuator, writer_token_env: TOKEN}
        """,
    )
    async with open_backends(settings, SECRETS) as backends:
        readable = {name: isinstance(r, Breakers) for (_, name), r in backends.readers.items()}
        assert readable == {"plain": False, "read": True, "both": True}
        kinds = {key: lever.kinds for key, lever in backends.levers.items()}
    assert kinds == {("http", "both"): {"reset_breaker"}}


async def test_redis_is_read_and_changed_only_with_a_writer(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        """
        redis:
          read: {url_env: READ, cache_prefixes: ["cache:"]}
          both: {url_env: READ, writer_url_env: WRITE, cache_prefixes: ["cache:"]}
        """,
    )
    async with open_backends(settings, SECRETS) as backends:
        assert all(isinstance(reader, KeySpace) for reader in backends.readers.values())
        kinds = {key: lever.kinds for key, lever in backends.levers.items()}
    assert kinds == {("redis", "both"): {"unlink_prefix"}}


@pytest.mark.parametrize(
    ("backends", "message"),
    [
        ('http: {a: {url: "http://h", writer_token_env: T}}', "needs breakers"),
        ('http: {a: {url: "http://h", breakers: hystrix}}', "breakers"),
        ("redis: {a: {url_env: R, writer_url_env: W}}", "needs cache_prefixes"),
        ("redis: {a: {url_env: R, cache_prefixes: ['']}}", "at least 1 character"),
        ("redis: {a: {url_env: R, writer_url_env: W, writer_url_file: F}}", "both set"),
    ],
)
def test_writer_without_its_bounds_is_refused(tmp_path: Path, backends: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, backends)
