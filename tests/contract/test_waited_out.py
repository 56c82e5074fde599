"""What passes soon is waited for, and nobody is asked for the same things twice: on both databases."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from remediator.model.alert import Alert
from remediator.model.catalog import EnabledPlaybook
from remediator.model.incident import IncidentOutcome, IncidentState, Phase
from remediator.model.limits import Limits
from remediator.model.mitigation import MitigationState
from remediator.model.target import Mode, Risk
from remediator.playbook.base import alertnames
from remediator.playbook.loader import PlaybookSet
from remediator.remediation.limits import WAITED_OUT
from remediator.remediation.pipeline import take_step
from remediator.remediation.step import PATIENCE
from remediator.testing import World
from tests.store_fixtures import (
    WIDE,
    Bench,
    OpenBench,
    SwitchOff,
    a_delivery,
    a_service,
    resolved,
)

MINUTE = timedelta(minutes=1)


class Again(SwitchOff):
    """Proposes the same as another playbook of the service."""

    matches = (alertnames("Again"),)
    explains = frozenset()


def cooling(cooldown: timedelta) -> Limits:
    return WIDE.model_copy(update={"cooldown": cooldown})


async def changed_before(bench: Bench, ago: timedelta) -> None:
    """Let another incident have changed the target so long ago."""
    alert, began = bench.alert(pod="before"), bench.clock.now
    await bench.receive(alert)
    await bench.settle(45)
    await bench.receive(resolved(alert, bench.clock))
    await bench.settle(1)
    (before,) = await bench.incidents()
    assert before.outcome is IncidentOutcome.MITIGATED
    bench.clock.advance(began + ago - bench.clock.now)
    bench.world.things.add("lamp")


async def latest(bench: Bench) -> Any:
    return (await bench.incidents())[0]


# --- a cooldown that is nearly over -------------------------------------------------------------


async def test_a_short_rest_of_a_cooldown_is_waited_out(open_bench: OpenBench) -> None:
    service = a_service(target_limits=cooling(5 * MINUTE))
    async with open_bench(World(things={"lamp"}), services=[service]) as bench:
        await changed_before(bench, 5 * MINUTE - timedelta(seconds=76))
        await bench.receive(bench.alert(pod="now"))
        await bench.settle(70)
        waiting = await latest(bench)
        assert (waiting.state, bench.world.things) == (IncidentState.OPEN, {"lamp"})
        assert "the cooldown of target/world/world-of-orders is 5m" in waiting.reason
        said = [line.event for line in waiting.timeline]
        assert said.count("waiting: cooldown") == 1
        await bench.settle(10)
        assert (await latest(bench)).mitigations[0].state is MitigationState.APPLIED
        assert bench.world.things == set()


async def test_a_longer_one_is_refused_at_once_so_that_a_human_has_the_time(
    open_bench: OpenBench,
) -> None:
    service = a_service(target_limits=cooling(WAITED_OUT + 2 * MINUTE))
    async with open_bench(World(things={"lamp"}), services=[service]) as bench:
        await changed_before(bench, MINUTE)
        await bench.receive(bench.alert(pod="now"))
        await bench.settle(1)
        denied = await latest(bench)
        assert denied.outcome is IncidentOutcome.DENIED
        assert denied.reason.startswith("cooldown: ")


async def test_what_resolves_while_the_cooldown_is_waited_for_is_not_changed(
    open_bench: OpenBench,
) -> None:
    service = a_service(target_limits=cooling(5 * MINUTE))
    async with open_bench(World(things={"lamp"}), services=[service]) as bench:
        await changed_before(bench, 3 * MINUTE)
        alert = bench.alert(pod="now")
        await bench.receive(alert)
        await bench.settle(30)
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle(300)
        assert (await latest(bench)).outcome is IncidentOutcome.RESOLVED_BY_ITSELF
        assert bench.world.things == {"lamp"}


async def test_nothing_is_waited_for_beyond_the_patience(open_bench: OpenBench) -> None:
    service = a_service(target_limits=cooling(5 * MINUTE))
    async with open_bench(World(things={"lamp"}), services=[service]) as bench:
        await changed_before(bench, MINUTE)
        bench.eyes.impaired = "no data"
        await bench.receive(bench.alert(pod="now"))
        await bench.settle(60)
        cooldown = PATIENCE + 3 * MINUTE  # whose rest would be short enough, but ends too late
        longer = a_service(target_limits=cooling(cooldown))
        await bench.settle((PATIENCE - 3 * MINUTE).total_seconds())
        catalogue = bench.around.catalogue.model_copy(update={"services": (longer,)})
        bench.around = replace(bench.around, catalogue=catalogue)
        bench.eyes.impaired = ""
        await bench.settle(15)
        denied = await latest(bench)
        assert denied.outcome is IncidentOutcome.DENIED
        assert denied.reason.startswith("cooldown: ")


async def test_a_busy_target_is_waited_out_and_changed_afterwards(open_bench: OpenBench) -> None:
    async with both(open_bench, Mode.AUTO) as bench:
        first, second = bench.alert(), bench.alert(alertname="Again")
        await bench.receive(first)
        await bench.settle(1)
        bench.world.things.add("oven")
        await bench.receive(second)
        await bench.settle(5)
        assert (await latest(bench)).state is IncidentState.OPEN
        assert bench.world.things == {"oven"}
        await bench.settle(40)
        assert bench.world.things == set()


# --- the same things ----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def both(open_bench: OpenBench, mode: Mode, **options: Any) -> AsyncIterator[Bench]:
    """A service with two playbooks that propose the same."""
    names = ("SwitchOff", "Again")
    modes = dict.fromkeys(Risk, mode)
    enabled = {name: EnabledPlaybook(name=name, modes=modes) for name in names}
    service = a_service().model_copy(update={"playbooks": enabled})
    async with open_bench(World(things={"lamp"}), services=[service], **options) as bench:
        bench.around = replace(bench.around, playbooks=PlaybookSet([SwitchOff, Again]))
        yield bench


def asked(incidents: list[Any]) -> list[Any]:
    return [i for i in incidents if i.phase is Phase.APPROVAL]


async def test_two_playbooks_never_ask_for_the_same_things_at_once(
    open_bench: OpenBench,
) -> None:
    async with both(open_bench, Mode.APPROVE) as bench:
        await bench.receive(bench.alert(), bench.alert(alertname="Again"))
        await bench.settle(PATIENCE.total_seconds() + 60)
        incidents = await bench.incidents()
        (asking,) = asked(incidents)
        (waiting,) = (i for i in incidents if i is not asking)
        assert waiting.reason.startswith(
            f"{asking.id} already asks for approval to change the same items"
        )
        await bench.store.commands.approve(asking.id, None, "ann")
        await bench.settle(15)
        assert len(bench.world.applied) == 1


async def test_after_a_no_the_other_playbook_may_ask(open_bench: OpenBench) -> None:
    async with both(open_bench, Mode.APPROVE) as bench:
        await bench.receive(bench.alert(), bench.alert(alertname="Again"))
        await bench.settle(20)
        (asking,) = asked(await bench.incidents())
        await bench.store.commands.reject(asking.id, None, "ann", "not this one")
        await bench.settle(40)
        (other,) = asked(await bench.incidents())
        assert other.id != asking.id


async def test_other_things_of_the_same_target_are_asked_for_side_by_side(
    open_bench: OpenBench,
) -> None:
    async with both(open_bench, Mode.APPROVE) as bench:
        await bench.receive(bench.alert())
        await bench.settle(1)
        bench.world.things = {"oven"}
        await bench.receive(bench.alert(alertname="Again"))
        await bench.settle(1)
        assert len(asked(await bench.incidents())) == 2


async def test_two_processes_that_decide_at_once_ask_once(open_bench: OpenBench) -> None:
    async with both(open_bench, Mode.APPROVE) as bench:
        await bench.receive(bench.alert(), bench.alert(alertname="Again"))
        for _ in range(10):
            claims = await bench.claim()
            results = [(claim, await take_step(bench.around, claim)) for claim in claims]
            for claim, result in results:  # both have looked before either has written
                await bench.store.queue.finish(claim, result)
            bench.clock.advance(timedelta(seconds=1))
        assert len(asked(await bench.incidents())) == 1


# --- a replay and its alert ---------------------------------------------------------------------


async def replayed(bench: Bench, alert: Alert, *, dry_run: bool = False) -> None:
    bench.world.things.add("lamp")
    await bench.receive(alert, source=alert.source, replay_of="dlv-1", dry_run=dry_run)


@pytest.mark.parametrize("known", [True, False])
async def test_a_replay_for_real_hears_the_resolve_of_its_alert(
    open_bench: OpenBench, *, known: bool
) -> None:
    service = a_service(mode=Mode.APPROVE)
    async with open_bench(World(things={"lamp"}), services=[service]) as bench:
        alert = bench.alert()
        if known:  # its first incident is over, and it fires still
            await bench.receive(alert)
            await bench.settle(1)
            await bench.store.commands.reject((await bench.incident()).id, None, "ann", "no")
            await bench.settle(1)
        await replayed(bench, alert)
        await bench.settle(1)
        assert (await latest(bench)).phase is Phase.APPROVAL
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle(1)
        replay = await latest(bench)
        assert replay.replay_of == "dlv-1"
        assert replay.outcome is IncidentOutcome.RESOLVED_BY_ITSELF
        assert bench.world.applied == []


async def test_a_replay_does_not_hear_the_resolve_of_another_alert_or_an_old_one(
    open_bench: OpenBench,
) -> None:
    service = a_service(mode=Mode.APPROVE)
    async with open_bench(World(things={"lamp"}), services=[service]) as bench:
        alert, other = bench.alert(), bench.alert(pod="another")
        await bench.receive(alert)
        await bench.settle(1)
        ended = resolved(alert, bench.clock)
        await bench.receive(ended)
        await bench.settle(1)
        await replayed(bench, alert)
        await bench.settle(1)
        await bench.receive(resolved(other, bench.clock))
        await bench.receive(ended)  # as Alertmanager repeats it
        await bench.settle(1)
        assert (await latest(bench)).phase is Phase.APPROVAL


async def test_a_replay_and_its_resolve_in_one_batch_are_told_in_their_order(
    open_bench: OpenBench,
) -> None:
    async with open_bench(World(things={"lamp"}), services=[a_service()]) as bench:
        alert = bench.alert()
        inbox = bench.store.inbox
        again = a_delivery(bench.clock, source=alert.source, replay_of="dlv-1")
        await inbox.put(again, [alert], [])
        bench.clock.advance(timedelta(seconds=1))
        await inbox.put(a_delivery(bench.clock), [resolved(alert, bench.clock)], [])
        await bench.triage()
        await bench.settle(1)
        assert (await bench.incident()).outcome is IncidentOutcome.RESOLVED_BY_ITSELF
