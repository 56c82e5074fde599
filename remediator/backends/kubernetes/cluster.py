"""One cluster as one account sees it: whether it answers, and its live objects as JSON.

Reader and lever are built on this. Only whole lists are given: half of one would be half of the
truth.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from remediator.backends.kubernetes.client import KubernetesClient, Right
from remediator.backends.kubernetes.objects import (
    Object,
    apps_path,
    core_path,
    is_stateful,
    namespace_of,
    owned_by,
    scales,
    selector_of,
    uid_of,
    workload_path,
)
from remediator.backends.kubernetes.rbac import MEMBERS, rights_for
from remediator.model.errors import BackendRefused, BackendUnavailable, RemediatorError
from remediator.model.finding import Sense, SenseState
from remediator.model.target import Target

PAGE, PAGES = 500, 10
"""Objects in one page of a list, and pages read at most."""

_AUTOSCALING = ("v2", "v1")
"""Versions that have all that we need, the best first."""


async def in_order(*reads: Awaitable[Any]) -> list[Any]:
    """Await all at the same time; of several errors the first in this order is told."""
    found = await asyncio.gather(*reads, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


class Cluster:
    """One cluster with one account, as an async context manager."""

    rights: frozenset[Right]

    def __init__(
        self,
        kubeconfig: Path | None,
        *,
        name: str = "kubernetes",
        namespaces: Iterable[str] = (),
        sets_in: Iterable[str] = (),
    ) -> None:
        """Use ``kubeconfig``, or none in a pod; the probe asks for rights in ``namespaces``.

        It asks for those on stateful sets only in ``sets_in``.

        Raises ``ConfigError`` when it is entered and the file cannot be used.
        """
        self._client = KubernetesClient(kubeconfig, name)
        self._name = name
        self._namespaces = frozenset(namespaces) or frozenset({""})
        self._sets_in = frozenset(sets_in)
        self._autoscaling: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    async def probe(self) -> Sense:
        """Say whether the API answers, and name the rights that our account lacks."""
        try:
            missing = await self._missing()
        except RemediatorError as error:
            return Sense(name=self._name, state=SenseState.IMPAIRED, reason=str(error))
        if missing:
            reason = f"{self._name}: our account may not {', '.join(missing)}; grant it"
            return Sense(name=self._name, state=SenseState.IMPAIRED, reason=reason)
        return Sense(name=self._name, state=SenseState.OK)

    async def _missing(self) -> list[str]:
        """Name the rights that our account lacks."""
        missing = await self._client.missing(self.rights, self._namespaces)
        return missing + await self._client.missing(frozenset({MEMBERS}), self._sets_in)

    async def _missing_for(
        self,
        changes: Mapping[str, frozenset[str]],
        named: Mapping[tuple[Right, str], frozenset[str]],
    ) -> list[str]:
        """Name the rights that our account lacks for ``changes``, kinds by namespace."""
        asked = (
            self._client.missing(
                rights_for(kinds, sets=space in self._sets_in), frozenset({space}), named
            )
            for space, kinds in sorted(changes.items())
        )
        return [phrase for phrases in await asyncio.gather(*asked) for phrase in phrases]

    # --- live objects --------------------------------------------------------------------------

    async def _workload(self, target: Target) -> Object:
        return await self._client.get(workload_path(target))

    async def _list(self, path: str, **query: str) -> list[Object]:
        """Read a whole list, page by page; half of one would be half of the truth."""
        found: list[Object] = []
        for _ in range(PAGES):
            page = await self._client.get(path, limit=str(PAGE), **query)
            found += page.get("items") or ()
            following = page.get("metadata", {}).get("continue")
            if not following:
                return found
            query["continue"] = following
        raise BackendUnavailable(f"{self._name}: more than {PAGE * PAGES} objects at {path}")

    async def _replica_sets(self, target: Target, deployment: Object) -> list[Object]:
        if is_stateful(deployment):  # it keeps its revisions elsewhere
            return []
        path, selector = f"{apps_path(target)}/replicasets", selector_of(deployment)
        return owned_by(await self._list(path, labelSelector=selector), [uid_of(deployment)])

    async def _pods(self, target: Target, deployment: Object) -> list[Object]:
        selector = selector_of(deployment)
        sets, pods = await asyncio.gather(
            self._replica_sets(target, deployment),
            self._list(f"{core_path(target)}/pods", labelSelector=selector),
        )
        return owned_by(pods, [uid_of(deployment), *map(uid_of, sets)])

    async def _autoscalers(self, target: Target) -> list[tuple[str, Object]]:
        if self._autoscaling is None:
            group = await self._client.get("/apis/autoscaling")
            served = {version["version"] for version in group.get("versions") or ()}
            self._autoscaling = next((v for v in _AUTOSCALING if v in served), "v1")
        path = (
            f"/apis/autoscaling/{self._autoscaling}/namespaces/{quote(namespace_of(target), safe='')}"
            "/horizontalpodautoscalers"
        )
        found = [scaler for scaler in await self._list(path) if scales(scaler, target)]
        return [(f"{path}/{scaler['metadata']['name']}", scaler) for scaler in found]

    async def _quotas(self, target: Target) -> list[Object]:
        return await self._list(f"{core_path(target)}/resourcequotas")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Translate what it means that an object is not as we know it."""
        try:
            yield
        except BackendRefused as error:
            raise BackendRefused(f"{self._name}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise BackendUnavailable(
                f"{self._name}: an object cannot be read: {type(error).__name__}: {error}"
            ) from error
