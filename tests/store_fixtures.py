"""The store on both databases, with a frozen clock and a small world to act upon."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from remediator.intake.alertmanager import parse
from remediator.model.alert import Alert, Delivery, Source
from remediator.model.base import DeliveryId, IncidentId, new_id
from remediator.model.catalog import Catalogue, EnabledPlaybook, Service
from remediator.model.duration import Duration
from remediator.model.finding import Finding, FindingStatus, Sense, SenseState
from remediator.model.kinds import KINDS, Kind
from remediator.model.limits import Bound, Limits
from remediator.model.lookback import Allowance, Safeguards, Spread
from remediator.model.mitigation import Mitigation, MitigationState, Preparation, Proposal
from remediator.model.target import Mode, Risk, Target
from remediator.model.transition import Claim, Transition
from remediator.model.unmatched import RecordBound
from remediator.model.verdict import FINAL, Assessment, Sample, Verification
from remediator.playbook.base import Context, Findings, Parameters, Playbook, alertnames
from remediator.playbook.loader import PlaybookSet
from remediator.remediation.expire import take_back
from remediator.remediation.limits import judge
from remediator.remediation.pipeline import take_step
from remediator.remediation.step import EngineContext, Mitigators, StepContext
from remediator.store import Store, open_store, tables
from remediator.store.audit.chain import Key, Keys
from remediator.testing import FrozenClock, World, WorldMitigator, firing_alert, items
from remediator.triage.correlate import correlate
from remediator.triage.match import Match, match

SEALED = Keys(Key(b"a key that only tests use"))
WIDE = Limits(budget=100, window=timedelta(hours=1), cooldown=timedelta(0), concurrency=100)
WORLDLY = {**KINDS, **dict.fromkeys(("switch_off", "unplug"), Kind(limits=(WIDE,)))}
"""What is declared of every kind, those that the tests' own levers make included."""


class ThingsOn(Parameters):
    """Parameters of the test's playbook."""

    hold: Duration | None = None
    wait: Duration | None = None

    verification: Verification = Verification(
        interval=timedelta(seconds=10),
        hold=timedelta(seconds=30),
        hold_resolved=timedelta(seconds=10),
        deadline=timedelta(seconds=60),
        resolve_within=timedelta(seconds=120),
    )


class SwitchOff(Playbook[ThingsOn]):
    """Switches off what is on."""

    matches = (alertnames("ThingsOn"),)
    targets = {"world": "world"}  # noqa: RUF012 - a constant of the test
    senses = frozenset({"world"})
    levers = frozenset({"switch_off"})
    explains = frozenset({"Dim"})
    limits = WIDE
    parameters_type = ThingsOn

    async def diagnose(self, context: Context) -> Findings:
        eyes: Any = context.ports["world"]
        return await context.gather({"things": eyes.look()})

    def propose(self, context: Context, findings: Findings) -> Proposal:
        mine = f"{context.incident.service}:"
        things = sorted(findings["things"].summary.split())
        on = [thing for thing in things if ":" not in thing or thing.startswith(mine)]
        if findings["things"].status is not FindingStatus.PROBLEM:
            reason = f"nothing is on at {context.now:%H:%M:%S}"
            return Proposal(reason=reason, wait=self.parameters.wait)
        mitigation = Mitigation(
            kind="switch_off",
            target=context.targets["world"],
            reason=f"{len(on)} things are on",
            items=items(*on),
            risk=Risk.LOW,
            hold=self.parameters.hold,
        )
        return Proposal(mitigations=(mitigation,), reason="things are on")

    async def verify(self, context: Context, mitigation: Mitigation) -> Sample:
        eyes: Any = context.ports["world"]
        said, data = "as the test says", {FINAL: True} if eyes.final else {}
        return Sample(at=context.now, assessment=eyes.assessment, evidence=said, data=data)


class Dim(SwitchOff):
    """A symptom of what is on."""

    matches = (alertnames("Dim"),)
    explains = frozenset()


@dataclass
class Eyes:
    """Reads the world, as well as the test lets it."""

    world: World
    assessment: Assessment = Assessment.BETTER
    impaired: str = ""
    final: bool = False
    """Whether no later look can say otherwise."""

    async def probe(self) -> Sense:
        state = SenseState.IMPAIRED if self.impaired else SenseState.OK
        return Sense(name="world", state=state, reason=self.impaired)

    async def look(self) -> Finding:
        self.world.check()
        status = FindingStatus.PROBLEM if self.world.things else FindingStatus.FINE
        return Finding(name="things", status=status, summary=" ".join(sorted(self.world.things)))


@dataclass
class Bench:
    """One process of the service without its loops: a test takes the steps itself."""

    store: Store
    around: EngineContext
    clock: FrozenClock
    world: World
    eyes: Eyes

    async def receive(
        self, *alerts: Alert, source: Source = Source.ALERTMANAGER, **more: Any
    ) -> Delivery:
        """Take a delivery in and triage it."""
        delivery = a_delivery(self.clock, source=source, **more)
        await self.store.inbox.put(delivery, alerts, [])
        await self.triage()
        return delivery

    async def triage(self) -> None:
        found: Any = True
        while found is not None:
            found = await self.store.inbox.triage(
                nothing,
                lambda alert, delivery: self._match(alert, delivery).key(alert),
                lambda batch, snapshot, now: correlate(batch, snapshot, now, self._match),
            )

    def _match(self, alert: Alert, delivery: Delivery) -> Match:
        return match(alert, self.around.catalogue, self.around.playbooks, delivery.playbook)

    async def claim(self) -> list[Claim]:
        return await self.store.queue.claim(100)

    async def step(self) -> list[Transition]:
        """Take one step with everything that is due."""
        results = []
        for claim in await self.claim():
            result = await take_step(self.around, claim)
            await self.store.queue.finish(claim, result)
            results.append(result)
        return results

    async def settle(self, seconds: float = 0) -> None:
        """Take steps until nothing is due, then for ``seconds`` of the clock as well."""
        end = self.clock.now + timedelta(seconds=seconds)
        while True:
            while await self.step():
                pass
            await take_back(self.store, self.around)
            if self.clock.now >= end:
                return
            async with self.store.database.read() as connection:
                dues = [
                    await connection.scalar(
                        select(func.min(table.c.due_at)).where(table.c.due_at.is_not(None))
                    )
                    for table in (tables.incidents, tables.obligations)
                ]
            soon = self.clock.now + timedelta(seconds=1)
            self.clock.now = min(end, max(soon, min((d for d in dues if d), default=end)))

    async def incidents(self) -> list[Any]:
        page = await self.store.records.incidents(limit=200)
        return [await self.store.records.incident(item.id) for item in page.items]

    async def incident(self) -> Any:
        (only,) = await self.incidents()
        return only

    def alert(self, **labels: str) -> Alert:
        """A firing alert of the shop's orders, or what ``labels`` say."""
        name = labels.pop("alertname", "ThingsOn")
        everything = {"system": "shop", "service": "orders"} | labels
        return firing_alert(name, everything, self.clock.now)


async def nothing(_delivery: Delivery) -> tuple[Alert, ...]:
    """Read no alerts of a stored body: those of these tests are at hand."""
    return ()


async def read_again(delivery: Delivery) -> tuple[Alert, ...]:
    """Read the alerts of a stored body, as the service does after a restart."""
    return parse(delivery.body, delivery.received_at).alerts


def resolved(alert: Alert, at: FrozenClock) -> Alert:
    return alert.model_copy(update={"status": "resolved", "ends_at": at.now})


def a_delivery(clock: FrozenClock, **values: Any) -> Delivery:
    body = b"{}"
    given: dict[str, Any] = {
        "id": DeliveryId(new_id("dlv", clock.now)),
        "source": Source.ALERTMANAGER,
        "received_at": clock.now,
        "credential": "test",
        "digest": hashlib.sha256(body).hexdigest(),
        "size": len(body),
        "body": body,
    }
    return Delivery.model_validate(given | values)


def a_service(
    name: str = "orders",
    *,
    mode: Mode = Mode.AUTO,
    limits: Limits = WIDE,
    system_limits: Limits = WIDE,
    parameters: Mapping[str, Any] | None = None,
    target_limits: Limits = WIDE,
) -> Service:
    target = Target(
        system="shop", service=name, role="world", kind="world", name=f"world-of-{name}"
    )
    return Service(
        system="shop",
        name=name,
        match={"system": "shop", "service": name},
        targets={"world": target},
        prometheus=None,
        playbooks={
            playbook: EnabledPlaybook(
                name=playbook, modes=dict.fromkeys(Risk, mode), parameters=dict(parameters or {})
            )
            for playbook in ("SwitchOff", "Dim")
        },
        limits=limits,
        system_limits=system_limits,
        target_limits=target_limits,
    )


def surroundings(
    store: Store,
    services: Sequence[Service],
    world: World,
    clock: FrozenClock,
    *,
    everywhere: Limits = WIDE,
    conditional: bool = True,
    undo: bool = False,
    safeguards: Safeguards = Safeguards(),  # noqa: B008 - frozen
) -> tuple[EngineContext, Eyes]:
    eyes = Eyes(world)
    lever = WorldMitigator(world, conditional=conditional, undo=undo)
    ports: Mapping[str, Any] = {"world": eyes}
    around = EngineContext(
        catalogue=Catalogue(services=tuple(services), limits=everywhere, safeguards=safeguards),
        playbooks=PlaybookSet([SwitchOff, Dim]),
        ports=lambda service: ports,
        levers=Mitigators({("world", f"world-of-{s.name}"): (lever,) for s in services}),
        ledger=store.ledger,
        kinds=WORLDLY,
        monotonic=clock.monotonic,
    )
    return around, eyes


ALL_AT_ONCE = Safeguards(spread=Spread(services=1))


def allowing(scope: str = "global", **limits: Any) -> Allowance:
    """Nothing but one bound, and that wide but for ``limits``."""
    given = WIDE.model_copy(update=limits)
    bounds = (Bound(scope=scope, limits=given),)
    return Allowance(bounds=bounds, safeguards=ALL_AT_ONCE, services=12)


async def reserve(
    bench: Bench, claim: Claim, name: str, bounds: Allowance | None = None
) -> tuple[Any, Any]:
    """Reserve the switching off of ``name``; return the decision and the row, if any."""
    service = bench.around.catalogue.service(claim.incident.system, claim.incident.service)
    assert service is not None
    enabled = service.playbooks["SwitchOff"]
    playbook = bench.around.playbooks.build("SwitchOff", {})
    work = StepContext(bench.around, claim, service, enabled, playbook, 0.0)
    mitigation = Mitigation(
        kind="switch_off", target=service.targets["world"], reason=name, items=items(name)
    )
    entry = work.entry(Preparation(mitigation=mitigation), MitigationState.RESERVED, name)
    using = bounds if bounds is not None else allowing()
    return await bench.store.ledger.reserve(
        claim.incident, entry, using, lambda standing: judge(standing, using, mitigation)
    )


OpenBench = Callable[..., contextlib.AbstractAsyncContextManager[Bench]]


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    dsn: str = request.getfixturevalue("postgres_database")
    return dsn


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def open_bench(store_url: str, clock: FrozenClock) -> OpenBench:
    """Open a process on the test's database; call it again for a second one."""

    @contextlib.asynccontextmanager
    async def opened(
        world: World | None = None,
        services: Iterable[Service] | None = None,
        owner: str = "one",
        keys: Keys | None = SEALED,
        records_by_sender: RecordBound = RecordBound(),  # noqa: B008 - frozen
        **options: Any,
    ) -> AsyncIterator[Bench]:
        world = world or World(things={"lamp", "oven"})
        async with open_store(
            store_url,
            owner=owner,
            changed=lambda: None,
            clock=clock,
            scopes=("global", "shop", "shop/orders"),
            keys=keys,
            records_by_sender=records_by_sender,
        ) as store:
            around, eyes = surroundings(
                store, list(services or [a_service()]), world, clock, **options
            )
            yield Bench(store, around, clock, world, eyes)

    return opened


@pytest.fixture
async def bench(open_bench: OpenBench) -> AsyncIterator[Bench]:
    async with open_bench() as opened:
        yield opened


def of_incident(incident: Any) -> IncidentId:
    return IncidentId(incident.id)
