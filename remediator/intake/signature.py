"""Checks who signed a PagerDuty webhook. Pure: header, bytes and secrets in, an answer out."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence

HEADER = "X-PagerDuty-Signature"
MOST = 32
"""Signatures of one header that are looked at; PagerDuty sends one for each live secret."""
_SIGNATURE = re.compile(r"v1=([0-9a-fA-F]{64})")


def signatures_of(headers: Sequence[str]) -> tuple[bytes, ...]:
    """Return the version 1 signatures among the values of the header; others are no concern."""
    values = ",".join(headers).split(",", MOST)[:MOST]
    found = (_SIGNATURE.fullmatch(value.strip(" \t")) for value in values)
    return tuple(bytes.fromhex(match[1]) for match in found if match)


def is_signed(body: bytes, signatures: Sequence[bytes], secrets: Sequence[bytes]) -> bool:
    """Say whether any of ``secrets`` made any of ``signatures`` over ``body``.

    All are compared, so that the time tells nothing of which one was near.
    """
    good = False
    for secret in secrets:
        expected = hmac.digest(secret, body, "sha256")
        for signature in signatures:
            good |= hmac.compare_digest(expected, signature)
    return good


def sign(body: bytes, secret: bytes) -> str:
    """Return the value that the header has for ``body``, as PagerDuty makes it."""
    return f"v1={hmac.digest(secret, body, 'sha256').hex()}"


def digest_of(secrets: Sequence[bytes]) -> str:
    """Name a set of secrets without telling any: the same set has the same name."""
    parts = sorted({hashlib.sha256(b"remediator signing secret\0" + s).digest() for s in secrets})
    return hashlib.sha256(b"".join(parts)).hexdigest()
