"""What the words for severities mean, as the file has it, and how long approvals take. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from remediator.config.sections import Period, Section, Text
from remediator.model.duration import Duration, parse_duration
from remediator.model.severity import SEVERITIES, Severities, Severity, Unmatched, plain


class UnmatchedBySeverity(Section):
    """What is done about an alert that no playbook takes: `page`, `message` or `record`."""

    sev1: Unmatched | None = None
    """For severity 1; left out: as one level up, at the top `page`."""
    sev2: Unmatched | None = None
    """For severity 2; left out: as one level up, at the top `message`."""
    sev3: Unmatched | None = None
    """For severity 3; left out: as one level up, at the top `record`."""
    sev4: Unmatched | None = None
    """For severity 4; left out: as one level up, at the top `record`."""

    def over(self, base: Mapping[Severity, Unmatched]) -> dict[Severity, Unmatched]:
        """Return ``base`` with what is set here in its place."""
        return {severity: getattr(self, f"sev{severity}") or base[severity] for severity in base}


class SeveritiesEntry(Section):
    """How severe alerts are: which labels say so, and what their words mean."""

    labels: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """Labels to look at, in this order: the first one whose word is known counts. Default
    `severity`, `priority`, `level`."""
    words: dict[Text, Annotated[Severity, Field(strict=True)]] = Field(default_factory=dict)
    """Your words and what each means, `1` (the worst) to `4`, such as `P0: 1`. Capitals, spaces and
    hyphens make no difference. Words that are not here mean what they mean one level up; at the top
    common ones are known."""
    unknown: Annotated[Severity, Field(strict=True)] | None = None
    """What an alert without a known word counts as. Default 3."""
    unmatched: UnmatchedBySeverity = UnmatchedBySeverity()
    """What is done, by severity, about an alert that no playbook takes."""

    @field_validator("words")
    @classmethod
    def _told_apart(cls, words: dict[str, Severity]) -> dict[str, Severity]:
        seen: dict[str, str] = {}
        for word, severity in words.items():
            form = plain(word)
            if not form:
                raise ValueError(f"{word!r} is no word: it has neither letters nor digits")
            other = seen.setdefault(form, word)
            if words[other] != severity:
                raise ValueError(f"{other!r} and {word!r} are the same word; keep one of them")
        return words

    def over(self, base: Severities) -> Severities:
        """Return ``base`` with what is set here in its place."""
        return Severities(
            labels=self.labels or base.labels,
            words={**base.words, **{plain(word): s for word, s in self.words.items()}},
            unknown=self.unknown or base.unknown,
            unmatched=self.unmatched.over(base.unmatched),
        )


class TimesBySeverity(Section):
    """A time for each severity."""

    sev1: Period | None = None
    """For severity 1, the worst; left out: as one level up."""
    sev2: Period | None = None
    """For severity 2; left out: as one level up."""
    sev3: Period | None = None
    """For severity 3; left out: as one level up."""
    sev4: Period | None = None
    """For severity 4; left out: as one level up."""

    def over(self, base: Mapping[Severity, timedelta]) -> dict[Severity, timedelta]:
        """Return ``base`` with what is set here in its place."""
        return {severity: getattr(self, f"sev{severity}") or base[severity] for severity in base}


def _times(value: object) -> object:
    if not isinstance(value, str):
        return value
    parse_duration(value)  # so that the mistake is told in one place, not in four
    return {f"sev{severity}": value for severity in SEVERITIES}


Times = Annotated[
    TimesBySeverity,
    BeforeValidator(_times, json_schema_input_type=Duration | TimesBySeverity),
]
"""One time for every severity, or a mapping by severity."""
