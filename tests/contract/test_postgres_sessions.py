"""PostgresReader keeps the contract of ``ports.Sessions`` on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from remediator.backends.postgres.reader import PostgresReader
from remediator.cli.demo.postgres import EmbeddedPostgres, ServerOptions
from remediator.model.connections import Session
from remediator.model.errors import BackendRefused, BackendUnavailable
from remediator.model.finding import SenseState
from tests.postgres_fixtures import (
    OLDER,
    Scene,
    dsn_of,
    eventually,
    execute,
    program,
    require_embedded,
)


@pytest_asyncio.fixture
async def reader(scene: Scene) -> AsyncIterator[PostgresReader]:
    async with PostgresReader(scene.dsn_as("reader"), name="orders-db") as reader:
        yield reader


async def session_of(reader: PostgresReader, pid: int, *roles: str) -> Session | None:
    sessions = await reader.sessions(app_roles=roles)
    return next((session for session in sessions if session.pid == pid), None)


async def seen(reader: PostgresReader, pid: int, *roles: str) -> Session:
    session = await session_of(reader, pid, *roles)
    assert session is not None
    return session


async def test_idle_transaction_is_seen_with_its_identity_and_age(
    scene: Scene, reader: PostgresReader
) -> None:
    leak = await scene.leak()
    session = await seen(reader, leak.get_server_pid(), scene.app)
    truth = await execute_one(
        scene.dsn,
        "SELECT backend_start, state_change FROM pg_stat_activity WHERE pid = $1",
        session.pid,
    )
    assert (session.backend_start, session.state_change) == tuple(truth)
    assert session.state == "idle in transaction"
    assert session.role == scene.app
    older = timedelta(seconds=OLDER)
    assert older <= session.state_age < older + timedelta(seconds=30)
    assert session.protected is None
    assert session.blocked_by == ()


async def execute_one(dsn: str, statement: str, *values: object) -> asyncpg.Record:
    connection = await asyncpg.connect(dsn)
    try:
        row = await connection.fetchrow(statement, *values)
        assert row is not None
        return row
    finally:
        await connection.close()


async def test_victim_names_its_blocker_and_is_not_its_own(
    scene: Scene, reader: PostgresReader
) -> None:
    """T-06: a join on the lock type shows a process as its own blocker."""
    leak = await scene.leak()
    victim = await scene.victim()
    session = await seen(reader, victim.get_server_pid())
    assert session.blocked_by == (leak.get_server_pid(),)


async def test_prepared_transaction_blocks_as_pid_0(scene: Scene, reader: PostgresReader) -> None:
    setting = await execute_one(scene.dsn, "SELECT current_setting('max_prepared_transactions')")
    if setting[0] == "0":
        pytest.skip("the given server has no prepared transactions")
    name = f"held_{scene.suffix}"
    await execute(
        scene.dsn,
        f"BEGIN; UPDATE stock SET quantity = 7 WHERE item = 1; PREPARE TRANSACTION '{name}'",
    )
    try:
        victim = await scene.victim()
        assert (await seen(reader, victim.get_server_pid())).blocked_by == (0,)
    finally:
        await execute(scene.dsn, f"ROLLBACK PREPARED '{name}'")


async def test_only_the_first_keyword_and_the_text_without_literals_leave_the_server(
    scene: Scene, reader: PostgresReader
) -> None:
    talker = await scene.connect()
    await talker.fetchval("/* trace=1 */ -- who\n (SELECT 'secret@example.org')")
    session = await seen(reader, talker.get_server_pid())
    assert session.statement == "SELECT"
    assert session.text.endswith("(SELECT ?)")
    assert "secret" not in session.model_dump_json()


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("SELECT 'it''s secret', 1.5e3, 7 FROM stock", "SELECT ??, ?, ? FROM stock"),
        ("SELECT E'a\\' secret', 'secret'", "SELECT E"),
        ("SELECT $$secret$$, 'x'", "SELECT ..."),
        ("SELECT $q$secret ' $q$", "SELECT ..."),
        ("SELECT 'a -- b', 'secret'\n , 'x'", "SELECT ?, ? , ?"),
        ("SELECT '/*', 'secret', '*/'", "SELECT ?, ?, ?"),
        ("SELECT 1 /* a /* b */ secret */", "SELECT ?"),
        (
            'SELECT quantity AS a1, item AS "secret" FROM stock',
            "SELECT quantity AS a1, item AS ? FROM stock",
        ),
        ("SELECT 1 -- secret", "SELECT ? ?"),
    ],
)
async def test_no_literal_of_a_statement_is_ever_shown(
    scene: Scene, reader: PostgresReader, statement: str, text: str
) -> None:
    talker = await scene.connect()
    await talker.fetchval(statement)
    session = await seen(reader, talker.get_server_pid())
    assert session.text == text
    assert "secret" not in session.model_dump_json()


async def test_sessions_of_the_remediator_itself_are_left_out(
    scene: Scene, reader: PostgresReader
) -> None:
    store = await scene.connect(application="remediator")
    assert await session_of(reader, store.get_server_pid()) is None
    assert await reader.sessions(app_roles=()) == ()


async def test_sessions_of_other_databases_are_left_out(
    scene: Scene, reader: PostgresReader, postgres_server: str
) -> None:
    other = await scene.connect_to(postgres_server, "elsewhere")
    assert await session_of(reader, other.get_server_pid()) is None


async def test_without_named_roles_every_session_is_protected(
    scene: Scene, reader: PostgresReader
) -> None:
    app = await scene.leak()
    protected = (await seen(reader, app.get_server_pid())).protected
    assert protected == "no role of the application is named (app_roles)"


async def test_only_the_named_roles_are_the_application(
    scene: Scene, reader: PostgresReader
) -> None:
    app, other = await scene.connect(), await scene.connect("blind", "batch")
    assert (await seen(reader, app.get_server_pid(), scene.app)).protected is None
    protected = (await seen(reader, other.get_server_pid(), scene.app)).protected
    assert protected is not None
    assert "not one of the application's" in protected


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TEMP TABLE t (i int)",
        "/* migration */ create temp table t (i int)",
        "BEGIN; CREATE TEMP TABLE t (i int)",
        "-- nightly\nANALYZE stock",
        "SELECT '/*'; CREATE TEMP TABLE t (i int); SELECT '*/'",
    ],
)
async def test_session_that_changes_the_schema_is_protected(
    scene: Scene, reader: PostgresReader, statement: str
) -> None:
    worker = await scene.connect()
    await worker.execute(statement)
    protected = (await seen(reader, worker.get_server_pid(), scene.app)).protected
    assert protected is not None
    assert "schema" in protected


@pytest.mark.parametrize("application", ["pg_dump", "pg_restore", "PG_BASEBACKUP", "vacuumdb"])
async def test_maintenance_programs_are_protected_by_name(
    scene: Scene, reader: PostgresReader, application: str
) -> None:
    tool = await scene.leak(application=application)
    protected = (await seen(reader, tool.get_server_pid(), scene.app)).protected
    assert protected == f"it is {application}"


async def test_real_pg_dump_is_protected(
    scene: Scene, reader: PostgresReader, tmp_path: Path
) -> None:
    """T-03: a dump is a client backend like any other."""
    await execute(scene.dsn, "INSERT INTO stock SELECT i, 1 FROM generate_series(10, 400000) AS i")
    dump = await asyncio.create_subprocess_exec(
        program("pg_dump"), "-d", scene.dsn_as("app"), stdout=asyncio.subprocess.PIPE, cwd=tmp_path
    )  # nobody reads its output, so it stays in COPY
    try:

        async def dumping() -> bool:
            sessions = await reader.sessions(app_roles=(scene.app,))
            return [s.protected for s in sessions if s.statement == "COPY"] == ["it is pg_dump"]

        await eventually(dumping, "pg_dump copies")
    finally:
        dump.kill()
        await dump.communicate()


async def test_walsender_is_never_listed(
    scene: Scene, reader: PostgresReader, tmp_path: Path
) -> None:
    """T-03: it is shown as active, and ending it ends replication."""
    receiver = await asyncio.create_subprocess_exec(
        program("pg_receivewal"), "-D", str(tmp_path), "-d", dsn_of(scene.dsn, database="")
    )
    try:

        async def streaming() -> bool:
            row = await execute_one(
                scene.dsn,
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE backend_type = 'walsender' AND application_name = 'pg_receivewal'",
            )
            return bool(row[0])

        await eventually(streaming, "pg_receivewal streams")
        sessions = await reader.sessions(app_roles=())
        assert [s.application for s in sessions if "receivewal" in s.application] == []
    finally:
        receiver.terminate()
        await receiver.wait()


async def test_logical_walsender_of_this_database_is_never_listed(
    scene: Scene, reader: PostgresReader
) -> None:
    sender = await scene.connect_to(scene.dsn, "subscriber", replication="database")
    assert await scene.is_(sender.get_server_pid(), "backend_type = 'walsender'")
    assert await session_of(reader, sender.get_server_pid()) is None


async def test_autovacuum_worker_is_never_listed() -> None:
    require_embedded()
    slow = {
        "autovacuum_naptime": "1s",
        "autovacuum_vacuum_cost_delay": "100ms",
        "autovacuum_vacuum_cost_limit": "1",
    }
    async with EmbeddedPostgres(ServerOptions(settings=slow)) as server:
        dsn = await server.create_database("busy")
        await execute(
            dsn,
            "CREATE TABLE t (i int) WITH (autovacuum_vacuum_threshold = 1)",
            "INSERT INTO t SELECT generate_series(1, 100000)",
            "DELETE FROM t WHERE i % 2 = 0",
        )

        async def working() -> bool:
            row = await execute_one(
                dsn,
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE backend_type = 'autovacuum worker' AND datname = current_database()",
            )
            return bool(row[0])

        await eventually(working, "autovacuum works", within=20)
        async with PostgresReader(dsn) as reader:
            assert await reader.sessions(app_roles=()) == ()
        assert await working()


async def test_usage_counts_the_server_and_the_states_of_the_database(
    scene: Scene, reader: PostgresReader
) -> None:
    before = await reader.usage()
    await scene.leak()
    usage = await reader.usage()
    assert usage.used == before.used + 1
    assert usage.by_state["idle in transaction"] == 1
    limits = await execute_one(
        scene.dsn,
        "SELECT current_setting('max_connections')::int"
        " - current_setting('superuser_reserved_connections')::int",
    )
    assert usage.available == limits[0]


async def test_role_that_sees_nothing_is_impaired_and_reads_nothing(scene: Scene) -> None:
    await scene.leak()
    async with PostgresReader(scene.dsn_as("blind"), name="orders-db") as blind:
        sense = await blind.probe()
        assert sense.state is SenseState.IMPAIRED
        assert "GRANT pg_monitor" in sense.reason
        for read in (blind.usage(), blind.sessions(app_roles=())):
            with pytest.raises(BackendRefused, match="GRANT pg_monitor"):
                await read


async def test_probe_is_ok_for_a_monitor(reader: PostgresReader) -> None:
    assert (await reader.probe()).state is SenseState.OK


async def test_many_checks_at_once_are_answered(scene: Scene, reader: PostgresReader) -> None:
    answers = await asyncio.gather(*(reader.usage() for _ in range(5)), reader.probe())
    assert len(answers) == 6


async def test_connect_once_returns_the_seconds(reader: PostgresReader) -> None:
    assert 0 < await reader.connect_once() < 5


async def test_full_server_is_still_read_and_a_new_connection_says_why_not(
    full_server: Scene,
) -> None:
    async with PostgresReader(full_server.dsn_as("reader"), name="orders-db") as reader:
        await full_server.fill()
        assert (await reader.usage()).ratio >= 0.9
        assert len(await reader.sessions(app_roles=())) == len(full_server.connections)
        with pytest.raises(BackendUnavailable, match="no free connection slot"):
            await reader.connect_once()


@pytest_asyncio.fixture
async def own_server() -> AsyncIterator[EmbeddedPostgres]:
    require_embedded()
    async with EmbeddedPostgres(ServerOptions(max_connections=10)) as server:
        yield server


@pytest_asyncio.fixture
async def full_server(own_server: EmbeddedPostgres) -> AsyncIterator[Scene]:
    scene = Scene(await own_server.create_database("small"))
    await scene.build()
    try:
        yield scene
    finally:
        await scene.clear()


async def test_reader_survives_a_restart_and_a_crash(own_server: EmbeddedPostgres) -> None:
    async with PostgresReader(own_server.dsn(), name="orders-db") as reader:
        for interrupt in (own_server.restart, own_server.kill):
            await reader.usage()
            await interrupt()
            await own_server.start()
            assert (await reader.usage()).used >= 1


async def test_stopped_server_is_unavailable_and_comes_back(own_server: EmbeddedPostgres) -> None:
    async with PostgresReader(own_server.dsn(), name="orders-db") as reader:
        await own_server.stop()
        assert (await reader.probe()).state is SenseState.IMPAIRED
        with pytest.raises(BackendUnavailable, match="postgres orders-db: cannot be reached"):
            await reader.usage()
        await own_server.start()
        assert (await reader.probe()).state is SenseState.OK


async def test_reader_opens_without_a_server_and_reads_once_there_is_one(
    own_server: EmbeddedPostgres,
) -> None:
    await own_server.stop()
    async with PostgresReader(own_server.dsn()) as reader:
        await own_server.start()
        assert (await reader.usage()).used >= 1


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ann:hunter2@127.0.0.1:hunter2/x",
        "hunter2://nothing",
        "postgresql://ann:hunter2@127.0.0.1:1/x",
    ],
)
async def test_no_secret_of_the_dsn_is_told(dsn: str) -> None:
    async with PostgresReader(dsn, name="orders-db") as reader:
        sense = await reader.probe()
        assert sense.state is SenseState.IMPAIRED
        assert "hunter2" not in sense.reason + repr(reader)


async def test_unknown_role_and_database_are_refusals(scene: Scene) -> None:
    for dsn in (
        dsn_of(scene.dsn, user="nobody_such", password="x"),
        dsn_of(scene.dsn_as("reader"), database="no_such"),
    ):
        async with PostgresReader(dsn, name="orders-db") as reader:
            with pytest.raises(BackendRefused, match="orders-db"):
                await reader.usage()


async def test_functions_of_the_application_are_never_called(
    scene: Scene, reader: PostgresReader
) -> None:
    owner = await scene.connect()
    await owner.execute(
        "CREATE FUNCTION public.cardinality(text[]) RETURNS int LANGUAGE sql AS 'SELECT 1 / 0'"
    )  # a better match than the server's own, which takes any array
    assert len(await reader.sessions(app_roles=())) == 1


async def test_time_limit_reaches_no_session_but_its_own_statement(
    scene: Scene, reader: PostgresReader
) -> None:
    await reader.usage()
    settings = await execute_one(
        scene.dsn,
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = 'remediator' AND datname = current_database()"
        " AND state = 'idle' AND xact_start IS NULL",
    )
    assert settings[0] == 1
