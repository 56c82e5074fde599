"""No statement of the engine reads all of a table that grows, on either database.

A tour calls every method of the store through its parts, with a history behind it, and each
statement that was sent is explained. A method that the tour leaves out is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from remediator.model.alert import AlertStatus, SenderEvent, Source
from remediator.model.base import IncidentId
from remediator.model.catalog import Escalation, Level
from remediator.model.errors import Refused
from remediator.model.incident import IncidentState
from remediator.model.limits import Bound
from remediator.model.maintenance import MaintenanceOrder
from remediator.model.notification import Handle, Word
from remediator.model.target import Mode
from remediator.model.unmatched import RecordBound
from remediator.notify.paging import Escalating
from remediator.remediation.expire import take_back
from remediator.store import Store
from remediator.store.audit.chain import Part
from remediator.store.paging import Message
from remediator.store.tables import metadata
from remediator.testing import FrozenClock, World
from tests.statement_plans import GROWING, Recorder, postgres_scans, sqlite_scans
from tests.store_fixtures import WIDE, Bench, OpenBench, a_delivery, a_service, resolved

HISTORY = 40
"""Copies of all that the tour left: enough for PostgreSQL to know what its indexes are good for."""
READS_ALL = {"Audit.verify", "Audit.export"}
"""What has to read everything by what it is for; an operator's command, in slices."""
PARTS = ("global", "system/shop", "service/shop/orders", "playbook/shop/orders/SwitchOff")
SCOPES = (*PARTS, "target/world/world-of-orders", "lever/switch_off/world/world-of-orders")


async def test_every_statement_is_served_by_an_index(
    open_bench: OpenBench, store_url: str, clock: FrozenClock
) -> None:
    recorder, called = Recorder(), set[str]()

    @contextlib.asynccontextmanager
    async def recorded(*given: Any, **options: Any) -> AsyncIterator[Bench]:
        async with open_bench(*given, **options) as bench:
            with recorder.recording():
                yield bench

    await tour(open_bench, clock)
    async with open_bench() as bench:
        await multiply(bench)
    with noting_calls(called):
        await tour(recorded, clock)
    missed = public_methods() - called - READS_ALL
    assert not missed, f"the tour has to call these as well: {sorted(missed)}"
    assert len(recorder.statements) > 100
    if store_url.startswith("sqlite"):
        path = Path(store_url.removeprefix("sqlite:///"))
        scans = list(sqlite_scans(path, recorder.statements))
    else:
        scans = await postgres_scans(store_url, recorder.statements)
    assert not scans, "\n".join(scans)


async def test_what_reads_a_whole_table_is_found(open_bench: OpenBench, store_url: str) -> None:
    async with open_bench():
        pass
    if store_url.startswith("sqlite"):
        bad = {"SELECT max(finished_at) FROM mitigations WHERE decided_by = ?": ("ann",)}
        found = list(sqlite_scans(Path(store_url.removeprefix("sqlite:///")), bad))
    else:
        bad = {"SELECT max(finished_at) FROM mitigations WHERE decided_by = $1": ("ann",)}
        found = await postgres_scans(store_url, bad)
    assert len(found) == 1


# --- what was called ----------------------------------------------------------------------------


def public_methods() -> set[str]:
    """The coroutines of all parts of the store, as ``Class.method``."""
    parts = [part.type for part in fields(Store)]
    found = [getattr(sys.modules[Store.__module__], str(name), None) for name in parts]
    return {
        f"{part.__name__}.{name}"
        for part in found
        if inspect.isclass(part) and part.__module__ != "remediator.store.database"
        for name, method in vars(part).items()
        if not name.startswith("_")
        and (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method))
    }


@contextlib.contextmanager
def noting_calls(called: set[str]) -> Iterator[None]:
    """Note the qualified name of everything in the store that is called."""

    def note(frame: Any, what: str, _: Any) -> None:
        code = frame.f_code
        if what == "call" and "/remediator/store/" in code.co_filename:
            called.add(code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


# --- a history ----------------------------------------------------------------------------------


async def multiply(bench: Bench) -> None:
    """Copy everything that is closed, each copy an hour older and of services of its own."""
    async with bench.store.database.read() as connection:
        rows = {
            table: [dict(row) for row in (await connection.execute(table.select())).mappings()]
            for table in metadata.sorted_tables
            if table.name in GROWING - {"chains"}
        }
    copies = {
        table: [_earlier(table, row, n) for n in range(HISTORY) for row in some]
        for table, some in rows.items()
        if some
    }

    async def operation(connection: Any) -> None:
        for table, some in copies.items():
            await connection.execute(insert(table), some)

    await bench.store.database.write(operation)


def _earlier(table: Any, row: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Copy ``row`` as of ``n`` hours before, of an incident of its own."""
    numbered = table.primary_key.columns.values()[0].autoincrement is True
    copied = {name: _moved(name, value, n) for name, value in row.items()}
    copied |= {name: value for name, value in _OVER.items() if name in copied}
    if table.name == "incidents":
        copied["state"] = IncidentState.CLOSED
    return {name: value for name, value in copied.items() if not (numbered and name == "id")}


_OVER = {"latest": False, "due_at": None, "in_flight": False, "number": None, "mac": None}


def _moved(name: str, value: Any, n: int) -> Any:
    if isinstance(value, datetime):
        return value - timedelta(hours=n + 1)
    if not isinstance(value, str):
        return value
    if name in {"service", "target_key", "correlation_key"}:  # of others: no relapse of the tour's
        return f"{value}-{n % 20}"
    if name in {"id", "incident_id", "effect_key", "delivery_id", "mitigation_id", "webhook"}:
        return f"{value}-{n}"
    return value


# --- the tour -----------------------------------------------------------------------------------


async def tour(open_bench: OpenBench, clock: FrozenClock) -> None:
    """Do everything once that the service does with its store."""
    for part in (held, cured, approved, handed_over, sent, by_pagerduty, looked_at):
        clock.advance(timedelta(hours=1))
        await part(open_bench)


async def newest(bench: Bench) -> Any:
    page = await bench.store.records.incidents(limit=1)
    return await bench.store.records.incident(page.items[0].id)


async def cured(open_bench: OpenBench) -> None:
    """An alert fires, is cured, fires again, resolves; a step fails and is tried again."""
    async with open_bench() as bench:
        store = bench.store
        delivery = await bench.receive(bench.alert())
        await bench.receive(bench.alert())
        assert await store.inbox.incidents_of(delivery.id)
        (claim,) = await store.queue.claim(10)
        await store.queue.renew(claim)
        await store.ledger.paused(claim.incident)
        await store.queue.retry_later(claim, timedelta(0))
        (claim,) = await store.queue.claim(10)
        await store.queue.release(claim)
        await bench.step()
        await bench.settle(10)
        (changing, *_) = await store.silenced.in_flight({("shop", "orders")}, 10)
        await store.silenced.alerts_of([changing.id])
        await store.silenced.note(changing.id, "silenced", "while it is changed")
        await bench.settle(40)
        await store.ledger.usage([Bound(scope=scope, limits=WIDE) for scope in SCOPES])
        await bench.receive(resolved(bench.alert(), bench.clock))
        await bench.settle(40)
        await bench.receive(bench.alert(alertname="NobodyTakesThis"))
        unread = a_delivery(bench.clock)
        await store.inbox.put(unread, [bench.alert()], [])
        assert await store.inbox.waiting() == [unread.id]
        await store.inbox.bury(unread.id, "it cannot be read")
    async with open_bench(records_by_sender=RecordBound(count=1)) as bench:
        for name in ("One", "Another", "AThird"):
            await bench.receive(bench.alert(alertname=name, severity="P2"))


async def approved(open_bench: OpenBench) -> None:
    """Plans are approved, rejected, cancelled; scopes are paused; somebody acknowledges."""
    for verb in ("approve", "reject", "cancel"):
        async with open_bench(World(things={"lamp"}), [a_service(mode=Mode.APPROVE)]) as bench:
            await bench.receive(bench.alert(more=verb))
            await bench.settle()
            commands = bench.store.commands
            incident = await newest(bench)
            plan = incident.mitigations[0].plan_hash
            await commands.waits_for(incident.id, plan)
            await commands.note(incident.id, "looked at", "ann", "for the tour")
            await commands.pause("global", "ann", "")
            await bench.settle(5)
            await commands.resume("global", "ann")
            if verb == "approve":
                await commands.approve(incident.id, plan, "ann")
            elif verb == "reject":
                await commands.reject(incident.id, plan, "ann", "no")
            else:
                await commands.cancel(incident.id, "ann", "no")
            await bench.settle(120)
            with contextlib.suppress(Refused):
                await commands.acknowledge(incident.id, "ann")
            await bench.store.clicks.take(f"{verb} {bench.clock.now}")
            window = await commands.start_maintenance(
                MaintenanceOrder(scope="global", lasts=timedelta(minutes=5)), "ann"
            )
            await bench.store.windows.listed()
            await bench.settle(5)
            await commands.end_maintenance(window.id, "ann")
            await bench.receive(resolved(bench.alert(more=verb), bench.clock))
            await bench.settle(60)


class Mute:
    """A channel that takes everything."""

    async def tell(self, _: Any) -> None:
        pass


async def handed_over(open_bench: OpenBench) -> None:
    """A human is needed, is called by level after level, and acknowledges."""
    levels = (Level(after=timedelta(0), notify=("slack",)),)
    service = a_service().model_copy(
        update={"escalation": Escalation(levels=levels, acknowledged_for=timedelta(minutes=5))}
    )
    async with open_bench(World(unavailable="it is gone"), [service]) as bench:
        escalations = bench.store.escalations
        await bench.receive(bench.alert(more="human"))
        await bench.settle(700)
        escalating = Escalating(
            bench.store,
            bench.around.catalogue,
            bench.around.frame,
            {"slack": Mute()},
            lambda *_: None,
        )
        for loop in escalating.loops:
            await loop()
        incident = await newest(bench)
        await escalations.due()
        await escalations.reported(IncidentId(incident.id), "pagerduty_incident")
        for subject in ("1", "2", "3"):
            message = Message(channel="mail", word=Word.LEVEL, subject=subject)
            await escalations.ask(IncidentId(incident.id), [message])
        telling = await escalations.claim("mail")
        assert telling is not None
        await escalations.release(telling)
        telling = await escalations.claim("mail")
        assert telling is not None
        await escalations.failed(telling, "it is busy", timedelta(0), loudly=True)
        for end in (escalations.told, lambda one: escalations.given_up(one, "refused")):
            telling = await escalations.claim("mail")
            assert telling is not None
            await end(telling)
        await bench.store.commands.acknowledge(incident.id, "ann")
        bench.clock.advance(timedelta(minutes=6))
        await escalating.decide()
        await bench.receive(resolved(bench.alert(more="human"), bench.clock))
        bench.clock.advance(timedelta(minutes=1))
        await escalating.decide()


async def sent(open_bench: OpenBench) -> None:
    """Messages are claimed, given back, delayed and sent."""
    async with open_bench() as bench:
        notices = bench.store.notices
        (notice, *_) = await notices.claim(1)
        await notices.release(notice)
        (notice, *_) = await notices.claim(1, {"ops"})
        await notices.put_back(notice, "C")
        (notice, *_) = await notices.claim(1, {"ops"})
        await notices.failed(notice, "it is busy", timedelta(0))
        (notice, *_) = await notices.claim(1)
        await notices.keep(notice, Handle(channel="C", message="1"))
        await notices.sent(notice, Handle(channel="C", message="1"))


async def by_pagerduty(open_bench: OpenBench) -> None:
    """PagerDuty's events are taken, fetched, triaged; its signatures are good or not."""
    async with open_bench() as bench:
        events = bench.store.events
        for kind in ("triggered", "acknowledged", "resolved"):
            delivery = a_delivery(bench.clock, source=Source.PAGERDUTY)
            said = {"triggered": AlertStatus.FIRING, "resolved": AlertStatus.RESOLVED}.get(kind)
            event = SenderEvent(
                id=f"{kind} {bench.clock.now}",
                webhook=f"{kind} by {bench.clock.now}",
                kind=kind,
                status=said,
                incident="P1",
                at=bench.clock.now,
            )
            alert = bench.alert(by="pagerduty").model_copy(
                update={"source": Source.PAGERDUTY, "group_key": event.group_key}
            )
            await events.put(delivery, event, [alert], fetch=True)
            (waiting,) = await events.claim(10)
            await events.release(waiting)
            (waiting,) = await events.claim(10)
            await events.later(waiting, "it is busy", timedelta(0))
            (waiting,) = await events.claim(10)
            await events.settle(waiting, [alert])
            await bench.triage()
            await events.alerts(delivery.id)
        incident = await newest(bench)
        await events.incidents_of(IncidentId(incident.id))
        await events.verified("digest")
        await events.verify("digest")
        await events.page("digest", "no signature is good")


async def looked_at(open_bench: OpenBench) -> None:
    """Operators read lists, incidents, deliveries and limits; what is old is deleted."""
    async with open_bench() as bench:
        records, store = bench.store.records, bench.store
        await asyncio.gather(records.ping(), records.limits(), records.pauses(), records.backlog())
        await store.probe.write()
        filters: list[dict[str, str]] = [
            {},
            {"state": "open"},
            {"system": "shop", "service": "orders"},
            {"service": "orders"},
            {"outcome": "mitigated"},
        ]
        for some in filters:
            page = await records.incidents(limit=2, **some)
            if page.next:
                await records.incidents(limit=2, after=page.next, **some)
        incident = page.items[0].id
        await records.legible(incident)
        found = await records.alerts_of(incident)
        assert found
        deliveries = await records.deliveries(limit=1)
        await records.deliveries(limit=1, after=deliveries.next)
        await records.delivery(deliveries.items[0].id)
        letters = await records.dead_letters(limit=1)
        assert letters.items
        await store.windows.over(
            (await _some_incident(bench)), bench.clock.now, bench.clock.now + timedelta(hours=1)
        )
        await store.retention.incidents(timedelta(days=1))
        await store.retention.deliveries(timedelta(days=1))
        with contextlib.suppress(StopAsyncIteration):
            await anext(store.audit.export(Part(incident=incident)))


async def _some_incident(bench: Bench) -> Any:
    await bench.receive(bench.alert(more="window"))
    (claim, *_) = await bench.claim()
    await bench.store.queue.release(claim)
    return claim.incident


async def held(open_bench: OpenBench) -> None:
    """A temporary change is made, postponed and taken back."""
    service = a_service("billing", parameters={"hold": "2m"})
    async with open_bench(World(things={"lamp"}), [service], undo=True) as bench:
        await bench.receive(bench.alert(service="billing"))
        await bench.settle(50)
        bench.clock.advance(timedelta(minutes=3))
        (owed,) = await bench.store.obligations.claim(10)
        await bench.store.obligations.begin(owed)
        await bench.store.obligations.postpone(owed, timedelta(0), attempts=1, step="a part")
        await bench.receive(resolved(bench.alert(service="billing"), bench.clock))
        await take_back(bench.store, bench.around)
        await bench.settle(700)
