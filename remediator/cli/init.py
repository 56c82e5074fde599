"""``remediator init``: a folder to start from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remediator.cli.orders import say
from remediator.cli.output import USAGE, Failure

if TYPE_CHECKING:
    from remediator.cli.init_files import Backends


Files = dict[str, tuple[str, int]]
"""Text and mode of each file, by its path below the folder."""


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write to; made if it is not there.")
    ] = Path(),
    *,
    prometheus: Annotated[
        str | None, typer.Option(metavar="URL", help="Read alert rules and services from it.")
    ] = None,
    alertmanager: Annotated[
        str | None, typer.Option(metavar="URL", help="Read the alerts that it holds.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the deployments of this cluster.")
    ] = None,
    postgres: Annotated[
        str, typer.Option(metavar="HOST[:PORT]/DATABASE", help="The database to look after.")
    ] = "127.0.0.1:5432/orders",
    app_role: Annotated[
        str, typer.Option(metavar="ROLE", help="Role that the application connects as.")
    ] = "orders_app",
) -> None:
    """Write a configuration to start from, the rights it needs, and a sample alert rule.

    Overwrites nothing. With --prometheus, --alertmanager or --kubeconfig it reads there, without a
    credential of its own, which services and alerts there are, and proposes them.
    """
    from remediator.cli.init_files import Backends

    kubeconfig = kubeconfig.absolute() if kubeconfig else None
    backends = Backends(_url(prometheus), _url(alertmanager), kubeconfig)
    folder = folder.absolute()
    files = _files(folder, backends, postgres, app_role)
    there = [str(folder / name) for name in files if os.path.lexists(folder / name)]
    if there:
        listed = ", ".join(there)
        raise Failure(USAGE, f"nothing is written, because this is there already: {listed}")
    _write(folder, files)
    for name in files:
        say(f"wrote {folder / name}")
    _say_next(folder, postgres)


def _url(text: str | None) -> str | None:
    if text is None:
        return None
    from urllib.parse import urlsplit

    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise Failure(
            USAGE, "give a URL that begins with http:// or https://, without a user in it"
        )
    if set(text) & set('"\\\n?#'):
        raise Failure(USAGE, "give a URL without a query")
    return text.rstrip("/")


def _files(folder: Path, backends: Backends, database: str, app_role: str) -> Files:
    from secrets import token_urlsafe

    from remediator.cli import init_files, init_proposal
    from remediator.cli.discovery import discover
    from remediator.playbook.loader import load_playbooks

    postgres = init_files.Postgres.read(database)
    passwords = init_files.Passwords(token_urlsafe(24), token_urlsafe(24))
    found = discover(backends.prometheus, backends.alertmanager, backends.kubeconfig)
    services, playbooks = init_proposal.propose(found) or init_proposal.example(), load_playbooks()
    init_proposal.attach(services, playbooks, init_files.DATABASE, app_role)
    watched = "main" if backends.prometheus else None
    systems = init_proposal.written(services, playbooks, watched)
    text = init_files.configuration(backends, systems, init_proposal.unplaced(found))
    secrets = {
        f"secrets/{init_files.DATABASE}-reader-dsn": postgres.dsn(
            init_files.READER, passwords.reader
        ),
        f"secrets/{init_files.DATABASE}-writer-dsn": postgres.dsn(
            init_files.WRITER, passwords.writer
        ),
        "secrets/postgres-grants.sql": init_files.grants(postgres, passwords),
    }
    return {
        "remediator.yaml": (text, 0o644),
        **{name: (secret.rstrip("\n") + "\n", 0o600) for name, secret in secrets.items()},
        "prometheus-rule.yml": (init_files.RULE, 0o644),
        "alertmanager.yml": (init_files.receiver(folder / "state" / "token"), 0o644),
    }


def _write(folder: Path, files: Files) -> None:
    """Write every file; each is there with its mode from the first moment on."""
    folder.mkdir(parents=True, exist_ok=True)
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700, exist_ok=True)
    secrets.chmod(0o700)
    for name, (text, mode) in files.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(folder / name, flags, mode), "w", encoding="utf-8") as file:
            file.write(text)


def _say_next(folder: Path, postgres: str) -> None:
    config = folder / "remediator.yaml"
    grants = folder / "secrets" / "postgres-grants.sql"
    place, _, name = postgres.partition("/")
    host, _, port = place.partition(":")
    say("Next:")
    say(f"1. psql -h {host} -p {port or 5432} -U postgres -d {name} -f {grants}")
    say(f"2. edit {config}: systems, labels, roles")
    say(f"3. remediator check --config {config}")
    say(f"4. remediator serve --config {config}")
    say(f"5. {folder / 'alertmanager.yml'} and {folder / 'prometheus-rule.yml'} show the rest")
