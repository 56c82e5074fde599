"""What ``remediator init`` writes, and what it reads of real servers to propose it."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from aiohttp import web

from remediator.cli.discovery import Found, Workload
from remediator.cli.init_proposal import propose, unplaced, written
from remediator.config.settings import Settings, load_settings
from remediator.playbook.loader import load_playbooks
from remediator.service.loading import load
from tests.kubernetes_fixtures import write_kubeconfig
from tests.monitoring_fixtures import MonitoringServer, Start
from tests.postgres_fixtures import execute

SECRETS = ("orders-db-reader-dsn", "orders-db-writer-dsn", "postgres-grants.sql")
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("REMEDIATOR_")}
RULES = {
    "groups": [
        {
            "name": "orders",
            "interval": "1s",
            "rules": [
                {
                    "alert": "DatabaseConnectionPoolExhausted",
                    "expr": "vector(1)",
                    "labels": {"system": "shop", "service": "orders", "severity": "critical"},
                },
                {"alert": "HostIsHot", "expr": "vector(0) > 1"},
            ],
        }
    ]
}


def init(folder: Path, *options: str, code: int = 0) -> str:
    """Run the command as a user does; return what it said."""
    ended = subprocess.run(
        [sys.executable, "-m", "remediator", "init", str(folder), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=PLAIN,
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    return ended.stdout + ended.stderr


def check(config: Path) -> subprocess.CompletedProcess[str]:
    """Run ``remediator check`` as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "remediator", "check", "--config", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=PLAIN,
    )


def settings_in(folder: Path) -> Settings:
    """Read the configuration, and everything that ``serve`` would refuse in it."""
    settings = load_settings(folder / "remediator.yaml", {}, folder)
    load(settings)
    return settings


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_it_writes_a_configuration_that_can_be_served(tmp_path: Path) -> None:
    said = init(tmp_path / "new")
    settings = settings_in(tmp_path / "new")
    (service,) = settings.catalogue().services
    assert (service.system, service.name, list(service.playbooks)) == (
        *("shop", "orders"),
        ["PoolExhausted"],
    )
    assert f"remediator check --config {tmp_path / 'new' / 'remediator.yaml'}" in said


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_its_secrets_are_the_users_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        init(tmp_path / "new")
    finally:
        os.umask(before)
    folder = tmp_path / "new" / "secrets"
    assert mode_of(folder) == 0o700
    assert {name: mode_of(folder / name) for name in SECRETS} == dict.fromkeys(SECRETS, 0o600)


def test_it_overwrites_nothing_and_then_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "alertmanager.yml").write_text("mine")
    said = init(tmp_path, code=2)
    assert f"nothing is written, because this is there already: {tmp_path}" in said
    assert [file.name for file in tmp_path.iterdir()] == ["alertmanager.yml"]
    assert (tmp_path / "alertmanager.yml").read_text() == "mine"


def test_every_run_has_passwords_of_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        init(tmp_path / name)
    dsns = {file.read_text() for file in tmp_path.glob("*/secrets/*-dsn")}
    assert len(dsns) == 4


def test_the_samples_are_accepted_by_promtool_and_hold_the_labels_that_are_matched(
    tmp_path: Path,
) -> None:
    init(tmp_path)
    (service,) = settings_in(tmp_path).catalogue().services
    rule = yaml.safe_load((tmp_path / "prometheus-rule.yml").read_text())
    (alert,) = rule["groups"][0]["rules"]
    assert service.match.items() <= alert["labels"].items()
    receiver = yaml.safe_load((tmp_path / "alertmanager.yml").read_text())
    (webhook,) = receiver["receivers"][0]["webhook_configs"]
    token = webhook["http_config"]["authorization"]["credentials_file"]
    assert token == str(tmp_path / "state" / "token")


@pytest.fixture
async def database(postgres_database: str) -> AsyncIterator[str]:
    """A superuser's DSN of a new database, without the roles that the command makes."""
    roles = "remediator_reader, remediator_writer"
    yield postgres_database
    await execute(postgres_database, f"DROP OWNED BY {roles}", f"DROP ROLE {roles}")


async def test_its_grants_are_enough_for_the_check_to_pass(tmp_path: Path, database: str) -> None:
    parts = urlsplit(database)
    place = f"{parts.hostname}:{parts.port}{parts.path}"
    init(tmp_path, "--postgres", place)
    sql = (tmp_path / "secrets" / "postgres-grants.sql").read_text()
    await execute(database, sql)
    ended = await asyncio.to_thread(check, tmp_path / "remediator.yaml")
    assert "ok  postgres orders-db: can be read" in ended.stdout
    assert (ended.returncode, "warning" in ended.stdout, ended.stderr) == (0, False, "")


@pytest.mark.parametrize("place", ["orders", "host/", "host:x/orders", "/orders", "h/a/b"])
def test_a_place_of_a_database_that_is_none_is_refused(tmp_path: Path, place: str) -> None:
    assert "should be HOST[:PORT]/DATABASE" in init(tmp_path, "--postgres", place, code=2)
    assert list(tmp_path.iterdir()) == []


# --- what is proposed -----------------------------------------------------------------------------


async def has_rules(prometheus: MonitoringServer) -> None:
    async with httpx.AsyncClient(base_url=prometheus.url, trust_env=False) as client:
        while "HostIsHot" not in (await client.get("/api/v1/rules")).text:
            pass


async def test_services_and_alerts_of_a_real_prometheus_are_proposed(
    tmp_path: Path, start_prometheus: Start
) -> None:
    config = {"global": {"evaluation_interval": "1s"}, "rule_files": ["rules.yml"]}
    files = {"rules.yml": yaml.safe_dump(RULES)}
    async with start_prometheus(yaml.safe_dump(config), files) as prometheus:
        await has_rules(prometheus)
        init(tmp_path / "new", "--prometheus", prometheus.url)
    settings = settings_in(tmp_path / "new")
    (service,) = settings.catalogue().services
    assert service.match == {"system": "shop", "service": "orders"}
    assert (service.prometheus, list(service.playbooks)) == ("main", ["PoolExhausted"])
    assert settings.backends.prometheus["main"].url == prometheus.url
    assert "#   HostIsHot" in (tmp_path / "new" / "remediator.yaml").read_text()


async def test_alerts_of_a_real_alertmanager_are_proposed(
    tmp_path: Path, start_alertmanager: Start
) -> None:
    config = {"route": {"receiver": "none"}, "receivers": [{"name": "none"}]}
    labels = {"alertname": "HighLatency", "namespace": "bank", "app": "ledger"}
    async with start_alertmanager(yaml.safe_dump(config)) as alertmanager:
        async with httpx.AsyncClient(base_url=alertmanager.url, trust_env=False) as client:
            alert = {"labels": labels, "startsAt": datetime.now(UTC).isoformat()}
            (await client.post("/api/v2/alerts", json=[alert])).raise_for_status()
        init(tmp_path / "new", "--alertmanager", alertmanager.url)
    (service,) = settings_in(tmp_path / "new").catalogue().services
    assert (service.system, service.name) == ("bank", "ledger")
    assert service.match == {"namespace": "bank", "app": "ledger"}
    assert list(service.playbooks) == ["HighLatency"]


@asynccontextmanager
async def answering(answer: Any, status: int = 200) -> AsyncIterator[str]:
    """Answer every request with the same."""

    async def handle(_: web.Request) -> web.Response:
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def run_init(*arguments: Any, code: int = 0) -> str:

    return await asyncio.to_thread(lambda: init(*arguments, code=code))


async def test_deployments_of_a_cluster_are_proposed(tmp_path: Path) -> None:
    named = [("bank", "ledger"), ("kube-system", "coredns"), ("bank", "teller")]
    items = [{"metadata": {"namespace": space, "name": name}} for space, name in named]
    async with answering({"kind": "DeploymentList", "items": items}) as url:
        kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", {"server": url}, {"token": "t"})
        await run_init(tmp_path / "new", "--kubeconfig", str(kubeconfig))
    services = settings_in(tmp_path / "new").catalogue().services
    assert [(s.system, s.name) for s in services] == [("bank", "ledger"), ("bank", "teller")]
    place = services[0].targets["workload"]
    assert place.locator == {"namespace": "bank", "deployment": "ledger"}
    assert "OOM" in services[0].playbooks


@pytest.mark.parametrize(("answer", "status"), [({}, 404), ("x" * 9_000_000, 200)])
async def test_what_does_not_answer_as_it_should_is_said_and_nothing_is_written(
    tmp_path: Path, answer: Any, status: int
) -> None:
    async with answering(answer, status) as url:
        said = await run_init(tmp_path / "new", "--prometheus", url, code=3)
    assert url in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("url", ["ftp://h", "http://u:hush@h", "nonsense", 'http://h/"x'])
def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    said = init(tmp_path / "new", "--prometheus", url, code=2)
    assert "hush" not in said


def test_a_deployment_joins_the_service_that_it_is(tmp_path: Path) -> None:
    labels = {"alertname": "PodOOMKilled", "namespace": "bank", "service": "ledger"}
    found = Found(alerts=[labels], workloads=[Workload("bank", "ledger")])
    (service,) = propose(found)
    assert (service.alerts, service.workload) == ({"PodOOMKilled"}, Workload("bank", "ledger"))


@pytest.mark.parametrize(
    "text", ["a: b", "true", "x\n  y: z", "'", '"', "{}", "#", "ä", "global", "-", "1e5", "null"]
)
def test_labels_of_others_cannot_make_the_configuration_another_one(
    tmp_path: Path, text: str
) -> None:
    hostile = {"alertname": text, "service": text, "system": text}
    found = Found(alerts=[hostile, {"alertname": text}])
    lines = written(propose(found), load_playbooks(), None)
    (tmp_path / "remediator.yaml").write_text("\n".join(["mode: shadow", *lines]))
    (service,) = settings_in(tmp_path).catalogue().services
    assert service.match == {"system": text, "service": text}
    assert unplaced(found) == []
