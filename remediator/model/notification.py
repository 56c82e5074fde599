"""Messages and pages, and what every way to humans can do."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from pydantic import Field

from remediator.model.base import Value
from remediator.model.views import IncidentView, Report


class Post(Value):
    """One further message about an incident."""

    key: str
    """What it says, such as ``request/MITIGATION``."""
    message: str
    """Message timestamp; empty where messages cannot be edited."""
    digest: str
    """Of what it says now, so that it is edited only when that changes."""


class Handle(Value):
    """Where a notifier's messages about one incident are, so that they can be edited."""

    channel: str
    message: str
    """Timestamp of the incident's own message; empty where messages cannot be edited."""
    detailed: bool = False
    """Whether the detail was posted into its thread."""
    posts: tuple[Post, ...] = ()
    """The other messages, each once."""
    more: bool = False
    """Whether more is to be posted: keep this handle, then send again with it."""

    def post(self, key: str) -> Post | None:
        """Return the message that says ``key``; None where none was posted."""
        return next((post for post in self.posts if post.key == key), None)

    def having(self, post: Post) -> Handle:
        """Return it with ``post``, in the place of one that says the same."""
        others = tuple(one for one in self.posts if one.key != post.key)
        return self.model_copy(update={"posts": (*others, post)})

    @property
    def asks(self) -> frozenset[str]:
        """Mitigations that people were asked to approve."""
        prefix = request_key("")
        keys = (post.key for post in self.posts)
        return frozenset(key.removeprefix(prefix) for key in keys if key.startswith(prefix))

    def asked(self, mitigation_id: str) -> bool:
        """Whether people were asked to approve this mitigation."""
        return self.post(request_key(mitigation_id)) is not None


def request_key(mitigation_id: str) -> str:
    """Return the key of the message that asks people to approve a mitigation."""
    return f"request/{mitigation_id}"


class Notifier(Protocol):
    """Tells humans. Raises ``TemporaryError`` (with ``retry_after``) or ``PermanentError``."""

    async def send(self, report: Report, handle: Handle | None) -> Handle | None:
        """Post ``report``, or edit the messages at ``handle``; return where they are now.

        At most one message is new in each call: with ``more`` in the result, the caller keeps it
        and calls again, so that a crash repeats one message at most.
        """
        ...

    def channel(self, incident: IncidentView) -> str:
        """Name where the incident is told: each channel has a pace of its own."""
        ...

    async def call(self, report: Report) -> None:
        """Post ``report`` as a new message that calls people, beside the incident's own."""
        ...


class Word(StrEnum):
    """What a channel is told about an incident."""

    LEVEL = "level"
    """A level of the escalation begins: a human is called."""
    ACKNOWLEDGED = "acknowledged"
    """Somebody has the incident."""
    RESOLVED = "resolved"
    """What was told about is over."""
    FOUND = "found"
    """What the diagnosis found."""
    DONE = "done"
    """What was done, and how the incident ended."""


class Summons(Value):
    """One message to one channel, free of the channel's format. Secrets in it are masked."""

    word: Word
    subject: str
    """What tells it from others of the same word: the level, or an incident of PagerDuty's."""
    report: Report
    headline: str
    text: str
    """All that a person needs to begin, a sentence a line."""
    severity: str
    """``critical``, ``error``, ``warning`` or ``info``."""
    links: dict[str, str] = Field(default_factory=dict)
    """Addresses worth a look, by their name."""


class Channel(Protocol):
    """A way to a person. Raises ``TemporaryError`` (with ``retry_after``) or ``PermanentError``."""

    async def tell(self, summons: Summons) -> None:
        """Say it; what was said before may be said again, where the channel cannot know that."""
        ...
