"""The TLS context that all HTTP clients share: loading the authorities costs 0.1 s of CPU and 2 MB."""

from __future__ import annotations

import functools
import ssl

import httpx


@functools.cache
def shared_context() -> ssl.SSLContext:
    """Return the context that verifies servers, made once in a process.

    It holds the public authorities, or those of ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``, and no
    certificate of our own, so nothing of one backend reaches another.
    """
    return httpx.create_ssl_context()
