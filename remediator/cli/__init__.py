"""The ``remediator`` command: runs the service, and operates a running one over its API.

Exit codes: 0 fine, 1 the service refused or a check found errors, 2 the command line or the
configuration is wrong, 3 the service cannot be reached.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from remediator.cli import audit, beginning, loaded, local, operate, reading, windows
from remediator.cli.failure import REFUSED, USAGE, Failure
from remediator.cli.text import plain
from remediator.errors import ConfigError, RemediatorError

app = typer.Typer(
    name="remediator",
    help="Diagnose alerts, make one bounded change, check that it helped, explain.",
    epilog="The commands from `incidents` on talk to a running service: REMEDIATOR_URL"
    " (default http://127.0.0.1:8080) and REMEDIATOR_TOKEN, or the operator-token file in the"
    " state folder of a service on this machine: REMEDIATOR_STATE_DIR, else `state_dir` of"
    " REMEDIATOR_CONFIG or ./remediator.yaml, else the default.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *(
        beginning.init,
        local.serve,
        local.demo,
        local.check,
        local.rbac,
        local.schema,
        local.migrate,
        local.version,
    ),
    *(reading.incidents, operate.approve, operate.reject, operate.cancel, operate.acknowledge),
    *(reading.report, operate.replay, operate.pause, operate.resume),
    *(loaded.playbooks, reading.limits, reading.deadletters),
):
    app.command()(command)
app.add_typer(windows.maintenance)
app.add_typer(audit.audit)


def _print_version(*, asked: bool) -> None:
    if asked:
        typer.echo(local.version_line())
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take the options that stand before the command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and leave the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")  # a terminal that knows fewer characters
    try:
        app(args=arguments, prog_name="remediator")
    except Exception as error:
        if os.environ.get("REMEDIATOR_DEBUG"):
            raise
        code, message = _ending(error)
        for line in message.splitlines():
            sys.stderr.write(f"remediator: {plain(line)}\n")
        sys.exit(code)


def _ending(error: Exception) -> tuple[int, str]:
    """Return the exit code and the lines that explain ``error``."""
    match error:
        case Failure():
            return error.code, str(error)
        case ConfigError():
            return USAGE, str(error)
        case RemediatorError():
            return REFUSED, str(error)
        case ExceptionGroup():  # several tasks failed together: the first one is the cause
            return _ending(error.exceptions[0])
        case OSError():
            return USAGE, f"{error.filename or 'the system'} says: {error.strerror or error}"
        case _:  # the text of a foreign error may hold a secret: only its type is shown
            message = f"unexpected {type(error).__name__}; REMEDIATOR_DEBUG=1 shows where"
            return REFUSED, message
