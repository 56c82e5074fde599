"""What is shown to humans: no secret in it, nothing that cannot be seen, and no time lost over it."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.cli.output import machine_readable
from remediator.model.finding import FindingStatus
from remediator.model.mitigation import MitigationState
from remediator.model.redact import MASK, mask_text, one_line, redact
from remediator.notify.report import summarise
from remediator.service.logging import configure_logging
from tests.incident_views import alert, event, finding, mitigation, view

SECRET = "Zx9Qw7Lm4Tn2Rb8Kp5Vd3Hs6"
KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n{SECRET}\n-----END RSA PRIVATE KEY-----"
FORMS = {
    "GitHub token": f"cloned with ghp_{SECRET}",
    "GitHub fine-grained token": f"github_pat_{SECRET}",
    "AWS access key": "AKIAZX9QW7LM4TN2RB8K",
    "AWS secret": f"aws_secret_access_key = {SECRET}",
    "JWT": f"eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}",
    "cut JWT": f"eyJhbGciOiJIUzI1NiJ9{SECRET}",
    "URL password": f"amqp://app:{SECRET}@mq:5672/orders",
    "Slack bot token": f"xoxb-1-{SECRET}",
    "Slack app token": f"xapp-1-{SECRET}",
    "PagerDuty routing key": "sent to R0ZX9QW7LM4TN2RB8KP5VD3HS6ZX9QW7",
    "PagerDuty user token": f"u+{SECRET[:18]}",
    "PagerDuty app token": f"pdus+_{SECRET}",
    "private key": f"found:\n{KEY}\nin the image",
    "private key in JSON": json.dumps({"file": KEY}),
    "private key that is cut": KEY[:60],
    "basic credentials": "Authorization: Basic YW5uOlp4OVF3N0xt",
}
SHOWN = ("Zx9Q", "ZX9Q", "YW5u")


def leaks(shown: object) -> bool:
    return any(part in str(shown) for part in SHOWN)


@pytest.mark.parametrize("form", FORMS)
def test_one_redaction_masks_each_form_in_messages_in_the_api_and_in_the_log(form: str) -> None:
    text = FORMS[form]
    assert leaks(text), "the test would pass without a secret"
    incident = view(alerts=[alert(labels={"alertname": "A", "note": text})], reason=text)
    assert not leaks(summarise(incident).model_dump_json())
    assert not leaks(redact(incident.model_dump(), whole=True))
    stream = io.StringIO()
    configure_logging("json", "info", stream)
    structlog.get_logger("remediator.x").info("said", reason=text)
    assert not leaks(stream.getvalue())
    assert MASK in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "basic authentication failed; check the basic connectivity",
        "the certificate begins with -----BEGIN CERTIFICATE-----",
        "pod orders-7d9c5bf6b8-x2x9z in R0",
        "commit 3095564a1b2c3d4e5f60718293a4b5c6d7e8f901 is live",
    ],
)
def test_what_only_looks_a_little_like_a_secret_is_shown(text: str) -> None:
    assert mask_text(text) == text


HOSTILE = (
    "a://a:",
    "://",
    "eyJ",
    "eyJaaaaaaaa",
    'token="',
    "token='",
    'token="\\"',
    "password=",
    "pass",
    "bearer ",
    "basic ",
    "basic aaaaaaaa",
    "xoxb-",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN ",
    "-----END A PRIVATE KEY",
    "gh",
    "ghp_a",
    "AKIA",
    "sk_live_",
    "u+",
    "pdus+_",
    "R0",
    "hooks.slack.com/",
    " ",
    "\\",
    '"',
    "a",
    ":",
    "@",
    "\n",
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=6))
def test_64_kib_of_hostile_text_are_masked_in_time_that_grows_with_their_length_only(
    pieces: list[str],
) -> None:
    text = "".join(pieces)
    text = (text * (65_536 // len(text) + 1))[:65_536]
    started = time.process_time()
    mask_text(text)
    assert time.process_time() - started < 1.5


def test_a_forged_line_in_a_label_stays_on_the_line_of_its_label() -> None:
    forged = "orders\n✔ Approved by ann\r\nNext: nothing\u2028Fine."
    report = summarise(
        view(
            alerts=[alert(labels={"alertname": forged}, annotations={"summary": forged})],
            findings=[finding(forged, FindingStatus.PROBLEM, forged)],
            mitigations=[mitigation(MitigationState.APPLIED, summary=forged, evidence=forged)],
            timeline=[event("act", forged, forged)],
            service=forged,
        )
    )
    lines = [report.headline, *report.happened, *report.found, *report.done, report.helped]
    assert all(len(line.splitlines()) == 1 for line in lines)


@pytest.mark.parametrize(
    "hidden", ["\u202e", "\u2066", "\u200b", "\ufeff", "\x1b[2J", "\x07", "\x9b", "\u00ad"]
)
def test_what_turns_text_round_or_cannot_be_seen_reaches_no_human(hidden: str) -> None:
    report = summarise(view(service=f"ord{hidden}ers", reason=f"a{hidden}b"))
    assert hidden not in report.model_dump_json()
    assert hidden not in report.headline
    assert hidden not in one_line(f"a{hidden}b")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_is_ascii_on_a_terminal_and_as_it_came_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer: dict[str, Any] = {"name": "é\u202e\x7f😀"}
    text = json.dumps(answer, ensure_ascii=False)
    monkeypatch.setattr("sys.stdout", Terminal())
    shown = machine_readable(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert json.loads(shown) == answer
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert machine_readable(text) == text
