"""Gradual migrations of an HTTP service: how far each trading pair is moved, and back to less.

One shape is known, ``/admin/migration``. ``HttpAdmin`` reads circuit breakers beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeGuard

import structlog

from remediator.backends.http.breakers import HttpBreakers
from remediator.backends.http.client import AnswerLost, HttpEndpoint, HttpWriter
from remediator.model.errors import BackendRefused, BackendUnavailable, RemediatorError
from remediator.model.finding import Sense, SenseState
from remediator.model.mitigation import (
    ItemOutcome,
    Mitigation,
    MitigationState,
    Outcome,
    Preparation,
)
from remediator.model.readings import Migration

SET = "set_migration"
STATUS = "/admin/migration/status"
PERCENTAGE = "/admin/migration/percentage"
ALL = "all"
"""What the service takes for every pair at once; never sent."""

FINISHED = 100.0
"""Percentage at which a migration is no longer under way."""
LONGEST = 5.0
"""Seconds after which no further pair of one set is begun."""

_log = structlog.get_logger(__name__)


class HttpMigrations(HttpEndpoint):
    """An endpoint whose migrations can be read too (``ports.Endpoint``, ``ports.Migrations``)."""

    async def probe(self) -> Sense:
        """Say whether the migrations can be read."""
        return await _sense(self, self._name)

    async def migrations(self) -> tuple[Migration, ...]:
        """List them; what is no list of pairs with percentages is ``BackendUnavailable``."""
        return await _listed(self)


class HttpAdmin(HttpBreakers, HttpMigrations):
    """An endpoint with both circuit breakers and migrations."""

    async def probe(self) -> Sense:
        """Say whether both can be read."""
        sense = await HttpBreakers.probe(self)
        return sense if sense.state is not SenseState.OK else await HttpMigrations.probe(self)


class MigrationMitigator:
    """Lowers the migrations of named pairs (``ports.Mitigator``), with a token of its own.

    Not conditional: the service sets whatever it is sent, whenever it arrives. To set 0 twice
    raises nothing; but it would undo what a human set in between, and any other figure could lift
    what a human had lowered meanwhile. So a lost change is looked up and never repeated.
    """

    kinds = frozenset({SET})
    consequences: Mapping[str, str] = {
        SET: "These pairs' traffic moves back to the old path at once; it is not moved forward again"
        " automatically."
    }
    conditional = False

    def __init__(
        self,
        url: str,
        *,
        name: str,
        token: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the base ``url`` and the writer's ``token``; ``clock`` counts seconds."""
        self._clock = clock
        self._writer = HttpWriter(url, name=name, token=token)
        self._name = name

    async def __aenter__(self) -> Self:
        """Open the pool of connections."""
        await self._writer.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection."""
        await self._writer.__aexit__(kind, error, traceback)

    async def probe(self) -> Sense:
        """Say whether our token may read; that it may change shows only by doing it."""
        return await _sense(self._writer, self._name)

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        """Keep the pairs above the figure and below 100 % now; one that is not listed is refused.

        At 100 % a migration is finished, and to lower it would be a new one.
        The percentages in the items are what the playbook saw; the live ones count, and
        ``before`` keeps them. Only a human puts them back, so there is no undo.
        """
        pairs, figure = _meant(mitigation)
        live = await self._percentages()
        unknown = [pair for pair in pairs if pair not in live]
        if unknown:
            raise BackendRefused(f"{self._name}: no migration is listed for {', '.join(unknown)}")
        above = tuple(i for i in mitigation.items if figure < live[i.key] < FINISHED)
        if not above:
            so = "finished" if any(live[pair] >= FINISHED for pair in pairs) else "already so"
            raise BackendRefused(f"{self._name}: {so}: {_shown(live, pairs)}")
        return Preparation(
            mitigation=mitigation.model_copy(update={"items": above}),
            before={"percentages": {item.key: live[item.key] for item in above}},
        )

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Set one pair after the other, each at most once; a failure or too much time ends it."""
        pairs, figure = _meant(preparation.mitigation)
        done: list[ItemOutcome] = []
        end = self._clock() + LONGEST
        for pair in pairs:
            state, detail = MitigationState.NOT_APPLIED, f"not begun: {pair}"
            if done and done[-1].state is MitigationState.APPLIED and self._clock() > end:
                detail = f"{detail}, {LONGEST:g} s have passed"
            elif not done or done[-1].state is MitigationState.APPLIED:
                state, detail = await self._lower(pair, figure)
            done.append(ItemOutcome(key=pair, state=state, detail=detail))
            _log.info("migration_set", effect_key=effect_key, pair=pair, state=state.value)
        states = {item.state for item in done}
        order = (MitigationState.UNKNOWN, MitigationState.APPLIED, MitigationState.NOT_APPLIED)
        return _outcome(preparation, next(state for state in order if state in states), done)

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Look where the pairs are now: some above the figure and some not proves nothing."""
        pairs, figure = _meant(preparation.mitigation)
        live = await self._percentages()
        seen = [_seen(pair, live.get(pair), figure) for pair in pairs]
        states = {item.state for item in seen}
        state = states.pop() if len(states) == 1 else MitigationState.UNKNOWN
        return _outcome(preparation, state, seen)

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        """Refuse: that a migration may go on is a human's decision."""
        raise BackendRefused(f"a migration is put back by a human only{_before(preparation)}")

    async def _percentages(self) -> dict[str, float]:
        return {one.pair: one.percentage for one in await _listed(self._writer)}

    async def _lower(self, pair: str, figure: int) -> tuple[MitigationState, str]:
        # looked at right before: what was lowered meanwhile must not be raised
        try:
            live = (await self._percentages()).get(pair)
        except RemediatorError as error:
            return MitigationState.NOT_APPLIED, f"not sent: {pair}: {error}"
        if live is None or not figure < live < FINISHED:
            why = "no longer listed" if live is None else f"at {live:g} % already"
            return MitigationState.NOT_APPLIED, f"not sent: {pair} is {why}"
        try:
            await self._writer.post(PERCENTAGE, {"pair": pair, "percentage": figure})
        except AnswerLost as error:
            return MitigationState.UNKNOWN, f"{pair}: {error}"
        except (BackendUnavailable, BackendRefused) as error:
            return MitigationState.NOT_APPLIED, f"{pair}: {error}"
        return MitigationState.APPLIED, f"{pair} set from {live:g} % to {figure} %"


async def _listed(endpoint: HttpEndpoint) -> tuple[Migration, ...]:
    answer = await endpoint.get_json(STATUS)
    try:
        found = tuple(_migration(one) for one in _list(answer))
    except (KeyError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise BackendUnavailable(
            f"{STATUS} does not list migrations as expected ({kind})"
        ) from None
    if len({one.pair for one in found}) < len(found):
        raise BackendUnavailable(f"{STATUS} lists a pair twice")
    return found


def _list(answer: Any) -> list[Any]:
    if not isinstance(answer, list):
        raise TypeError("not a list")
    return answer


def _migration(one: Any) -> Migration:
    percentage = one["current_percentage"]
    if isinstance(percentage, bool) or not isinstance(percentage, int | float):
        raise TypeError("a percentage is not a number")
    if not 0 <= percentage <= 100:
        raise ValueError("a percentage is not within 0 and 100")
    return Migration(pair=one["pair"], percentage=percentage)


async def _sense(endpoint: HttpEndpoint, name: str) -> Sense:
    try:
        await _listed(endpoint)
    except RemediatorError as error:
        return Sense(name=name, state=SenseState.IMPAIRED, reason=str(error))
    return Sense(name=name, state=SenseState.OK)


def _meant(mitigation: Mitigation) -> tuple[list[str], int]:
    """Return the pairs and the figure; refuse a plan that is not clear."""
    if mitigation.kind != SET:
        raise BackendRefused(f"{mitigation.kind!r} is not a kind of this lever")
    figure = mitigation.parameters.get("percentage", 0)
    if set(mitigation.parameters) - {"percentage"} or not _whole(figure):
        raise BackendRefused(f"{SET} takes a whole percentage within 0 and 100, and nothing else")
    pairs = [item.key for item in mitigation.items]
    if not pairs or len(set(pairs)) < len(pairs):
        raise BackendRefused(f"{SET} takes pairs, each once")
    for item in mitigation.items:
        if not item.key or item.identity.get("pair") != item.key or item.key.lower() == ALL:
            raise BackendRefused(f"{SET}: {item.key!r} does not name one pair")
    return pairs, figure


def _whole(figure: object) -> TypeGuard[int]:
    return isinstance(figure, int) and not isinstance(figure, bool) and 0 <= figure <= 100


def _seen(pair: str, live: float | None, figure: int) -> ItemOutcome:
    if live is None:
        state, detail = MitigationState.UNKNOWN, f"{pair} is no longer listed"
    else:
        lowered = live <= figure
        state = MitigationState.APPLIED if lowered else MitigationState.NOT_APPLIED
        detail = f"{pair} is at {live:g} %"
    return ItemOutcome(key=pair, state=state, detail=detail)


def _outcome(preparation: Preparation, state: MitigationState, items: list[ItemOutcome]) -> Outcome:
    said = "; ".join(item.detail for item in items)
    return Outcome(state=state, detail=said + _before(preparation), items=tuple(items))


def _before(preparation: Preparation) -> str:
    """Say where the pairs were, for the human who puts them back."""
    was = preparation.before.get("percentages")
    found = was.items() if isinstance(was, dict) else ()
    shown = ", ".join(f"{pair} {at:g} %" for pair, at in found if isinstance(at, int | float))
    return f" (before: {shown})" if shown else ""


def _shown(live: Mapping[str, float], pairs: list[str]) -> str:
    return ", ".join(f"{pair} is at {live[pair]:g} %" for pair in pairs)
