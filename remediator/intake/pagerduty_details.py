"""NORMALISE: what PagerDuty's REST API tells of an incident's alerts becomes labels. Pure.

In order of trust: a mapping ``labels``, the list that Alertmanager writes into ``firing``, plain
texts. Labels that came through Alertmanager make the same identity as there, so that the same
alert coming by both ways is one.

Alertmanager's text has no quoting: a value with line breaks can look like further labels. So a text
is read only if it is exactly as Alertmanager would write it, with every name once and in order; of
any other nothing is believed, and the alert says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from remediator.intake.alertmanager import clean
from remediator.intake.pagerduty import OURS, identity
from remediator.model.alert import Alert
from remediator.model.fingerprint import fingerprint_of

MAX_ALERTS = 200
"""Alerts of one incident that are looked at."""
MAX_LABELS = 64
MAX_NAME = 200
MAX_VALUE = 4096
MAX_LISTED = 256 * 1024
"""Characters of a list of alerts that is read."""
_OWN = ("pagerduty_service", "pagerduty_incident")
_NOT_FLAT = frozenset({"firing", "resolved", "num_firing", "num_resolved", "labels"})
_PAIR = re.compile(r" - ([^\s=]+) = (.*)")
_PAIR_INSIDE = re.compile(r"\s- [^\s=]+ = ")
REFUSED = "labels_refused"
"""Annotation of an alert whose list of labels is not believed: the reason."""

Labels = dict[str, str]
Said = tuple[Labels, Labels]
"""Labels and annotations."""


class _Doubtful(Exception):
    """Says why a list of labels is not believed."""


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
    try:
        listed = listed or _first(_firing(plain, said) for said in details)
    except _Doubtful as error:
        own = plain.annotations | {REFUSED: str(error)}
        yield plain.model_copy(update={"annotations": own})
        return
    known = [(labels, notes) for labels, notes in listed if "alertname" in labels]
    for labels, notes in known:
        yield _made(plain, labels, notes, fingerprint_of(labels))
    if known:
        return
    flat = _first([*structured, *map(_flat, details)])
    if flat:
        key = item.get("id")
        own_key = f"pagerduty/{identity(clean(key))}" if isinstance(key, str) else plain.fingerprint
        yield _made(plain, dict(flat), {}, own_key)


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


def _firing(plain: Alert, details: Mapping[str, Any]) -> list[Said]:
    """Read what Alertmanager says fires; raises ``_Doubtful`` for what it would not write."""
    said = details.get("firing")
    announced = str(details.get("num_firing", "")).strip()
    if isinstance(said, str) and not said.lstrip().startswith("["):
        found = _from_text(plain, said, announced) if said.strip() else []
    else:
        found = _structured(said)
        if announced.isdecimal() and announced != str(len(found)):
            return []
    return found if len(found) <= MAX_ALERTS and all(labels for labels, _ in found) else []


def _from_text(plain: Alert, text: str, announced: str) -> list[Said]:
    if len(text) > MAX_LISTED:
        raise _Doubtful(f"the list of what fires has more than {MAX_LISTED} characters")
    if _PAIR_INSIDE.search(plain.annotations.get("summary", "")):
        raise _Doubtful("the incident's title has a label's value that looks like another label")
    found = _written(text)
    if announced != str(len(found)):
        said = f"num_firing says {announced[:20]!r}" if announced else "num_firing is missing"
        raise _Doubtful(f"the list of what fires has {len(found)} alerts, and {said}")
    return found


def _structured(said: object) -> list[Said]:
    try:
        items = json.loads(said[:MAX_LISTED]) if isinstance(said, str) else said
    except (ValueError, RecursionError):
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return []
    return [(_texts(item.get("labels")), _texts(item.get("annotations"))) for item in items]


def _written(text: str) -> list[Said]:
    """Read Alertmanager's own text: ``Labels:``, ``Annotations:`` and ``Source:`` by alert.

    Annotations may have several lines. A label may not: what its further lines are is not known.
    """
    found: list[Said] = []
    part, name = "", ""
    for raw in text.split("\n"):
        line = raw.rstrip("\r")
        pair = _PAIR.fullmatch(line)
        if line == "Labels:" and part in ("", "Source:"):
            found.append(({}, {}))
            part = line
        elif line == "Annotations:" and part == "Labels:":
            part, name = line, ""
        elif line.startswith("Source:") and part == "Annotations:":
            part = "Source:"
        elif part == "Labels:":
            _add_label(found[-1][0], pair)
        elif part == "Annotations:":
            name = _add_note(found[-1][1], pair, name, line)
        elif line.strip():
            raise _Doubtful(
                f"the list of what fires has a line that belongs nowhere: {_shown(line)}"
            )
    return [(_texts(labels), _bounded(notes)) for labels, notes in found]


def _add_label(labels: Labels, pair: re.Match[str] | None) -> None:
    """Add a label in Alertmanager's order: ``alertname`` first, the others by name."""
    if pair is None:
        raise _Doubtful(f"the value of the label {_shown(_last(labels))} has several lines")
    name = pair[1]
    if name in labels:
        raise _Doubtful(f"the label {_shown(name)} is given twice")
    after = _last(labels)
    if (name == "alertname" and labels) or (after not in ("", "alertname") and name < after):
        raise _Doubtful(f"the label {_shown(name)} comes after {_shown(after)}, out of order")
    labels[name] = pair[2]


def _add_note(notes: Labels, pair: re.Match[str] | None, name: str, line: str) -> str:
    """Add an annotation, or a line to that of ``name``; return the name of the one that is open."""
    if pair is not None:
        notes[pair[1]] = pair[2]
        return pair[1]
    if name:
        notes[name] += f"\n{line}"
    return name


def _last(labels: Labels) -> str:
    return next(reversed(labels), "")


def _shown(text: str) -> str:
    return repr(text[:100])


def _bounded(notes: Labels) -> Labels:
    cut = {clean(k)[:MAX_NAME]: clean(v)[:MAX_VALUE] for k, v in notes.items()}
    return dict(list(cut.items())[:MAX_LABELS])
