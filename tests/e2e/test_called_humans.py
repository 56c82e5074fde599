"""The whole service calls humans, and is told that one of them has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.scripted_http import serving
from tests.service_fixtures import Service, pool_alert

PLAYBOOK = '''
"""Finds nothing to do."""

from remediator import Context, Findings, Parameters, Playbook, Proposal, Sample, alertnames


class Helpless(Playbook[Parameters]):
    """Proposes nothing, so that a human is needed."""

    matches = (alertnames("DatabaseConnectionPoolExhausted"),)
    targets = {}
    senses = frozenset()
    levers = frozenset()
    parameters_type = Parameters

    async def diagnose(self, context: Context) -> Findings:
        return await context.gather({})

    def propose(self, context: Context, findings: Findings) -> Proposal:
        return Proposal(reason="nothing can be done here")

    async def verify(self, context: Context, mitigation: object) -> Sample:
        raise NotImplementedError
'''
KEY = "0123456789abcdef0123456789abcdef"
SECRET = "hunter2hunter2"


@dataclass
class Outside:
    """PagerDuty's Events API and a chat, at one address."""

    events: list[dict[str, Any]] = field(default_factory=list)
    chat: list[dict[str, Any]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        heard = self.events if request.path == "/v2/enqueue" else self.chat
        heard.append(await request.json())
        return web.json_response({}, status=202)

    @property
    def actions(self) -> list[str]:
        return [event["event_action"] for event in self.events]


async def until(true: Callable[[], bool], what: str, within: float = 20) -> None:
    try:
        async with asyncio.timeout(within):
            while not true():  # noqa: ASYNC110 - the other process rings no bell here
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"never came true: {what}") from None


@pytest.fixture
async def outside() -> AsyncIterator[tuple[Outside, str]]:
    heard = Outside()
    async with serving(heard.handle) as url:
        yield heard, url


@pytest.fixture
async def service(outside: tuple[Outside, str], tmp_path: Path) -> AsyncIterator[Service]:
    _, url = outside
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "helpless.py").write_text(PLAYBOOK)
    (tmp_path / "chat.url").write_text(f"{url.replace('http://', f'json://bob:{SECRET}@')}/chat\n")
    orders = {"match": {"service": "orders"}, "playbooks": {"Helpless": {"mode": "auto"}}}
    config = {
        "listen": "127.0.0.1:0",
        "log": {"level": "debug"},
        "playbooks": {"folders": ["playbooks"]},
        "pagerduty": {"routing_key_env": "PD_KEY", "events_url": url},
        "channels": {"chat": {"apprise_url_file": "chat.url"}},
        "escalation": {
            "levels": [{"notify": ["pagerduty"]}, {"after": "3s", "notify": ["chat"]}],
            "acknowledged_for": "4s",
        },
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": orders}}},
    }
    service = Service(tmp_path, config, {"PD_KEY": KEY})
    await service.start()
    try:
        yield service
    finally:
        if service.process is not None and service.process.returncode is None:
            await service.kill()


async def test_humans_are_called_until_one_has_it_and_again_when_that_is_over(
    service: Service, outside: tuple[Outside, str]
) -> None:
    heard, _ = outside
    await service.post(pool_alert())
    incident = await service.incident(outcome="escalated")
    await until(lambda: heard.actions == ["trigger"], "PagerDuty is called")
    assert heard.events[0]["dedup_key"] == f"remediator/{incident['id']}"
    code, said = await service.command("acknowledge", incident["id"])
    assert (code, said) == (
        0,
        f"Acknowledged {incident['id']}: nobody else is called for a time.\n",
    )
    await until(lambda: heard.actions == ["trigger", "acknowledge"], "PagerDuty hears of it")
    assert heard.chat == []
    await until(lambda: len(heard.chat) == 1, "it goes on, because the alert still fires")
    answer = await service.api("POST", f"/incidents/{incident['id']}/acknowledge", json={})
    assert answer.status_code == 200, answer.text
    events = [line["event"] for line in answer.json()["timeline"]]
    assert events.count("acknowledged") == 2
    assert "acknowledgement over" in events
    await service.post(pool_alert("resolved"))
    await until(lambda: heard.actions[-1] == "resolve", "PagerDuty hears of the end")
    again = await service.api("POST", f"/incidents/{incident['id']}/acknowledge", json={})
    assert again.status_code == 409
    assert SECRET not in service.log()
    assert KEY not in service.log() + json.dumps(await service.incidents())


async def test_what_was_called_for_before_a_kill_is_called_for_after_it(
    service: Service, outside: tuple[Outside, str]
) -> None:
    heard, _ = outside
    await service.post(pool_alert())
    await service.incident(outcome="escalated")
    await service.kill()
    await service.start()
    await until(lambda: len(heard.chat) == 1, "the second level is told")
    # at once, unless it was just being sent when the service was killed
    await until(lambda: "trigger" in heard.actions, "the first level is told", within=75)


async def test_nobody_acknowledges_without_the_right_to(service: Service) -> None:
    await service.post(pool_alert())
    incident = await service.incident(outcome="escalated")
    async with service._client("token") as client:
        answer = await client.post(f"/api/v1/incidents/{incident['id']}/acknowledge", json={})
    assert answer.status_code == 403
    code, said = await service.command("acknowledge", "inc-000000000000-0000000000")
    assert code == 1
    assert "not found" in said
