"""The chart's alerts and dashboard ask for what the service really tells of itself."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from remediator.service.metrics import Telemetry
from tests.chart_rendering import CHART, Chart, one, with_values
from tests.kubernetes_fixtures import until
from tests.monitoring_fixtures import Start, _binary
from tests.service_fixtures import Service, pool_alert

RULES = CHART / "files" / "rules.yaml"
DASHBOARD: dict[str, Any] = json.loads((CHART / "files" / "dashboard.json").read_text())
ALERTS: dict[str, str] = {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
}
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
WINDOW = "$__rate_interval"

FIRING: dict[str, tuple[dict[str, str], str]] = {
    "RemediatorStoreUnavailable": (
        {'remediator_deliveries_total{source="alertmanager",result="unavailable"}': "_x19 1x60"},
        "22m",
    ),
    "RemediatorBacklog": ({"remediator_oldest_due_seconds": "61+60x60"}, "10m"),
    "RemediatorDeliveriesWait": ({"remediator_untriaged_deliveries": "3x60"}, "10m"),
    "RemediatorStepsFail": (
        {'remediator_steps_total{phase="act",result="failed"}': "0+1x60"},
        "20m",
    ),
    "RemediatorNoticesFail": ({'remediator_notices_total{result="failed"}': "0+1x60"}, "20m"),
    "RemediatorEscalates": (
        {'remediator_incidents_total{outcome="escalated"}': "0+1x60"},
        "30m",
    ),
    "RemediatorOutcomeUnknown": (
        {'remediator_mitigations_total{kind="end_sessions",state="unknown"}': "_x19 1x60"},
        "22m",
    ),
    "RemediatorRefusesCallers": (
        {'remediator_rejected_requests_total{reason="unauthenticated"}': "0+5x60"},
        "20m",
    ),
    "RemediatorSharedRedisLost": ({"remediator_shared_redis_impaired": "1x900"}, "2h"),
    "RemediatorPaused": ({"remediator_paused": "1x900"}, "13h"),
}
"""Series, a sample a minute, and when the alert fires with them."""
QUIET = {
    "remediator_open_incidents": "2x900",
    "remediator_paused": "0x900",
    "remediator_shared_redis_impaired": "0 1 1 0x900",
    "remediator_oldest_due_seconds": "1x900",
    "remediator_untriaged_deliveries": "0 4 0 3 0x900",
    'remediator_deliveries_total{source="alertmanager",result="taken"}': "0+9x900",
    'remediator_deliveries_total{source="alertmanager",result="unavailable"}': "7x900",
    'remediator_mitigations_total{kind="end_sessions",state="unknown"}': "4x900",
    'remediator_mitigations_total{kind="end_sessions",state="applied"}': "0+1x900",
    'remediator_steps_total{phase="act",result="failed"}': "3x900",
    'remediator_notices_total{result="sent"}': "0+9x900",
    'remediator_incidents_total{outcome="mitigated"}': "0+9x900",
    'remediator_rejected_requests_total{reason="unauthenticated"}': "0x900",
    'remediator_rejected_requests_total{reason="over_limit"}': "0+9x900",
}
"""A service at work, with some trouble long ago."""


def promtool(*arguments: str) -> str:
    ended = subprocess.run(
        [_binary("promtool"), *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def try_rules(folder: Path, series: dict[str, str], at: str, *firing: str) -> None:
    """Let Prometheus evaluate the rules over ``series``; exactly ``firing`` must fire then."""
    seen = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)]
    asked = 'count by (alertname) (count by (alertname) (ALERTS{alertstate="firing"}))'
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": k, "values": v} for k, v in series.items()],
                "promql_expr_test": [{"expr": asked, "eval_time": at, "exp_samples": seen}],
            }
        ],
    }
    path = folder / "tests.yaml"
    path.write_text(yaml.safe_dump(content))
    promtool("test", "rules", str(path))


def test_every_alert_is_tried() -> None:
    assert ALERTS.keys() == FIRING.keys() | {"RemediatorDown"}


@pytest.mark.parametrize("alert", sorted(FIRING))
def test_an_alert_fires_when_it_should_and_no_other_does(tmp_path: Path, alert: str) -> None:
    series, at = FIRING[alert]
    try_rules(tmp_path, {"remediator_open_incidents": "0x900"} | series, at, alert)


def test_no_alert_fires_while_the_service_works(tmp_path: Path) -> None:
    for at in ("1h", "2h", "13h"):
        try_rules(tmp_path, QUIET, at)


def test_a_service_that_is_gone_is_noticed(tmp_path: Path) -> None:
    try_rules(tmp_path, {"remediator_open_incidents": "1x5"}, "30m", "RemediatorDown")
    try_rules(tmp_path, {}, "10m", "RemediatorDown")


def test_what_the_chart_renders_are_the_rules_and_the_dashboard(tmp_path: Path) -> None:
    watched = {name: {"enabled": True} for name in ("prometheusRule", "dashboard")}
    objects = Chart(tmp_path).render(with_values(watched))
    rules = one(objects, "PrometheusRule")["spec"]
    assert rules == yaml.safe_load(RULES.read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    promtool("check", "rules", str(tmp_path / "rules.yaml"))
    dashboard = one(objects, "ConfigMap", "remediator-dashboard")
    assert json.loads(dashboard["data"]["remediator.json"]) == DASHBOARD


# --- against the service --------------------------------------------------------------------------


def labels_of(metric: str) -> set[str]:
    """Return the labels that the service gives a metric; fail for one that it does not have."""
    if metric.startswith("process_"):
        return {"job", "instance"}
    known = {
        name: set(getattr(collector, "_labelnames", ())) | ({"le"} if "_bucket" in name else set())
        for collector, names in Telemetry().registry._collector_to_names.items()
        for name in names
    }
    assert metric in known, f"the service has no metric {metric}"
    return known[metric]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:remediator|process)_\w+", expression))


@pytest.mark.parametrize("expression", [*ALERTS.values(), *EXPRESSIONS])
def test_every_expression_asks_for_a_metric_and_for_labels_that_there_are(expression: str) -> None:
    assert metrics_in(expression)
    labels = set().union(*(labels_of(metric) for metric in metrics_in(expression)))
    asked = re.findall(r"\{(\w+)=", expression)
    for group in re.findall(r"by \(([^)]*)\)", expression):
        asked += [label.strip() for label in group.split(",")]
    assert set(asked) <= labels


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path / "service", {"listen": "127.0.0.1:0"})
    service.folder.mkdir()
    await service.start()
    try:
        yield service
    finally:
        await service.kill()


async def test_every_expression_is_answered_by_a_prometheus_that_scrapes_the_service(
    served: Service, start_prometheus: Start
) -> None:
    scrape = {
        "job_name": "remediator",
        "scrape_interval": "500ms",
        "static_configs": [{"targets": [served.url.removeprefix("http://")]}],
    }
    config = yaml.safe_dump({"scrape_configs": [scrape]})
    async with (
        start_prometheus(config) as prometheus,
        httpx.AsyncClient(base_url=prometheus.url) as client,
    ):

        async def ask(expression: str) -> list[Any]:
            answer = await client.get("/api/v1/query", params={"query": expression})
            assert answer.is_success, answer.text
            found: list[Any] = answer.json()["data"]["result"]
            return found

        async def counted() -> bool:
            return bool(await ask("increase(remediator_deliveries_total[30s])"))

        assert (await served.post(pool_alert())).is_success
        await until(counted, "two scrapes have seen the delivery")
        empty = [e for e in EXPRESSIONS if not await ask(e.replace(WINDOW, "30s"))]
        for alert in ALERTS.values():
            await ask(alert)
    assert {metric for expression in empty for metric in metrics_in(expression)} <= {
        "remediator_rejected_requests_total",
        "remediator_incidents_total",  # the alert is of no service that is looked after
        "remediator_decisions_total",
        "remediator_mitigations_total",
        "remediator_verdicts_total",
        "remediator_receipt_to_diagnosis_seconds_bucket",
        "remediator_steps_total",
        "remediator_step_seconds_bucket",
        "remediator_notices_total",
    }
