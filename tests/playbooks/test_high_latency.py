"""HighLatency finds the bottleneck first, pulls one lever, and does nothing on suspicion."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playbooks.high_latency import LatencyParameters
from remediator.backends.http.migrations import HttpMigrations, MigrationMitigator
from remediator.backends.kubernetes.objects import REVISION
from remediator.backends.kubernetes.preconditions import ScaleBounds, UndoBounds, read_bounds
from remediator.backends.kubernetes.rollback import pinned
from remediator.backends.postgres.mitigator import PostgresMitigator
from remediator.backends.postgres.reader import PostgresReader
from remediator.backends.redis.mitigator import RedisMitigator
from remediator.model.connections import Session
from remediator.model.finding import FindingStatus
from remediator.model.mitigation import Mitigation, MitigationState
from remediator.model.target import Risk
from remediator.model.verdict import Assessment, Verification
from remediator.model.workloads import EFFECT, Autoscaler, Room
from remediator.playbook.loader import load_playbooks
from tests.breaker_fixtures import READER, WRITER, breaker_service
from tests.postgres_fixtures import Scene
from tests.redis_fixtures import RedisScene
from tests.slow_service import (
    HOLDING,
    IDLE_BLOCKER,
    LOCK,
    LONG_BLOCKER,
    LONG_QUERY,
    MINUTE,
    NOW,
    OLD,
    RELEASED,
    WELL,
    Admin,
    Cache,
    Cluster,
    Database,
    Prometheus,
    Slow,
    alert_of,
    plan_of,
    revision,
    session,
    target_of,
)

# --- the order of the bottlenecks --------------------------------------------------------------

HOT = Cluster(cpu=900, kept=RELEASED)
TROUBLES: list[tuple[str, dict[str, Any]]] = [
    ("end_sessions", {"database": Database((*LOCK, *LONG_BLOCKER), used=90)}),
    ("cancel_queries", {"database": Database(LONG_BLOCKER, used=90)}),
    ("connections", {"database": Database(used=90)}),
    ("scale", {"workload": HOT}),
    ("set_migration", {"admin": Admin(pairs={"BTC-USD": 20})}),
    ("undo_rollout", {"workload": Cluster(cpu=300, kept=RELEASED)}),
    ("unlink_prefix", {"cache": Cache()}),
]


@pytest.mark.parametrize("number", range(len(TROUBLES)), ids=[kind for kind, _ in TROUBLES])
async def test_the_first_bottleneck_in_the_order_decides_whatever_else_is_wrong(
    number: int,
) -> None:
    wrong: dict[str, Any] = {}
    for _, trouble in reversed(TROUBLES[number:]):
        wrong |= trouble
    proposal = await replace(Slow(), **wrong).proposed()
    kind = TROUBLES[number][0]
    if kind == "connections":
        assert proposal.mitigations == ()
        assert proposal.wait is not None
        assert proposal.reason.startswith("Connections are short")
    else:
        assert [plan.kind for plan in proposal.mitigations] == [kind]


async def test_with_nothing_wrong_nothing_is_proposed_and_everything_is_ruled_out_aloud() -> None:
    proposal = await Slow().proposed()
    assert proposal.mitigations == ()
    assert proposal.wait is None
    for said in (
        "No bottleneck is proven.",
        "The latency is 0.9, the limit 0.5.",
        "No session waits for a lock.",
        "No query that may be touched runs for more than 300 s.",
        "The server uses 10 of 100 connections",
        "The CPU is 30% used",
        "No pair is being migrated.",
        "No release is proven to be the cause: no earlier revision is kept.",
        "The cache is not proven to be the cause: The cache is 10% full",
    ):
        assert said in proposal.reason


async def test_a_service_with_nothing_to_look_at_is_left_to_a_human() -> None:
    slow = Slow(database=None, workload=None, admin=None, cache=None)
    proposal = await slow.proposed()
    assert (proposal.mitigations, proposal.wait) == ((), None)
    assert "There is no database to look at." in proposal.reason


# --- the latency itself ------------------------------------------------------------------------


async def test_latency_within_its_limit_waits_for_the_sender() -> None:
    slow = Slow(prometheus=Prometheus({"latency": 0.5}), workload=HOT, database=Database(LOCK))
    proposal = await slow.proposed()
    assert proposal.mitigations == ()
    assert proposal.wait is not None
    assert "within its limit now (0.5, the limit 0.5)" in proposal.reason


async def test_missing_latency_is_no_latency_t19() -> None:
    slow = Slow(prometheus=Prometheus(), workload=HOT, database=Database(LOCK))
    proposal = await slow.proposed()
    assert proposal.mitigations == ()
    assert "Nothing is changed while this is unknown: latency: prometheus: no data" in (
        proposal.reason
    )


FROM_ADMIN: dict[str, Any] = {
    "latency_query": "",
    "undo_release": False,
    "latency_path": "/admin/metrics/current",
    "latency_field": "now.latency_p95_ms",
    "latency_limit": 20,
}


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"now": {"latency_p95_ms": 21}}, FindingStatus.PROBLEM),
        ({"now": {"latency_p95_ms": 19.5}}, FindingStatus.FINE),
        ({"now": {"latency_p95_ms": None}}, FindingStatus.UNKNOWN),
        ({"now": {"latency_p95_ms": "12"}}, FindingStatus.UNKNOWN),
        ({"now": {"latency_p95_ms": True}}, FindingStatus.UNKNOWN),
        ({"now": {"latency_p95_ms": math.nan}}, FindingStatus.UNKNOWN),
        ({"now": {"latency_p95_ms": math.inf}}, FindingStatus.UNKNOWN),
        ({"now": {"latency_p95_ms": -1}}, FindingStatus.UNKNOWN),
        ({"now": {}}, FindingStatus.UNKNOWN),
        ({"now": 3}, FindingStatus.UNKNOWN),
        ([], FindingStatus.UNKNOWN),
        (None, FindingStatus.UNKNOWN),
    ],
)
async def test_latency_null_does_not_pass_as_normal_t38(answer: Any, status: FindingStatus) -> None:
    admin = Admin({"/admin/metrics/current": answer})
    slow = Slow(admin=admin, parameters=FROM_ADMIN)
    findings, _ = await slow.diagnosed()
    assert findings["latency"].status is status


async def test_without_a_measurement_the_firing_alert_is_the_evidence() -> None:
    unmeasured = {"latency_query": "", "latency_limit": "", "undo_release": False}
    slow = Slow(database=Database(LOCK), parameters=unmeasured)
    plan = await plan_of(slow)
    assert plan.kind == "end_sessions"
    still = await slow.verified(plan)
    gone = replace(slow, database=Database())
    assert still.assessment is Assessment.NOT_BETTER
    assert (await gone.verified(plan)).assessment is Assessment.NOT_BETTER
    resolved = replace(gone, alerts=(alert_of(firing=False),))
    assert (await resolved.verified(plan)).assessment is Assessment.BETTER
    unknown = replace(gone, alerts=())
    assert (await unknown.verified(plan)).assessment is Assessment.CANNOT_TELL


# --- locks and queries -------------------------------------------------------------------------


async def test_the_idle_blocker_is_ended_and_never_its_victim_t04() -> None:
    victim = session(2, blocked_by=(1,), **OLD)
    plan = await plan_of(Slow(database=Database((IDLE_BLOCKER, victim))))
    assert [item.identity["pid"] for item in plan.items] == [1]


@pytest.mark.parametrize(
    ("root", "waits"),
    [
        (session(1, state="idle in transaction", protected="it is pg_dump", **OLD), False),
        (session(1, state="idle in transaction"), True),
        (session(1), True),
        (session(1, protected="role is not the application's", **OLD), False),
        (None, False),
    ],
    ids=["dump", "young and idle", "young and active", "another's query", "autovacuum"],
)
async def test_a_root_blocker_that_is_not_ours_to_end_is_named_and_nothing_is_scaled(
    root: Session | None, *, waits: bool
) -> None:
    sessions = (*([root] if root else []), session(2, blocked_by=(1,)))
    proposal = await Slow(database=Database(sessions), workload=HOT).proposed()
    assert proposal.mitigations == ()
    assert "nothing is scaled" in proposal.reason
    assert "pid 1" in proposal.reason
    assert (proposal.wait is not None) is waits


async def test_a_short_wait_for_a_lock_is_ordinary_and_hides_no_bottleneck() -> None:
    brief = {"query_age": timedelta(seconds=1)}
    listed = (session(1, **brief), session(2, blocked_by=(1,), **brief))
    proposal = await Slow(database=Database(listed), workload=HOT).proposed()
    assert [plan.kind for plan in proposal.mitigations] == ["scale"]
    assert "1 session waits for a lock, none for more than 5 s" in proposal.reason


async def test_a_cycle_of_waiters_is_left_to_the_server() -> None:
    listed = (session(1, blocked_by=(2,)), session(2, blocked_by=(1,)))
    proposal = await Slow(database=Database(listed), workload=HOT).proposed()
    assert proposal.mitigations == ()
    assert proposal.wait is not None
    assert "a cycle, which the server ends" in proposal.reason


async def test_a_blocker_whose_query_is_endless_is_cancelled_before_any_other() -> None:
    blocker = session(9, state_age=timedelta(minutes=6), query_age=timedelta(minutes=6))
    listed = (LONG_QUERY, blocker, session(2, blocked_by=(9,)))
    plan = await plan_of(Slow(database=Database(listed)))
    assert plan.kind == "cancel_queries"
    assert [item.identity["pid"] for item in plan.items] == [9]


NO_CPU: dict[str, Any] = {"workload": Cluster(cpu=300), "cache": None}


async def test_a_long_query_that_blocks_nobody_is_named_and_asked_about() -> None:
    report = LONG_QUERY.model_copy(update={"text": "SELECT sum(amount) FROM ledger"})
    proposal = await replace(Slow(database=Database((report,))), **NO_CPU).proposed()
    assert proposal.reason.startswith("No bottleneck is proven.")
    assert "pid 3 (app, SELECT sum(amount) FROM ledger); no one waits for them" in proposal.reason
    (plan,) = proposal.mitigations
    assert (plan.kind, plan.asks is None) == ("cancel_queries", False)


@pytest.mark.parametrize("replicas", [1, 3, 6])
@pytest.mark.parametrize("cap", [1, 3, 12])
@pytest.mark.parametrize("nodes", [0, 40])
@pytest.mark.parametrize("cpu", [300, 950])
async def test_a_bottleneck_is_never_named_beside_no_bottleneck_is_proven(
    replicas: int, cap: int, nodes: int, cpu: int
) -> None:
    cluster = Cluster(replicas=replicas, cpu=cpu, space=Room(quota=None, nodes=nodes))
    proposal = await Slow(workload=cluster, parameters={"scale_cap": cap}).proposed()
    unproven = "No bottleneck is proven" in proposal.reason
    assert unproven is ("is the bottleneck" not in proposal.reason)
    assert unproven is (not proposal.mitigations)


async def test_a_long_query_that_blocks_nobody_hides_no_other_bottleneck() -> None:
    plan = await plan_of(Slow(database=Database((LONG_QUERY,)), workload=HOT))
    assert (plan.kind, plan.asks) == ("scale", None)


@pytest.mark.parametrize(("active", "asked"), [(3, False), (13, True)], ids=["most", "few"])
async def test_long_queries_that_hold_the_short_connections_are_proven(
    active: int, *, asked: bool
) -> None:
    """Three queries of 4 connections in use are the shortage; 3 of 14 are not."""
    queries = tuple(session(pid, **OLD) for pid in (3, 4, 5))
    admin = Admin({"/pool": {"active": active + 1, "max": active + 1, "waiting": 2}})
    slow = Slow(database=Database(queries), admin=admin, parameters={"pool_path": "/pool"})
    proposal = await slow.proposed()
    if asked:
        assert proposal.mitigations == ()
        assert proposal.reason.startswith("Connections are short")
    else:
        (plan,) = proposal.mitigations
        assert (plan.kind, plan.asks) == ("cancel_queries", None)


async def test_on_a_standby_a_human_is_asked_before_any_session_is_touched() -> None:
    for standby in (True, False):
        plan = await plan_of(Slow(database=Database(LOCK, standby=standby)))
        assert (plan.kind, plan.asks is not None) == ("end_sessions", standby)


@pytest.mark.parametrize(
    "harmless",
    [
        session(3, state="idle", **OLD),
        session(3, protected="it is no client session", **OLD),
        session(3, application="remediator", **OLD),
        session(3, query_age=timedelta(seconds=299)),
    ],
    ids=["t05 idle", "t03 walsender or dump", "ourselves", "short"],
)
async def test_what_only_looks_like_a_long_query_is_not_cancelled(harmless: Session) -> None:
    assert (await Slow(database=Database((harmless,))).proposed()).mitigations == ()


async def test_a_cancelled_query_that_stays_is_ended_after_the_cancel_t10() -> None:
    slow = Slow(database=Database(LONG_BLOCKER))
    cancelled = await plan_of(slow)
    assert (await slow.verified(cancelled)).assessment is Assessment.NOT_BETTER
    ended = await plan_of(replace(slow, tried=(cancelled,)))
    assert ended.kind == "end_queries"
    assert "query_start" in ended.items[0].identity


async def test_unreadable_sessions_end_the_search() -> None:
    proposal = await Slow(database=Database(broken=True), workload=HOT).proposed()
    assert proposal.mitigations == ()
    assert proposal.wait is not None
    assert "blocking: postgres: no answer in time" in proposal.reason


# --- connections -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "short",
    [
        {"database": Database(used=80)},
        {
            "admin": Admin({"/pool": {"active": 9, "max": 10, "waiting": 0}}),
            "parameters": {"pool_path": "/pool"},
        },
        {
            "admin": Admin({"/pool": {"active": 1, "max": 10, "waiting": 1}}),
            "parameters": {"pool_path": "/pool"},
        },
        {"beside": (alert_of("DatabaseConnectionPoolExhausted"),)},
    ],
    ids=["server", "pool", "waiting", "alert"],
)
async def test_short_connections_are_never_answered_with_more_replicas_t15(
    short: dict[str, Any],
) -> None:
    proposal = await replace(Slow(workload=HOT), **short).proposed()
    assert proposal.mitigations == ()
    assert proposal.wait is not None
    assert proposal.reason.startswith("Connections are short")


@pytest.mark.parametrize(
    "unknown",
    [
        {"database": Database(uncounted=True)},
        {"admin": Admin(), "parameters": {"pool_path": "/pool"}},
        {"database": None, "parameters": {"pool_max": 10}},
    ],
    ids=["server", "pool", "no database to count in"],
)
async def test_unknown_connections_end_the_search(unknown: dict[str, Any]) -> None:
    proposal = await replace(Slow(workload=HOT), **unknown).proposed()
    assert proposal.mitigations == ()
    assert proposal.reason.startswith("Nothing is changed while this is unknown")


# --- CPU ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "step", "cap", "wanted"),
    [(4, 0.5, 10, 6), (3, 0.5, 10, 5), (1, 0.5, 10, 2), (5, 1, 20, 10), (4, 1, 5, 5)],
)
async def test_replicas_grow_by_half_rounded_up_inside_the_cap_and_for_an_hour(
    replicas: int, step: float, cap: int, wanted: int
) -> None:
    slow = Slow(
        workload=Cluster(replicas=replicas), parameters={"scale_step": step, "scale_cap": cap}
    )
    plan = await plan_of(slow)
    bounds = read_bounds(plan, ScaleBounds)
    assert (bounds.replicas, bounds.cap, bounds.allow_gitops) == (wanted, cap, False)
    assert (bounds.step_down, bounds.step_pause) == (0.25, timedelta(minutes=10))
    assert (plan.hold, plan.reversible) == (timedelta(hours=1), True)
    assert f"{replicas} replicas become {wanted}" in plan.reason
    assert "The CPU is 90% used (over" in plan.reason


def scaler(**fields: Any) -> Autoscaler:
    values = {
        "name": "orders",
        "resource_version": "1",
        "minimum": 2,
        "maximum": 10,
        "current": 4,
        "desired": 4,
        "managed_by": None,
    }
    return Autoscaler.model_validate(values | fields)


@pytest.mark.parametrize(
    ("cluster", "parameters", "said", "waits"),
    [
        ({}, {"scale_cap": None}, "scale_cap is not set", False),
        ({}, {"scale_cap": 4}, "4 replicas run, the cap is 4", False),
        ({}, {"pool_size": None}, "pool_size is not set", False),
        ({}, {"pool_size": 14}, "84 connections; 80 of 100 may be filled", False),
        ({"space": Room(quota=None, nodes=1)}, {}, "no room for 2 more pods", False),
        ({"space": Room(quota=1, nodes=9)}, {}, "no room for 2 more pods", False),
        ({"space": "may not list nodes"}, {}, "room: may not list nodes", True),
        ({"scaler": scaler(maximum=4)}, {}, "at its maximum of 4", False),
        ({"scaler": scaler(desired=6)}, {}, "going from 4 to 6 by itself", True),
        ({"scaler": scaler(desired=6)}, {"scale_cap": None}, "from 4 to 6 by itself", True),
        ({"scaler": scaler(managed_by="KEDA")}, {}, "KEDA owns the autoscaler", False),
        ({"gitops": "Argo CD"}, {}, "Argo CD owns it", False),
        ({"rollout": "2 of 4"}, {}, "a rollout is in progress (2 of 4)", True),
        ({"ready": 3}, {}, "only 3 of 4 replicas are ready", True),
        ({"replicas": 0, "measured": 1}, {}, "it is scaled to 0", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_hot_cpu_is_not_scaled_where_that_is_not_safe(
    cluster: dict[str, Any], parameters: dict[str, Any], said: str, *, waits: bool
) -> None:
    slow = Slow(workload=Cluster(**cluster), parameters=parameters)
    proposal = await slow.proposed()
    assert proposal.mitigations == ()
    assert said in proposal.reason
    assert (proposal.wait is not None) is waits


async def test_other_users_of_the_server_count_against_its_connections() -> None:
    slow = Slow(workload=Cluster(), database=Database(used=75))
    proposal = await slow.proposed()
    assert proposal.mitigations == ()
    assert "85 connections; 80 of 100 may be filled" in proposal.reason


async def test_with_an_autoscaler_the_step_ends_at_its_maximum_t20() -> None:
    plan = await plan_of(Slow(workload=Cluster(scaler=scaler(maximum=5))))
    assert plan.parameters["replicas"] == 5


async def test_nodes_are_not_looked_at_where_they_are_added_by_themselves() -> None:
    slow = Slow(workload=Cluster(space="may not list nodes"), parameters={"node_headroom": False})
    assert (await plan_of(slow)).kind == "scale"


async def test_an_engine_with_state_is_never_scaled_t32() -> None:
    proposal = await Slow(workload=Cluster(), parameters={"scale": False}).proposed()
    assert proposal.mitigations == ()
    assert "Nothing may be scaled here" in proposal.reason


async def test_without_a_database_its_connections_are_no_obstacle() -> None:
    slow = Slow(workload=Cluster(), database=None, parameters={"pool_size": None})
    assert (await plan_of(slow)).kind == "scale"


@pytest.mark.parametrize(
    "unmeasured",
    [{"measured": 0}, {"measured": 3}, {"limit": None}, {"age": timedelta(minutes=4)}],
    ids=["nothing", "a pod missing", "no limit", "stale"],
)
async def test_unmeasured_cpu_ends_the_search(unmeasured: dict[str, Any]) -> None:
    for pairs in ({}, {"BTC-USD": 0.0}, {"BTC-USD": 100.0}):
        cluster = Cluster(kept=RELEASED, **unmeasured)
        slow = Slow(workload=cluster, cache=Cache(), admin=Admin(pairs=pairs))
        proposal = await slow.proposed()
        assert proposal.mitigations == ()
        assert proposal.wait is not None
        assert "unknown: cpu:" in proposal.reason
        assert "set cpu_query, or scale: false" in proposal.reason


async def test_unmeasured_cpu_keeps_no_migration_going_and_still_nothing_is_scaled() -> None:
    """AOB-04: a migration under way is its own evidence."""
    slow = Slow(workload=Cluster(measured=0), admin=Admin(pairs={"BTC-USD": 20}))
    plan = await plan_of(slow)
    assert plan.kind == "set_migration"
    assert "set cpu_query, or scale: false" in (await slow.proposed()).reason
    tried = await replace(slow, tried=(plan,)).proposed()
    assert tried.mitigations == ()
    assert "unknown: cpu:" in tried.reason


async def test_only_a_migration_under_way_is_lowered() -> None:
    admin = Admin(pairs={"BTC-USD": 100, "ETH-USD": 40, "XRP-USD": 0})
    plan = await plan_of(Slow(admin=admin))
    assert [item.key for item in plan.items] == ["ETH-USD"]
    assert "Migrated to 100 %, which only a human takes back: BTC-USD." in plan.reason
    done = await Slow(admin=Admin(pairs={"BTC-USD": 100})).proposed()
    assert done.mitigations == ()
    assert "only a human takes back: BTC-USD" in done.reason


async def test_unit_of_the_latency_stands_behind_its_figures() -> None:
    slow = Slow(prometheus=Prometheus({"latency": 4185.0}), parameters={"latency_unit": "ms"})
    assert "The latency is 4185 ms, the limit 0.5 ms." in (await slow.proposed()).reason


@pytest.mark.parametrize(("share", "kinds"), [(0.69, []), (0.7, ["scale"]), (None, []), (-1.0, [])])
async def test_the_query_for_the_cpu_takes_the_place_of_the_clusters_metrics(
    share: float | None, kinds: list[str]
) -> None:
    values = {"latency": 0.9} | ({} if share is None else {"cpu": share})
    slow = Slow(
        prometheus=Prometheus(values),
        workload=Cluster(measured=0),
        parameters={"cpu_query": "cpu"},
    )
    assert [plan.kind for plan in (await slow.proposed()).mitigations] == kinds


async def test_a_statefulset_is_not_scaled_nor_undone() -> None:
    """T-24: what is no deployment is left alone."""
    slow = Slow(workload=HOT)
    playbook, context = slow.playbook(), slow.context()
    bare = target_of("workload").model_copy(update={"locator": {"namespace": "shop"}})
    context = replace(context, targets={**context.targets, "workload": bare})
    proposal = playbook.propose(context, await playbook.diagnose(context))
    assert proposal.mitigations == ()
    assert "There is no deployment to look at." in proposal.reason


async def test_what_did_not_help_is_not_repeated_and_the_next_lever_follows() -> None:
    slow = Slow(workload=HOT, admin=Admin(pairs={"BTC-USD": 20}), cache=Cache())
    kinds = []
    for _ in range(5):
        proposal = await slow.proposed()
        kinds += [plan.kind for plan in proposal.mitigations]
        slow = replace(slow, tried=(*slow.tried, *proposal.mitigations))
    assert kinds == ["scale", "set_migration", "undo_rollout", "unlink_prefix"]


# --- migrations, releases, cache ---------------------------------------------------------------


async def test_only_the_pairs_that_migrate_go_to_0_each_by_name() -> None:
    plan = await plan_of(Slow(admin=Admin(pairs={"BTC-USD": 20, "ETH-USD": 0, "SOL-USD": 5.5})))
    assert {item.key: item.identity["percentage"] for item in plan.items} == {
        "BTC-USD": 20,
        "SOL-USD": 5.5,
    }
    assert plan.parameters == {"percentage": 0}
    assert not plan.reversible


async def test_unreadable_migrations_end_the_search() -> None:
    proposal = await Slow(admin=Admin(broken=True), cache=Cache()).proposed()
    assert proposal.mitigations == ()
    assert "unknown: migrations: admin: no answer" in proposal.reason


async def test_a_release_is_undone_to_the_one_pinned_revision_before_it_t28() -> None:
    cluster = Cluster(cpu=300, kept=(*RELEASED, revision(4, timedelta(days=9))))
    plan = await plan_of(Slow(workload=cluster))
    (item,) = plan.items
    assert item.identity == {"revision": 6, "replica_set": "orders-6", "uid": "uid-6"}
    bounds = read_bounds(plan, UndoBounds)
    assert (bounds.from_revision, bounds.max_age_s) == (7, 3600)
    assert (plan.risk, plan.reversible) == (Risk.HIGH, False)


DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept": (revision(7, 61 * MINUTE), RELEASED[1])}, "older than 60 minutes"),
        ({"kept": (revision(7, 4 * MINUTE), RELEASED[1])}, "did not begin after revision 7"),
        ({"kept": (revision(8, 20 * MINUTE), revision(7, 19 * MINUTE))}, "brought back"),
        ({"kept": (revision(7, 20 * MINUTE), revision(6, 40 * MINUTE))}, "not run long enough"),
        ({"kept": (revision(7, 20 * MINUTE),)}, "no earlier revision is kept"),
        ({"past": [0.1, 0.7] + [0.1] * 29}, "it was 0.7 at its worst"),
        ({"past": [0.1] * 20}, "only 20 of 30 samples"),
        ({"past": []}, "unknown: release: prometheus: no data"),
        ({"series": 2}, "unknown: release: the past latency is not exactly one series"),
        ({"annotations": {EFFECT: "inc-0/HighLatency/0/undo_rollout/x"}}, "undone before"),
        ({"gitops": "Flux"}, "Flux owns it"),
        ({"rollout": "1 of 4"}, "a rollout is in progress"),
        ({"alerts": ()}, "did not begin after"),
        ({"parameters": {"undo_release": False}}, "No release may be undone here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_release_is_not_undone_unless_all_is_proven(
    change: dict[str, Any], said: str
) -> None:
    for_metrics = {key: change[key] for key in ("past", "series") if key in change}
    for_slow = {key: change[key] for key in ("alerts", "parameters") if key in change}
    for_cluster = {k: v for k, v in change.items() if k not in {*for_metrics, *for_slow}}
    cluster = replace(Cluster(cpu=300, kept=RELEASED), **for_cluster)
    metrics = replace(Prometheus({"latency": 0.9}, WELL), **for_metrics)
    proposal = await Slow(workload=cluster, prometheus=metrics, **for_slow).proposed()
    assert proposal.mitigations == ()
    assert said in proposal.reason


async def test_only_the_given_prefix_is_removed_and_never_everything_t39_t40() -> None:
    plan = await plan_of(Slow(cache=Cache()))
    assert [item.key for item in plan.items] == ["cache:"]
    assert plan.parameters == {"prefix": "cache:"}


@pytest.mark.parametrize(
    ("cache", "parameters"),
    [
        (Cache(evicting=0), {}),
        (Cache(used=89), {}),
        (Cache(limit=0), {}),
        (Cache(evicting=-7), {}),
        (Cache(), {"cache_prefix": None}),
    ],
    ids=["no eviction", "not full", "no limit", "restarted", "no prefix"],
)
async def test_a_cache_that_is_not_proven_to_be_short_is_left_alone(
    cache: Cache, parameters: dict[str, Any]
) -> None:
    proposal = await Slow(cache=cache, parameters=parameters).proposed()
    assert proposal.mitigations == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"by_type": {"string": 9, "list": 1}}, "it holds values of the type list"),
        ({"by_type": {"stream": 1}}, "it holds values of the type stream"),
        ({"lasting": 1}, "it holds keys without a time to live (1 of 10 looked at)"),
        ({"bytes": 20}, "the memory is elsewhere"),
        ({"keys": 0, "sampled": 0, "bytes": 0}, "the memory is elsewhere"),
    ],
    ids=["list", "stream", "no time to live", "memory elsewhere", "empty"],
)
async def test_a_prefix_that_is_no_cache_or_does_not_hold_the_memory_is_left_alone(
    changed: dict[str, Any], said: str
) -> None:
    proposal = await Slow(cache=Cache(holding=HOLDING.model_copy(update=changed))).proposed()
    assert proposal.mitigations == ()
    assert said in proposal.reason


async def test_a_prefix_that_cannot_be_looked_at_is_left_alone() -> None:
    proposal = await Slow(cache=Cache(holding="redis: our user lacks a right")).proposed()
    assert proposal.mitigations == ()
    assert "unknown: prefix: redis: our user lacks a right" in proposal.reason


async def test_removing_a_prefix_helped_only_when_the_cache_no_longer_evicts() -> None:
    plan = await plan_of(Slow(cache=Cache()))
    for cache, assessment in (
        (Cache(), Assessment.NOT_BETTER),
        (Cache(used=40), Assessment.BETTER),
    ):
        slow = Slow(prometheus=CALM, cache=cache)
        assert (await slow.verified(plan)).assessment is assessment


async def test_an_unreadable_cache_is_said_and_left_alone() -> None:
    proposal = await Slow(cache=Cache(broken=True)).proposed()
    assert proposal.mitigations == ()
    assert "unknown: cache: redis: no answer" in proposal.reason


# --- did it help -------------------------------------------------------------------------------

CALM = Prometheus({"latency": 0.4})


def scaled(slow: Slow, to: int) -> Mitigation:
    return Mitigation(
        kind="scale", target=target_of("workload"), reason="", parameters={"replicas": to}
    )


@pytest.mark.parametrize(
    ("after", "assessment"),
    [
        ({}, Assessment.BETTER),
        ({"prometheus": Prometheus({"latency": 0.6})}, Assessment.NOT_BETTER),
        ({"prometheus": Prometheus()}, Assessment.CANNOT_TELL),
        ({"workload": Cluster(replicas=6, ready=5)}, Assessment.NOT_BETTER),
        ({"workload": Cluster(replicas=4)}, Assessment.NOT_BETTER),
        ({"workload": Cluster(replicas=6, rollout="5 of 6")}, Assessment.NOT_BETTER),
        ({"database": Database(LOCK)}, Assessment.NOT_BETTER),
        ({"database": Database(used=85)}, Assessment.NOT_BETTER),
        ({"database": Database(broken=True)}, Assessment.CANNOT_TELL),
        ({"phase_since": NOW - timedelta(seconds=299)}, Assessment.CANNOT_TELL),
    ],
    ids=[
        "within",
        "above",
        "t19 no data",
        "not ready",
        "not there",
        "rolling",
        "a lock",
        "t15 connections",
        "blind",
        "too early",
    ],
)
async def test_scaling_helped_only_when_all_is_measured_ready_and_nothing_is_worse(
    after: dict[str, Any], assessment: Assessment
) -> None:
    slow = replace(Slow(prometheus=CALM, workload=Cluster(replicas=6)), **after)
    sample = await slow.verified(scaled(slow, 6))
    assert sample.assessment is assessment
    assert sample.evidence


@pytest.mark.parametrize("refused", [None, "exceeded quota: pods"])
async def test_pods_that_are_refused_end_the_waiting_with_the_reason(refused: str | None) -> None:
    cluster = Cluster(replicas=6, ready=4, rollout="4 of 6", refused=refused)
    slow = Slow(prometheus=CALM, workload=cluster)
    sample = await slow.verified(scaled(slow, 6))
    assert (sample.assessment, sample.final) == (Assessment.NOT_BETTER, refused is not None)
    assert (refused or "") in sample.evidence


async def test_samples_count_only_after_the_configured_time() -> None:
    slow = Slow(prometheus=CALM, workload=Cluster(replicas=6), parameters={"settle": "7m"})
    sample = await slow.verified(scaled(slow, 6))
    assert sample.assessment is Assessment.CANNOT_TELL
    assert "The change is 360 s old; samples count after 420 s." in sample.evidence


async def test_a_migration_helped_only_when_its_pairs_are_at_0() -> None:
    plan = await plan_of(Slow(admin=Admin(pairs={"BTC-USD": 20})))
    for left, assessment in ((20.0, Assessment.NOT_BETTER), (0.0, Assessment.BETTER)):
        slow = Slow(prometheus=CALM, admin=Admin(pairs={"BTC-USD": left, "ETH-USD": 5}))
        assert (await slow.verified(plan)).assessment is assessment


# --- on a real server --------------------------------------------------------------------------


async def test_a_real_lock_is_found_ended_and_its_victims_go_on(scene: Scene) -> None:
    leak = await scene.leak()
    victims = [await scene.victim(), await scene.victim()]
    quick = {"idle_tx_s": 0.01, "lock_wait_s": 0, "app_roles": [scene.app]}
    async with PostgresReader(scene.dsn_as("reader"), name="database") as reader:
        slow = Slow(database=reader, workload=HOT, parameters=quick)
        plan = await plan_of(slow)
        assert plan.kind == "end_sessions"
        assert [item.identity["pid"] for item in plan.items] == [leak.get_server_pid()]
        assert (await slow.verified(plan)).assessment is Assessment.NOT_BETTER
        await pulled(scene, plan)
        for victim in victims:
            await scene.until(victim.get_server_pid(), "state = 'idle'")
        calm = replace(slow, prometheus=CALM)
        assert (await calm.verified(plan)).assessment is Assessment.BETTER


async def test_a_real_endless_query_is_cancelled_and_its_session_lives_on(scene: Scene) -> None:
    busy = await scene.hog()
    await scene.victim()
    await scene.until(busy.get_server_pid(), "clock_timestamp() - query_start > interval '50 ms'")
    quick = {"kill_after_s": 0.01, "app_roles": [scene.app]}
    async with PostgresReader(scene.dsn_as("reader"), name="database") as reader:
        slow = Slow(database=reader, parameters=quick)
        plan = await plan_of(slow)
        assert plan.kind == "cancel_queries"
        await pulled(scene, plan)
        calm = replace(slow, prometheus=CALM)
        assert (await calm.verified(plan)).assessment is Assessment.BETTER
    assert await scene.is_(busy.get_server_pid())


async def test_a_real_dump_that_blocks_is_named_and_nothing_is_scaled(scene: Scene) -> None:
    dump = await scene.leak(application="pg_dump")
    await scene.victim()
    quick = {"idle_tx_s": 0.01, "lock_wait_s": 0, "app_roles": [scene.app]}
    async with PostgresReader(scene.dsn_as("reader"), name="database") as reader:
        slow = Slow(database=reader, workload=HOT, parameters=quick)
        proposal = await slow.proposed()
    assert proposal.mitigations == ()
    assert f"pid {dump.get_server_pid()}" in proposal.reason
    assert "never touched: it is pg_dump" in proposal.reason


async def pulled(scene: Scene, plan: Mitigation) -> None:
    async with PostgresMitigator(scene.dsn_as("lever"), name="database") as lever:
        outcome = await lever.apply(await lever.prepare(plan), "key")
    assert outcome.state is MitigationState.APPLIED


# --- what the levers take ----------------------------------------------------------------------


async def test_the_real_lever_takes_the_plan_for_the_cache(redis_scene: RedisScene) -> None:
    await redis_scene.fill(cached=20, sessions=5)
    plan = await plan_of(Slow(cache=Cache()))
    async with RedisMitigator(redis_scene.url, prefixes=("cache:",), name="cache") as lever:
        outcome = await lever.apply(await lever.prepare(plan), "key")
    assert outcome.state is MitigationState.APPLIED
    left = await redis_scene.keys()
    assert left == {"queue:orders", *(f"session:{number}" for number in range(5))}


async def test_the_real_lever_takes_the_plan_for_migrations() -> None:
    async with breaker_service() as service:
        service.migrations = {"BTC-USD": 20, "ETH-USD": 0}
        async with HttpMigrations(service.url, name="admin", token=READER) as admin:
            slow = Slow(admin=admin)
            plan = await plan_of(slow)
            async with MigrationMitigator(service.url, name="admin", token=WRITER) as lever:
                await lever.apply(await lever.prepare(plan), "key")
            assert service.moved == [{"pair": "BTC-USD", "percentage": 0}]
            sample = await replace(slow, prometheus=CALM).verified(plan)
    assert sample.assessment is Assessment.BETTER


async def test_the_plan_for_a_release_pins_the_kept_replica_set() -> None:
    plan = await plan_of(Slow(workload=Cluster(cpu=300, kept=RELEASED)))
    kept = [
        {"metadata": {"name": r.name, "uid": r.uid, "annotations": {REVISION: str(r.number)}}}
        for r in RELEASED
    ]
    assert pinned(kept, plan.items[0]) is kept[1]


# --- parameters and bounds ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_query": "q"},
        {"latency_limit": 1},
        {"latency_path": "/x", "latency_limit": 1},
        {"latency_query": "q", "latency_path": "/x", "latency_field": "f", "latency_limit": 1},
        {"latency_query": "q", "latency_limit": 0},
        {"undo_release": True},
        {"scale_step": 1.5},
        {"scale_cap": 0},
        {"max_kills": 6},
        {"settle": "15m"},
        {"settle": "7m", "verification": {"deadline": "6m"}},
        {"latency_unit": "milliseconds"},
        {"cache_prefix": ""},
        {"cache_prefix": "s"},
        {"cache_prefix": "session:"},
        {"cache_prefix": "cache:queue:"},
        {"idle_tx_s": 59},
        {"kill_after_s": 29},
        {"cache_gap": "4s"},
        {"hold": "0s"},
        {"lever": "scale"},
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        LatencyParameters.model_validate(wrong)


def test_it_is_found_by_its_alerts_and_takes_no_others() -> None:
    found = load_playbooks().get("HighLatency")
    assert found is not None
    for name in ("HighLatencyP95", "HighAPILatencyP95", "CriticalAPILatencyP99"):
        assert all(matcher.holds({"alertname": name}) for matcher in found.matches)
    assert not any(m.holds({"alertname": "SlowDatabaseQueries"}) for m in found.matches)
    assert found.parameters_type().verification == Verification(
        interval=timedelta(seconds=30), hold=5 * MINUTE, deadline=15 * MINUTE
    )


@given(
    replicas=st.integers(1, 40),
    step=st.floats(0.01, 1),
    cap=st.integers(1, 60),
    pool_size=st.integers(1, 20),
    used=st.integers(0, 79),
    nodes=st.integers(0, 40),
    maximum=st.none() | st.integers(1, 60),
)
@settings(deadline=None)
async def test_whatever_the_figures_are_scaling_keeps_every_bound(
    *,
    replicas: int,
    step: float,
    cap: int,
    pool_size: int,
    used: int,
    nodes: int,
    maximum: int | None,
) -> None:
    by = None if maximum is None else scaler(maximum=maximum, current=replicas, desired=replicas)
    cluster = Cluster(replicas=replicas, scaler=by, space=Room(quota=None, nodes=nodes))
    parameters = {"scale_step": step, "scale_cap": cap, "pool_size": pool_size}
    slow = Slow(workload=cluster, database=Database(used=used), parameters=parameters)
    for plan in (await slow.proposed()).mitigations:
        wanted = read_bounds(plan, ScaleBounds).replicas
        assert replicas < wanted <= min(cap, 2 * replicas, maximum or cap)
        assert wanted - replicas <= nodes
        assert wanted * pool_size <= 80
        assert used + (wanted - replicas) * pool_size <= 80
