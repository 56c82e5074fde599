"""The commands that need no running service: they run it, or look at its configuration.

What they need is imported inside them, so that the other commands start fast.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remediator.cli.failure import REFUSED, USAGE, Failure
from remediator.cli.text import console, plain, styled
from remediator.demo import ScenarioName

if TYPE_CHECKING:
    from remediator.app import Running
    from remediator.settings import Settings

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration; else REMEDIATOR_CONFIG, else ./remediator.yaml if it is there.",
    ),
]
LEVEL_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def serve(*, config: Config = None) -> None:
    """Run the service until SIGTERM or Ctrl-C."""
    settings = _settings(config)
    from remediator import app  # noqa: PLC0415 - loads the clients of every backend
    from remediator.telemetry import configure_logging  # noqa: PLC0415 - the same

    configure_logging(settings.log.format, settings.log.level, sys.stderr)
    first = not (settings.state_dir / "operator-token").exists()

    def on_ready(running: Running) -> None:
        generated = (running.state_dir / "operator-token").exists()
        typer.echo(_welcome(running) if first and generated else f"Listening on {running.url}")

    asyncio.run(app.serve(settings, on_ready=on_ready))


def _welcome(running: Running) -> str:
    """Say, at the first start, where the service is and how Alertmanager reaches it."""
    import yaml  # noqa: PLC0415 - only here

    ingest = running.state_dir / "token"
    http = {"authorization": {"type": "Bearer", "credentials_file": str(ingest)}}
    webhook = {
        "url": f"{running.url}/webhooks/alertmanager",
        "send_resolved": True,
        "max_alerts": 0,
        "http_config": http,
    }
    receiver = {"receivers": [{"name": "remediator", "webhook_configs": [webhook]}]}
    return (
        f"Listening on {running.url}\n"
        "No credentials are configured, so two were made (readable by you alone):\n"
        f"  for Alertmanager, may post alerts:  {ingest}\n"
        f"  for you, the remediator commands:   {running.state_dir / 'operator-token'}\n"
        "Paste into alertmanager.yml, and name it in a route:\n\n"
        f"{yaml.safe_dump(receiver, sort_keys=False)}"
    )


def demo(
    scenario: Annotated[ScenarioName, typer.Argument(help="What breaks.")] = ScenarioName.POOL,
) -> None:
    """Watch the whole job on a system that breaks, in half a minute.

    pool: a bug leaks database connections, on a real PostgreSQL.

    latency: a forgotten transaction locks a table, on a real PostgreSQL.

    breaker: a circuit breaker stays open although its upstream is well again.

    oom: a deployment outgrows its memory limit, on an emulated Kubernetes API.
    """
    from remediator.demo.run import run  # noqa: PLC0415 - needs remediator[demo]

    raise typer.Exit(run(scenario))


def check(*, config: Config = None) -> None:
    """Validate the configuration and reach every backend.

    Read-only. Says what each playbook could do where, under which limits, and which rights it lacks.
    Exit code 2: `serve` would not start with this configuration; 1: a backend or a right is missing.
    """
    settings = _settings(config)
    from remediator import app  # noqa: PLC0415 - loads the clients of every backend

    report = asyncio.run(app.check(settings))
    screen = console()
    for level, subject, message in report.lines:
        line = styled(level, LEVEL_STYLES.get(level, "")).append(f"  {plain(subject)}: ")
        screen.print(line.append(plain(message)))
    if not report.startable:
        raise Failure(USAGE, "the configuration is wrong; see above")
    if not report.ok:
        raise Failure(REFUSED, "not everything is right; see above")


def migrate(*, config: Config = None) -> None:
    """Bring the store's schema up to this version."""
    settings = _settings(config)
    from remediator import app  # noqa: PLC0415 - loads the store

    typer.echo(asyncio.run(app.migrate(settings)))


def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    from remediator.settings import settings_schema  # noqa: PLC0415 - loads the settings

    typer.echo(json.dumps(settings_schema(), indent=2))


def version() -> None:
    """Print the version."""
    typer.echo(version_line())


def version_line() -> str:
    """Return the version of this program and of Python."""
    return f"remediator {metadata.version('remediator')}, Python {platform.python_version()}"


def _settings(config: Path | None) -> Settings:
    from remediator.settings import load_settings  # noqa: PLC0415 - loads the settings

    return load_settings(config, os.environ, Path.cwd())
