"""VERIFY: did it help? Several samples, held over time, with their evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

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

    Better needs an unbroken run of good samples over the hold time; a resolve shortens it only
    where that is configured. At the deadline the last sample decides, but a good run under way is
    given the time to complete. A sample that is final and not better decides at once.

    Nobody looked in a long gap, nor in one that a clock made: it breaks a run, and proves nothing
    else. So the deadline is counted in time in which looks were taken. What looks better whenever
    somebody can look is never put back for want of looks: a human gets it in the end.
    """
    gap = 2 * verification.interval + timedelta(seconds=SAMPLE_TIMEOUT)
    good = _good_run(samples, gap)
    hold = verification.held(resolved=resolved)
    if len(good) > 1 and good[0].at - good[-1].at >= hold:
        seconds = (good[0].at - good[-1].at).total_seconds()
        reason = f"{good[0].evidence} (held for {seconds:.0f} s over {len(good)} samples)"
        return Verdict(assessment=Assessment.BETTER, reason=reason)
    if samples and samples[-1].final and samples[-1].assessment is Assessment.NOT_BETTER:
        return Verdict(assessment=Assessment.NOT_BETTER, reason=samples[-1].evidence)
    looked = _looked([since, *(sample.at for sample in samples), now], gap, verification.interval)
    if not samples or looked < verification.deadline:
        return None
    last = samples[-1]
    if last.assessment is not Assessment.BETTER:
        return Verdict(assessment=last.assessment, reason=last.evidence)
    if looked < verification.deadline + 2 * hold + gap:
        return None
    reason = (
        f"it looks better, but there were too many gaps between samples to be sure: {last.evidence}"
    )
    return Verdict(assessment=Assessment.CANNOT_TELL, reason=reason)


def _good_run(samples: Sequence[Sample], gap: timedelta) -> list[Sample]:
    """Return the unbroken run of good samples at the end, newest first."""
    run: list[Sample] = []
    for sample in reversed(samples):
        seen = not run or timedelta(0) <= run[-1].at - sample.at <= gap
        if sample.assessment is not Assessment.BETTER or not seen:
            break
        run.append(sample)
    return run


def _looked(times: Sequence[datetime], gap: timedelta, interval: timedelta) -> timedelta:
    """Add the time up between looks; a gap counts as one interval, so that there is an end."""
    passed = (after - before for before, after in pairwise(times))
    return sum((one if timedelta(0) <= one <= gap else interval for one in passed), timedelta(0))
