"""A delivery with many alerts: taken in slices, each once, with others and operators in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from remediator.intake.alertmanager import MAX_ALERTS, parse
from remediator.model.alert import Alert, Delivery, Source
from remediator.model.base import DeliveryId
from remediator.model.incident import IncidentOutcome
from remediator.store import tables as t
from remediator.store.claims import MOST_ALERTS
from remediator.store.slices import ATTEMPTS, SLICE
from remediator.testing import FrozenClock
from remediator.triage.correlate import correlate
from remediator.triage.match import Match, match
from tests.postgres_fixtures import eventually
from tests.store_fixtures import Bench, OpenBench, a_delivery, read_again, resolved

STARTS = "2025-12-31T23:50:00Z"


def a_body(*names: str, service: str = "orders", status: str = "firing") -> bytes:
    """Write a body with an alert of each name, that only its ``pod`` tells from the others."""
    alerts = [
        {
            "status": status,
            "labels": {"alertname": n, "system": "shop", "service": service, "pod": str(i)},
            "startsAt": STARTS,
        }
        for i, n in enumerate(names)
    ]
    return json.dumps({"alerts": alerts}).encode()


async def put(bench: Bench, body: bytes, **more: Any) -> Delivery:
    bench.clock.advance(timedelta(seconds=1))  # what comes later is later
    delivery = a_delivery(bench.clock, body=body, size=len(body), **more)
    parsed = parse(body, delivery.received_at)
    await bench.store.inbox.put(delivery, parsed.alerts, parsed.dead)
    return delivery


async def turn(bench: Bench, decode: Any = read_again, only: DeliveryId | None = None) -> bool:
    """Let triage take one turn; say whether there was anything."""

    def matching(alert: Alert, delivery: Delivery) -> Match:
        return match(alert, bench.around.catalogue, bench.around.playbooks, delivery.playbook)

    taken = await bench.store.inbox.triage(
        decode,
        lambda alert, delivery: matching(alert, delivery).key(alert),
        lambda batch, snapshot, now: correlate(batch, snapshot, now, matching),
        only,
    )
    return taken is not None


async def all_turns(bench: Bench) -> int:
    turns = 0
    while await turn(bench):
        turns += 1
    return turns


async def row_of(bench: Bench, delivery: DeliveryId) -> Any:
    async with bench.store.database.read() as connection:
        query = select(t.deliveries).where(t.deliveries.c.id == delivery)
        return (await connection.execute(query)).mappings().one()


async def count(bench: Bench, table: Any, *where: Any) -> int:
    async with bench.store.database.read() as connection:
        query = select(func.count()).select_from(table).where(*where)
        return int((await connection.execute(query)).scalar_one())


async def test_others_are_taken_between_the_slices_of_a_large_delivery(bench: Bench) -> None:
    large = await put(bench, a_body(*["ThingsOn"] * (2 * SLICE + 1)))
    small = await put(bench, a_body("Dim", service="other"))
    assert await turn(bench)
    assert (await row_of(bench, small.id))["triaged_at"] is not None
    row = await row_of(bench, large.id)
    assert (row["taken"], row["triaged_at"]) == (SLICE, None)
    assert await all_turns(bench) == 2
    row = await row_of(bench, large.id)
    assert (row["taken"], row["triaged_at"]) == (2 * SLICE + 1, bench.clock.now)
    assert await count(bench, t.alerts) == 2 * SLICE + 2


async def test_what_an_ended_process_has_taken_is_not_taken_twice(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        large = await put(bench, a_body(*["ThingsOn"] * (2 * SLICE)))
        await turn(bench)
    async with open_bench() as bench:
        await all_turns(bench)
        assert await count(bench, t.alerts) == 2 * SLICE
        assert await count(bench, t.alerts, t.alerts.c.notifications > 1) == 0
        row = await row_of(bench, large.id)
        assert (row["taken"], row["attempts"]) == (2 * SLICE, 0)
        assert row["incidents"] == [(await bench.incident()).id]


async def test_a_later_word_about_the_same_alert_keeps_its_place(bench: Bench) -> None:
    await put(bench, a_body(*["ThingsOn"] * (2 * SLICE + 1)))
    ends = json.loads(a_body(*["ThingsOn"] * (2 * SLICE + 1), status="resolved"))
    last = await put(bench, json.dumps({"alerts": ends["alerts"][-1:]}).encode())
    await turn(bench)
    assert (await row_of(bench, last.id))["triaged_at"] is None
    await all_turns(bench)
    assert await count(bench, t.alerts, t.alerts.c.status == "resolved") == 1


async def test_several_large_deliveries_keep_none_of_the_small_ones_waiting(bench: Bench) -> None:
    for service in ("orders", "billing", "stock"):
        await put(bench, a_body(*["ThingsOn"] * (SLICE + 1), service=service))
    small = await put(bench, a_body("Dim", service="other"))
    await turn(bench)
    assert (await row_of(bench, small.id))["triaged_at"] is not None
    await all_turns(bench)
    assert await count(bench, t.alerts) == 3 * (SLICE + 1) + 1


async def test_unmatched_alerts_of_one_body_are_one_record_whatever_their_names(
    bench: Bench,
) -> None:
    names = [f"Unheard{n}" for n in range(SLICE + 100)]
    await put(bench, a_body(*names))
    await all_turns(bench)
    record = await bench.incident()
    assert record.outcome is IncidentOutcome.NO_MATCH
    assert f"the same of alerts with {SLICE - 1} other names" in record.reason
    assert await count(bench, t.alerts) == len(names)
    await put(bench, a_body(*names))
    await all_turns(bench)
    assert (await bench.incident()).id == record.id
    await put(bench, a_body(*names, status="resolved"))
    await all_turns(bench)
    assert {alert.status for alert in (await bench.incident()).alerts} == {"resolved"}


async def test_a_flood_of_unmatched_alerts_makes_the_store_a_small_multiple_of_its_body(
    open_bench: OpenBench, store_url: str
) -> None:
    if not store_url.startswith("sqlite"):
        pytest.skip("one file is easily measured")
    async with open_bench() as bench:
        before = await _bytes(bench)
        body = a_body(*(f"Unheard{n}" for n in range(2000)))
        await put(bench, body)
        await all_turns(bench)
        assert await _bytes(bench) - before < 6 * len(body)


async def _bytes(bench: Bench) -> int:
    async with bench.store.database.read() as connection:
        pages = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("page_count", "page_size")
        ]
    return int(pages[0]) * int(pages[1])


# --- attempts -----------------------------------------------------------------------------------


async def test_an_attempt_is_counted_before_it_begins_and_the_last_one_is_a_dead_letter(
    open_bench: OpenBench,
) -> None:
    async with open_bench() as bench:
        guilty = await put(bench, a_body("ThingsOn"))
        innocent = await put(bench, a_body("Dim", service="other"))
    counted: list[int] = []
    for _ in range(ATTEMPTS):  # each time the process ends while it reads the body
        async with open_bench() as bench:
            reopened = bench

            async def ends(delivery: Delivery, bench: Bench = reopened) -> tuple[Alert, ...]:
                if delivery.id != guilty.id:
                    return await read_again(delivery)
                counted.append((await row_of(bench, guilty.id))["attempts"])
                raise MemoryError

            with pytest.raises(MemoryError):
                await turn(bench, ends)
    assert counted == list(range(1, ATTEMPTS + 1))
    async with open_bench() as bench:
        await all_turns(bench)
        (letter,) = (await bench.store.records.dead_letters()).items
        assert letter.delivery_id == guilty.id
        assert f"{ATTEMPTS} times" in letter.reason
        assert "0 of its 1 alerts were taken" in letter.reason
        assert (await row_of(bench, innocent.id))["triaged_at"] is not None
        told = [i for i in await bench.incidents() if i.outcome is IncidentOutcome.ESCALATED]
        assert [guilty.id in incident.reason for incident in told] == [True]
        assert await count(bench, t.notices, t.notices.c.incident_id == told[0].id) == 1


async def test_what_goes_on_is_not_counted_against_a_delivery(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        large = await put(bench, a_body(*["ThingsOn"] * (ATTEMPTS + 2) * SLICE))
    for _ in range(ATTEMPTS + 2):  # a process for each slice
        async with open_bench() as bench:
            assert await turn(bench)
    async with open_bench() as bench:
        assert not await turn(bench)
        assert (await row_of(bench, large.id))["triaged_at"] is not None
        assert (await bench.store.records.dead_letters()).items == []


async def test_a_body_that_is_read_otherwise_than_before_loses_nothing(
    open_bench: OpenBench,
) -> None:
    async with open_bench() as bench:
        await put(bench, a_body(*["ThingsOn"] * (2 * SLICE)))
        await turn(bench)
    async with open_bench() as bench:

        async def fewer(delivery: Delivery) -> tuple[Alert, ...]:
            return (await read_again(delivery))[1:]

        while await turn(bench, fewer):
            pass
        assert await count(bench, t.alerts) == 2 * SLICE
        assert await bench.store.inbox.waiting() == []


# --- operators ----------------------------------------------------------------------------------


async def test_an_order_goes_before_all_that_waits_for_the_store(bench: Bench) -> None:
    done: list[str] = []

    async def write(name: str) -> None:
        await bench.store.database.write(bench.store.database.now)
        done.append(name)

    async def pause() -> None:
        await bench.store.commands.pause("global", "ann", "a storm")
        done.append("pause")

    async with asyncio.TaskGroup() as group:
        for n in range(1000):
            group.create_task(write(str(n)))
        group.create_task(pause())
    assert done[0] == "pause"


@contextlib.asynccontextmanager
async def storm(bench: Bench, clock: FrozenClock) -> AsyncIterator[Delivery]:
    """Triage the largest body that is taken while the block runs."""
    names = (f"Unheard{n}" if n % 2 else "ThingsOn" for n in range(MAX_ALERTS))
    large = await put(bench, a_body(*names))
    running = asyncio.create_task(all_turns(bench))
    try:
        yield large
        assert await running >= MAX_ALERTS // SLICE
    finally:
        running.cancel()


async def test_a_pause_and_a_webhook_are_answered_between_the_slices_of_the_largest_body(
    bench: Bench, clock: FrozenClock
) -> None:
    async with storm(bench, clock) as large:

        async def begun() -> bool:
            return bool((await row_of(bench, large.id))["taken"])

        await eventually(begun, "the first slice is taken", within=10)
        await bench.store.commands.pause("global", "ann", "a storm")
        at_pause = (await row_of(bench, large.id))["taken"]
        small = await put(bench, a_body("Dim", service="other"))
        at_post = (await row_of(bench, large.id))["taken"]
        assert at_pause <= at_post < MAX_ALERTS

        async def triaged() -> bool:
            return (await row_of(bench, small.id))["triaged_at"] is not None

        await eventually(triaged, "the small one is taken", within=10)
        assert (await row_of(bench, large.id))["triaged_at"] is None
    assert await count(bench, t.incidents) == 3  # of ThingsOn, of what nothing takes, of the small
    assert await count(bench, t.alerts) == MAX_ALERTS + 1


async def test_a_step_sees_a_bounded_number_of_its_alerts_first_those_that_fire(
    bench: Bench,
) -> None:
    body = a_body(*["ThingsOn"] * (MOST_ALERTS + SLICE))
    await put(bench, body)
    await all_turns(bench)
    ends = json.loads(a_body(*["ThingsOn"] * (MOST_ALERTS + SLICE), status="resolved"))
    await put(bench, json.dumps({"alerts": ends["alerts"][:-1]}).encode())
    await all_turns(bench)
    (claim,) = await bench.claim()
    assert len(claim.alerts) == MOST_ALERTS
    assert claim.firing


# --- identity -----------------------------------------------------------------------------------


def collides(alert: Alert, **labels: str) -> Alert:
    """Return another alert that has the same fingerprint by other labels."""
    return alert.model_copy(update={"labels": alert.labels | labels})


async def test_other_labels_with_the_same_fingerprint_are_another_alert(bench: Bench) -> None:
    real = bench.alert()
    forged = collides(real, service="elsewhere")
    await bench.receive(forged)
    await bench.receive(real)
    assert (await bench.claim())[0].alerts[0].labels == real.labels
    firing = t.alerts.c.status == "firing"
    assert await count(bench, t.alerts, firing) == 2
    await bench.receive(resolved(forged, bench.clock), bench.alert())
    async with bench.store.database.read() as connection:
        assert list(await connection.scalars(select(t.alerts.c.labels).where(firing))) == [
            real.labels
        ]
    await bench.receive(resolved(real, bench.clock))
    assert await count(bench, t.alerts, firing) == 0


async def test_colliding_alerts_of_one_body_are_told_apart(bench: Bench) -> None:
    real = bench.alert()
    await bench.receive(collides(real, service="elsewhere"), real)
    claimed = await bench.claim()
    assert [alert.labels for claim in claimed for alert in claim.alerts] == [real.labels]


async def test_pagerduty_joins_by_labels_whatever_it_adds_to_them(bench: Bench) -> None:
    real = bench.alert()
    more = {"pagerduty_service": "P1", "pagerduty_incident": "P2", "urgency": "high"}
    theirs = collides(real, **more).model_copy(update={"source": Source.PAGERDUTY})
    await bench.receive(theirs)
    await bench.receive(real)
    assert len((await bench.incident()).alerts) == 1
    await bench.receive(collides(theirs, service="elsewhere"))
    assert await count(bench, t.alerts) == 2
