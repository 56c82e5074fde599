"""Reads an incident's alerts from PagerDuty's REST API, within the rate that it allows."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

from remediator.adapters.http import HttpEndpoint
from remediator.errors import BackendRefused, BackendUnavailable, ConfigError

MAX_BYTES = 8 << 20
"""Bytes of one page."""
PAGE = 100
PAGES = 2
"""Pages of one incident, at most."""
TIMEOUT = 5.0
"""Seconds for one page."""
A_MINUTE = 900
"""Calls a minute at most; PagerDuty allows 960 a key, and others may use it too."""
_ACCEPT = "application/vnd.pagerduty+json;version=2"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class PagerDutyReader(HttpEndpoint):
    """Reads incidents. Use it as an async context manager."""

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        *,
        timeout: float = TIMEOUT,
        a_minute: float = A_MINUTE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the base ``url``; ``token`` returns the REST API token that is live now.

        Raises ``ConfigError`` for a URL that is not plain http(s) or that holds credentials.
        """
        super().__init__(url, name="pagerduty", timeout=timeout, max_bytes=MAX_BYTES)
        self._token = token
        self._pause = 60.0 / a_minute
        self._monotonic = monotonic
        self._next = 0.0
        """When the next call may be made."""
        self._held_until = 0.0
        """When PagerDuty, which limited us, wants to hear of us again."""

    async def alerts(self, incident: str) -> tuple[Any, ...]:
        """Return the alerts of ``incident``, as the API lists them; 200 at most.

        Raises ``BackendUnavailable``, with ``retry_after`` where the API limits us, and
        ``BackendRefused``.
        """
        if not _ID.fullmatch(incident):
            raise BackendRefused(f"{self._where}: {incident[:100]!r} is no id of an incident")
        found: list[Any] = []
        for page in range(PAGES):
            answer = await self._page(incident, page * PAGE)
            listed = answer.get("alerts") if isinstance(answer, dict) else None
            if not isinstance(listed, list):
                raise BackendUnavailable(f"{self._where}: the answer has no list of alerts")
            found += listed
            if answer.get("more") is not True or not listed:
                break
        return tuple(found)

    async def _page(self, incident: str, offset: int) -> Any:
        await self._turn()
        asked = {"limit": str(PAGE), "offset": str(offset)}
        try:
            headers = {"Accept": _ACCEPT, "Authorization": f"Token token={self._token()}"}
        except ConfigError as error:
            raise BackendUnavailable(f"{self._where}: {error}") from None
        try:
            body = await self._get(f"/incidents/{incident}/alerts", asked, headers)
        except BackendUnavailable as error:
            if error.retry_after is not None:
                self._held_until = self._monotonic() + error.retry_after
            raise
        return self._decode(body)

    async def _turn(self) -> None:
        """Wait for this call's turn, so that a storm stays below the rate."""
        now = self._monotonic()
        if now < self._held_until:
            wait = self._held_until - now
            raise BackendUnavailable(f"{self._where}: limited for {wait:.0f} s more", wait)
        mine = max(now, self._next)
        self._next = mine + self._pause
        await asyncio.sleep(mine - now)
