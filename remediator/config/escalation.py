"""Who is called when a human is needed, as the file has it, and what it means. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Protocol, Self

from pydantic import Field, model_validator

from remediator.config.file import Key
from remediator.config.sections import File, Name, Period, Section, Variable
from remediator.model.catalog import Catalogue, Escalation, Level
from remediator.model.duration import Duration
from remediator.model.validation import did_you_mean

BUILT_IN = {"slack": "slack", "pagerduty": "pagerduty.routing_key_file or routing_key_env"}
"""Channels that need no entry under `channels`, and what has to be configured for them."""
_Complaint = tuple[Key, str]


class ChannelEntry(Section):
    """A way to people besides Slack and PagerDuty, such as e-mail, by apprise."""

    apprise_url_file: File | None = None
    """File with the URL that apprise has for it, such as `mailtos://user:password@host`."""
    apprise_url_env: Variable | None = None
    """Environment variable with that URL."""

    @model_validator(mode="after")
    def _has_url(self) -> Self:
        if self.secret("apprise_url") is None:
            raise ValueError("needs apprise_url_file or apprise_url_env")
        return self


class LevelEntry(Section):
    """One stage of an escalation."""

    after: Annotated[Duration, Field(strict=True)] = timedelta(0)
    """Time since a human was needed; each level's is longer than that of the one before."""
    notify: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Names of channels; `slack` and `pagerduty` are built in."""


class EscalationEntry(Section):
    """Who is called, and when, as long as nobody has what needs a human."""

    levels: tuple[LevelEntry, ...] | None = None
    """By their time. An empty list: nobody is called. Left out: as one level up; at the top
    `pagerduty` at once where it has a routing key, else nobody."""
    acknowledged_for: Period | None = None
    """Time after which an acknowledgement does not count any more. Default 30m."""

    def over(self, base: Escalation) -> Escalation:
        """Return ``base`` with what is set here in its place."""
        levels = base.levels
        if self.levels is not None:
            levels = tuple(Level(after=one.after, notify=one.notify) for one in self.levels)
        return Escalation(
            levels=levels, acknowledged_for=self.acknowledged_for or base.acknowledged_for
        )


class _Calling(Protocol):
    @property
    def escalation(self) -> EscalationEntry: ...


class _CallingSystem(_Calling, Protocol):
    @property
    def services(self) -> Mapping[str, _Calling]: ...


def escalated(
    catalogue: Catalogue,
    top: EscalationEntry,
    systems: Mapping[str, _CallingSystem],
    *,
    pages: bool,
) -> Catalogue:
    """Return ``catalogue`` with who is called for each service; ``pages``: PagerDuty can be."""
    first = (Level(after=timedelta(0), notify=("pagerduty",)),) if pages else ()
    everywhere = top.over(Escalation(levels=first))
    services = []
    for service in catalogue.services:
        system = systems[service.system]
        plan = system.services[service.name].escalation.over(system.escalation.over(everywhere))
        services.append(service.model_copy(update={"escalation": plan}))
    return catalogue.model_copy(update={"services": tuple(services), "escalation": everywhere})


def calling_complaints(
    top: EscalationEntry,
    systems: Mapping[str, _CallingSystem],
    channels: Mapping[str, ChannelEntry],
    built_in: frozenset[str],
) -> Iterator[_Complaint]:
    """Yield what names no channel, where ``built_in`` are those of ``BUILT_IN`` that there are."""
    for name in BUILT_IN.keys() & channels.keys():
        yield ("channels", name), "this name is built in; choose another one"
    known = {*channels, *built_in}
    for key, entry in _places(top, systems):
        yield from _level_complaints(entry, (*key, "escalation", "levels"), known)


def _places(
    top: EscalationEntry, systems: Mapping[str, _CallingSystem]
) -> Iterator[tuple[Key, EscalationEntry]]:
    yield (), top
    for name, system in systems.items():
        yield ("systems", name), system.escalation
        for service, entry in system.services.items():
            yield ("systems", name, "services", service), entry.escalation


def _level_complaints(entry: EscalationEntry, key: Key, known: set[str]) -> Iterator[_Complaint]:
    levels = entry.levels or ()
    for number, level in enumerate(levels):
        if number and level.after <= levels[number - 1].after:
            yield (*key, number, "after"), "should be later than the level before it"
        for place, name in enumerate(level.notify):
            if name not in known:
                yield (*key, number, "notify", place), _unknown(name, known)


def _unknown(name: str, known: set[str]) -> str:
    if name in BUILT_IN:
        return f"{name} is not configured; set {BUILT_IN[name]}"
    return f"there is no channel {name!r}; {did_you_mean(name, sorted(known))}"
