"""Who may call: roles, what each may do, and named credentials."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from remediator.model.errors import ConfigError


class Role(StrEnum):
    """What a credential is for."""

    INGEST = "ingest"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


class Permission(StrEnum):
    """What a route asks of its caller."""

    POST_ALERTS = "post alerts"
    READ = "read"
    OPERATE = "operate"
    """Replay, approve, reject, cancel, pause and resume; read and verify the audit."""


def permits(role: Role, permission: Permission) -> bool:
    """Say whether ``role`` has ``permission``."""
    match permission:
        case Permission.POST_ALERTS:
            return role in (Role.INGEST, Role.ADMIN)
        case Permission.READ:
            return role in (Role.VIEWER, Role.OPERATOR, Role.ADMIN)
        case Permission.OPERATE:
            return role in (Role.OPERATOR, Role.ADMIN)


@dataclass(frozen=True)
class Credential:
    """One live secret, with the name that records and approvals carry.

    Either ``token`` or both of ``user`` and ``password``; anything else is a ``ConfigError``.
    """

    name: str
    role: Role
    token: str | None = field(default=None, repr=False)
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a credential that could never match, or that anyone could guess."""
        pair = (self.user, self.password)
        whole = all(pair) if self.token is None else bool(self.token) and pair == (None, None)
        if not self.name or not whole:
            raise ConfigError(
                f"credential {self.name!r} needs a name and either a token, or a user and a"
                " password; none of them may be empty"
            )


@dataclass(frozen=True)
class Principal:
    """The caller, once known."""

    name: str
    role: Role

    def may(self, permission: Permission) -> bool:
        """Say whether the caller has ``permission``."""
        return permits(self.role, permission)
