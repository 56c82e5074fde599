"""What is configured is what can be read and changed: no writer, no lever."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from remediator.config.settings import Settings, load_settings
from remediator.model.errors import ConfigError, PermanentError
from remediator.model.ports import Breakers, KeySpace, Migrations
from remediator.model.target import Target
from remediator.playbook.base import Context
from remediator.service.backends import open_backends

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
        kinds = {key: [lever.kinds for lever in ls] for key, ls in backends.levers.items()}
    assert kinds == {("http", "both"): [{"reset_breaker"}]}


async def test_breakers_and_migrations_of_one_service_are_read_and_changed_side_by_side(
    tmp_path: Path,
) -> None:
    settings = loaded(
        tmp_path,
        """
        http:
          read: {url: "http://h", migrations: admin}
          moves: {url: "http://h", migrations: admin, writer_token_env: TOKEN}
          both: {url: "http://h", breakers: admin, migrations: admin, writer_token_env: TOKEN}
        """,
    )
    async with open_backends(settings, SECRETS) as backends:
        readers = {name: reader for (_, name), reader in backends.readers.items()}
        assert all(isinstance(reader, Migrations) for reader in readers.values())
        assert [n for n, reader in readers.items() if isinstance(reader, Breakers)] == ["both"]
        kinds = {key: [lever.kinds for lever in ls] for key, ls in backends.levers.items()}
    assert kinds == {
        ("http", "moves"): [{"set_migration"}],
        ("http", "both"): [{"reset_breaker"}, {"set_migration"}],
    }


@pytest.mark.parametrize(
    ("backend", "missing", "said"),
    [
        ("{url: 'http://h'}", "breakers", "set breakers for 'pay'"),
        ("{url: 'http://h', migrations: admin}", "breakers", "set breakers for 'pay'"),
        ("{url: 'http://h', breakers: admin}", "migrations", "set migrations for 'pay'"),
    ],
)
async def test_playbook_that_misses_a_shape_is_told_what_to_set(
    tmp_path: Path, backend: str, missing: str, said: str
) -> None:
    target = Target(system="s", service="s", role="admin", kind="http", name="pay")
    async with open_backends(loaded(tmp_path, f"http: {{pay: {backend}}}"), SECRETS) as backends:
        nothing: Any = None
        context = Context(
            incident=nothing,
            alerts=(),
            targets={"admin": target},
            ports={"admin": backends.readers["http", "pay"]},
            now=datetime.now(UTC),
        )
        with pytest.raises(PermanentError, match=said):
            getattr(context, missing)()


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
        kinds = {key: [lever.kinds for lever in ls] for key, ls in backends.levers.items()}
    assert kinds == {("redis", "both"): [{"unlink_prefix"}]}


BROKEN = """
    kubernetes:
      gone: {kubeconfig: nowhere}
    http:
      web: {url: "http://h"}
      shut: {url: "http://h", token_env: UNSET}
"""


async def test_one_that_cannot_be_opened_stops_the_start_and_is_named_with_its_line(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError) as caught:
        async with open_backends(loaded(tmp_path, BROKEN), SECRETS):
            pytest.fail("it started")
    gone, shut = sorted(str(caught.value).splitlines(), key=lambda line: "UNSET" in line)
    assert "remediator.yaml:4: backends.kubernetes.gone: " in gone
    assert "remediator.yaml:7: backends.http.shut: " in shut


async def test_one_that_cannot_be_opened_keeps_no_other_from_being_tried(tmp_path: Path) -> None:
    async with open_backends(loaded(tmp_path, BROKEN), SECRETS, partly=True) as backends:
        assert set(backends.readers) == {("http", "web")}
        assert set(backends.unopened) == {("kubernetes", "gone"), ("http", "shut")}


@pytest.mark.parametrize(
    ("backends", "message"),
    [
        ('http: {a: {url: "http://h", writer_token_env: T}}', "needs breakers"),
        ('http: {a: {url: "http://h", writer_token_env: T}}', "breakers or migrations"),
        ('http: {a: {url: "http://h", breakers: hystrix}}', "breakers"),
        ('http: {a: {url: "http://h", migrations: actuator}}', "migrations"),
        ("redis: {a: {url_env: R, writer_url_env: W}}", "needs cache_prefixes"),
        ("redis: {a: {url_env: R, cache_prefixes: ['']}}", "at least 1 character"),
        ("redis: {a: {url_env: R, writer_url_env: W, writer_url_file: F}}", "both set"),
    ],
)
def test_writer_without_its_bounds_is_refused(tmp_path: Path, backends: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(tmp_path, backends)
