"""One seed, from its servers to its judgement."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from remediator.cli.demo.slack import LocalSlack
from tests.campaign.apiserver import changes_in
from tests.campaign.approver import Approver
from tests.campaign.chaos import Chaos
from tests.campaign.facts import Broken, Facts, facts_of
from tests.campaign.ground import Ground, Slot
from tests.campaign.judge import excused, judge
from tests.campaign.network import link_to
from tests.campaign.plan import FULL, SPAN, Plan
from tests.campaign.records import UNSEEN, Book
from tests.campaign.replicas import OPERATOR, STARTED_WITHIN, Replica, Zygote
from tests.campaign.restoring import Vault
from tests.campaign.sender import Sender
from tests.campaign.world import World, merged, the_world
from tests.disk_fixtures import NotMounted, SmallDisk, mounted_disk

LEASE = "1s"
QUIET_WITHIN = 180.0
"""Seconds after the trouble, and after the last start of a process since, in which everything has come
to an end: the longest lease of an unfinished message or taking back is 60 s, and there may be one after
the other."""
HEALED_WITHIN = 120.0
"""Seconds in which servers and processes are back after the trouble."""
DISK, RESERVE = "16m", "1MiB"
"""Size of a disk that is filled, and what the service keeps back on it."""
NEW_KEYS: tuple[str, ...] = ()
"""What the version before does not know, each with its sections: ``limits.spread``."""
GIVES_UP = 75.0
"""Seconds after the trouble when the alerts of what nobody cured resolve by themselves."""


class NotSetUp(Exception):
    """The servers of a seed could not be set up: nothing was tried yet."""


@dataclass
class Result:
    """What became of one seed."""

    plan: Plan
    seconds: float = 0.0
    quiet_after: float = 0.0
    """Seconds from the end of the trouble until nothing was going on any more."""
    broken: list[Broken] = field(default_factory=list)
    did: Counter[str] = field(default_factory=Counter)
    springs: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    """Ledger rows by state."""
    accepted: int = 0
    changes: int = 0
    starts: int = 0
    lost_answers: int = 0
    messages: int = 0
    cured: Counter[str] = field(default_factory=Counter)
    """Faults whose backend was changed, by kind."""
    denials: Counter[str] = field(default_factory=Counter)
    """Why changes were refused, by the code of the reason."""
    found: int = 0
    """Changes whose answer was lost, and which were found by looking."""
    excused: int = 0
    """Calls that came too late because their process was stopped right before them."""
    stood_still: float = 0.0
    """Seconds for which the campaign itself stood still so far, at the longest."""
    given_up: Counter[str] = field(default_factory=Counter)
    """Where incidents stood whose alerts had to resolve by themselves."""


@dataclass
class _Seed:
    """What runs during a seed."""

    plan: Plan
    ground: Ground
    slot: Slot
    folder: Path
    stack: AsyncExitStack
    world: World
    slack: LocalSlack
    book: Book
    client: httpx.AsyncClient
    approver: Approver
    replicas: list[Replica]
    disk: SmallDisk | None = None
    """That of the state of the one process, where it is to be filled."""


async def run_seed(plan: Plan, ground: Ground, slot: Slot) -> Result:
    """Run a seed; its folder is kept only if a promise was not kept."""
    folder = slot.folder / f"{'postgres' if plan.postgres else 'sqlite'}-{plan.seed}"
    folder.mkdir()
    result, began = Result(plan), time.monotonic()
    async with AsyncExitStack() as stack:
        try:
            seed = await _prepared(plan, ground, slot, folder, stack)
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise NotSetUp(f"{type(error).__name__}: {error}") from error
        sender, chaos = await _trouble(seed, result)
        trouble_over = time.monotonic()
        stuck = await _until_quiet(seed, sender, result)
        result.quiet_after = time.monotonic() - trouble_over
        facts = await _facts(seed, sender, chaos)
        result.broken = [Broken("stuck", stuck)] if stuck else []
        result.broken += await judge(facts)
        result.broken += [Broken("wrong", what) for r in seed.replicas for what in r.wrong]
        result.broken += [Broken("wrong", what) for what in sender.wrong]
        result.broken += [Broken("wrong", what) for what in chaos.wrong]
        result.broken += await _audited(seed)
        if plan.cut_over and not any(r.served_before for r in seed.replicas):
            result.broken.append(Broken("harness", "the version before never listened"))
        _count(result, facts, sender, seed)
        if result.broken:
            _keep(facts, folder)
    result.seconds = time.monotonic() - began
    if not result.broken:
        shutil.rmtree(folder)
    return result


async def _facts(seed: _Seed, sender: Sender, chaos: Chaos) -> Facts:
    namespaces = {part.namespace for part in seed.world.parts if part.namespace is not None}
    return await facts_of(
        Facts(
            seed.plan,
            seed.world,
            seed.slack,
            sender.accepted,
            changes_in(seed.ground.cluster.audit, namespaces),
            paused=chaos.paused,
            stopped=chaos.stopped,
            kept=chaos.kept,
            stood_still=seed.ground.standstills,
            answers=seed.approver.answers,
            forgotten=chaos.forgotten,
            reserved_by={effect: r.name for r in seed.replicas for effect in r.reserved},
        ),
        seed.book,
    )


async def _prepared(
    plan: Plan, ground: Ground, slot: Slot, folder: Path, stack: AsyncExitStack
) -> _Seed:
    world = await stack.enter_async_context(the_world(plan, ground, slot, folder))
    slack = await stack.enter_async_context(LocalSlack(channel="#campaign"))
    chance = random.Random(f"more network {plan.seed}")
    for name, url in (("slack", slack.origin), ("shared", slot.shared.url)):
        world.links[name] = await stack.enter_async_context(link_to(url, chance))
    name = f"store_{secrets.token_hex(5)}"
    dsn = await slot.store.create_database(name) if plan.postgres else ""
    if plan.postgres:
        link = world.links["store"] = await stack.enter_async_context(link_to(dsn, chance))
        link.base_delay = plan.slow_store
    sqlite = None if plan.postgres else folder / "replica-0/state/remediator.db"
    client = await stack.enter_async_context(httpx.AsyncClient(timeout=25, verify=False))
    book, replicas = Book(sqlite, dsn), list[Replica]()
    approver = Approver(plan.seed, replicas, client)
    seed = _Seed(plan, ground, slot, folder, stack, world, slack, book, client, approver, replicas)
    orders = iter(plan.orders)
    seed.disk = _small_disk(seed) if plan.has(FULL) else None
    old, new = _written(seed)
    for number in range(plan.replicas):
        own = folder / f"replica-{number}"
        own.mkdir(exist_ok=True)
        replica = Replica(f"replica-{number}", own, *old, lambda: next(orders, None))
        replica.store_away = plan.postgres or plan.has(FULL)
        replica.ahead = plan.ahead if replica.zygote.sets_clocks else 0
        replica.successor = new if plan.cut_over else None
        seed.replicas.append(replica)
    return seed


def _small_disk(seed: _Seed) -> SmallDisk | None:
    """Give the one process a disk of its own for its state, where that may be mounted."""
    state = seed.folder / "replica-0/state"
    state.parent.mkdir()
    with contextlib.suppress(NotMounted):
        return seed.stack.enter_context(mounted_disk(state, DISK))
    return None


def _written(seed: _Seed) -> tuple[tuple[Zygote, Path], tuple[Zygote, Path]]:
    """Write the configurations; return what a seed begins with, and what it is upgraded to."""
    config, path = _configuration(seed), seed.folder / "remediator.yaml"
    path.write_text(yaml.safe_dump(config))
    new = seed.ground.zygote, path
    if not seed.plan.cut_over or seed.ground.previous is None:
        return new, new
    for key in NEW_KEYS:
        *above, last = key.split(".")
        section = config
        for name in above:
            section = section[name]
        del section[last]
    before = seed.folder / "previous.yaml"
    before.write_text(yaml.safe_dump(config))
    return (seed.ground.previous, before), new


def _configuration(seed: _Seed) -> dict[str, Any]:
    config = merged(seed.world, seed.plan)
    (seed.folder / "slack.token").write_text(seed.slack.token)
    shared = seed.world.links["shared"].through(seed.slot.shared.url)
    (seed.folder / "redis.url").write_text(shared)
    if not seed.plan.cut_over:  # a key comes once no process writes without it any more
        config["audit"] = {"key_env": "CAMPAIGN_AUDIT"}
    config |= {
        "listen": "127.0.0.1:0",
        "shutdown_within": "5s",
        "log": {"format": "json"},
        "store": {"lease": LEASE, "reserve": RESERVE},
        "redis": {"url_file": "redis.url"},
        "credentials": [
            {"name": "alertmanager", "role": "ingest", "token_env": "CAMPAIGN_INGEST"},
            {"name": "ann", "role": "operator", "token_env": "CAMPAIGN_OPERATOR"},
        ],
        "slack": {
            "channel": seed.slack.channel,
            "token_file": "slack.token",
            "api_url": seed.world.links["slack"].through(seed.slack.api_url),
        },
    }
    if seed.plan.postgres:
        (seed.folder / "store.dsn").write_text(seed.world.links["store"].through(seed.book.dsn))
        config["store"]["dsn_file"] = "store.dsn"
    return config


async def _trouble(seed: _Seed, result: Result) -> tuple[Sender, Chaos]:
    """Run the service through everything that happens, and let it heal."""
    plan, enter = seed.plan, seed.stack.enter_async_context
    vault = Vault(seed.book, seed.slot.store, seed.folder)
    chaos = Chaos(plan, seed.slot, seed.world, seed.replicas, seed.client, vault, seed.disk)
    for replica in seed.replicas:
        await enter(_kept(replica))
    points = await enter(_running(chaos.watch_points()))  # one may stop itself while it starts
    await _one_listens(seed.replicas)
    sender = Sender(seed.replicas, random.Random(f"sender {plan.seed}"), seed.client)
    for part in seed.world.parts:
        await enter(_running(sender.follow(part)))
    if plan.asked:
        await enter(_running(seed.approver.work()))
    async with _running(sender.make_noise()):
        ordered = [chaos.run(happening) for happening in plan.happenings]
        cuts = [chaos.cut_over(*one) for one in zip(seed.replicas, plan.cut_over, strict=False)]
        await asyncio.gather(asyncio.sleep(SPAN), *ordered, *cuts)
        await asyncio.wait_for(chaos.heal(), HEALED_WITHIN)
    assert not points.done(), points
    result.did, result.springs = chaos.did, chaos.springs
    return sender, chaos


_LOOKS = 450
"""Looks, over ``STARTED_WITHIN`` seconds in which the machine runs, for a replica that listens."""


async def _one_listens(replicas: list[Replica]) -> None:
    async def up() -> bool:
        began = [replica.url or replica.starts > 1 for replica in replicas]
        return all(began) if replicas[0].previous else any(began)

    for _ in range(_LOOKS):  # not by the clock: a machine that stands still starts nothing
        if await up():
            return
        await asyncio.sleep(STARTED_WITHIN / _LOOKS)
    assert await up(), f"no replica listens after {_LOOKS} looks"


@asynccontextmanager
async def _kept(replica: Replica) -> AsyncIterator[None]:
    try:
        async with _running(replica.keep()):
            yield
    finally:
        await replica.end()


@asynccontextmanager
async def _running(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until_quiet(seed: _Seed, sender: Sender, result: Result) -> str:
    """Wait until nothing is going on any more; say what is, when that takes too long."""
    clock, unrest = time.monotonic, ""
    began = last_start = clock()
    starts = sum(replica.starts for replica in seed.replicas)
    while clock() - last_start < QUIET_WITHIN:
        await asyncio.sleep(0.5)
        if starts < (starts := sum(replica.starts for replica in seed.replicas)):
            last_start = clock()
        try:
            unrest = await _unrest(seed, sender, result, gives_up=clock() - began > GIVES_UP)
        except UNSEEN as error:
            unrest = f"the store could not be read: {type(error).__name__}"
        if not unrest:
            return ""
    return unrest


async def _unrest(seed: _Seed, sender: Sender, result: Result, *, gives_up: bool) -> str:
    """Say what is still going on; tell that alerts are over whose incidents are closed."""
    services = {part.service for part in seed.world.parts}
    sender.over |= services - await seed.book.open_services()
    if gives_up and not result.given_up:
        sender.over |= services
        result.given_up = await seed.book.phases()
    told = services <= sender.resolved
    unrest = await seed.book.quiet()  # after it: what was told is triaged then
    if unrest or not told:
        return unrest or "alerts could not be told to be over"
    return await _unready(seed)


async def _unready(seed: _Seed) -> str:
    """Name a replica that is not there, or not ready, though all is well."""
    for replica in seed.replicas:
        if not replica.url:
            return f"{replica.name} does not listen"
        try:
            answer = await seed.client.get(f"{replica.url}/readyz")
        except httpx.HTTPError as error:
            return f"{replica.name} does not answer: {type(error).__name__}"
        if answer.status_code != 200:
            return f"{replica.name} is not ready: {answer.text[:200]}"
    return ""


async def _audited(seed: _Seed) -> list[Broken]:
    """Let a process verify the audit, where it has a key."""
    if seed.plan.cut_over:
        return []
    headers = {"Authorization": f"Bearer {OPERATOR}"}
    (url, *_) = [replica.url for replica in seed.replicas if replica.url]
    answer = await seed.client.get(f"{url}/api/v1/audit/verify", headers=headers)
    said = answer.json()
    whole = answer.status_code == 200 and said["ok"] and not said["unsealed"]
    return [] if whole else [Broken("wrong", f"the audit: {answer.text[:500]}")]


def _count(result: Result, facts: Facts, sender: Sender, seed: _Seed) -> None:
    result.answers = sender.answers
    result.did += seed.approver.did
    result.accepted = len(sender.accepted)
    for parts in facts.ills:
        made = facts.changes[parts[0].service]
        result.changes += made
        result.cured[parts[0].kind] += bool(made)
    rows = facts.tables["mitigations"]
    denied = [str(row["reason"]) for row in facts.tables["incidents"] if row["outcome"] == "denied"]
    result.denials = Counter(reason.partition(":")[0] for reason in denied)
    result.found = sum("(found by looking" in (row["evidence"] or "") for row in rows)
    result.excused = excused(facts)
    lengths = [(span.end - span.begin).total_seconds() for span in seed.ground.standstills]
    result.stood_still = max(lengths, default=0.0)
    result.outcomes = Counter(
        str(row["outcome"]) for row in facts.tables["incidents"] if row["outcome"] != "no_match"
    )
    result.states = Counter(str(row["state"]) for row in facts.tables["mitigations"])
    result.starts = sum(replica.starts for replica in seed.replicas)
    result.lost_answers = sum(link.lost for link in seed.world.links.values())
    result.messages = len(seed.slack.posted)


def _keep(facts: Facts, folder: Path) -> None:
    """Write down what the store said, for whoever looks for the fault."""
    with (folder / "facts.txt").open("w") as file:
        for table, rows in facts.tables.items():
            file.writelines(f"{table}: {row}\n" for row in rows)
