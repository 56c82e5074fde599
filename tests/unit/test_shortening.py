"""What is shown of an incident's alerts is bounded, whatever their senders write into them."""

from __future__ import annotations

from remediator.model.views import AlertView
from remediator.store.truncation import SHOWN_ALERTS, SHOWN_TEXT, shortened
from tests.incident_views import alert


def text_of(alerts: list[AlertView]) -> int:
    texts = (
        text for one in alerts for part in (one.labels, one.annotations) for text in part.items()
    )
    return sum(len(name) + len(value) for name, value in texts)


def test_usual_alerts_are_shown_whole() -> None:
    alerts = [alert(annotations={"description": "x" * 1500}) for _ in range(SHOWN_ALERTS + 5)]
    assert shortened(alerts) == alerts[:SHOWN_ALERTS]


def test_large_alerts_are_shown_as_far_as_they_fit() -> None:
    alerts = [alert(annotations={"description": "x" * 45_000}) for _ in range(SHOWN_ALERTS)]
    shown = shortened(alerts)
    assert shown == alerts[: len(shown)]
    assert SHOWN_TEXT - 50_000 < text_of(shown) <= SHOWN_TEXT


def test_one_alert_that_is_too_large_is_shown_without_its_longest_values() -> None:
    large = {f"label{number}": "://a:secret" * 5000 for number in range(200)}
    (shown,) = shortened([alert(labels={"alertname": "A", **large}), alert()])
    assert shown.labels["alertname"] == "A"
    assert shown.labels["label7"] == "(55000 characters left out)"
    assert text_of([shown]) <= SHOWN_TEXT
