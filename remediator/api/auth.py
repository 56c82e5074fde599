"""Who may call: named credentials, their roles, and what each role may do.

The routes ask ``Access`` before they read a body. Secrets live in ``Credential`` alone, which
never shows them.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from remediator.model.access import Credential, Principal, Role
from remediator.model.errors import ConfigError


class Access:
    """Finds the credential that a request came with, in constant time over all of them."""

    def __init__(self, credentials: Iterable[Credential]) -> None:
        """Keep digests of the secrets.

        Several credentials may share a name during a rotation if they share the role. Raises
        ``ConfigError`` for two roles of one name, and for one secret under two names.
        """
        self._key = secrets.token_bytes(32)
        self._known: list[tuple[bytes, Principal]] = []
        roles: dict[str, Role] = {}
        owners: dict[bytes, str] = {}
        for credential in credentials:
            name = credential.name
            if roles.setdefault(name, credential.role) is not credential.role:
                raise ConfigError(f"credential {name!r} is given two roles; use two names")
            digest = self._digest_of(credential)
            if owners.setdefault(digest, name) != name:
                raise ConfigError(
                    f"credentials {owners[digest]!r} and {name!r} are the same secret"
                )
            self._known.append((digest, Principal(name, credential.role)))

    def authenticate(self, authorization: str | None) -> Principal | None:
        """Return who an ``Authorization`` header speaks for; None when nobody.

        A bearer token may also come as the password of basic, under any user.
        """
        presented = [self._digest(*secret) for secret in _presented(authorization or "")]
        found = None
        for known, principal in self._known:
            for digest in presented:
                if hmac.compare_digest(known, digest):
                    found = principal
        return found

    def _digest_of(self, credential: Credential) -> bytes:
        if credential.token is not None:
            return self._digest(b"token", credential.token.encode())
        return self._digest(b"basic", f"{credential.user}:{credential.password}".encode())

    def _digest(self, kind: bytes, secret: bytes) -> bytes:
        return hmac.digest(self._key, kind + b"\0" + secret, "sha256")


def _presented(authorization: str) -> list[tuple[bytes, bytes]]:
    scheme, _, rest = authorization.partition(" ")
    secret = rest.strip().encode(errors="surrogateescape")
    match scheme.lower():
        case "bearer" if secret:
            return [(b"token", secret)]
        case "basic":
            return _presented_basic(secret)
    return []


def _presented_basic(encoded: bytes) -> list[tuple[bytes, bytes]]:
    try:
        pair = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return []
    password = pair.partition(b":")[2]
    return [(b"basic", pair), (b"token", password)] if password else []


def generate_credentials(state_dir: Path) -> tuple[Credential, Credential]:
    """Read, or make, the two tokens of a service that was given no credentials.

    ``token`` may post alerts and ``operator-token`` may operate; both have mode 0600. Raises
    ``ConfigError`` when a file cannot be made or read, or when others can read it.
    """
    return (
        Credential("ingest", Role.INGEST, token=generated_secret(state_dir / "token")),
        Credential("operator", Role.OPERATOR, token=generated_secret(state_dir / "operator-token")),
    )


def generated_secret(file: Path) -> str:
    """Read the secret in ``file``, or make one there; as ``generate_credentials`` does."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            _create(file)
        return _read(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"the secret file {file} cannot be used: {reason}") from error


def _create(file: Path) -> None:
    """Link a finished file into place, so that nobody ever reads half a secret."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(32) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):  # another process was first: its secret is the secret
            os.link(draft, file)
    finally:
        draft.unlink()


def _read(file: Path) -> str:
    with file.open() as stream:
        mode = os.fstat(stream.fileno()).st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(
                f"the secret file {file} can be read by others (mode {mode:04o});"
                f" chmod 600 {file}, and delete it instead if somebody may have seen it"
            )
        token = stream.read().strip()
    if not token:
        raise ConfigError(f"the secret file {file} is empty; delete it to have a new one made")
    return token
