"""The error tree, by what the caller does next.

    RemediatorError
    ├── ConfigError            start-up stops; says the file, the line and what to do
    ├── RejectedDelivery       4xx: the sender must not send this again
    ├── Refused                an operator's request that cannot be met (404, 409)
    ├── TemporaryError         try again later: the world may be better by then
    │   ├── StoreUnavailable   503 to senders; the pipeline waits
    │   │   └── DiskFull       the same, until somebody makes room
    │   └── BackendUnavailable a backend does not answer or answers nonsense: "unknown"
    ├── PermanentError         trying again is pointless: a finding or an escalation
    │   └── BackendRefused     the backend said no: a right is missing, a bound is passed
    └── OwnershipLost          another replica owns the incident now: stop, write nothing

Adapters translate their library's errors into these, ``raise ... from``.
"""

from __future__ import annotations


class RemediatorError(Exception):
    """Root of every error that this package raises on purpose."""


class ConfigError(RemediatorError):
    """The configuration cannot be used."""


class RejectedDelivery(RemediatorError):
    """The sender's request is wrong and no retry can cure it."""


class Refused(RemediatorError):
    """An operator asked for something that cannot be done now."""

    def __init__(self, status: int, reason: str) -> None:
        """Keep the HTTP ``status`` that fits (404 or 409) with the reason."""
        super().__init__(reason)
        self.status = status
        self.reason = reason


class TemporaryError(RemediatorError):
    """Something failed that may work later."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        """Keep the seconds after which the other side asked us to try again, if it did."""
        super().__init__(reason)
        self.retry_after = retry_after


class StoreUnavailable(TemporaryError):
    """The store does not take writes now."""


class DiskFull(StoreUnavailable):
    """The disk of the store is full."""


class BackendUnavailable(TemporaryError):
    """A backend cannot be read or written now."""


class NoData(BackendUnavailable):
    """A backend answered, and has nothing to say about what was asked."""


class PermanentError(RemediatorError):
    """Something failed that will fail again."""


class BackendRefused(PermanentError):
    """A backend answered and said no."""


class OwnershipLost(RemediatorError):
    """A write found a newer epoch: this worker is no longer the owner."""
