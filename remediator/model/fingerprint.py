"""What tells one alert from another: the fingerprint of its labels, computed as Alertmanager does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

PAGERDUTY = "pagerduty/"
"""Begin of the fingerprints that are ids of PagerDuty's: what it says of one of them may change."""
_REPORTED = frozenset({"pagerduty_service", "pagerduty_incident", "urgency"})
"""Labels that an alert has from PagerDuty, besides its own."""
_OFFSET, _PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, 0xFFFFFFFFFFFFFFFF
_SEPARATOR = b"\xff"
"""A byte that is in no UTF-8 text."""


def fingerprint_of(labels: Mapping[str, str]) -> str:
    """Return Alertmanager's fingerprint of ``labels``, 16 hexadecimal digits.

    FNV-1a of 64 bits over names and values in the order of the names, each followed by 0xff
    (``LabelSet.Fingerprint`` in Prometheus' ``common/model``). It is fast and no secret: whoever
    chooses labels can make two sets with the same one, so who joins alerts compares labels too.
    """
    value = _OFFSET
    for name, text in sorted((k.encode(errors="replace"), v) for k, v in labels.items()):
        for byte in b"".join((name, _SEPARATOR, text.encode(errors="replace"), _SEPARATOR)):
            value = (value ^ byte) * _PRIME & _MASK
    return f"{value:016x}"


def apart_from(fingerprint: str, labels: Mapping[str, str]) -> str:
    """Return another fingerprint for ``labels``, for where they share theirs with other labels."""
    text = json.dumps(sorted(_own(labels).items()), ensure_ascii=True)
    return f"{fingerprint}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def is_same(
    fingerprint: str, one: Mapping[str, str], other: Mapping[str, str], *, reported: bool
) -> bool:
    """Say whether two alerts of one ``fingerprint`` are one alert, by their labels.

    ``reported`` when PagerDuty told of at least one of them, with labels of its own.
    """
    if one == other or fingerprint.startswith(PAGERDUTY):
        return True
    return reported and _own(one) == _own(other)


def _own(labels: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name not in _REPORTED}
