"""What the service tells of itself: one line an event, no secrets, metrics of its own."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from remediator.model.redact import MASK
from remediator.service.logging import configure_logging, redact
from remediator.service.metrics import Telemetry


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def connect(password: str) -> None:
    raise OSError(f"cannot connect to postgresql://ann:{password}@db/orders")


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_its_keys_and_those_of_its_context() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    structlog.contextvars.bind_contextvars(incident_id="inc-1")
    structlog.get_logger("remediator.x").info("step_done", phase="act", seconds=0.5)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "step_done",
        "phase": "act",
        "seconds": 0.5,
        "incident_id": "inc-1",
        "level": "info",
        "logger": "remediator.x",
    }


def test_what_libraries_log_goes_the_same_way() -> None:
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    structlog.contextvars.bind_contextvars(incident_id="inc-1")
    logging.getLogger("aiohttp.server").warning("slow %s", "peer", extra={"token": "hunter2"})
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["level"]) == (
        "slow peer",
        "aiohttp.server",
        "warning",
    )
    assert (line["incident_id"], line["token"]) == ("inc-1", MASK)


def test_less_severe_events_are_left_out() -> None:
    stream = io.StringIO()
    configure_logging("json", "warning", stream)
    structlog.get_logger("remediator.x").info("quiet")
    logging.getLogger("aiohttp.server").info("quiet")
    structlog.get_logger("remediator.x").error("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_the_chatter_of_clients_is_left_out_even_at_debug() -> None:
    stream = io.StringIO()
    configure_logging("json", "debug", stream)
    for name in ("httpx", "slack_sdk.web.async_client", "sqlalchemy.engine.Engine"):
        logging.getLogger(name).info("POST https://hooks.slack.com/services/T0/B0/hunter2")
    logging.getLogger("httpx").warning("failed")
    assert [line["event"] for line in lines(stream)] == ["failed"]


def test_configuring_again_writes_to_the_new_stream_only() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("json", "info", first)
    configure_logging("json", "info", second)
    structlog.get_logger("remediator.x").info("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1


def test_auto_is_for_people_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        configure_logging("auto", "info", stream)
        structlog.get_logger("remediator.x").info("hello", password="hunter2")
    assert "hello" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert lines(pipe)[0]["event"] == "hello"
    assert "hunter2" not in terminal.getvalue() + pipe.getvalue()


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_traceback_shows_no_local_variables_and_no_passwords(format_: Any) -> None:
    stream = io.StringIO()
    configure_logging(format_, "info", stream)
    try:
        connect("2retnuh"[::-1])  # not as it stands here: the source line is shown
    except OSError:
        structlog.get_logger("remediator.x").exception("failed")
        logging.getLogger("asyncio").exception("failed too")
    assert stream.getvalue().count("OSError: cannot connect") == 2
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize(
    "key",
    [
        *(
            "token",
            "slack_token",
            "Authorization",
            "password",
            "dsn",
            "writer_dsn",
            "client_secret",
        ),
        *("X-PagerDuty-Signature", "api_key", "routing-key", "Set-Cookie", "webhook_url"),
    ],
)
def test_secrets_are_masked_by_key_at_any_depth(key: str) -> None:
    event = {"a": [{"b": {key: "hunter2"}}], key: {"c": "hunter2"}}
    assert redact(None, "info", event) == {"a": [{"b": {key: MASK}}], key: MASK}


def test_references_to_secrets_and_other_keys_are_shown() -> None:
    event = {"token_file": "/etc/token", "dsn_env": "DSN", "phase": "act", "token": None, "n": 1}
    assert redact(None, "info", event) == event


@pytest.mark.parametrize(
    "text",
    [
        "connect redis://:hunter2@cache:6379",
        "connect postgresql://ann:hun/hunter2@db/orders",
        "connect postgresql://ann:hun@hunter2@db/orders",
        "connect postgresql://db/orders?user=ann&password=hunter2&sslmode=require",
        "header Authorization: Bearer hunter2hunter2",
        "slack said no to xoxb-hunter2-hunter2",
        "POST https://hooks.slack.com/services/T0/B0/hunter2 failed",
    ],
)
def test_secrets_that_can_be_told_by_their_form_are_masked_in_texts(text: str) -> None:
    shown = redact(None, "error", {"event": text, "inner": [text]})
    assert "hunter2" not in str(shown)
    assert MASK in shown["event"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_a_secret_never_survives_wherever_it_stands(value: Any) -> None:
    shown = redact(None, "info", {"x": value, "deep": {"list": [{"password": ["hunter2", value]}]}})
    assert "hunter2" not in repr(shown)


def test_every_metric_has_our_prefix_and_its_labels() -> None:
    telemetry = Telemetry()
    telemetry.deliveries.labels(source="alertmanager", result="taken").inc()
    telemetry.delivery_alerts.labels(source="alertmanager").inc(3)
    telemetry.rejected_requests.labels(reason="credential").inc()
    telemetry.incidents.labels(outcome="mitigated").inc()
    telemetry.decisions.labels(effect="deny", code="budget").inc()
    telemetry.mitigations.labels(kind="end_sessions", state="applied").inc()
    telemetry.verdicts.labels(assessment="better").inc()
    telemetry.steps.labels(phase="act", result="ok").inc()
    telemetry.step_seconds.labels(phase="act").observe(0.2)
    telemetry.receipt_to_diagnosis.observe(0.3)
    telemetry.notices.labels(result="sent").inc()
    telemetry.backlog(open_incidents=4, untriaged_deliveries=5, oldest_due_seconds=6.5, paused=1)
    text = telemetry.render().decode()
    for line in (
        'remediator_deliveries_total{result="taken",source="alertmanager"} 1.0',
        'remediator_delivery_alerts_total{source="alertmanager"} 3.0',
        'remediator_rejected_requests_total{reason="credential"} 1.0',
        'remediator_incidents_total{outcome="mitigated"} 1.0',
        'remediator_decisions_total{code="budget",effect="deny"} 1.0',
        'remediator_mitigations_total{kind="end_sessions",state="applied"} 1.0',
        'remediator_verdicts_total{assessment="better"} 1.0',
        'remediator_steps_total{phase="act",result="ok"} 1.0',
        'remediator_step_seconds_bucket{le="0.25",phase="act"} 1.0',
        'remediator_receipt_to_diagnosis_seconds_bucket{le="0.5"} 1.0',
        'remediator_notices_total{result="sent"} 1.0',
        "remediator_open_incidents 4.0",
        "remediator_untriaged_deliveries 5.0",
        "remediator_oldest_due_seconds 6.5",
        "remediator_paused 1.0",
    ):
        assert line in text.splitlines(), line
    assert Telemetry.content_type.startswith("text/plain")


def test_two_services_in_one_process_count_apart() -> None:
    one, other = Telemetry(), Telemetry()
    one.notices.labels(result="sent").inc()
    assert b'notices_total{result="sent"}' in one.render()
    assert b'notices_total{result="sent"}' not in other.render()
