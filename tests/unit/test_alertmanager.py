"""What a webhook's body becomes: alerts, dead letters, or a rejection."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remediator.api.body import EXCERPT
from remediator.intake.alertmanager import (
    CUT,
    MAX_ALERTS,
    MAX_DEAD,
    MAX_GROUP_KEY,
    MAX_LABELS,
    MAX_NAME,
    MAX_VALUE,
    Parsed,
    TooManyAlerts,
    parse,
)
from remediator.intake.replay import read_plain
from remediator.model.alert import AlertStatus, Source
from remediator.model.errors import RejectedDelivery
from remediator.model.fingerprint import fingerprint_of

NOW = datetime(2026, 11, 20, 16, tzinfo=UTC)
SAMPLES = Path(__file__).parent.parent / "samples"
GOOD = {
    "status": "firing",
    "labels": {"alertname": "PoolExhausted", "service": "orders"},
    "annotations": {"summary": "no connection is free"},
    "startsAt": "2026-11-20T15:47:32.558Z",
    "endsAt": "0001-01-01T00:00:00Z",
    "fingerprint": "64d89eb7e9217d22",
}


def body_of(*alerts: object, **more: object) -> bytes:
    return json.dumps({"version": "4", "groupKey": "{}:{}", "alerts": alerts, **more}).encode()


def parse_one(**changes: Any) -> Parsed:
    alert = {**GOOD, **changes}
    return parse(body_of({k: v for k, v in alert.items() if v is not ...}), NOW)


def test_a_recorded_firing_group_becomes_its_alerts() -> None:
    parsed = parse((SAMPLES / "am_firing_group3.json").read_bytes(), NOW)
    assert parsed.dead == ()
    assert [a.labels["pod"] for a in parsed.alerts] == ["cart-0", "cart-1", "cart-2"]
    first = parsed.alerts[0]
    assert first.source is Source.ALERTMANAGER
    assert first.status is AlertStatus.FIRING
    assert first.fingerprint == "7aaa8934bf7ae528"
    assert first.starts_at == datetime(2026, 11, 20, 15, 47, 40, 558000, tzinfo=UTC)
    assert first.ends_at is None
    assert first.group_key


def test_a_recorded_resolved_group_says_when_it_ended() -> None:
    parsed = parse((SAMPLES / "am_resolved_group3.json").read_bytes(), NOW)
    assert {a.status for a in parsed.alerts} == {AlertStatus.RESOLVED}
    assert parsed.alerts[0].ends_at == datetime(2026, 11, 20, 15, 49, 34, 558000, tzinfo=UTC)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"nonsense", b"[]", b'"text"', b"null", b"{}", b'{"alerts": null}', b"1"),
        *(b'{"alerts": {}}', b'{"alerts": [', b"[" * 100_000, b'{"x":' * 100_000, b"\xff\xfe"),
        b'{"alerts": []} x',
    ],
)
def test_a_body_without_a_list_of_alerts_is_rejected(body: bytes) -> None:
    with pytest.raises(RejectedDelivery):
        parse(body, NOW)


def test_an_empty_list_and_unknown_fields_are_fine() -> None:
    assert parse(b'{"alerts": [], "new": {"in": ["0.99"]}}', NOW) == Parsed(())
    assert len(parse_one(generatorURL="http://x", values=None).alerts) == 1


@pytest.mark.parametrize(
    ("text", "microsecond", "hour"),
    [
        ("2026-11-20T15:47:32Z", 0, 15),
        ("2026-11-20T15:47:32.5Z", 500_000, 15),
        ("2026-11-20T15:47:32.123456789Z", 123_456, 15),
        ("2026-11-20T15:47:32.999999999z", 999_999, 15),
        ("2026-11-20t15:47:32.000000001+00:00", 0, 15),
        ("2026-11-20T17:47:32.12+02:00", 120_000, 15),
        ("2026-11-20T15:17:32-00:30", 0, 15),
    ],
)
def test_instants_of_any_precision_and_offset_are_read_to_the_microsecond(
    text: str, microsecond: int, hour: int
) -> None:
    (alert,) = parse_one(startsAt=text).alerts
    assert alert.starts_at == datetime(2026, 11, 20, hour, 47, 32, microsecond, tzinfo=UTC)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"labels": ...}, "alerts[0].labels is missing"),
        ({"labels": None}, "alerts[0].labels is missing"),
        ({"labels": ["a"]}, "alerts[0].labels is a list"),
        ({"labels": {"replicas": 3}}, "alerts[0].labels.replicas is a number"),
        ({"labels": {"ok": True}}, "alerts[0].labels.ok is true or false"),
        ({"labels": {"x": None}}, "alerts[0].labels.x is null"),
        ({"annotations": {"x": {}}}, "alerts[0].annotations.x is an object"),
        ({"startsAt": ...}, "alerts[0].startsAt is missing"),
        ({"startsAt": "yesterday"}, "alerts[0].startsAt is 'yesterday'"),
        ({"startsAt": "2026-02-30T00:00:00Z"}, "which is no point in time"),
        ({"startsAt": "9999-12-31T23:59:59-01:00"}, "which is no point in time"),
        ({"startsAt": "2026-11-20T15:47:32"}, "alerts[0].startsAt is"),
        ({"startsAt": 1763650000}, "alerts[0].startsAt is a number"),
        ({"endsAt": "later"}, "alerts[0].endsAt is 'later'"),
        ({"status": "suppressed"}, "alerts[0].status is 'suppressed'"),
        ({"status": ...}, "alerts[0].status is missing"),
        ({"status": ["firing"]}, "alerts[0].status is a list"),
        ({"labels": {str(n): "" for n in range(MAX_LABELS + 1)}}, "513 entries"),
        ({"labels": {"n" * (MAX_NAME + 1): ""}}, "a name of 1025 characters"),
    ],
)
def test_a_bad_alert_is_a_dead_letter_that_says_what_and_where(
    changes: dict[str, Any], where: str
) -> None:
    parsed = parse_one(**changes)
    assert parsed.alerts == ()
    (letter,) = parsed.dead
    assert where in letter.reason
    assert letter.position == 0
    assert letter.excerpt.startswith("{")


def test_a_bad_alert_does_not_spoil_its_neighbours() -> None:
    parsed = parse(body_of(GOOD, {"labels": {"a": 1}}, 7, None, [], "x", GOOD), NOW)
    assert len(parsed.alerts) == 2
    assert [letter.position for letter in parsed.dead] == [1, 2, 3, 4, 5]


def test_the_zero_time_means_not_set() -> None:
    (alert,) = parse_one(startsAt="0001-01-01T00:00:00Z", endsAt="0001-01-01T00:00:00+05:00").alerts
    assert alert.starts_at == NOW
    assert alert.ends_at is None


@pytest.mark.parametrize("claimed", [..., None, "", "64d89eb7e9217d22", "f" * 10_000, 7, [1]])
def test_the_fingerprint_is_computed_from_the_labels_whatever_the_sender_claims(
    claimed: object,
) -> None:
    one = parse_one(fingerprint=claimed, labels={"a": "1", "b": "2"}).alerts[0]
    other = parse_one(fingerprint=..., labels={"b": "2", "a": "1"}).alerts[0]
    assert one.fingerprint == other.fingerprint == fingerprint_of({"a": "1", "b": "2"})
    assert fingerprint_of({"a": "1", "b": "3"}) != one.fingerprint


@pytest.mark.parametrize("name", ["am_firing_single", "am_firing_group3", "am_resolved_group3"])
def test_the_computed_fingerprint_is_that_of_a_real_alertmanager(name: str) -> None:
    body = (SAMPLES / f"{name}.json").read_bytes()
    claimed = [alert["fingerprint"] for alert in json.loads(body)["alerts"]]
    assert [alert.fingerprint for alert in parse(body, NOW).alerts] == claimed


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [
        ("9999-11-20T15:47:32Z", "9999-11-20T15:47:32Z", (NOW, NOW)),
        ("2026-11-20T16:00:01Z", "2026-11-20T16:00:00Z", (NOW, NOW)),
        ("1969-12-31T23:59:59Z", "0002-01-01T00:00:00Z", (NOW, None)),
        ("2026-11-20T15:00:00Z", "0001-01-01T00:00:00Z", (NOW.replace(hour=15), None)),
    ],
)
def test_nothing_begins_or_ends_after_it_was_received_or_before_there_were_clocks(
    starts: str, ends: str, expected: tuple[datetime, datetime | None]
) -> None:
    (alert,) = parse_one(startsAt=starts, endsAt=ends, status="resolved").alerts
    assert (alert.starts_at, alert.ends_at) == expected


def test_a_long_group_key_is_cut_since_each_alert_is_stored_with_it() -> None:
    body = body_of(GOOD).replace(b"{}:{}", b"k" * 60_000)
    assert len(parse(body, NOW).alerts[0].group_key or "") == MAX_GROUP_KEY


@pytest.mark.parametrize("good", [True, False])
def test_a_body_with_too_many_alerts_is_refused_as_a_whole(good: bool) -> None:
    item = GOOD if good else {"labels": 1}
    assert len(parse(body_of(*[GOOD] * 3, item), NOW, 4).alerts) in (3, 4)
    with pytest.raises(TooManyAlerts, match="max_alerts"):
        parse(body_of(*[GOOD] * 4, item), NOW, 4)


@pytest.mark.parametrize(
    "body",
    [
        b'{"alerts":[' + b"1," * 3_000_000 + b"1]}",
        b'{"alerts":[' + b"{}," * 2_000_000 + b"{}]}",
        b'{"x":[' + b"[]," * 2_000_000 + b'[]],"alerts":[]}',
        b'{"alerts":[{"labels":{' + b'"a":"",' * 700_000 + b'"a":""}}]}',
    ],
    ids=["numbers", "objects", "lists beside", "labels"],
)
def test_what_would_take_much_memory_is_refused_before_it_is_parsed(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TooManyAlerts):
            parse(body, NOW)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024


def test_as_many_alerts_as_are_taken_are_read_within_a_bound_of_memory() -> None:
    body = body_of(*({**GOOD, "labels": {"alertname": str(n)}} for n in range(MAX_ALERTS)))
    tracemalloc.start()
    try:
        assert len(parse(body, NOW).alerts) == MAX_ALERTS
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024 * 1024


def test_an_alert_that_is_not_its_senders_to_speak_of_is_a_dead_letter() -> None:
    def foreign(labels: Mapping[str, str]) -> str | None:
        return "not yours" if labels.get("a") else None

    parsed = parse(body_of(GOOD, {**GOOD, "labels": {"a": "1"}}), NOW, foreign=foreign)
    assert len(parsed.alerts) == 1
    assert [letter.reason for letter in parsed.dead] == ["alerts[1]: not yours"]


@pytest.mark.parametrize(
    ("given", "count"),
    [(0, 0), (7, 7), (-1, 0), (None, 0), ("3", 0), (2.5, 0), (10**400, 0)],
)
def test_alerts_that_the_sender_left_out_are_counted(given: object, count: int) -> None:
    assert parse(body_of(GOOD, truncatedAlerts=given), NOW).truncated == count


def test_what_no_database_can_hold_is_replaced() -> None:
    body = body_of({**GOOD, "labels": {"a\0": "b\0", "c": "\ud800", "d": "\U0001f600"}})
    (alert,) = parse(body, NOW).alerts
    assert alert.labels == {"a\ufffd": "b\ufffd", "c": "\ufffd", "d": "\U0001f600"}


def test_bytes_that_are_not_utf_8_spoil_one_text_only() -> None:
    body = body_of(GOOD, {**GOOD, "labels": {"a": "@"}}).replace(b"@", b"\xff")
    assert [a.labels.get("a") for a in parse(body, NOW).alerts] == [None, "\ufffd"]


def test_a_huge_value_is_cut_with_a_mark() -> None:
    (alert,) = parse_one(annotations={"log": "x" * 200_000}).alerts
    assert len(alert.annotations["log"]) == MAX_VALUE
    assert alert.annotations["log"].endswith(CUT)


@pytest.mark.parametrize("value", ["NaN", "1e999", "9" * 5000, "[" * 500 + "]" * 500])
def test_odd_values_in_ignored_fields_are_ignored(value: str) -> None:
    body = body_of(GOOD, odd="@").replace(b'"@"', value.encode())
    assert len(parse(body, NOW).alerts) == 1


def test_of_a_name_that_is_given_twice_the_last_counts() -> None:
    body = body_of({**GOOD, "labels": {"a": "1", "@": "2"}}).replace(b"@", b"a")
    assert parse(body, NOW).alerts[0].labels == {"a": "2"}


def test_a_flood_of_bad_alerts_is_bounded_and_counted() -> None:
    parsed = parse(body_of(*range(5000), GOOD), NOW)
    assert len(parsed.alerts) == 1
    assert len(parsed.dead) == MAX_DEAD
    assert "4001 alerts from here on" in parsed.dead[-1].reason


def test_an_excerpt_is_at_most_64_kib() -> None:
    parsed = parse_one(status="?", annotations={"a": "\u00e9\0" * 100_000})
    assert len(parsed.dead[0].excerpt.encode()) <= EXCERPT


def test_a_plain_alert_fires_since_now() -> None:
    alert = read_plain({"labels": {"alertname": "X"}, "annotations": {"a": "b"}, "more": 1}, NOW)
    assert (alert.source, alert.status, alert.starts_at) == (Source.REPLAY, AlertStatus.FIRING, NOW)
    assert alert.fingerprint == fingerprint_of({"alertname": "X"})


@pytest.mark.parametrize("labels", [None, [], {"a": 1}, "x"])
def test_a_plain_alert_that_cannot_be_read_is_rejected(labels: object) -> None:
    with pytest.raises(RejectedDelivery, match="labels"):
        read_plain({"labels": labels}, NOW)


# --- for any input ----------------------------------------------------------------------------

odd_text = st.text(st.characters(exclude_categories=()), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_text, inner, max_size=4),
    max_leaves=12,
)
instants = st.sampled_from(["2026-11-20T15:47:32Z", "0001-01-01T00:00:00Z", "9999-99-99T99:99:99Z"])
near_alerts = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["firing", "resolved"]) | json_values,
        "labels": st.dictionaries(odd_text, odd_text, max_size=4) | json_values,
        "annotations": st.dictionaries(odd_text, odd_text, max_size=4) | json_values,
        "startsAt": instants | odd_text | json_values,
        "endsAt": instants | odd_text | json_values,
        "fingerprint": odd_text | json_values,
    },
)


def storable(parsed: Parsed) -> None:
    for value in (*parsed.alerts, *parsed.dead):
        text = value.model_dump_json()  # a lone surrogate cannot be written
        assert "\\u0000" not in text.replace("\\\\u0000", "")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_rejected(body: bytes) -> None:
    with suppress(RejectedDelivery):
        storable(parse(body, NOW))


@given(json_values | st.fixed_dictionaries({"alerts": json_values}))
def test_any_json_is_read_or_rejected(value: object) -> None:
    with suppress(RejectedDelivery):
        storable(parse(json.dumps(value).encode(), NOW))


@given(st.lists(near_alerts | json_values, max_size=4), st.integers(0, 4), json_values)
@example([{**GOOD, "labels": {"\ud800": "\0"}}], 0, "\udfff\0")
def test_a_good_alert_survives_any_neighbours(
    neighbours: list[Any], place: int, group_key: object
) -> None:
    items = [*neighbours[:place], GOOD, *neighbours[place:]]
    for ascii_only in (True, False):
        text = json.dumps({"alerts": items, "groupKey": group_key}, ensure_ascii=ascii_only)
        parsed = parse(text.encode(errors="replace"), NOW)
        assert any(a.labels == GOOD["labels"] for a in parsed.alerts)
        assert len(parsed.alerts) + len(parsed.dead) == len(items)
        storable(parsed)
