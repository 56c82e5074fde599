"""The base URLs of HTTP backends: what may stand in the configuration, and in error texts."""

from __future__ import annotations

from urllib.parse import urlsplit

from remediator.errors import ConfigError


def base_url(url: str, where: str) -> str:
    """Return ``url`` without its trailing slash, safe to be shown.

    Raises ``ConfigError`` unless it is plain http or https with a host, without credentials,
    query or fragment. The error never repeats the URL, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # a port that is no number shows only when asked for
    except ValueError as error:
        raise ConfigError(f"{where}: the url cannot be read; write http://host:port") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{where}: the url holds credentials; put them in a file of their own")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"{where}: the url must be http:// or https:// with a host")
    if parts.query or parts.fragment:
        raise ConfigError(f"{where}: the url must have neither a query nor a fragment")
    return url.rstrip("/")
