"""Slack, as the file has it: how it is reached, and where what is told. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Protocol, Self

from pydantic import AfterValidator, model_validator

from remediator.configfile import Key
from remediator.sections import File, Section, Text, Variable, WebUrl
from remediator.views import ChatPlace, IncidentView

_MENTION = r"<!subteam\^S[A-Z0-9]{1,30}>|<@[UW][A-Z0-9]{1,30}>|<!here>|<!channel>"


def _mention(text: str) -> str:
    if not re.fullmatch(rf"(?:{_MENTION})(?: (?:{_MENTION}))*", text):
        raise ValueError(
            "should be what Slack writes for a group or a person, such as <!subteam^S0123ABCD>,"
            " <@U024BE7LH> or <!here>; several with a space between them"
        )
    return text


Mention = Annotated[str, AfterValidator(_mention)]


class SlackPlace(Section):
    """Where one system or service is told of in Slack."""

    channel: Text | None = None
    """Channel that its incidents are posted to. Default: as one level up."""
    mention: Mention | None = None
    """Who is mentioned when somebody has to act, such as `<!subteam^S0123ABCD>`. Default: as one
    level up."""

    def over(self, place: ChatPlace) -> ChatPlace:
        """Return ``place`` with what is set here in its place."""
        return ChatPlace(
            channel=self.channel or place.channel, mention=self.mention or place.mention
        )


class Slack(Section):
    """Slack, by bot token (messages are edited in place) or by incoming webhook."""

    channel: Text | None = None
    """Channel that incidents are posted to; needed with a bot token."""
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
        self._top = ChatPlace(channel=slack.channel or "", mention=slack.mention or "")
        self._systems = systems

    def of(self, incident: IncidentView) -> ChatPlace:
        """Return the place of an incident; that at the top where its service is not known."""
        system = self._systems.get(incident.system or "")
        if system is None:
            return self._top
        service = system.services.get(incident.service or "")
        place = system.slack.over(self._top)
        return place if service is None else service.slack.over(place)


def place_complaints(
    slack: Slack | None, systems: Mapping[str, _ToldSystem]
) -> Iterator[tuple[Key, str]]:
    """Yield the places that nothing could be posted to."""
    for key, place in _places(systems):
        if place.channel is not None and (slack is None or slack.secret("token") is None):
            needs = "needs slack.token_file or token_env: a webhook posts to its own channel only"
            yield (*key, "slack", "channel"), needs
        elif place.mention is not None and slack is None:
            yield (*key, "slack", "mention"), "needs slack: nothing is told there"


def _places(systems: Mapping[str, _ToldSystem]) -> Iterator[tuple[Key, SlackPlace]]:
    for name, system in systems.items():
        yield ("systems", name), system.slack
        for service, entry in system.services.items():
            yield ("systems", name, "services", service), entry.slack
