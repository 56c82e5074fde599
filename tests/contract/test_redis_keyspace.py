"""RedisReader and RedisMitigator keep their contracts on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest

from remediator.backends.redis.mitigator import RedisMitigator
from remediator.backends.redis.reader import RedisReader
from remediator.model.errors import BackendRefused, BackendUnavailable, ConfigError
from remediator.model.finding import SenseState
from remediator.model.mitigation import Item, Mitigation, MitigationState, Outcome, Preparation
from remediator.model.ports import KeySpace
from remediator.model.target import Target
from tests.redis_fixtures import ACL_CHECKS, PASSWORD, READER, WRITER, RedisScene

TARGET = Target(system="shop", service="orders", role="cache", kind="redis", name="cache")
OTHERS = {"queue:orders", *(f"session:{n}" for n in range(700))}
DEAD = "redis://127.0.0.1:1/0"


def removal_of(prefix: str, **parameters: Any) -> Mitigation:
    return Mitigation(
        kind="unlink_prefix",
        target=TARGET,
        reason="a test",
        items=(Item(key=prefix, identity={"prefix": prefix}),),
        parameters={"prefix": prefix, **parameters},
    )


@asynccontextmanager
async def lever_for(url: str, *prefixes: str) -> AsyncIterator[RedisMitigator]:
    async with RedisMitigator(url, prefixes=prefixes or ("cache:",), name="redis cache") as lever:
        yield lever


@asynccontextmanager
async def reader_for(url: str) -> AsyncIterator[RedisReader]:
    async with RedisReader(url, name="redis cache") as reader:
        yield reader


async def removed(lever: RedisMitigator, mitigation: Mitigation) -> Outcome:
    return await lever.apply(await lever.prepare(mitigation), "key")


# --- reading ----------------------------------------------------------------------------------


async def test_memory_hits_and_clients_are_read(redis_scene: RedisScene) -> None:
    await redis_scene.client.config_resetstat()
    await redis_scene.client.config_set("maxmemory", "64mb")
    await redis_scene.client.set("a", "1")
    await redis_scene.client.mget("a", "a", "a", "b")
    async with reader_for(redis_scene.url) as reader:
        port: KeySpace = reader
        info = await port.info()
    await redis_scene.client.config_set("maxmemory", "0")
    assert (info.hits, info.misses, info.hit_ratio) == (3, 1, 0.75)
    assert info.limit == 64 << 20
    assert info.ratio is not None
    assert 0 < info.ratio < 1
    assert info.clients >= 2
    assert info.evicted == 0


async def test_slow_log_shows_commands_but_no_arguments(redis_scene: RedisScene) -> None:
    await redis_scene.client.config_set("slowlog-log-slower-than", "0")
    await redis_scene.client.set("session:4711", "Ann Example")
    await redis_scene.client.config_set("slowlog-log-slower-than", "10000")
    async with reader_for(redis_scene.url) as reader:
        found = await reader.slow_log()
    assert "SET" in {slow.command for slow in found}
    assert "4711" not in str(found)
    assert "Ann" not in str(found)


async def test_keys_are_counted_by_their_longest_prefix(redis_scene: RedisScene) -> None:
    await redis_scene.fill()
    async with reader_for(redis_scene.url) as reader:
        found = await reader.count(("cache:", "cache:item:1", "queue:", "nothing:"))
    assert found.complete
    assert found.by_prefix == {
        "cache:": 889,
        "cache:item:1": 311,
        "queue:": 1,
        "nothing:": 0,
    }
    assert found.other == 700


@pytest.mark.parametrize("budget", [{"most": 500}, {"within": 0.0}])
async def test_count_that_is_not_complete_says_so(
    redis_scene: RedisScene, budget: dict[str, Any]
) -> None:
    await redis_scene.fill(5000, 700)
    async with RedisReader(redis_scene.url, **budget) as reader:
        found = await reader.count(("cache:",))
    assert not found.complete
    assert 0 < found.by_prefix["cache:"] + found.other < 5701


async def test_reader_that_may_not_scan_is_refused(redis_scene: RedisScene) -> None:
    url = await redis_scene.user("reader", "+info", "+dbsize")
    async with reader_for(url) as reader:
        with pytest.raises(BackendRefused, match="lacks a right"):
            await reader.count(("cache:",))
        sense = await reader.probe()
    assert sense.state is SenseState.IMPAIRED
    assert "scan" in sense.reason
    assert PASSWORD not in sense.reason


async def test_reader_needs_no_more_than_it_says(redis_scene: RedisScene) -> None:
    url = await redis_scene.user("reader", *READER)
    async with reader_for(url) as reader:
        assert (await reader.probe()).state is SenseState.OK
        await reader.info()
        await reader.slow_log()
        await reader.count(("cache:",))


@pytest.mark.parametrize("user", ["nobody:wrong@", "default:wrong@"])
async def test_wrong_password_is_refused_without_repeating_it(
    redis_scene: RedisScene, user: str
) -> None:
    await redis_scene.user("nobody", "+info")
    await redis_scene.client.config_set("requirepass", "s3cret")
    try:
        url = f"redis://{user}{urlsplit(redis_scene.url).netloc}/0"
        async with reader_for(url) as reader:
            with pytest.raises(BackendRefused, match="check user and password") as caught:
                await reader.info()
    finally:
        await redis_scene.client.config_set("requirepass", "")
    assert "wrong" not in f"{caught.value} {reader!r}"


async def test_server_that_is_down_is_unavailable() -> None:
    async with reader_for(DEAD) as reader, lever_for(DEAD) as lever:
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await reader.info()
        assert (await reader.probe()).state is SenseState.IMPAIRED
        assert (await lever.probe()).state is SenseState.IMPAIRED
        with pytest.raises(BackendUnavailable):
            await lever.prepare(removal_of("cache:"))
        preparation = Preparation(mitigation=removal_of("cache:"), before={"matching": 3})
        assert (await lever.apply(preparation, "key")).state is MitigationState.NOT_APPLIED
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await lever.observe(preparation, "key")


def test_url_that_cannot_be_read_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        RedisReader("http://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


# --- removing ---------------------------------------------------------------------------------


async def test_only_the_named_prefix_goes(redis_scene: RedisScene) -> None:
    """T-39, T-40: SCAN and UNLINK in batches; sessions and the queue stay."""
    await redis_scene.fill()
    async with lever_for(await redis_scene.user("writer", *WRITER)) as lever:
        preparation = await lever.prepare(removal_of("cache:"))
        assert preparation.before == {"matching": 1200, "other": 701}
        assert len(await redis_scene.keys()) == 1901
        outcome = await lever.apply(preparation, "key")
        assert (await lever.observe(preparation, "key")).state is MitigationState.APPLIED
        assert (await lever.probe()).state is SenseState.OK
    assert outcome.state is MitigationState.APPLIED
    assert "1200 of 1200 keys of 'cache:' removed" in outcome.detail
    assert "other keys before 701, after 701" in outcome.detail
    assert await redis_scene.keys() == OTHERS
    assert await redis_scene.client.llen("queue:orders") == 50


@pytest.mark.parametrize("prefix", ["c*:", "c?che:", "[cs]:", "cache\\", "[^a]", "a-b^", "é:"])
async def test_glob_characters_mean_themselves(redis_scene: RedisScene, prefix: str) -> None:
    await redis_scene.fill(10, 10)
    kept = await redis_scene.keys() | {"c:1", "s:1", "b", "cache:"}
    await redis_scene.cache(dict.fromkeys([*(kept - {"queue:orders"}), f"{prefix}1"], "x"))
    async with lever_for(redis_scene.url, prefix) as lever:
        outcome = await removed(lever, removal_of(prefix))
    assert outcome.state is MitigationState.APPLIED
    assert await redis_scene.keys() == kept


@pytest.mark.parametrize(
    "mitigation",
    [
        removal_of("session:"),
        removal_of("cache:item"),
        removal_of("cache"),
        removal_of("cache:*"),
        removal_of("*"),
        removal_of(""),
        removal_of("cache:", max_keys=0),
        removal_of("cache:", max_keys=100_001),
        removal_of("cache:", max_keys=True),
        removal_of("cache:", flush=True),
        removal_of("cache:").model_copy(update={"items": ()}),
        removal_of("cache:").model_copy(update={"items": (Item(key="session:"),)}),
        removal_of("cache:").model_copy(update={"kind": "flush"}),
        removal_of("cache:").model_copy(update={"parameters": {}}),
    ],
)
async def test_plan_for_anything_else_is_refused(
    redis_scene: RedisScene, mitigation: Mitigation
) -> None:
    await redis_scene.fill(10, 10)
    async with lever_for(redis_scene.url) as lever:
        preparation = Preparation(mitigation=mitigation)
        for attempt in (lever.prepare(mitigation), lever.apply(preparation, "key")):
            with pytest.raises(BackendRefused):
                await attempt
    assert len(await redis_scene.keys()) == 21


async def test_more_keys_than_allowed_are_refused_and_stay(redis_scene: RedisScene) -> None:
    await redis_scene.fill()
    async with lever_for(redis_scene.url) as lever:
        with pytest.raises(BackendRefused, match="more than 1000 keys"):
            await lever.prepare(removal_of("cache:", max_keys=1000))
        preparation = Preparation(mitigation=removal_of("cache:", max_keys=1000))
        outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert len(await redis_scene.keys()) == 1901


NO_CACHES = {
    "a list": ("RPUSH", "cache:jobs", "1"),
    "a stream": ("XADD", "cache:log", "*", "k", "v"),
    "a cart without an end": ("HSET", "cache:cart:7", "sku", "1"),
    "a lock without an end": ("SET", "cache:lock", "1"),
}


@pytest.mark.parametrize("command", NO_CACHES.values(), ids=NO_CACHES)
async def test_a_prefix_that_holds_more_than_a_cache_is_refused_and_stays(
    redis_scene: RedisScene, command: tuple[str, ...]
) -> None:
    await redis_scene.fill(30, 10)
    await redis_scene.client.execute_command(*command)
    before = await redis_scene.keys()
    async with lever_for(await redis_scene.user("writer", *WRITER)) as lever:
        with pytest.raises(BackendRefused, match="is no cache: it holds"):
            await lever.prepare(removal_of("cache:"))
        preparation = Preparation(mitigation=removal_of("cache:"))  # it came since the first look
        outcome = await lever.apply(preparation, "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert "is no cache: it holds" in outcome.detail
    assert await redis_scene.keys() == before


async def test_a_batch_with_a_key_that_lasts_is_not_removed_though_the_sample_missed_it(
    redis_scene: RedisScene,
) -> None:
    await redis_scene.fill(1200, 10)
    await redis_scene.client.set("cache:zzz:cart", "1")  # in the last batch of the keys by name
    async with lever_for(redis_scene.url) as lever:
        outcome = await lever.apply(Preparation(mitigation=removal_of("cache:")), "key")
    assert outcome.state is MitigationState.APPLIED
    assert "1000 keys removed, then refused" in outcome.detail
    assert await redis_scene.client.exists("cache:zzz:cart")


async def test_a_prefix_is_described_by_a_sample(redis_scene: RedisScene) -> None:
    await redis_scene.fill(700, 10)
    await redis_scene.client.rpush("cache:jobs", "1")
    async with reader_for(await redis_scene.user("watcher", *READER)) as reader:
        use = await reader.holds("cache:")
        small = await reader.holds("cache:jobs")
        none = await reader.holds("nothing:")
    assert (use.keys, use.sampled, use.complete) == (701, 500, True)
    assert 25_000 < use.held < 200_000
    assert (small.by_type, small.lasting, small.no_cache) == (
        {"list": 1},
        1,
        "holds values of the type list",
    )
    assert (none.keys, none.held, none.no_cache) == (0, 0, None)


async def test_a_reader_that_may_not_look_at_the_keys_is_refused(redis_scene: RedisScene) -> None:
    await redis_scene.fill(10, 10)
    rules = ("~cache:*", "+scan", "+dbsize", "+info")
    async with reader_for(await redis_scene.user("watcher", *rules)) as reader:
        with pytest.raises(BackendRefused, match="lacks a right"):
            await reader.holds("cache:")


async def test_a_writer_that_may_not_look_first_is_told_what_is_missing(
    redis_scene: RedisScene,
) -> None:
    await redis_scene.fill(10, 10)
    rules = [rule for rule in WRITER if rule not in {"+type", "+pttl"}]
    async with lever_for(await redis_scene.user("writer", *rules)) as lever:
        sense = await lever.probe()
        with pytest.raises(BackendRefused, match=r"\+type \+pttl"):
            await lever.prepare(removal_of("cache:"))
    assert "ACL SETUSER writer +type +pttl" in sense.reason


async def test_nothing_to_remove_is_refused(redis_scene: RedisScene) -> None:
    async with lever_for(redis_scene.url) as lever:
        with pytest.raises(BackendRefused, match="already so"):
            await lever.prepare(removal_of("cache:"))


async def test_observe_says_only_what_the_keys_prove(redis_scene: RedisScene) -> None:
    await redis_scene.fill()
    async with lever_for(redis_scene.url) as lever:
        preparation = await lever.prepare(removal_of("cache:"))
        assert (await lever.observe(preparation, "key")).state is MitigationState.NOT_APPLIED
        await redis_scene.client.delete("cache:item:1")
        assert (await lever.observe(preparation, "key")).state is MitigationState.UNKNOWN
        with pytest.raises(BackendRefused):
            await lever.revert(preparation, "key")
        assert lever.conditional is False


# --- rights -----------------------------------------------------------------------------------


async def test_user_that_may_not_unlink_is_told_what_is_missing(redis_scene: RedisScene) -> None:
    await redis_scene.fill(10, 10)
    url = await redis_scene.user("reader", *READER, *ACL_CHECKS)
    async with lever_for(url) as lever:
        sense = await lever.probe()
        assert sense.state is SenseState.IMPAIRED
        assert "ACL SETUSER reader +unlink ~cache:*" in sense.reason
        with pytest.raises(BackendRefused, match=r"\+unlink ~cache:\*"):
            await lever.prepare(removal_of("cache:"))
        outcome = await lever.apply(Preparation(mitigation=removal_of("cache:")), "key")
    assert outcome.state is MitigationState.NOT_APPLIED
    assert "lacks a right" in outcome.detail
    assert len(await redis_scene.keys()) == 21


async def test_user_with_the_wrong_keys_is_told_which(redis_scene: RedisScene) -> None:
    url = await redis_scene.user("writer", *WRITER)
    async with lever_for(url, "cache:", "page:") as lever:
        sense = await lever.probe()
    assert sense.state is SenseState.IMPAIRED
    assert "+unlink ~page:*" in sense.reason
    assert "~cache:*" not in sense.reason


async def test_rights_that_cannot_be_asked_are_told_but_do_not_stop(
    redis_scene: RedisScene,
) -> None:
    await redis_scene.fill()
    url = await redis_scene.user("writer", *(rule for rule in WRITER if rule not in ACL_CHECKS))
    async with lever_for(url) as lever:
        sense = await lever.probe()
        outcome = await removed(lever, removal_of("cache:"))
    assert sense.state is SenseState.IMPAIRED
    assert "+acl|dryrun" in sense.reason
    assert outcome.state is MitigationState.APPLIED
    assert await redis_scene.keys() == OTHERS


@pytest.mark.parametrize(("seconds", "gone"), [(2.0, 1000), (7.0, 0)])
async def test_a_removal_that_was_held_up_removes_nothing_further(
    redis_scene: RedisScene, seconds: float, gone: int
) -> None:
    await redis_scene.fill()
    passed = count(step=seconds)
    url, prefixes = redis_scene.url, ["cache:"]
    async with RedisMitigator(url, prefixes=prefixes, clock=lambda: next(passed)) as lever:
        preparation = await lever.prepare(removal_of("cache:"))
        outcome = await lever.apply(preparation, "key")
    made = MitigationState.APPLIED if gone else MitigationState.NOT_APPLIED
    assert outcome.state is made
    assert len(await redis_scene.keys()) == 1901 - gone


# --- answers that get lost --------------------------------------------------------------------


@asynccontextmanager
async def losing_unlinks(url: str) -> AsyncIterator[str]:
    """Pass everything on to the server, but break the connection instead of answering UNLINK."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    serving: list[asyncio.Task[None] | None] = []

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        from_server, to_server = await asyncio.open_connection(host, port)
        answers = asyncio.create_task(pump(from_server, writer))
        lost = False
        while data := await reader.read(1 << 20):
            if b"UNLINK" in data and b"DRYRUN" not in data:
                answers.cancel()
                await asyncio.gather(answers, return_exceptions=True)
                lost = True
            to_server.write(data)
            await to_server.drain()
            if lost and data.endswith(b"\r\n"):
                await from_server.read(100)  # the server has done it
                break
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)
        for end in (to_server, writer):
            end.close()
            await end.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    await asyncio.gather(*filter(None, serving))


async def test_lost_answer_is_unknown_and_then_looked_up(redis_scene: RedisScene) -> None:
    await redis_scene.fill(100, 700)
    async with losing_unlinks(redis_scene.url) as url, lever_for(url) as lever:
        preparation = await lever.prepare(removal_of("cache:"))
        outcome = await lever.apply(preparation, "key")
        assert outcome.state is MitigationState.UNKNOWN
        assert (await lever.observe(preparation, "key")).state is MitigationState.APPLIED
    assert await redis_scene.keys() == OTHERS
