"""GATHER: which records of a sender are over its bound, and which digest takes them. Pure."""

from __future__ import annotations

from remediator.model.base import IncidentId
from remediator.model.correlation import Snapshot
from remediator.model.unmatched import Digest, RecordBound, SenderRecords, described


class Gathering:
    """Counts records by sender and place, on top of those that are stored."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Begin with what ``snapshot`` has of the window."""
        self._bound: RecordBound = snapshot.bound
        self._standings = dict(snapshot.standings)
        self._digests = {
            standing.digest: key for key, standing in self._standings.items() if standing.digest
        }
        self._grown: dict[IncidentId, None] = {}

    def is_full(self, sender: str, place: str) -> bool:
        """Say whether the sender has no record of its own left there."""
        return self._of(sender, place).records >= self._bound.count

    def digest(self, sender: str, place: str) -> IncidentId | None:
        """Return the digest of the sender that still takes alerts there."""
        return self._of(sender, place).digest

    def opened(self, sender: str, place: str) -> None:
        """Count a record."""
        standing = self._of(sender, place)
        self._put(sender, place, standing.model_copy(update={"records": standing.records + 1}))

    def begin(self, sender: str, place: str, digest: IncidentId) -> None:
        """Let ``digest`` take what is over the bound."""
        self._digests[digest] = (sender, place)
        self._put(sender, place, self._of(sender, place).model_copy(update={"digest": digest}))

    def joined(self, incident: IncidentId) -> None:
        """Count an alert, where it joined a digest."""
        if incident not in self._digests:
            return
        sender, place = self._digests[incident]
        standing = self._of(sender, place)
        self._put(sender, place, standing.model_copy(update={"gathered": standing.gathered + 1}))
        self._grown[incident] = None

    def grown(self) -> dict[IncidentId, Digest]:
        """Return the digests that took more alerts."""
        found = {}
        for incident in self._grown:
            sender, place = self._digests[incident]
            standing = self._of(sender, place)
            reason = described(sender, standing, self._bound)
            found[incident] = Digest(gathered=standing.gathered, reason=reason)
        return found

    def _of(self, sender: str, place: str) -> SenderRecords:
        return self._standings.get((sender, place), SenderRecords())

    def _put(self, sender: str, place: str, standing: SenderRecords) -> None:
        self._standings[sender, place] = standing
