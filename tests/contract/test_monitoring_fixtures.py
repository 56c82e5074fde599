"""The fixtures' Alertmanager really delivers, so that end-to-end tests may lean on it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import httpx
import pytest
from aiohttp import web

from tests.monitoring_fixtures import Start
from tests.scripted_http import serving


@pytest.mark.real("alertmanager")
async def test_an_alert_posted_to_alertmanager_reaches_its_webhook(
    start_alertmanager: Start,
) -> None:
    arrived: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def receive(request: web.Request) -> web.StreamResponse:
        await arrived.put(await request.json())
        return web.Response(status=202)

    async with serving(receive) as url:
        config = f"""
route: {{receiver: us, group_wait: 0s}}
receivers: [{{name: us, webhook_configs: [{{url: "{url}"}}]}}]
"""
        async with start_alertmanager(config) as server, httpx.AsyncClient() as client:
            alert = {"labels": {"alertname": "A"}, "startsAt": datetime.now(UTC).isoformat()}
            posted = await client.post(f"{server.url}/api/v2/alerts", json=[alert])
            assert posted.is_success, server.log()
            async with asyncio.timeout(20):
                body = await arrived.get()
    assert (body["version"], body["status"]) == ("4", "firing")
