"""The duplicate cache: with it and without it the same alerts and incidents come of any bodies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from remediator.intake.alertmanager import parse
from remediator.model.alert import Alert, Delivery
from remediator.model.base import DeliveryId
from remediator.model.catalog import Catalogue
from remediator.model.errors import Refused, StoreUnavailable
from remediator.model.incident import IncidentState
from remediator.playbook.loader import PlaybookSet
from remediator.service.replicas.duplicates import SharedRepeats, shared_repeats
from remediator.service.replicas.redis import SharedRedis, shared_redis
from remediator.store import Store, open_store
from remediator.store import tables as t
from remediator.store.duplicates import NoRepeats, Repeats, Triaged
from remediator.testing import FrozenClock
from remediator.triage.correlate import STALE_WITHIN, correlate
from remediator.triage.match import Match, match
from tests.postgres_fixtures import eventually
from tests.redis_fixtures import MortalRedis, RedisScene
from tests.store_fixtures import SwitchOff, a_delivery, a_service, read_again

STEP = timedelta(milliseconds=1)
FIRST, SECOND = "2025-12-31T23:50:00Z", "2025-12-31T23:59:30Z"
NEVER, LATER = "0001-01-01T00:00:00Z", "2026-01-01T00:00:40Z"
SCOPES = ("global",)
NAMESPACE = "remediator:test"
_PLAYBOOKS = PlaybookSet([SwitchOff])
_CATALOGUE = Catalogue(services=(a_service(),), limits=a_service().limits)


def body(*said: tuple[str, str, str, str]) -> bytes:
    """Write the body of alerts: fingerprint, status, startsAt, endsAt."""
    alerts = [
        {
            "status": status,
            "fingerprint": print_,
            "labels": {
                "alertname": "ThingsOn" if print_ != "nobody's" else "Unheard",
                "system": "shop",
                "service": "orders",
                "thing": print_,
            },
            "startsAt": starts,
            "endsAt": ends,
        }
        for print_, status, starts, ends in said
    ]
    return json.dumps({"version": "4", "groupKey": "g", "alerts": alerts}).encode()


FIRES = body(("x", "firing", FIRST, NEVER))
FIRES_LATER = body(("x", "firing", SECOND, NEVER))
FIRES_BOTH = body(("x", "firing", FIRST, NEVER), ("y", "firing", SECOND, NEVER))
ENDS = body(("x", "resolved", FIRST, SECOND))
AHEAD = body(("x", "firing", LATER, NEVER))
BODIES = (
    FIRES,
    FIRES_LATER,
    FIRES_BOTH,
    body(("nobody's", "firing", FIRST, NEVER)),
    ENDS,
    body(("y", "firing", SECOND, NEVER)),
    body(("x", "firing", NEVER, NEVER)),
    AHEAD,
    body(("x", "resolved", SECOND, NEVER)),
    body(("x", "firing", FIRST, NEVER), ("y", "resolved", FIRST, SECOND)),
)

replicas = st.integers(0, 1)


def told_of(bodies: list[bytes]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """What may happen where few bodies come again and again."""
    post = st.tuples(st.just("post"), replicas, st.sampled_from(bodies))
    triage = st.tuples(st.just("triage"), replicas)
    passes = st.tuples(st.just("pass"), st.sampled_from([1, 60, STALE_WITHIN.seconds + 1]))
    once = st.one_of(passes, st.tuples(st.just("cancel")), st.tuples(st.just("flush")))
    return st.lists(st.one_of(post, triage, post, triage, once), min_size=6, max_size=24)


others = st.lists(st.sampled_from(BODIES), max_size=2)
steps = st.tuples(st.sampled_from(BODIES[:4]), others).flatmap(lambda b: told_of([b[0], *b[1]]))


def matching(alert: Alert, delivery: Delivery) -> Match:
    return match(alert, _CATALOGUE, _PLAYBOOKS, delivery.playbook)


@dataclass
class Installation:
    """Two replicas on one store."""

    replicas: Sequence[Store]
    clock: FrozenClock
    swallowed: int = 0

    def seen(self, content: bytes, **more: Any) -> tuple[Delivery, Sequence[Alert]]:
        """Return a delivery of ``content`` with its alerts."""
        digest = hashlib.sha256(content).hexdigest()
        values = {"digest": digest, "size": len(content), "body": content} | more
        delivery = a_delivery(self.clock, **values)
        return delivery, parse(content, self.clock.now).alerts

    async def post(self, replica: int, content: bytes, **more: Any) -> DeliveryId:
        self.clock.advance(STEP)
        delivery, alerts = self.seen(content, **more)
        dead = parse(content, self.clock.now).dead
        stored = await self.replicas[replica].inbox.put(delivery, alerts, dead)
        self.swallowed += stored != delivery.id
        return stored

    async def triage(self, replica: int) -> None:
        found: Any = True
        while found is not None:
            found = await self.replicas[replica].inbox.triage(
                read_again,
                lambda alert, delivery: matching(alert, delivery).key(alert),
                lambda batch, snapshot, now: correlate(batch, snapshot, now, matching),
            )

    async def cancel(self) -> None:
        page = await self.replicas[0].records.incidents(limit=200, state=IncidentState.OPEN)
        for incident in page.items:
            with contextlib.suppress(Refused):
                await self.replicas[0].commands.cancel(incident.id, "ann", "")

    async def clear(self) -> None:
        self.swallowed = 0

        async def operation(connection: Any) -> None:
            for table in reversed(t.metadata.sorted_tables):
                await connection.execute(delete(table))

        await self.replicas[0].database.write(operation)

    async def facts(self) -> tuple[list[Any], list[Any]]:
        """Return alerts and incidents, without what only counts or times notifications."""
        incident = (
            t.incidents.c.correlation_key,
            t.incidents.c.state,
            t.incidents.c.outcome,
            t.incidents.c.opened_at,
            t.incidents.c.closed_at,
        )
        alert = (
            t.alerts.c.fingerprint,
            t.alerts.c.status,
            t.alerts.c.starts_at,
            t.alerts.c.ends_at,
            t.alerts.c.first_seen_at,
            t.alerts.c.resolved_at,
            t.alerts.c.latest,
        )
        joined = t.alerts.join(t.incidents, t.incidents.c.id == t.alerts.c.incident_id)
        async with self.replicas[0].database.read() as connection:
            alerts = await connection.execute(select(*alert, *incident).select_from(joined))
            incidents = await connection.execute(select(*incident))
            return sorted(map(str, alerts)), sorted(map(str, incidents))


@dataclass
class Ground:
    """Two installations that are told the same, one of them with the cache."""

    runner: asyncio.Runner
    clock: FrozenClock
    plain: Installation
    cached: Installation
    redis: Any
    """A client of the test's own; None where there is no server."""

    def told(self, said: Sequence[tuple[Any, ...]]) -> None:
        self.runner.run(self._told(said))

    async def _told(self, said: Sequence[tuple[Any, ...]]) -> None:
        self.clock.now = FrozenClock().now
        both = (self.plain, self.cached)
        for one in both:
            await one.clear()
        await self._flush()
        for what, *rest in (*said, ("triage", 0)):
            if what == "pass":
                self.clock.advance(timedelta(seconds=rest[0]))
            elif what == "flush":
                await self._flush()
            else:
                now = self.clock.now
                for one in both:
                    self.clock.now = now
                    await getattr(one, what)(*rest)
        assert await self.cached.facts() == await self.plain.facts()

    async def _flush(self) -> None:
        if self.redis is not None:
            await self.redis.flushall()


@contextlib.asynccontextmanager
async def installed(
    url: str, clock: FrozenClock, repeats: Sequence[Repeats]
) -> AsyncIterator[Installation]:
    async with contextlib.AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(
                open_store(
                    url,
                    owner=f"replica-{n}",
                    changed=lambda: None,
                    clock=clock,
                    scopes=SCOPES,
                    repeats=one,
                )
            )
            for n, one in enumerate(repeats)
        ]
        yield Installation(stores, clock)


def believing(url: str) -> SharedRedis:
    """A client that has been running for long enough to believe what it reads."""
    ticks = iter([0.0])
    return SharedRedis(url, NAMESPACE, lambda _: None, lambda: next(ticks, 1e6))


@contextlib.asynccontextmanager
async def knowing(
    url: str, version: str = "version", believed_for: float = 600.0
) -> AsyncIterator[SharedRepeats]:
    """The cache of one replica."""
    client = believing(url)
    async with (
        contextlib.aclosing(client.client),
        shared_repeats(client, version, believed_for) as repeats,
    ):
        yield repeats
        assert not client.is_lost


Cache = Callable[[], contextlib.AbstractAsyncContextManager[Repeats]]


@contextlib.contextmanager
def the_ground(
    store_url: str, folder: Path, cache: Cache, redis: str | None = None
) -> Iterator[Ground]:
    clock, other = FrozenClock(), f"sqlite:///{folder / 'plain.db'}"
    stack = contextlib.AsyncExitStack()

    async def opened() -> Ground:
        repeats = [await stack.enter_async_context(cache()) for _ in range(2)]
        plain = await stack.enter_async_context(installed(other, clock, [NoRepeats()] * 2))
        cached = await stack.enter_async_context(installed(store_url, clock, repeats))
        client: Any = None
        if redis is not None:
            client = aioredis.Redis.from_url(redis)
            stack.push_async_callback(client.aclose)
        return Ground(runner, clock, plain, cached, client)

    with asyncio.Runner() as runner:
        try:
            yield runner.run(opened())
        finally:
            runner.run(stack.aclose())


def many(examples: int) -> settings:
    more = int(os.environ.get("REMEDIATOR_MODEL_EXAMPLES", "0"))
    return settings(
        max_examples=more or examples,
        deadline=None,
        derandomize=not more,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.timeout(600)
def test_any_bodies_make_the_same_alerts_and_incidents_with_the_cache_and_without(
    store_url: str, redis_server: str, tmp_path: Path
) -> None:
    swallowed = 0

    def cache() -> contextlib.AbstractAsyncContextManager[Repeats]:
        return knowing(redis_server)

    with the_ground(store_url, tmp_path, cache, redis_server) as ground:

        @many(200)
        @example([("post", 0, FIRES), ("triage", 1), ("post", 1, ENDS), ("post", 0, FIRES)])
        @given(steps)
        def holds(said: list[tuple[Any, ...]]) -> None:
            nonlocal swallowed
            ground.told(said)
            swallowed += ground.cached.swallowed

        holds()
    assert swallowed > 30


class Gullible:
    """Believes for ever that a body which was triaged once changes nothing."""

    def __init__(self, *, eager: bool) -> None:
        self._eager = eager
        self._known: dict[str, DeliveryId] = {}

    async def earlier(
        self, delivery: Delivery, alerts: Sequence[Alert], *, whole: bool
    ) -> DeliveryId | None:
        known = self._known.get(delivery.digest)
        if self._eager and alerts:
            self._known.setdefault(delivery.digest, delivery.id)
        return known

    async def settle(self, triaged: Triaged) -> None:
        for delivery, _, repeatable in triaged:
            if repeatable:
                self._known[delivery.digest] = delivery.id


@pytest.mark.parametrize("eager", [True, False])
def test_a_cache_that_forgets_nothing_is_found_out(tmp_path: Path, *, eager: bool) -> None:
    one = Gullible(eager=eager)

    def cache() -> contextlib.AbstractAsyncContextManager[Repeats]:
        return contextlib.nullcontext(one)

    with the_ground(f"sqlite:///{tmp_path / 'cached.db'}", tmp_path, cache) as ground:

        @settings(many(400), phases=[Phase.generate], report_multiple_bugs=False)
        @given(steps)
        def holds(said: list[tuple[Any, ...]]) -> None:
            ground.told(said)

        with pytest.raises(AssertionError):
            holds()


# --- one by one -------------------------------------------------------------------------------


@pytest.fixture
async def pair(redis_scene: RedisScene, tmp_path: Path) -> AsyncIterator[Installation]:
    """Two replicas with the cache."""
    url, clock = f"sqlite:///{tmp_path / 'state.db'}", FrozenClock()
    async with (
        knowing(redis_scene.url) as one,
        knowing(redis_scene.url) as two,
        installed(url, clock, [one, two]) as pair,
    ):
        yield pair


async def test_what_was_triaged_by_one_replica_is_not_stored_once_more_by_another(
    pair: Installation,
) -> None:
    first = await pair.post(0, FIRES_BOTH)
    await pair.triage(1)
    assert await pair.post(1, FIRES_BOTH) == first
    page = await pair.replicas[0].records.deliveries()
    assert [delivery.id for delivery in page.items] == [first]


async def test_what_is_not_triaged_yet_is_stored(pair: Installation) -> None:
    first = await pair.post(0, FIRES)
    assert await pair.post(1, FIRES) != first


async def test_a_flood_of_the_same_body_is_known_after_the_triage_of_its_first(
    pair: Installation,
) -> None:
    flood = [await pair.post(n % 2, FIRES) for n in range(4)]
    assert len(set(flood)) == 4
    await pair.triage(0)
    assert await pair.post(1, FIRES) in flood


async def test_a_body_that_could_not_be_stored_does_not_stand_in_the_way_of_the_next(
    redis_scene: RedisScene, tmp_path: Path
) -> None:
    url, clock = f"sqlite:///{tmp_path / 'state.db'}", FrozenClock()
    async with knowing(redis_scene.url) as one, knowing(redis_scene.url) as two:
        async with installed(url, clock, [one]) as broken:
            pass  # the store is closed
        with pytest.raises(StoreUnavailable):
            await broken.post(0, FIRES)
        async with installed(url, clock, [two]) as sound:
            first = await sound.post(0, FIRES)
            await sound.triage(0)
            assert await sound.post(0, FIRES) == first


@pytest.mark.parametrize("other", [ENDS, FIRES_LATER, FIRES_BOTH])
async def test_a_body_is_stored_again_after_any_other_that_speaks_of_its_alert(
    pair: Installation, other: bytes
) -> None:
    first = await pair.post(0, FIRES)
    await pair.triage(0)
    await pair.post(1, other)
    assert await pair.post(0, FIRES) != first
    await pair.triage(0)


@pytest.mark.parametrize("content", [ENDS, body(("x", "firing", NEVER, NEVER)), AHEAD])
async def test_what_may_say_something_else_the_second_time_is_stored_again(
    pair: Installation, content: bytes
) -> None:
    first = await pair.post(0, content)
    await pair.triage(0)
    assert await pair.post(0, content) != first


async def test_the_same_body_of_another_sender_is_stored(pair: Installation) -> None:
    first = await pair.post(0, FIRES)
    await pair.triage(0)
    assert await pair.post(0, FIRES, credential="somebody else") != first


async def test_a_body_with_dead_letters_is_stored_again(pair: Installation) -> None:
    content = FIRES.replace(b'"alerts": [', b'"alerts": [{"status": "odd"}, ')
    first = await pair.post(0, content)
    await pair.triage(0)
    assert await pair.post(0, content) != first


async def test_a_large_body_is_stored_again_and_makes_the_others_forget(
    pair: Installation,
) -> None:
    first = await pair.post(0, FIRES)
    await pair.triage(0)
    large = body(*((p, "firing", FIRST, NEVER) for p in ("x", *map(str, range(1200)))))
    assert await pair.post(0, large) != await pair.post(0, large)
    await pair.triage(0)
    assert await pair.post(0, large) != first
    assert await pair.post(0, FIRES) != first


async def test_a_replay_is_always_stored(pair: Installation) -> None:
    first = await pair.post(0, FIRES)
    await pair.triage(0)
    again = await pair.post(0, FIRES, source="replay", replay_of=first)
    assert again != first


async def test_a_replica_of_another_version_or_configuration_stores_it(
    redis_scene: RedisScene, pair: Installation
) -> None:
    await pair.post(0, FIRES)
    await pair.triage(0)
    async with knowing(redis_scene.url, "newer") as newer:
        assert await newer.earlier(*pair.seen(FIRES), whole=True) is None


async def test_a_replica_that_has_just_started_stores_it(
    redis_scene: RedisScene, pair: Installation
) -> None:
    await pair.post(0, FIRES)
    await pair.triage(0)
    async with (
        shared_redis(redis_scene.url, NAMESPACE, lambda _: None) as client,
        shared_repeats(client, "version") as started,
    ):
        assert await started.earlier(*pair.seen(FIRES), whole=True) is None


async def test_what_is_known_is_forgotten_after_a_short_time(
    redis_scene: RedisScene, pair: Installation
) -> None:
    async with knowing(redis_scene.url, believed_for=0.05) as short:
        delivery, alerts = pair.seen(FIRES)
        assert await short.earlier(delivery, alerts, whole=True) is None
        await short.settle([(delivery, alerts, True)])

        async def forgotten() -> bool:
            return not await redis_scene.keys()

        await eventually(forgotten, "it is forgotten", within=5)


async def test_a_server_that_comes_back_with_an_older_memory_is_not_believed(
    mortal_redis: MortalRedis, tmp_path: Path
) -> None:
    one = Installation((), FrozenClock())
    async with (
        knowing(mortal_redis.url) as repeats,
        contextlib.aclosing(mortal_redis.client()) as own,
    ):
        delivery, alerts = one.seen(FIRES)
        await repeats.earlier(delivery, alerts, whole=True)
        await repeats.settle([(delivery, alerts, True)])
        assert await repeats.earlier(*one.seen(FIRES), whole=True) == delivery.id
        await own.save()
        await repeats.earlier(*one.seen(ENDS), whole=True)
        mortal_redis.kill()
        mortal_redis.start()
        async with (
            contextlib.aclosing(mortal_redis.client()) as another,
            knowing(mortal_redis.url) as later,
        ):
            assert len(await another.keys("*")) == 1
            assert await later.earlier(*one.seen(FIRES), whole=True) is None


async def test_while_the_server_is_away_all_is_stored_and_afterwards_it_is_not_believed_at_once(
    mortal_redis: MortalRedis,
) -> None:
    one, said = Installation((), FrozenClock()), list[bool]()
    async with (
        shared_redis(mortal_redis.url, NAMESPACE, said.append) as client,
        shared_repeats(client, "version", 0) as repeats,
        shared_repeats(client, "version", 600) as doubting,
    ):
        delivery, alerts = one.seen(FIRES)
        await repeats.earlier(delivery, alerts, whole=True)
        await repeats.settle([(delivery, alerts, True)])
        mortal_redis.kill()
        assert await repeats.earlier(*one.seen(FIRES), whole=True) is None
        assert client.is_lost
        mortal_redis.start()

        async def back() -> bool:
            return not client.is_lost

        await eventually(back, "it is used again", within=20)
        await doubting.earlier(delivery, alerts, whole=True)
        await doubting.settle([(delivery, alerts, True)])
        assert await doubting.earlier(*one.seen(FIRES), whole=True) is None
    assert said == [False, True, False]
