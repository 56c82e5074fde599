"""The Redis that the replicas share: what it serves, and how little is lost without it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from remediator.model.errors import ConfigError
from remediator.model.events import EventType, LiveEvent
from remediator.service.replicas.duplicates import shared_repeats
from remediator.service.replicas.pubsub import SharedEvents, shared_events
from remediator.service.replicas.ratelimit import Admission
from remediator.service.replicas.redis import SharedRedis, look, shared_redis
from remediator.testing import FrozenClock, firing_alert
from tests.postgres_fixtures import eventually
from tests.redis_fixtures import MortalRedis, RedisScene
from tests.store_fixtures import a_delivery

NAMESPACE = "remediator:test"
RIGHTS = (
    *("~remediator:*", "&remediator:*", "+ping", "+info", "+get", "+set", "+del", "+unlink"),
    *("+incrby", "+exists", "+pttl", "+rename", "+eval", "+evalsha", "+script|load"),
    *("+publish", "+subscribe", "+unsubscribe"),
)
"""What docs/configuration.md says that the user needs."""


def no_matter(_: bool) -> None:
    """Take no notice of outages."""


@pytest.fixture
async def opened(mortal_redis: MortalRedis) -> AsyncIterator[SharedRedis]:
    async with shared_redis(mortal_redis.url, NAMESPACE, no_matter) as shared:
        yield shared


async def until_back(shared: SharedRedis) -> None:
    async def back() -> bool:
        return not shared.is_lost

    await eventually(back, "it is used again", within=20)


class Asking:
    """Counts how often the server is asked."""

    def __init__(self, shared: SharedRedis) -> None:
        self.asked = 0
        self._shared = shared

    async def __call__(self) -> bool:
        self.asked += 1
        return bool(await self._shared.client.ping())


# --- the breaker ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_a_server_that_is_gone_is_asked_once_and_used_again_when_it_is_back(
    mortal_redis: MortalRedis, opened: SharedRedis, how: str
) -> None:
    asking = Asking(opened)
    assert await opened.tried(asking)
    if how == "killed":
        mortal_redis.kill()
    else:
        mortal_redis.signal(signal.SIGSTOP)
    with capture_logs() as logs:
        for _ in range(50):
            assert await opened.tried(asking) is None
    assert asking.asked == 2
    assert [line["event"] for line in logs] == ["shared_redis_lost"]
    if how == "killed":
        mortal_redis.start()
    else:
        mortal_redis.signal(signal.SIGCONT)
    await until_back(opened)
    assert await opened.tried(asking)


async def test_a_server_that_is_down_at_the_start_is_used_when_it_comes(
    mortal_redis: MortalRedis,
) -> None:
    mortal_redis.kill()
    said: list[bool] = []
    async with shared_redis(mortal_redis.url, NAMESPACE, said.append) as shared:
        assert shared.is_lost
        mortal_redis.start()
        await until_back(shared)
    assert said == [False, True, False]


async def test_a_server_that_refuses_our_user_is_lost_and_the_log_says_why_without_the_password(
    redis_scene: RedisScene,
) -> None:
    url = await redis_scene.user("nobody", "~remediator:*", "+ping")
    wrong = url.replace("wr1ter-pass", "hunter2")
    with capture_logs() as logs:
        for one in (url, wrong):
            async with shared_redis(one, NAMESPACE, no_matter) as shared:
                assert shared.is_lost
    assert "lacks a right" in logs[0]["reason"]
    assert "user or password" in logs[1]["reason"]
    assert "hunter2" not in str(logs)
    assert "wr1ter-pass" not in str(logs)


@pytest.mark.parametrize(
    "url",
    [
        "http://u:hunter2@x/0",
        "redis://u:hunter2@x:port/0",
        "hunter2",
        "redis://u:hunter2@x/0?nobody_knows_this=1",
        "redis://u:hunter2@x/0?ssl_cert_reqs=none",
    ],
)
async def test_a_url_that_cannot_be_read_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as raised:
        SharedRedis(url, NAMESPACE, no_matter)
    assert "hunter2" not in str(raised.value)


async def test_a_look_says_what_is_wrong(mortal_redis: MortalRedis) -> None:
    assert await look(mortal_redis.url) is None
    mortal_redis.kill()
    assert "cannot be reached" in str(await look(mortal_redis.url))
    mortal_redis.start()


# --- admission --------------------------------------------------------------------------------


async def admitted(admission: Admission, credential: str, times: int) -> int:
    waits = [await admission.wait(credential) for _ in range(times)]
    assert all(wait == 0 or 1 <= wait <= 7200 for wait in waits)
    return waits.count(0)


async def test_without_redis_each_process_admits_so_much_of_each_credential() -> None:
    one, other = Admission("3/hour"), Admission("3/hour")
    assert await admitted(one, "am", 5) == 3
    assert await admitted(one, "grafana", 2) == 2
    assert await admitted(other, "am", 5) == 3


async def test_with_redis_all_replicas_together_admit_so_much(opened: SharedRedis) -> None:
    one, other = Admission("5/hour", opened), Admission("5/hour", opened)
    assert await admitted(one, "am", 3) + await admitted(other, "am", 9) == 5
    assert await admitted(other, "grafana", 2) == 2


async def test_when_redis_dies_each_process_admits_so_much_for_itself(
    mortal_redis: MortalRedis, opened: SharedRedis
) -> None:
    admission = Admission("2/hour", opened)
    assert await admitted(admission, "am", 4) == 2
    mortal_redis.kill()
    assert await admitted(admission, "am", 4) == 2
    mortal_redis.start()


# --- live events ------------------------------------------------------------------------------


def an_event(what: str) -> LiveEvent:
    return LiveEvent(kind=EventType.OPENED, id=what, at=FrozenClock().now)


@contextlib.asynccontextmanager
async def replica(
    url: str, name: str
) -> AsyncIterator[tuple[SharedEvents, asyncio.Queue[LiveEvent]]]:
    heard: asyncio.Queue[LiveEvent] = asyncio.Queue()
    async with (
        shared_redis(url, NAMESPACE, no_matter) as shared,
        shared_events(shared, name, heard.put_nowait) as events,
    ):
        yield events, heard


async def connected(client: Any, replicas: int) -> None:
    async def subscribed() -> bool:
        ((_, count),) = await client.pubsub_numsub(f"{NAMESPACE}:events")
        return bool(count == replicas)

    await eventually(subscribed, "all replicas listen", within=20)


async def test_what_one_replica_sends_the_other_hears_and_itself_does_not(
    redis_scene: RedisScene,
) -> None:
    url = redis_scene.url
    async with replica(url, "one") as (one, heard), replica(url, "two") as (two, heard_by_two):
        await connected(redis_scene.client, 2)
        sent = [an_event(f"inc-{n}") for n in range(300)]
        for event in sent:
            one.send(event)
        async with asyncio.timeout(20):
            assert [await heard_by_two.get() for _ in sent] == sent
            two.send(an_event("inc-answer"))
            assert (await heard.get()).id == "inc-answer"


async def test_what_is_no_event_of_ours_is_passed_over(redis_scene: RedisScene) -> None:
    async with (
        replica(redis_scene.url, "one") as (one, _),
        replica(redis_scene.url, "two") as (_, heard),
    ):
        await connected(redis_scene.client, 2)
        odd = '{"origin": "x", "events": [{"kind": "odd"}]}'
        for wrong in ("", "[]", "{" * 100_000, odd, b"\xff\xfe"):
            await redis_scene.client.publish(f"{NAMESPACE}:events", wrong)
        one.send(an_event("inc-1"))
        async with asyncio.timeout(20):
            assert (await heard.get()).id == "inc-1"
        assert heard.empty()


async def test_events_are_heard_again_after_the_server_was_killed(
    mortal_redis: MortalRedis,
) -> None:
    url = mortal_redis.url
    async with replica(url, "one") as (one, _), replica(url, "two") as (_, heard):
        mortal_redis.kill()
        one.send(an_event("inc-lost"))
        mortal_redis.start()
        async with contextlib.aclosing(mortal_redis.client()) as client:
            await connected(client, 2)

        async def arrives() -> bool:
            one.send(an_event("inc-2"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    return (await heard.get()).id == "inc-2"
            return False

        await eventually(arrives, "events arrive again", within=20)


# --- rights -----------------------------------------------------------------------------------


async def test_the_rights_in_the_manual_suffice_for_everything(redis_scene: RedisScene) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    assert " ".join(RIGHTS) in manual
    url = await redis_scene.user("remediator", *RIGHTS)
    assert await look(url) is None
    async with replica(url, "one") as (one, _), replica(url, "two") as (_, heard):
        await connected(redis_scene.client, 2)
        one.send(an_event("inc-1"))
        async with asyncio.timeout(20):
            assert (await heard.get()).id == "inc-1"
    clock = FrozenClock()
    async with (
        shared_redis(url, NAMESPACE, no_matter) as shared,
        shared_repeats(shared, "v") as repeats,
    ):
        many = [firing_alert(f"A{n}", {}, clock.now - timedelta(hours=1)) for n in range(300)]
        for alerts in (many[:1], many):
            delivery = a_delivery(clock)
            assert await repeats.earlier(delivery, alerts, whole=True) is None
            await repeats.settle([(delivery, alerts, True)])
        assert await admitted(Admission("2/hour", shared), "am", 3) == 2
        assert not shared.is_lost


@pytest.mark.parametrize("right", ["+pttl", "+evalsha", "+unlink", "&remediator:*", "+info"])
async def test_a_look_misses_every_right_that_is_missing(
    redis_scene: RedisScene, right: str
) -> None:
    url = await redis_scene.user("remediator", *(one for one in RIGHTS if one != right))
    assert re.search("(?i)lacks a right|no permissions", str(await look(url)))


async def test_a_url_of_a_socket_is_taken(tmp_path: Path) -> None:
    server = MortalRedis(tmp_path / "redis", unix_socket_path=tmp_path / "redis.sock")
    server.start()
    try:
        assert await look(f"unix://{tmp_path / 'redis.sock'}?db=1") is None
    finally:
        server.kill()
