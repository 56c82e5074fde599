"""What is wrong with the chains of the journal: changed, missing, reordered, cut or added entries.

Pure; the service runs it over its store, the command line over an export.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType

from remediator.model.audit import Flaw, Verification, Wrong
from remediator.store.audit.chain import (
    BROKEN,
    CLOSED,
    DELETED,
    OPENED,
    OPERATORS,
    STEP,
    Entry,
    Head,
    Keys,
    Part,
    entry_content,
    head_content,
)

_SHOWN = 200
"""Flaws, and chains with unsealed lines, that are named."""

_HEADLESS = "how far it goes is not noted any more"
_ALL = Part()


@dataclass(slots=True)
class _Chain:
    number: int = 0
    mac: str = ""
    begun: bool = False
    lines: int = 0
    unsealed: int = 0
    inside: int = 0
    """Of the unsealed ones, those that stand after a sealed one."""
    closed: tuple[int, str] | None = None
    """How far it went when its incident was closed, or last wrote after that."""
    head: bool = False
    gaps: list[tuple[int, int]] = field(default_factory=list)
    late: list[tuple[int, int]] = field(default_factory=list)
    """Numbers that stand after a higher one, and that one."""
    ended: bool = False
    """Whether something was said about its end already."""
    flawed: bool = False


class Verifier:
    """Takes entries in the order in which they stand, then the heads, and says what is wrong.

    Holds a little of every chain, and no entry. Of a ``part`` of the journal other chains lack, and
    in one since some time a chain may begin anywhere. ``earlier`` are heads that were kept
    elsewhere: what they say was there has to be there still.
    """

    def __init__(
        self, keys: Keys, *, part: Part = _ALL, earlier: Mapping[str, Head] = MappingProxyType({})
    ) -> None:
        self._keys = keys
        self._whole = part.whole
        self._part = part
        self._earlier = dict(earlier)
        self._compared = len(self._earlier)
        self._unproved = 0
        self._chains: dict[str, _Chain] = {}
        self._flaws: list[Flaw] = []
        self._wrong = 0
        self._good = self._unsealed = self._bared = 0
        self._since: datetime | None = None
        self._gone: list[tuple[str, str]] = []
        """Incidents that have no entries, and why they should."""
        self._unsealed_chains: dict[str, None] = {}
        self._good_keys: set[str] = set()
        self._unknown: dict[str, int] = {}

    def entry(self, entry: Entry) -> None:
        """Take the next entry."""
        chain = self._chains.setdefault(entry.chain, _Chain())
        if entry.number is None and entry.mac is None:
            self._without_seal(entry, chain)
            return
        chain.lines += 1
        if entry.number is None or entry.mac is None:
            half = "its number" if entry.number is None else "its seal"
            self._flaw(entry.chain, entry.number, Wrong.CHANGED, f"{half} was taken away")
            return
        if entry.number <= chain.number:
            chain.late.append((entry.number, chain.number))
            return
        self._next(entry, entry.number, entry.mac, chain)

    def _without_seal(self, entry: Entry, chain: _Chain) -> None:
        self._unsealed += 1
        chain.unsealed += 1
        chain.inside += chain.number > 0
        if len(self._unsealed_chains) < _SHOWN:
            self._unsealed_chains[entry.chain] = None
        of_audit = entry.chain == OPERATORS and entry.step == STEP
        # what retention deletes without a key, it writes down without heads
        self._bared += of_audit and (entry.event != DELETED or bool(entry.data.get("heads")))

    def _next(self, entry: Entry, number: int, mac: str, chain: _Chain) -> None:
        follows = number == chain.number + 1
        if not follows:
            self._gap(chain, number)
        before, chain.number, chain.mac = chain.mac, number, mac
        kept = self._earlier.get(entry.chain)
        if kept is not None and (kept.count, kept.mac) == (number, mac):
            del self._earlier[entry.chain]
        if not follows:  # what it was sealed over is not there
            return
        content = entry_content(vars(entry), entry.chain, number, before)
        good = self._sealed(content, mac)
        if good is None:
            return
        if not good:
            detail = "it does not say what was sealed"
            self._flaw(entry.chain, number, Wrong.CHANGED, detail)
            return
        self._good += 1
        if entry.chain == OPERATORS and number == 1:
            self._since = entry.at
        if entry.step == STEP:
            self._kept(entry)

    def _gap(self, chain: _Chain, number: int) -> None:
        if self._part.since is not None and not chain.number:
            self._unproved += 1
        else:
            chain.gaps.append((chain.number + 1, number - 1))

    def _sealed(self, content: bytes, mac: str) -> bool | None:
        good = self._keys.good(content, mac)
        key = mac.partition(":")[0]
        if good is None:
            self._unknown[key] = self._unknown.get(key, 0) + 1
        elif good:
            self._good_keys.add(key)
        return good

    def _kept(self, entry: Entry) -> None:
        """Note what the audit itself wrote down."""
        register = {OPENED: self._begun, CLOSED: self._closed, DELETED: self._deleted}
        if entry.event == BROKEN:
            self._broken(entry)
        elif entry.chain == OPERATORS and entry.event in register:
            register[entry.event](entry)

    def _begun(self, entry: Entry) -> None:
        for name in entry.data["chains"]:
            chain = self._chains.setdefault(name, _Chain())
            if chain.begun:
                detail = f"it was begun a second time, says {OPERATORS} {entry.number}"
                self._flaw(name, 1, Wrong.CUT, detail)
            chain.begun = True

    def _closed(self, entry: Entry) -> None:
        for name, (count, mac) in entry.data["heads"].items():
            self._chains.setdefault(name, _Chain()).closed = (count, mac)

    def _deleted(self, entry: Entry) -> None:
        for name, head in entry.data["heads"].items():
            self._earlier.pop(name, None)
            chain = self._chains.pop(name, None)
            if chain is None:
                continue
            by = f"{OPERATORS} {entry.number} deleted"
            if chain.lines:
                detail = f"{chain.lines} entries stand there that {by}"
                self._flaw(name, None, Wrong.ADDED, detail)
            if chain.closed is not None and chain.closed != tuple(head):
                detail = f"it went up to {chain.closed[0]}, and up to {head[0]} when {by} it"
                self._flaw(name, None, Wrong.CUT, detail)

    def _broken(self, entry: Entry) -> None:
        """A head was found that this service had not sealed; with all keys it may be good.

        Or one that it had sealed, but not as the last.
        """
        count, mac, seal = (entry.data.get(name) for name in ("count", "mac", "seal"))
        if "further" in entry.data:
            detail = f"it was set back to {count}: it went up to {entry.data['further']} before"
            self._flaw(entry.chain, entry.number, Wrong.CUT, detail)
            return
        content = head_content(entry.chain, count, mac)  # type: ignore[arg-type]
        if not (isinstance(seal, str) and self._keys.good(content, seal)):
            detail = "how far the chain went was changed or set back just before it was written"
            self._flaw(entry.chain, entry.number, Wrong.CUT, detail)

    def head(self, head: Head) -> None:
        """Take the head of a chain; after all entries."""
        chain = self._chains.setdefault(head.chain, _Chain())
        if self._part.since is not None and not chain.lines:
            return
        chain.head = True
        good = self._sealed(head_content(head.chain, head.count, head.mac), head.seal)
        if good is False:
            detail = "how far it goes does not say what was sealed"
            self._flaw(head.chain, None, Wrong.CHANGED, detail)
        elif (head.count, head.mac) != (chain.number, chain.mac):
            self._ends_elsewhere(head.chain, chain, head.count)

    def _ends_elsewhere(self, name: str, chain: _Chain, count: int) -> None:
        if chain.ended:
            return
        chain.ended = True
        if not chain.lines:
            detail = f"all of it, up to {count}, is gone"
            self._flaw(name, None, Wrong.MISSING, detail)
        elif count > chain.number:
            detail = f"the end is gone: it went up to {count}"
            self._flaw(name, chain.number + 1, Wrong.CUT, detail)
        elif count < chain.number:
            detail = f"it goes on after its end, which is {count}"
            self._flaw(name, count + 1, Wrong.ADDED, detail)
        elif not chain.flawed:
            self._flaw(name, count, Wrong.CHANGED, "its last seal is not the one that was noted")

    def incident(self, name: str, opened_at: datetime) -> None:
        """Take an incident that the store has; after all heads. It has to have its entries."""
        chain = self._chains.get(name)
        if chain is not None and (chain.lines or chain.flawed):
            return
        if chain is None or not chain.unsealed:
            self._gone.append((name, "there is no entry of it, and the store has the incident"))
        elif self._since is not None and opened_at > self._since:
            self._gone.append((name, "it was opened after sealing began, and has no sealed entry"))

    # --- the result ---------------------------------------------------------------------------

    def result(self) -> Verification:
        """Say what was found; once, after everything was taken."""
        for name, chain in self._chains.items():
            self._order(name, chain)
        if self._whole:
            self._registered()
        else:
            self._headed()
        self._bare()
        for name, kept in self._earlier.items():
            detail = f"an earlier export has another entry {kept.count}"
            self._flaw(name, kept.count, Wrong.CUT, detail)
        self._keys_asked()
        return Verification(
            whole=self._whole,
            chains=sum(chain.lines > 0 for chain in self._chains.values()),
            entries=self._good,
            unsealed=self._unsealed,
            unsealed_chains=list(self._unsealed_chains),
            keys=sorted(self._good_keys),
            since=self._since,
            unproved=self._unproved,
            compared=self._compared,
            flaws=self._flaws[:_SHOWN],
            wrong=self._wrong,
        )

    def _order(self, name: str, chain: _Chain) -> None:
        late = dict(chain.late)
        for first, last in chain.gaps:
            inside = sorted(number for number in late if first <= number <= last)
            for number in inside:
                detail = f"it stands after {late.pop(number)}"
                self._flaw(name, number, Wrong.REORDERED, detail)
            for begin, end in _between(first, last, inside):
                missing = f"{begin}" if begin == end else f"{begin} to {end}"
                self._flaw(name, begin, Wrong.MISSING, f"missing: {missing}")
        for number, after in late.items():
            detail = f"there is more than one; this one stands after {after}"
            self._flaw(name, number, Wrong.ADDED, detail)

    def _registered(self) -> None:
        """Compare the chains with what the operators' chain says of them."""
        register = self._chains.get(OPERATORS)
        if register is None or not register.lines:
            if not self._unknown:
                self._flaw(OPERATORS, None, Wrong.MISSING, "there is no sealed entry in it")
            return
        sound = not (register.flawed or register.gaps or register.late or self._unknown)
        for name, chain in self._chains.items():
            if chain.closed is not None and chain.closed != (chain.number, chain.mac):
                self._ends_elsewhere(name, chain, chain.closed[0])
            elif chain.begun and not chain.lines and not chain.ended:
                self._flaw(name, None, Wrong.MISSING, "all of it is gone")
            elif chain.lines and not chain.head:
                self._flaw(name, None, Wrong.CUT, _HEADLESS)
            if sound and name != OPERATORS and chain.lines and not chain.begun:
                detail = f"{OPERATORS} does not know of it: it was deleted before, or is not ours"
                self._flaw(name, None, Wrong.ADDED, detail)

    def _headed(self) -> None:
        """Ask, of a part, for the head of each chain; and for the one chain that it is of."""
        for name, chain in self._chains.items():
            if chain.lines and not chain.head:
                self._flaw(name, None, Wrong.CUT, _HEADLESS)
        asked = self._part.incident
        if asked is None:
            return
        if asked not in self._chains:
            self._flaw(asked, None, Wrong.MISSING, "there is no entry of it")
        for name in self._chains.keys() - {asked}:
            self._flaw(name, None, Wrong.ADDED, f"only {asked} was asked for")

    def _bare(self) -> None:
        """Say what should have seals and has none."""
        for name, detail in self._gone:
            chain = self._chains.get(name)
            if chain is None or not chain.flawed:
                self._flaw(name, None, Wrong.MISSING, detail)
        for name, chain in self._chains.items():
            if chain.inside:
                detail = f"{chain.inside} without a seal among those that have one"
                self._flaw(name, None, Wrong.ADDED, detail)
        if self._bared:
            detail = f"{self._bared} that only a service with a key writes have lost their seals"
            self._flaw(OPERATORS, None, Wrong.CHANGED, detail)

    def _keys_asked(self) -> None:
        if not self._unknown:
            return
        named = ", ".join(sorted(self._unknown))
        if not self._good:
            detail = f"no entry matches the given key; they were sealed with {named}"
        else:
            count = sum(self._unknown.values())
            detail = f"{count} seals are of a key that was not given: {named}"
        self._flaw("", None, Wrong.KEY, detail)

    def _flaw(self, chain: str, number: int | None, what: Wrong, detail: str) -> None:
        known = self._chains.get(chain)
        if known is not None:
            known.flawed = True
        self._wrong += 1
        if len(self._flaws) < _SHOWN:
            self._flaws.append(Flaw(chain=chain, number=number, what=what, detail=detail))


def _between(first: int, last: int, there: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges from ``first`` to ``last`` without what is ``there``, which is sorted."""
    for number in (*there, last + 1):
        if first < number:
            yield first, number - 1
        first = number + 1
