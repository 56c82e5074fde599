"""The frozen nouns that flow through the service, in the order of the data.

    bytes -> Delivery -> [Alert] -> Incident -> Playbook -> [Finding] -> [Mitigation]
          -> Decision -> Outcome -> Verdict -> Report

Every room imports these and nothing here imports a room. All datetimes are aware.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from remediator.model.base import Value

# --- triage -----------------------------------------------------------------------------------


Severity = Annotated[int, Field(ge=1, le=4)]
"""1 is the worst, whatever the sender's own word for it is."""


class Handling(StrEnum):
    """What the service may do about an incident, by the modes that held when it was opened."""

    ACTS = "acts"
    """It may change something by itself."""
    ASKS = "asks"
    """It may change something once a human agrees."""
    RECORDS = "records"
    """It only records what it would do, or that nothing takes the alert."""


LABELS = ("severity", "priority", "level")
"""Labels that are looked at, in this order: the first one whose word is known counts."""
UNKNOWN: Severity = 3
"""What an alert counts as whose labels hold no known word."""
SEVERITIES: tuple[Severity, ...] = (1, 2, 3, 4)
WORDS: Mapping[str, Severity] = {
    word: severity
    for severity, words in {
        1: "critical crit page emergency emerg fatal disaster panic alert blocker sev0 p0 p1",
        2: "error err high major urgent p2",
        3: "warning warn medium moderate average minor ticket p3",
        4: "info information informational notice low none debug ok trivial p4 p5",
    }.items()
    for word in words.split()
} | {f"{prefix}{n}": n for prefix in ("", "sev", "severity", "l", "level") for n in SEVERITIES}
"""Common words in their plain form. P1 is the worst one where there is no P0: a system that has
both says so, in ``severities.words``."""
APPROVAL_TIMES: Mapping[Severity, timedelta] = {
    1: timedelta(minutes=5),
    2: timedelta(minutes=15),
    3: timedelta(minutes=60),
    4: timedelta(minutes=60),
}
"""Time that an approval is waited for (procedures, section 0)."""
LONGEST_WORD = 60
"""Characters that are kept of a sender's word."""
_REST = re.compile(r"\s-\s|[(\[,/:]")


class Unmatched(StrEnum):
    """What is done about an alert that no playbook takes, in the order of how loud it is."""

    RECORD = "record"
    """It is recorded."""
    MESSAGE = "message"
    """Humans are told of the record."""
    PAGE = "page"
    """The levels of the escalation begin at once, and humans are told of the record."""


UNMATCHED: Mapping[Severity, Unmatched] = {
    1: Unmatched.PAGE,
    2: Unmatched.MESSAGE,
    3: Unmatched.RECORD,
    4: Unmatched.RECORD,
}


class Rating(Value):
    """How severe one alert is, and the sender's own word for it."""

    severity: Severity = UNKNOWN
    word: str = ""
    """Empty where none of the labels that are looked at is there."""
    unmatched: Unmatched = Unmatched.RECORD
    """What is done about it where no playbook takes it."""


class Severities(Value):
    """What the words of one service mean."""

    labels: tuple[str, ...] = LABELS
    words: dict[str, Severity] = Field(default_factory=lambda: dict(WORDS))
    """By their plain form."""
    unknown: Severity = UNKNOWN
    unmatched: dict[Severity, Unmatched] = Field(default_factory=lambda: dict(UNMATCHED))

    def knows(self, word: str) -> bool:
        """Say whether ``word`` is one whose severity is known."""
        return self._of(word) is not None

    def _of(self, word: str) -> Severity | None:
        """Read ``P1`` and also ``P1 - Critical`` or ``P1 (High)``, where the first part counts."""
        first = _REST.split(word, maxsplit=1)[0]
        return self.words.get(plain(word), self.words.get(plain(first)))

    def rate(self, labels: Mapping[str, str]) -> Rating:
        """Return the severity of an alert with ``labels``."""
        words = [_shown(labels.get(name, "")) for name in self.labels]
        for word in filter(None, words):
            severity = self._of(word)
            if severity is not None:
                return Rating(severity=severity, word=word)
        return Rating(severity=self.unknown, word=next(filter(None, words), ""))


def plain(word: str) -> str:
    """Return ``word`` as it is compared: ``Sev 1``, ``SEV-1`` and ``sev_1`` are the same."""
    return re.sub(r"[\s_.#:-]+", "", word.casefold())


def _shown(text: str) -> str:
    """Return a sender's word as people may be shown it: short, on one line, nothing invisible."""
    short = " ".join(text[: 10 * LONGEST_WORD].split())
    return "".join(letter for letter in short if letter.isprintable())[:LONGEST_WORD].strip()


def worst(ratings: Iterable[Rating]) -> Rating:
    """Return the worst of ``ratings``; the first one of several that are as bad.

    What is done where no playbook takes them is the loudest that one of them asks for.
    """
    every = list(ratings)
    loudest = max((rating.unmatched for rating in every), key=list(Unmatched).index)
    found = min(every, key=lambda rating: rating.severity)
    return found.model_copy(update={"unmatched": loudest})


def rank(severity: Severity, handling: Handling) -> int:
    """Return the place in a queue, the lowest first.

    By severity; of the same severity, what may act before what asks. What is only recorded comes
    after all of them, whatever its severity: nobody waits for it.
    """
    if handling is Handling.RECORDS:
        return 10 + severity
    return 2 * severity + (handling is Handling.ASKS)
