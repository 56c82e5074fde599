"""``check`` reads once what a playbook's parameters name, and says which levers are possible."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from remediator.config.settings import load_settings
from remediator.model.errors import ConfigError
from remediator.service.preflight import check
from tests.monitoring_fixtures import Start
from tests.scripted_http import serving

CONFIG = """
global: {scrape_interval: 200ms, scrape_timeout: 200ms}
scrape_configs:
  - job_name: itself
    static_configs: [{targets: ["127.0.0.1:PORT"]}]
"""
ORDERS = "shop/orders HighLatency"


async def said_of(
    folder: Path, backends: dict[str, Any], targets: dict[str, Any], playbooks: dict[str, Any]
) -> list[tuple[str, str, str]]:
    orders: dict[str, Any] = {
        "match": {"service": "orders"},
        "targets": targets,
        "playbooks": playbooks,
    }
    if "prometheus" in backends:
        orders["prometheus"] = "main"
    config = {
        "state_dir": "state",
        "mode": "auto",
        "backends": backends,
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": orders}}},
    }
    (folder / "remediator.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    settings = load_settings(None, {"HOME": "/home/ann"}, folder)
    return list((await check(settings, {"TOKEN": "secret"})).lines)


async def admin(request: web.Request) -> web.StreamResponse:
    if request.path == "/pool":
        return web.json_response({"active": 3, "max": 8, "waiting": 0})
    if request.path == "/slow":
        return web.json_response({"http": {"p95": 0.7}})
    if request.path == "/migrations/status":
        return web.json_response({"migrations": []})
    return web.json_response({}, status=404)


async def until_scraped(folder: Path, url: str) -> None:
    async with asyncio.timeout(20):
        while True:
            lines = await said_of(folder, {"prometheus": {"main": {"url": url}}}, {}, {})
            if ("ok", "prometheus main", "can be read") in lines:
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("0.1 + 0.6", ("ok", "latency_query: 0.7")),
        ("sum(", ("error", "parse error")),
        ("vector(0) > 1", ("warning", "an empty result now")),
        (
            "vector(1) or label_replace(vector(2), 'a', 'b', '', '')",
            ("warning", "2 series, 1 to 2"),
        ),
    ],
)
async def test_a_query_is_run_once_and_its_value_is_told(
    start_prometheus: Start, tmp_path: Path, query: str, expected: tuple[str, str]
) -> None:
    async with start_prometheus(CONFIG) as server:
        await until_scraped(tmp_path, server.url)
        backends = {"prometheus": {"main": {"url": server.url, "scrape_interval": "1s"}}}
        high = {"latency_query": query, "latency_limit": 1}
        lines = await said_of(tmp_path, backends, {}, {"HighLatency": high})
    level, text = expected
    assert [(how, of) for how, of, said in lines if text in said] == [(level, ORDERS)]


async def test_a_query_with_placeholders_is_only_parsed(
    start_prometheus: Start, tmp_path: Path
) -> None:
    async with start_prometheus(CONFIG) as server, serving(admin) as url:
        await until_scraped(tmp_path, server.url)
        backends = {
            "prometheus": {"main": {"url": server.url, "scrape_interval": "1s"}},
            "http": {"admin": {"url": url}},
        }
        breaker = {"mode": "shadow", "error_query": "errors{pair={breaker}}"}
        targets = {"admin": "admin"}
        lines = await said_of(tmp_path, backends, targets, {"CircuitBreakerOpen": breaker})
        assert ("ok", "can be parsed") in [
            (level, said.partition(": ")[2][:13]) for level, _, said in lines
        ]
        breaker["error_query"] = "errors{pair={breaker}"
        lines = await said_of(tmp_path, backends, targets, {"CircuitBreakerOpen": breaker})
        assert any(level == "error" and "error_query" in said for level, _, said in lines)


async def test_a_path_is_read_once_and_its_value_is_told(tmp_path: Path) -> None:
    async with serving(admin) as url:
        high = {"latency_path": "/slow", "latency_field": "http.p95", "latency_limit": 1}
        high["pool_path"] = "/gone"
        backends = {"http": {"admin": {"url": url}}}
        lines = await said_of(tmp_path, backends, {"admin": "admin"}, {"HighLatency": high})
    seen = [(level, said) for level, of, said in lines if of == ORDERS]
    assert ("ok", "latency_path: 0.7") in seen
    assert any(level == "error" and said.startswith("pool_path: ") for level, said in seen)


async def test_only_the_levers_that_are_possible_are_promised(tmp_path: Path) -> None:
    async with serving(admin) as url:
        backend = {"url": url, "migrations": "admin", "writer_token_env": "TOKEN"}
        playbooks: dict[str, Any] = {"HighLatency": {}, "CircuitBreakerOpen": {}}
        backends = {"http": {"admin": backend}}
        lines = await said_of(tmp_path, backends, {"admin": "admin"}, playbooks)
    high, breaker = (next(s for _, of, s in lines if of.endswith(n)) for n in playbooks)
    assert "could set_migration; never cancel_queries (no app_roles)" in high
    for why in ("scale (no scale_cap)", "unlink_prefix (no cache_prefix)"):
        assert why in high
    assert "undo_rollout (undo_release is off)" in high
    assert "never reset_breaker (neither upstreams nor error_query)" in breaker


async def test_a_role_that_a_parameter_names_must_exist(tmp_path: Path) -> None:
    upstreams = {"BTC_EUR": {"role": "bank"}}
    playbooks = {"CircuitBreakerOpen": {"upstreams": upstreams}}
    backends = {"http": {"admin": {"url": "http://127.0.0.1:1"}}}
    with pytest.raises(ConfigError, match=r"upstreams\.BTC_EUR: .* the role 'bank'; known: admin"):
        await said_of(tmp_path, backends, {"admin": "admin"}, playbooks)


async def test_lines_stand_in_the_order_of_the_file(tmp_path: Path) -> None:
    backends = {
        "http": {name: {"url": "http://127.0.0.1:1"} for name in ("zebra", "apple")},
        "prometheus": {"main": {"url": "http://127.0.0.1:1"}},
    }
    lines = await said_of(tmp_path, backends, {}, {"HighLatency": {}})
    subjects = [of for _, of, _ in lines]
    assert subjects[0] == "configuration"
    assert subjects[-4:] == ["http zebra", "http apple", "prometheus main", ORDERS]
    assert not any(said.startswith(of) for _, of, said in lines)
