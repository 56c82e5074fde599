"""Who may approve, how many of them must, and of which kinds of mitigation: as the file has it.

And what is wrong with it. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Protocol

from pydantic import AfterValidator, Field

from remediator.config.file import Key
from remediator.config.sections import Name, Section
from remediator.config.severities import Times, TimesBySeverity
from remediator.model.access import Permission, Role, permits
from remediator.model.catalog import Catalogue
from remediator.model.kinds import KINDS, ApprovalClass
from remediator.model.target import Risk
from remediator.model.validation import did_you_mean

Complaint = tuple[Key, str]
People = Annotated[tuple[Name, ...], Field(min_length=1)]
"""Names of persons."""
Number = Annotated[int, Field(strict=True, ge=1, le=10)]


def _slack_user(text: str) -> str:
    if not re.fullmatch(r"[UW][A-Z0-9]{1,30}", text):
        raise ValueError("should be Slack's id of a user, such as U024BE7LH, not a name")
    return text


SlackUser = Annotated[str, AfterValidator(_slack_user)]


class Approver(Section):
    """A person, known by one name whichever way the yes comes."""

    name: Name
    """The person's name; that of their credential where they have one. Unique."""
    slack: SlackUser | None = None
    """Slack's id of the user, such as `U024BE7LH`: in the profile, "Copy member ID"."""
    role: Role = Role.OPERATOR
    """`operator` and `admin` may approve, reject, pause and take over in Slack."""

    @property
    def decides(self) -> bool:
        """Whether the role lets the person decide."""
        return permits(self.role, Permission.OPERATE)


class ApprovalsByRisk(Section):
    """How many different persons must approve, by the risk of what is proposed, and in what time."""

    low: Number | None = None
    """For mitigations of low risk; left out: as one level up."""
    medium: Number | None = None
    """For mitigations of medium risk; left out: as one level up."""
    high: Number | None = None
    """For mitigations of high risk; left out: as one level up."""
    within: Times = TimesBySeverity()
    """Time that an approval is waited for: one, or a mapping of `sev1` to `sev4` to times. Left
    out: as one level up; at the top 5m, 15m, 60m and 60m."""

    def over(self, needed: Mapping[Risk, int]) -> dict[Risk, int]:
        """Return ``needed`` with what is set here in its place."""
        return {risk: getattr(self, risk) or number for risk, number in needed.items()}


ByKind = Annotated[
    dict[str, ApprovalClass], Field(json_schema_extra={"propertyNames": {"enum": sorted(KINDS)}})
]
"""Who has to agree, by the kind of the mitigation."""


class _Narrowing(Protocol):
    @property
    def mitigations(self) -> ByKind: ...


class _NarrowingSystem(_Narrowing, Protocol):
    @property
    def services(self) -> Mapping[str, _Narrowing]: ...


def narrowed(
    catalogue: Catalogue, top: ByKind, systems: Mapping[str, _NarrowingSystem]
) -> Catalogue:
    """Return ``catalogue`` with what each service makes of each kind: the strictest word counts."""
    services = []
    for service in catalogue.services:
        system = systems[service.system]
        levels = (top, system.mitigations, system.services[service.name].mitigations)
        services.append(service.model_copy(update={"mitigations": _strictest(levels)}))
    return catalogue.model_copy(update={"services": tuple(services)})


def _strictest(levels: Iterable[ByKind]) -> ByKind:
    found: ByKind = {}
    for level in levels:
        for kind, word in level.items():
            found[kind] = max(word, found.get(kind, word), key=list(ApprovalClass).index)
    return found


def kind_complaints(
    top: ByKind, systems: Mapping[str, _NarrowingSystem], deciders: list[str]
) -> Iterator[Complaint]:
    """Yield the kinds that there are not, and those that two must approve where one may."""
    for key, named in _places(top, systems):
        for kind, word in named.items():
            if kind not in KINDS:
                hint = did_you_mean(kind, sorted(KINDS))
                yield (*key, kind), f"there is no mitigation of the kind {kind!r}; {hint}"
            elif word.approvals > max(len(deciders), 1):
                who = ", ".join(deciders) or "nobody"
                yield (*key, kind), f"two different persons must approve, but only {who} may"


def _places(top: ByKind, systems: Mapping[str, _NarrowingSystem]) -> Iterator[tuple[Key, ByKind]]:
    yield ("mitigations",), top
    for system, entry in systems.items():
        yield ("systems", system, "mitigations"), entry.mitigations
        for name, service in entry.services.items():
            yield ("systems", system, "services", name, "mitigations"), service.mitigations


def approver_complaints(approvers: Iterable[Approver]) -> Iterator[Complaint]:
    """Yield the approvers who cannot be told apart."""
    known = list(approvers)
    names = Counter(one.name for one in known)
    users = Counter(one.slack for one in known if one.slack)
    for position, one in enumerate(known):
        if names[one.name] > 1:
            yield ("approvers", position, "name"), "is the name of another approver too"
        if one.slack and users[one.slack] > 1:
            yield ("approvers", position, "slack"), "is the Slack user of another approver too"


def naming_complaints(named: Iterable[str], key: Key, deciders: list[str]) -> Iterator[Complaint]:
    """Yield the names in the list at ``key`` that belong to none of the ``deciders``."""
    for position, name in enumerate(named):
        if name not in deciders:
            hint = did_you_mean(name, deciders)
            yield (*key, position), f"there is no operator or admin called {name!r}; {hint}"


def number_complaints(
    needed: Mapping[Risk, int], may: Iterable[str], key: Key
) -> Iterator[Complaint]:
    """Yield the numbers that can never be reached by those who ``may`` approve at ``key``."""
    people = sorted(set(may))
    most = max(needed.values())
    if most > max(len(people), 1):
        who = f"only {', '.join(people)}" if people else "nobody"
        yield (
            (*key, "approvals"),
            f"{most} different persons must approve, but {who} may; add to approvers, or ask for fewer",
        )
