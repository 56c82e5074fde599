"""The commands that need no running service: they run it, or look at its configuration.

What they need is imported inside them, so that the other commands start fast.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remediator.cli.demo import ScenarioName
from remediator.cli.output import REFUSED, USAGE, Failure, console, plain, styled

if TYPE_CHECKING:
    from remediator.config.settings import Settings
    from remediator.service import Running


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration; else REMEDIATOR_CONFIG, else ./remediator.yaml if it is there.",
    ),
]
NOTHING_YET = (
    "No services are configured: alerts are recorded, and nothing else is done.\n"
    "Next: `remediator init DIR` writes a configuration to start from."
)
NO_PLAYBOOK = (
    "No service has a playbook: alerts are recorded, and nothing else is done.\n"
    "Next: add `playbooks` to a service; `remediator playbooks` lists them, with what they need."
)
LEVEL_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def serve(*, config: Config = None) -> None:
    """Run the service until SIGTERM or Ctrl-C; what is being done is finished first.

    SIGHUP reads the configuration again; one that is wrong is refused, and the service goes on.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # until the service itself listens to them
        signal.signal(number, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = settings_of(config)
    import asyncio

    from remediator import service
    from remediator.service.logging import configure_logging

    first = not (settings.state_dir / "operator-token").exists()

    def on_ready(running: Running, settings: Settings) -> None:
        nonlocal first
        generated = (running.state_dir / "operator-token").exists()
        said = [f"Listening on {running.url}", _standing(settings)]
        said += [_welcome(running)] if first and generated else []
        first = False
        typer.echo("\n".join(said))

    def reread() -> Settings:
        found = settings_of(config)
        configure_logging(found.log.format, found.log.level, sys.stderr)
        return found

    configure_logging(settings.log.format, settings.log.level, sys.stderr)
    asyncio.run(service.serve(settings, on_ready=on_ready, reread=reread))


def _standing(settings: Settings) -> str:
    """Say how far the service may go, and who hears of it."""
    from remediator.model.target import Mode, Risk

    services = settings.catalogue().services
    if not any(one.playbooks for one in services):
        return NOTHING_YET if not services else NO_PLAYBOOK
    every = [e.modes.values() for s in services for e in s.playbooks.values()]
    acting = sum(bool({Mode.APPROVE, Mode.AUTO} & set(modes)) for modes in every)
    default = settings.mode.over(dict.fromkeys(Risk, Mode.SHADOW))
    modes = set(default.values())
    by_risk = ", ".join(f"{mode} for {risk} risk" for risk, mode in default.items())
    slack = "incidents are told in Slack" if settings.slack else "Slack is not configured"
    return (
        f"Mode {modes.pop() if len(modes) == 1 else by_risk} unless set otherwise;"
        f" {acting} of {len(every)} enabled playbooks may change something; {slack}"
    )


def _welcome(running: Running) -> str:
    """Say, at the first start, where the service is and how Alertmanager reaches it."""
    import yaml

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
    from remediator.cli.demo.run import run

    raise typer.Exit(run(scenario))


def check(*, config: Config = None) -> None:
    """Validate the configuration and reach every backend.

    Read-only. Says what each playbook could do where, under which limits, and which rights it lacks.
    Exit code 2: `serve` would not start with this configuration; 1: a backend or a right is missing.
    """
    settings = settings_of(config)
    import asyncio

    from remediator import service

    with _without_log():  # what it would say is in the report
        report = asyncio.run(service.check(settings))
    screen = console()
    for level, subject, message in report.lines:
        line = styled(level, LEVEL_STYLES.get(level, "")).append(f"  {plain(subject)}: ")
        screen.print(line.append(plain(message)))
    if not report.startable:
        raise Failure(USAGE, "the configuration is wrong; see above")
    if not report.ok:
        raise Failure(REFUSED, "not everything is right; see above")


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Keep the log off the screen inside the block."""
    import structlog

    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def migrate(*, config: Config = None) -> None:
    """Bring the store's schema up to this version."""
    settings = settings_of(config)
    import asyncio

    from remediator import service

    typer.echo(asyncio.run(service.migrate(settings)))


def rbac(
    *,
    config: Config = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option(metavar="NS", help="Only this one of the targets' namespaces; repeatable."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Name in `backends.kubernetes`, where there are several.")
    ] = None,
    reader: Annotated[
        str, typer.Option(metavar="NS/NAME", help="ServiceAccount that reads.")
    ] = "remediator/remediator",
    writer: Annotated[
        str, typer.Option(metavar="NS/NAME", help="ServiceAccount that changes.")
    ] = "remediator/remediator-writer",
    values: Annotated[
        bool, typer.Option("--values", help="Print values of the Helm chart instead.")
    ] = False,
) -> None:
    """Print the Kubernetes Roles that this configuration needs, as YAML; apply nothing.

    A writer's Role is there only where a playbook's mode is approve or auto.
    """
    settings = settings_of(config)
    from remediator.service.rbac import Account, Wanted, chart_values, roles

    accounts = (Account.named(reader), Account.named(writer))
    wanted = Wanted(*accounts, cluster=cluster, namespaces=namespace or ())
    write = chart_values if values else roles
    typer.echo(write(settings, wanted), nl=False)


def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    from remediator.config.settings import settings_schema

    typer.echo(json.dumps(settings_schema(), indent=2))


def version() -> None:
    """Print the version."""
    typer.echo(version_line())


def version_line() -> str:
    """Return the version of this program and of Python."""
    import platform
    from importlib import metadata

    return f"remediator {metadata.version('remediator')}, Python {platform.python_version()}"


def settings_of(config: Path | None) -> Settings:
    """Read the configuration, or raise ``ConfigError`` with all that is wrong with it."""
    from remediator.config.file import WrongFile
    from remediator.config.settings import load_settings

    try:
        return load_settings(config, os.environ, Path.cwd())
    except WrongFile as error:
        from remediator.service.loading import all_wrong

        raise all_wrong(error) from None
