"""The senders: one that behaves as Alertmanager does, and background noise."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from remediator.model.fingerprint import fingerprint_of
from tests.campaign.records import UNSEEN
from tests.campaign.replicas import INGEST, Replica
from tests.campaign.world import Part
from tests.service_fixtures import group

REPEAT = 3.0
"""Seconds after which what still fires is sent again."""
FLUSH = 10.0
"""Seconds for which one notification is tried again, as after Alertmanager's group_interval."""
NOISE = 0.3
"""Seconds between two alerts that concern nobody."""


@dataclass
class Accepted:
    """What was answered 202."""

    delivery: str
    fingerprints: tuple[str, ...]


@dataclass
class Sender:
    """Sends over all replicas in turn, and remembers how it was answered."""

    replicas: Sequence[Replica]
    chance: random.Random
    client: httpx.AsyncClient
    accepted: list[Accepted] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resolved: set[str] = field(default_factory=set)
    """Services whose alert is over, and that was taken."""
    over: set[str] = field(default_factory=set)
    """Services whose alert is over, whatever their backend says."""
    _began: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    async def follow(self, part: Part) -> None:
        """Send that ``part`` is broken until it is not, and then that it is well."""
        await asyncio.sleep(max(self._began + part.fires - asyncio.get_running_loop().time(), 0))
        started = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        known, sent_at = False, 0.0
        while True:
            now = asyncio.get_running_loop().time()
            if known and (part.service in self.over or await _cured(part)):
                if await self._notify(part.alert("resolved", started)):
                    self.resolved.add(part.service)
                    return
            elif not known or now - sent_at > REPEAT:
                known = await self._notify(part.alert("firing", started)) or known
                sent_at = now
            await asyncio.sleep(0.3)

    async def make_noise(self) -> None:
        """Send alerts of systems that nobody configured, until cancelled."""
        for number in itertools.count():
            await self._notify(_noise(number))
            await asyncio.sleep(NOISE)

    async def _notify(self, alert: dict[str, Any]) -> bool:
        """Try until it is taken or refused for good, as long as a flush lasts."""
        end = asyncio.get_running_loop().time() + FLUSH
        while asyncio.get_running_loop().time() < end:
            taken = await self._post(alert)
            if taken is not None:
                return taken
            await asyncio.sleep(self.chance.uniform(0.2, 1.0))
        return False

    async def _post(self, alert: dict[str, Any]) -> bool | None:
        """Say whether it was taken; None: it may be tried again, as after 5xx or no answer."""
        up = [replica for replica in self.replicas if replica.url]
        if not up:
            return None
        replica = self.chance.choice(up)
        url, previous = f"{replica.url}/webhooks/alertmanager", replica.previous
        headers = {"Authorization": f"Bearer {INGEST}"}
        try:
            answer = await self.client.post(url, json=group(alert), headers=headers)
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        if answer.status_code == 202:
            self.accepted.append(Accepted(answer.json()["delivery"], (alert["fingerprint"],)))
            return True
        if answer.status_code != 503 and not previous:
            self.wrong.append(f"a webhook was answered {answer.status_code}: {answer.text[:200]}")
        return None if answer.status_code >= 500 else False


async def _cured(part: Part) -> bool:
    try:
        return await part.cured()
    except UNSEEN:  # it is looked at again soon
        return False


def _noise(number: int) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    labels = {"alertname": "Elsewhere", "system": "elsewhere", "number": str(number)}
    return {
        "status": "firing",
        "labels": labels,
        "annotations": {},
        "startsAt": now,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": fingerprint_of(labels),
    }
