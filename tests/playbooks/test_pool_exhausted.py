"""PoolExhausted finds the cause on a real server, and proposes nothing that is not proven."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from playbooks.pool_exhausted import PoolExhausted, PoolParameters
from remediator.backends.postgres.mitigator import PostgresMitigator
from remediator.backends.postgres.reader import PostgresReader
from remediator.model.connections import ConnectionUsage, Holder, Session
from remediator.model.errors import BackendUnavailable
from remediator.model.finding import FindingStatus, Sense, SenseState
from remediator.model.mitigation import Mitigation, MitigationState, Proposal
from remediator.model.ports import Port
from remediator.model.readings import Point
from remediator.model.target import Target
from remediator.model.verdict import Assessment
from remediator.playbook.base import Context, Findings
from remediator.playbook.loader import load_playbooks
from remediator.testing import context_for
from tests.postgres_fixtures import Connection, Scene, eventually, execute

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TARGET = Target(system="shop", service="orders", role="database", kind="postgres", name="orders-db")


def context_of(*tried: Mitigation, **ports: Port) -> Context:
    targets = {"database": TARGET}
    return replace(context_for(playbook_of(), targets=targets, ports=ports, now=NOW), tried=tried)


def playbook_of(**parameters: Any) -> PoolExhausted:
    """Ages that no configuration may ask for, so that a test need not wait for them."""
    quick = {name: parameters.pop(name, 0.01) for name in ("idle_tx_s", "kill_after_s")}
    given = {"usage_limit": 1.0, "app_roles": ["app"], **parameters}
    return PoolExhausted(PoolParameters.model_validate(given).model_copy(update=quick))


def pids(proposal: Proposal, kind: str) -> list[object]:
    plans = [plan for plan in proposal.mitigations if plan.kind == kind]
    return [item.identity["pid"] for plan in plans for item in plan.items]


@dataclass
class Pool:
    """An admin endpoint whose answers are given."""

    answers: Mapping[str, Any]

    async def probe(self) -> Sense:
        return Sense(name="admin", state=SenseState.OK)

    async def get_json(self, path: str, params: dict[str, str] | None = None) -> Any:
        if path not in self.answers:
            raise BackendUnavailable(f"{path}: no answer")
        return self.answers[path]

    async def get_samples(self, path: str) -> tuple[Point, ...]:
        raise NotImplementedError


FULL = Pool({"/pool": {"active": 10, "max": 10, "waiting": 3}})
CALM = Pool({"/pool": {"active": 2, "max": 10, "waiting": 0}})


@dataclass
class Database:
    """Sessions that are given, behind the port of a database."""

    listed: tuple[Session, ...]
    used: int = 10
    available: int = 97
    asked: list[tuple[str, ...]] = field(default_factory=list)
    hog: Holder | None = None
    standby: bool = False

    async def probe(self) -> Sense:
        return Sense(name="database", state=SenseState.OK)

    async def usage(self) -> ConnectionUsage:
        ours = Holder(database="orders", role="app", count=5)
        return ConnectionUsage(
            used=self.used,
            available=self.available,
            by_state={},
            database="orders",
            holders=(ours, *((self.hog,) if self.hog else ())),
            standby=self.standby,
        )

    async def sessions(
        self, *, app_roles: tuple[str, ...], spare_applications: tuple[str, ...] = ()
    ) -> tuple[Session, ...]:
        self.asked.append(app_roles)
        return self.listed

    async def connect_once(self) -> float:
        return 0.01


class Unreadable(Database):
    """A database whose sessions cannot be read."""

    async def sessions(
        self, *, app_roles: tuple[str, ...], spare_applications: tuple[str, ...] = ()
    ) -> tuple[Session, ...]:
        raise BackendUnavailable("postgres orders-db: no answer in time")


def session(pid: int, **fields: Any) -> Session:
    start = NOW - timedelta(hours=1)
    values = {
        "pid": pid,
        "role": "app",
        "application": "orders",
        "state": "idle",
        "backend_start": start,
        "state_change": start,
        "xact_start": None,
        "query_start": start,
        "state_age": timedelta(hours=1),
        "query_age": timedelta(hours=1),
        "statement": "SELECT",
        "protected": None,
        "blocked_by": (),
    }
    return Session.model_validate(values | fields)


def idle(pid: int, **fields: Any) -> Session:
    return session(pid, **{"state": "idle in transaction", **fields})


def active(pid: int, **fields: Any) -> Session:
    return session(pid, **{"state": "active", **fields})


async def proposed(
    listed: list[Session], *tried: Mitigation, admin: Pool | None = None, **parameters: Any
) -> Proposal:
    playbook = playbook_of(**parameters)
    ports: dict[str, Port] = {"database": Database(tuple(listed))}
    if admin is not None:
        ports["admin"] = admin
    context = context_of(*tried, **ports)
    return playbook.propose(context, await playbook.diagnose(context))


# --- on a real server --------------------------------------------------------------------------


@pytest_asyncio.fixture
async def reader(scene: Scene) -> AsyncIterator[PostgresReader]:
    async with PostgresReader(scene.dsn_as("reader"), name="orders-db") as reader:
        yield reader


async def diagnosed(
    playbook: PoolExhausted, *tried: Mitigation, **ports: Port
) -> tuple[Findings, Proposal]:
    context = context_of(*tried, **ports)
    findings = await playbook.diagnose(context)
    return findings, playbook.propose(context, findings)


async def pulled(scene: Scene, mitigation: Mitigation) -> MitigationState:
    async with PostgresMitigator(scene.dsn_as("lever"), name="orders-db") as lever:
        preparation = await lever.prepare(mitigation)
        return (await lever.apply(preparation, "key")).state


async def test_idle_blocker_is_ended_and_not_its_victims(
    scene: Scene, reader: PostgresReader
) -> None:
    """T-04: a filter on active sessions ends the victims and spares the blocker."""
    leak = await scene.leak()
    victims = [await scene.victim(), await scene.victim()]
    playbook = playbook_of(pool_path="/pool", app_roles=[scene.app])
    findings, proposal = await diagnosed(playbook, database=reader, admin=CALM)
    assert findings["blocking"].status is FindingStatus.PROBLEM
    assert f"pid {leak.get_server_pid()}" in findings["blocking"].summary
    assert "blocks 2" in findings["blocking"].summary
    (mitigation,) = proposal.mitigations
    assert pids(proposal, "end_sessions") == [leak.get_server_pid()]

    assert await pulled(scene, mitigation) is MitigationState.APPLIED
    for victim in victims:  # the first of them holds the row until its own statement is over
        await scene.until(victim.get_server_pid(), "state = 'idle'")
    sample = await playbook.verify(context_of(database=reader, admin=CALM), mitigation)
    assert sample.assessment is Assessment.BETTER
    assert "A new connection works (3 of 3" in sample.evidence


async def test_full_pool_of_leaks_is_relieved_within_the_bound(
    scene: Scene, reader: PostgresReader
) -> None:
    await execute(scene.dsn, "INSERT INTO stock SELECT i, 1 FROM generate_series(10, 20) AS i")
    leaks = [await scene.leak(item) for item in range(10, 17)]
    playbook = playbook_of(pool_path="/pool", app_roles=[scene.app])
    _, proposal = await diagnosed(playbook, database=reader, admin=FULL)
    oldest = [leak.get_server_pid() for leak in leaks[:5]]
    assert pids(proposal, "end_sessions") == oldest
    assert "2 more are left" in proposal.reason
    assert await pulled(scene, proposal.mitigations[0]) is MitigationState.APPLIED
    assert [await scene.is_(leak.get_server_pid()) for leak in leaks] == [False] * 5 + [True] * 2


async def test_verify_is_not_better_while_the_blocker_is_there(
    scene: Scene, reader: PostgresReader
) -> None:
    leak = await scene.leak()
    await scene.victim()
    playbook = playbook_of(pool_path="/pool", app_roles=[scene.app])
    _, proposal = await diagnosed(playbook, database=reader, admin=CALM)
    sample = await playbook.verify(context_of(database=reader, admin=FULL), proposal.mitigations[0])
    assert sample.assessment is Assessment.NOT_BETTER
    assert f"pid {leak.get_server_pid()} is still there" in sample.evidence
    assert "10 of 10" in sample.evidence


async def test_long_query_is_cancelled_and_a_stubborn_one_ended_later(
    scene: Scene, reader: PostgresReader
) -> None:
    busy = await scene.deaf()
    playbook = playbook_of(app_roles=[scene.app], pool_path="/pool")
    _, proposal = await diagnosed(playbook, database=reader, admin=FULL)
    assert pids(proposal, "cancel_queries") == [busy.get_server_pid()]
    assert pids(proposal, "end_queries") == []
    cancelled = proposal.mitigations[0]
    await pulled(scene, cancelled)
    assert (
        await playbook.verify(context_of(database=reader, admin=CALM), cancelled)
    ).assessment is Assessment.NOT_BETTER

    _, proposal = await diagnosed(playbook, cancelled, database=reader, admin=FULL)
    assert pids(proposal, "cancel_queries") == []
    assert pids(proposal, "end_queries") == [busy.get_server_pid()]
    await pulled(scene, proposal.mitigations[0])
    context = context_of(database=reader, admin=CALM)
    sample = await playbook.verify(context, proposal.mitigations[0])
    assert sample.assessment is Assessment.BETTER


async def test_cancelled_query_whose_session_lives_on_is_better(
    scene: Scene, reader: PostgresReader
) -> None:
    await scene.busy()
    playbook = playbook_of(app_roles=[scene.app], pool_path="/pool")
    _, proposal = await diagnosed(playbook, database=reader, admin=FULL)
    await pulled(scene, proposal.mitigations[0])
    context = context_of(database=reader, admin=CALM)
    sample = await playbook.verify(context, proposal.mitigations[0])
    assert sample.assessment is Assessment.BETTER


async def test_idle_session_is_no_long_query(scene: Scene, reader: PostgresReader) -> None:
    """T-05: without a filter on the state, idle sessions look like long queries."""
    rested: Connection = await scene.connect()
    await rested.execute("SELECT 1")
    await scene.until(rested.get_server_pid(), "now() - query_start > interval '0.05 s'")
    playbook = playbook_of(app_roles=[scene.app], pool_path="/pool")
    _, proposal = await diagnosed(playbook, database=reader, admin=FULL)
    assert proposal.mitigations == ()


async def test_dump_that_blocks_is_named_and_left_alone(
    scene: Scene, reader: PostgresReader
) -> None:
    dump = await scene.leak(application="pg_dump")
    victim = await scene.victim()
    findings, proposal = await diagnosed(playbook_of(app_roles=[scene.app]), database=reader)
    assert proposal.mitigations == ()
    assert f"pid {dump.get_server_pid()}" in proposal.reason
    assert "never touched: it is pg_dump" in proposal.reason
    assert findings["blocking"].status is FindingStatus.PROBLEM
    assert await scene.is_(victim.get_server_pid(), "wait_event_type = 'Lock'")


async def test_prepared_transaction_that_blocks_is_named(
    scene: Scene, reader: PostgresReader
) -> None:
    name = f"held_{scene.suffix}"
    try:
        await execute(
            scene.dsn, f"BEGIN; DELETE FROM stock WHERE item = 1; PREPARE TRANSACTION '{name}'"
        )
    except asyncpg.ObjectNotInPrerequisiteStateError:
        pytest.skip("the given server has no prepared transactions")
    try:
        await scene.victim()
        _, proposal = await diagnosed(playbook_of(app_roles=[scene.app]), database=reader)
        assert proposal.mitigations == ()
        assert "a prepared transaction" in proposal.reason
    finally:
        await execute(scene.dsn, f"ROLLBACK PREPARED '{name}'")


async def test_chain_of_waiters_has_one_root(scene: Scene, reader: PostgresReader) -> None:
    root = await scene.leak(1)
    middle = await scene.leak(2)
    scene.start(middle, "UPDATE stock SET quantity = 1 WHERE item = 1")
    await scene.until(middle.get_server_pid(), "wait_event_type = 'Lock'")
    await scene.victim(2)
    findings, proposal = await diagnosed(playbook_of(app_roles=[scene.app]), database=reader)
    assert pids(proposal, "end_sessions") == [root.get_server_pid()]
    assert pids(proposal, "cancel_queries") == []
    assert "blocks 2" in findings["blocking"].summary


async def test_application_role_is_asked_for(scene: Scene, reader: PostgresReader) -> None:
    await scene.leak()
    _, proposal = await diagnosed(playbook_of(app_roles=["someone_else"]), database=reader)
    assert proposal.mitigations == ()
    assert "left alone" in proposal.reason


async def test_server_that_does_not_answer_is_unknown_and_nothing_is_proposed() -> None:
    async with PostgresReader("postgresql://x@127.0.0.1:1/x", name="orders-db") as reader:
        findings, proposal = await diagnosed(playbook_of(), database=reader)
        assert {f.status for n, f in findings.items() if n != "connectivity"} == {
            FindingStatus.UNKNOWN
        }
        assert proposal.mitigations == ()
        assert "cannot be reached" in proposal.reason
        plan = Mitigation(kind="end_sessions", target=TARGET, reason="a test")
        sample = await playbook_of().verify(context_of(database=reader), plan)
        assert sample.assessment is Assessment.CANNOT_TELL


# --- pure --------------------------------------------------------------------------------------


async def test_leaks_are_ended_when_the_pool_is_full() -> None:
    proposal = await proposed([idle(1), idle(2)], admin=FULL, pool_path="/pool")
    assert pids(proposal, "end_sessions") == [1, 2]
    assert "the pool is 100% used" in proposal.reason


async def test_leaks_that_block_nobody_are_left_alone_when_the_pool_is_not_full() -> None:
    proposal = await proposed([idle(1)], admin=CALM, pool_path="/pool")
    assert proposal.mitigations == ()
    assert "Idle transactions left alone: 1;" in proposal.reason


async def test_unknown_pool_proves_nothing_and_is_told() -> None:
    proposal = await proposed([idle(1)], admin=Pool({}), pool_path="/pool")
    assert proposal.mitigations == ()
    assert "The use of the pool is unknown" in proposal.reason


async def test_an_unknown_pool_is_looked_at_again_where_it_decides_about_a_session() -> None:
    unknown: dict[str, Any] = {"admin": Pool({}), "pool_path": "/pool"}
    assert (await proposed([idle(1)], **unknown)).wait == timedelta(seconds=30)
    assert (await proposed([], **unknown)).wait is None
    assert (await proposed([idle(1)], admin=CALM, pool_path="/pool")).wait is None
    assert (await proposed([idle(1)])).wait is None


async def test_without_a_measured_pool_what_blocks_nobody_is_left_alone() -> None:
    proposal = await proposed([idle(1), active(2)])
    assert proposal.mitigations == ()
    assert "The alert is not proven, so nothing is touched: no pool is measured" in proposal.reason


@pytest.mark.parametrize(("active_now", "taken"), [(9, []), (10, [1])], ids=["90 %", "above 90 %"])
async def test_leaks_that_block_nobody_are_ended_only_above_90_percent(
    active_now: int, taken: list[int]
) -> None:
    pool = Pool({"/pool": {"active": active_now, "max": 10, "waiting": 3}})
    proposal = await proposed([idle(1)], admin=pool, pool_path="/pool")
    assert pids(proposal, "end_sessions") == taken


async def test_an_alert_that_the_measurement_contradicts_touches_nothing_and_is_told_as_such() -> (
    None
):
    pool = Pool({"/pool": {"active": 3, "max": 20, "waiting": 0}})
    jobs = [active(n, application="jobs") for n in (1, 2, 3)]
    proposal = await proposed(jobs, admin=pool, pool_path="/pool")
    assert proposal.mitigations == ()
    assert proposal.wait is None
    assert "The alert is contradicted by what is measured" in proposal.reason
    assert "3 of 20 connections (15%)" in proposal.reason
    assert "Long queries left alone: 3" in proposal.reason


@pytest.mark.parametrize(
    ("hog", "taken"),
    [(None, [1]), (Holder(database="billing", role="batch", count=80), [])],
    ids=["ours", "another's"],
)
async def test_a_server_that_another_database_fills_is_not_our_shortage_and_it_is_named(
    hog: Holder | None, taken: list[int]
) -> None:
    playbook = playbook_of(usage_limit=0.8)
    database = Database((active(1),), used=92, hog=hog)
    _, proposal = await diagnosed(playbook, database=database)
    assert pids(proposal, "cancel_queries") == taken
    if hog:
        assert "role batch in the database billing: 80" in proposal.reason
        assert "The alert is not proven" not in proposal.reason


async def test_on_a_standby_a_human_is_asked_first() -> None:
    playbook = playbook_of(pool_path="/pool")
    for standby in (True, False):
        database = Database((active(1),), standby=standby)
        _, proposal = await diagnosed(playbook, database=database, admin=FULL)
        (plan,) = proposal.mitigations
        assert (plan.asks is not None) is standby


async def test_without_app_roles_it_is_said_that_nothing_can_be_ended() -> None:
    every = {"end_sessions", "cancel_queries", "end_queries"}
    assert playbook_of(app_roles=[]).impossible() == dict.fromkeys(every, "no app_roles")
    assert playbook_of().impossible() == {}


async def test_it_is_not_better_while_who_waited_still_waits() -> None:
    """Only the session that we ended has gone: the wait that was the reason has not."""
    waits = active(2, blocked_by=(1,))
    playbook = playbook_of(pool_path="/pool")
    before = Database((idle(1), waits))
    _, proposal = await diagnosed(playbook, database=before, admin=CALM)
    for left, assessment in (
        (waits.model_copy(update={"blocked_by": (77,)}), Assessment.NOT_BETTER),
        (waits.model_copy(update={"blocked_by": ()}), Assessment.BETTER),
    ):
        context = context_of(database=Database((left,)), admin=CALM)
        sample = await playbook.verify(context, proposal.mitigations[0])
        assert sample.assessment is assessment, sample.evidence


async def test_what_is_ended_can_be_reconstructed_from_the_plan() -> None:
    ended = idle(
        1,
        client="10.0.0.3",
        wait_event="ClientRead",
        xact_start=NOW,
        text="UPDATE stock SET quantity = ?",
        statement="UPDATE",
    )
    proposal = await proposed([ended, active(2, blocked_by=(1,), application="web")])
    (item,) = proposal.mitigations[0].items
    for said in (
        "app (orders at 10.0.0.3)",
        "idle in transaction for 3600 s",
        "waits for ClientRead",
        "in a transaction since 03:04:05 UTC",
        "blocks 1: pid 2 (web, SELECT)",
        "UPDATE stock SET quantity = ?",
    ):
        assert said in item.summary
    assert item.seen["blocks"] == [{"pid": 2, "since": (NOW - timedelta(hours=1)).isoformat()}]


async def test_nothing_is_ever_scaled_and_a_human_is_told_what_to_look_at() -> None:
    """T-15: more replicas open more connections."""
    proposal = await proposed([session(1)], admin=FULL, pool_path="/pool", usage_limit=0.01)
    assert proposal.mitigations == ()
    assert "nothing is scaled" in proposal.reason
    assert "needs a DBA" in proposal.reason
    assert PoolExhausted.levers == {"end_sessions", "cancel_queries", "end_queries"}


async def test_root_blockers_come_first_then_the_oldest() -> None:
    young = {"state_age": timedelta(minutes=1)}
    listed = [
        idle(1, state_age=timedelta(minutes=9)),
        idle(2, state_age=timedelta(minutes=8)),
        idle(3, **young),
        active(4, blocked_by=(3,)),
    ]
    proposal = await proposed(listed, max_kills=2, admin=FULL, pool_path="/pool")
    assert pids(proposal, "end_sessions") == [3, 1]


async def test_cycle_of_waiters_is_left_to_the_servers_deadlock_detector() -> None:
    listed = [active(1, blocked_by=(2,)), active(2, blocked_by=(1,))]
    assert (await proposed(listed)).mitigations == ()


async def test_autovacuum_as_root_is_named_and_never_touched() -> None:
    proposal = await proposed([active(1, blocked_by=(99,))])
    assert proposal.mitigations == ()
    assert "pid 99 (no client session of this database) blocks 1" in proposal.reason


async def test_a_query_cancelled_before_that_was_replaced_by_another_is_not_ended() -> None:
    full: dict[str, Any] = {"admin": FULL, "pool_path": "/pool"}
    before = (await proposed([active(1)], **full)).mitigations
    later = active(1, query_start=NOW, query_age=timedelta(minutes=10))
    proposal = await proposed([later], *before, **full)
    assert pids(proposal, "end_queries") == []
    assert pids(proposal, "cancel_queries") == [1]


async def test_unreadable_sessions_propose_nothing() -> None:
    playbook = playbook_of()
    _, proposal = await diagnosed(playbook, database=Unreadable(()))
    assert proposal.mitigations == ()
    assert "no answer in time" in proposal.reason


ACTUATOR = "/actuator/metrics/hikaricp.connections."


def gauge(value: float) -> dict[str, Any]:
    return {"measurements": [{"statistic": "VALUE", "value": value}]}


@pytest.mark.parametrize(
    ("parameters", "answers", "use"),
    [
        ({"pool_path": "/pool"}, FULL.answers, "10 of 10 connections (100%), 3 requests wait"),
        (
            {"actuator": True},
            {f"{ACTUATOR}{n}": gauge(v) for n, v in (("active", 9), ("max", 10), ("pending", 0))},
            "9 of 10 connections (90%), 0 requests wait",
        ),
        ({"pool_max": 4}, {}, "2 of 4 connections (50%)"),
    ],
)
async def test_pool_is_read_from_the_source_that_is_configured(
    parameters: dict[str, Any], answers: dict[str, Any], use: str
) -> None:
    playbook = playbook_of(**parameters)
    others = (session(3), active(4, role="dba", protected="a DBA"))
    database = Database((active(1), idle(2), *others))
    findings = await playbook.diagnose(context_of(database=database, admin=Pool(answers)))
    assert findings["pool"].summary == f"The pool uses {use}."


@pytest.mark.parametrize(
    "answer", [{}, [], {"active": -1, "max": 1, "waiting": 0}, {"active": 1, "max": 0}]
)
async def test_pool_figures_without_sense_are_unknown(answer: Any) -> None:
    playbook = playbook_of(pool_path="/pool")
    findings = await playbook.diagnose(
        context_of(database=Database(()), admin=Pool({"/pool": answer}))
    )
    assert findings["pool"].status is FindingStatus.UNKNOWN


async def test_verify_cannot_tell_without_the_pool() -> None:
    playbook = playbook_of(pool_path="/pool")
    plan = Mitigation(kind="end_sessions", target=TARGET, reason="a test")
    context = context_of(database=Database(()), admin=Pool({}))
    assert (await playbook.verify(context, plan)).assessment is Assessment.CANNOT_TELL


async def test_verify_is_not_better_while_the_server_is_above_its_limit() -> None:
    playbook = playbook_of(usage_limit=0.8)
    plan = Mitigation(kind="end_sessions", target=TARGET, reason="a test")
    sample = await playbook.verify(context_of(database=Database((), used=90)), plan)
    assert sample.assessment is Assessment.NOT_BETTER
    assert "90 of 97" in sample.evidence


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_kills": 6},
        {"max_kills": 0},
        {"idle_tx_s": 59.9},
        {"kill_after_s": 29.9},
        {"pool_full": 0.89},
        {"pool_active_query": "x"},
        {"pool_max_query": "x"},
        {"kill_after": 3},
    ],
)
def test_parameters_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        PoolParameters.model_validate(wrong)


def test_it_is_found_by_its_alerts() -> None:
    found = load_playbooks().get("PoolExhausted")
    assert found is not None
    for name in ("DatabaseConnectionPoolExhaustion", "DatabaseConnectionIssues", "PoolExhausted"):
        assert all(matcher.holds({"alertname": name}) for matcher in found.matches)


SESSIONS = st.lists(
    st.builds(
        session,
        st.integers(1, 30),
        application=st.sampled_from(["orders", "remediator", ""]),
        state=st.sampled_from(
            ["active", "idle", "idle in transaction", "idle in transaction (aborted)", "unknown"]
        ),
        state_age=st.timedeltas(timedelta(0), timedelta(hours=2)),
        query_age=st.none() | st.timedeltas(timedelta(0), timedelta(hours=2)),
        query_start=st.none() | st.just(NOW),
        protected=st.none() | st.just("role is not the application's"),
        blocked_by=st.lists(st.integers(0, 30), max_size=3).map(tuple),
    ),
    max_size=30,
    unique_by=lambda s: s.pid,
)


@given(listed=SESSIONS, again=SESSIONS, most=st.integers(1, 5), full=st.booleans())
@settings(deadline=None)
async def test_whatever_the_sessions_are_the_bounds_hold(
    *, listed: list[Session], again: list[Session], most: int, full: bool
) -> None:
    parameters = {"idle_tx_s": 60, "kill_after_s": 300, "max_kills": most, "pool_path": "/pool"}
    admin = FULL if full else CALM
    first = await proposed(listed, admin=admin, **parameters)
    second = await proposed(again, *first.mitigations, admin=admin, **parameters)
    cancelled = set(pids(first, "cancel_queries"))
    for proposal, known in ((first, listed), (second, again)):
        by_pid = {s.pid: s for s in known}
        for plan in proposal.mitigations:
            assert 1 <= len(plan.items) <= most
            for item in plan.items:
                touched = by_pid[item.identity["pid"]]  # type: ignore[index]  # JSON
                assert touched.protected is None
                assert touched.blocked_by == ()
                assert touched.application != "remediator"
                age = touched.state_age if plan.kind == "end_sessions" else touched.query_age
                assert age is not None
                assert age.total_seconds() > plan.parameters["min_age_s"]  # type: ignore[operator]
                assert plan.kind != "end_queries" or touched.pid in cancelled
    assert pids(first, "end_queries") == []


async def test_sessions_are_read_once_for_all_checks() -> None:
    database = Database((idle(1),))
    playbook = playbook_of(app_roles=["app"], pool_max=10)
    await playbook.diagnose(context_of(database=database))
    assert database.asked == [("app",)]


async def test_demand_for_eventual_relief_is_met_by_the_lever(scene: Scene) -> None:
    """The whole way: a real pool of an application is exhausted and then serves again."""
    pool = await asyncpg.create_pool(
        scene.dsn_as("app"), min_size=1, max_size=3, server_settings={"application_name": "orders"}
    )
    try:
        leaked = await pool.acquire()
        await leaked.execute("BEGIN; UPDATE stock SET quantity = 0 WHERE item = 1")
        waiting = [await pool.acquire() for _ in range(2)]
        for connection in waiting:
            scene.start(connection, "UPDATE stock SET quantity = 1 WHERE item = 1")  # type: ignore[arg-type]
        playbook = playbook_of(pool_max=3, app_roles=[scene.app])
        async with PostgresReader(scene.dsn_as("reader")) as reader:

            async def blocked() -> bool:
                sessions = await reader.sessions(app_roles=(scene.app,))
                return sum(bool(s.blocked_by) for s in sessions) == 2

            await eventually(blocked, "both wait")
            _, proposal = await diagnosed(playbook, database=reader)
            assert len(pids(proposal, "end_sessions")) == 1
            assert await pulled(scene, proposal.mitigations[0]) is MitigationState.APPLIED
        await eventually(lambda: _works(waiting[0]), "the first waiter works")
    finally:
        pool.terminate()


async def _works(connection: Any) -> bool:
    try:
        return bool(await connection.fetchval("SELECT true"))
    except asyncpg.InterfaceError:  # its update is still on its way
        return False
