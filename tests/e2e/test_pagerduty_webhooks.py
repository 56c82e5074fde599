"""PagerDuty's webhooks at the whole service as a process: signed, repeated, killed, limited."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from tests.crashing_service import CrashingService, Moment
from tests.monitoring_fixtures import Start
from tests.pagerduty_fixtures import (
    TOKEN,
    LocalPagerDuty,
    api_alert,
    local_pagerduty,
    seconds,
    signed,
    webhook,
)
from tests.service_fixtures import Service

OLD, NEW = "the-old-signing-secret", "the-new-signing-secret"
LABELS = {"alertname": "PoolBusy", "system": "shop", "service": "orders"}


def configured(folder: Path, api: LocalPagerDuty | None = None) -> dict[str, Any]:
    """Return a configuration with one service, which PagerDuty's webhooks select as well."""
    (folder / "old").write_text(f"{OLD}\n")
    pagerduty: dict[str, Any] = {"signing_secret_files": ["old"]}
    if api is not None:
        (folder / "api.token").write_text(TOKEN)
        pagerduty |= {"api_token_file": "api.token", "api_url": api.url}
    services = {
        "orders": {"match": {"service": "orders"}},
        "by-pagerduty": {"match": {"pagerduty_service": "PF9KMXH"}},
    }
    shop = {"services": {"orders": services["orders"]}, "match": {"system": "shop"}}
    other = {"services": {"by-pagerduty": services["by-pagerduty"]}}
    return {
        "listen": "127.0.0.1:0",
        "pagerduty": pagerduty,
        "systems": {"shop": shop, "paged": other},
    }


@asynccontextmanager
async def started(folder: Path, config: dict[str, Any]) -> AsyncIterator[Service]:
    service = Service(folder, config)
    await service.start()
    try:
        yield service
    finally:
        if service.process is not None and service.process.returncode is None:
            await service.kill()


@pytest.fixture
async def api() -> AsyncIterator[LocalPagerDuty]:
    async with local_pagerduty() as local:
        yield local


async def post(service: Service, body: dict[str, Any], *secrets: str, **more: Any) -> Any:
    """Deliver an event as PagerDuty does, which has no token of ours."""
    async with httpx.AsyncClient(base_url=service.url, timeout=20, verify=False) as client:
        return await client.post("/webhooks/pagerduty", **signed(body, *secrets, **more))


async def eventually(service: Service, count: int, within: float = 30) -> list[dict[str, Any]]:
    """Wait until there are so many incidents."""
    found: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(within):
            while len(found) != count:
                await asyncio.sleep(0.1)
                found = await service.incidents()
    except TimeoutError:
        raise AssertionError(f"{json.dumps(found)}\n{service.log()}") from None
    return found


async def with_alert(service: Service, key: str, value: Any) -> dict[str, Any]:
    """Wait until the only alert of the only incident is as expected; return the incident."""
    async with asyncio.timeout(20):
        while True:
            (incident,) = await service.incidents()
            if incident["alerts"][0][key] == value:
                return incident
            await asyncio.sleep(0.1)


async def filled(things: list[Any]) -> None:
    """Wait until there is anything."""
    async with asyncio.timeout(20):
        while True:
            if things:
                return
            await asyncio.sleep(0.05)


async def test_one_incident_of_three_copies_during_a_rotation_and_its_resolve(
    tmp_path: Path,
) -> None:
    config = configured(tmp_path)
    async with started(tmp_path, config) as service:
        body = webhook(title="[FIRING:1] PoolBusy shop (orders)")
        answers = [await post(service, body, OLD, webhook_id="w1") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202] * 3
        assert len({answer.text for answer in answers}) == 1
        (incident,) = await eventually(service, 1)
        assert incident["service"] == "by-pagerduty"
        assert incident["alerts"][0]["labels"]["alertname"] == "PoolBusy"
        (tmp_path / "old").write_text(NEW)  # read anew, without a restart
        both = await post(service, webhook("incident.acknowledged"), OLD, NEW)
        assert both.status_code == 202
        assert (await post(service, webhook("incident.resolved"), NEW)).status_code == 202
        incident = await with_alert(service, "status", "resolved")
        events = [line["event"] for line in incident["timeline"]]
        assert "pagerduty PGR0VU2 acknowledged" in events
        assert (await post(service, webhook("pagey.ping"), NEW)).json()["alerts"] == 0
        assert OLD not in service.log()
        assert NEW not in service.log()


async def test_forged_and_unsigned_webhooks_are_refused_and_a_missing_secret_is_our_fault(
    tmp_path: Path,
) -> None:
    config = configured(tmp_path)
    async with started(tmp_path, config) as service:
        assert (await post(service, webhook(), "forged")).status_code == 503
        assert (await post(service, webhook(), "forged")).status_code == 503
        async with httpx.AsyncClient(base_url=service.url, verify=False) as client:
            unsigned = await client.post("/webhooks/pagerduty", json=webhook())
            metrics = (await client.get("/metrics")).text
        assert unsigned.status_code == 401
        assert 'remediator_rejected_requests_total{reason="signing_secret"} 2.0' in metrics
        assert (await post(service, webhook("pagey.ping"), OLD)).status_code == 202
        assert (await post(service, webhook(), "forged")).status_code == 401
        await service.kill()
        await service.start()
        assert (await post(service, webhook(), "forged")).status_code == 401, "it is remembered"
        (tmp_path / "old").unlink()
        assert (await post(service, webhook(), OLD)).status_code == 503
        assert await service.incidents() == [], "nobody is called for so few"


async def test_kill_9_between_the_202_and_the_fetch_loses_nothing(
    tmp_path: Path, api: LocalPagerDuty
) -> None:
    api.alerts["PGR0VU2"] = [api_alert(LABELS)]
    api.always = 503
    async with started(tmp_path, configured(tmp_path, api)) as service:
        assert (await post(service, webhook(), OLD, webhook_id="w1")).status_code == 202
        await filled(api.asked)
        assert await service.incidents() == []
        await service.kill()
        api.always = None
        await service.start()
        again = await post(service, webhook(), OLD, webhook_id="w1")
        assert again.status_code == 202
        (incident,) = await eventually(service, 1, within=40)
        assert incident["service"] == "orders"
        (alert,) = incident["alerts"]
        assert LABELS.items() <= alert["labels"].items()


@pytest.mark.timeout(300)
async def test_kill_9_at_any_commit_loses_nothing_and_takes_nothing_twice(
    tmp_path: Path, api: LocalPagerDuty
) -> None:
    api.alerts["PGR0VU2"] = [api_alert(LABELS)]

    async def killed(moment: Moment) -> None:
        folder = tmp_path / str(moment)
        folder.mkdir()
        service = CrashingService(folder, configured(folder, api))
        told = webhook()
        try:
            await service.start(moment)
            for _ in range(2):  # PagerDuty comes again until it has its answer
                with contextlib.suppress(httpx.HTTPError):
                    await post(service, told, OLD, webhook_id="w1")
                await ended(service)
                await service.start()
            assert (await post(service, told, OLD, webhook_id="w1")).status_code == 202
            (incident,) = await eventually(service, 1, within=40)
            (alert,) = incident["alerts"]
            assert (alert["notifications"], alert["labels"]["system"]) == (1, "shop")
            deliveries = (await service.api("GET", "/deliveries")).json()["items"]
            assert len(deliveries) == 1
        finally:
            await service.kill()

    # what the secrets proved, the event, its claim, its labels, its incident
    moments = [Moment(n, after) for n in range(2, 7) for after in (False, True)]
    await asyncio.gather(*(killed(moment) for moment in moments[::2]))
    await asyncio.gather(*(killed(moment) for moment in moments[1::2]))


async def ended(service: CrashingService) -> None:
    """Wait a moment for the process to die of its own; kill it where it does not."""
    for _ in range(40):
        if not service.alive:
            break
        await asyncio.sleep(0.05)
    await service.kill()


async def test_an_api_that_limits_holds_up_nobody_else(tmp_path: Path, api: LocalPagerDuty) -> None:
    api.alerts["PGR0VU2"] = [api_alert(LABELS)]
    api.trouble, api.retry_after = [429, 500], "3"
    async with started(tmp_path, configured(tmp_path, api)) as service:
        begin = asyncio.get_running_loop().time()
        await post(service, webhook(), OLD)
        alert = {"status": "firing", "labels": {"alertname": "Other", "system": "shop"}}
        await service.post(alert | {"startsAt": datetime.now(UTC).isoformat()})
        (other,) = await eventually(service, 1, within=3)
        assert other["alerts"][0]["labels"]["alertname"] == "Other"
        _, incident = await eventually(service, 2, within=30)
        assert asyncio.get_running_loop().time() - begin > 3
        assert LABELS.items() <= incident["alerts"][0]["labels"].items()


async def test_a_replay_takes_a_body_without_a_signature(tmp_path: Path) -> None:
    async with started(tmp_path, configured(tmp_path)) as service:
        answer = await service.api("POST", "/replay", json=webhook())
        assert answer.status_code == 202, answer.text
        (replayed,) = await eventually(service, 1)
        assert replayed["service"] == "by-pagerduty"
        taken = await post(service, webhook(), OLD)
        await eventually(service, 2)
        again = await service.api("POST", "/replay", json={"id": taken.json()["delivery"]})
        assert again.status_code == 202, again.text
        refused = await service.api("POST", "/replay", json=webhook("incident.resolved"))
        assert refused.status_code == 422


@asynccontextmanager
async def events_api() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Play PagerDuty's Events API, to which Alertmanager sends."""
    sent: list[dict[str, Any]] = []

    async def enqueue(request: web.Request) -> web.Response:
        sent.append(await request.json())
        return web.json_response({"status": "success", "dedup_key": "k"}, status=202)

    app = web.Application()
    app.router.add_post("/v2/enqueue", enqueue)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v2/enqueue", sent
    finally:
        await runner.cleanup()


ALERTMANAGER = """
route: {{receiver: both, group_wait: 0s, group_interval: 1s, group_by: [alertname]}}
receivers:
  - name: both
    pagerduty_configs:
      - {{routing_key: key, url: "{events}"}}
    webhook_configs:
      - url: "{url}/webhooks/alertmanager"
        http_config: {{authorization: {{credentials: {token}}}}}
"""


@pytest.mark.parametrize("first", ["pagerduty", "alertmanager"])
async def test_the_alert_of_a_real_alertmanager_coming_by_both_ways_is_one_episode(
    tmp_path: Path, api: LocalPagerDuty, start_alertmanager: Start, first: str
) -> None:
    config = configured(tmp_path, api)
    async with started(tmp_path, config) as service, events_api() as (events, sent):
        token = (service.state / "token").read_text().strip()
        to = service.url if first == "alertmanager" else "http://127.0.0.1:1"
        text = ALERTMANAGER.format(events=events, url=to, token=token)
        annotations = {"summary": "every connection\nis in use"}
        labels = LABELS | {"quote": 'a "b" \\ c', "empty": "", "ünder": "x"}
        labels.pop("ünder")
        async with start_alertmanager(text) as server, httpx.AsyncClient() as client:
            alert = {"labels": labels, "annotations": annotations}
            (await client.post(f"{server.url}/api/v2/alerts", json=[alert])).raise_for_status()
            await filled(sent)
            known = (await client.get(f"{server.url}/api/v2/alerts")).json()[0]
        payload = sent[0]["payload"]
        body = {"type": "alert_body", "details": payload["custom_details"]}
        api.alerts["PGR0VU2"] = [{"id": "PA1", "status": "triggered", "body": body}]
        if first == "alertmanager":
            await eventually(service, 1)
        told = webhook(title=payload["summary"], at=datetime.now(UTC) + seconds(1))
        assert (await post(service, told, OLD)).status_code == 202
        (incident,) = await eventually(service, 1)
        if first == "pagerduty":
            copy = {"status": "firing", "labels": known["labels"], "startsAt": known["startsAt"]}
            copy["fingerprint"] = "0123456789abcdef"  # which nobody believes
            assert (await service.post(copy)).status_code == 202
        incident = await with_alert(service, "notifications", 2)
        (only,) = incident["alerts"]
        assert only["fingerprint"] == known["fingerprint"]
        assert only["labels"] == known["labels"]
