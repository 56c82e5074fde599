"""NORMALISE: a plain alert, written by hand for a replay, becomes an alert. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from remediator.intake.alertmanager import read_alert
from remediator.model import Alert, Source

_KNOWN = frozenset({"labels", "annotations"})


def read_plain(item: Mapping[str, Any], received_at: datetime) -> Alert:
    """Read ``{"labels": {...}, "annotations": {...}}`` as an alert that fires since now.

    Raises ``RejectedDelivery`` saying what is wrong and where.
    """
    notice = {name: item[name] for name in _KNOWN & item.keys()}
    notice |= {"status": "firing", "startsAt": received_at.isoformat()}
    alert = read_alert(notice, None, received_at)
    return alert.model_copy(update={"source": Source.REPLAY})
