"""Severity and class are on an incident from triage on, on both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from remediator.model.alert import Source
from remediator.model.incident import IncidentOutcome
from remediator.model.mitigation import MitigationState
from remediator.model.severity import Handling, Severities, Unmatched
from remediator.model.target import Mode
from tests.store_fixtures import Bench, OpenBench, a_service, resolved


def rated(incident: Any) -> tuple[int, str]:
    return incident.severity, incident.severity_word


async def test_an_incident_has_the_worst_severity_of_its_alerts_and_its_word(bench: Bench) -> None:
    await bench.receive(
        bench.alert(pod="1", severity="info"),
        bench.alert(pod="2", priority="P1"),
        bench.alert(pod="3", severity="warning"),
    )
    incident = await bench.incident()
    assert rated(incident) == (1, "P1")
    (opened,) = [event for event in incident.timeline if event.event == "opened"]
    assert opened.data == {"severity": 1, "word": "P1", "handling": "acts"}


async def test_an_alert_that_joins_later_makes_it_worse_and_never_milder(bench: Bench) -> None:
    await bench.receive(first := bench.alert(pod="1", severity="warning"))
    await bench.receive(bench.alert(pod="2", severity="P1"))
    assert rated(await bench.incident()) == (1, "P1")
    await bench.receive(bench.alert(pod="3", severity="info"))
    await bench.receive(bench.alert(pod="4", severity="critical"))
    await bench.receive(resolved(first, bench.clock))
    incident = await bench.incident()
    assert rated(incident) == (1, "P1")
    (raised,) = [event for event in incident.timeline if event.event == "severity raised"]
    assert "(P1) joined; was 3" in raised.reason
    (claim,) = await bench.claim()
    assert (claim.incident.severity, claim.incident.severity_word) == (1, "P1")


@pytest.mark.parametrize(("word", "shown"), [("purple", "purple"), ("", "")])
async def test_an_unknown_or_missing_word_is_3(bench: Bench, word: str, shown: str) -> None:
    await bench.receive(bench.alert(severity=word))
    assert rated(await bench.incident()) == (3, shown)


async def test_the_words_are_those_of_the_service(open_bench: OpenBench) -> None:
    words = Severities(words={"p1": 2}, unknown=4)
    service = a_service().model_copy(update={"severities": words})
    async with open_bench(services=[service, a_service("carts")]) as bench:
        await bench.receive(bench.alert(severity="P1"), bench.alert(service="carts", severity="P1"))
        found = {incident.service: incident.severity for incident in await bench.incidents()}
    assert found == {"orders": 2, "carts": 1}


async def test_an_alert_that_nothing_takes_has_its_severity_too(bench: Bench) -> None:
    await bench.receive(bench.alert(alertname="Other", severity="P2"))
    await bench.receive(bench.alert(system="elsewhere", severity="P4"))
    found = {incident.severity: incident for incident in await bench.incidents()}
    assert set(found) == {2, 4}
    assert {incident.outcome for incident in found.values()} == {IncidentOutcome.NO_MATCH}
    assert {incident.handling for incident in found.values()} == {Handling.RECORDS}


@pytest.mark.parametrize(
    ("mode", "handling"),
    [
        (Mode.AUTO, Handling.ACTS),
        (Mode.APPROVE, Handling.ASKS),
        (Mode.SHADOW, Handling.RECORDS),
        (Mode.OBSERVE, Handling.RECORDS),
    ],
)
async def test_the_class_is_known_from_the_modes_of_the_service(
    open_bench: OpenBench, mode: Mode, handling: Handling
) -> None:
    async with open_bench(services=[a_service(mode=mode)]) as bench:
        await bench.receive(bench.alert())
        assert (await bench.incident()).handling is handling


async def test_a_dry_run_only_records(bench: Bench) -> None:
    replay: dict[str, Any] = {"source": Source.REPLAY, "replay_of": "manual", "dry_run": True}
    await bench.receive(bench.alert(severity="P1"), **replay)
    incident = await bench.incident()
    assert (incident.handling, incident.severity) == (Handling.RECORDS, 1)


@pytest.mark.parametrize(("word", "minutes"), [("P1", 5), ("high", 15), ("warning", 60), ("", 60)])
async def test_an_approval_is_waited_for_by_severity(
    open_bench: OpenBench, word: str, minutes: int
) -> None:
    async with open_bench(services=[a_service(mode=Mode.APPROVE)]) as bench:
        await bench.receive(bench.alert(severity=word))
        await bench.settle()
        (plan,) = (await bench.incident()).mitigations
        assert plan.state is MitigationState.AWAITING_APPROVAL
        assert plan.expires_at == bench.clock.now + timedelta(minutes=minutes)


async def test_the_time_of_an_approval_is_the_services(open_bench: OpenBench) -> None:
    times = {"approval_times": {n: timedelta(minutes=n) for n in (1, 2, 3, 4)}}
    service = a_service(mode=Mode.APPROVE).model_copy(update=times)
    async with open_bench(services=[service]) as bench:
        await bench.receive(bench.alert(severity="P2"))
        await bench.settle()
        (plan,) = (await bench.incident()).mitigations
        assert plan.expires_at == bench.clock.now + timedelta(minutes=2)


# --- what no playbook takes -------------------------------------------------------------------


async def heard(bench: Bench) -> tuple[bool, int]:
    """Say whether levels begin, and how many messages there are."""
    due = await bench.store.escalations.due()
    return due.deciding, len(await bench.store.notices.claim(100))


@pytest.mark.parametrize(
    ("word", "pages", "messages"),
    [("P1", True, 1), ("high", False, 1), ("warning", False, 0), ("info", False, 0)],
)
async def test_a_severe_alert_that_no_playbook_takes_pages_at_once(
    bench: Bench, word: str, pages: bool, messages: int
) -> None:
    await bench.receive(bench.alert(alertname="Other", severity=word))
    assert await heard(bench) == (pages, messages)


async def test_an_alert_of_no_service_pages_as_well(bench: Bench) -> None:
    await bench.receive(bench.alert(system="elsewhere", severity="critical"))
    assert await heard(bench) == (True, 1)


async def test_a_record_that_became_worse_pages_then_and_once(bench: Bench) -> None:
    await bench.receive(bench.alert(alertname="Other", severity="warning", pod="1"))
    assert await heard(bench) == (False, 0)
    await bench.receive(bench.alert(alertname="Other", severity="P1", pod="2"))
    await bench.receive(bench.alert(alertname="Other", severity="P1", pod="3"))
    assert await heard(bench) == (True, 1)
    assert len(await bench.incidents()) == 1


async def test_what_is_done_about_unmatched_alerts_is_the_configurations(
    open_bench: OpenBench,
) -> None:
    quiet = dict.fromkeys((1, 2, 3, 4), Unmatched.RECORD)
    service = a_service().model_copy(update={"severities": Severities(unmatched=quiet)})
    async with open_bench(services=[service]) as bench:
        await bench.receive(bench.alert(alertname="Other", severity="critical"))
        assert await heard(bench) == (False, 0)


async def test_a_replay_of_an_unmatched_alert_calls_nobody(bench: Bench) -> None:
    replay: dict[str, Any] = {"source": Source.REPLAY, "replay_of": "manual"}
    await bench.receive(bench.alert(alertname="Other", severity="P1"), **replay)
    assert await heard(bench) == (False, 0)


async def test_an_unmatched_alert_that_pagerduty_told_us_of_is_not_paged_again(
    bench: Bench,
) -> None:
    alert = bench.alert(alertname="Other", severity="P1")
    await bench.receive(alert.model_copy(update={"source": Source.PAGERDUTY}))
    assert await heard(bench) == (False, 0)
