"""Opens the ways to people: Slack, PagerDuty and what apprise knows. And looks at them for `check`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Literal

from remediator.config.escalation import ChannelEntry
from remediator.config.sections import PagerDuty, SecretRef
from remediator.config.settings import Settings
from remediator.model.catalog import Catalogue
from remediator.model.errors import ConfigError
from remediator.model.notification import Channel
from remediator.notify.escalation import NOTES, PAGERDUTY
from remediator.notify.paging import ChatChannel
from remediator.service.backends import open_notifier

Line = tuple[Literal["ok", "warning", "error"], str, str]
"""How it is, of what, and a sentence."""
_ROUTING_KEY = re.compile(r"[A-Za-z0-9]{32}")
_NOT_SENT = "nothing was sent"


@contextlib.asynccontextmanager
async def open_channels(
    settings: Settings, environ: Mapping[str, str]
) -> AsyncIterator[dict[str, Channel]]:
    """Open every channel that is configured, by name; none is contacted.

    Raises ``ConfigError`` with every channel that cannot be used.
    """
    opened: dict[str, Channel] = {}
    wrong: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        if settings.slack is not None:
            opened["slack"] = ChatChannel(open_notifier(settings, environ))
        if settings.pagerduty is not None:
            opened |= await _pagerduty(settings.pagerduty, environ, stack)
        for name, entry in settings.channels.items():
            try:
                opened[name] = _apprise(name, entry, environ)
            except ConfigError as error:
                wrong.append(f"{settings.where('channels', name)}: {error}")
        if wrong:
            raise ConfigError("\n".join(wrong))
        yield opened


def _apprise(name: str, entry: ChannelEntry, environ: Mapping[str, str]) -> Channel:
    from remediator.notify.apprise import AppriseChannel  # noqa: PLC0415 - only where configured

    return AppriseChannel(name, _read(entry.secret("apprise_url"), environ) or "")


async def _pagerduty(
    section: PagerDuty, environ: Mapping[str, str], stack: contextlib.AsyncExitStack
) -> dict[str, Channel]:
    from remediator.notify.pagerduty import PagerDutyEvents  # noqa: PLC0415 - only where configured
    from remediator.notify.pagerduty_notes import (  # noqa: PLC0415 - only where configured
        PagerDutyNotes,
    )

    opened: dict[str, Channel] = {}
    key = _read(section.secret("routing_key"), environ)
    if key is not None:
        events = PagerDutyEvents(key, section.events_url)
        opened[PAGERDUTY] = await stack.enter_async_context(events)
    token = _read(section.secret("api_token"), environ)
    if token is not None and section.from_email is not None:
        notes = PagerDutyNotes(token, section.from_email, section.api_url)
        opened[NOTES] = await stack.enter_async_context(notes)
    return opened


def _read(reference: SecretRef | None, environ: Mapping[str, str]) -> str | None:
    return None if reference is None else reference.read(environ)


# --- for `remediator check` -------------------------------------------------------------------


def look_at_channels(
    settings: Settings, catalogue: Catalogue, environ: Mapping[str, str]
) -> Iterator[Line]:
    """Say what can be verified without sending anything."""
    for name, entry in settings.channels.items():
        subject = f"channel {name}"
        try:
            _apprise(name, entry, environ)
        except ConfigError as error:
            said = str(error).removeprefix(f"{subject}: ")
            yield "error", subject, f"{settings.where('channels', name)}: {said}"
        else:
            yield "ok", subject, f"its URL can be read; {_NOT_SENT}"
    if settings.pagerduty is not None:
        yield from _pagerduty_lines(settings.pagerduty, environ)
    yield from _levels(settings, catalogue)


def _pagerduty_lines(section: PagerDuty, environ: Mapping[str, str]) -> Iterator[Line]:
    try:
        key = _read(section.secret("routing_key"), environ)
        token = _read(section.secret("api_token"), environ)
    except ConfigError as error:
        yield "error", PAGERDUTY, str(error)
        return
    if key is not None and not _ROUTING_KEY.fullmatch(key):
        form = "does not look like an integration key of 32 letters and digits"
        yield "warning", PAGERDUTY, f"{section.secret('routing_key')} {form}; {_NOT_SENT}"
    elif key is not None:
        yield "ok", PAGERDUTY, f"the routing key can be read; {_NOT_SENT}"
    if token is not None and section.from_email is None:
        missing = "without from_email no notes are written and nothing is acknowledged there"
        yield "warning", PAGERDUTY, missing
    elif token is not None:
        yield "ok", PAGERDUTY, f"notes are written as {section.from_email}; {_NOT_SENT}"
    if section.from_email is not None and "@" not in section.from_email:
        yield "warning", PAGERDUTY, "from_email should be the e-mail address of a user there"


def _levels(settings: Settings, catalogue: Catalogue) -> Iterator[Line]:
    silent = [f"{s.system}/{s.name}" for s in catalogue.services if not s.escalation.levels]
    if silent and (settings.channels or settings.pagerduty is not None):
        yield "warning", "escalation", f"nobody is called for {', '.join(silent)}"
