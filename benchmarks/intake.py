"""How fast webhooks become durable, as a share of a handler that only parses them.

Both servers are processes of their own on this machine, one after the other in the same run, so
the ratio means something wherever it is run:  python benchmarks/intake.py [--seconds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

AT_ONCE = 64
"""Requests in flight."""
BASELINE = "--baseline"


def body(alerts: int) -> bytes:
    """Make an Alertmanager body of so many alerts that no service takes."""
    labels = {"alertname": "Noise", "cluster": "demo", "namespace": "shop", "severity": "info"}
    alert = {
        "status": "firing",
        "annotations": {"summary": "made by the benchmark"},
        "startsAt": "2026-01-01T00:00:00.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
    }
    made = [alert | {"labels": labels | {"pod": f"pod-{n}"}} for n in range(alerts)]
    return json.dumps({"version": "4", "status": "firing", "alerts": made}).encode()


async def baseline() -> None:
    """Serve a handler that parses and forgets."""

    async def handle(request: web.Request) -> web.Response:
        return web.json_response({"alerts": len(json.loads(await request.read())["alerts"])})

    app = web.Application(client_max_size=2**24)
    app.router.add_post("/webhooks/alertmanager", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"Listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving(*command: str, environ: dict[str, str] | None = None) -> AsyncIterator[str]:
    """Run a server until exit; yield its URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | (environ or {}),
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        yield line.split()[-1]
    finally:
        process.terminate()
        await process.communicate()


async def load(url: str, token: str, content: bytes, seconds: float) -> tuple[float, float]:
    """Post as fast as answers come; return posts a second and the 99th percentile in ms."""
    times: list[float] = []
    end = time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    async def sender(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            async with session.post(f"{url}/webhooks/alertmanager", data=content) as answer:
                if answer.status not in (200, 202):
                    raise SystemExit(f"{url} answered {answer.status}: {await answer.text()}")
            times.append(time.monotonic() - began)

    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        began = time.monotonic()
        await asyncio.gather(*(sender(session) for _ in range(AT_ONCE)))
        passed = time.monotonic() - began
    return len(times) / passed, sorted(times)[int(len(times) * 0.99)] * 1000


async def main(seconds: float) -> None:
    """Measure bodies of 1, 10 and 100 alerts on both, and print the ratios."""
    print("alerts a body | parse only: posts/s, p99 | durable: posts/s, p99 | share")
    for alerts in (1, 10, 100):
        content = body(alerts)
        async with serving(__file__, BASELINE) as url:
            bare, bare_p99 = await load(url, "none", content, seconds)
        with tempfile.TemporaryDirectory() as folder:
            environ: dict[str, Any] = {
                "REMEDIATOR_STATE_DIR": folder,
                "REMEDIATOR_LISTEN": "127.0.0.1:0",
                "REMEDIATOR_LOG__LEVEL": "error",
            }
            async with serving("-m", "remediator", "serve", environ=environ) as url:
                origin = url
                token = (Path(folder) / "token").read_text().strip()
                durable, durable_p99 = await load(origin, token, content, seconds)
        print(
            f"{alerts:13} | {bare:9.0f}/s, {bare_p99:6.1f} ms | {durable:9.0f}/s,"
            f" {durable_p99:6.1f} ms | {durable / bare:.2f}"
        )


if __name__ == "__main__":
    if BASELINE in sys.argv:
        asyncio.run(baseline())
    else:
        parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
        parser.add_argument("--seconds", type=float, default=5.0, help="of load on each server")
        asyncio.run(main(parser.parse_args().seconds))
