"""``remediator demo``: breaks a small system and watches the service mend it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from rich.console import Console

from remediator.cli.demo import ScenarioName
from remediator.cli.demo.alerts import Route, Timing, play_alerts
from remediator.cli.demo.breaker import BREAKER
from remediator.cli.demo.latency import LATENCY
from remediator.cli.demo.oom import OOM
from remediator.cli.demo.pool import POOL
from remediator.cli.demo.sandbox import CHANNEL, open_site
from remediator.cli.demo.scenario import DemoFailed, Look, Scenario, World
from remediator.cli.demo.screen import Screen
from remediator.cli.demo.slack import LocalSlack
from remediator.cli.demo.slackview import draw_message
from remediator.cli.demo.story import BAD, Fact, Story, Told
from remediator.model.alert import AlertStatus
from remediator.model.incident import IncidentOutcome, IncidentState
from remediator.model.mitigation import MitigationState
from remediator.model.verdict import Assessment
from remediator.model.views import IncidentSummary, IncidentView, Page
from remediator.service import Running, running
from remediator.service.logging import configure_logging

SCENARIOS = {
    ScenarioName.POOL: POOL,
    ScenarioName.LATENCY: LATENCY,
    ScenarioName.BREAKER: BREAKER,
    ScenarioName.OOM: OOM,
}
WITHIN = 40.0
"""Seconds after which the demo gives up."""
LOOK_EVERY = 0.2
"""Seconds between two looks at the world and at the API."""
SLACK_WITHIN = 5.0
"""Seconds that the last edit of the Slack message may take."""
LOG_LINES = 20
"""Lines of the service's log that a failure shows."""
INTERRUPTED = 130
NEXT = """
Where to go next:
  README.md          connecting Alertmanager, the first week, all documentation
  remediator init DIR
                     a configuration for your own system, to start from
  remediator demo --help
                     the other scenarios
"""


@dataclass
class Play:
    """One performance: what takes part in it, and what was seen of the incident last."""

    screen: Screen
    scenario: Scenario
    world: World
    slack: LocalSlack
    service: Running
    incident: IncidentView | None = None
    look: Look | None = None

    async def perform(self) -> None:
        """Run until the incident is closed and all is well; ``DemoFailed`` when it is not."""
        token = (self.service.state_dir / "token").read_text().strip()
        route = Route(self.world.figures_url, f"{self.service.url}/webhooks/alertmanager", token)
        async with self.world.under_load(), asyncio.TaskGroup() as group:
            alerting = group.create_task(
                play_alerts(self.scenario.alert, route, self._on_sent, Timing()),
                name="play Alertmanager",
            )
            await self._follow()
            await self._end()
            alerting.cancel()

    def _on_sent(self, status: AlertStatus, answer: httpx.Response) -> None:
        self.screen.fact(
            f"{self.scenario.alert.name} {status}, posted as Alertmanager does:"
            f" {answer.status_code} {answer.reason_phrase}"
        )

    async def _follow(self) -> None:
        """Tell what the API and the world say until the incident is closed and all is well."""
        token = (self.service.state_dir / "operator-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        story, told = Story(), Told()
        async with httpx.AsyncClient(
            base_url=self.service.url, headers=headers, trust_env=False
        ) as http:
            while not self._over():
                if self.screen.elapsed > WITHIN:
                    raise DemoFailed(f"not over within {WITHIN:g} s")
                await asyncio.sleep(LOOK_EVERY)
                self.incident = await _newest(http)
                self._tell(story.news(self.incident) if self.incident else ())
                self.look = self.world.look(self.screen.elapsed)
                self._tell(self.look.news(told))
                self.screen.status = str(self.look)

    def _tell(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            self.screen.fact(fact.what, fact.details, fact.style)

    async def _end(self) -> None:
        """Hold the end against what the API and the world say happened."""
        if self.incident is None:
            raise DemoFailed("no incident was opened")
        _prove(self.incident, self.scenario.lever)
        self._tell([self.world.ending(self.incident)])
        try:
            await self.slack.wait_for(_told, SLACK_WITHIN)
        except TimeoutError as error:
            raise DemoFailed("Slack was not told of the end") from error

    def _over(self) -> bool:
        """Whether the incident is closed, and as mitigated only once all is well."""
        if self.incident is None or self.incident.state is not IncidentState.CLOSED:
            return False
        well = self.look is not None and self.look.well
        return well or self.incident.outcome is not IncidentOutcome.MITIGATED


def _prove(incident: IncidentView, lever: str) -> None:
    """Raise ``DemoFailed`` unless one change was made, by the lever, and helped.

    A change that the backend refused, because the world had just moved, is none.
    """
    if incident.outcome is not IncidentOutcome.MITIGATED:
        raise DemoFailed(f"the incident closed as {incident.outcome}: {incident.reason}")
    made = [
        (each.kind, each.state, each.verdict)
        for each in incident.mitigations
        if each.state is not MitigationState.NOT_APPLIED
    ]
    if made != [(lever, MitigationState.APPLIED, Assessment.BETTER)]:
        raise DemoFailed(f"exactly one {lever} should have helped, but this was made: {made}")


def _told(slack: LocalSlack) -> bool:
    return any("Mitigated" in line for message in slack.posted for line in message.lines)


async def _newest(http: httpx.AsyncClient) -> IncidentView | None:
    """Read the newest incident, as any operator would."""
    listed = (await http.get("/api/v1/incidents")).raise_for_status()
    page = Page[IncidentSummary].model_validate_json(listed.content)
    if not page.items:
        return None
    answer = await http.get(f"/api/v1/incidents/{page.items[0].id}")
    return IncidentView.model_validate_json(answer.raise_for_status().content)


def run(name: ScenarioName) -> int:
    """Play the scenario of that name in the foreground and return the exit code."""
    return play(SCENARIOS[name])


def play(scenario: Scenario) -> int:
    """Play ``scenario`` in the foreground; 0 only if all of it happened, 1 with what was seen."""
    screen = Screen(Console(file=sys.stdout, highlight=False, emoji=False, markup=False))
    try:
        return asyncio.run(_run(screen, scenario))
    except asyncio.CancelledError:
        screen.console.print("Interrupted; everything is stopped and removed.")
        return INTERRUPTED


async def _run(screen: Screen, scenario: Scenario) -> int:
    log = io.StringIO()
    configure_logging("console", "warning", log)
    screen.title(scenario.title)
    with _interruptible(), screen.live():
        async with open_site(lambda step: setattr(screen, "status", step)) as site:
            async with scenario.open(site) as world, running(world.settings) as service:
                screen.fact(world.runs)
                screen.fact(f"remediator listens on {service.url}")
                performance = Play(screen, scenario, world, site.slack, service)
                problem = await _perform(performance)
            posted = site.slack.posted
    if posted:
        screen.title(f"Slack shows one message, edited {posted[-1].edits} times:")
        screen.console.print(draw_message(CHANNEL, posted[-1].blocks))
        for reply in site.slack.replies(posted[-1])[:1]:
            screen.title("and in its thread:")
            screen.console.print(draw_message(CHANNEL, reply.blocks))
    if problem is not None or not posted:
        _explain(performance, problem or "Slack got no message", log.getvalue())
        return 1
    screen.console.print()
    screen.title(scenario.parts)
    screen.console.print(NEXT.strip("\n"))
    return 0


async def _perform(play: Play) -> str | None:
    """Perform and return what went wrong, if anything."""
    try:
        await play.perform()
    except (DemoFailed, httpx.HTTPError, ExceptionGroup) as error:
        return "; ".join(f"{cause}" for cause in _causes(error))
    return None


def _causes(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    else:
        yield error


def _explain(play: Play, problem: str, log: str) -> None:
    """Print what was seen when the demo did not end as it should."""
    screen = play.screen
    screen.fact(f"The demo failed: {problem}", style=BAD)
    if play.look is not None:
        screen.fact(f"At the end: {play.look}")
    if log:
        screen.fact("Warnings in the log:", log.splitlines()[-LOG_LINES:])
    if play.incident is None:
        screen.fact("No incident was opened.")
        return
    steps = (
        f"{event.at:%H:%M:%S} {event.step} {event.event}: {event.reason}"
        for event in play.incident.timeline
    )
    screen.fact(f"Timeline of {play.incident.id} (UTC):", steps)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a cancellation; cleaning up is not interrupted.

    A terminal that was closed (SIGHUP) takes no more output: from then on it goes nowhere.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    asked: list[bool] = []

    def stop() -> None:
        if not asked and task is not None:
            asked.append(True)
            task.cancel()

    def hang_up() -> None:
        _say_no_more()
        stop()

    caught = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: hang_up}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        del caught[signal.SIGHUP]
    for number, handler in caught.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def _say_no_more() -> None:
    """Let what is still printed go nowhere: writing to a closed terminal fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
