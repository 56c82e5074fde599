"""What sessions of a real PostgreSQL do when a careful administrator would leave them alone.

Each has a twin: the same but for the one thing that speaks for it, so it has to be touched.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from tests.postgres_fixtures import Connection, Scene, eventually, execute, program

Arrange: TypeAlias = Callable[[Scene], Awaitable[int]]
"""Brings a session about; returns its pid."""

LOCK_ROW = "UPDATE stock SET quantity = 5 WHERE item = 1"
WORK = "SELECT pg_sleep(60)"


@dataclass(frozen=True)
class Situation:
    """One row of ``docs/careful.md``."""

    name: str
    spared: Arrange
    twin: Arrange
    blocks: bool = True
    """Whether it holds a row's lock, for which another session waits then."""


async def _begun(scene: Scene, *statements: str, application: str = "orders") -> Connection:
    connection = await scene.connect(application=application)
    for statement in ("BEGIN", *statements):
        await connection.execute(statement)
    return connection


async def _runs(
    scene: Scene, connection: Connection, statement: str, event: str = "PgSleep"
) -> int:
    scene.start(connection, statement)
    await scene.until(connection.get_server_pid(), f"wait_event = '{event}'")
    return connection.get_server_pid()


def idle(*statements: str, application: str = "orders") -> Arrange:
    """A transaction that did ``statements`` and is idle now."""

    async def arrange(scene: Scene) -> int:
        return (await _begun(scene, *statements, application=application)).get_server_pid()

    return arrange


def busy(*statements: str, work: str = WORK) -> Arrange:
    """A transaction that did ``statements`` and runs ``work`` now."""

    async def arrange(scene: Scene) -> int:
        return await _runs(scene, await _begun(scene, *statements), work)

    return arrange


def prepared(arrange: Arrange, *before: str) -> Arrange:
    """The same, after the application ran ``before``, each in a transaction of its own."""

    async def after(scene: Scene) -> int:
        owner = await scene.connect(application="setup")
        for statement in before:
            await owner.execute(statement)
        await owner.close()
        return await arrange(scene)

    return after


def waits_for_standby(*before: str, commit: str) -> Arrange:
    """A session whose ``commit`` waits for a synchronous standby that is not there."""

    async def arrange(scene: Scene) -> int:
        connection = await scene.connect()
        await connection.execute("SET synchronous_commit = local")
        for statement in before:
            await connection.execute(statement.format(name=f"held_{scene.suffix}"))
        if "BEGIN" not in before or "PREPARE" in " ".join(before):
            await connection.execute("SET synchronous_commit = on")
        else:
            await connection.execute("SET LOCAL synchronous_commit = on")
        return await _runs(scene, connection, commit.format(name=f"held_{scene.suffix}"), "SyncRep")

    return arrange


async def slow_commit(scene: Scene) -> int:
    """A COMMIT that runs a deferred trigger for a minute."""
    await execute(
        scene.dsn,
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON stock DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION public.slow()",
    )
    return await _runs(scene, await _begun(scene, LOCK_ROW), "COMMIT")


async def settlement(scene: Scene) -> int:
    """A procedure that commits row by row."""
    await execute(
        scene.dsn,
        "CREATE PROCEDURE public.settle() LANGUAGE plpgsql AS"
        " 'BEGIN FOR i IN 1..600 LOOP PERFORM pg_sleep(0.1); COMMIT; END LOOP; END'",
    )
    return await _runs(scene, await scene.connect(), "CALL public.settle()")


async def plain_work(scene: Scene) -> int:
    """One long query outside of a transaction."""
    return await _runs(scene, await scene.connect(), WORK)


async def real_dump(scene: Scene) -> int:
    """A pg_dump that calls itself something else, and whose output nobody reads."""
    await execute(scene.dsn, "INSERT INTO stock SELECT i, 1 FROM generate_series(10, 400000) AS i")
    dump = await asyncio.create_subprocess_exec(
        program("pg_dump"),
        "--inserts",
        *("-d", scene.dsn_as("app")),
        env=os.environ | {"PGAPPNAME": "nightly"},
        stdout=asyncio.subprocess.PIPE,
    )

    async def held() -> None:
        try:
            await dump.wait()
        finally:
            if dump.returncode is None:
                dump.kill()
            await dump.communicate()

    scene.running.append(asyncio.create_task(held()))
    return await _pid_of(scene, "application_name = 'nightly' AND query LIKE 'FETCH%'")


async def _pid_of(scene: Scene, condition: str) -> int:
    watcher = await scene.connect_to(scene.dsn, "watcher")
    found: list[int] = []

    async def look() -> bool:
        rows = await watcher.fetch(f"SELECT pid FROM pg_stat_activity WHERE {condition}")
        found[:] = [int(row["pid"]) for row in rows]
        return bool(found)

    await eventually(look, condition, within=20)
    await watcher.close()
    return found[0]


async def another_role(scene: Scene) -> int:
    """A session of a role that is none of the application's."""
    await execute(scene.dsn, f"GRANT ALL ON stock TO blind_{scene.suffix}")
    connection = await scene.connect("blind")
    for statement in ("BEGIN", LOCK_ROW):
        await connection.execute(statement)
    return connection.get_server_pid()


OWN = "CREATE TABLE public.mine (id int PRIMARY KEY, a int)"
OTHER = "CREATE TABLE public.other (id int PRIMARY KEY, mine int)"
ALTER = "ALTER TABLE mine ADD COLUMN b int"
LONG = "SELECT pg_sleep(60), " + ", ".join(["'a rather long list of columns'"] * 50)
READ = "SELECT count(*) FROM stock"

SITUATIONS = (
    Situation(
        "COMMIT waits for a synchronous standby",
        waits_for_standby("BEGIN", LOCK_ROW, commit="COMMIT"),
        busy(LOCK_ROW),
    ),
    Situation(
        "COMMIT PREPARED waits for a synchronous standby",
        waits_for_standby(
            "BEGIN", LOCK_ROW, "PREPARE TRANSACTION '{name}'", commit="COMMIT PREPARED '{name}'"
        ),
        plain_work,
        blocks=False,
    ),
    Situation(
        "PREPARE TRANSACTION waits for a synchronous standby",
        waits_for_standby("BEGIN", LOCK_ROW, commit="PREPARE TRANSACTION '{name}'"),
        busy(LOCK_ROW),
        blocks=False,
    ),
    Situation(
        "a script that ends with COMMIT waits for a synchronous standby",
        waits_for_standby(commit=f"BEGIN; {LOCK_ROW}; COMMIT"),
        busy(LOCK_ROW),
    ),
    Situation("COMMIT runs a deferred trigger for long", slow_commit, busy(LOCK_ROW)),
    Situation(
        "ALTER TABLE, then UPDATE, then idle", prepared(idle(ALTER, LOCK_ROW), OWN), idle(LOCK_ROW)
    ),
    Situation("a backfill after ALTER TABLE", prepared(busy(ALTER, LOCK_ROW), OWN), busy(LOCK_ROW)),
    Situation(
        "a foreign key was added, then UPDATE, then idle",
        prepared(
            idle("ALTER TABLE other ADD FOREIGN KEY (mine) REFERENCES mine", LOCK_ROW), OWN, OTHER
        ),
        idle(LOCK_ROW),
    ),
    Situation(
        "TRUNCATE of a table, then UPDATE, then idle",
        prepared(idle("TRUNCATE mine", LOCK_ROW), OWN),
        idle("CREATE TEMP TABLE scratch (i int)", "COMMIT", "BEGIN", "TRUNCATE scratch", LOCK_ROW),
    ),
    Situation(
        "a DO block",
        busy(LOCK_ROW, work="DO $$ BEGIN PERFORM pg_sleep(60); END $$"),
        busy(LOCK_ROW),
    ),
    Situation("a CALL that commits row by row", settlement, plain_work, blocks=False),
    Situation(
        "a statement longer than track_activity_query_size",
        busy(LOCK_ROW, work=LONG),
        busy(LOCK_ROW),
    ),
    Situation("a person in psql", idle(LOCK_ROW, application="psql"), idle(LOCK_ROW)),
    Situation(
        "a person in DBeaver",
        idle(LOCK_ROW, application="DBeaver 24.1 - SQLEditor <fix.sql>"),
        idle(LOCK_ROW),
    ),
    Situation(
        "another server's query by postgres_fdw",
        idle(LOCK_ROW, application="postgres_fdw"),
        idle(LOCK_ROW),
    ),
    Situation(
        "a job named as a backup", idle(LOCK_ROW, application="Nightly-Backup"), idle(LOCK_ROW)
    ),
    Situation("pg_dump under another name", real_dump, plain_work, blocks=False),
    Situation(
        "a dump between two tables: locks without any index",
        prepared(busy("LOCK TABLE stock, mine IN ACCESS SHARE MODE"), OWN),
        prepared(busy(READ, "SELECT * FROM mine"), OWN),
        blocks=False,
    ),
    Situation(
        "a leader that holds an advisory lock",
        idle(LOCK_ROW, "SELECT pg_advisory_lock(7)"),
        idle(LOCK_ROW, "SELECT 7"),
    ),
    Situation(
        "an advisory lock of a transaction, while a query runs",
        busy(LOCK_ROW, "SELECT pg_advisory_xact_lock(7)"),
        busy(LOCK_ROW),
    ),
    Situation(
        "an export that reads by a cursor",
        idle("DECLARE c CURSOR FOR SELECT * FROM stock", "FETCH 1 FROM c"),
        idle("SELECT * FROM stock"),
        blocks=False,
    ),
    Situation(
        "an open cursor behind another statement",
        idle("DECLARE c CURSOR FOR SELECT * FROM stock", "FETCH 1 FROM c", READ),
        idle(READ),
        blocks=False,
    ),
    Situation(
        "an export under one exported snapshot",
        idle(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY",
            "SELECT pg_export_snapshot()",
        ),
        idle("SELECT pg_current_snapshot()"),
        blocks=False,
    ),
    Situation("a session of a role that is not in app_roles", another_role, idle(LOCK_ROW)),
)
