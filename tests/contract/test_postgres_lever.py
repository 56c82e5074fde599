"""PostgresMitigator keeps the contract of ``ports.Mitigator`` on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from remediator.backends.postgres.mitigator import PostgresMitigator
from remediator.backends.postgres.reader import PostgresReader
from remediator.cli.demo.postgres import EmbeddedPostgres, ServerOptions
from remediator.model.connections import Session
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.finding import SenseState
from remediator.model.mitigation import Item, Mitigation, MitigationState, Preparation
from remediator.model.target import Target
from tests.postgres_fixtures import Connection, Scene, eventually, require_embedded

TARGET = Target(system="shop", service="orders", role="database", kind="postgres", name="orders-db")
MARKERS = {"end_sessions": "state_change", "cancel_queries": "query_start"}


@pytest_asyncio.fixture
async def lever(scene: Scene) -> AsyncIterator[PostgresMitigator]:
    async with PostgresMitigator(scene.dsn_as("lever"), name="orders-db") as lever:
        yield lever


async def session_of(scene: Scene, connection: Connection) -> Session:
    async with PostgresReader(scene.dsn_as("reader")) as reader:
        sessions = await reader.sessions(app_roles=(scene.app,))
    return next(s for s in sessions if s.pid == connection.get_server_pid())


def item_of(session: Session, kind: str) -> Item:
    marker = MARKERS.get(kind, "query_start")
    return Item(
        key=f"pid {session.pid}",
        identity={
            "pid": session.pid,
            "backend_start": session.backend_start.isoformat(),
            marker: getattr(session, marker).isoformat(),
        },
    )


async def plan(
    scene: Scene, kind: str, connections: Iterable[Connection], **parameters: float
) -> Mitigation:
    items = [item_of(await session_of(scene, c), kind) for c in connections]
    bounds = {"min_age_s": 0, "max_items": 5, **parameters}
    return Mitigation(
        kind=kind,
        target=TARGET,
        reason="a test",
        items=tuple(items),
        parameters={"app_roles": [scene.app], **bounds},
    )


async def gone(scene: Scene, connection: Connection) -> bool:
    return not await scene.is_(connection.get_server_pid())


async def test_leak_is_ended_and_its_victim_goes_on(scene: Scene, lever: PostgresMitigator) -> None:
    leak = await scene.leak()
    victim = await scene.victim()
    preparation = await lever.prepare(await plan(scene, "end_sessions", [leak]))
    outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.APPLIED
    assert await gone(scene, leak)
    await scene.until(victim.get_server_pid(), "state = 'idle'")


async def test_prepare_changes_nothing_and_shows_what_it_saw(
    scene: Scene, lever: PostgresMitigator
) -> None:
    leak = await scene.leak()
    mitigation = await plan(scene, "end_sessions", [leak])
    preparation = await lever.prepare(mitigation)
    assert preparation.mitigation == mitigation
    assert preparation.undo is None
    assert "idle in transaction" in str(preparation.before)
    assert not await gone(scene, leak)


async def test_query_is_cancelled_and_its_session_lives_on(
    scene: Scene, lever: PostgresMitigator
) -> None:
    busy = await scene.busy()
    preparation = await lever.prepare(await plan(scene, "cancel_queries", [busy]))
    outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.APPLIED
    assert await scene.is_(busy.get_server_pid(), "state = 'idle'")


async def test_query_that_cannot_be_cancelled_is_told_and_then_ended(
    scene: Scene, lever: PostgresMitigator
) -> None:
    busy = await scene.deaf()
    mitigation = await plan(scene, "cancel_queries", [busy])
    preparation = await lever.prepare(mitigation)
    outcome = await lever.apply(preparation, "key")
    assert "still there" in outcome.items[0].detail
    assert (await lever.observe(preparation, "key")).state is MitigationState.NOT_APPLIED
    ended = await lever.apply(
        await lever.prepare(mitigation.model_copy(update={"kind": "end_queries"})), "key 2"
    )
    assert ended.state is MitigationState.APPLIED
    assert await gone(scene, busy)


async def test_session_that_moved_on_between_prepare_and_apply_lives(
    scene: Scene, lever: PostgresMitigator
) -> None:
    leak = await scene.leak()
    preparation = await lever.prepare(await plan(scene, "end_sessions", [leak]))
    await leak.execute("SELECT 1")  # same pid, same transaction, but alive
    outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert "moved on" in outcome.items[0].detail
    assert not await gone(scene, leak)


async def test_committed_session_lives(scene: Scene, lever: PostgresMitigator) -> None:
    leak = await scene.leak()
    preparation = await lever.prepare(await plan(scene, "end_sessions", [leak]))
    await leak.execute("COMMIT")
    outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert not await gone(scene, leak)


async def test_session_with_a_reused_pid_lives(scene: Scene, lever: PostgresMitigator) -> None:
    """T-10: a pid may be another's by the time of the kill."""
    leak = await scene.leak()
    mitigation = await plan(scene, "end_sessions", [leak])
    (item,) = mitigation.items
    earlier = {**item.identity, "backend_start": "2020-01-01T00:00:00.000001+00:00"}
    other = item.model_copy(update={"identity": earlier})
    preparation = Preparation(mitigation=mitigation.model_copy(update={"items": (other,)}))
    outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert "is gone" in outcome.items[0].detail
    assert not await gone(scene, leak)


async def test_next_query_of_the_same_session_is_not_cancelled(
    scene: Scene, lever: PostgresMitigator
) -> None:
    busy = await scene.busy()
    preparation = await lever.prepare(await plan(scene, "cancel_queries", [busy]))
    await scene_cancel(scene, busy)
    scene.start(busy, "SELECT pg_sleep(61)")
    await scene.until(busy.get_server_pid(), "state = 'active'")
    outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert await scene.is_(busy.get_server_pid(), "state = 'active'")


async def scene_cancel(scene: Scene, connection: Connection) -> None:
    admin = await asyncpg.connect(scene.dsn)
    await admin.execute(f"SELECT pg_cancel_backend({connection.get_server_pid()})")
    await admin.close()
    await scene.until(connection.get_server_pid(), "state = 'idle'")


@pytest.mark.parametrize("kind", ["cancel_queries", "end_queries"])
async def test_waiting_victim_is_refused(scene: Scene, lever: PostgresMitigator, kind: str) -> None:
    leak = await scene.leak()
    victim = await scene.victim()
    with pytest.raises(BackendRefused, match=f"waits for pid {leak.get_server_pid()}"):
        await lever.prepare(await plan(scene, kind, [victim]))


async def test_victim_that_began_to_wait_after_prepare_lives(
    scene: Scene, lever: PostgresMitigator
) -> None:
    await scene.leak()
    victim = await scene.victim()
    outcome = await lever.apply(
        Preparation(mitigation=await plan(scene, "cancel_queries", [victim])), "key"
    )
    assert outcome.state is MitigationState.NOT_APPLIED
    assert await scene.is_(victim.get_server_pid(), "wait_event_type = 'Lock'")


@pytest.mark.parametrize("application", ["pg_dump", "remediator"])
async def test_dump_and_our_own_sessions_are_refused_and_live(
    scene: Scene, lever: PostgresMitigator, application: str
) -> None:
    leak = await scene.leak(application="orders")
    mitigation = await plan(scene, "end_sessions", [leak])
    preparation = await lever.prepare(mitigation)
    await leak.execute("ROLLBACK")
    await leak.execute(f"SET application_name = '{application}'")
    await leak.execute("BEGIN")
    admin = await asyncpg.connect(scene.dsn)
    row = await admin.fetchrow(
        "SELECT state_change, backend_start FROM pg_stat_activity WHERE pid = $1",
        leak.get_server_pid(),
    )
    await admin.close()
    assert row is not None
    identity = {**mitigation.items[0].identity, "state_change": row["state_change"].isoformat()}
    item = mitigation.items[0].model_copy(update={"identity": identity})
    changed = preparation.mitigation.model_copy(update={"items": (item,)})
    with pytest.raises(BackendRefused, match="nothing is left"):
        await lever.prepare(changed)
    outcome = await lever.apply(Preparation(mitigation=changed), "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert not await gone(scene, leak)


async def test_too_young_is_refused(scene: Scene, lever: PostgresMitigator) -> None:
    leak = await scene.leak()
    with pytest.raises(BackendRefused, match="for less than 60 s"):
        await lever.prepare(await plan(scene, "end_sessions", [leak], min_age_s=60))


async def test_prepare_keeps_what_still_holds(scene: Scene, lever: PostgresMitigator) -> None:
    kept, left = await scene.leak(1), await scene.leak(2)
    mitigation = await plan(scene, "end_sessions", [kept, left])
    await left.execute("COMMIT")
    preparation = await lever.prepare(mitigation)
    assert preparation.mitigation.items == mitigation.items[:1]
    outcome = await lever.apply(preparation, "key")
    assert [item.state for item in outcome.items] == [MitigationState.APPLIED]
    assert not await gone(scene, left)


async def test_some_applied_and_some_not_is_applied_with_each_told(
    scene: Scene, lever: PostgresMitigator
) -> None:
    ended, moved = await scene.leak(1), await scene.leak(2)
    preparation = await lever.prepare(await plan(scene, "end_sessions", [moved, ended]))
    await moved.execute("COMMIT")
    outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.APPLIED
    assert [item.state for item in outcome.items] == [
        MitigationState.NOT_APPLIED,
        MitigationState.APPLIED,
    ]


async def test_nothing_left_is_refused(scene: Scene, lever: PostgresMitigator) -> None:
    leak = await scene.leak()
    mitigation = await plan(scene, "end_sessions", [leak])
    await leak.close()
    await eventually(lambda: gone(scene, leak), "the session is gone")
    with pytest.raises(BackendRefused, match=f"pid {mitigation.items[0].identity['pid']}: is gone"):
        await lever.prepare(mitigation)


async def test_more_items_than_allowed_are_refused(scene: Scene, lever: PostgresMitigator) -> None:
    leaks = [await scene.leak(1), await scene.leak(2)]
    mitigation = await plan(scene, "end_sessions", leaks, max_items=1)
    with pytest.raises(BackendRefused, match="1 to 1 allowed"):
        await lever.prepare(mitigation)


@pytest.mark.parametrize(
    "change",
    [
        {"items": ()},
        {"parameters": {"app_roles": [], "max_items": 5}},
        {"parameters": {"app_roles": [], "min_age_s": 0}},
        {"parameters": {"app_roles": [], "min_age_s": 0, "max_items": 6}},
        {"parameters": {"app_roles": [], "min_age_s": 0, "max_items": 5, "force": True}},
        {"kind": "drop_database"},
        {"items": (Item(key="pid 1", identity={"pid": 1}),)},
        {"items": (Item(key="pid 1"), Item(key="pid 1"))},
    ],
)
async def test_unclear_plan_is_refused(
    scene: Scene, lever: PostgresMitigator, change: dict[str, object]
) -> None:
    leak = await scene.leak()
    mitigation = (await plan(scene, "end_sessions", [leak])).model_copy(update=change)
    for attempt in (lever.prepare(mitigation), lever.apply(Preparation(mitigation=mitigation), "")):
        with pytest.raises(BackendRefused):
            await attempt
    assert not await gone(scene, leak)


async def test_role_without_the_right_to_signal_is_refused(scene: Scene) -> None:
    leak = await scene.leak()
    async with PostgresMitigator(scene.dsn_as("reader"), name="orders-db") as lever:
        mitigation = await plan(scene, "end_sessions", [leak])
        with pytest.raises(BackendRefused, match="GRANT pg_signal_backend"):
            await lever.prepare(mitigation)
        outcome = await lever.apply(Preparation(mitigation=mitigation), "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert "lacks a right" in outcome.items[0].detail
    assert not await gone(scene, leak)


async def test_probe_says_which_right_is_missing(scene: Scene, lever: PostgresMitigator) -> None:
    assert (await lever.probe()).state is SenseState.OK
    for role, right in (("reader", "pg_signal_backend"), ("blind", "pg_monitor")):
        async with PostgresMitigator(scene.dsn_as(role)) as other:
            sense = await other.probe()
        assert sense.state is SenseState.IMPAIRED
        assert f"GRANT {right} TO {role}_" in sense.reason


async def test_role_that_sees_nothing_is_refused(scene: Scene) -> None:
    leak = await scene.leak()
    async with PostgresMitigator(scene.dsn_as("blind")) as lever:
        mitigation = await plan(scene, "end_sessions", [leak])
        with pytest.raises(BackendRefused, match="GRANT pg_monitor"):
            await lever.prepare(mitigation)
        with pytest.raises(BackendRefused, match="GRANT pg_monitor"):
            await lever.observe(Preparation(mitigation=mitigation), "key")


async def test_superusers_session_is_refused_even_when_named(
    scene: Scene, lever: PostgresMitigator
) -> None:
    superuser = await scene.connect_to(scene.dsn, "orders")
    await superuser.execute("BEGIN")
    await superuser.execute("SELECT 1")
    role = urlsplit(scene.dsn).username
    async with PostgresReader(scene.dsn_as("reader")) as reader:
        sessions = await reader.sessions(app_roles=(str(role),))
    session = next(s for s in sessions if s.pid == superuser.get_server_pid())
    mitigation = Mitigation(
        kind="end_sessions",
        target=TARGET,
        reason="a test",
        items=(item_of(session, "end_sessions"),),
        parameters={"app_roles": [str(role)], "min_age_s": 0, "max_items": 5},
    )
    with pytest.raises(BackendRefused, match="may not signal"):
        await lever.prepare(mitigation)
    outcome = await lever.apply(Preparation(mitigation=mitigation), "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert not await gone(scene, superuser)


async def test_observe_tells_before_from_after(scene: Scene, lever: PostgresMitigator) -> None:
    leak = await scene.leak()
    preparation = await lever.prepare(await plan(scene, "end_sessions", [leak]))
    assert (await lever.observe(preparation, "key")).state is MitigationState.NOT_APPLIED
    await lever.apply(preparation, "key")
    assert (await lever.observe(preparation, "key")).state is MitigationState.APPLIED


async def test_who_was_held_up_signals_nobody_any_more(scene: Scene) -> None:
    leaks = [await scene.leak(n) for n in (1, 2, 3)]
    seconds = count(step=2.0)  # so that all but the first come too late
    dsn = scene.dsn_as("lever")
    async with PostgresMitigator(dsn, clock=lambda: next(seconds)) as lever:
        preparation = await lever.prepare(await plan(scene, "end_sessions", leaks))
        outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.APPLIED
    assert [item.state for item in outcome.items] == [
        MitigationState.APPLIED,
        MitigationState.NOT_APPLIED,
        MitigationState.NOT_APPLIED,
    ]
    assert outcome.items[1].detail == "not begun: 5 s have passed"
    assert [await gone(scene, leak) for leak in leaks] == [True, False, False]


async def test_second_apply_touches_nothing(scene: Scene, lever: PostgresMitigator) -> None:
    leak = await scene.leak()
    preparation = await lever.prepare(await plan(scene, "end_sessions", [leak]))
    await lever.apply(preparation, "key")
    assert (await lever.apply(preparation, "key")).state is MitigationState.NOT_APPLIED


async def test_revert_is_refused(scene: Scene, lever: PostgresMitigator) -> None:
    preparation = Preparation(mitigation=await plan(scene, "end_sessions", [await scene.leak()]))
    with pytest.raises(BackendRefused, match="cannot be taken back"):
        await lever.revert(preparation, "key")


@dataclass
class Proxy:
    """A TCP proxy that can cut the line at a chosen message, and mend it."""

    host: str
    port: int
    marker: bytes = b""
    """Text of the statement at which the line is cut; empty for never."""
    after: int = 0
    """Messages to the server that still pass after the one with the marker."""
    broken: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.broken:
            writer.close()
            return
        above, below = await asyncio.open_connection(self.host, self.port)
        answers = asyncio.create_task(self.answer(above, writer))
        try:
            await self.ask(reader, below)
        finally:
            if self.broken:
                answers.cancel()
                writer.transport.abort()
            await asyncio.gather(answers, return_exceptions=True)
            below.close()
            writer.close()

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left: int | None = None
        while data := await reader.read(65536):
            if left is not None:
                left -= 1
            elif self.marker and self.marker in data:
                left = self.after
            writer.write(data)
            self.broken = self.broken or left == 0
            await writer.drain()
            if self.broken:
                return

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.broken:
                return
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[tuple[Proxy, str]]:
    parts = urlsplit(dsn)
    proxy = Proxy(str(parts.hostname), int(parts.port or 5432))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield proxy, dsn.replace(f"@{parts.hostname}:{parts.port}", f"@127.0.0.1:{port}")
    finally:
        server.close()


async def test_lost_answer_is_unknown_until_observed_as_applied(scene: Scene) -> None:
    leak = await scene.leak()
    async with proxied(scene.dsn_as("lever")) as (proxy, dsn), PostgresMitigator(dsn) as lever:
        preparation = await lever.prepare(await plan(scene, "end_sessions", [leak]))
        proxy.marker, proxy.after = b"pg_terminate_backend", 1  # the execution passes
        outcome = await lever.apply(preparation, "key")
        assert outcome.state is MitigationState.UNKNOWN
        assert "answer lost" in outcome.items[0].detail
        with pytest.raises(BackendUnavailable):
            await lever.observe(preparation, "key")
        await eventually(lambda: gone(scene, leak), "the session is gone")
        proxy.broken, proxy.marker = False, b""
        assert (await lever.observe(preparation, "key")).state is MitigationState.APPLIED


async def test_lost_request_is_unknown_until_observed_as_not_applied(scene: Scene) -> None:
    leaks = [await scene.leak(1), await scene.leak(2)]
    async with proxied(scene.dsn_as("lever")) as (proxy, dsn), PostgresMitigator(dsn) as lever:
        preparation = await lever.prepare(await plan(scene, "end_sessions", leaks))
        proxy.marker = b"pg_terminate_backend"  # the statement is parsed, never executed
        outcome = await lever.apply(preparation, "key")
        assert outcome.state is MitigationState.UNKNOWN
        assert [item.state for item in outcome.items] == [
            MitigationState.UNKNOWN,
            MitigationState.NOT_APPLIED,
        ]
        assert outcome.items[1].detail == "not sent: an earlier answer was lost"
        proxy.broken, proxy.marker = False, b""
        assert (await lever.observe(preparation, "key")).state is MitigationState.NOT_APPLIED
    assert not await gone(scene, leaks[0])


async def test_server_that_is_gone_before_the_signal_is_not_applied() -> None:
    require_embedded()
    async with EmbeddedPostgres(ServerOptions(max_connections=20)) as server:
        scene = Scene(await server.create_database("orders"))
        await scene.build()
        leak = await scene.leak()
        async with PostgresMitigator(scene.dsn_as("lever"), name="orders-db") as lever:
            mitigation = await plan(scene, "end_sessions", [leak])
            preparation = await lever.prepare(mitigation)
            await server.stop()
            outcome = await lever.apply(preparation, "key")
            assert outcome.state is MitigationState.NOT_APPLIED
            assert "not sent" in outcome.items[0].detail
            with pytest.raises(BackendUnavailable):
                await lever.prepare(mitigation)
            await server.start()
            assert (await lever.observe(preparation, "key")).state is MitigationState.APPLIED
            with pytest.raises(BackendRefused, match="is gone"):
                await lever.prepare(mitigation)
        await scene.clear()


async def test_full_server_can_still_be_relieved() -> None:
    require_embedded()
    async with EmbeddedPostgres(ServerOptions(max_connections=12)) as server:
        scene = Scene(await server.create_database("orders"))
        await scene.build()
        leak = await scene.leak()
        mitigation = await plan(scene, "end_sessions", [leak])
        async with PostgresMitigator(scene.dsn_as("lever"), name="orders-db") as lever:
            await scene.fill()
            outcome = await lever.apply(await lever.prepare(mitigation), "key")
            assert outcome.state is MitigationState.APPLIED
            await scene.connect()
        await scene.clear()
