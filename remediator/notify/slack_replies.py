"""Answers the one person who pressed a button in Slack."""

from __future__ import annotations

from typing import Any

import aiohttp
import structlog
from yarl import URL

from remediator.notify.slack import API_URL, TIMEOUT
from remediator.notify.slack_blocks import draw_reply

HOOKS_HOST = "hooks.slack.com"
"""Where Slack takes replies to a click."""

_log = structlog.get_logger(__name__)


class SlackReplies:
    """Says something to the one person who clicked, at the address that came with the click.

    That address is Slack's word only as far as the signing secret is kept, so nothing is ever
    sent anywhere but to Slack itself, and no redirection is followed.
    """

    def __init__(self, api_url: str = API_URL, *, timeout: float = TIMEOUT) -> None:
        """Reply to Slack's hosts and that of ``api_url``; ``timeout`` is seconds for one call."""
        self._api = URL(api_url)
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    def draw(self, text: str) -> dict[str, Any]:
        """Return the message, visible to the one person only."""
        message = draw_reply(text)
        blocks = [block.to_dict() for block in message.blocks]
        shown = {"response_type": "ephemeral", "replace_original": False}
        return {**shown, "text": message.text, "blocks": blocks}

    def reaches(self, url: str) -> bool:
        """Whether ``url`` is at Slack, or where the API is configured to be."""
        try:
            asked = URL(url)
            if asked.user is not None or asked.password is not None:
                return False
            if asked.absolute and asked.origin() == self._api.origin():
                return True
        except ValueError:
            return False
        hosts = {HOOKS_HOST, f"hooks.{self._api.host}"}
        return asked.scheme == "https" and asked.host in hosts and asked.port == 443

    async def tell(self, url: str, text: str) -> None:
        """Send ``text``; what goes wrong is logged, without the address, which is a secret."""
        if not self.reaches(url):
            _log.warning("slack_reply_not_sent", reason="the address is not Slack's")
            return
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.post(url, json=self.draw(text), allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    _log.warning("slack_reply_failed", status=answer.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            _log.warning("slack_reply_failed", reason=type(error).__name__)
