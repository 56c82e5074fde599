"""Deletes what is older than the configuration wants to keep, a little at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import structlog

from remediator.config.settings import Settings
from remediator.model.duration import format_duration
from remediator.model.errors import StoreUnavailable
from remediator.model.kinds import longest_look_back
from remediator.model.limits import Bound
from remediator.model.lookback import Safeguards
from remediator.store import Store

EVERY = 600.0
"""Seconds between two looks for what is too old."""

_log = structlog.get_logger(__name__)


def age_of(retention: timedelta, bounds: Iterable[Bound], safeguards: Safeguards) -> timedelta:
    """Return the age from which on nothing is needed: no bound looks further back."""
    counted = (max(bound.limits.window, bound.limits.cooldown) for bound in bounds)
    return max(retention, safeguards.looks_back, longest_look_back(), *counted)


def kept_of(settings: Settings) -> dict[str, str]:
    """Say how much is taken, kept and held back, for the log of a start."""
    retention = settings.store.retention
    return {
        "retention": format_duration(retention) if isinstance(retention, timedelta) else "never",
        "admission": settings.admission.rate,
        "reserve": settings.store.reserve.human_readable(),
    }


async def keep_within(store: Store, age: timedelta) -> None:
    """Delete what is older than ``age``, for ever."""
    while True:
        try:
            await delete_old(store, age)
        except StoreUnavailable as error:
            _log.warning("retention_put_off", reason=str(error))
        except Exception:  # noqa: BLE001 - what is kept too long must not stop the service
            _log.exception("retention_failed")
        await asyncio.sleep(EVERY)


async def delete_old(store: Store, age: timedelta) -> None:
    """Delete everything that is older than ``age`` now."""
    incidents = 0
    after: str | None = ""
    while after is not None:
        deleted, after = await store.retention.incidents(age, after)
        incidents += deleted
    after = ""
    while after is not None:
        after = await store.retention.deliveries(age, after)
    if incidents:
        _log.info("retention", incidents=incidents)
