"""Whatever arrives, the answer is the documented one and the service goes on unharmed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.service_fixtures import Service, group, pool_alert

WEBHOOK = "/webhooks/alertmanager"
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
Crowd = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _send(service: Service, body: bytes, token: str = "token") -> httpx.Response:
    secret = (service.state / token).read_text().strip()
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
        return await client.post(WEBHOOK, content=body, headers=headers)


async def _dead_letters(service: Service) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await service.api("GET", "/deadletters")).json()["items"]
    return items


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"[]", 400),
        (b'"alerts"', 400),
        (b'{"alerts": {}}', 400),
        (b'{"version": "4"}', 400),
        (b'{"alerts": []}', 202),
        (b"\xff\xfe\x00", 400),
        (b"[" * 100_000, 400),
    ],
)
async def test_a_body_that_is_no_webhook_is_answered_and_kept(
    service: Service, body: bytes, status: int
) -> None:
    answer = await _send(service, body)
    assert answer.status_code == status
    assert len(await _dead_letters(service)) == (1 if status == 400 else 0)
    assert (await service.post(pool_alert())).status_code == 202


async def test_one_bad_alert_among_fifty_spoils_none(service: Service) -> None:
    alerts = [pool_alert(service="unheard-of", pod=f"p{n}") for n in range(50)]
    alerts[17] = {"status": "firing", "labels": {"alertname": 7}}
    answer = await service.post(*alerts)
    assert (answer.status_code, answer.json()["alerts"], answer.json()["dead"]) == (202, 49, 1)
    (letter,) = await _dead_letters(service)
    assert letter["position"] == 17


async def test_two_thousand_alerts_in_one_body_are_one_incident_a_cause(service: Service) -> None:
    alerts = [pool_alert(service="unheard-of", pod=f"p{n}") for n in range(2000)]
    body = group(*alerts) | {"truncatedAlerts": 12, "a_field_of_tomorrow": {"x": 1}}
    answer = await _send(service, json.dumps(body).encode())
    assert (answer.status_code, answer.json()["alerts"]) == (202, 2000)
    incident = await service.incident(outcome="no_match")
    assert incident["state"] == "closed"
    await _send(service, json.dumps(body).encode())
    assert len(await service.incidents()) == 1


async def test_twenty_megabytes_are_refused_and_their_beginning_kept(service: Service) -> None:
    answer = await _send(service, b"x" * 20_000_000)
    assert answer.status_code == 413
    (letter,) = await _dead_letters(service)
    assert letter["excerpt"].startswith("xxx")
    assert len(letter["excerpt"]) <= 64 * 1024


async def test_missing_wrong_and_too_small_credentials(service: Service) -> None:
    async with httpx.AsyncClient(base_url=service.url) as client:
        missing = await client.post(WEBHOOK, content=b"{}")
        wrong = await client.post(WEBHOOK, headers={"Authorization": "Bearer no"}, content=b"{}")
    assert (missing.status_code, wrong.status_code) == (401, 401)
    assert (await _send(service, b"{}", "operator-token")).status_code == 403
    assert await _dead_letters(service) == []


async def test_unknown_paths_and_methods(service: Service) -> None:
    async with httpx.AsyncClient(base_url=service.url) as client:
        assert (await client.get("/nothing-here")).status_code == 404
        assert (await client.put(WEBHOOK)).status_code == 405
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        rebound = await client.get("/healthz", headers={"Host": "rebound.example.com"})
        assert rebound.status_code == 403
        metrics = (await client.get("/metrics")).text
    assert "remediator_deliveries_total" in metrics


@asynccontextmanager
async def _crowd(service: Service, first: str, *, each: int) -> AsyncIterator[list[Crowd]]:
    """Connect ``each`` times from several addresses, and send ``first``."""
    host, port = service.url.removeprefix("http://").split(":")
    crowd: list[Crowd] = []
    try:
        for address in ADDRESSES:
            for _ in range(each):
                own = (address, 0)
                stream = await asyncio.open_connection(host, int(port), local_addr=own, limit=1)
                stream[1].write(first.encode())
                crowd.append(stream)
        yield crowd
    finally:
        for _, writer in crowd:
            writer.close()


async def test_a_thousand_idle_dripping_and_never_reading_clients_lock_nobody_out(
    service: Service,
) -> None:
    drips = (
        "POST /webhooks/pagerduty HTTP/1.1\r\nHost: localhost\r\nX-PagerDuty-Signature: v1=0\r\n"
    )
    never_reads = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4
    async with (
        _crowd(service, "", each=250),
        _crowd(service, drips, each=100) as dripping,
        _crowd(service, never_reads, each=50),
    ):
        for _, writer in dripping:
            with contextlib.suppress(ConnectionError):
                writer.write(b"X-Drip: 1\r\n")
        async with httpx.AsyncClient(base_url=service.url, timeout=5) as client:
            assert (await client.get("/readyz")).status_code == 200
        paused = await service.api("POST", "/pause", json={"reason": "too many connections"})
        assert paused.status_code == 200
        assert (await service.post(pool_alert())).status_code == 202
        assert (await _limits(service))["paused"][0]["reason"] == "too many connections"
    assert len(os.listdir(f"/proc/{service.pid}/fd")) < 700  # noqa: PTH208 - no I/O


async def _limits(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = (await service.api("GET", "/limits")).json()
    return found


async def test_half_a_header_and_half_a_body_cost_only_themselves(service: Service) -> None:
    service.config |= {"header_timeout": "300ms", "body_timeout": "300ms"}
    await service.kill()
    await service.start()
    host, port = service.url.removeprefix("http://").split(":")
    token = (service.state / "token").read_text().strip()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nAuth")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    writer.write(head.encode())
    async with asyncio.timeout(5):
        assert b" 408 " in await reader.readline()
    writer.close()
    assert (await service.post(pool_alert())).status_code == 202
