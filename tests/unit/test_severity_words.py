"""What senders' words for severities mean, and what the configuration says about them."""

from __future__ import annotations

import re
import textwrap
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from remediator.config.settings import Settings, load_settings
from remediator.model.catalog import Service
from remediator.model.errors import ConfigError
from remediator.model.severity import LONGEST_WORD, WORDS, Handling, Rating, Severities, rank, worst

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"
PLAYBOOKS = "{}"


def load(tmp_path: Path, text: str) -> Settings:
    (tmp_path / "remediator.yaml").write_text(textwrap.dedent(text))
    return load_settings(None, {"HOME": str(tmp_path)}, tmp_path)


def orders(tmp_path: Path, top: str = "", system: str = "", service: str = "") -> Service:
    """Load one service of one system, with a line more for each of the three levels."""
    text = f"""
{top}
systems:
  shop:
    match: {{system: shop}}
    {system}
    services:
      orders:
        match: {{service: orders}}
        {service}
"""
    found = load(tmp_path, text).catalogue().service("shop", "orders")
    assert found is not None
    return found


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "severity"),
    [
        ("critical", 1),
        ("CRITICAL", 1),
        ("page", 1),
        ("P0", 1),
        ("P1", 1),
        ("L1", 1),
        ("Level 1", 1),
        ("Sev 1", 1),
        ("SEV-1", 1),
        ("severity_1", 1),
        ("1", 1),
        ("P1 - Critical", 1),
        ("Severity 1 (Critical - Trading Halt)", 1),
        ("error", 2),
        ("high", 2),
        ("Level 2", 2),
        ("warning", 3),
        ("P3", 3),
        ("info", 4),
        ("none", 4),
    ],
)
def test_common_words_are_known_without_any_configuration(word: str, severity: int) -> None:
    assert Severities().rate({"severity": word}) == Rating(severity=severity, word=word)


@pytest.mark.parametrize("labels", [{}, {"severity": ""}, {"severity": "  "}, {"team": "P0"}])
def test_a_missing_word_is_3_and_not_the_mildest(labels: dict[str, str]) -> None:
    assert Severities().rate(labels) == Rating(severity=3, word="")


@pytest.mark.parametrize("word", ["purple", "P9", "Sev 17", "not critical", "-"])
def test_an_unknown_word_is_3_and_stays_visible(word: str) -> None:
    assert Severities().rate({"severity": word}) == Rating(severity=3, word=word)
    assert not Severities().knows(word)


def test_the_first_label_with_a_known_word_counts() -> None:
    severities = Severities()
    both = {"severity": "warning", "priority": "P1"}
    assert severities.rate(both) == Rating(severity=3, word="warning")
    assert severities.rate({"severity": "purple", "priority": "P2"}).severity == 2
    assert severities.rate({"level": "L2"}).severity == 2


def test_a_senders_word_is_kept_short_and_on_one_line() -> None:
    rating = Severities().rate({"severity": "P1\n\x1b[2J\u202e" + "x" * 1_000_000})
    assert len(rating.word) <= LONGEST_WORD
    assert rating.word.isprintable()


def test_the_worst_of_several_counts_with_its_own_word() -> None:
    ratings = [Severities().rate({"severity": word}) for word in ("info", "P1", "page", "warn")]
    assert worst(ratings) == Rating(severity=1, word="P1")


def test_the_order_is_by_severity_and_what_is_only_recorded_comes_last() -> None:
    everything = [(severity, handling) for severity in (4, 3, 2, 1) for handling in Handling]
    ordered = sorted(everything, key=lambda pair: rank(*pair))
    acting = [(s, h) for s in (1, 2, 3, 4) for h in (Handling.ACTS, Handling.ASKS)]
    assert ordered == acting + [(severity, Handling.RECORDS) for severity in (1, 2, 3, 4)]


# --- configuration ----------------------------------------------------------------------------


def test_words_are_inherited_one_by_one(tmp_path: Path) -> None:
    service = orders(
        tmp_path,
        "severities: {words: {P0: 1, P1: 2, purple: 4}, unknown: 2}",
        "severities: {words: {'Purple': 2}, labels: [grade, severity]}",
        "severities: {words: {teal: 1}}",
    )
    words = ("P0", "P1", "purple", "teal", "warning", "nonsense")
    found = [service.severities.rate({"grade": word}).severity for word in words]
    assert found == [1, 2, 2, 1, 3, 2]


def test_alerts_of_no_service_are_rated_by_the_top(tmp_path: Path) -> None:
    catalogue = load(tmp_path, "severities: {words: {purple: 1}}").catalogue()
    assert catalogue.severities.rate({"severity": "purple"}).severity == 1


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("{words: {P0: 0}}", "greater than or equal to 1"),
        ("{words: {P0: 5}}", "less than or equal to 4"),
        ("{words: {P0: '1'}}", "valid integer"),
        ("{words: {P0: 1, p-0: 2}}", "'P0' and 'p-0' are the same word; keep one of them"),
        ("{words: {'--': 1}}", "'--' is no word"),
        ("{labels: []}", "labels"),
        ("{unknown: 0}", "unknown"),
        ("{wrods: {}}", "wrods"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, entry: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(tmp_path, f"severities: {entry}")


def test_numbers_may_be_words(tmp_path: Path) -> None:
    severities = load(tmp_path, "severities: {words: {0: 1, 1: 2}}").catalogue().severities
    assert [severities.rate({"severity": word}).severity for word in ("0", "1")] == [1, 2]


def minutes(service: Service) -> list[float]:
    return [time.total_seconds() / 60 for _, time in sorted(service.approval_times.items())]


def test_an_approval_is_waited_for_5_15_and_60_minutes_by_severity(tmp_path: Path) -> None:
    assert minutes(orders(tmp_path)) == [5, 15, 60, 60]


def test_the_time_of_an_approval_may_be_set_for_all_or_by_severity(tmp_path: Path) -> None:
    assert minutes(orders(tmp_path, "approvals: {within: 20m}")) == [20, 20, 20, 20]
    service = orders(
        tmp_path,
        "approvals: {within: {sev1: 2m, sev4: 4h}}",
        "approvals: {high: 1, within: {sev2: 10m}}",
        "approvals: {within: {sev1: 3m}}",
    )
    assert minutes(service) == [3, 10, 60, 240]


@pytest.mark.parametrize(
    ("within", "complaint"),
    [
        ("soon", "should be a time with its unit"),
        ("0s", "approvals.within: should be a longer time"),
        ("15", "within"),
        ("{sev5: 1m}", "sev5"),
        ("{sev1: 0s}", "approvals.within.sev1: should be a longer time"),
    ],
)
def test_a_time_that_is_none_is_refused(tmp_path: Path, within: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(tmp_path, f"approvals: {{within: {within}}}")


# --- documentation ----------------------------------------------------------------------------


def test_the_documented_words_are_the_known_ones() -> None:
    rows = re.findall(r"^\| ([1-4]) \| ([^|]+) \|$", DOCS.read_text(), re.MULTILINE)
    documented = {
        word.strip(): int(severity) for severity, words in rows for word in words.split(",")
    }
    severities = Severities()
    for word, severity in documented.items():
        assert severities.rate({"severity": word}) == Rating(severity=severity, word=word)
    forms = {re.sub(r"[ -]", "", word.casefold()) for word in documented}
    assert forms == set(WORDS)


def test_the_documented_words_of_five_systems_mean_what_is_said(tmp_path: Path) -> None:
    (example,) = re.findall(
        r"```yaml\n(systems:\n  trading-engine:.*?)```", DOCS.read_text(), re.DOTALL
    )
    entries = yaml.safe_load(example)
    for entry in entries["systems"].values():
        entry["services"] = {"api": {}}
    catalogue = load(tmp_path, yaml.safe_dump(entries)).catalogue()

    def severities(system: str, label: str, *words: str) -> list[int]:
        service = catalogue.service(system, "api")
        assert service is not None
        return [service.severities.rate({label: word}).severity for word in words]

    ps = ("P0", "P1", "P2", "P3")
    assert severities("trading-engine", "severity", *ps) == [1, 2, 3, 4]
    assert severities("trademaster", "priority", *ps, "CRITICAL", "WARNING") == [1, 2, 3, 4, 1, 3]
    assert severities("order-book", "level", "Level 1", "L2", "level 3") == [1, 2, 3]
    levels = ("Severity 1", "Severity 2", "Severity 3")
    assert severities("pincex", "incident_severity", *levels) == [1, 2, 3]
    assert severities("tradesense", "priority", "P1", "P2", "P3", "P4") == [1, 2, 3, 4]


def test_a_time_of_an_approval_is_a_duration_in_the_catalogue(tmp_path: Path) -> None:
    assert orders(tmp_path).approval_times[1] == timedelta(minutes=5)
