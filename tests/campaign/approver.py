"""The operator who is asked for approvals: agrees, refuses, is late, and is in two minds."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx

from tests.campaign.replicas import OPERATOR, Replica

WAYS = (
    "approves",
    "approves, and it dies",
    "approves twice",
    "rejects",
    "is in two minds",
    "is late",
)
"""What the operator does with a plan that waits."""
_LOOKS_EVERY = 0.4
_TRIED = 5
"""Times that one answer is given where nobody says that it was taken."""
_DECIDED_AFTER = 4.0
"""Seconds for which the operator thinks at the longest; an approval is waited for longer."""
_LATE_AFTER = 7.0
"""Seconds after which no approval is waited for any more, unless its request was late."""


class Answer(NamedTuple):
    """One answer of the operator to one plan."""

    incident: str
    plan: str
    """Hash of the plan."""
    approves: bool
    at: datetime
    """Right before it was sent."""
    status: int
    """Of the HTTP answer; 0: there was none, so it may have been taken."""


@dataclass
class Approver:
    """Looks at what waits, and answers by the documented API through any replica."""

    seed: int
    replicas: Sequence[Replica]
    client: httpx.AsyncClient
    answers: list[Answer] = field(default_factory=list)
    did: Counter[str] = field(default_factory=Counter)
    _known: set[tuple[str, str]] = field(default_factory=set)

    async def work(self) -> None:
        """Answer whatever waits, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                for incident, plan in await self._waiting():
                    if (incident, plan) not in self._known:
                        self._known.add((incident, plan))
                        group.create_task(self._answer(incident, plan, len(self._known)))
                await asyncio.sleep(_LOOKS_EVERY)

    async def _waiting(self) -> list[tuple[str, str]]:
        found = await self._get("/incidents?state=open&limit=100")
        asked = [one["id"] for one in found.get("items", ()) if one["phase"] == "approval"]
        pages = [await self._get(f"/incidents/{incident}") for incident in asked]
        return [
            (page["id"], plan["plan_hash"])
            for page in pages
            for plan in page.get("mitigations", ())
            if plan["state"] == "awaiting_approval"
        ]

    async def _answer(self, incident: str, plan: str, number: int) -> None:
        chance = random.Random(f"operator {self.seed}/{number}")
        way = chance.choice(WAYS)
        await asyncio.sleep(_LATE_AFTER if way == "is late" else chance.uniform(0, _DECIDED_AFTER))
        match way:
            case "rejects":
                await self._say(incident, plan, approves=False)
            case "is in two minds":
                both = (self._say(incident, plan, approves=yes) for yes in (True, False))
                await asyncio.gather(*both)
            case "approves twice":
                both = (self._say(incident, plan, approves=True) for _ in range(2))
                await asyncio.gather(*both)
            case "approves, and it dies":
                dying = self._all_die(chance.choice((0.0, 0.01, 0.03, 0.1, 0.5)))
                await asyncio.gather(self._say(incident, plan, approves=True), dying)
            case _:
                await self._say(incident, plan, approves=True)
        self.did[f"the operator {way}"] += 1

    async def _all_die(self, after: float) -> None:
        await asyncio.sleep(after)
        for replica in self.replicas:
            replica.send(signal.SIGKILL)

    async def _say(self, incident: str, plan: str, *, approves: bool) -> None:
        """Give the answer, again where nobody says that it was taken, for some seconds."""
        path = f"/incidents/{incident}/{'approve' if approves else 'reject'}"
        for _ in range(_TRIED):
            at = datetime.now(UTC)
            status = await self._post(path, {"plan_hash": plan})
            self.answers.append(Answer(incident, plan, approves, at, status))
            if 0 < status < 500:
                return
            await asyncio.sleep(_LOOKS_EVERY)

    async def _post(self, path: str, body: dict[str, str]) -> int:
        try:
            answer = await self.client.post(self._url(path), json=body, headers=_WHO)
        except httpx.HTTPError:
            return 0
        return answer.status_code

    async def _get(self, path: str) -> dict[str, Any]:
        try:
            answer = await self.client.get(self._url(path), headers=_WHO)
            found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        except httpx.HTTPError:
            return {}
        return found

    def _url(self, path: str) -> str:
        up = [replica.url for replica in self.replicas if replica.url]
        if not up:
            raise httpx.ConnectError("no replica listens")
        return f"{random.choice(up)}/api/v1{path}"


_WHO = {"Authorization": f"Bearer {OPERATOR}"}
