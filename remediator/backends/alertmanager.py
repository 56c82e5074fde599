"""Silences alerts in an Alertmanager, and asks it what fires there (its API, version 2).

Ours are the silences made by ``remediator`` whose comment names an incident; nobody else's is
ever touched. The comment is all that is remembered of which silence belongs to what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError

from remediator.backends.http.client import HttpWriter
from remediator.model.alert import Alert, AlertStatus, Source
from remediator.model.base import IncidentId
from remediator.model.errors import (
    BackendRefused,
    BackendUnavailable,
    PermanentError,
    TemporaryError,
)
from remediator.model.finding import Sense, SenseState
from remediator.model.ports import Silence

CREATOR = "remediator"
COMMENT = "remediator/"
"""Beginning of our silences' comments; the incident's id follows, then words for humans."""
MAX_BYTES = 16 << 20
"""Bytes of one answer: about ten thousand alerts."""
SETTLING = timedelta(minutes=5)
"""Time after its start in which an Alertmanager may not know all that fires: it keeps no alerts
over a restart, and Prometheus sends them again every minute or so."""
_SOME_TIME_AGO = timedelta(hours=1)


class _Matcher(BaseModel):
    name: str
    value: str
    isRegex: bool  # noqa: N815 - the wire's name
    isEqual: bool = True  # noqa: N815 - the wire's name


class _Status(BaseModel):
    state: str


class _Silence(BaseModel):
    """A silence as the wire has it; what is not named here is ignored."""

    id: str
    createdBy: str  # noqa: N815 - the wire's name
    comment: str
    matchers: list[_Matcher]
    startsAt: AwareDatetime  # noqa: N815 - the wire's name
    endsAt: AwareDatetime  # noqa: N815 - the wire's name
    status: _Status


class _Firing(BaseModel):
    """An alert as the wire has it; what is not named here is ignored."""

    fingerprint: str
    labels: dict[str, str]
    annotations: dict[str, str]
    startsAt: AwareDatetime  # noqa: N815 - the wire's name


class _Started(BaseModel):
    uptime: AwareDatetime
    """When it started, despite the name."""


_SILENCES = TypeAdapter(list[_Silence])
_FIRING = TypeAdapter(list[_Firing])
_STARTED = TypeAdapter(_Started)


def _now() -> datetime:
    return datetime.now(UTC)


class AlertmanagerSilences(HttpWriter):
    """Implements ``ports.Silences``. Use it as an async context manager."""

    def __init__(  # noqa: PLR0913 - by keyword, each with a meaning of its own
        self,
        url: str,
        *,
        name: str = "alertmanager",
        token: str | None = None,
        basic: str | None = None,
        timeout: float = 4.0,
        settling: timedelta = SETTLING,
        now: Callable[[], datetime] = _now,
    ) -> None:
        """Keep the base ``url``; ``basic`` is ``user:password``, ``timeout`` seconds for a call.

        Raises ``ConfigError`` for a URL that is not plain http(s) or that holds credentials.
        """
        super().__init__(url, name=name, token=token, timeout=timeout, max_bytes=MAX_BYTES)
        if basic is not None:
            user, _, password = basic.partition(":")
            self._client.auth = httpx.BasicAuth(user, password)
        self._settling = settling
        self._now = now

    async def probe(self) -> Sense:
        """Say whether the Alertmanager answers as one."""
        try:
            await self._ask("/api/v2/status", _STARTED)
        except (TemporaryError, PermanentError) as error:
            return Sense(name=self._name, state=SenseState.IMPAIRED, reason=str(error))
        return Sense(name=self._name, state=SenseState.OK)

    async def silences(self) -> tuple[Silence, ...]:
        """List our own; one whose matchers are not plain equalities is none of ours."""
        listed = await self._ask("/api/v2/silences", _SILENCES)
        return tuple(silence for found in listed if (silence := _ours(found)) is not None)

    async def firing(self) -> tuple[Alert, ...]:
        """List all that fires there; ``BackendUnavailable`` while it may not know yet."""
        every = dict.fromkeys(("active", "silenced", "inhibited", "unprocessed"), "true")
        listed = await self._ask("/api/v2/alerts", _FIRING, every)
        # asked last: one that restarted before it listed its alerts says so here
        started = (await self._ask("/api/v2/status", _STARTED)).uptime
        if self._now() - started < self._settling:
            raise BackendUnavailable(
                f"{self._where}: it started at {started:%H:%M:%S} and may not know all alerts yet"
            )
        return tuple(_alert(found) for found in listed)

    async def mute(self, incident: IncidentId, labels: Mapping[str, str], until: datetime) -> None:
        """Make a silence; it begins at once, by the Alertmanager's own clock."""
        since = self._now() - _SOME_TIME_AGO  # in its past: it begins when it is made
        await self._put(incident, labels, since, until)

    async def renew(self, silence: Silence, until: datetime) -> None:
        """Move the end; the same beginning and matchers keep it the same silence."""
        since, labels = silence.starts_at, silence.labels
        await self._put(silence.incident_id, labels, since, until, silence.id)

    async def end(self, silence: Silence) -> None:
        """Expire it; safe to repeat."""
        url = self._below(f"/api/v2/silence/{quote(silence.id, safe='')}")
        try:
            async with asyncio.timeout(self._timeout):
                request = self._client.build_request("DELETE", url)
                response = await self._client.send(request, stream=True)
                await response.aclose()
        except (TimeoutError, httpx.HTTPError) as error:
            reason = f"no answer to a DELETE ({type(error).__name__})"
            raise BackendUnavailable(f"{self._where}: {reason}") from error
        if response.status_code != httpx.codes.NOT_FOUND:
            self._check_status(response)

    async def _put(
        self,
        incident: IncidentId,
        labels: Mapping[str, str],
        since: datetime,
        until: datetime,
        known: str | None = None,
    ) -> None:
        if not any(labels.values()):
            raise BackendRefused(f"{self._where}: an alert without labels is not silenced")
        body = {
            "matchers": [
                {"name": name, "value": value, "isRegex": False, "isEqual": True}
                for name, value in sorted(labels.items())
            ],
            "startsAt": since.astimezone(UTC).isoformat(),
            "endsAt": until.astimezone(UTC).isoformat(),
            "createdBy": CREATOR,
            "comment": f"{COMMENT}{incident} is at work on this alert",
        }
        await self.post("/api/v2/silences", body if known is None else body | {"id": known})

    async def _ask(
        self, path: str, kind: TypeAdapter[Any], params: dict[str, str] | None = None
    ) -> Any:
        try:
            return kind.validate_python(await self.get_json(path, params))
        except ValidationError as error:
            reason = f"{path} does not answer as an Alertmanager does"
            raise BackendUnavailable(f"{self._where}: {reason}") from error


def _ours(found: _Silence) -> Silence | None:
    incident = _incident(found)
    plain = all(matcher.isEqual and not matcher.isRegex for matcher in found.matchers)
    if incident is None or not plain:
        return None
    return Silence(
        id=found.id,
        incident_id=incident,
        labels={matcher.name: matcher.value for matcher in found.matchers},
        starts_at=found.startsAt,
        ends_at=found.endsAt,
        ended=found.status.state == "expired",
    )


def _incident(found: _Silence) -> IncidentId | None:
    if found.createdBy != CREATOR or not found.comment.startswith(COMMENT):
        return None
    named = found.comment.removeprefix(COMMENT).split(maxsplit=1)
    return IncidentId(named[0]) if named else None


def _alert(found: _Firing) -> Alert:
    return Alert(
        source=Source.ALERTMANAGER,
        fingerprint=found.fingerprint,
        status=AlertStatus.FIRING,
        labels=found.labels,
        annotations=found.annotations,
        starts_at=found.startsAt,
    )
