"""Calls a person by whatever apprise knows: e-mail, SMS, chats.

apprise blocks, so each channel has a thread of its own that nobody waits for longer than agreed.
Its URLs hold passwords: neither they nor what apprise says of them is ever repeated.
"""

from __future__ import annotations

import logging
import warnings

import apprise

from remediator.backends.threads import BlockingCalls
from remediator.model.errors import ConfigError, TemporaryError
from remediator.model.notification import Summons, Word

TIMEOUT = 25.0
"""Seconds for one message, over all its recipients."""
_LONGEST = 8_000
"""Characters of one message; apprise cuts it further to what a channel takes."""
_TITLE = 200


class AppriseChannel:
    """Implements ``notification.Channel`` for one URL of apprise's."""

    def __init__(self, name: str, url: str, *, timeout: float = TIMEOUT) -> None:
        """Prepare the channel ``name``; the ``url`` is a secret. ``ConfigError`` for a bad one."""
        self._name = name
        self._timeout = timeout
        self._calls = BlockingCalls(f"channel {name}", size=2)
        asset = apprise.AppriseAsset(app_id="remediator", async_mode=False)
        self._apprise = apprise.Apprise(asset=asset)
        # it writes URLs with their passwords to its log, some of it above any level
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its plugins load old modules
            known = self._apprise.add(url)
        if not known or len(self._apprise) != 1:
            raise ConfigError(
                f"channel {name}: apprise cannot read its URL; write SCHEMA://... as apprise's"
                " documentation says for the kind of channel"
            )

    async def tell(self, summons: Summons) -> None:
        """Send the call; ``TemporaryError`` when it was not taken by everybody."""
        if summons.word is not Word.LEVEL:
            return
        title, body = summons.headline[:_TITLE], f"{summons.headline}\n\n{summons.text}"

        def send() -> bool:
            sent = self._apprise.notify(
                title=title,
                body=body[:_LONGEST],
                notify_type=apprise.NotifyType.FAILURE,
                body_format=apprise.NotifyFormat.TEXT,
            )
            return bool(sent)

        if not await self._calls.run(send, self._timeout):
            raise TemporaryError(f"channel {self._name}: the message was not taken")
