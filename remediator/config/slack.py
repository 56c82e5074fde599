"""Slack, as the file has it: how it is reached, and where what is told. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Protocol, Self

from pydantic import AfterValidator, model_validator

from remediator.config.file import Key
from remediator.config.sections import File, Section, Text, Variable, WebUrl
from remediator.model.severity import SEVERITIES, Severity
from remediator.model.views import ChatPlace, IncidentView

_MENTION = r"<!subteam\^S[A-Z0-9]{1,30}>|<@[UW][A-Z0-9]{1,30}>|<!here>|<!channel>"


def _mention(text: str) -> str:
    if not re.fullmatch(rf"(?:{_MENTION})(?: (?:{_MENTION}))*", text):
        raise ValueError(
            "should be what Slack writes for a group or a person, such as <!subteam^S0123ABCD>,"
            " <@U024BE7LH> or <!here>; several with a space between them"
        )
    return text


_BOT_ONLY = "needs slack.token_file or token_env: a webhook posts to its own channel only"


Mention = Annotated[str, AfterValidator(_mention)]


class ChannelsBySeverity(Section):
    """Channels for incidents of one severity each."""

    sev1: Text | None = None
    """Channel for severity 1. Default: the `channel` beside `channels`."""
    sev2: Text | None = None
    """Channel for severity 2. Default: the `channel` beside `channels`."""
    sev3: Text | None = None
    """Channel for severity 3. Default: the `channel` beside `channels`."""
    sev4: Text | None = None
    """Channel for severity 4. Default: the `channel` beside `channels`."""

    def of(self, severity: Severity) -> str | None:
        """Return the channel of ``severity``, where it has one of its own."""
        channel: str | None = getattr(self, f"sev{severity}")
        return channel

    def named(self) -> Iterator[str]:
        """Name the severities that have a channel."""
        yield from (f"sev{severity}" for severity in SEVERITIES if self.of(severity) is not None)


class SlackPlace(Section):
    """Where one system or service is told of in Slack."""

    channel: Text | None = None
    """Channel that its incidents are posted to. Default: as one level up."""
    channels: ChannelsBySeverity = ChannelsBySeverity()
    """Channels by severity, before `channel` and before all channels of the level above."""
    mention: Mention | None = None
    """Who is mentioned when somebody has to act, such as `<!subteam^S0123ABCD>`. Default: as one
    level up."""

    def over(self, place: ChatPlace, severity: Severity) -> ChatPlace:
        """Return ``place`` with what is set here for ``severity`` in its place."""
        return ChatPlace(
            channel=self.channels.of(severity) or self.channel or place.channel,
            mention=self.mention or place.mention,
        )


class Slack(Section):
    """Slack, by bot token (messages are edited in place) or by incoming webhook."""

    channel: Text | None = None
    """Channel that incidents are posted to; needed with a bot token."""
    channels: ChannelsBySeverity = ChannelsBySeverity()
    """Channels by severity, before `channel`; they need a bot token."""
    mention: Mention | None = None
    """Who is mentioned when somebody has to act, such as `<!subteam^S0123ABCD>`. Default: nobody."""
    token_file: File | None = None
    """File with the bot token."""
    token_env: Variable | None = None
    """Environment variable with the bot token."""
    webhook_url_file: File | None = None
    """File with the URL of an incoming webhook; used when there is no bot token."""
    webhook_url_env: Variable | None = None
    """Environment variable with the URL of an incoming webhook."""
    signing_secret_file: File | None = None
    """File with the app's signing secret; needed for buttons."""
    signing_secret_env: Variable | None = None
    """Environment variable with the app's signing secret."""
    api_url: WebUrl = "https://slack.com/api"
    """Base URL of the Web API."""

    @model_validator(mode="after")
    def _can_post(self) -> Self:
        if not (self.secret("token") or self.secret("webhook_url")):
            raise ValueError("needs token_file, token_env, webhook_url_file or webhook_url_env")
        if self.secret("token") and not self.channel:
            raise ValueError("needs a channel to post to with the bot token")
        if not self.secret("token") and any(self.channels.named()):
            raise ValueError(f"channels by severity: {_BOT_ONLY}")
        return self


class _Told(Protocol):
    @property
    def slack(self) -> SlackPlace: ...


class _ToldSystem(_Told, Protocol):
    @property
    def services(self) -> Mapping[str, _Told]: ...


class Places:
    """Says where in Slack each incident is told."""

    def __init__(self, slack: Slack, systems: Mapping[str, _ToldSystem]) -> None:
        self._slack = slack
        self._systems = systems

    def of(self, incident: IncidentView) -> ChatPlace:
        """Return the place of an incident; that at the top where its service is not known."""
        slack, severity = self._slack, incident.severity
        channel = slack.channels.of(severity) or slack.channel
        top = ChatPlace(channel=channel or "", mention=slack.mention or "")
        system = self._systems.get(incident.system or "")
        if system is None:
            return top
        service = system.services.get(incident.service or "")
        place = system.slack.over(top, severity)
        return place if service is None else service.slack.over(place, severity)


def place_complaints(
    slack: Slack | None, systems: Mapping[str, _ToldSystem]
) -> Iterator[tuple[Key, str]]:
    """Yield the places that nothing could be posted to."""
    for key, place in _places(systems):
        channels: list[Key] = [("channel",)] if place.channel is not None else []
        channels += [("channels", name) for name in place.channels.named()]
        if channels and (slack is None or slack.secret("token") is None):
            yield from (((*key, "slack", *channel), _BOT_ONLY) for channel in channels)
        elif place.mention is not None and slack is None:
            yield (*key, "slack", "mention"), "needs slack: nothing is told there"


def _places(systems: Mapping[str, _ToldSystem]) -> Iterator[tuple[Key, SlackPlace]]:
    for name, system in systems.items():
        yield ("systems", name), system.slack
        for service, entry in system.services.items():
            yield ("systems", name, "services", service), entry.slack
