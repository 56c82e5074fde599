"""What is silenced and what is not, and the settings that ask for it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.config.settings import Settings, load_settings
from remediator.model.alert import Alert, AlertStatus
from remediator.model.base import IncidentId
from remediator.model.errors import ConfigError
from remediator.model.ports import Silence
from remediator.remediation.silence_plan import Order, Seen, Wish, labels_of, plan, surplus, unheard
from remediator.service.backends import open_silences
from remediator.testing import firing_alert

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
INCIDENT = IncidentId("inc-1")
HOUR = timedelta(hours=1)
LASTING = timedelta(minutes=15)
LINGER = timedelta(minutes=15)

labels = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), min_size=1)


def alert(given: dict[str, str], starts_at: datetime = NOW - HOUR) -> Alert:
    return firing_alert("A", given, starts_at).model_copy(update={"labels": given})


def wish(given: dict[str, str]) -> Wish:
    return Wish(incident_id=INCIDENT, labels=given, lasting=LASTING)


def silence(
    given: dict[str, str],
    *,
    name: str = "s1",
    since: timedelta = timedelta(minutes=1),
    left: timedelta = timedelta(minutes=10),
    ended: bool = False,
) -> Silence:
    return Silence(
        id=name,
        incident_id=INCIDENT,
        labels=given,
        starts_at=NOW - since,
        ends_at=NOW + left,
        ended=ended,
    )


def seen(*silences: Silence, alerts: tuple[Alert, ...] = ()) -> Seen:
    return Seen(silences, {INCIDENT: alerts}, NOW)


def done(*orders: Order) -> list[tuple[str, str | None]]:
    return [(order.verb, order.silence.id if order.silence else None) for order in orders]


# --- what is decided --------------------------------------------------------------------------


@given(st.lists(labels, max_size=5), st.lists(labels, max_size=5))
def test_silences_mute_only_what_fires_and_is_wished_for(
    wished: list[dict[str, str]], firing: list[dict[str, str]]
) -> None:
    alerts = [alert(one) for one in firing]
    orders = list(plan([wish(one) for one in wished], seen(), alerts, HOUR))
    for order in orders:
        assert order.verb == "mute"
        assert order.labels in firing
        muted = [one for one in firing if order.labels.items() <= one.items()]
        assert all(one in wished for one in muted)


def test_silence_that_has_time_left_is_left_alone() -> None:
    a = {"a": "1"}
    assert list(plan([wish(a)], seen(silence(a)), [alert(a)], HOUR)) == []


def test_silence_that_runs_out_is_renewed_from_now() -> None:
    a = {"a": "1"}
    (order,) = plan([wish(a)], seen(silence(a, left=timedelta(minutes=5))), [alert(a)], HOUR)
    assert (order.verb, order.until) == ("renew", NOW + LASTING)


def test_all_silences_of_an_incident_end_an_hour_after_the_first_began() -> None:
    a, b = {"a": "1"}, {"b": "1"}
    first = silence(a, name="old", since=timedelta(minutes=50), left=-HOUR, ended=True)
    (order,) = plan([wish(b)], seen(first), [alert(b)], HOUR)
    assert (order.verb, order.until) == ("mute", NOW + timedelta(minutes=10))
    older = silence(a, name="old", since=HOUR, left=-timedelta(minutes=1), ended=True)
    assert list(plan([wish(b)], seen(older), [alert(b)], HOUR)) == []


def test_silence_that_would_outlive_us_by_far_is_cut_short() -> None:
    a = {"a": "1"}
    (order,) = plan([wish(a)], seen(silence(a, left=10 * HOUR)), [alert(a)], HOUR)
    assert (order.verb, order.until) == ("renew", NOW + LASTING)


def test_what_is_not_wished_for_any_more_is_ended_and_of_two_the_younger() -> None:
    a, b = {"a": "1"}, {"b": "1"}
    younger = silence(a, name="younger", since=timedelta(0))
    older, other = silence(a, name="older"), silence(b, name="other")
    over = silence(b, name="over", ended=True)
    orders = surplus([wish(a)], seen(younger, other, older, over))
    assert sorted(done(*orders)) == [("end", "other"), ("end", "younger")]


def test_resolve_is_told_of_an_alert_that_was_silenced_and_is_gone() -> None:
    a, never = {"a": "1"}, {"b": "1"}
    look = seen(silence(a, left=-HOUR, ended=True), alerts=(alert(a), alert(never)))
    (told,) = unheard(look, [], LINGER)
    assert (told.status, told.labels, told.ends_at) == (AlertStatus.RESOLVED, a, NOW)
    assert list(unheard(look, [alert(a)], LINGER)) == []


def test_resolve_is_never_before_the_start_whatever_the_clocks_say() -> None:
    a = {"a": "1"}
    ahead = alert(a, NOW + timedelta(minutes=1))
    (told,) = unheard(seen(silence(a), alerts=(ahead,)), [], LINGER)
    assert told.ends_at == ahead.starts_at


@pytest.mark.parametrize(
    ("left", "ended", "again", "told"),
    [
        (timedelta(minutes=1), False, timedelta(minutes=1), True),
        (-timedelta(minutes=1), True, timedelta(minutes=1), True),
        (-HOUR, True, timedelta(minutes=1), False),
        (timedelta(minutes=1), False, timedelta(0), False),
    ],
)
def test_new_start_is_told_only_of_a_later_one_and_soon_after_the_silence(
    left: timedelta,
    ended: bool,
    again: timedelta,
    told: bool,
) -> None:
    a = {"a": "1"}
    over = alert(a).model_copy(update={"status": AlertStatus.RESOLVED, "ends_at": NOW})
    look = seen(silence(a, left=left, ended=ended), alerts=(over,))
    begun = alert(a, over.starts_at + again)
    found = list(unheard(look, [begun], LINGER))
    assert [one.starts_at for one in found] == ([begun.starts_at] if told else [])


def test_labels_are_compared_as_a_whole() -> None:
    assert labels_of({"a": "1"}) < labels_of({"a": "1", "b": "2"})
    assert not labels_of({"a": "1"}) < labels_of({"a": "2", "b": "2"})


# --- settings ---------------------------------------------------------------------------------


Load = Callable[[str], Settings]
SERVICE = """
backends:
  alertmanager: {main: {url: "http://alertmanager:9093", token_env: AM}}
systems:
  shop:
    services:
      orders: {match: {service: orders}, EXTRA}
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> Settings:
        (tmp_path / "remediator.yaml").write_text(textwrap.dedent(text))
        return load_settings(None, {"HOME": "/home/ann"}, tmp_path)

    return load


def test_service_is_loud_unless_it_asks_for_silence(load: Load) -> None:
    (plain,) = load(SERVICE.replace("EXTRA", "alertmanager: main")).catalogue().services
    assert (plain.alertmanager, plain.silence) == ("main", False)
    asks = SERVICE.replace("EXTRA", "alertmanager: main, silence: true")
    (silent,) = load(asks).catalogue().services
    assert silent.silence


@pytest.mark.parametrize(
    ("extra", "line", "said"),
    [
        ("silence: true", 7, "needs alertmanager"),
        ("alertmanager: other, silence: true", 7, "there is no 'other' in backends.alertmanager"),
        ("alertmanager: main, silence: 'yes'", 7, "silence"),
    ],
)
def test_silence_without_a_known_alertmanager_is_refused_with_its_line(
    load: Load, extra: str, line: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(SERVICE.replace("EXTRA", extra))
    assert f"remediator.yaml:{line}:" in str(caught.value)


def test_alertmanager_with_two_ways_to_sign_in_is_refused(load: Load) -> None:
    text = 'backends: {alertmanager: {main: {url: "http://a", token_env: A, basic_env: B}}}'
    with pytest.raises(ConfigError, match="keep one of them"):
        load(text)


async def test_alertmanager_opens_with_its_secret_or_says_which_is_missing(load: Load) -> None:
    settings = load(SERVICE.replace("EXTRA", "alertmanager: main"))
    async with open_silences(settings, {"AM": "t0p"}) as opened:
        assert list(opened) == ["main"]
    with pytest.raises(ConfigError, match="environment variable AM is not set"):
        async with open_silences(settings, {}):
            pass
