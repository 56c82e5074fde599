"""VERIFY: did it help? Several samples, held over time, with their evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog

from remediator.errors import PermanentError, TemporaryError
from remediator.model import Assessment, Mitigation, Sample, Verdict, Verification
from remediator.playbook import Context, Parameters, Playbook, returned

SAMPLE_TIMEOUT = 20.0
"""Seconds that one look may take."""

_log = structlog.get_logger(__name__)


async def take_sample(
    playbook: Playbook[Parameters], context: Context, mitigation: Mitigation
) -> Sample:
    """Ask the playbook once; whatever fails is ``cannot_tell`` with the reason."""
    try:
        async with asyncio.timeout(SAMPLE_TIMEOUT):
            return returned(await playbook.verify(context, mitigation), Sample, "verify")
    except TimeoutError:
        reason = f"no answer within {SAMPLE_TIMEOUT:g} s"
    except (TemporaryError, PermanentError) as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - author's code: its failure proves nothing
        _log.exception("verification_failed", playbook=playbook.name)
        reason = f"the playbook {playbook.name} failed: {type(error).__name__}: {error}"
    return Sample(at=context.now, assessment=Assessment.CANNOT_TELL, evidence=reason)


def verdict(
    samples: Sequence[Sample],
    verification: Verification,
    *,
    resolved: bool,
    since: datetime,
    now: datetime,
) -> Verdict | None:
    """Judge what was seen since ``since``; None while it is too early.

    Better needs an unbroken run of good samples over the hold time (a long gap breaks it: nobody
    looked), the shorter hold once the
    sender itself says that the alert resolved. At the deadline the last sample decides, but a
    good run under way is given the time to complete.
    """
    good = _good_run(samples, 2 * verification.interval + timedelta(seconds=SAMPLE_TIMEOUT))
    hold = verification.hold_resolved if resolved else verification.hold
    if len(good) > 1 and good[0].at - good[-1].at >= hold:
        seconds = (good[0].at - good[-1].at).total_seconds()
        reason = f"{good[0].evidence} (held for {seconds:.0f} s over {len(good)} samples)"
        return Verdict(assessment=Assessment.BETTER, reason=reason)
    end = since + verification.deadline + (hold if good else timedelta(0))
    if now < end or not samples:
        return None
    last = samples[-1]
    if last.assessment is Assessment.BETTER:
        reason = f"it did not stay better for long enough: {last.evidence}"
        return Verdict(assessment=Assessment.NOT_BETTER, reason=reason)
    return Verdict(assessment=last.assessment, reason=last.evidence)


def _good_run(samples: Sequence[Sample], gap: timedelta) -> list[Sample]:
    """Return the unbroken run of good samples at the end, newest first."""
    run: list[Sample] = []
    for sample in reversed(samples):
        unseen = bool(run) and run[-1].at - sample.at > gap
        if sample.assessment is not Assessment.BETTER or unseen:
            break
        run.append(sample)
    return run
