"""What every part of the configuration is made of, and the parts about the world outside.

Sections and references to secrets, then the channels to people and the backends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from remediator.model.base import Value
from remediator.model.duration import Duration, format_duration
from remediator.model.errors import ConfigError
from remediator.model.keyspace import no_cache

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("a name is made of letters, digits, dots, underscores and hyphens")
    return text


def _variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError("should be the name of an environment variable, not what it holds")
    return text


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("should be a path; it is empty")
    return value


def _size(value: object) -> object:
    number = isinstance(value, int) and not isinstance(value, bool)
    if not number and not isinstance(value, str):
        raise ValueError("should be bytes, or text such as 16MiB")
    return value


def _web_url(text: str) -> str:
    try:
        url = urlsplit(text)
        valid = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("should be an absolute URL that begins with http or https")
    if "@" in url.netloc or url.query or url.fragment:
        raise ValueError("a URL here has no user, password or query: secrets come by reference")
    return text.rstrip("/")


Name = Annotated[str, AfterValidator(_name)]
"""A name of one's own choice; it becomes a part of ids and paths."""
Variable = Annotated[str, AfterValidator(_variable)]
"""The name of an environment variable."""
WebUrl = Annotated[str, AfterValidator(_web_url)]
"""Base URL without user, query and trailing slash."""
File = Annotated[Path, BeforeValidator(_not_empty)]
"""A file or folder; relative ones start from where the configuration was written."""
Text = Annotated[str, Field(min_length=1)]
Period = Annotated[
    Duration,
    Field(strict=True, gt=timedelta(0)),
    PlainSerializer(format_duration, return_type=str),
]
"""A time that is not zero and has its unit."""
Count = Annotated[int, Field(strict=True, gt=0)]
Size = Annotated[
    ByteSize,
    BeforeValidator(_size),
    Field(gt=0),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}),
]
"""Bytes: a number, or text with a unit such as ``16MiB``."""


class Section(BaseModel):
    """Base of every mapping of the file: frozen, and an unknown key is an error.

    A key that is there with no value counts as not written. A secret ``X`` is referred to by
    ``X_file`` or ``X_env``, never by both.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, data: Any) -> Any:
        if data is None:
            return {}
        if not isinstance(data, Mapping):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {k: v for k, v in data.items() if v is not None or k not in known}

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        for name in type(self).model_fields:
            twin = name.removesuffix("_file") + "_env"
            if name.endswith("_file") and getattr(self, name) and getattr(self, twin, None):
                raise ValueError(f"{name} and {twin} are both set; keep one of them")
        return self

    def secret(self, name: str) -> SecretRef | None:
        """Return the reference to the secret ``name``, or None where there is none."""
        file, env = getattr(self, f"{name}_file"), getattr(self, f"{name}_env")
        return SecretRef(file=file, env=env) if file or env else None


class SecretRef(Value):
    """Where a secret is: a file or an environment variable. Never holds the secret itself."""

    file: Path | None = None
    env: str | None = None

    def __str__(self) -> str:
        return f"secret file {self.file}" if self.file else f"environment variable {self.env}"

    def read(self, environ: Mapping[str, str]) -> str:
        """Read the secret now, so that a rotated one is seen; the trailing newline is cut off.

        Raises ``ConfigError`` when it is missing, not text or empty; the message says where.
        """
        content = (self._content() if self.file else environ.get(self.env or "")) or ""
        secret = content.rstrip("\r\n")
        if not secret.strip():
            raise ConfigError(f"{self} is {'empty' if self.file or content else 'not set'}")
        return secret

    def _content(self) -> str | None:
        try:
            return self.file.read_text("utf-8") if self.file else None
        except OSError as error:
            raise ConfigError(f"{self} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self} is not UTF-8 text") from None


# --- channels to people -----------------------------------------------------------------------


class PagerDuty(Section):
    """PagerDuty, as a sender of incidents and as the way to wake a person."""

    signing_secret_files: tuple[File, ...] = ()
    """Files with the webhook subscriptions' signing secrets; any of them may match."""
    signing_secret_envs: tuple[Variable, ...] = ()
    """Environment variables with signing secrets, besides the files."""
    api_token_file: File | None = None
    """File with a REST API token, to fetch an incident's alerts and to write notes."""
    api_token_env: Variable | None = None
    """Environment variable with a REST API token."""
    routing_key_file: File | None = None
    """File with the Events API v2 integration key that escalations are sent to."""
    routing_key_env: Variable | None = None
    """Environment variable with the Events API v2 integration key."""
    from_email: Text | None = None
    """E-mail address of the PagerDuty user that notes are written as; REST asks for one."""
    api_url: WebUrl = "https://api.pagerduty.com"
    """Base URL of the REST API."""
    events_url: WebUrl = "https://events.pagerduty.com"
    """Base URL of the Events API, without `/v2/enqueue`."""

    @property
    def signing_secrets(self) -> tuple[SecretRef, ...]:
        """References to every signing secret that is live."""
        files = (SecretRef(file=file) for file in self.signing_secret_files)
        return (*files, *(SecretRef(env=env) for env in self.signing_secret_envs))


# --- backends ---------------------------------------------------------------------------------


class _Backend(Section):
    needed: ClassVar[str | None] = None

    @model_validator(mode="after")
    def _has_secret(self) -> Self:
        name = self.needed
        if name and self.secret(name) is None:
            raise ValueError(f"needs {name}_file or {name}_env")
        return self


class _OneWayIn(_Backend):
    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if self.secret("token") and self.secret("basic"):
            raise ValueError("has both a token and a basic user; keep one of them")
        return self


class PrometheusBackend(_OneWayIn):
    """A Prometheus, or what speaks its query API."""

    url: WebUrl
    """Base URL, without `/api/v1`."""
    token_file: File | None = None
    """File with a bearer token."""
    token_env: Variable | None = None
    """Environment variable with a bearer token."""
    basic_file: File | None = None
    """File with `user:password` for basic authentication."""
    basic_env: Variable | None = None
    """Environment variable with `user:password`."""
    scrape_interval: Period = timedelta(minutes=1)
    """How often it scrapes; it is stale when its newest sample is older than three of these."""


class AlertmanagerBackend(_OneWayIn):
    """An Alertmanager, in which alerts are silenced while something is done about them."""

    url: WebUrl
    """Base URL, without `/api/v2`."""
    token_file: File | None = None
    """File with a bearer token."""
    token_env: Variable | None = None
    """Environment variable with a bearer token."""
    basic_file: File | None = None
    """File with `user:password` for basic authentication."""
    basic_env: Variable | None = None
    """Environment variable with `user:password`."""


class KubernetesBackend(_Backend):
    """A cluster. Reader and writer are two accounts, so that reading can never write."""

    kubeconfig: File | None = None
    """File that the reader connects with; none: the pod's own service account."""
    writer_kubeconfig: File | None = None
    """File that the writer connects with; none: nothing is ever changed there."""


class PostgresBackend(_Backend):
    """A PostgreSQL database that is looked after."""

    needed: ClassVar[str | None] = "dsn"

    dsn_file: File | None = None
    """File with the reader's URL, `postgresql://user:password@host/database`."""
    dsn_env: Variable | None = None
    """Environment variable with the reader's URL."""
    writer_dsn_file: File | None = None
    """File with the writer's URL; none: nothing is ever changed there."""
    writer_dsn_env: Variable | None = None
    """Environment variable with the writer's URL."""


class RedisBackend(_Backend):
    """A Redis that is looked after."""

    needed: ClassVar[str | None] = "url"

    url_file: File | None = None
    """File with the reader's URL, `redis://user:password@host:6379/0`."""
    url_env: Variable | None = None
    """Environment variable with the reader's URL."""
    writer_url_file: File | None = None
    """File with the writer's URL; none: nothing is ever changed there."""
    writer_url_env: Variable | None = None
    """Environment variable with the writer's URL."""
    cache_prefixes: tuple[Text, ...] = ()
    """Beginnings of the keys that can be built again, such as `cache:`. Only these may be removed."""

    @field_validator("cache_prefixes")
    @classmethod
    def _are_caches(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            wrong = no_cache(prefix)
            if wrong:
                raise ValueError(wrong)
        return prefixes

    @model_validator(mode="after")
    def _writer_has_prefixes(self) -> Self:
        if self.secret("writer_url") and not self.cache_prefixes:
            raise ValueError("a writer needs cache_prefixes: nothing else may be removed")
        return self


class HttpBackend(_Backend):
    """A service's own HTTP interface, such as its admin endpoints."""

    url: WebUrl
    """Base URL; nothing outside of it is ever called."""
    token_file: File | None = None
    """File with a bearer token."""
    token_env: Variable | None = None
    """Environment variable with a bearer token."""
    breakers: Literal["actuator", "admin"] | None = None
    """How its circuit breakers are read: `/actuator/circuitbreakers`, or `/admin/circuit-breaker`."""
    migrations: Literal["admin"] | None = None
    """How its gradual migrations are read: `/admin/migration`."""
    writer_token_file: File | None = None
    """File with the bearer token that changes are made with; none: nothing is ever changed."""
    writer_token_env: Variable | None = None
    """Environment variable with the bearer token that changes are made with."""

    @model_validator(mode="after")
    def _writer_has_work(self) -> Self:
        if self.secret("writer_token") and not (self.breakers or self.migrations):
            needs = "needs breakers or migrations"
            raise ValueError(f"a writer token {needs}: nothing else can be changed there")
        return self


class Backends(Section):
    """Everything that can be read or changed, by a name of your choice. Alerts add nothing."""

    prometheus: dict[Name, PrometheusBackend] = Field(default_factory=dict)
    """Prometheus servers by name."""
    alertmanager: dict[Name, AlertmanagerBackend] = Field(default_factory=dict)
    """Alertmanagers by name."""
    kubernetes: dict[Name, KubernetesBackend] = Field(default_factory=dict)
    """Clusters by name."""
    postgres: dict[Name, PostgresBackend] = Field(default_factory=dict)
    """PostgreSQL databases by name."""
    redis: dict[Name, RedisBackend] = Field(default_factory=dict)
    """Redis servers by name."""
    http: dict[Name, HttpBackend] = Field(default_factory=dict)
    """HTTP services by name."""

    def names(self) -> dict[str, list[str]]:
        """List the names of each kind."""
        return {kind: sorted(getattr(self, kind)) for kind in type(self).model_fields}
