"""Tells a call of a foreign web page from one of a program: by Host, Origin and Sec-Fetch-Site. Pure.

A browser sends its user's network position, and credentials that it has cached, along with whatever
a page asks for. Programs send none of these headers but Host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

_OWN = frozenset({"same-origin", "none"})
"""What a browser says in Sec-Fetch-Site of a page of our own, and of what its user typed in."""
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Names:
    """The host names that the service is called by, besides addresses and localhost."""

    known: frozenset[str] = frozenset()
    only: bool = False
    """Whether no other is answered. A page whose name was pointed at our address has another one."""


def host_fault(host: str | None, names: Names) -> str | None:
    """Say why a call to ``host`` (the header) is not answered; None when it is."""
    if not names.only or host is None:  # no browser leaves it out
        return None
    name = _name(host)
    if name in names.known or _is_local(name):
        return None
    return f"the service is not known as {name[:100]!r}; add the name to http.hosts if it is"


def origin_fault(host: str | None, origins: Sequence[str], sites: Sequence[str]) -> str | None:
    """Say why a call that changes something comes from a foreign page; None when it does not."""
    if any(site.strip().lower() not in _OWN for site in sites):
        return "a web page of another site may not change anything (Sec-Fetch-Site)"
    if any(not _is_own(origin, host or "") for origin in origins):
        return "a web page of another origin may not change anything (Origin)"
    return None


def _is_own(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin.strip().lower())
        port = parts.port or _PORTS.get(parts.scheme)
        own = urlsplit(f"//{host.strip().lower()}")
        own_port = own.port or _PORTS.get(parts.scheme)
    except ValueError:
        return False
    return bool(parts.hostname) and (parts.hostname, port) == (own.hostname, own_port)


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host.strip()}").hostname or "").rstrip(".")
    except ValueError:
        return host.strip().lower()


def _is_local(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True  # names can be pointed at us, addresses cannot
