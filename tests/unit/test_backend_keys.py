"""Every key that a backend declares does something: none is taken and then forgotten."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from remediator.config.sections import Backends as Declared
from remediator.config.settings import Settings, load_settings
from remediator.model.errors import BackendRefused, ConfigError
from remediator.model.finding import SenseState
from remediator.model.mitigation import Mitigation
from remediator.model.ports import Breakers, Migrations
from remediator.model.target import Target
from remediator.service.backends import Backends, open_backends, open_silences
from tests.scripted_http import serving

SECRETS = {
    "DSN": "postgresql://r@127.0.0.1:1/db",
    "REDIS": "redis://r@127.0.0.1:1/0",
    "TOKEN": "t",
    "BASIC": "ann:pass:word",
}
LEAST: dict[str, dict[str, Any]] = {
    "prometheus": {"url": "http://h"},
    "alertmanager": {"url": "http://h"},
    "kubernetes": {},
    "postgres": {"dsn_env": "DSN"},
    "redis": {"url_env": "REDIS", "cache_prefixes": ["cache:"]},
    "http": {"url": "http://h", "breakers": "admin"},
}
"""What each kind needs."""
KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "x",
}
SHOWN = {
    ("prometheus", "url"),
    ("prometheus", "scrape_interval"),
    ("alertmanager", "url"),
    ("redis", "cache_prefixes"),
    ("http", "url"),
    ("http", "breakers"),
    ("http", "migrations"),
}
"""Keys that refer to no file or variable; each has a test below of what it does."""


def declared() -> list[tuple[str, str]]:
    found = []
    for kind, field in Declared.model_fields.items():
        model = field.annotation.__args__[1]  # type: ignore[union-attr]
        found += [(kind, key) for key in model.model_fields]
    return found


REFERENCES = [key for key in declared() if key not in SHOWN]


def configured(folder: Path, kind: str, **keys: Any) -> Settings:
    (folder / "remediator.yaml").write_text(yaml.safe_dump({"backends": {kind: {"one": keys}}}))
    return load_settings(None, {"HOME": "/home/ann"}, folder)


async def opened(settings: Settings) -> None:
    async with open_backends(settings, SECRETS), open_silences(settings, SECRETS):
        pass


@pytest.mark.parametrize(("kind", "key"), REFERENCES)
async def test_key_that_refers_to_a_file_or_variable_is_read(
    tmp_path: Path, kind: str, key: str
) -> None:
    twin = key.removesuffix("_file") + "_env" if key.endswith("_file") else None
    keys = {name: value for name, value in LEAST[kind].items() if name != twin}
    if key == "writer_kubeconfig":  # it is opened after the reader's
        (tmp_path / "reader").write_text(yaml.safe_dump(KUBECONFIG))
        keys["kubeconfig"] = "reader"
    with pytest.raises(ConfigError, match=r"nowhere|NOWHERE"):
        await opened(configured(tmp_path, kind, **keys | {key: _missing(key)}))


def _missing(key: str) -> str:
    return "NOWHERE" if key.endswith("_env") else "nowhere"


@pytest.mark.parametrize("kind", ["prometheus", "alertmanager"])
@pytest.mark.parametrize(
    ("secret", "sent"),
    [
        ("basic", "Basic " + base64.b64encode(b"ann:pass:word").decode()),
        ("token", "Bearer t"),
    ],
)
async def test_its_url_is_asked_with_what_lets_us_in(
    tmp_path: Path, kind: str, secret: str, sent: str
) -> None:
    seen = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({}, status=500)

    async with serving(handle) as url:
        settings = configured(tmp_path, kind, url=url, **{f"{secret}_env": secret.upper()})
        async with (
            open_backends(settings, SECRETS) as backends,
            open_silences(settings, SECRETS) as silences,
        ):
            readers: dict[Any, Any] = {**backends.readers, **silences}
            for reader in readers.values():
                await reader.probe()
    assert set(seen) == {sent}


@pytest.mark.parametrize("kind", ["prometheus", "alertmanager"])
@pytest.mark.parametrize("basic", ["ann-4711", ":s3cret", "ann-4711:"])
async def test_basic_user_without_a_password_is_refused_and_not_shown(
    tmp_path: Path, kind: str, basic: str
) -> None:
    settings = configured(tmp_path, kind, url="http://h", basic_env="BASIC")
    wrong = {**SECRETS, "BASIC": basic}
    with pytest.raises(ConfigError, match="BASIC should hold user:password") as caught:
        async with open_backends(settings, wrong), open_silences(settings, wrong):
            pass
    assert basic not in str(caught.value)


@pytest.mark.parametrize("kind", ["prometheus", "alertmanager"])
def test_token_and_basic_user_together_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match="both a token and a basic user"):
        configured(tmp_path, kind, url="http://h", token_env="TOKEN", basic_env="BASIC")


async def test_scrape_interval_says_when_a_prometheus_is_stale(tmp_path: Path) -> None:
    old = str(datetime.now(UTC).timestamp() - 100)

    async def handle(request: web.Request) -> web.StreamResponse:
        value = old if "timestamp" in request.query["query"] else "1"
        result = [{"metric": {}, "value": [0, value]}]
        return web.json_response(
            {"status": "success", "data": {"resultType": "vector", "result": result}}
        )

    async with serving(handle) as url:
        senses = []
        for interval in ("1m", "10s"):
            settings = configured(tmp_path, "prometheus", url=url, scrape_interval=interval)
            async with open_backends(settings, SECRETS) as backends:
                reader: Any = backends.readers["prometheus", "one"]
                senses.append((await reader.probe()).state)
    assert senses == [SenseState.OK, SenseState.IMPAIRED]


async def test_cache_prefixes_are_all_that_may_be_removed(tmp_path: Path) -> None:
    settings = configured(tmp_path, "redis", **LEAST["redis"], writer_url_env="REDIS")
    target = Target(system="s", service="s", role="cache", kind="redis", name="one")
    plan = Mitigation(
        kind="unlink_prefix", target=target, reason="r", parameters={"prefix": "other:"}
    )
    async with open_backends(settings, SECRETS) as backends:
        (lever,) = backends.levers["redis", "one"]
        with pytest.raises(BackendRefused, match="prefix"):
            await lever.prepare(plan)


async def test_url_and_shapes_of_an_http_service_say_what_is_read(tmp_path: Path) -> None:
    paths = []

    async def handle(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        return web.json_response([], status=500)

    async with serving(handle) as url:
        for shape in ({"breakers": "admin"}, {"breakers": "actuator"}, {"migrations": "admin"}):
            async with open_backends(
                configured(tmp_path, "http", url=url, **shape), SECRETS
            ) as backends:
                await asyncio.wait_for(_read(backends), 5)
    wanted = ["admin/circuit-breaker/status", "actuator/circuitbreakers", "admin/migration/status"]
    assert paths == [f"/{path}" for path in wanted]


async def _read(backends: Backends) -> None:
    reader = backends.readers["http", "one"]
    try:
        if isinstance(reader, Breakers):
            await reader.breakers()
        elif isinstance(reader, Migrations):
            await reader.migrations()
    except Exception as error:  # noqa: BLE001 - only what was asked counts
        assert "500" in str(error)  # noqa: PT017


def test_docker_is_refused_as_long_as_nothing_there_can_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backends\.docker: Docker is not supported yet"):
        configured(tmp_path, "docker", url="tcp://h:1")


def test_no_key_is_taken_that_these_tests_do_not_know() -> None:
    assert set(declared()) >= SHOWN
    assert {kind for kind, _ in declared()} == LEAST.keys()
    for _, key in REFERENCES:
        assert key.endswith(("_file", "_env", "kubeconfig"))
