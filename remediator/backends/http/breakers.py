"""Circuit breakers of an HTTP service: their states, and the reset of exactly one.

Two shapes are known: Spring Boot's actuator with Resilience4j, and ``/admin/circuit-breaker``.
Both speak for one instance of the service, so ``url`` must lead to one instance. The second has
no state of its own for a breaker that a human opened: only its reason tells, and without a reason
it counts as opened by a human.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import structlog
from pydantic import JsonValue

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
from remediator.model.readings import Breaker, BreakerState

RESET = "reset_breaker"
MANUAL = "manual_reasons"

ShapeName = Literal["actuator", "admin"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Shape:
    """How one family of services lists its breakers and resets one of them."""

    path: str
    read: Callable[[Any], Iterator[Breaker]]
    """Raises ``KeyError``, ``TypeError``, ``ValueError`` or ``AttributeError`` on nonsense."""
    reset: Callable[[str], str]
    """Path of the reset of a breaker, its name already quoted."""
    body: JsonValue = None
    half_opens: bool = False
    """Whether an open breaker tries again by itself; ``/admin/circuit-breaker`` does not tell."""


NO_REASON = "no reason is given"
_STATES = {state.value.upper(): state for state in BreakerState} | {
    "METRICS_ONLY": BreakerState.DISABLED
}


def _actuator(answer: Any) -> Iterator[Breaker]:
    for name, one in answer.get("circuitBreakers", answer).items():
        state = _STATES.get(one["state"], BreakerState.UNKNOWN)
        yield Breaker(name=name, state=state, failure_rate=_percent(one.get("failureRate")))


def _admin(answer: Any) -> Iterator[Breaker]:
    states = {True: BreakerState.OPEN, False: BreakerState.CLOSED}
    for one in answer:
        is_open, reason = one.get("open"), str(one.get("reason") or "").strip()[:200]
        state = states[is_open] if isinstance(is_open, bool) else BreakerState.UNKNOWN
        if state is BreakerState.OPEN and not reason:
            state, reason = BreakerState.FORCED_OPEN, NO_REASON
        yield Breaker(
            name=one["pair"],
            state=state,
            failure_rate=_share(one.get("error_rate")),
            reason=reason,
        )


SHAPES: Mapping[ShapeName, Shape] = {
    "actuator": Shape(
        path="/actuator/circuitbreakers",
        read=_actuator,
        reset="/actuator/circuitbreakers/{}".format,
        body={"updateState": "CLOSE"},
        half_opens=True,
    ),
    "admin": Shape(
        path="/admin/circuit-breaker/status",
        read=_admin,
        reset="/admin/circuit-breaker/reset/{}".format,
    ),
}


class HttpBreakers(HttpEndpoint):
    """An endpoint whose breakers can be read too (``ports.Endpoint`` and ``ports.Breakers``)."""

    def __init__(self, url: str, *, shape: ShapeName, name: str, token: str | None = None) -> None:
        """Keep the base ``url`` of one instance; raises ``ConfigError`` as ``HttpEndpoint``."""
        super().__init__(url, name=name, token=token)
        self._shape = SHAPES[shape]

    @property
    def half_opens(self) -> bool:
        """Whether an open breaker tries again by itself after a time."""
        return self._shape.half_opens

    async def probe(self) -> Sense:
        """Say whether the breakers can be read."""
        return await _sense(self, self._shape, self._name)

    async def breakers(self) -> tuple[Breaker, ...]:
        """List them; none at all, or one name twice, is ``BackendUnavailable``."""
        return await _listed(self, self._shape)


class BreakerMitigator:
    """Resets one open breaker (``ports.Mitigator``), with a token of its own.

    Not conditional: neither shape can be told "only if it is still open", so a lost reset is
    looked up and never repeated. A breaker that opens again after it is for ``verify``.
    """

    kinds = frozenset({RESET})
    consequences: Mapping[str, str] = {
        RESET: "The breaker closes and full traffic goes to the upstream at once; if it still fails,"
        " callers see its errors until the breaker opens again."
    }
    conditional = False

    def __init__(self, url: str, *, shape: ShapeName, name: str, token: str) -> None:
        """Keep the base ``url`` of one instance and the writer's ``token``."""
        self._writer = HttpWriter(url, name=name, token=token)
        self._shape = SHAPES[shape]
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
        """Say whether our token may read the breakers; that it may reset shows only by doing it."""
        return await _sense(self._writer, self._shape, self._name)

    async def prepare(self, mitigation: Mitigation) -> Preparation:
        """Refuse all but one listed breaker that is open."""
        name, found = await self._find(mitigation)
        problem = _not_open(found, name)
        if problem or found is None:
            raise BackendRefused(f"{self._name}: {problem}")
        return Preparation(mitigation=mitigation, before=found.model_dump(mode="json"))

    async def apply(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Look again, so that no unknown name is created, and reset it once."""
        name, _ = _meant(preparation.mitigation)
        try:
            problem = _not_open((await self._find(preparation.mitigation))[1], name)
        except RemediatorError as error:
            problem = f"not sent: {error}"
        if problem:
            return _outcome(name, MitigationState.NOT_APPLIED, problem)
        outcome = await self._reset(name)
        _log.info("breaker_reset", effect_key=effect_key, breaker=name, state=outcome.state.value)
        return outcome

    async def observe(self, preparation: Preparation, effect_key: str) -> Outcome:
        """Look in which state the breaker is now: only a closed one was surely reset."""
        name, _ = _meant(preparation.mitigation)
        _, found = await self._find(preparation.mitigation)
        if found is None:
            return _outcome(name, MitigationState.UNKNOWN, f"breaker {name} is no longer listed")
        match found.state:
            case BreakerState.CLOSED:
                state, detail = MitigationState.APPLIED, f"breaker {name} is closed"
            case BreakerState.OPEN:
                state, detail = MitigationState.NOT_APPLIED, f"breaker {name} is open"
            case other:
                state, detail = MitigationState.UNKNOWN, f"breaker {name} is {other}"
        return _outcome(name, state, detail)

    async def revert(
        self, preparation: Preparation, effect_key: str, *, in_steps: bool = False
    ) -> Outcome:
        """Refuse: a breaker whose cause is still there opens again by itself."""
        raise BackendRefused("a reset is not taken back: the breaker opens by itself if it must")

    async def _find(self, mitigation: Mitigation) -> tuple[str, Breaker | None]:
        name, manual = _meant(mitigation)
        listed = await _listed(self._writer, self._shape)
        return name, next((b.seen_through(manual) for b in listed if b.name == name), None)

    async def _reset(self, name: str) -> Outcome:
        path = self._shape.reset(quote(name, safe=""))
        try:
            await self._writer.post(path, self._shape.body)
        except AnswerLost as error:
            return _outcome(name, MitigationState.UNKNOWN, str(error))
        except (BackendUnavailable, BackendRefused) as error:
            return _outcome(name, MitigationState.NOT_APPLIED, str(error))
        return _outcome(name, MitigationState.APPLIED, f"breaker {name} was reset")


async def _listed(endpoint: HttpEndpoint, shape: Shape) -> tuple[Breaker, ...]:
    answer = await endpoint.get_json(shape.path)
    try:
        found = tuple(shape.read(answer))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        kind = type(error).__name__
        raise BackendUnavailable(
            f"{shape.path} does not list breakers as expected ({kind})"
        ) from None
    if not found:
        raise BackendUnavailable(f"{shape.path} lists no circuit breaker at all")
    if len({breaker.name for breaker in found}) < len(found):
        raise BackendUnavailable(f"{shape.path} lists a circuit breaker twice")
    return found


async def _sense(endpoint: HttpEndpoint, shape: Shape, name: str) -> Sense:
    try:
        await _listed(endpoint, shape)
    except RemediatorError as error:
        return Sense(name=name, state=SenseState.IMPAIRED, reason=str(error))
    return Sense(name=name, state=SenseState.OK)


def _meant(mitigation: Mitigation) -> tuple[str, list[re.Pattern[str]]]:
    """Return the name of the one breaker, and for which reasons it is left to a human.

    Refuses a plan that is not exactly that.
    """
    if mitigation.kind != RESET:
        raise BackendRefused(f"{mitigation.kind!r} is not a kind of this lever")
    if len(mitigation.items) != 1 or set(mitigation.parameters) - {MANUAL}:
        raise BackendRefused(f"{RESET} takes exactly one breaker and no parameters but {MANUAL}")
    name = mitigation.items[0].identity.get("name")
    if not isinstance(name, str) or not name or name != mitigation.items[0].key:
        raise BackendRefused(f"{RESET}: the item does not say which breaker is meant")
    return name, _patterns(mitigation.parameters.get(MANUAL, []))


def _patterns(given: object) -> list[re.Pattern[str]]:
    texts = [one for one in given if isinstance(one, str)] if isinstance(given, list) else []
    try:
        patterns = [re.compile(text) for text in texts]
    except re.error:
        patterns = []
    if not isinstance(given, list) or len(patterns) < len(given):
        raise BackendRefused(f"{RESET}: {MANUAL} should be a list of regular expressions")
    return patterns


_LEFT_ALONE = {
    BreakerState.CLOSED: "is closed already",
    BreakerState.HALF_OPEN: "is half-open: it is healing itself",
    BreakerState.FORCED_OPEN: "counts as opened by a human, who also has to close it",
    BreakerState.DISABLED: "was disabled by a human, who also has to enable it",
    BreakerState.UNKNOWN: "is in a state that we do not know",
}


def _not_open(found: Breaker | None, name: str) -> str:
    """Say why it is not reset, or nothing."""
    if found is None:
        return f"breaker {name!r} is not listed, and a reset could create it"
    reason = _LEFT_ALONE.get(found.state)
    said = f" ({found.reason})" if found.reason else ""
    return f"breaker {name} {reason}{said}" if reason else ""


def _outcome(name: str, state: MitigationState, detail: str) -> Outcome:
    return Outcome(
        state=state, detail=detail, items=(ItemOutcome(key=name, state=state, detail=detail),)
    )


def _percent(written: object) -> float | None:
    """Read Resilience4j's ``50.0%``; its ``-1.0%`` means that too few calls were made."""
    if not isinstance(written, str) or not written.endswith("%"):
        return None
    try:
        return _share(float(written[:-1]) / 100)
    except ValueError:
        return None


def _share(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0 <= value <= 1 else None
