"""The commands about the audit: write the journal out, and check that nobody changed it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remediator.cli.orders import Json, print_json, say
from remediator.cli.output import REFUSED, USAGE, Failure, machine_readable, since_then

if TYPE_CHECKING:
    from remediator.model.audit import Flaw, Verification


VERIFYING = 600.0
"""Seconds to wait until the service has verified everything."""

audit = typer.Typer(
    name="audit",
    help="What was done, sealed so that nobody changes it unseen: write it out, verify it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@audit.command("export")
def export_audit(
    *,
    incident: Annotated[str | None, typer.Option(metavar="ID", help="Only this incident.")] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only newer: 30m, 2h, 7d, or 2026-01-31T00:00:00Z."),
    ] = None,
) -> None:
    """Write the journal to stdout as it is sealed, one JSON document a line."""
    from remediator.cli.client import Api
    from remediator.cli.ids import incident_id

    since = since_then(since).isoformat() if since else None
    last = ""
    with Api() as api:
        incident = incident_id(api, incident) if incident else None
        asked = {"incident": incident, "since": since}
        for line in api.lines("/audit", {k: v for k, v in asked.items() if v is not None}):
            sys.stdout.write(f"{line}\n")
            last = line
    if not last.startswith('{"kind":"end"'):
        raise Failure(REFUSED, "the export broke off; what was written is not complete")


@audit.command("verify")
def verify_audit(
    *,
    as_json: Json = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Take lines without a seal for wrong, too.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="EXPORT", help="Verify this export, without a service."),
    ] = None,
    key_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The key, for --file; repeatable after a rotation."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="EARLIER", help="With --file: an earlier export that must be in it."),
    ] = None,
) -> None:
    """Find changed, missing, reordered, cut or added entries; by the service, or in an export.

    Exit code 1: something is wrong. Lines that an older version or a service without a key wrote
    are named, and are not wrong without --strict.
    """
    if file is None and (key_file or against):
        raise Failure(USAGE, "--key-file and --against belong to --file EXPORT")
    if file is not None:
        from remediator.cli.audit_file import verified

        found = verified(file, key_file or [], against)
        if as_json:
            typer.echo(machine_readable(found.model_dump_json()))
    else:
        from remediator.cli.client import Api
        from remediator.model.audit import Verification

        with Api(timeout=VERIFYING) as api:
            answer = api.get("/audit/verify")
            if as_json:
                print_json(answer)
            found = api.read(answer, Verification)
    if not as_json:
        _tell(found)
    if not found.ok or (strict and found.unsealed):
        raise Failure(REFUSED, "the audit does not hold")


def _tell(found: Verification) -> None:
    entries, chains = _count(found.entries, "entry", "entries"), _count(found.chains, "chain")
    say(f"{entries} in {chains} are as they were sealed (keys: {', '.join(found.keys) or 'none'}).")
    _tell_part(found)
    if found.unsealed:
        where = ", ".join(found.unsealed_chains[:10])
        more = ", ..." if len(found.unsealed_chains) > 10 else ""
        lines = _count(found.unsealed, "line")
        say(f"{lines} not sealed, by an older version or without a key: they prove nothing.")
        say(f"They are in: {where}{more}")
    for flaw in found.flaws:
        say(_flaw(flaw))
    if found.wrong > len(found.flaws):
        say(f"... and {found.wrong - len(found.flaws)} more.")
    if found.ok:
        say("Nothing is wrong.")


def _tell_part(found: Verification) -> None:
    if found.whole and found.since is not None:
        say(f"Sealing began at {found.since.isoformat(timespec='seconds')}.")
    if not found.whole:
        say("This is a part of the journal: what lacks outside of it does not show.")
    if found.unproved:
        first = _count(found.unproved, "first entry", "first entries")
        say(f"{first} cannot be verified: what is before is not in it. They may say anything.")
    if found.compared:
        say(f"{_count(found.compared, 'head')} of the earlier export compared.")


def _flaw(flaw: Flaw) -> str:
    place = " ".join(str(part) for part in (flaw.chain, flaw.number) if part not in ("", None))
    return f"{flaw.what}: {place}: {flaw.detail}" if place else f"{flaw.what}: {flaw.detail}"


def _count(number: int, noun: str, many: str = "") -> str:
    return f"{number} {noun if number == 1 else many or noun + 's'}"
