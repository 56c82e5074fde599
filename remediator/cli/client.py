"""The operator's API as the commands use it: one short-lived HTTP client, errors as ``Failure``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from remediator.cli.output import REFUSED, UNREACHABLE, USAGE, Failure
from remediator.model.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:8080"
TIMEOUT = 20.0
"""Seconds to wait for an answer."""

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

M = TypeVar("M", bound=BaseModel)


def state_dir(environ: Mapping[str, str]) -> Path:
    """Return the folder in which a service on this machine leaves its operator token.

    It is ``REMEDIATOR_STATE_DIR``, else ``state_dir`` of the configuration that ``serve`` would
    take here, else the default.
    """
    chosen = environ.get("REMEDIATOR_STATE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    configured = _configured_state_dir(environ)
    if configured is not None:
        return configured
    base = Path(environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():  # as the service reads it
        base = Path("~/.local/state").expanduser()
    return base / "remediator"


def _configured_state_dir(environ: Mapping[str, str]) -> Path | None:
    """Read the folder from the configuration; one that is wrong must not hold up a `pause`."""
    from remediator.config.settings import CONFIG_FILE, load_settings

    if not environ.get("REMEDIATOR_CONFIG") and not Path(CONFIG_FILE).exists():
        return None
    try:
        return load_settings(None, environ, Path.cwd()).state_dir
    except (ConfigError, OSError):
        return None


def find_token(environ: Mapping[str, str]) -> str | None:
    """Return the operator's token: ``REMEDIATOR_TOKEN``, or the one in the state folder."""
    token = environ.get("REMEDIATOR_TOKEN", "").strip()
    if token:
        return token
    file = state_dir(environ) / "operator-token"
    try:
        return file.read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise Failure(USAGE, f"cannot read {file}: {reason}; or set REMEDIATOR_TOKEN") from error


class Api:
    """One service's API; a context manager that owns the connection."""

    def __init__(
        self, environ: Mapping[str, str] = os.environ, *, timeout: float = TIMEOUT
    ) -> None:
        """Take the address and the credential from the environment; ``timeout`` in seconds."""
        self._timeout = timeout
        self.url = _address(environ.get("REMEDIATOR_URL") or DEFAULT_URL)
        token = find_token(environ)
        self._anonymous = token is None
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers={} if token is None else {"Authorization": f"Bearer {token}"},
                timeout=timeout,
                trust_env=urlsplit(self.url).hostname not in LOOPBACK,  # no proxy to oneself
            )
        except UnicodeEncodeError as error:
            raise Failure(USAGE, "REMEDIATOR_TOKEN is not plain ASCII; set it again") from error

    def __enter__(self) -> Self:
        """Open the connection at the first request."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._http.close()

    def get(self, path: str, params: Mapping[str, str] | None = None) -> httpx.Response:
        """GET below ``/api/v1``; a 2xx JSON answer, or ``Failure``."""
        return self._send("GET", path, params=params)

    def post(
        self, path: str, body: Any = None, params: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """POST JSON below ``/api/v1``; a 2xx JSON answer, or ``Failure``."""
        return self._send("POST", path, params=params, json={} if body is None else body)

    def delete(self, path: str) -> httpx.Response:
        """DELETE below ``/api/v1``; a 2xx JSON answer, or ``Failure``."""
        return self._send("DELETE", path)

    def lines(self, path: str, params: Mapping[str, str] | None = None) -> Iterator[str]:
        """GET below ``/api/v1``; yield the lines of an answer in JSON lines, or ``Failure``."""
        with (
            self._reached(),
            self._http.stream("GET", f"/api/v1{path}", params=params) as answer,
        ):
            if not answer.is_success or _kind(answer) != "application/x-ndjson":
                answer.read()
                raise self._not_this(self._accepted(answer))
            yield from answer.iter_lines()

    def read(self, answer: httpx.Response, model: type[M]) -> M:
        """Read an answer as ``model``; fields of a newer service are left out."""
        try:
            return model.model_validate(answer.json(), extra="ignore")
        except ValidationError as error:
            raise Failure(
                REFUSED,
                f"{answer.request.url} answers in a form that this version does not know"
                f" ({error.error_count()} fields); use the version of the service, or --json",
            ) from error

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        with self._reached():
            answer = self._http.request(method, f"/api/v1{path}", **content)
        return self._accepted(answer)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Say what to do when the service cannot be reached."""
        try:
            yield
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise Failure(
                UNREACHABLE,
                f"the service at {self.url} does not answer within {self._timeout:g} s;"
                " look at its log and at its store",
                passes=True,
            ) from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Failure(
                UNREACHABLE,
                f"no service answers at {self.url} ({reason});"
                " start one with `remediator serve`, or set REMEDIATOR_URL",
                passes=True,
            ) from error

    def _accepted(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code == 401:
            raise Failure(*self._unauthorized())
        kind = _kind(answer)
        if answer.is_success and kind == "application/json" and _is_json(answer):
            return answer
        if kind == "application/problem+json" and _is_json(answer):
            raise Failure(REFUSED, _problem(answer), passes=answer.status_code == 503)
        raise self._not_this(answer)

    def _not_this(self, answer: httpx.Response) -> Failure:
        kind = _kind(answer) or "without a type"
        return Failure(
            REFUSED,
            f"{answer.request.url} answers {answer.status_code} {kind},"
            " which is not this API; see REMEDIATOR_URL",
        )

    def _unauthorized(self) -> tuple[int, str]:
        if self._anonymous:
            return USAGE, (
                f"the service at {self.url} needs a credential: set REMEDIATOR_TOKEN,"
                " or REMEDIATOR_STATE_DIR to the folder of a service on this machine"
                " (or REMEDIATOR_CONFIG to its configuration)"
            )
        return REFUSED, (
            f"the service at {self.url} does not know this credential;"
            " see REMEDIATOR_TOKEN, or the operator-token file of its state folder"
        )


def _address(url: str) -> str:
    """Check and return the service's address."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and url.isascii()
        secret = parts.username is not None
        _ = parts.port, httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        usable = secret = False
    if secret:  # and so it is not repeated here
        raise Failure(USAGE, "REMEDIATOR_URL holds a user name; use REMEDIATOR_TOKEN instead")
    if not usable:
        raise Failure(USAGE, f"REMEDIATOR_URL {url!r} is not an http:// or https:// address")
    return url.rstrip("/")


def _kind(answer: httpx.Response) -> str:
    return str(answer.headers.get("Content-Type", "")).partition(";")[0].strip()


def _is_json(answer: httpx.Response) -> bool:
    try:
        return isinstance(answer.json(), (dict, list))
    except ValueError:
        return False


def _problem(answer: httpx.Response) -> str:
    problem = answer.json()
    if not isinstance(problem, dict):
        return f"the service refused ({answer.status_code}) without a reason"
    wrong = [e for e in problem.get("errors") or () if isinstance(e, dict) and e.get("message")]
    detail = str(problem.get("detail", ""))
    values = (f"{e.get('path')} {e['message']}" for e in wrong if e["message"] not in detail)
    parts = (problem.get("title"), detail, *values)
    text = ": ".join(str(part) for part in parts if part)
    return f"the service refused ({answer.status_code}): {text or 'without a reason'}"
