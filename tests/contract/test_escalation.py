"""Who is called, when, and what stops it: on both databases, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from remediator.model.alert import Alert, SenderEvent
from remediator.model.catalog import Escalation, Level, Service
from remediator.model.errors import OwnershipLost, PermanentError, Refused, TemporaryError
from remediator.model.incident import IncidentOutcome
from remediator.model.maintenance import MaintenanceOrder
from remediator.model.notification import Summons, Word
from remediator.model.target import Mode
from remediator.notify.acknowledge import hear
from remediator.notify.escalation import LOOK_AGAIN
from remediator.notify.paging import ATTEMPTS, Escalating
from remediator.remediation.decide import DELIVERED_WITHIN
from remediator.store import tables as t
from remediator.testing import World
from tests.store_fixtures import Bench, OpenBench, a_service, resolved

LEVELS = (
    Level(after=timedelta(0), notify=("slack",)),
    Level(after=timedelta(minutes=10), notify=("pagerduty", "mail")),
    Level(after=timedelta(minutes=30), notify=("mail",)),
)
PLAN = Escalation(levels=LEVELS, acknowledged_for=timedelta(minutes=30))


@dataclass
class Heard:
    """A channel that remembers what it was told, and fails as the test says."""

    said: list[Summons] = field(default_factory=list)
    trouble: Exception | None = None

    async def tell(self, summons: Summons) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.said.append(summons)

    @property
    def words(self) -> list[str]:
        return [f"level {s.subject}" if s.word is Word.LEVEL else s.word for s in self.said]


@dataclass
class Calling:
    """The loops of one process, a turn at a time, and the channels that they tell."""

    bench: Bench
    slack: Heard = field(default_factory=Heard)
    pagerduty: Heard = field(default_factory=Heard)
    mail: Heard = field(default_factory=Heard)
    counted: list[tuple[str, str]] = field(default_factory=list)
    channels: tuple[str, ...] = ("slack", "pagerduty", "mail")

    def __post_init__(self) -> None:
        self.escalating = Escalating(
            self.bench.store,
            self.bench.around.catalogue,
            self.bench.around.frame,
            {name: getattr(self, name) for name in self.channels},
            lambda channel, result: self.counted.append((channel, result)),
        )

    async def turn(self) -> None:
        """Let every loop go until nothing is to be decided."""
        decide, *sends = self.escalating.loops
        while await decide():
            pass
        for send in sends:
            await send()

    async def after(self, minutes: float) -> None:
        """Let time pass, in steps about as small as the service's own."""
        end = self.bench.clock.now + timedelta(minutes=minutes)
        while self.bench.clock.now < end:
            self.bench.clock.advance(min(timedelta(minutes=1), end - self.bench.clock.now))
            await self.turn()

    async def escalate(self) -> Alert:
        """Let an incident end in a way that needs a human; return its alert."""
        alert = self.bench.alert()
        await self.bench.receive(alert)
        await self.bench.settle()
        assert (await self.bench.incident()).outcome is IncidentOutcome.ESCALATED
        await self.turn()
        return alert

    @property
    def said(self) -> dict[str, list[str]]:
        return {
            "slack": self.slack.words,
            "pagerduty": self.pagerduty.words,
            "mail": self.mail.words,
        }

    async def journal(self) -> list[str]:
        newest = (await self.bench.incidents())[-1]
        return [f"{e.event}: {e.reason}" for e in newest.timeline if e.step == "escalation"]


def served(mode: Mode = Mode.AUTO, plan: Escalation = PLAN) -> Service:
    return a_service(mode=mode).model_copy(update={"escalation": plan})


@pytest.fixture
async def calling(open_bench: OpenBench) -> AsyncIterator[Calling]:
    """A service whose playbook finds nothing to do, so that a human is needed at once."""
    async with open_bench(World(), [served()]) as bench:
        yield Calling(bench)


# --- nobody answers ---------------------------------------------------------------------------


async def test_level_after_level_is_told_at_its_time(calling: Calling) -> None:
    await calling.escalate()
    assert calling.said == {"slack": ["level 0"], "pagerduty": [], "mail": []}
    await calling.after(9)
    assert calling.said == {"slack": ["level 0"], "pagerduty": [], "mail": []}
    await calling.after(1)
    assert calling.said == {"slack": ["level 0"], "pagerduty": ["level 1"], "mail": ["level 1"]}
    await calling.after(120)
    assert calling.said == {
        "slack": ["level 0"],
        "pagerduty": ["level 1"],
        "mail": ["level 1", "level 2"],
    }


async def test_a_call_says_what_is_known_and_what_to_do(calling: Calling) -> None:
    await calling.escalate()
    (call,) = calling.slack.said
    assert call.headline.startswith(
        "Escalation level 1 of 3. ▲ Escalated, a human must take over: shop/orders"
    )
    assert "nothing is on" in call.text
    assert f"`remediator acknowledge {call.report.incident.id}`" in call.text


async def test_levels_that_came_due_while_the_service_was_down_are_told_when_it_is_back(
    calling: Calling,
) -> None:
    await calling.bench.receive(calling.bench.alert())
    await calling.bench.settle()
    calling.bench.clock.advance(timedelta(minutes=11))
    await calling.turn()
    assert calling.said == {"slack": ["level 0"], "pagerduty": ["level 1"], "mail": ["level 1"]}


async def test_the_journal_says_who_was_called(calling: Calling) -> None:
    await calling.escalate()
    assert await calling.journal() == [
        "level 1 of 3: nobody has it yet; told: slack",
        "level 1 told to slack: ",
    ]


@pytest.mark.parametrize("mode", [Mode.SHADOW, Mode.OBSERVE])
async def test_nobody_is_called_where_the_mode_changes_nothing(
    open_bench: OpenBench, mode: Mode
) -> None:
    async with open_bench(World(unavailable="it is gone"), [served(mode)]) as bench:
        calling = Calling(bench)
        await bench.receive(bench.alert())
        await bench.settle(3600)
        await calling.after(60)
        assert calling.said == {"slack": [], "pagerduty": [], "mail": []}


async def test_nobody_is_called_for_a_dry_run(calling: Calling) -> None:
    await calling.bench.receive(calling.bench.alert(), replay_of="manual", dry_run=True)
    await calling.bench.settle()
    await calling.after(60)
    assert calling.said == {"slack": [], "pagerduty": [], "mail": []}


async def test_nobody_is_called_without_levels(open_bench: OpenBench) -> None:
    async with open_bench(World(), [served(plan=Escalation())]) as bench:
        calling = Calling(bench)
        await calling.escalate()
        await calling.after(60)
        assert calling.said == {"slack": [], "pagerduty": [], "mail": []}
        assert await calling.journal() == []


async def test_nobody_is_called_during_maintenance(calling: Calling) -> None:
    bench = calling.bench
    await bench.receive(bench.alert())
    await bench.settle()
    order = MaintenanceOrder(scope="global", lasts=timedelta(minutes=20))
    await bench.store.commands.start_maintenance(order, "alice")
    await calling.after(19)
    assert calling.said == {"slack": [], "pagerduty": [], "mail": []}
    await calling.after(2)
    assert calling.said == {"slack": ["level 0"], "pagerduty": ["level 1"], "mail": ["level 1"]}


# --- what stops it ----------------------------------------------------------------------------


async def test_an_acknowledgement_stops_the_levels_and_they_go_on_when_it_is_over(
    calling: Calling,
) -> None:
    await calling.escalate()
    await calling.after(5)
    incident = (await calling.bench.incident()).id
    await calling.bench.store.commands.acknowledge(incident, "alice")
    await calling.after(29)
    assert calling.said == {"slack": ["level 0"], "pagerduty": [], "mail": []}
    await calling.after(2)
    assert calling.said == {"slack": ["level 0"], "pagerduty": ["level 1"], "mail": ["level 1"]}
    over = "acknowledgement over: alice has had it for 30m, and the alert still fires"
    assert over in await calling.journal()
    await calling.after(21)
    assert calling.mail.words == ["level 1", "level 2"], "20 minutes after level 1, as planned"


async def test_the_last_level_is_told_again_when_an_acknowledgement_is_over(
    calling: Calling,
) -> None:
    await calling.escalate()
    await calling.after(40)
    incident = (await calling.bench.incident()).id
    await calling.bench.store.commands.acknowledge(incident, "alice")
    await calling.after(120)
    assert calling.mail.words == ["level 1", "level 2", "level 3"]
    assert "level 3 once more: nobody has it yet; told: mail" in await calling.journal()


async def test_pagerduty_hears_of_an_acknowledgement_made_elsewhere(calling: Calling) -> None:
    await calling.escalate()
    await calling.after(10)
    incident = (await calling.bench.incident()).id
    await calling.bench.store.commands.acknowledge(incident, "alice")
    await calling.after(5)
    assert calling.pagerduty.words == ["level 1", "acknowledged"]


async def test_pagerduty_does_not_hear_its_own_acknowledgement_again(calling: Calling) -> None:
    await calling.escalate()
    await calling.after(10)
    incident = (await calling.bench.incident()).id
    commands = calling.bench.store.commands
    assert (await commands.acknowledge(incident, "bob", from_pagerduty=True)).anew
    assert not (await commands.acknowledge(incident, "bob", from_pagerduty=True)).anew
    await calling.after(30)
    assert calling.pagerduty.words == ["level 1"]


@pytest.mark.parametrize("kind", ["acknowledged", "resolved"])
async def test_what_a_person_does_in_pagerduty_stops_the_levels(
    calling: Calling, kind: str
) -> None:
    await calling.escalate()
    await calling.after(10)
    incident = (await calling.bench.incident()).id
    person = {"id": "PU1", "type": "user_reference", "name": "Ann"}
    told = SenderEvent(
        id="e1",
        kind=kind,
        key=f"remediator/{incident}",
        agent=person | {"type": "inbound_integration_reference"},
        at=calling.bench.clock.now,
    )
    await hear(calling.bench.store.commands, told)
    assert "acknowledged" not in [e.event for e in (await calling.bench.incident()).timeline]
    by_ann = told.model_copy(update={"agent": person})
    await hear(calling.bench.store.commands, by_ann)
    await hear(calling.bench.store.commands, by_ann.model_copy(update={"key": "remediator/x"}))
    await calling.after(25)
    assert calling.said == {"slack": ["level 0"], "pagerduty": ["level 1"], "mail": ["level 1"]}
    taken = [e for e in (await calling.bench.incident()).timeline if e.event == "acknowledged"]
    assert [line.reason for line in taken] == ["pagerduty:Ann"]


async def test_the_end_of_the_alert_ends_it_and_pagerduty_hears_of_it(calling: Calling) -> None:
    alert = await calling.escalate()
    await calling.after(10)
    await calling.bench.receive(resolved(alert, calling.bench.clock))
    await calling.after(60)
    assert calling.said == {
        "slack": ["level 0"],
        "pagerduty": ["level 1", "resolved"],
        "mail": ["level 1"],
    }
    assert "escalation ended: the alert resolved" in await calling.journal()


async def test_levels_that_were_over_before_the_incident_ended_begin_anew_with_its_end(
    open_bench: OpenBench,
) -> None:
    async with open_bench(services=[served(Mode.APPROVE)]) as bench:
        bench.around = replace(bench.around, confirms=True)
        calling = Calling(bench)
        alert = bench.alert(severity="critical")
        await bench.receive(alert)
        await bench.settle()
        bench.clock.advance(DELIVERED_WITHIN)  # nobody delivers the request
        await bench.settle()
        await calling.turn()
        assert calling.said["slack"] == ["level 0"]
        await bench.receive(resolved(alert, bench.clock))
        bench.clock.advance(LOOK_AGAIN)
        await calling.turn()
        assert "escalation ended: the alert resolved" in await calling.journal()
        await bench.receive(alert.model_copy(update={"starts_at": bench.clock.now}))
        bench.clock.advance(timedelta(minutes=10))
        await bench.settle()
        assert (await bench.incident()).outcome is IncidentOutcome.ESCALATED
        await calling.turn()
        assert calling.said["slack"] == ["level 0", "level 0"]
        await calling.after(10)
        assert calling.said["pagerduty"] == ["level 1"]


async def test_an_incident_that_has_the_alert_now_ends_the_escalation_of_the_old_one(
    calling: Calling,
) -> None:
    alert = await calling.escalate()
    calling.bench.clock.advance(timedelta(minutes=5))
    calling.bench.world.things = {"lamp"}
    await calling.bench.receive(alert.model_copy(update={"starts_at": calling.bench.clock.now}))
    await calling.after(60)
    newer, _ = await calling.bench.incidents()
    assert calling.said == {"slack": ["level 0"], "pagerduty": [], "mail": []}
    ended = f"escalation ended: the alert is with the later incident {newer.id}"
    assert ended in await calling.journal()


async def test_who_turns_a_plan_down_has_the_incident(open_bench: OpenBench) -> None:
    async with open_bench(World(things={"lamp"}), [served(Mode.APPROVE)]) as bench:
        calling = Calling(bench)
        await bench.receive(bench.alert())
        await bench.settle()
        incident = await bench.incident()
        await bench.store.commands.reject(incident.id, None, "alice", "not now")
        await calling.after(29)
        assert calling.said == {"slack": [], "pagerduty": [], "mail": []}
        await calling.after(2)
        assert calling.slack.words == ["level 0"], "the alert still fires"


async def test_a_plan_that_nobody_approves_begins_the_levels(open_bench: OpenBench) -> None:
    async with open_bench(World(things={"lamp"}), [served(Mode.APPROVE)]) as bench:
        calling = Calling(bench)
        await bench.receive(bench.alert())
        await bench.settle()
        await calling.turn()
        assert calling.said == {"slack": [], "pagerduty": [], "mail": []}
        await bench.settle(3700)
        await calling.turn()
        assert "level 0" in calling.slack.words


async def test_an_incident_that_was_taken_while_it_was_open_is_not_escalated_for_a_time(
    open_bench: OpenBench,
) -> None:
    async with open_bench(World(things={"lamp"}), [served(Mode.APPROVE)]) as bench:
        calling = Calling(bench)
        await bench.receive(bench.alert(severity="critical"))
        await bench.settle()
        incident = await bench.incident()
        await bench.store.commands.acknowledge(incident.id, "slack:U1")
        await bench.settle(360)
        assert (await bench.incident()).outcome is IncidentOutcome.ESCALATED
        await calling.after(20)
        assert calling.said == {"slack": [], "pagerduty": [], "mail": []}


async def test_what_waits_for_nobody_cannot_be_acknowledged(calling: Calling) -> None:
    commands = calling.bench.store.commands
    with pytest.raises(Refused, match="not found"):
        await commands.acknowledge("inc-000000000000-0000000000", "alice")
    alert = await calling.escalate()
    await calling.bench.receive(resolved(alert, calling.bench.clock))
    await calling.after(1)
    incident = (await calling.bench.incident()).id
    with pytest.raises(Refused, match="needs nobody") as caught:
        await commands.acknowledge(incident, "alice")
    assert caught.value.status == 409


async def test_an_incident_that_cannot_be_read_calls_humans_and_holds_up_no_other(
    open_bench: OpenBench,
) -> None:
    cart = a_service("cart").model_copy(update={"escalation": PLAN})
    async with open_bench(World(), [served(), cart]) as bench:
        calling = Calling(bench)
        await bench.receive(bench.alert(), bench.alert(service="cart"))
        await bench.settle()

        async def spoil(connection: Any) -> None:
            later = t.incidents.update().where(t.incidents.c.service == "orders")
            await connection.execute(later.values(outcome="of a later version"))

        await bench.store.database.write(spoil)
        with capture_logs() as logs:
            await calling.after(2)
        told = sorted(call.report.incident.service or "" for call in calling.slack.said)
        assert told == ["cart", "orders"]
        texts = [call.text for call in calling.slack.said]
        assert sum("cannot be read by this version" in text for text in texts) == 1
        assert {line["event"] for line in logs if line["log_level"] == "error"} == {
            "incident_unreadable"
        }


# --- what stays in production -----------------------------------------------------------------


@asynccontextmanager
async def holding(open_bench: OpenBench, hold: str = "10m") -> AsyncIterator[Calling]:
    """A service whose temporary change cannot be taken back once its incident is mitigated."""
    service = a_service(parameters={"hold": hold}).model_copy(update={"escalation": PLAN})
    async with open_bench(World(things={"lamp"}), [service], undo=True) as bench:
        alert = bench.alert()
        await bench.receive(alert)
        await bench.settle(45)
        await bench.receive(resolved(alert, bench.clock))
        await bench.settle()
        assert (await bench.incident()).outcome is IncidentOutcome.MITIGATED
        bench.world.refuse = "somebody changed it since"
        yield Calling(bench)


async def test_a_temporary_change_that_stays_calls_humans_until_one_has_it(
    open_bench: OpenBench,
) -> None:
    async with holding(open_bench) as calling:
        await calling.bench.settle(1300)
        incident = await calling.bench.incident()
        assert incident.outcome is IncidentOutcome.ESCALATED
        await calling.turn()
        assert calling.slack.words == ["level 0"]
        assert "is not taken back: " in calling.slack.said[0].text
        await calling.after(35)
        assert calling.said == {
            "slack": ["level 0"],
            "pagerduty": ["level 1"],
            "mail": ["level 1", "level 2"],
        }
        await calling.bench.store.commands.acknowledge(incident.id, "alice")
        await calling.after(60)
        assert calling.mail.words == ["level 1", "level 2"], "no alert fires: she has it for good"
        assert calling.pagerduty.words == ["level 1", "acknowledged"]
        assert "escalation ended: alice has it, and no alert fires" in await calling.journal()


async def test_a_change_that_stays_calls_humans_though_its_playbook_is_silent_since(
    open_bench: OpenBench,
) -> None:
    async with holding(open_bench) as calling:
        await calling.bench.settle(1300)
        quiet = replace(
            calling.bench.around,
            catalogue=calling.bench.around.catalogue.model_copy(
                update={"services": (served(Mode.SHADOW),)}
            ),
        )
        calling.bench.around = quiet
        await Calling(calling.bench, slack=calling.slack).turn()
        assert calling.slack.words == ["level 0"]


async def test_a_change_that_stays_calls_anew_after_an_escalation_that_is_over(
    open_bench: OpenBench,
) -> None:
    async with holding(open_bench) as calling:
        (first, second) = (await calling.bench.incident()).id, "somebody changed it again"

        async def again(connection: Any) -> None:  # a second temporary change of the incident
            row = {"mitigation_id": owed.mitigation_id, "due_at": calling.bench.clock.now}
            await connection.execute(t.obligations.insert().values(**row, epoch=0, attempts=0))

        calling.bench.clock.advance(timedelta(minutes=10))
        (owed,) = await calling.bench.store.obligations.claim(1)
        await calling.bench.store.obligations.settled(owed, taken_back=False, reason="changed")
        await calling.after(1)
        await calling.bench.store.commands.acknowledge(first, "alice")
        await calling.after(1)
        assert calling.slack.words == ["level 0"]
        await calling.bench.store.database.write(again)
        (owed,) = await calling.bench.store.obligations.claim(1)
        await calling.bench.store.obligations.settled(owed, taken_back=False, reason=second)
        await calling.turn()
        assert calling.slack.words == ["level 0", "level 0"]
        assert second in calling.slack.said[1].text


async def test_a_change_that_stays_is_theirs_for_a_time_who_had_the_incident_just_before(
    open_bench: OpenBench,
) -> None:
    service = a_service(parameters={"hold": "1m"}).model_copy(update={"escalation": PLAN})
    async with open_bench(World(things={"lamp"}), [service], undo=True) as bench:
        calling, alert = Calling(bench), bench.alert()
        await bench.receive(alert)
        await bench.settle(50)
        await bench.store.commands.acknowledge((await bench.incident()).id, "alice")
        bench.clock.advance(timedelta(seconds=20))
        (owed,) = await bench.store.obligations.claim(1)
        await bench.store.obligations.settled(owed, taken_back=False, reason="not ours any more")
        await bench.receive(resolved(alert, bench.clock))
        await calling.after(29)
        assert calling.slack.words == []
        await calling.after(2)
        assert calling.slack.words == ["level 0"]
        over = "alice has had it for 30m, and a temporary change stays in production"
        assert f"acknowledgement over: {over}" in await calling.journal()


async def test_a_temporary_change_that_cannot_be_read_calls_humans(
    open_bench: OpenBench,
) -> None:
    async with holding(open_bench) as calling:

        async def spoil(connection: Any) -> None:
            await connection.execute(t.mitigations.update().values(before=["of a later version"]))

        await calling.bench.store.database.write(spoil)
        await calling.bench.settle(1300)
        await calling.after(1)
        assert calling.slack.words == ["level 0"]


# --- channels that fail -----------------------------------------------------------------------


async def test_a_channel_that_fails_holds_up_neither_the_others_nor_the_next_level(
    calling: Calling,
) -> None:
    calling.slack.trouble = calling.pagerduty.trouble = TemporaryError("not now")
    await calling.escalate()
    await calling.after(10)
    assert calling.said == {"slack": [], "pagerduty": [], "mail": ["level 1"]}
    calling.pagerduty.trouble = None
    await calling.after(5)
    assert calling.pagerduty.words == ["level 1"]


@pytest.mark.parametrize("asked", [None, 1, 86400])
async def test_a_level_is_told_when_its_channel_is_back_however_long_it_was_away(
    calling: Calling, asked: float | None
) -> None:
    calling.slack.trouble = TemporaryError("not now", retry_after=asked)
    await calling.escalate()
    await calling.after(120)
    calling.slack.trouble = None
    await calling.after(5)
    assert calling.slack.words == ["level 0"]


async def test_a_pause_that_a_channel_asks_for_is_a_second_at_least(calling: Calling) -> None:
    calling.slack.trouble = TemporaryError("not now", retry_after=0)
    await calling.escalate()
    await calling.turn()
    assert calling.counted == [("slack", "delayed")]


async def test_a_level_that_is_not_taken_for_long_is_said_so(calling: Calling) -> None:
    calling.slack.trouble = TemporaryError("not now")
    await calling.escalate()
    await calling.after(60)
    assert calling.counted.count(("slack", "failed")) == 1
    said = f"level 1 not told to slack: not now; tried {ATTEMPTS} times, and tried on"
    assert [line for line in await calling.journal() if "not told" in line] == [said]


async def test_a_refused_level_is_tried_slowly_until_it_is_taken(calling: Calling) -> None:
    calling.slack.trouble = PermanentError("no such channel")
    with capture_logs() as logs:
        await calling.escalate()
        await calling.after(60)
    errors = [line["reason"] for line in logs if line["log_level"] == "error"]
    assert errors == ["no such channel"] * 13
    assert calling.counted.count(("slack", "failed")) == 13
    said = "level 1 not told to slack: no such channel"
    assert [line for line in await calling.journal() if "not told" in line] == [said]
    calling.slack.trouble = None
    await calling.after(5)
    assert calling.slack.words == ["level 0"]


async def test_a_refused_level_is_not_tried_any_more_once_somebody_has_it(
    calling: Calling,
) -> None:
    calling.slack.trouble = PermanentError("no such channel")
    await calling.escalate()
    incident = (await calling.bench.incident()).id
    await calling.bench.store.commands.acknowledge(incident, "alice")
    calling.slack.trouble = None
    await calling.after(29)
    assert calling.slack.words == []


async def test_a_level_for_a_channel_that_is_configured_no_more_is_said_so_until_it_is_back(
    calling: Calling,
) -> None:
    calling.slack.trouble = TemporaryError("not now")
    await calling.escalate()
    without = Calling(calling.bench, channels=("pagerduty", "mail"))
    with capture_logs() as logs:
        await without.after(5)
    reason = "there is no channel slack in the configuration"
    errors = [line["reason"] for line in logs if line["log_level"] == "error"]
    assert 3 <= len(errors) <= 10
    assert set(errors) == {reason}
    told = [line for line in await calling.journal() if "not told" in line]
    assert told == [f"level 1 not told to slack: {reason}"]
    calling.slack.trouble = None
    await calling.after(5)
    assert calling.slack.words == ["level 0"]


async def test_a_level_is_told_to_whom_it_names_when_its_channel_was_renamed(
    calling: Calling,
) -> None:
    calling.slack.trouble = TemporaryError("not now")
    await calling.escalate()
    bench = calling.bench
    plan = Escalation(levels=(Level(after=timedelta(0), notify=("mail",)),))
    services = (served(plan=plan),)
    catalogue = bench.around.catalogue.model_copy(update={"services": services})
    bench.around = replace(bench.around, catalogue=catalogue)
    renamed = Calling(bench, channels=("mail",))
    await renamed.after(30)
    assert renamed.mail.words == ["level 0"]


async def test_what_calls_nobody_is_given_up_when_its_channel_is_configured_no_more(
    calling: Calling,
) -> None:
    await calling.escalate()
    await calling.after(10)
    calling.pagerduty.trouble = TemporaryError("not now")
    incident = (await calling.bench.incident()).id
    await calling.bench.store.commands.acknowledge(incident, "alice")
    await calling.turn()
    await Calling(calling.bench, channels=("slack", "mail")).after(29)
    said = "acknowledged not told to pagerduty: there is no channel pagerduty"
    assert any(line.startswith(said) for line in await calling.journal())


async def test_what_calls_nobody_is_not_given_up_within_seconds_for_a_short_pause(
    calling: Calling,
) -> None:
    await calling.escalate()
    await calling.after(10)
    calling.pagerduty.trouble = TemporaryError("not now", retry_after=1)
    incident = (await calling.bench.incident()).id
    await calling.bench.store.commands.acknowledge(incident, "alice")
    for _ in range(2 * ATTEMPTS):
        calling.bench.clock.advance(timedelta(seconds=1))
        await calling.turn()
    calling.pagerduty.trouble = None
    await calling.after(10)
    assert calling.pagerduty.words == ["level 1", "acknowledged"]


@pytest.mark.parametrize(
    ("trouble", "tries"), [(TemporaryError("not now"), ATTEMPTS), (PermanentError("no"), 1)]
)
async def test_what_calls_nobody_is_given_up(
    calling: Calling, trouble: Exception, tries: int
) -> None:
    await calling.escalate()
    await calling.after(10)
    calling.pagerduty.trouble = trouble
    incident = (await calling.bench.incident()).id
    await calling.bench.store.commands.acknowledge(incident, "alice")
    await calling.after(29)
    assert sum(channel == "pagerduty" for channel, _ in calling.counted) == 1 + tries
    assert calling.counted[-1] == ("pagerduty", "failed")
    assert any("acknowledged not told to pagerduty" in line for line in await calling.journal())


async def test_a_level_that_waits_is_not_told_any_more_once_somebody_has_it(
    calling: Calling,
) -> None:
    calling.slack.trouble = TemporaryError("not now")
    await calling.escalate()
    incident = (await calling.bench.incident()).id
    await calling.bench.store.commands.acknowledge(incident, "alice")
    calling.slack.trouble = None
    await calling.after(10)
    assert calling.slack.words == []


# --- crashes and replicas ---------------------------------------------------------------------


async def test_a_message_whose_sender_died_is_sent_by_another_one(calling: Calling) -> None:
    bench = calling.bench
    await bench.receive(bench.alert())
    await bench.settle()
    assert await calling.escalating.decide()
    dead = await bench.store.escalations.claim("slack")
    assert dead is not None
    await calling.turn()
    assert calling.slack.words == [], "it is being sent"
    bench.clock.advance(timedelta(seconds=61))
    await calling.turn()
    assert calling.slack.words == ["level 0"]
    with pytest.raises(OwnershipLost):
        await bench.store.escalations.told(dead)
    await calling.after(5)
    assert calling.slack.words == ["level 0"]


async def test_two_replicas_tell_each_level_once(open_bench: OpenBench, store_url: str) -> None:
    if store_url.startswith("sqlite"):
        pytest.skip("SQLite serves one process")
    async with open_bench(World(), [served()]) as bench, open_bench(World(), [served()]) as other:
        first, second = Calling(bench), Calling(other)
        await first.bench.receive(first.bench.alert())
        await first.bench.settle()
        for _ in range(70):
            await asyncio.gather(first.turn(), second.turn())
            bench.clock.advance(timedelta(seconds=30))
        assert sorted(first.slack.words + second.slack.words) == ["level 0"]
        assert sorted(first.pagerduty.words + second.pagerduty.words) == ["level 1"]
        assert sorted(first.mail.words + second.mail.words) == ["level 1", "level 2"]


async def test_the_row_is_written_with_the_end_of_the_incident_or_not_at_all(
    calling: Calling,
) -> None:
    await calling.bench.receive(calling.bench.alert())
    database = calling.bench.store.database

    async def standing() -> tuple[Any, ...]:
        async with database.read() as connection:
            closed = select(t.incidents.c.closed_at)
            since = select(t.escalations.c.since)
            return (await connection.scalar(closed), await connection.scalar(since))

    assert await standing() == (None, None)
    await calling.bench.settle()
    closed, since = await standing()
    assert closed == since is not None


async def test_a_message_that_is_asked_for_twice_is_sent_once(calling: Calling) -> None:
    await calling.escalate()
    incident = (await calling.bench.incident()).id

    async def spoil(connection: Any) -> None:
        again = {"level": 0, "due_at": calling.bench.clock.now}
        await connection.execute(t.escalations.update().values(**again))

    await calling.bench.store.database.write(spoil)
    await calling.turn()
    assert calling.slack.words == ["level 0"]
    assert incident in calling.slack.said[0].text
