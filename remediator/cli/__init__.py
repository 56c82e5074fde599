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

from remediator.cli import audit, init, maintenance, orders, playbooks, queries, serve
from remediator.cli.output import REFUSED, USAGE, Failure, plain
from remediator.model.errors import ConfigError, RemediatorError

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
        init.init,
        serve.serve,
        serve.demo,
        serve.check,
        serve.rbac,
        serve.schema,
        serve.migrate,
        serve.version,
    ),
    *(queries.incidents, orders.approve, orders.reject, orders.cancel, orders.acknowledge),
    *(queries.report, orders.replay, orders.pause, orders.resume),
    *(playbooks.playbooks, queries.limits, queries.deadletters),
):
    app.command()(command)
app.add_typer(maintenance.maintenance)
app.add_typer(audit.audit)


def _print_version(*, asked: bool) -> None:
    if asked:
        typer.echo(serve.version_line())
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
