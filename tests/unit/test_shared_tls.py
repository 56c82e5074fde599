"""What many backends cost at a start."""

from __future__ import annotations

import gc
import ssl
from pathlib import Path

from remediator.backends.http.tls import shared_context
from remediator.config.settings import load_settings
from remediator.service.backends import open_backends

MANY = 50


def _contexts() -> int:
    gc.collect()
    return sum(isinstance(thing, ssl.SSLContext) for thing in gc.get_objects())


async def test_a_hundred_http_clients_share_one_tls_context(tmp_path: Path) -> None:
    backend = "{url: 'https://h', breakers: actuator, writer_token_env: TOKEN}"
    lines = "".join(f"    b{number}: {backend}\n" for number in range(MANY))
    (tmp_path / "remediator.yaml").write_text(f"backends:\n  http:\n{lines}")
    settings = load_settings(None, {"HOME": str(tmp_path)}, tmp_path)
    shared_context()
    before = _contexts()
    async with open_backends(settings, {"TOKEN": "t"}) as backends:
        assert (len(backends.readers), len(backends.levers)) == (MANY, MANY)
        assert _contexts() == before


def test_the_shared_context_verifies_servers() -> None:
    context = shared_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
