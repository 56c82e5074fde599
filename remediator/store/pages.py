"""Pages that say the same of several incidents: told as one, and in what order.

Of one kind are pages of one level about incidents of the same severity, service, playbook and outcome.
The first one goes at once; those that follow within a short time are gathered, and told as one page
with their number. Whoever acknowledges that has all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, Update, select, update

from remediator.model.notification import Word
from remediator.store import tables as t

GATHER = timedelta(seconds=30)
"""Time after a page in which further ones of its kind to the same channel are gathered: they are told
together then, as one page."""
TOGETHER = 200
"""Most pages that are told as one."""

_KIND = ("severity", "system", "service", "playbook", "outcome")
"""What incidents have in common of which one page is enough."""
_NO_PAGE = 9
"""The rank of what wakes nobody, after all pages."""


def what_it_is(incident: str) -> Select[Any]:
    """Return the query of what ``place_of`` needs to know of an incident."""
    return select(*(t.incidents.c[name] for name in _KIND)).where(t.incidents.c.id == incident)


def place_of(word: Word, subject: str, about: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the kind and the rank of a message about an incident."""
    if about is None or word is not Word.LEVEL:
        return {"rank": _NO_PAGE, "kind": ""}
    kind = "/".join(str(about[name] or "-") for name in _KIND)
    return {"rank": about["severity"], "kind": f"{subject}/{kind}"}


def told_lately(channel: str, now: datetime) -> Select[Any]:
    """Return the kinds of which a page was told a moment ago: further ones are gathered."""
    return (
        select(t.tellings.c.kind)
        .where(t.tellings.c.channel == channel, t.tellings.c.told_at > now - GATHER)
        .where(t.tellings.c.told_at <= now, t.tellings.c.kind != "")
        .distinct()
    )


def told_again(incident: str, now: datetime) -> Update:
    """Return what makes pages due again that were told as a part of the page of ``incident``.

    That page is over now; they are dropped where somebody has them or they are over as well.
    """
    fresh = {"state": "waiting", "due_at": now, "told_at": None, "told_with": None}
    with_it = t.tellings.c.told_with == incident
    return update(t.tellings).where(with_it).values(**fresh, epoch=t.tellings.c.epoch + 1)
