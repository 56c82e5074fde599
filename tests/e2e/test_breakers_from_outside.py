"""The whole service as a process, beside a service whose circuit breaker is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.breaker_fixtures import READER, WRITER, BreakerService, breaker_service
from tests.service_fixtures import FAST, Service, pool_alert


def configuration(url: str) -> dict[str, Any]:
    admin = {
        "url": url,
        "breakers": "actuator",
        "token_env": "READER",
        "writer_token_env": "WRITER",
    }
    playbook = {
        "mode": "auto",
        "upstreams": {"payments": {"role": "bank"}},
        "probe_gap": "100ms",
        "wait_duration": "1s",
        "clean_for": "1s",
        "look_again": "1s",
        "verification": FAST,
    }
    pay = {
        "match": {"service": "pay"},
        "targets": {"admin": "pay-admin", "bank": "bank"},
        "playbooks": {"CircuitBreakerOpen": playbook},
    }
    return {
        "listen": "127.0.0.1:0",
        "backends": {"http": {"pay-admin": admin, "bank": {"url": url}}},
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"pay": pay}}},
    }


@asynccontextmanager
async def running(folder: Path, breakers: BreakerService) -> AsyncIterator[Service]:
    tokens = {"READER": READER, "WRITER": WRITER}
    service = Service(folder, configuration(breakers.url), tokens)
    await service.start()
    try:
        yield service
    finally:
        await service.kill()


def alert(status: str = "firing") -> dict[str, Any]:
    labels = {"alertname": "CircuitBreakerOpen", "service": "pay", "breaker": "payments"}
    return pool_alert(status, **labels)


async def test_breaker_with_a_clean_upstream_is_reset_once_though_the_answer_is_lost(
    tmp_path: Path,
) -> None:
    async with (
        breaker_service(payments="OPEN", search="CLOSED") as breakers,
        running(tmp_path, breakers) as service,
    ):
        breakers.drop = True
        await service.post(alert())
        await service.incident(phase="settle", within=60)
        await service.post(alert("resolved"))
        incident = await service.incident(state="closed", outcome="mitigated")
    (made,) = incident["mitigations"]
    assert (made["kind"], made["state"], made["verdict"]) == ("reset_breaker", "applied", "better")
    assert breakers.posts == ["/actuator/circuitbreakers/payments"]
    assert breakers.breakers == {"payments": "CLOSED", "search": "CLOSED"}


async def test_upstream_that_is_down_is_waited_for_and_one_reset_follows_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with (
        breaker_service(payments="OPEN") as breakers,
        running(tmp_path, breakers) as service,
    ):
        breakers.health = [503]
        await service.post(alert())
        async with asyncio.timeout(30):
            incidents: list[dict[str, Any]] = []
            while breakers.probes < 3 or not incidents:
                incidents = await service.incidents()
                await asyncio.sleep(0.1)
        assert "wait for the upstream" in incidents[0]["reason"]
        assert breakers.posts == []
        breakers.health = [200]
        await service.incident(phase="settle", within=60)
    assert breakers.posts == ["/actuator/circuitbreakers/payments"]
