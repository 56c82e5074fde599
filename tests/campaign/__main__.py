"""Runs a campaign: ``python -m tests.campaign --seeds 200``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.campaign.facts import Broken
from tests.campaign.ground import Ground, Slot, a_slot, the_ground
from tests.campaign.mutants import BREAKS, MUTANTS, tree_of
from tests.campaign.plan import Plan, plan_of
from tests.campaign.replicas import ROOT
from tests.campaign.report import repeat, report, untried
from tests.campaign.run import NotSetUp, Result, run_seed

MIGRATIONS = "remediator/store/migrations/versions"
_SEED_WITHIN = 600.0
_SAID_EVERY = 10


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seeds", type=int, default=25, help="how many; 0: until stopped")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--store", choices=("both", "sqlite", "postgres"), default="both")
    parser.add_argument("--side-by-side", type=int, default=7, help="set-ups at the same time")
    parser.add_argument("--report", type=Path, help="write the Markdown report to this file")
    parser.add_argument(
        "--upgrade",
        action="store_true",
        help="begin every seed with the version before the schema's last change, and replace it",
    )
    parser.add_argument(
        "--mutant",
        choices=sorted(MUTANTS),
        help="run an engine that is wrong, until it breaks the promise that it should",
    )
    return parser.parse_args()


def _plans(options: argparse.Namespace) -> Iterator[Plan]:
    numbers = itertools.count(options.first)
    for seed in itertools.islice(numbers, options.seeds or None):
        postgres = options.store == "postgres" or (options.store == "both" and seed % 2 == 0)
        yield plan_of(seed, postgres=postgres, upgrade=options.upgrade)


async def _campaign(
    options: argparse.Namespace, folder: Path, console: Console, results: list[Result]
) -> None:
    tree = tree_of(options.mutant, folder) if options.mutant else ROOT
    previous = _previous(folder) if options.upgrade else None
    plans = _plans(options)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("seeds", total=options.seeds or None)
        async with the_ground(folder, tree, previous) as ground:

            async def work(number: int) -> None:
                async with a_slot(folder / f"slot-{number}") as slot:
                    for plan in plans:
                        if options.mutant and _found(options.mutant, results):
                            return
                        result = await _tried(plan, ground, slot)
                        results.append(result)
                        progress.advance(bar)
                        _say(progress.console, result, len(results))

            async with asyncio.TaskGroup() as group:
                for number in range(options.side_by_side):
                    group.create_task(work(number))


async def _until_stopped(
    options: argparse.Namespace, folder: Path, console: Console, results: list[Result]
) -> None:
    """Run it; a signal ends it as a whole: were each task ended at once, some would wait for others."""
    campaign = asyncio.create_task(_campaign(options, folder, console, results))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, campaign.cancel)
    await campaign


async def _tried(plan: Plan, ground: Ground, slot: Slot, *, again: bool = True) -> Result:
    try:
        async with asyncio.timeout(_SEED_WITHIN):
            return await run_seed(plan, ground, slot)
    except NotSetUp:
        if again:  # a machine that has much to do
            result = await _tried(plan, ground, slot, again=False)
            result.did["its servers set up once more"] += 1
            return result
        what = traceback.format_exc()[-3000:]
    except Exception:  # noqa: BLE001 - a seed that cannot be judged has failed; the others go on
        what = traceback.format_exc()[-3000:]
    return Result(plan, broken=[Broken("harness", what)])


def _found(mutant: str, results: list[Result]) -> bool:
    kinds = {broken.kind for result in results for broken in result.broken}
    return bool(BREAKS[mutant] & kinds)


def _say(console: Console, result: Result, done: int) -> None:
    if not console.is_terminal and done % _SAID_EVERY == 0:
        console.print(f"{done} seeds are done")
    _say_broken(console, result)


def _say_broken(console: Console, result: Result) -> None:
    if not result.broken:
        return
    console.print(f"broken: {repeat(result)}", style="red", highlight=False)
    for broken in result.broken:
        console.print(f"  {broken.kind}: {broken.what}", highlight=False, markup=False)


def _previous(folder: Path) -> Path:
    """Unpack the version before the schema's last change."""
    tree = folder / "previous"
    tree.mkdir()
    last = _git("log", "-1", "--format=%H", "--diff-filter=A", "--", MIGRATIONS).decode().strip()
    archive = folder / "previous.tar"
    archive.write_bytes(_git("archive", f"{last}^", "remediator", "playbooks"))
    with tarfile.open(archive) as packed:
        packed.extractall(tree, filter="data")
    return tree


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True)
    if done.returncode:
        raise SystemExit(f"an upgrade needs the history of the project: {done.stderr.decode()}")
    return done.stdout


def main() -> int:
    """Run it; 0 when every promise was kept, or a mutant broke the one that it should."""
    options, console = _arguments(), Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="remediator-campaign-"))
    began, results = time.monotonic(), list[Result]()
    try:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(_until_stopped(options, folder, console, results))
        results.sort(key=lambda result: result.plan.seed)
        text = report(results, time.monotonic() - began, options.seeds)
        if options.report is not None:
            options.report.write_text(text)
        sys.stdout.write(text)
    finally:
        broken = any(result.broken for result in results)
        if broken and not options.mutant:
            for result in results:  # once more: whoever keeps the last lines only needs these
                _say_broken(console, result)
            console.print(f"what is left of the broken seeds is in {folder}")
        else:
            shutil.rmtree(folder)
    if options.mutant:
        return int(not _found(options.mutant, results))
    return int(broken or not results or len(results) < options.seeds or bool(untried(results)))


if __name__ == "__main__":
    sys.exit(main())
