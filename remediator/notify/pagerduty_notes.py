"""Writes into the incidents of PagerDuty's that alerts came from, over its REST API.

Nothing is written twice: what stands there already is looked at first, so a call whose answer was
lost is not repeated. Every note begins with our mark.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Any, Self

import httpx

from remediator.backends.http.tls import shared_context
from remediator.backends.pagerduty import TIMEOUT, call
from remediator.model.errors import PermanentError, TemporaryError
from remediator.model.notification import Summons, Word

MARK = "[remediator "
"""Begin of every note of ours, by which they are known when they come back."""
_LONGEST = 3_000
"""Characters of one note."""
_ID = re.compile(r"[A-Za-z0-9]{1,64}")
_TITLES = {Word.FOUND: "What was found", Word.DONE: "What was done"}


class PagerDutyNotes:
    """Implements ``notification.Channel``; a summons' subject is an incident's id of PagerDuty's."""

    def __init__(self, token: str, from_email: str, url: str, *, timeout: float = TIMEOUT) -> None:
        """Write as the user ``from_email``; the ``token`` is a secret."""
        self._url = url
        self._token = token
        headers = {
            "Authorization": f"Token token={token}",
            "Accept": "application/vnd.pagerduty+json;version=2",
            "From": from_email,
        }
        self._client = httpx.AsyncClient(
            headers=headers, timeout=timeout, follow_redirects=False, verify=shared_context()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def tell(self, summons: Summons) -> None:
        """Acknowledge or resolve the incident there, or write a note."""
        if not _ID.fullmatch(summons.subject):
            raise PermanentError(f"PagerDuty: {summons.subject[:80]!r} is no id of an incident")
        path = f"/incidents/{summons.subject}"
        match summons.word:
            case Word.FOUND | Word.DONE:
                await self._note(path, summons)
            case Word.ACKNOWLEDGED:
                await self._move(path, "acknowledged", unless={"acknowledged", "resolved"})
            case Word.RESOLVED:
                await self._move(path, "resolved", unless={"resolved"})

    async def _note(self, path: str, summons: Summons) -> None:
        mark = f"{MARK}{summons.report.incident.id} {summons.word}]"
        there = await self._call("GET", f"{path}/notes")
        if any(note.startswith(mark) for note in _contents(there)):
            return
        text = f"{mark} {_TITLES[summons.word]}\n{summons.headline}\n{summons.text}"
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]}… (the rest is in {summons.report.incident.id})"
        await self._call("POST", f"{path}/notes", {"note": {"content": text}})

    async def _move(self, path: str, status: str, unless: set[str]) -> None:
        """Set the status, unless somebody was quicker."""
        now = _status(await self._call("GET", path))
        if now not in unless:
            body = {"incident": {"type": "incident_reference", "status": status}}
            await self._call("PUT", path, body)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        url = f"{self._url}{path}"
        what = f"{method} {path}"
        return await call(self._client, method, url, what, body=body, secret=self._token)


def _contents(answer: Any) -> list[str]:
    """Read the texts of the notes; ``TemporaryError`` where it cannot be told what stands there."""
    notes = answer.get("notes") if isinstance(answer, dict) else None
    if not isinstance(notes, list):
        raise TemporaryError("PagerDuty: the list of notes cannot be read")
    contents = (note.get("content") for note in notes if isinstance(note, dict))
    return [content for content in contents if isinstance(content, str)]


def _status(answer: Any) -> str:
    incident = answer.get("incident") if isinstance(answer, dict) else None
    status = incident.get("status") if isinstance(incident, dict) else None
    if not isinstance(status, str):
        raise TemporaryError("PagerDuty: the incident's status cannot be read")
    return status
