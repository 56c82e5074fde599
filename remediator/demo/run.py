"""``remediator demo``: breaks a small shop for real and watches the service mend it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from rich.console import Console

from remediator import app
from remediator.demo.alerts import LABELS, Route, Timing, play_alerts
from remediator.demo.sandbox import CHANNEL, Sandbox, open_sandbox
from remediator.demo.screen import Screen
from remediator.demo.shop import Load, Shop, customers
from remediator.demo.slack import LocalSlack
from remediator.demo.slackview import draw_message
from remediator.demo.story import BAD, GOOD, Fact, ShopLook, ShopStory, Story
from remediator.model import AlertStatus, IncidentOutcome, IncidentState
from remediator.telemetry import configure_logging
from remediator.views import IncidentSummary, IncidentView, Page

WITHIN = 40.0
"""Seconds from the first order after which the demo gives up."""
LOOK_EVERY = 0.2
"""Seconds between two looks at the shop and at the API."""
SLACK_WITHIN = 5.0
"""Seconds that the last edit of the Slack message may take."""
LOG_LINES = 20
"""Lines of the service's log that a failure shows."""
INTERRUPTED = 130
NEXT = """
All of it ran on real parts: PostgreSQL, the webhook, the API, the Slack client.
Where to go next:
  README.md          how it decides, its limits, connecting Alertmanager
  remediator serve   the service itself on 127.0.0.1:8080, in shadow mode
"""


class DemoFailed(Exception):
    """The demo did not end as it should; says what was seen."""


@dataclass
class Gauge:
    """Looks at the shop; orders a second come from its own count over the last five looks."""

    shop: Shop
    counts: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=6))
    """Seconds and orders served."""

    def look(self, now: float) -> ShopLook:
        """Read the shop's figures at the second ``now``."""
        self.counts.append((now, self.shop.served))
        (start, before), (end, after) = self.counts[0], self.counts[-1]
        whole = len(self.counts) == self.counts.maxlen
        return ShopLook(
            active=self.shop.active,
            size=self.shop.size,
            waiting=self.shop.waiting,
            leaked=self.shop.leaked,
            rate=(after - before) / (end - start) if whole else 0,
        )


@dataclass
class Play:
    """One performance: what takes part in it, and what was seen of the incident last."""

    screen: Screen
    box: Sandbox
    service: app.Running
    load: Load = field(default_factory=Load)
    incident: IncidentView | None = None
    look: ShopLook | None = None

    async def perform(self) -> None:
        """Run until the incident is closed and orders flow; ``DemoFailed`` when they do not."""
        token = (self.service.state_dir / "token").read_text().strip()
        route = Route(
            pool_url=f"{self.box.shop.admin_url}/pool",
            webhook_url=f"{self.service.url}/webhooks/alertmanager",
            token=token,
        )
        async with customers(self.box.shop.shop, self.load), asyncio.TaskGroup() as group:
            alerting = group.create_task(
                play_alerts(route, Timing(), self._on_sent), name="play Alertmanager"
            )
            await self._follow()
            alerting.cancel()

    def _on_sent(self, status: AlertStatus, answer: httpx.Response) -> None:
        name = LABELS["alertname"]
        self.screen.fact(
            f"{name} {status}, posted as Alertmanager does:"
            f" {answer.status_code} {answer.reason_phrase}"
        )

    async def _follow(self) -> None:
        """Tell what the API and the shop say until the incident is closed and orders flow."""
        token = (self.service.state_dir / "operator-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        gauge, story, shop_story = Gauge(self.box.shop.shop), Story(), ShopStory()
        async with httpx.AsyncClient(
            base_url=self.service.url, headers=headers, trust_env=False
        ) as http:
            while not self._over():
                if self.screen.elapsed > WITHIN:
                    raise DemoFailed(f"not over within {WITHIN:g} s")
                await asyncio.sleep(LOOK_EVERY)
                self.incident = await _newest(http)
                self._tell(story.news(self.incident) if self.incident else ())
                self.look = gauge.look(self.screen.elapsed)
                self._tell(shop_story.news(self.look))
                self.screen.status = f"{self.look}, {self.look.rate:.0f} orders/s"
        if self.incident is not None and self.incident.outcome is not IncidentOutcome.MITIGATED:
            raise DemoFailed(f"the incident closed as {self.incident.outcome}")
        await self._end()

    def _tell(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            self.screen.fact(fact.what, fact.details, fact.style)

    async def _end(self) -> None:
        shop = self.box.shop.shop
        rate = self.look.rate if self.look else 0
        self.screen.fact(
            f"Orders flow again, {rate:.0f}/s: {shop.served} served, {shop.failed} failed",
            style=GOOD,
        )
        try:
            await self.box.slack.wait_for(_told, SLACK_WITHIN)
        except TimeoutError as error:
            raise DemoFailed("Slack was not told of the end") from error

    def _over(self) -> bool:
        """Whether the incident is closed, and as mitigated only once orders flow again."""
        if self.incident is None or self.incident.state is not IncidentState.CLOSED:
            return False
        return self.incident.outcome is not IncidentOutcome.MITIGATED or self._flowing()

    def _flowing(self) -> bool:
        look = self.look
        return look is not None and not look.exhausted and look.rate >= self.load.rate / 2


def _told(slack: LocalSlack) -> bool:
    return any("mitigated" in line for message in slack.posted for line in message.lines)


async def _newest(http: httpx.AsyncClient) -> IncidentView | None:
    """Read the newest incident, as any operator would."""
    listed = (await http.get("/api/v1/incidents")).raise_for_status()
    page = Page[IncidentSummary].model_validate_json(listed.content)
    if not page.items:
        return None
    answer = await http.get(f"/api/v1/incidents/{page.items[0].id}")
    return IncidentView.model_validate_json(answer.raise_for_status().content)


def run() -> int:
    """Play the demo in the foreground and return the exit code."""
    screen = Screen(Console(file=sys.stdout, highlight=False, emoji=False, markup=False))
    try:
        return asyncio.run(_run(screen))
    except asyncio.CancelledError:
        screen.console.print("Interrupted; everything is stopped and removed.")
        return INTERRUPTED


async def _run(screen: Screen) -> int:
    log = io.StringIO()
    configure_logging("console", "warning", log)
    screen.title("A small shop on a real PostgreSQL will now break; remediator is watching it.")
    with _interruptible(), screen.live():
        async with open_sandbox(lambda step: setattr(screen, "status", step)) as box:
            screen.fact(f"{box.server} runs, with the database of a small shop")
            async with app.running(box.settings) as service:
                screen.fact(f"remediator listens on {service.url}")
                play = Play(screen, box, service)
                problem = await _perform(play)
            posted = box.slack.posted
    if posted:
        screen.title(f"Slack shows one message, edited {posted[-1].edits} times:")
        screen.console.print(draw_message(CHANNEL, posted[-1].blocks))
    if problem is not None or not posted:
        _explain(play, problem or "Slack got no message", log.getvalue())
        return 1
    screen.console.print(NEXT)
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
        screen.fact(f"The shop at the end: {play.look}")
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
