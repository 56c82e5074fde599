"""The part ``http`` of the file: who may connect, how often, and by which names."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator

from remediator.config.sections import Count, Period, Section

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


def _host(text: str) -> str:
    lowered = text.lower()
    if not _HOST.fullmatch(lowered):
        raise ValueError("should be a host name without a port, such as remediator.example.com")
    return lowered


HostName = Annotated[str, AfterValidator(_host)]


class Http(Section):
    """How the service is called, beyond where it listens."""

    hosts: tuple[HostName, ...] = ()
    """Names that callers may reach it by (`Host`), besides addresses and localhost. None: on
    loopback no other name, elsewhere any."""
    connections_per_address: Count = 128
    """Connections of one address (IPv6: one /64) that are open at the same time. For a further one
    the longest idle of that address is closed."""
    write_timeout: Period = timedelta(seconds=20)
    """Time in which a client has to read some of its answer; then the connection is closed."""
