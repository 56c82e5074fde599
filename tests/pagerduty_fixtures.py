"""PagerDuty as it looks from outside: signed webhooks, and a REST API that limits and dies."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from remediator.intake.pagerduty_webhook import HEADER, sign

TOKEN = "a-rest-token"
_numbers = itertools.count(1)


def webhook(kind: str = "incident.triggered", **values: Any) -> dict[str, Any]:
    """Return the body of one event; ``values`` are ``at`` and what the incident says of itself."""
    at: datetime = values.pop("at", datetime.now(UTC))
    data = {
        "id": "PGR0VU2",
        "type": "incident",
        "incident_key": "d3640fbd41094207a1c11e58e46b1662",
        "created_at": values.pop("created_at", at).isoformat(),
        "title": "[FIRING:1] ThingsOn shop (orders)",
        "html_url": "https://example.pagerduty.com/incidents/PGR0VU2",
        "service": {"id": "PF9KMXH", "summary": "Orders", "type": "service_reference"},
        "urgency": "high",
    }
    return {
        "event": {
            "id": values.pop("event_id", f"01EVENT{next(_numbers):06}"),
            "event_type": kind,
            "resource_type": "incident",
            "occurred_at": at.isoformat(),
            "agent": {"id": "PLH1HKV", "type": "user_reference", "summary": "Jo Doe"},
            "client": None,
            "data": data | values,
        }
    }


def signed(body: dict[str, Any], *secrets: str, webhook_id: str | None = None) -> dict[str, Any]:
    """Return what to post, as keyword arguments of an HTTP client."""
    content = json.dumps(body).encode()
    headers = {
        HEADER: ",".join(sign(content, secret.encode()) for secret in secrets),
        "X-Webhook-Id": webhook_id or f"webhook-{next(_numbers)}",
        "Content-Type": "application/json",
    }
    return {"content": content, "headers": headers}


def api_alert(labels: dict[str, str], number: int = 1, **more: Any) -> dict[str, Any]:
    """Return an alert as the REST API lists what Alertmanager sent."""
    lines = "".join(f" - {name} = {value}\n" for name, value in sorted(labels.items()))
    firing = f"Labels:\n{lines}Annotations:\n - summary = it is on\nSource: http://prometheus\n"
    details = {"firing": firing, "num_firing": "1", "num_resolved": "0", "resolved": ""}
    body = {"type": "alert_body", "contexts": [], "details": details}
    return {"id": f"PA{number:04}", "type": "alert", "status": "triggered", "body": body} | more


@dataclass
class LocalPagerDuty:
    """The REST API: lists alerts by incident, a page at a time, as well as the test lets it."""

    alerts: dict[str, list[Any]] = field(default_factory=dict)
    trouble: list[int] = field(default_factory=list)
    """Statuses of the next answers, before any good one."""
    retry_after: str = "1"
    always: int | None = None
    """Status of every answer."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and query of every call."""
    at: list[datetime] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, request.query_string))
        self.at.append(datetime.now(UTC))
        status = self.always or (self.trouble.pop(0) if self.trouble else 200)
        if status == 429:
            return web.json_response({}, status=429, headers={"Retry-After": self.retry_after})
        if status != 200:
            return web.json_response({"error": {"message": "no"}}, status=status)
        if request.headers.get("Authorization") != f"Token token={TOKEN}":
            return web.json_response({}, status=401)
        known = self.alerts.get(request.match_info["incident"], [])
        offset, limit = int(request.query["offset"]), int(request.query["limit"])
        page = known[offset : offset + limit]
        more = offset + limit < len(known)
        return web.json_response({"alerts": page, "offset": offset, "limit": limit, "more": more})


@asynccontextmanager
async def local_pagerduty() -> AsyncIterator[LocalPagerDuty]:
    """Serve the API on a free port."""
    api = LocalPagerDuty()
    app = web.Application()
    app.router.add_get("/incidents/{incident}/alerts", api.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        api.url = f"http://{host}:{port}"
        yield api
    finally:
        await runner.cleanup()


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)
