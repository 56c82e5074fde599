"""How much of an incident's alerts is shown: masking secrets costs time for each of a stranger's characters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from remediator.model.views import AlertView

SHOWN_ALERTS = 200
"""Alerts of one incident that are shown; a storm's incident may have thousands."""
SHOWN_TEXT = 512 * 1024
"""Characters of all their labels and annotations; a usual alert has about a thousand."""


def shortened(alerts: Iterable[AlertView]) -> list[AlertView]:
    """Return the first of ``alerts`` that fit into the bounds, one at least, without its longest values."""
    shown: list[AlertView] = []
    left = SHOWN_TEXT
    for alert in alerts:
        size = _size(alert.labels) + _size(alert.annotations)
        if shown and (size > left or len(shown) == SHOWN_ALERTS):
            break
        shown.append(alert if size <= left else _without_long(alert))
        left -= size
    return shown


def _size(texts: Mapping[str, str]) -> int:
    return sum(len(name) + len(value) for name, value in texts.items())


def _without_long(alert: AlertView) -> AlertView:
    longest = SHOWN_TEXT // (len(alert.labels) + len(alert.annotations))
    parts = {"labels": alert.labels, "annotations": alert.annotations}
    return alert.model_copy(
        update={
            part: {name: _short(value, longest) for name, value in texts.items()}
            for part, texts in parts.items()
        }
    )


def _short(text: str, longest: int) -> str:
    # not its beginning: that may be half of a secret, which nobody can tell any more
    return text if len(text) <= longest else f"({len(text)} characters left out)"
