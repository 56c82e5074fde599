"""The whole service as a process, on a real PostgreSQL, driven from outside."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from remediator.cli.demo.slack import LocalSlack, Trouble
from tests.postgres_fixtures import Scene
from tests.service_fixtures import Service, pool_alert


async def _leak_and_victim(scene: Scene) -> tuple[int, int]:
    """Open a session that leaks a locked row and one that waits for it; return their pids."""
    leak = (await scene.leak()).get_server_pid()
    victim = (await scene.victim()).get_server_pid()
    await scene.until(leak, "now() - state_change > interval '60.2 seconds'")
    return leak, victim


def _ended(incidents: list[dict[str, Any]]) -> list[str]:
    """List every item that any mitigation of any incident ended, repeats included."""
    return [
        item["key"]
        for incident in incidents
        for mitigation in incident["mitigations"]
        for item in mitigation["items"]
        if item["state"] == "applied"
    ]


async def test_a_leak_is_ended_and_the_incident_closes_as_mitigated(
    service: Service, scene: Scene, slack: LocalSlack
) -> None:
    leak, victim = await _leak_and_victim(scene)
    answer = await service.post(pool_alert())
    assert answer.status_code == 202
    assert answer.json().keys() == {"delivery", "alerts", "dead"}
    await service.incident(phase="settle")
    assert not await scene.is_(leak)
    assert await scene.is_(victim)
    await service.post(pool_alert("resolved"))
    incident = await service.incident(state="closed")
    assert incident["outcome"] == "mitigated"
    (made,) = incident["mitigations"]
    assert (made["kind"], made["state"], made["verdict"]) == ("end_sessions", "applied", "better")
    assert _ended([incident]) == [f"pid {leak}"]
    await slack.wait_for(lambda s: any("Mitigated" in t for m in s.posted for t in m.lines), 10)
    assert len(slack.posted) == 1
    assert slack.posted[0].edits >= 1


@pytest.mark.parametrize("mode", ["shadow"])
async def test_in_shadow_nothing_is_written_and_the_plan_is_told(
    service: Service, scene: Scene, mode: str
) -> None:
    leak, victim = await _leak_and_victim(scene)
    await service.post(pool_alert())
    incident = await service.incident(state="closed", outcome="shadowed")
    assert incident["mitigations"][0]["state"] == "shadowed"
    assert f"pid {leak}" in json.dumps(incident["findings"])
    assert await scene.is_(leak, "state = 'idle in transaction'")
    assert await scene.is_(victim)


@pytest.mark.parametrize("mode", ["approve"])
async def test_in_approve_nothing_happens_until_the_command_and_then_that_plan(
    service: Service, scene: Scene, mode: str
) -> None:
    leak, _ = await _leak_and_victim(scene)
    await service.post(pool_alert())
    incident = await service.incident(phase="approval")
    later = (await scene.leak(item=2)).get_server_pid()
    await scene.until(later, "now() - state_change > interval '60.2 seconds'")
    assert await scene.is_(leak)
    code, output = await service.command("approve", incident["id"], "--yes")
    assert code == 0, output
    await service.incident(phase="verify")
    assert not await scene.is_(leak)
    assert await scene.is_(later), "the plan that was approved did not name it"
    code, output = await service.command("approve", incident["id"], "--yes")
    assert code == 1, output


async def test_an_alert_that_nobody_knows_is_a_record(service: Service) -> None:
    await service.post(pool_alert(service="unheard-of"))
    incident = await service.incident(outcome="no_match")
    assert "no service of the catalogue" in incident["reason"]


async def test_after_kill_9_right_after_the_202_the_alert_is_handled(
    service: Service, scene: Scene, slack: LocalSlack
) -> None:
    leak, victim = await _leak_and_victim(scene)
    assert (await service.post(pool_alert())).status_code == 202
    await service.kill()
    await service.start()
    await service.incident(phase="settle", within=40)
    await service.post(pool_alert("resolved"))
    incident = await service.incident(state="closed", outcome="mitigated", within=40)
    assert _ended([incident]) == [f"pid {leak}"]
    assert await scene.is_(victim)


@pytest.mark.parametrize("after", [0.02, 0.1, 0.3, 0.6, 1.2, 2.5])
async def test_after_kill_9_at_any_moment_nothing_is_done_twice(
    service: Service, scene: Scene, slack: LocalSlack, after: float
) -> None:
    leak, victim = await _leak_and_victim(scene)
    await service.post(pool_alert())
    await asyncio.sleep(after)
    await service.kill()
    await service.start()
    await service.incident(phase="settle", within=40)
    await service.post(pool_alert("resolved"))
    incident = await service.incident(state="closed", outcome="mitigated", within=40)
    assert _ended([incident]) == [f"pid {leak}"]
    assert await scene.is_(victim)
    await slack.wait_for(lambda s: any("Mitigated" in t for m in s.posted for t in m.lines), 70)
    assert len(slack.posted) <= 2, "a message whose answer the kill lost may come again, no other"


async def test_slack_that_is_away_delays_the_message_and_nothing_else(
    service: Service, scene: Scene, slack: LocalSlack
) -> None:
    slack.retry_after = 1
    slack.fail(Trouble.RATE_LIMIT, Trouble.SERVER_ERROR, Trouble.SERVER_ERROR)
    leak, _ = await _leak_and_victim(scene)
    await service.post(pool_alert())
    await service.incident(phase="settle")
    assert not await scene.is_(leak)
    await slack.wait_for(lambda s: len(s.posted) == 1, 20)


async def test_a_pause_holds_on_the_next_change_and_resume_lets_it_go_on(
    service: Service, scene: Scene
) -> None:
    leak, _ = await _leak_and_victim(scene)
    code, output = await service.command("pause", "--reason", "release")
    assert code == 0, output
    assert (await service.post(pool_alert())).status_code == 202
    incident = await service.incident(phase="decide")
    await asyncio.sleep(2.5)
    incident = await service.incident(phase="decide")
    assert "release" in incident["reason"]
    assert await scene.is_(leak)
    code, output = await service.command("resume")
    assert code == 0, output
    await service.incident(phase="settle")
    assert not await scene.is_(leak)


async def test_replays_of_a_body_an_alert_and_a_stored_incident_dry_and_for_real(
    service: Service, scene: Scene, tmp_path: Path
) -> None:
    leak, _ = await _leak_and_victim(scene)
    plain = tmp_path / "plain.json"
    labels = pool_alert()["labels"]
    plain.write_text(json.dumps({"labels": labels, "annotations": {}}))
    code, output = await service.command("replay", str(plain))
    assert code == 0, output
    dry = await service.incident(state="closed", outcome="shadowed", dry_run=True)
    assert await scene.is_(leak)
    answer = await service.api("POST", "/replay", json={"id": dry["id"]})
    assert (answer.status_code, answer.json()["dry_run"]) == (202, True)
    answer = await service.api("POST", "/replay?dry_run=false", json={"id": dry["id"]})
    (real_id,) = answer.json()["incidents"]
    real = await service.closed(real_id)
    assert (real["outcome"], real["replay_of"]) == ("mitigated", dry["id"])
    assert not await scene.is_(leak)


async def test_the_service_stops_cleanly_on_sigterm(service: Service) -> None:
    await service.post(pool_alert(service="unheard-of"))
    assert await service.end(signal.SIGTERM) == 0


async def test_a_second_process_on_the_same_state_is_refused(service: Service) -> None:
    code, output = await service.command("serve", "--config", "remediator.yaml")
    assert code == 2
    assert "another process uses the state folder" in output


async def test_check_says_what_could_be_done_and_changes_nothing(
    service: Service, scene: Scene
) -> None:
    leak, _ = await _leak_and_victim(scene)
    code, output = await service.command("check", "--config", "remediator.yaml")
    assert code == 0, output
    assert "end_sessions" in output
    assert await scene.is_(leak)


async def test_no_secret_is_in_the_log(service: Service, scene: Scene, slack: LocalSlack) -> None:
    await _leak_and_victim(scene)
    await service.post(pool_alert())
    await service.incident(phase="settle")
    log = service.log()
    tokens = [(service.state / name).read_text().strip() for name in ("token", "operator-token")]
    for secret in (*tokens, slack.token, "made up", "made%20up"):
        assert secret not in log
