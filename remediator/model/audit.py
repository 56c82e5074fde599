"""What verifying the audit found, as the API and the command line tell it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, computed_field

from remediator.model.base import Value


class Wrong(StrEnum):
    """What may be wrong with a chain."""

    CHANGED = "changed"
    MISSING = "missing"
    REORDERED = "reordered"
    CUT = "cut"
    ADDED = "added"
    KEY = "key"


class Flaw(Value):
    """One thing that is wrong."""

    chain: str
    number: int | None
    """The entry, or the first of several; None where the whole chain is meant."""
    what: Wrong
    detail: str


class Verification(Value):
    """What verifying found."""

    whole: bool
    """Whether all there is was looked at, so that what is missing shows."""
    chains: int
    entries: int
    """Those with a good seal."""
    unsealed: int
    """Lines without a seal: of an older version, or written without a key. They prove nothing."""
    unsealed_chains: list[str]
    """Where they are; the first of them."""
    keys: list[str]
    """Ids of the keys that sealed what is good."""
    since: AwareDatetime | None = None
    """When sealing began: the time of the first entry of ``operators``."""
    unproved: int = 0
    """Of a part since some time: first entries, whose seal is over an entry that is not there."""
    compared: int = 0
    """Heads of an earlier export that were looked for."""
    flaws: list[Flaw]
    """The first of what is wrong."""
    wrong: int
    """How much is wrong in all."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; lines without a seal are not wrong in themselves."""
        return self.wrong == 0
