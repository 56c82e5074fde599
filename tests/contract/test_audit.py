"""The audit on both databases: whatever is done to the journal behind our back is found and named."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import ProgrammingError

from remediator.model.alert import Source
from remediator.model.audit import Verification, Wrong
from remediator.model.errors import Refused, StoreUnavailable
from remediator.model.limits import Bound, Limits
from remediator.model.lookback import Growth, Safeguards
from remediator.model.target import Mode
from remediator.service.retention import age_of, delete_old
from remediator.store import Store, open_store, tables
from remediator.store.audit.chain import BROKEN, OPERATORS, Entry, Key, Keys, Part, head_content
from remediator.store.journal import append
from tests.store_fixtures import SEALED, Bench, OpenBench, a_service, resolved


@dataclass
class History:
    """A closed incident, an open one, and what operators did meanwhile."""

    bench: Bench
    closed: str
    still_open: str

    def named(self, which: str) -> str:
        return {"closed": self.closed, "open": self.still_open}.get(which, which)

    async def verify(self) -> Verification:
        return await self.bench.store.audit.verify()

    async def entries(self, chain: str) -> list[Entry]:
        every = [record async for record in self.bench.store.audit.export(Part())]
        return [e for e in every if isinstance(e, Entry) and e.chain == self.named(chain)]

    async def tamper(self, *statements: str, **values: Any) -> None:
        """Change the store behind the service's back."""

        async def operation(connection: Any) -> None:
            for statement in statements:
                await connection.execute(text(statement), values)

        await self.bench.store.database.write(operation)

    async def row(self, chain: str, number: int) -> int:
        """Return the id of a line."""
        name = self.named(chain)
        mine = tables.journal.c.incident_id == name
        if chain == OPERATORS:
            mine = tables.journal.c.incident_id.is_(None)
        query = select(tables.journal.c.id).where(mine, tables.journal.c.number == number)
        async with self.bench.store.database.read() as connection:
            return int((await connection.execute(query)).scalar_one())


@contextlib.asynccontextmanager
async def a_history(open_bench: OpenBench, keys: Keys | None = SEALED) -> AsyncIterator[History]:
    services = [a_service(), a_service("bills", mode=Mode.APPROVE)]
    async with open_bench(services=services, keys=keys) as bench:
        alert = bench.alert()
        await bench.receive(alert)
        await bench.settle(45)
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle()
        closed = (await bench.incident()).id
        bench.world.things = {"bills:lamp"}
        await bench.receive(bench.alert(service="bills"))
        await bench.settle()
        (still_open,) = [i.id for i in await bench.incidents() if i.state == "open"]
        await bench.store.commands.pause("global", "ann", "a look at \N{SNOWMAN}\0 first")
        await bench.store.commands.resume("global", "ann")
        for notice in await bench.store.notices.claim(10):
            await bench.store.notices.sent(notice, None)
        yield History(bench, closed, still_open)


@pytest.fixture
async def history(open_bench: OpenBench) -> AsyncIterator[History]:
    async with a_history(open_bench) as made:
        yield made


async def test_a_history_that_nobody_touched_verifies(history: History) -> None:
    found = await history.verify()
    assert (found.ok, found.whole, found.unsealed, found.flaws) == (True, True, 0, [])
    assert found.chains == 3
    assert found.keys == [SEALED.sealing.id]
    lines = sum([len(await history.entries(chain)) for chain in ("closed", "open", OPERATORS)])
    assert found.entries == lines


async def test_every_change_of_the_ledger_leaves_an_entry_that_says_who_and_why(
    history: History,
) -> None:
    told = [(e.event, e.data) for e in await history.entries("closed") if e.step == "ledger"]
    assert [event for event, _ in told] == ["reserved", "applied", "judged better"]
    (_, reserved), (_, applied), (_, judged) = told
    assert (reserved["mode"], reserved["playbook"], reserved["kind"]) == (
        "auto",
        "SwitchOff",
        "switch_off",
    )
    assert reserved["items"] == ["lamp", "oven"]
    assert reserved["effect_key"] == applied["effect_key"] == judged["effect_key"]
    (plan,) = [e for e in await history.entries("open") if e.step == "ledger"]
    assert plan.event == "awaiting_approval"
    await history.bench.store.commands.approve(history.still_open, None, "ann")
    await history.bench.settle()
    told = [(e.event, e.data) for e in await history.entries("open") if e.step == "ledger"]
    assert [event for event, _ in told] == ["awaiting_approval", "reserved", "applied"]
    assert told[1][1]["decided_by"] == "ann"
    acts = [e for e in await history.entries(OPERATORS) if e.event == "approved"]
    assert [(e.data["by"], e.data["incident"]) for e in acts] == [("ann", history.still_open)]


async def test_who_had_something_replayed_is_kept(history: History) -> None:
    bench = history.bench
    await bench.receive(
        bench.alert(), source=Source.REPLAY, replay_of=history.closed, credential="ann"
    )
    (act,) = [e for e in await history.entries(OPERATORS) if e.event == "replayed"]
    assert (act.reason, act.data["by"]) == (f"ann: {history.closed}, for real", "ann")


async def test_the_timeline_leaves_the_ledgers_own_entries_out(history: History) -> None:
    view = await history.bench.store.records.incident(history.closed)
    assert view is not None
    assert {event.step for event in view.timeline} == {
        "triage",
        "diagnose",
        "decide",
        "act",
        "verify",
        "settle",
    }


@pytest.mark.parametrize("chain", ["closed", "open", OPERATORS])
@pytest.mark.parametrize(
    "change",
    [
        "at = at + 1",
        "step = 'triagé'",
        "event = event || '.'",
        "reason = reason || ' '",
        'data = \'{"by": "eve"}\'',
        "mac = mac || '0'",
    ],
)
async def test_a_changed_entry_is_found_and_named(
    history: History, chain: str, change: str
) -> None:
    mine = await history.row(chain, 2)
    await history.tamper(f"UPDATE journal SET {change} WHERE id = :id", id=mine)
    found = await history.verify()
    assert (found.flaws[0].chain, found.flaws[0].number) == (history.named(chain), 2)
    assert found.flaws[0].what is Wrong.CHANGED
    seal = change.startswith("mac")
    assert found.wrong == (2 if seal else 1)  # the next one is sealed over it


ANYWHERE = [
    *("at = 4611686018427387904", "data = '[1]'", "data = 'null'"),
    f"""data = '{'{"a": ' * 101}1{"}" * 101}'""",
    f"""data = '{{"a": {"9" * 5000}}}'""",
]
ONLY_SQLITE = [
    *("at = 'yesterday'", "at = x'ff'", "at = 1e300", "at = CAST(at AS BLOB)"),
    *("number = 'two'", "number = ''", "number = CAST(number AS BLOB)"),
    *("data = 'tampered'", "data = ''", "data = x'ff00'", "data = CAST(data AS BLOB)"),
    *("""data = '{"a": "\\ud800"}'""", """data = '{"a": NaN}'"""),
    f"""data = '{'{"a": ' * 2000}1{"}" * 2000}'""",
    *("event = x'fffe'", "event = CAST(event AS BLOB)", "step = CAST(step AS BLOB)"),
    *("reason = 17", "mac = ''", "mac = x'ff'", "mac = CAST(mac AS BLOB)"),
]
"""It takes anything in any column."""


@pytest.mark.parametrize(
    ("store_url", "change"),
    [
        *(("sqlite", change) for change in (*ANYWHERE, *ONLY_SQLITE)),
        *(("postgres", change) for change in ANYWHERE),
    ],
    indirect=["store_url"],
)
@pytest.mark.parametrize("chain", ["closed", OPERATORS])
async def test_an_entry_that_is_not_as_entries_are_written_is_found_and_named(
    history: History, chain: str, change: str
) -> None:
    mine = await history.row(chain, 2)
    await history.tamper(
        f"UPDATE journal SET {change} WHERE id = :id".replace('":', '"\\:'), id=mine
    )
    found = await history.verify()
    assert not found.ok
    assert (found.flaws[0].chain, found.flaws[0].what) == (history.named(chain), Wrong.CHANGED)
    assert [entry.model_dump_json() for entry in await history.entries(chain)], "it is exported"
    view = await history.bench.store.records.incident(history.closed)
    assert view is not None
    assert view.model_dump_json(), "and can be looked at"
    history.bench.clock.now += 2 * DAY
    await delete_old(history.bench.store, DAY)
    kept = await _incidents(history)
    assert (history.closed in kept) is (chain == "closed"), "what does not hold is not deleted"


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE chains SET chain = x'ff' WHERE chain = :name",
        "UPDATE chains SET chain = CAST(chain AS BLOB) WHERE chain = :name",
        "UPDATE journal SET incident_id = CAST(incident_id AS BLOB) WHERE incident_id = :name",
        "UPDATE incidents SET opened_at = 'once' WHERE id = :name",
    ],
)
async def test_what_was_put_where_no_query_finds_it_is_found(
    history: History, store_url: str, change: str
) -> None:
    with contextlib.closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as file, file:
        file.execute(change, {"name": history.closed})
    found = await history.verify()
    assert found.ok is ("opened_at" in change), "the journal says when it was opened"


@pytest.mark.parametrize("chain", ["closed", "open", OPERATORS])
async def test_a_missing_entry_is_found_and_named(history: History, chain: str) -> None:
    await history.tamper("DELETE FROM journal WHERE id = :id", id=await history.row(chain, 2))
    flaws = [(f.chain, f.number, f.what) for f in (await history.verify()).flaws]
    assert flaws == [(history.named(chain), 2, Wrong.MISSING)]


async def test_two_entries_that_changed_places_are_found_and_named(history: History) -> None:
    one, two = await history.row("closed", 2), await history.row("closed", 3)
    move = "UPDATE journal SET id = :new WHERE id = :old"
    for old, new in ((one, -1), (two, one), (-1, two)):
        await history.tamper(move, old=old, new=new)
    flaws = [(f.chain, f.number, f.what) for f in (await history.verify()).flaws]
    assert flaws == [(history.closed, 2, Wrong.REORDERED)]


@pytest.mark.parametrize("chain", ["closed", "open", OPERATORS])
@pytest.mark.parametrize("also", ["nothing", "head", "seal"])
async def test_a_chain_whose_end_was_cut_is_found_and_named(
    history: History, chain: str, also: str
) -> None:
    last = len(await history.entries(chain))
    mac = (await history.entries(chain))[-2].mac
    await history.tamper("DELETE FROM journal WHERE id = :id", id=await history.row(chain, last))
    name = history.named(chain)
    if also == "head":
        await history.tamper("DELETE FROM chains WHERE chain = :name", name=name)
    if also == "seal":
        back = "UPDATE chains SET count = :count, mac = :mac WHERE chain = :name"
        await history.tamper(back, count=last - 1, mac=mac, name=name)
    flaws = (await history.verify()).flaws
    assert {f.chain for f in flaws} == {name}
    assert flaws[0].what in (Wrong.CUT, Wrong.CHANGED)


async def test_a_head_that_was_set_back_is_not_covered_up_by_what_is_written_next(
    history: History,
) -> None:
    chain, last = history.still_open, len(await history.entries("open"))
    mac = (await history.entries("open"))[-2].mac
    await history.tamper("DELETE FROM journal WHERE id = :id", id=await history.row("open", last))
    back = "UPDATE chains SET count = :count, mac = :mac WHERE chain = :name"
    await history.tamper(back, count=last - 1, mac=mac, name=chain)
    await history.bench.store.commands.cancel(chain, "ann", "")
    (flaw,) = (await history.verify()).flaws
    assert (flaw.chain, flaw.number, flaw.what) == (chain, last, Wrong.CUT)


FORGED = (
    "INSERT INTO journal (id, incident_id, at, step, event, reason, data)"
    " VALUES ({row}, :name, 1, 'act', 'nothing to see', '', '{{}}')"
)


@pytest.mark.parametrize("chain", ["open", OPERATORS])
async def test_a_chain_whose_own_older_head_was_put_back_is_found_at_the_next_write(
    history: History, chain: str
) -> None:
    name, last = history.named(chain), len(await history.entries(chain))
    await history.tamper("CREATE TABLE older AS SELECT * FROM chains")
    await history.bench.store.commands.note(history.still_open, "a note", "ann", "")
    await history.bench.store.commands.pause("global", "ann", "")
    await history.tamper(
        "DELETE FROM journal WHERE id = :id", id=await history.row(chain, last + 1)
    )
    back = " = (SELECT {0} FROM older WHERE older.chain = chains.chain)"
    columns = ", ".join(c + back.format(c) for c in ("count", "mac", "seal"))
    await history.tamper(f"UPDATE chains SET {columns} WHERE chain = :name", name=name)
    assert (await history.verify()).ok  # it is what it was
    await history.bench.store.commands.cancel(history.still_open, "ann", "")
    (flaw,) = (await history.verify()).flaws
    assert (flaw.chain, flaw.number, flaw.what) == (name, last + 1, Wrong.CUT)


async def test_a_write_that_failed_is_not_remembered(history: History) -> None:
    async def fails(connection: Any) -> None:
        at = history.bench.clock.now
        append(connection, history.still_open, at=at, step="act", event="x" * 20, reason="")
        await connection.execute(text("CREATE TABLE journal (broken integer)"))

    with pytest.raises((StoreUnavailable, ProgrammingError)):
        await history.bench.store.database.write(fails)
    await history.bench.store.commands.cancel(history.still_open, "ann", "")
    assert (await history.verify()).ok


ANYTHING = ["seal = '{key}:\u00e9'", "seal = '\u2603'", "seal = ''", "mac = '\u00e9'", "count = -7"]
ANYTHING += ["count = 9223372036854775807", "count = 0, mac = '', seal = 'x'"]
ONLY_SQLITE = ["count = 'many'", "count = x'ff'", "seal = CAST(x'ff' AS TEXT)", "seal = x'ff00'"]
ONLY_SQLITE += ["mac = printf('%.2000000c', 'x')"]


@pytest.mark.parametrize("change", ANYTHING + ONLY_SQLITE)
async def test_whatever_stands_in_a_head_nothing_is_lost_and_it_is_found(
    history: History, change: str
) -> None:
    bench = history.bench
    if bench.store.database.is_postgres and change in ONLY_SQLITE:
        pytest.skip("PostgreSQL takes no such value")
    await history.tamper("UPDATE chains SET " + change.format(key=SEALED.sealing.id))
    again = bench.alert(alertname="Dim")
    await bench.receive(again)
    assert len(await bench.incidents()) == 3
    await bench.store.commands.cancel(history.still_open, "ann", "")
    assert (await bench.store.records.dead_letters()).items == []
    found = {f.chain for f in (await history.verify()).flaws}
    assert {history.still_open, OPERATORS} <= found
    broken = [e for e in await history.entries(OPERATORS) if e.event == BROKEN]
    assert len(broken) == 1


@pytest.mark.parametrize("mac", ["{key}:\u00e9", "\u2603", "", "{key}", "{key}:" + "0" * 65])
async def test_a_seal_that_is_none_is_found_and_named(history: History, mac: str) -> None:
    await history.tamper(
        "UPDATE journal SET mac = :mac WHERE id = :id",
        mac=mac.format(key=SEALED.sealing.id),
        id=await history.row("closed", 2),
    )
    flaw = (await history.verify()).flaws[0]
    assert (flaw.chain, flaw.number, flaw.what) == (history.closed, 2, Wrong.CHANGED)


@pytest.mark.parametrize("which", ["closed", "open"])
async def test_an_incident_that_is_gone_whole_is_found_and_named(
    history: History, which: str
) -> None:
    name = history.named(which)
    await history.tamper(
        "DELETE FROM journal WHERE incident_id = :name",
        "DELETE FROM chains WHERE chain = :name",
        name=name,
    )
    (flaw,) = (await history.verify()).flaws
    assert (flaw.chain, flaw.what) == (name, Wrong.MISSING)


async def test_a_chain_that_began_anew_is_found_and_named(history: History) -> None:
    await history.tamper(
        "DELETE FROM journal WHERE incident_id = :name",
        "DELETE FROM chains WHERE chain = :name",
        name=history.still_open,
    )
    await history.bench.store.commands.cancel(history.still_open, "ann", "")
    flaws = {(f.chain, f.number, f.what) for f in (await history.verify()).flaws}
    assert flaws == {(history.still_open, 1, Wrong.CUT)}


@pytest.mark.parametrize("mac", ["'0:0'", "(SELECT mac FROM journal WHERE id = 2)"])
async def test_a_forged_entry_is_found_and_named(history: History, mac: str) -> None:
    last = len(await history.entries("closed"))
    await history.tamper(
        "INSERT INTO journal (incident_id, at, step, event, reason, data, number, mac)"
        f" VALUES (:name, 1, 'act', 'nothing', '', '{{}}', :number, {mac})",
        name=history.closed,
        number=last + 1,
    )
    flaws = {(f.chain, f.number, f.what) for f in (await history.verify()).flaws}
    assert (history.closed, last + 1, Wrong.ADDED) in flaws


async def test_an_entry_that_stands_there_twice_is_found_and_named(history: History) -> None:
    copied = "incident_id, at, step, event, reason, data, number, mac"
    await history.tamper(
        f"INSERT INTO journal ({copied}) SELECT {copied} FROM journal WHERE id = :id",
        id=await history.row("closed", 2),
    )
    (flaw,) = (await history.verify()).flaws
    assert (flaw.chain, flaw.number, flaw.what) == (history.closed, 2, Wrong.ADDED)


async def test_an_entry_of_another_incident_is_found_and_named(history: History) -> None:
    await history.tamper(
        "UPDATE journal SET incident_id = :other WHERE id = :id",
        other=history.still_open,
        id=await history.row("closed", 2),
    )
    flaws = {(f.chain, f.number, f.what) for f in (await history.verify()).flaws}
    assert (history.closed, 2, Wrong.MISSING) in flaws


@pytest.mark.parametrize("column", ["number", "mac"])
async def test_a_seal_that_was_taken_away_is_found(history: History, column: str) -> None:
    mine = await history.row("closed", 2)
    await history.tamper(f"UPDATE journal SET {column} = NULL WHERE id = :id", id=mine)
    assert {f.what for f in (await history.verify()).flaws} == {Wrong.CHANGED, Wrong.MISSING}


async def test_lines_without_a_seal_before_the_first_are_named_and_not_called_wrong(
    history: History,
) -> None:
    await history.tamper(FORGED.format(row=0), name=history.still_open)
    found = await history.verify()
    assert found.ok
    assert (found.unsealed, found.unsealed_chains) == (1, [history.still_open])


@pytest.mark.parametrize("then", ["nothing", "an order"])
async def test_a_line_without_a_seal_after_a_sealed_one_is_found(
    history: History, then: str
) -> None:
    await history.tamper(FORGED.format(row=1000), name=history.still_open)
    if then == "an order":
        await history.tamper("UPDATE journal SET id = id - 1 WHERE id = 1000")
        await history.bench.store.commands.cancel(history.still_open, "ann", "")
    (flaw,) = (await history.verify()).flaws
    assert (flaw.chain, flaw.what) == (history.still_open, Wrong.ADDED)


@pytest.mark.parametrize("keys", [SEALED, None])
async def test_a_line_without_a_seal_is_marked_in_the_timeline_where_there_is_a_key(
    open_bench: OpenBench, keys: Keys | None
) -> None:
    async with a_history(open_bench, keys=keys) as made:
        await made.tamper(FORGED.format(row=1000), name=made.closed)
        view = await made.bench.store.records.incident(made.closed)
    assert view is not None
    marked = [event.event for event in view.timeline if event.unsealed]
    assert marked == (["nothing to see"] if keys else [])


async def test_lines_that_lost_every_seal_are_not_taken_for_an_older_versions(
    history: History,
) -> None:
    await history.tamper("UPDATE journal SET number = NULL, mac = NULL", "DELETE FROM chains")
    flaws = [(f.chain, f.what) for f in (await history.verify()).flaws]
    assert flaws == [(OPERATORS, Wrong.MISSING), (OPERATORS, Wrong.CHANGED)]


UNSEALED = ["UPDATE journal SET number = NULL, mac = NULL"]
NO_TRACE = [*UNSEALED, "DELETE FROM journal WHERE step = 'audit'"]


@pytest.mark.parametrize("then", ["an order", "a start"])
@pytest.mark.parametrize("what", [UNSEALED, NO_TRACE, ["DELETE FROM journal"], []])
async def test_a_journal_that_lost_its_heads_is_not_begun_anew_unseen(
    history: History, open_bench: OpenBench, what: list[str], then: str
) -> None:
    await history.tamper(*what, "DELETE FROM chains")
    if then == "an order":
        await history.bench.store.commands.pause("global", "ann", "")
    else:
        async with open_bench(owner="two"):
            pass
    found = await history.verify()
    if (what, then) == (NO_TRACE, "a start"):  # so looks a store that never had a key
        assert (found.ok, found.since) == (True, history.bench.clock.now)
        return
    assert OPERATORS in {f.chain for f in found.flaws}
    broken = [e for e in await history.entries(OPERATORS) if e.event == BROKEN]
    assert len(broken) == 1


async def test_an_incident_without_an_entry_is_found_and_named(
    history: History, open_bench: OpenBench
) -> None:
    await history.tamper("DELETE FROM journal", "DELETE FROM chains")
    async with open_bench(owner="two") as newer:
        gone = [f.chain for f in (await newer.store.audit.verify()).flaws if f.what == "missing"]
    assert sorted(gone) == sorted([history.closed, history.still_open])


async def test_an_incident_that_is_newer_than_the_seals_and_has_none_is_found(
    history: History,
) -> None:
    bench = history.bench
    async with bench.store.database.read() as connection:
        whole = select(tables.incidents).where(tables.incidents.c.id == history.closed)
        forged = dict((await connection.execute(whole)).mappings().one()) | {"id": "inc-forged"}
    await bench.store.database.insert({tables.incidents: [forged]})
    await history.tamper(FORGED.format(row=1000), name="inc-forged")
    assert [f.chain for f in (await history.verify()).flaws] == []
    await history.tamper("UPDATE incidents SET opened_at = opened_at + 1")
    flaws = [(f.chain, f.what) for f in (await history.verify()).flaws]
    assert flaws == [("inc-forged", Wrong.MISSING)]


async def test_what_was_written_before_there_was_a_key_stays_and_is_named(
    open_bench: OpenBench,
) -> None:
    async with a_history(open_bench, keys=None) as before:
        with pytest.raises(Refused, match="no key"):
            await before.verify()
        lines = len(await before.entries("closed")) + len(await before.entries(OPERATORS))
        lines += len(await before.entries("open"))
        async with open_bench(owner="two", keys=SEALED) as newer:
            await newer.store.commands.cancel(before.still_open, "ann", "")
            found = await newer.store.audit.verify()
            assert (found.ok, found.unsealed) == (True, lines)
            assert found.entries > 0


async def test_another_key_is_said_once_and_not_for_each_entry(
    history: History, open_bench: OpenBench
) -> None:
    async with open_bench(owner="two", keys=Keys(Key(b"some other key of tests"))) as other:
        (flaw,) = (await other.store.audit.verify()).flaws
    assert flaw.what is Wrong.KEY
    assert SEALED.sealing.id in flaw.detail


async def test_after_a_rotation_both_keys_verify(history: History, open_bench: OpenBench) -> None:
    fresh = Key(b"the next key of the tests")
    async with open_bench(owner="two", keys=Keys(fresh, (SEALED.sealing,))) as rotated:
        await rotated.store.commands.cancel(history.still_open, "ann", "")
        found = await rotated.store.audit.verify()
    assert found.ok
    assert found.keys == sorted([SEALED.sealing.id, fresh.id])
    (flaw, *_) = (await history.verify()).flaws
    assert flaw.what is Wrong.KEY


async def test_one_incident_alone_can_be_read_with_its_head(history: History) -> None:
    asked = Part(incident=history.closed)
    begin, *part, head, end = [r async for r in history.bench.store.audit.export(asked)]
    assert (begin.kind, head.kind, end.kind) == ("export", "head", "end")
    assert {record.chain for record in part if isinstance(record, Entry)} == {history.closed}


async def test_who_reads_the_audit_slowly_takes_one_connection_and_no_more(
    history: History,
) -> None:
    slow = history.bench.store.audit.export(Part())
    await anext(slow)
    for _ in range(8):
        with pytest.raises(StoreUnavailable, match="being read already"):
            await history.verify()
    await slow.aclose()
    assert (await history.verify()).ok


async def test_a_write_that_is_undone_leaves_no_entry_and_no_hole(history: History) -> None:
    with pytest.raises(Refused):
        await history.bench.store.commands.resume("global", "ann")
    with pytest.raises(Refused):
        await history.bench.store.commands.approve(history.still_open, "0" * 16, "ann")
    assert (await history.verify()).ok


@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
async def test_replicas_that_write_at_once_keep_every_chain_whole(
    store_url: str, history: History
) -> None:
    async def writes(store: Store, who: str) -> None:
        for turn in range(25):
            chains = [history.closed, history.still_open, "inc-nobody-knows"]
            some = chains if turn % 2 else chains[::-1]
            notes = [store.commands.note(c, f"note {turn}", who, "") for c in some]
            await asyncio.gather(*notes, store.commands.pause("global", who, f"{turn}"))

    async with contextlib.AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(
                open_store(store_url, owner=f"replica {n}", changed=lambda: None, keys=SEALED)
            )
            for n in range(4)
        ]
        await asyncio.gather(*(writes(store, f"eve {n}") for n, store in enumerate(stores)))
    assert (await history.verify()).ok
    query = select(func.count()).where(tables.journal.c.event.like("note %"))
    async with history.bench.store.database.read() as connection:
        assert await connection.scalar(query) == 4 * 25 * 3


# --- retention ----------------------------------------------------------------------------------

DAY = timedelta(days=1)


async def _incidents(history: History) -> set[str]:
    return {incident.id for incident in await history.bench.incidents()}


async def test_retention_deletes_a_closed_incident_whole_and_the_audit_knows(
    history: History,
) -> None:
    bench, before = history.bench, len(await history.entries("closed"))
    bench.clock.now += 2 * DAY
    await delete_old(bench.store, 3 * DAY)
    assert await _incidents(history) == {history.closed, history.still_open}
    await delete_old(bench.store, DAY)
    assert await _incidents(history) == {history.still_open}
    assert before
    assert await history.entries("closed") == []
    found = await history.verify()
    assert (found.ok, found.flaws) == (True, [])
    (gone,) = [e for e in await history.entries(OPERATORS) if e.event == "incidents deleted"]
    assert gone.data["heads"][history.closed][0] == before
    deliveries = (await bench.store.records.deliveries()).items
    assert [d.incidents for d in deliveries] == [[history.still_open]]


async def test_what_retention_deleted_cannot_come_back_unseen(history: History) -> None:
    async with history.bench.store.database.read() as connection:
        mine = tables.journal.c.incident_id == history.closed
        rows = (await connection.execute(select(tables.journal).where(mine))).mappings().all()
        whole = select(tables.incidents).where(tables.incidents.c.id == history.closed)
        incident = (await connection.execute(whole)).mappings().one()
    history.bench.clock.now += 2 * DAY
    await delete_old(history.bench.store, DAY)
    back = {tables.incidents: [dict(incident)], tables.journal: [dict(row) for row in rows]}
    await history.bench.store.database.insert(back)
    assert {(f.chain, f.what) for f in (await history.verify()).flaws} >= {
        (history.closed, Wrong.ADDED)
    }


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE journal SET reason = 'nothing' WHERE incident_id = :name AND number = 2",
        "DELETE FROM journal WHERE incident_id = :name AND number = 2",
        "DELETE FROM journal WHERE incident_id = :name",
        "UPDATE chains SET seal = 'x' WHERE chain = :name",
    ],
)
async def test_retention_keeps_a_chain_that_does_not_hold(history: History, change: str) -> None:
    await history.tamper(change, name=history.closed)
    history.bench.clock.now += 2 * DAY
    await delete_old(history.bench.store, DAY)
    assert await _incidents(history) == {history.closed, history.still_open}
    assert history.closed in {f.chain for f in (await history.verify()).flaws}


async def test_retention_believes_the_sealed_entry_and_not_the_row(history: History) -> None:
    await history.tamper("UPDATE incidents SET closed_at = closed_at - 86400000000 * 9")
    await history.tamper("UPDATE incidents SET opened_at = opened_at - 86400000000 * 9")
    await delete_old(history.bench.store, 8 * DAY)
    assert await _incidents(history) == {history.closed, history.still_open}
    history.bench.clock.now += 9 * DAY
    await delete_old(history.bench.store, 8 * DAY)
    assert await _incidents(history) == {history.still_open}


async def test_a_chain_that_was_cut_before_retention_deleted_it_is_found(
    history: History,
) -> None:
    before, after = (await history.entries("closed"))[-2:]
    head = {"chain": history.closed, "count": before.number, "mac": before.mac}
    seal = SEALED.sealing.mac(head_content(history.closed, before.number or 0, before.mac or ""))
    await history.tamper(
        "UPDATE chains SET count = :count, mac = :mac, seal = :seal WHERE chain = :chain",
        **head,
        seal=seal,
    )
    row = await history.row("closed", after.number or 0)
    await history.tamper("DELETE FROM journal WHERE id = :id", id=row)
    history.bench.clock.now += 2 * DAY
    await delete_old(history.bench.store, DAY)
    assert await _incidents(history) == {history.still_open}
    (flaw,) = (await history.verify()).flaws
    assert (flaw.chain, flaw.what) == (history.closed, Wrong.CUT)


async def test_an_incident_deleted_without_a_trace_is_not_taken_for_retention(
    history: History,
) -> None:
    history.bench.clock.now += 2 * DAY
    await delete_old(history.bench.store, DAY)
    last = len(await history.entries(OPERATORS))
    await history.tamper(
        "DELETE FROM journal WHERE id = :id", id=await history.row(OPERATORS, last)
    )
    assert {(f.chain, f.what) for f in (await history.verify()).flaws} == {
        (OPERATORS, Wrong.CUT),
        (history.closed, Wrong.MISSING),
    }


async def test_retention_keeps_what_is_owed_still_fires_or_is_to_be_told(
    open_bench: OpenBench,
) -> None:
    held = [a_service(parameters={"hold": "90d"}), a_service("bills", mode=Mode.SHADOW)]
    async with open_bench(services=held, undo=True) as bench:
        alert = bench.alert()
        await bench.receive(alert)
        await bench.settle(45)
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle()
        bench.world.things = {"bills:lamp"}
        await bench.receive(bench.alert(service="bills"))
        await bench.settle()
        owed, fires = sorted(incident.id for incident in await bench.incidents())
        for notice in await bench.store.notices.claim(10):
            await bench.store.notices.sent(notice, None)
        assert {i.state for i in await bench.incidents()} == {"closed"}
        bench.clock.now += 2 * DAY
        await delete_old(bench.store, DAY)
        assert {i.id for i in await bench.incidents()} == {owed, fires}


def test_what_a_bound_looks_back_on_is_kept_as_long_as_it_does() -> None:
    long = Limits(budget=1, window=9 * DAY, cooldown=timedelta(0), concurrency=1)
    assert age_of(DAY, [Bound(scope="global", limits=long)], Safeguards()) == 9 * DAY
    assert age_of(90 * DAY, [Bound(scope="global", limits=long)], Safeguards()) == 90 * DAY
    assert age_of(DAY, [], Safeguards()) == Growth().window
