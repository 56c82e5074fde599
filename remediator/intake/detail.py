"""NORMALISE: what PagerDuty's REST API tells of an incident's alerts becomes labels. Pure.

In order of trust: a mapping ``labels``, the list that Alertmanager writes into ``firing``, plain
texts. Labels that came through Alertmanager make the same identity as there, so that the same
alert coming by both ways is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from remediator.intake.alertmanager import clean
from remediator.intake.pagerduty import OURS, alertmanager_fingerprint, identity
from remediator.model import Alert

MAX_ALERTS = 200
"""Alerts of one incident that are looked at."""
MAX_LABELS = 64
MAX_NAME = 200
MAX_VALUE = 4096
MAX_LISTED = 256 * 1024
"""Characters of a list of alerts that is read."""
_OWN = ("pagerduty_service", "pagerduty_incident")
_NOT_FLAT = frozenset({"firing", "resolved", "num_firing", "num_resolved", "labels"})
_PAIR = re.compile(r" - ([^\s=]+) = (.*)", re.DOTALL)

Labels = dict[str, str]
Said = tuple[Labels, Labels]
"""Labels and annotations."""


def with_labels(plain: Alert, listed: Sequence[object]) -> tuple[Alert, ...]:
    """Return the alerts that ``plain``'s incident stands for, by what was ``listed`` of it.

    ``plain`` itself where none of them says anything; nothing where all of them are our own
    escalations.
    """
    items = [item for item in listed[:MAX_ALERTS] if isinstance(item, dict)]
    theirs = [item for item in items if not _is_ours(item)]
    found: dict[str, Alert] = {}
    for item in theirs:
        if item.get("status") == "resolved":
            continue
        for alert in _alerts(plain, item):
            found.setdefault(alert.fingerprint, alert)
    if found:
        return tuple(found.values())[:MAX_ALERTS]
    return () if items and not theirs else (plain,)


def _is_ours(item: Mapping[str, Any]) -> bool:
    key = item.get("alert_key")
    return isinstance(key, str) and key.startswith(OURS)


def _alerts(plain: Alert, item: Mapping[str, Any]) -> Iterator[Alert]:
    details = _details(item)
    structured = [found for said in details if (found := _texts(said.get("labels")))]
    listed: list[Said] = [(labels, {}) for labels in structured[:1]]
    listed = listed or _first(map(_firing, details))
    known = [(labels, notes) for labels, notes in listed if "alertname" in labels]
    for labels, notes in known:
        yield _made(plain, labels, notes, alertmanager_fingerprint(labels))
    if known:
        return
    flat = _first([*structured, *map(_flat, details)])
    if flat:
        key = item.get("id")
        own = f"pagerduty/{identity(clean(key))}" if isinstance(key, str) else plain.fingerprint
        yield _made(plain, dict(flat), {}, own)


def _first(found: Iterable[Any]) -> Any:
    return next((one for one in found if one), [])


def _made(plain: Alert, labels: Labels, annotations: Labels, fingerprint: str) -> Alert:
    """Return an alert with ``labels``, and those by which PagerDuty knows it."""
    own = {name: plain.labels[name] for name in _OWN if name in plain.labels}
    return plain.model_copy(
        update={
            "fingerprint": fingerprint,
            "labels": plain.labels | labels | own,
            "annotations": plain.annotations | annotations,
        }
    )


def _details(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the mappings in which senders put what they know, the likeliest first."""
    body = item.get("body")
    if not isinstance(body, dict):
        return []
    common = body.get("cef_details")
    inner = common.get("details") if isinstance(common, dict) else None
    return [one for one in (body.get("details"), inner, common) if isinstance(one, dict)]


def _texts(said: object) -> Labels:
    """Return a mapping of texts within the bounds; nothing of one that is anything else."""
    if not isinstance(said, dict) or not 0 < len(said) <= MAX_LABELS:
        return {}
    for name, value in said.items():
        fits = isinstance(value, str) and len(value) <= MAX_VALUE and 0 < len(name) <= MAX_NAME
        if not fits:
            return {}
    return {clean(name): clean(value) for name, value in said.items()}


def _flat(details: Mapping[str, Any]) -> Labels:
    texts = {
        clean(name): clean(value)
        for name, value in details.items()
        if isinstance(value, str) and name not in _NOT_FLAT
    }
    short = {k: v for k, v in texts.items() if 0 < len(k) <= MAX_NAME and 0 < len(v) <= MAX_VALUE}
    return dict(list(short.items())[:MAX_LABELS])


def _firing(details: Mapping[str, Any]) -> list[Said]:
    """Read what Alertmanager says fires; nothing when it is not as many as it says."""
    said = details.get("firing")
    if isinstance(said, str):
        said = said[: MAX_LISTED + 1]
        if len(said) > MAX_LISTED:
            return []
        found = _structured(said) if said.lstrip().startswith("[") else _written(said)
    else:
        found = _structured(said)
    announced = str(details.get("num_firing", "")).strip()
    if announced.isdecimal() and announced != str(len(found)):
        return []
    return found if len(found) <= MAX_ALERTS and all(labels for labels, _ in found) else []


def _structured(said: object) -> list[Said]:
    try:
        items = json.loads(said) if isinstance(said, str) else said
    except (ValueError, RecursionError):
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return []
    return [(_texts(item.get("labels")), _texts(item.get("annotations"))) for item in items]


def _written(text: str) -> list[Said]:
    """Read Alertmanager's own text: ``Labels:``, ``Annotations:`` and ``Source:`` by alert."""
    found: list[Said] = []
    into: Labels | None = None
    name = ""
    for raw in text.split("\n"):
        line = raw.rstrip("\r")
        pair = _PAIR.fullmatch(line)
        if line == "Labels:":
            found.append(({}, {}))
            into = found[-1][0]
        elif line == "Annotations:" and found:
            into = found[-1][1]
        elif line.startswith("Source:"):
            into = None
        elif pair is not None and into is not None:
            name = pair[1]
            into[name] = pair[2]
        elif into is not None and name in into:  # a value of several lines
            into[name] += f"\n{line}"
    return [(_texts(labels), _bounded(notes)) for labels, notes in found]


def _bounded(notes: Labels) -> Labels:
    cut = {clean(k)[:MAX_NAME]: clean(v)[:MAX_VALUE] for k, v in notes.items()}
    return dict(list(cut.items())[:MAX_LABELS])
