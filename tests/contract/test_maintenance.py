"""Maintenance windows, of the file and by order, on both databases: nothing is changed, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.model.alert import Source
from remediator.model.errors import Refused
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.limits import Bound
from remediator.model.lookback import Allowance
from remediator.model.maintenance import (
    MaintenanceOrder,
    Plan,
    Recurring,
    Window,
    covered,
    parse_cron,
    running,
)
from remediator.model.mitigation import Effect, Mitigation, MitigationState, Preparation
from remediator.model.target import Mode
from remediator.model.transition import Claim
from remediator.model.verdict import Assessment
from remediator.remediation.limits import judge
from remediator.remediation.pipeline import take_step
from remediator.remediation.step import StepContext
from remediator.testing import World, items
from tests.store_fixtures import WIDE, Bench, OpenBench, a_service, resolved

HOUR = timedelta(hours=1)
BERLIN = ZoneInfo("Europe/Berlin")


async def _order(bench: Bench, scope: str = "global", **times: Any) -> Any:
    given = times or {"lasts": 2 * HOUR}
    order = MaintenanceOrder(scope=scope, reason="disks", **given)
    return await bench.store.commands.start_maintenance(order, "ann")


def _plan(bench: Bench, *plans: Plan) -> None:
    """Let the file have these plans."""
    catalogue = bench.around.catalogue.model_copy(update={"maintenance": plans})
    bench.around = replace(bench.around, catalogue=catalogue)


def _window(bench: Bench, begins: timedelta, lasts: timedelta, scope: str = "global") -> Window:
    since = bench.clock.now + begins
    return Window(id="file-1", scope=scope, since=since, until=since + lasts, reason="disks")


async def _notices(bench: Bench) -> int:
    return len(await bench.store.notices.claim(100))


def _waits(incident: Any) -> list[str]:
    return [e.reason for e in incident.timeline if e.event == "waiting: maintenance"]


def _works(bench: Bench, claim: Claim) -> StepContext:
    service = bench.around.catalogue.service(claim.incident.system, claim.incident.service)
    assert service is not None
    playbook = bench.around.playbooks.build("SwitchOff", {})
    return StepContext(bench.around, claim, service, service.playbooks["SwitchOff"], playbook, 0.0)


# --- an alert in a window ---------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["file", "order"])
@pytest.mark.parametrize("scope", ["global", "shop/orders"])
async def test_an_alert_in_a_window_waits_in_silence_and_is_treated_after_it(
    bench: Bench, origin: str, scope: str
) -> None:
    if origin == "file":
        _plan(bench, _window(bench, -HOUR, 2 * HOUR, scope))
    else:
        await _order(bench, scope, lasts=HOUR)
    end = bench.clock.now + HOUR
    await bench.receive(bench.alert())
    await bench.settle(3500)
    await bench.receive(bench.alert(pod="another"))
    await bench.settle(90)
    bench.clock.now = end - timedelta(seconds=1)
    await bench.step()
    waiting = await bench.incident()
    said = f"maintenance of {scope} until {end:%Y-%m-%d %H:%M:%S} UTC: disks"
    assert (waiting.state, waiting.phase) == (IncidentState.OPEN, Phase.DIAGNOSE)
    assert (waiting.reason, _waits(waiting)) == (said, [said])
    assert waiting.findings == []
    assert await _notices(bench) == 0
    assert (await bench.store.records.deliveries()).items[0].incidents == [waiting.id]
    bench.clock.now = end
    await bench.settle(60)
    assert [m.state for m in (await bench.incident()).mitigations] == [MitigationState.APPLIED]
    assert await _notices(bench) > 0


async def test_an_alert_that_resolves_in_its_window_is_suppressed_and_told_to_nobody(
    bench: Bench,
) -> None:
    await _order(bench)
    alert = bench.alert()
    await bench.receive(alert)
    await bench.settle(60)
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle()
    incident = await bench.incident()
    assert (incident.state, incident.outcome) == (
        IncidentState.CLOSED,
        IncidentOutcome.SUPPRESSED,
    )
    assert "resolved during maintenance of global" in incident.reason
    assert (await _notices(bench), bench.world.applied) == (0, [])


async def test_a_resolve_that_is_seen_after_the_window_was_still_in_it(bench: Bench) -> None:
    await _order(bench, lasts=HOUR)
    alert = bench.alert()
    await bench.receive(alert)
    await bench.settle()
    end = resolved(alert, bench.clock)
    bench.clock.advance(HOUR + timedelta(seconds=1))
    await bench.receive(end)
    await bench.settle()
    assert (await bench.incident()).outcome is IncidentOutcome.SUPPRESSED


async def test_an_alert_that_resolves_after_the_window_resolved_by_itself(bench: Bench) -> None:
    await _order(bench, lasts=HOUR)
    alert = bench.alert()
    await bench.receive(alert)
    await bench.settle()
    bench.clock.advance(HOUR)
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle()
    assert (await bench.incident()).outcome is IncidentOutcome.RESOLVED_BY_ITSELF


async def test_who_was_told_before_the_window_is_told_how_it_ended(bench: Bench) -> None:
    bench.eyes.impaired = "no data"
    alert = bench.alert()
    await bench.receive(alert)
    await bench.settle()
    (notice,) = await bench.store.notices.claim(10)
    await bench.store.notices.sent(notice, None)
    await _order(bench)
    bench.clock.advance(timedelta(minutes=1))
    await bench.step()
    assert await _notices(bench) == 0
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle()
    assert (await bench.incident()).outcome is IncidentOutcome.SUPPRESSED
    assert await _notices(bench) == 1


async def test_a_window_of_another_service_holds_up_nothing(open_bench: OpenBench) -> None:
    services = [a_service(), a_service("cart")]
    async with open_bench(World(things={"cart:lamp"}), services) as bench:
        await _order(bench, "shop/orders")
        await bench.receive(bench.alert(service="cart"))
        await bench.settle()
        assert [m.state for m in (await bench.incident()).mitigations] == [MitigationState.APPLIED]


async def test_of_two_windows_the_one_that_ends_later_counts(bench: Bench) -> None:
    _plan(bench, _window(bench, -HOUR, 3 * HOUR))
    first = await _order(bench, lasts=HOUR)
    await bench.receive(bench.alert())
    await bench.settle(2 * 3600 - 1)
    end = bench.clock.now + timedelta(seconds=1)
    assert first.until < end
    waiting = await bench.incident()
    assert _waits(waiting) == [f"maintenance of global until {end:%Y-%m-%d %H:%M:%S} UTC: disks"]
    await bench.settle(1)
    assert (await bench.incident()).mitigations


async def test_a_window_that_is_ordered_over_the_end_of_another_goes_on(bench: Bench) -> None:
    await _order(bench, lasts=HOUR)
    await bench.receive(bench.alert())
    await bench.settle(1800)
    await _order(bench, "shop/orders", lasts=HOUR)
    await bench.settle(3000)
    waiting = await bench.incident()
    assert [reason.split()[2] for reason in _waits(waiting)] == ["global", "shop/orders"]
    assert waiting.mitigations == []
    await bench.settle(700)
    assert (await bench.incident()).mitigations


async def test_what_waits_goes_on_at_once_when_the_window_is_ended(bench: Bench) -> None:
    window = await _order(bench)
    await bench.receive(bench.alert())
    await bench.settle(60)
    await bench.store.commands.end_maintenance(window.id, "bob")
    (result,) = await bench.step()
    assert result.phase is Phase.DECIDE
    with pytest.raises(Refused, match="is over since"):
        await bench.store.commands.end_maintenance(window.id, "bob")


async def test_an_end_during_a_step_is_not_lost(bench: Bench) -> None:
    window = await _order(bench)
    await bench.receive(bench.alert())
    (claim,) = await bench.claim()
    result = await take_step(bench.around, claim)
    await bench.store.commands.end_maintenance(window.id, "bob")
    await bench.store.queue.finish(claim, result)
    (result,) = await bench.step()
    assert result.phase is Phase.DECIDE


async def test_a_dry_run_goes_on_and_a_replay_for_real_waits(bench: Bench) -> None:
    await _order(bench)
    for dry_run in (True, False):
        await bench.receive(
            bench.alert(), source=Source.REPLAY, replay_of="manual", dry_run=dry_run
        )
    await bench.settle()
    real, dry = sorted(await bench.incidents(), key=lambda i: i.dry_run)
    assert (dry.outcome, real.state) == (IncidentOutcome.SHADOWED, IncidentState.OPEN)
    assert "it would not have been applied: maintenance of global" in dry.reason
    assert len(_waits(real)) == 1


async def test_shadow_waits_as_well(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(mode=Mode.SHADOW)]) as bench:
        await _order(bench, lasts=HOUR)
        await bench.receive(bench.alert())
        await bench.settle(3599)
        assert (await _notices(bench), (await bench.incident()).outcome) == (0, None)
        await bench.settle(1)
        assert (await bench.incident()).outcome is IncidentOutcome.SHADOWED


# --- what is under way when a window begins ---------------------------------------------------


@pytest.mark.parametrize("origin", ["file", "order"])
async def test_a_window_that_begins_before_the_reservation_forbids_it(
    bench: Bench, origin: str
) -> None:
    await bench.receive(bench.alert())
    await bench.step()
    await bench.step()
    (claim,) = await bench.claim()
    assert claim.incident.phase is Phase.ACT
    if origin == "file":
        _plan(bench, _window(bench, timedelta(seconds=1), HOUR))
        bench.clock.advance(timedelta(seconds=1))
    else:
        await _order(bench, lasts=HOUR)
    result = await take_step(bench.around, claim)
    await bench.store.queue.finish(claim, result)
    await bench.settle(60)
    waiting = await bench.incident()
    assert (waiting.phase, waiting.mitigations) == (Phase.DIAGNOSE, [])
    assert (bench.world.applied, len(_waits(waiting))) == ([], 1)
    await bench.settle(3600)
    assert [m.state for m in (await bench.incident()).mitigations] == [MitigationState.APPLIED]


async def test_a_window_that_began_with_its_order_runs_also_when_the_clock_is_put_back(
    bench: Bench,
) -> None:
    await bench.receive(bench.alert())
    (claim,) = await bench.claim()
    await _order(bench)
    bench.clock.advance(timedelta(seconds=-5))
    halt = await bench.around.paused(claim.incident)
    assert halt is not None
    assert halt.code == "maintenance"


@pytest.mark.parametrize("origin", ["file", "order"])
async def test_a_clock_put_back_into_a_window_before_the_incident_lets_it_wait(
    bench: Bench, origin: str
) -> None:
    if origin == "file":
        _plan(bench, _window(bench, timedelta(0), HOUR))
    else:
        window = await _order(bench)
    bench.clock.advance(HOUR)
    if origin == "order":
        await bench.store.commands.end_maintenance(window.id, "ann")
    bench.clock.advance(timedelta(seconds=5))
    await bench.receive(bench.alert())
    bench.clock.advance(timedelta(minutes=-5))
    await bench.receive(bench.alert(pod="another"))  # which wakes it
    steps = 0
    while steps < 10 and await bench.step():
        steps += 1
    assert steps < 10, "it is looked at again and again, and nothing passes meanwhile"
    assert (await bench.incident()).reason.startswith("maintenance of global until")
    await bench.settle(360)
    assert [m.state for m in (await bench.incident()).mitigations] == [MitigationState.APPLIED]


async def test_the_reservation_itself_asks_for_ordered_windows(bench: Bench) -> None:
    await bench.receive(bench.alert())
    (claim,) = await bench.claim()
    await _order(bench, "shop/orders")
    work = _works(bench, claim)
    mitigation = Mitigation(
        kind="switch_off", target=work.service.targets["world"], reason="x", items=items("lamp")
    )
    entry = work.entry(Preparation(mitigation=mitigation), MitigationState.RESERVED, "x")
    allowance = Allowance(bounds=(Bound(scope="global", limits=WIDE),))
    decision, reserved = await bench.store.ledger.reserve(
        claim.incident, entry, allowance, lambda standing: judge(standing, allowance, mitigation)
    )
    assert (decision.effect, decision.code, reserved) == (Effect.WAIT, "maintenance", None)


async def test_a_window_takes_nothing_of_the_patience_that_follows(bench: Bench) -> None:
    await _order(bench, lasts=5 * HOUR)
    await bench.receive(bench.alert())
    await bench.settle(5 * 3600 - 1)
    bench.eyes.impaired = "no data"
    await bench.settle(9 * 60)
    assert (await bench.incident()).state is IncidentState.OPEN
    await bench.settle(3 * 60)
    assert (await bench.incident()).outcome is IncidentOutcome.DENIED


async def test_verification_goes_on_and_nothing_is_put_back_before_the_end(
    open_bench: OpenBench,
) -> None:
    async with open_bench(undo=True) as bench:
        bench.eyes.assessment = Assessment.NOT_BETTER
        await bench.receive(bench.alert())
        await bench.settle()
        await _order(bench, lasts=HOUR)
        await bench.settle(1800)
        waiting = await bench.incident()
        assert (waiting.phase, waiting.mitigations[0].verdict) == (
            Phase.REVERT,
            Assessment.NOT_BETTER,
        )
        assert len(_waits(waiting)) == 1
        await bench.settle(1800)
        states = [m.state for m in (await bench.incident()).mitigations]
        assert MitigationState.REVERTED in states


async def test_an_approved_plan_waits_for_the_end(open_bench: OpenBench) -> None:
    async with open_bench(services=[a_service(mode=Mode.APPROVE)]) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        await _order(bench, lasts=timedelta(minutes=20))
        await bench.store.commands.approve((await bench.incident()).id, None, "ann")
        await bench.settle(20 * 60 - 1)
        waiting = await bench.incident()
        assert [m.state for m in waiting.mitigations] == [MitigationState.APPROVED]
        await bench.settle(1)
        assert [m.state for m in (await bench.incident()).mitigations] == [MitigationState.APPLIED]


@pytest.mark.parametrize("approved", [True, False])
async def test_a_plan_whose_time_the_window_took_is_asked_for_again(
    open_bench: OpenBench, approved: bool
) -> None:
    async with open_bench(services=[a_service(mode=Mode.APPROVE)]) as bench:
        await bench.receive(bench.alert())
        await bench.settle()
        await _order(bench, lasts=5 * HOUR)
        if approved:
            await bench.store.commands.approve((await bench.incident()).id, None, "ann")
        await bench.settle(5 * 3600)
        asked = await bench.incident()
        assert (asked.state, asked.phase) == (IncidentState.OPEN, Phase.APPROVAL)
        assert [m.state for m in asked.mitigations] == [
            MitigationState.EXPIRED,
            MitigationState.AWAITING_APPROVAL,
        ]
        assert bench.world.applied == []


async def test_nothing_is_escalated_while_humans_work(bench: Bench) -> None:
    await bench.receive(bench.alert())
    await bench.settle(60)
    assert (await bench.incident()).phase is Phase.SETTLE
    await _order(bench, lasts=HOUR)
    await bench.settle(3599)
    assert (await bench.incident()).state is IncidentState.OPEN
    await bench.settle(1)
    assert (await bench.incident()).outcome is IncidentOutcome.ESCALATED


@pytest.mark.parametrize("origin", ["file", "order"])
async def test_a_temporary_change_stays_for_the_window_and_its_day_goes_on_after_it(
    open_bench: OpenBench, origin: str
) -> None:
    services = [a_service(parameters={"hold": "10m"})]
    async with open_bench(services=services, undo=True) as bench:
        alert = bench.alert()
        await bench.receive(alert)
        await bench.settle(60)
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle()
        two_days = timedelta(days=2)
        if origin == "file":
            _plan(bench, _window(bench, timedelta(0), two_days))
        else:
            await _order(bench, lasts=two_days)
        await bench.settle(900)
        bench.clock.advance(two_days - timedelta(seconds=960))
        await bench.settle()
        held = await bench.incident()
        assert [m.state for m in held.mitigations] == [MitigationState.APPLIED]
        await bench.store.commands.pause("global", "ann", "not yet")
        await bench.settle(600)
        assert (await bench.incident()).outcome is IncidentOutcome.MITIGATED
        await bench.store.commands.resume("global", "ann")
        await bench.settle(1800)  # it is taken back in steps
        assert [m.state for m in (await bench.incident()).mitigations] == [MitigationState.REVERTED]


# --- orders -----------------------------------------------------------------------------------


async def test_an_order_is_kept_with_who_and_when_and_listed_with_those_of_the_file(
    bench: Bench,
) -> None:
    now = bench.clock.now
    _plan(bench, _window(bench, -HOUR, 2 * HOUR), _window(bench, -2 * HOUR, HOUR))
    later = await _order(bench, since=now + HOUR, until=now + 3 * HOUR)
    over = await _order(bench, "shop/orders", lasts=timedelta(minutes=1))
    bench.clock.advance(timedelta(minutes=1))
    listed = await bench.store.windows.listed(bench.around.catalogue.maintenance)
    assert [(w.id, w.source, w.running, w.by) for w in listed] == [
        ("file-1", "file", True, None),
        (later.id, "api", False, "ann"),
    ]
    assert over.until == bench.clock.now
    await bench.store.commands.end_maintenance(later.id, "bob")
    assert await bench.store.windows.listed() == []


@pytest.mark.parametrize(
    ("scope", "times", "status", "said"),
    [
        ("shop/cart", {"lasts": HOUR}, 404, "known are: global, shop, shop/orders"),
        ("global", {"lasts": timedelta(days=8)}, 422, "7d at most"),
        ("global", {"until": datetime(2020, 1, 1, tzinfo=UTC)}, 422, "has to end after"),
        ("global", {}, 422, "has to end after"),
    ],
)
async def test_an_order_that_makes_no_window_is_refused(
    bench: Bench, scope: str, times: dict[str, Any], status: int, said: str
) -> None:
    order = MaintenanceOrder(scope=scope, **times)
    with pytest.raises(Refused, match=said) as caught:
        await bench.store.commands.start_maintenance(order, "ann")
    assert caught.value.status == status


async def test_ending_what_is_not_there_is_refused(bench: Bench) -> None:
    with pytest.raises(Refused, match="no maintenance window mnt-1"):
        await bench.store.commands.end_maintenance("mnt-1", "ann")


# --- which window runs at a time --------------------------------------------------------------


def _nightly(cron: str, **values: Any) -> Recurring:
    given = {"duration": 2 * HOUR, "timezone": "Europe/Berlin"} | values
    return Recurring(id="file-1", scope="global", cron=parse_cron(cron), **given)


def _begin(plan: Recurring, day: int, month: int) -> datetime:
    noon = datetime(2026, month, day, 12, tzinfo=BERLIN)
    (window,) = plan.touching(noon - 12 * HOUR, noon)
    assert window.until - window.since == plan.duration
    return window.since


def test_a_window_keeps_to_the_clocks_when_they_change() -> None:
    sunday = _nightly("0 1 * * 0")
    assert _begin(sunday, 22, 3) == datetime(2026, 3, 22, 0, tzinfo=UTC)
    assert _begin(sunday, 29, 3) == datetime(
        2026, 3, 29, 0, tzinfo=UTC
    )  # ends at four by the clock
    assert _begin(sunday, 5, 4) == datetime(2026, 4, 4, 23, tzinfo=UTC)


def test_a_time_that_the_clocks_skip_begins_an_hour_later_by_them() -> None:
    assert _begin(_nightly("30 2 * * *"), 29, 3) == datetime(2026, 3, 29, 3, 30, tzinfo=BERLIN)


def test_a_time_that_the_clocks_show_twice_begins_once() -> None:
    plan = _nightly("30 2 * * *", duration=timedelta(minutes=30))
    assert _begin(plan, 25, 10) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    again = datetime(2026, 10, 25, 1, 40, tzinfo=UTC)
    assert running(plan.touching(again, again), again) is None


def test_a_window_runs_from_its_first_instant_to_before_its_last() -> None:
    plan = _nightly("0 2 * * *", timezone="UTC")
    since = datetime(2026, 11, 21, 2, tzinfo=UTC)
    tick = timedelta(microseconds=1)
    for moment, runs in (
        (-tick, False),
        (0 * tick, True),
        (2 * HOUR - tick, True),
        (2 * HOUR, False),
    ):
        now = since + moment
        assert (running(plan.touching(now, now), now) is not None) == runs
    assert plan.coming(since - tick) == running(plan.touching(since, since), since)


def _stretches() -> st.SearchStrategy[list[Window]]:
    zero = datetime(2026, 11, 21, tzinfo=UTC)
    minutes = st.integers(0, 500)
    return st.lists(
        st.tuples(minutes, minutes).map(
            lambda pair: Window(
                id="w",
                scope="global",
                since=zero + timedelta(minutes=pair[0]),
                until=zero + timedelta(minutes=sum(pair)),
            )
        ),
        max_size=6,
    )


@given(_stretches(), st.integers(0, 1000))
def test_the_running_window_covers_the_moment_and_ends_last(
    windows: list[Window], minute: int
) -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC) + timedelta(minutes=minute)
    found = running(windows, now)
    around = [window for window in windows if window.since <= now < window.until]
    assert (found is None) == (not around)
    assert found is None or found.until == max(window.until for window in around)


@given(_stretches(), st.integers(0, 1000), st.integers(0, 1000))
def test_time_in_windows_is_counted_once(windows: list[Window], first: int, second: int) -> None:
    zero = datetime(2026, 11, 21, tzinfo=UTC)
    minutes = range(min(first, second), max(first, second))
    inside = sum(
        any(window.covers(zero + timedelta(minutes=minute)) for window in windows)
        for minute in minutes
    )
    begin, end = zero + timedelta(minutes=minutes.start), zero + timedelta(minutes=minutes.stop)
    assert covered(windows, begin, end) == timedelta(minutes=inside)


CRONS = ["0 2 * * *", "30 2 * * 0", "0,30 2,3 * * *", "*/20 * * * *", "15 1-4 29,25 * *"]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(CRONS),
    st.integers(1, 300),
    st.sampled_from(["Europe/Berlin", "UTC", "Australia/Lord_Howe", "America/New_York"]),
    st.sampled_from([(3, 8), (3, 29), (4, 5), (10, 4), (10, 25), (11, 1)]),
    st.integers(0, 24 * 60),
)
def test_what_runs_is_what_every_begin_by_the_clocks_makes(
    cron: str, lasts: int, zone: str, day: tuple[int, int], minute: int
) -> None:
    plan = _nightly(cron, duration=timedelta(minutes=lasts), timezone=zone)
    now = datetime(2026, *day, tzinfo=UTC) + timedelta(minutes=minute)
    begins = _begins(cron, ZoneInfo(zone), now)
    ends = [begin + plan.duration for begin in begins if begin <= now < begin + plan.duration]
    found = running(plan.touching(now, now), now)
    assert (found.until if found else None) == max(ends, default=None)
    coming = plan.coming(now)
    assert coming is not None
    assert coming.since > now


def _begins(cron: str, zone: ZoneInfo, now: datetime) -> Sequence[datetime]:
    """Look at every minute that clocks may show around ``now``."""
    local = now.astimezone(zone).replace(tzinfo=None, second=0)
    walls = [local + timedelta(minutes=m) for m in range(-600, 240)]
    return [w.replace(tzinfo=zone).astimezone(UTC) for w in walls if _matches(cron, w)]


def _matches(cron: str, wall: datetime) -> bool:
    values = (wall.minute, wall.hour, wall.day, wall.month, (wall.weekday() + 1) % 7)
    return all(
        field == "*" or value in _values(field)
        for field, value in zip(cron.split(), values, strict=True)
    )


def _values(field: str) -> list[int]:
    if field.startswith("*/"):
        return list(range(0, 60, int(field[2:])))
    if "-" in field:
        first, last = map(int, field.split("-"))
        return list(range(first, last + 1))
    return [int(part) for part in field.split(",")]


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "* * * * * *", "61 * * * *", "0 0 30 2 *", "@daily", "h 2 * * *", "r 2 * * *",
     "0,r 2 * * *", "r(1-5) 2 * * *", "0 2 * * someday"],
)  # fmt: skip
def test_a_cron_that_is_none_or_never_comes_true_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match="five fields of cron"):
        parse_cron(cron)


@given(st.text(alphabet="0123456789*/,-?lwhr#()abc @\n", max_size=25))
def test_any_text_is_a_cron_or_refused(text: str) -> None:
    try:
        cron = parse_cron(text)
    except ValueError:
        return
    assert parse_cron(cron) == cron
