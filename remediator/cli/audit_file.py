"""An export of the audit, verified without a service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from remediator.cli.output import REFUSED, USAGE, Failure
from remediator.config.sections import SecretRef
from remediator.model.audit import Verification
from remediator.store.audit.chain import Begin, End, Entry, Head, Key, Keys, Record, read_record
from remediator.store.audit.verify import Verifier


def verified(file: Path, key_files: Sequence[Path], against: Path | None) -> Verification:
    """Verify ``file`` with the keys, and that it still holds what ``against`` held."""
    keys = _keys(key_files)
    earlier = {} if against is None else _heads(against)
    records = _read(file)
    begin = next(records, None)
    if not isinstance(begin, Begin):
        raise Failure(REFUSED, f"{file} does not begin as an export of the audit")
    if earlier and not begin.whole:
        raise Failure(USAGE, f"{file} is a part of the journal; --against needs all of it")
    verifier = Verifier(keys, part=begin, earlier=earlier)
    entries = 0
    for record in _to_its_end(file, records):
        match record:
            case Entry():
                entries += 1
                verifier.entry(record)
            case Head():
                verifier.head(record)
            case End() if record.entries != entries:
                reason = f"it has {entries} entries, and its end says {record.entries}"
                raise Failure(REFUSED, f"{file} is not complete: {reason}")
    return verifier.result()


def _heads(file: Path) -> dict[str, Head]:
    """Read the heads of an earlier export, of which its last lines are enough."""
    found = {h.chain: h for h in _to_its_end(file, _read(file)) if isinstance(h, Head)}
    if not found:
        raise Failure(REFUSED, f"{file} has no head of a chain: there is nothing to compare with")
    return found


def _to_its_end(file: Path, records: Iterator[Record]) -> Iterator[Record]:
    last: Record | None = None
    for last in records:
        yield last
    if not isinstance(last, End):
        raise Failure(REFUSED, f"{file} is not complete: its last line is not the end of an export")


def _read(file: Path) -> Iterator[Record]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield read_record(line)
            except ValueError:
                reason = "is not as the export wrote it"
                raise Failure(REFUSED, f"line {number} of {file} {reason}") from None


def _keys(files: Sequence[Path]) -> Keys:
    if not files:
        raise Failure(USAGE, "an export is verified with --key-file FILE, the key of the service")
    first, *others = (Key(SecretRef(file=file).read({}).encode()) for file in files)
    return Keys(first, tuple(others))
