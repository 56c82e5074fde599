"""The configured credentials: who may call, what with, and which systems a sender speaks for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from remediator.config.sections import File, Name, Section, Variable
from remediator.model.access import Permission, Role, permits
from remediator.model.errors import ConfigError


class Credential(Section):
    """A named secret that senders or people authenticate with."""

    name: Name
    """Who holds it; recorded with all that is done with it. Unique."""
    role: Role
    """`ingest` posts webhooks, `viewer` reads, `operator` also replays, approves and pauses,
    `admin` may do everything."""
    token_file: File | None = None
    """File with the bearer token."""
    token_env: Variable | None = None
    """Environment variable with the bearer token."""
    basic_file: File | None = None
    """File with `user:password` for basic authentication."""
    basic_env: Variable | None = None
    """Environment variable with `user:password` for basic authentication."""
    secret_file: File | None = None
    """The same as `token_file`, for senders that call it a shared secret."""
    secret_env: Variable | None = None
    """The same as `token_env`, for senders that call it a shared secret."""
    systems: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Systems that it may post alerts of; an alert of another one is a dead letter. None: all."""

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        given = [name for name in ("token", "basic", "secret") if self.secret(name)]
        if len(given) != 1:
            raise ValueError("needs exactly one of token_file, token_env, basic_file, basic_env")
        return self

    @property
    def scheme(self) -> Literal["token", "basic"]:
        """How it is presented: as a bearer token, or as user and password."""
        return "basic" if self.secret("basic") else "token"

    def read(self, environ: Mapping[str, str]) -> str:
        """Read the token, or ``user:password`` when ``scheme`` is basic; or ``ConfigError``."""
        reference = self.secret("token") or self.secret("secret") or self.secret("basic")
        if reference is None:  # only when built past validation
            raise ConfigError(f"credential {self.name} refers to no secret")
        secret = reference.read(environ)
        if self.scheme == "basic" and not re.fullmatch(r"[^:]+:.+", secret, re.DOTALL):
            raise ConfigError(f"credential {self.name}: {reference} should hold user:password")
        return secret


def credential_complaints(
    credentials: Sequence[Credential], systems: Collection[str]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield what does not fit together, and where; ``systems`` are those that there are."""
    held = Counter(credential.name for credential in credentials)
    for position, credential in enumerate(credentials):
        if held[credential.name] > 1:
            yield ("credentials", position, "name"), "is the name of another credential too"
        key = ("credentials", position, "systems")
        if credential.systems is not None and not permits(credential.role, Permission.POST_ALERTS):
            yield key, f"is for those who post alerts, which the role {credential.role} does not"
        for system in credential.systems or ():
            if system not in systems:
                known = ", ".join(sorted(systems)) or "none"
                yield key, f"there is no system {system!r}; known are: {known}"


def spoken_for(credentials: Sequence[Credential]) -> Mapping[str, frozenset[str]]:
    """Return the systems of those who do not speak for all of them, by the credential's name."""
    return {c.name: frozenset(c.systems) for c in credentials if c.systems is not None}
