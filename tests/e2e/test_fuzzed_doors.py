"""Mutated bodies at the three doors, each let in: a documented answer in time, and no harm.

``FUZZ_BODIES`` is how many for each door, ``FUZZ_SEED`` makes them the same again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp import ClientSession, ClientTimeout

from remediator.cli.demo.slack import LocalSlack
from remediator.cli.demo.slack import sign as sign_for_slack
from remediator.intake.pagerduty_webhook import HEADER
from remediator.intake.pagerduty_webhook import sign as sign_for_pagerduty
from tests.mutations import body_of, mutated
from tests.pagerduty_fixtures import webhook
from tests.postgres_fixtures import eventually
from tests.service_fixtures import Service, pool_alert

BODIES = int(os.environ.get("FUZZ_BODIES", "150"))
SEED = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(2**32))
SAMPLES = Path(__file__).parent.parent / "samples"
AT_ONCE = 16
ANSWERED_WITHIN = 30.0
SECRET = "pagerduty-signing-secret"
FAULTS = ('"level": "error"', '"level": "critical"', "Traceback (most recent call last)")

pytestmark = pytest.mark.timeout(900)


def _samples(*names: str) -> list[Any]:
    return [json.loads((SAMPLES / name).read_text()) for name in names]


ALERTMANAGER = _samples("am_firing_single.json", "am_firing_group3.json", "am_resolved_group3.json")
PAGERDUTY = [
    *_samples("pd_incident_triggered.json"),
    *(webhook(f"incident.{kind}") for kind in ("triggered", "acknowledged", "resolved")),
]
SLACK = [
    {
        "type": "block_actions",
        "user": {"id": user, "username": "ann"},
        "response_url": "",
        "actions": [{"action_id": button, "value": "inc-019b76daa800-c8ec4b51c0 0123456789abcdef"}],
    }
    for user in ("U0ANN", "U0NOBODY")
    for button in ("remediator_approve", "remediator_reject", "remediator_pause")
]


@dataclass
class Outcome:
    """What came of one door's bodies."""

    answers: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with LocalSlack() as slack:
        for name, secret in (
            ("slack.token", slack.token),
            ("slack.secret", slack.signing_secret),
            ("pagerduty.secret", SECRET),
        ):
            (tmp_path / name).write_text(secret)
            (tmp_path / name).chmod(0o600)
        config = {
            "listen": "127.0.0.1:0",
            "admission": {"rate": "unlimited"},
            "approvers": [{"name": "ann", "role": "operator", "slack": "U0ANN"}],
            "pagerduty": {"signing_secret_files": ["pagerduty.secret"]},
            "slack": {
                "channel": slack.channel,
                "token_file": "slack.token",
                "signing_secret_file": "slack.secret",
                "api_url": slack.api_url,
            },
        }
        service = Service(tmp_path, config)
        await service.start()
        try:
            yield service
        finally:
            await service.kill()


def _for_alertmanager(service: Service) -> Callable[[bytes], dict[str, str]]:
    token = (service.state / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return lambda _: headers


def _for_pagerduty(_: Service) -> Callable[[bytes], dict[str, str]]:
    kind = {"Content-Type": "application/json"}
    return lambda body: {HEADER: sign_for_pagerduty(body, SECRET.encode())} | kind


def _for_slack(_: Service) -> Callable[[bytes], dict[str, str]]:
    return lambda body: sign_for_slack(body, LocalSlack().signing_secret, time.time())


def _form(body: bytes) -> bytes:
    return urlencode({"payload": body}).encode()


def _plain(body: bytes) -> bytes:
    return body


DOORS: dict[str, tuple[Sequence[Any], Callable[[bytes], bytes], Any]] = {
    "/webhooks/alertmanager": (ALERTMANAGER, _plain, _for_alertmanager),
    "/webhooks/pagerduty": (PAGERDUTY, _plain, _for_pagerduty),
    "/slack/interactions": (SLACK, _form, _for_slack),
}


async def _documented(service: Service, path: str) -> frozenset[int]:
    described = (await service.api("GET", "/openapi.json")).json()["paths"][path]["post"]
    statuses = {int(status) for status in described["responses"]}
    # let in, as the sender says, and in time: what else there is would be wrong here
    return frozenset(statuses - {401, 403, 408, 413, 415, 500})


async def _fuzz(service: Service, path: str, documented: frozenset[int]) -> Outcome:
    seeds, written, signing = DOORS[path]
    headers, outcome, numbers = signing(service), Outcome(), iter(range(BODIES))

    async def send(session: ClientSession) -> None:
        for number in numbers:
            body = written(body_of(mutated(seeds, number, SEED), number, SEED))
            began = time.monotonic()
            try:
                async with session.post(path, data=body, headers=headers(body)) as answer:
                    text, status = await answer.text(), answer.status
            except (OSError, TimeoutError) as error:
                outcome.wrong.append(f"body {number}: no answer ({type(error).__name__})")
                continue
            outcome.slowest = max(outcome.slowest, time.monotonic() - began)
            outcome.answers[status] += 1
            if status not in documented:
                outcome.wrong.append(f"body {number}: {status}: {text[:300]}")

    limits = ClientTimeout(total=ANSWERED_WITHIN)
    async with ClientSession(service.url, timeout=limits) as session, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(send(session))
    return outcome


@pytest.mark.parametrize("path", DOORS)
async def test_whatever_a_body_holds_the_answer_is_documented_and_the_service_stays_well(
    service: Service, path: str
) -> None:
    began = time.monotonic()
    outcome = await _fuzz(service, path, await _documented(service, path))
    took = time.monotonic() - began
    said = (
        f"{path}: {BODIES} bodies of FUZZ_SEED={SEED} in {took:.0f} s:"
        f" {dict(outcome.answers)}, slowest {outcome.slowest:.2f} s"
    )
    print(said)  # noqa: T201 - the seed, for whoever has to repeat it
    assert outcome.wrong == [], said
    assert outcome.answers.total() == BODIES
    assert outcome.answers[503] <= BODIES // 100, said
    assert (await service.api("GET", "/limits")).json()["paused"] == []
    assert (await service.post(pool_alert())).status_code == 202

    async def is_well() -> bool:
        metrics = await service.api_text("/metrics")
        ready = await service.api_text("/readyz")
        return "remediator_untriaged_deliveries 0.0" in metrics and ready == "ready\n"

    await eventually(is_well, "all of it is triaged", within=300)
    faults = [line for line in service.log().splitlines() if any(f in line for f in FAULTS)]
    assert faults == [], said
