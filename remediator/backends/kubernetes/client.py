"""One client of one cluster's API with one account, and what the API's errors mean to us.

Speaks plain JSON: the objects are read in ``kubernetes_objects``. The configuration belongs to
this client alone, and is read again after the API refused the credentials (tokens rotate).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import aiohttp
import yaml
from kubernetes_asyncio import client, config

from remediator.model.errors import BackendRefused, BackendUnavailable, ConfigError, RemediatorError

READ_WITHIN = 4.0
WRITE_WITHIN = 10.0
"""Seconds for one request, with its answer."""
MANAGER = "remediator"
"""Name that the API server notes beside every field that we write."""
SHOWN = 300
"""Characters of an API message that are passed on."""
_UNUSABLE = (
    config.ConfigException,
    yaml.YAMLError,
    OSError,
    ValueError,
    # what the library does to a file that is YAML, but no kubeconfig
    AttributeError,
    LookupError,
    TypeError,
)
_ANY = frozenset({""})
"""Asks for a right on whatever there is, and not on the objects of some names."""
_JSON = "application/json"
_PATCH = "application/strategic-merge-patch+json"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class Right(NamedTuple):
    """What an account must be allowed to do."""

    verb: str
    group: str
    resource: str
    """With its subresource: ``pods/eviction``."""
    everywhere: bool = False
    """Whether a Role does not suffice: it is needed in all namespaces, or knows none."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}"


class Change(NamedTuple):
    """One writing request."""

    method: Literal["PATCH", "POST"]
    path: str
    body: dict[str, Any]
    manager: str = MANAGER
    """Who is noted as the writer of what a patch changes."""


class NotFound(BackendRefused):
    """The object is not there."""


class Forbidden(BackendRefused):
    """Our account lacks the right."""


class Conflict(BackendRefused):
    """The object is no longer what the request says it is: nothing was changed."""


class NotDone(BackendUnavailable):
    """The request was certainly not carried out."""


class KubernetesClient:
    """Asks one API server. Raises only ``BackendUnavailable`` and ``BackendRefused``."""

    def __init__(self, kubeconfig: Path | None, name: str) -> None:
        """Use the file ``kubeconfig``, or without one the pod's own service account."""
        self._kubeconfig = kubeconfig
        self._name = name
        self._api: client.ApiClient | None = None
        self._refused = False
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"KubernetesClient({self._name!r})"

    async def __aenter__(self) -> Self:
        await self._opened()
        return self

    async def __aexit__(self, *_: object) -> None:
        api, self._api = self._api, None
        if api is not None:
            await api.close()

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """Read one object or list."""
        return await self._call("GET", path, query, None)

    async def read_text(self, path: str, most: int, **query: str) -> bytes:
        """Read at most the first ``most`` bytes of what is no JSON, such as a log."""
        async with self._answered(READ_WITHIN) as api:
            answer = await api.call_api(
                path,
                "GET",
                query_params=list(query.items()),
                header_params={"Accept": "*/*"},
                auth_settings=["BearerToken"],
                _preload_content=False,
            )
            try:
                text = await _first(answer.content, most)
            finally:
                answer.close()
            if answer.status != HTTPStatus.OK:
                refusal = client.ApiException(status=answer.status, reason=answer.reason)
                refusal.body = text
                raise refusal
        return text

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST a question that changes nothing, such as an access review."""
        return await self._call("POST", path, {}, body)

    async def send(self, change: Change, *, dry_run: bool) -> dict[str, Any]:
        """Make ``change`` once; a dry run passes admission and changes nothing.

        ``Conflict``, ``NotFound``, other refusals and ``NotDone`` mean that nothing was changed;
        ``BackendUnavailable`` alone means that it cannot be told.
        """
        query = {"dryRun": "All"} if dry_run else {}
        if change.method == "PATCH":
            query["fieldManager"] = change.manager
        return await self._call(change.method, change.path, query, change.body)

    async def missing(
        self,
        rights: frozenset[Right],
        namespaces: frozenset[str],
        named: Mapping[tuple[Right, str], frozenset[str]] = MappingProxyType({}),
    ) -> list[str]:
        """Ask which ``rights`` our account lacks, a phrase each.

        Of a right and namespace in ``named`` only those on the objects of these names are asked for.
        """
        asked = [
            (right, space, name)
            for right in sorted(rights)
            for space in ([""] if right.everywhere else sorted(namespaces))
            for name in sorted(named.get((right, space), _ANY))
        ]
        answers = await asyncio.gather(*(self._allowed(*one) for one in asked))
        return [
            f"{right} {name + ' ' if name else ''}in {space or 'all namespaces'}"
            for (right, space, name), allowed in zip(asked, answers, strict=True)
            if not allowed
        ]

    async def _allowed(self, right: Right, namespace: str, name: str) -> bool:
        resource, _, subresource = right.resource.partition("/")
        attributes = {
            "namespace": namespace,
            "verb": right.verb,
            "group": right.group,
            "resource": resource,
            "subresource": subresource,
        } | ({"name": name} if name else {})
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = await self.ask("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return bool(answer.get("status", {}).get("allowed"))

    # --- the connection ------------------------------------------------------------------------

    async def _opened(self) -> client.ApiClient:
        async with self._turn:
            if self._api is None:
                own = client.Configuration()
                await self._load(own)
                self._api = client.ApiClient(configuration=own)
                self._api.user_agent = "remediator"
            elif self._refused:  # in place: other requests may be under way on its connections
                await self._load(self._api.configuration)
            self._refused = False
            return self._api

    async def _load(self, into: client.Configuration) -> None:
        # the library logs a missing file and goes on with none, so we look first
        if self._kubeconfig is not None and not self._kubeconfig.is_file():
            there = "there is no such file"
            raise ConfigError(f"{self._name}: cannot connect with {self._kubeconfig}: {there}")
        try:
            if self._kubeconfig is not None:
                await config.load_kube_config(
                    str(self._kubeconfig), client_configuration=into, persist_config=False
                )
            else:
                load: Callable[..., None] = config.load_incluster_config  # it is not typed
                load(client_configuration=into)
        except _UNUSABLE as error:
            source = self._kubeconfig or "the pod's service account"
            why = _unusable(self._kubeconfig)
            raise ConfigError(f"{self._name}: cannot connect with {source}: {why}") from error

    async def _call(
        self, method: str, path: str, query: Mapping[str, str], body: dict[str, Any] | None
    ) -> dict[str, Any]:
        within = READ_WITHIN if method == "GET" else WRITE_WITHIN
        async with self._answered(within) as api:
            answer = await api.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={
                    "Accept": _JSON,
                    "Content-Type": _PATCH if method == "PATCH" else _JSON,
                },
                body=body,
                response_types_map={200: "object", 201: "object"},
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
            )
        if not isinstance(answer, dict):
            raise BackendUnavailable(f"{self._name}: the answer is not a Kubernetes object")
        return answer

    @contextlib.asynccontextmanager
    async def _answered(self, within: float) -> AsyncIterator[client.ApiClient]:
        """Lend the connection for one request, and translate what goes wrong with it."""
        sent = False
        try:
            async with asyncio.timeout(within):
                api = await self._opened()
                sent = True
                yield api
        except client.ApiException as error:
            if error.status == HTTPStatus.UNAUTHORIZED:
                self._refused = True
            raise self._translated(error) from error
        except aiohttp.ClientConnectorError as error:
            raise NotDone(f"{self._name}: cannot be reached: {error.strerror}") from error
        except (ConfigError, config.ConfigException) as error:
            raise NotDone(f"{self._name}: its credentials cannot be read") from error
        except TimeoutError as error:
            lost = BackendUnavailable if sent else NotDone
            raise lost(f"{self._name}: no answer within {within:g} s") from error
        except (aiohttp.ClientError, OSError, UnicodeDecodeError) as error:
            raise BackendUnavailable(
                f"{self._name}: the connection broke: {type(error).__name__}"
            ) from error

    def _translated(self, error: client.ApiException) -> RemediatorError:
        said, causes = _message(error)
        text = f"{self._name}: {said}"
        match error.status:
            case 401:
                return NotDone(f"{self._name}: our credentials are not accepted")
            case 403:
                return Forbidden(text)
            case 404:
                return NotFound(text)
            case 409:
                return Conflict(text)
            case 429 if "DisruptionBudget" in causes:
                return BackendRefused(text)
            case 429:
                return NotDone(text)
            case int(status) if 400 <= status < 500:
                return BackendRefused(text)
            case _:
                return BackendUnavailable(text)


def _unusable(kubeconfig: Path | None) -> str:
    """Say what is wrong with the file; the library's own texts may repeat its content."""
    if kubeconfig is None:
        return "this is no pod of a cluster; set kubeconfig"
    try:
        content = yaml.safe_load(kubeconfig.read_text())
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (yaml.YAMLError, ValueError):
        return "it is not YAML"
    if content is None:
        return "it is empty"
    if not isinstance(content, Mapping) or not content.keys() >= {"clusters", "contexts", "users"}:
        return "it is no kubeconfig: that has clusters, contexts and users"
    return "look at its current-context, and the cluster and user which that names"


async def _first(content: aiohttp.StreamReader, most: int) -> bytes:
    parts, left = [], most
    while left and (part := await content.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _message(error: client.ApiException) -> tuple[str, list[str]]:
    """Return what the API says in words, and the machine-readable causes."""
    try:
        status = json.loads(error.body or "{}")
        message = str(status.get("message") or error.reason)
        causes = [str(c.get("reason")) for c in (status.get("details") or {}).get("causes") or ()]
    except (ValueError, AttributeError):
        message, causes = str(error.reason), []
    return _shortened(_CONTROL.sub(" ", f"{message} ({error.status})")), causes


def _shortened(text: str) -> str:
    """Keep which object it is, which stands in front, and the reason, which stands at the end."""
    end = SHOWN * 2 // 3
    return text if len(text) <= SHOWN else f"{text[: SHOWN - end - 5]} ... {text[-end:]}"
