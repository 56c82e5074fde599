"""What a careful administrator would not have done is not done, by the server's own log.

``docs/careful.md`` is the table of it. Each situation has a twin that has to be touched.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from playbooks.pool_exhausted import PoolExhausted, PoolParameters
from remediator.backends.postgres.mitigator import PostgresMitigator
from remediator.backends.postgres.reader import PostgresReader
from remediator.cli.demo.postgres import EmbeddedPostgres, ServerOptions
from remediator.model.mitigation import Item, Mitigation, MitigationState, Preparation, Proposal
from remediator.model.ports import Port
from remediator.playbook.base import Playbook
from remediator.testing import context_for
from tests.careful_situations import (
    LOCK_ROW,
    SITUATIONS,
    Situation,
    busy,
    idle,
    plain_work,
)
from tests.postgres_fixtures import Scene, dsn_of, execute, require_embedded
from tests.slow_service import NOW, Admin, Slow, target_of

SETTINGS = {
    "log_statement": "all",
    "log_line_prefix": "%p ",
    "max_prepared_transactions": "10",
    "synchronous_standby_names": "absent",
    "synchronous_commit": "local",
}
FULL = Admin({"/pool": {"active": 10, "max": 10, "waiting": 3}})
CALM = Admin({"/pool": {"active": 3, "max": 20, "waiting": 0}})
ROUNDS = 3


@dataclass
class Careful:
    """A scene on a server that logs every statement, and what its log says."""

    scene: Scene
    log: Path
    start: int
    made: list[Mitigation] = field(default_factory=list)
    said: list[Proposal] = field(default_factory=list)

    def ended(self) -> dict[int, str]:
        """Read from the log whose query or session was ended, and by what."""
        text = self.log.read_bytes()[self.start :].decode(errors="replace")
        found = re.findall(
            r"^(\d+) (?:ERROR|FATAL|WARNING):  (.* due to (?:user request|administrator command))$",
            text,
            re.MULTILINE,
        )
        return {int(pid): said for pid, said in found}

    def signals(self) -> int:
        """Count the statements in the log that signal a session."""
        text = self.log.read_bytes()[self.start :].decode(errors="replace")
        return len(re.findall(r"execute .*: SELECT pg_(?:terminate|cancel)_backend", text))

    async def act(self, playbook: str, admin: Admin = FULL, **parameters: Any) -> None:
        """Do what the service does in mode auto: make what is proposed and asks nobody."""
        async with (
            PostgresReader(self.scene.dsn_as("reader"), name="database") as reader,
            PostgresMitigator(self.scene.dsn_as("lever"), name="database") as lever,
        ):
            for _ in range(ROUNDS):
                proposal = await self._proposed(playbook, reader, admin, parameters)
                self.said.append(proposal)
                plans = [plan for plan in proposal.mitigations if plan.asks is None]
                plans = [plan for plan in plans if _what(plan) not in map(_what, self.made)]
                if not plans:
                    return
                await lever.apply(await lever.prepare(plans[0]), "key")
                self.made.append(plans[0])

    async def _proposed(
        self, name: str, reader: PostgresReader, admin: Admin, parameters: dict[str, Any]
    ) -> Proposal:
        given = {"app_roles": [self.scene.app], "pool_path": "/pool", **parameters}
        quick = {"idle_tx_s": 0.01, "kill_after_s": 0.01}
        if name == "HighLatency":
            slow = Slow(
                database=reader,
                admin=admin,
                workload=None,
                cache=None,
                parameters=given | quick | {"lock_wait_s": 0},
                tried=tuple(self.made),
            )
            return await slow.proposed()
        playbook: Playbook[Any] = PoolExhausted(
            PoolParameters.model_validate(given).model_copy(update=quick)
        )
        ports: dict[str, Port] = {"database": reader, "admin": admin}
        targets = {"database": target_of("database")}
        context = context_for(playbook, targets=targets, ports=ports, now=NOW)
        context = replace(context, tried=tuple(self.made))
        return playbook.propose(context, await playbook.diagnose(context))

    async def force(self, pid: int) -> None:
        """Send the lever a plan against this very session, whatever the playbooks think of it."""
        async with PostgresReader(self.scene.dsn_as("reader")) as reader:
            listed = await reader.sessions(app_roles=(self.scene.app,))
        session = next(s for s in listed if s.pid == pid)
        async with PostgresMitigator(self.scene.dsn_as("lever")) as lever:
            for kind in ("end_sessions", "cancel_queries", "end_queries"):
                marker = "state_change" if kind == "end_sessions" else "query_start"
                since: datetime = getattr(session, marker)
                identity = {
                    "pid": pid,
                    "backend_start": session.backend_start.isoformat(),
                    marker: since.isoformat(),
                }
                plan = Mitigation(
                    kind=kind,
                    target=target_of("database"),
                    reason="a test",
                    items=(Item(key=f"pid {pid}", identity=identity),),
                    parameters={"app_roles": [self.scene.app], "min_age_s": 0, "max_items": 1},
                )
                outcome = await lever.apply(Preparation(mitigation=plan), "key")
                assert outcome.state is MitigationState.NOT_APPLIED, outcome


def _what(plan: Mitigation) -> tuple[str, tuple[str, ...]]:
    return plan.kind, tuple(item.key for item in plan.items)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def careful_server() -> AsyncIterator[EmbeddedPostgres]:
    """A server that logs every statement, and whose synchronous standby is absent."""
    require_embedded()
    async with EmbeddedPostgres(ServerOptions(settings=SETTINGS)) as server:
        yield server


@pytest_asyncio.fixture
async def careful(careful_server: EmbeddedPostgres) -> AsyncIterator[Careful]:
    scene = Scene(await careful_server.create_database(f"careful_{NOW:%H}_{id(object())}"))
    await scene.build()
    log = careful_server.log
    try:
        yield Careful(scene, log, log.stat().st_size)
    finally:
        await _swept(scene)
        await scene.clear()
        name = scene.dsn.rpartition("/")[2]
        await execute(careful_server.dsn(), f"DROP DATABASE {name} WITH (FORCE)")


async def _swept(scene: Scene) -> None:
    """End all sessions, those that wait for the absent standby too, and what they prepared."""
    admin = await asyncpg.connect(scene.dsn)
    await admin.execute(
        "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    held = await admin.fetch(
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    )
    for row in held:
        await admin.execute(f"ROLLBACK PREPARED '{row['gid']}'")
    await admin.close()


async def _with_victim(careful: Careful, pid: int, *, blocks: bool) -> int | None:
    scene = careful.scene
    await scene.until(pid, "clock_timestamp() - query_start > interval '20 ms'")
    if not blocks:
        return None
    return (await scene.victim()).get_server_pid()


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.name)
async def test_it_is_left_alone_by_both_playbooks_and_by_the_signal_itself(
    careful: Careful, situation: Situation
) -> None:
    pid = await situation.spared(careful.scene)
    await _with_victim(careful, pid, blocks=situation.blocks)
    for playbook in ("PoolExhausted", "HighLatency"):
        await careful.act(playbook)
    assert careful.made == []
    assert careful.signals() == 0
    await careful.force(pid)
    assert careful.signals() > 0
    assert careful.ended() == {}
    assert await careful.scene.is_(pid)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.name)
async def test_its_twin_is_touched_and_nobody_else(careful: Careful, situation: Situation) -> None:
    pid = await situation.twin(careful.scene)
    await _with_victim(careful, pid, blocks=situation.blocks)
    await careful.act("PoolExhausted")
    assert set(careful.ended()) == {pid}
    (item,) = careful.made[0].items
    assert item.seen["role"] == careful.scene.app
    assert item.seen["text"]


@pytest.mark.parametrize("twin", [busy(LOCK_ROW), idle(LOCK_ROW)], ids=["busy", "idle"])
async def test_high_latency_ends_who_others_wait_for(careful: Careful, twin: Any) -> None:
    pid = await twin(careful.scene)
    await _with_victim(careful, pid, blocks=True)
    await careful.act("HighLatency", admin=CALM)
    assert set(careful.ended()) == {pid}


# --- what only the measurement tells apart -----------------------------------------------------


@pytest.mark.parametrize("full", [False, True], ids=["pool at 15 %", "pool full"])
async def test_jobs_that_block_nobody_are_cut_only_when_the_pool_is_measured_full(
    careful: Careful, *, full: bool
) -> None:
    """A lying alert, also when it comes back: the second round is another incident."""
    jobs = {await plain_work(careful.scene) for _ in range(3)}
    for _ in range(2):
        await careful.act("PoolExhausted", admin=FULL if full else CALM)
    assert set(careful.ended()) == (jobs if full else set())
    assert ("contradicted by what is measured" in careful.said[0].reason) is not full


@pytest.mark.parametrize(
    "work",
    [
        plain_work,
        busy("SELECT * FROM stock WHERE item = 1 FOR UPDATE"),
    ],
    ids=["a month-end report", "SELECT FOR UPDATE of a payment"],
)
async def test_high_latency_asks_about_a_long_query_that_nobody_waits_for(
    careful: Careful, work: Any
) -> None:
    pid = await work(careful.scene)
    await careful.scene.until(pid, "clock_timestamp() - query_start > interval '20 ms'")
    await careful.act("HighLatency", admin=CALM)
    assert careful.ended() == {}
    (asked,) = careful.said[0].mitigations
    assert asked.asks is not None
    assert [item.identity["pid"] for item in asked.items] == [pid]


@pytest.mark.parametrize("owner", ["billing", "ours"])
async def test_a_server_that_another_database_fills_costs_us_no_session(owner: str) -> None:
    require_embedded()
    options = ServerOptions(max_connections=18, settings=SETTINGS)
    async with EmbeddedPostgres(options) as server:
        scene = Scene(await server.create_database("orders"))
        await scene.build()
        billing = await server.create_database("billing")
        careful = Careful(scene, server.log, server.log.stat().st_size)
        pid = await plain_work(scene)
        for _ in range(11):
            if owner == "billing":
                user = f"blind_{scene.suffix}"
                await scene.connect_to(dsn_of(billing, user=user, password="made up"), "batch")
            else:
                await scene.connect()
        await scene.until(pid, "clock_timestamp() - query_start > interval '20 ms'")
        await careful.act("PoolExhausted", pool_path=None)
        assert set(careful.ended()) == (set() if owner == "billing" else {pid})
        if owner == "billing":
            assert "in the database billing: 11" in careful.said[0].reason
        await scene.clear()


@pytest.mark.parametrize("standby", [True, False])
async def test_on_a_standby_a_human_is_asked_before_anything_is_touched(*, standby: bool) -> None:
    require_embedded()
    async with EmbeddedPostgres(ServerOptions(settings=SETTINGS)) as server:
        scene = Scene(await server.create_database("orders"))
        await scene.build()
        if standby:
            await server.stop()
            (server.folder / "data/standby.signal").touch()
            await server.start()
        careful = Careful(scene, server.log, server.log.stat().st_size)
        pid = await plain_work(scene)
        await scene.until(pid, "clock_timestamp() - query_start > interval '20 ms'")
        await careful.act("PoolExhausted")
        assert set(careful.ended()) == (set() if standby else {pid})
        assert (careful.said[0].mitigations[0].asks is not None) is standby
        for connection in scene.connections:
            connection.terminate()


async def test_every_situation_is_a_row_of_the_document() -> None:
    text = (Path(__file__).parents[2] / "docs" / "careful.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ", text, re.MULTILINE)
    assert {situation.name for situation in SITUATIONS} <= {row.replace("`", "") for row in rows}
