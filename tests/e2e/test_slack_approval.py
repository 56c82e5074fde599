"""The whole service as a process: a plan waits, people press buttons, exactly that plan is made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remediator.cli.demo.slack import LocalSlack, SlackMessage, sign
from tests.postgres_fixtures import Scene
from tests.service_fixtures import Service, configuration, pool_alert

ANN, BOB, VIEWER, STRANGER = "U0ANN", "U0BOB", "U0WALL", "U0EVE"


@pytest.fixture
async def asking(
    scene: Scene, slack: LocalSlack, tmp_path: Path, approvals: dict[str, int]
) -> AsyncIterator[Service]:
    """A service that asks before it changes anything, and knows three persons."""
    config = configuration(scene, slack, tmp_path, "approve")
    (tmp_path / "slack.signing").write_text(slack.signing_secret)
    config["slack"]["signing_secret_file"] = "slack.signing"
    config["approvals"] = approvals
    config["approvers"] = [
        {"name": "operator", "slack": ANN},  # the name of the generated credential
        {"name": "bob", "slack": BOB, "role": "admin"},
        {"name": "wall", "slack": VIEWER, "role": "viewer"},
    ]
    service = Service(tmp_path, config)
    await service.start()
    try:
        yield service
    finally:
        assert service.process is not None
        if service.process.returncode is None:
            await service.kill()


async def _asked(service: Service, scene: Scene, slack: LocalSlack) -> tuple[int, SlackMessage]:
    """Let a plan wait; return the session that it would end and the message about it."""
    leak = (await scene.leak()).get_server_pid()
    await scene.until(leak, "now() - state_change > interval '60.2 seconds'")
    await service.post(pool_alert())
    await service.incident(phase="approval")
    await slack.wait_for(lambda s: any(m.buttons for m in s.posted), 10)
    incident, message = slack.posted
    assert not incident.buttons
    assert message.broadcast
    assert "rolled back" in "\n".join(message.lines)
    return leak, message


async def _told(slack: LocalSlack, count: int) -> str:
    await slack.wait_for(lambda s: len(s.told) >= count, 10)
    return slack.told[-1]


def _events(incident: dict[str, Any]) -> list[str]:
    return [line["event"] for line in incident["timeline"] if line["step"] == "operator"]


@pytest.mark.parametrize("approvals", [{}])
async def test_nobody_but_an_approver_lets_the_plan_go_ahead_and_only_once(
    asking: Service, scene: Scene, slack: LocalSlack, approvals: dict[str, int]
) -> None:
    leak, message = await _asked(asking, scene, slack)
    approve = message.buttons["Approve"]
    forged = slack.press(approve, ANN)
    for headers in (
        sign(forged, "another-secret", time.time()),
        sign(forged, slack.signing_secret, time.time() - 400),
    ):
        status, _ = await slack.send(asking.url, forged, headers)
        assert status == 401
    assert (await slack.click(asking.url, approve, STRANGER))[0] == 200
    assert "approvers" in await _told(slack, 1)
    assert (await slack.click(asking.url, approve, VIEWER))[0] == 200
    assert "viewer" in await _told(slack, 2)
    older = approve | {"value": approve["value"][:-16] + "0" * 16}
    assert (await slack.click(asking.url, older, ANN))[0] == 200
    assert "the plan has changed" in await _told(slack, 3)
    waiting = await asking.incident(phase="approval")
    assert _events(waiting) == ["refused: approve"] * 3
    assert await scene.is_(leak)

    body = slack.press(approve, ANN)
    headers = sign(body, slack.signing_secret, time.time())
    answers = await asyncio.gather(*(slack.send(asking.url, body, headers) for _ in range(3)))
    assert {status for status, _ in answers} == {200}
    await _told(slack, 6)
    assert sum("goes ahead" in text for text in slack.told) == 1
    assert sum("taken before" in text for text in slack.told) == 2
    acting = await asking.incident(phase="settle")
    assert not await scene.is_(leak)
    (made,) = acting["mitigations"]
    assert made["decided_by"] == "operator"
    assert [(one["by"], one["via"]) for one in made["approvals"]] == [("operator", "slack")]
    await slack.wait_for(lambda _: not message.buttons, 10)
    assert message.lines[0].startswith("Approved by operator: ")
    assert (await slack.click(asking.url, approve, ANN))[0] == 200
    assert "is not waiting for an approval" in await _told(slack, 7)


@pytest.mark.parametrize("approvals", [{"low": 2, "medium": 2}])
async def test_two_different_persons_by_chat_and_by_command_line(
    asking: Service, scene: Scene, slack: LocalSlack, approvals: dict[str, int]
) -> None:
    leak, message = await _asked(asking, scene, slack)
    incident = await asking.incident(phase="approval")
    await slack.click(asking.url, message.buttons["Approve"], ANN)
    assert "1 of 2" in await _told(slack, 1)
    code, output = await asking.command("approve", incident["id"], "--yes")
    assert code == 1, "the same person by another way is still the same person"
    assert "has approved this plan already" in output
    assert await scene.is_(leak)
    await slack.wait_for(lambda _: any("operator did" in t for t in message.lines), 10)
    assert message.buttons
    await slack.click(asking.url, message.buttons["Approve"], BOB)
    await asking.incident(phase="settle")
    assert not await scene.is_(leak)


@pytest.mark.parametrize("approvals", [{"low": 2, "medium": 2}])
async def test_the_command_line_says_how_many_are_missing_and_a_press_rejects(
    asking: Service, scene: Scene, slack: LocalSlack, approvals: dict[str, int]
) -> None:
    leak, message = await _asked(asking, scene, slack)
    incident = await asking.incident(phase="approval")
    code, output = await asking.command("approve", incident["id"], "--yes")
    assert code == 0, output
    assert "1 of 2" in output
    shown = await asking.incident(phase="approval")
    assert shown["mitigations"][0]["approvals_missing"] == 1
    await slack.click(asking.url, message.buttons["Pause service"], BOB)
    await slack.click(asking.url, message.buttons["I take over"], BOB)
    await slack.click(asking.url, message.buttons["Reject"], BOB)
    ended = await asking.incident(outcome="denied")
    assert await scene.is_(leak)
    events = _events(ended)
    for event in ("pressed: pause", "acknowledged", "pressed: take over", "rejected"):
        assert event in events
    paused = (await asking.api("GET", "/limits")).json()["paused"]
    assert [(one["scope"], one["by"]) for one in paused] == [("shop/orders", "bob")]
    await slack.wait_for(lambda _: not message.buttons, 10)
    assert message.lines[0].startswith("Rejected by bob: ")


async def test_without_a_signing_secret_there_is_no_way_in(
    service: Service, scene: Scene, slack: LocalSlack
) -> None:
    body = b"payload={}"
    headers = sign(body, slack.signing_secret, time.time())
    for _ in range(2):
        status, _ = await slack.send(service.url, body, headers)
        assert status == 503
    assert service.log().count("slack_without_signing_secret") == 1
