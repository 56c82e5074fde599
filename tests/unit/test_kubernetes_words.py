"""Sizes and the API's own messages, as a human reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from remediator.backends.kubernetes.client import SHOWN, KubernetesClient
from remediator.backends.kubernetes.descriptions import memory
from remediator.model.errors import BackendRefused
from tests.kubernetes_fixtures import served

MI = 1 << 20


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (256 * MI, "256Mi"),
        ("1Gi", "1Gi"),
        ("1024Mi", "1Gi"),
        ("500M", "476.8Mi"),
        ("1000000000", "953.7Mi"),
        (1073741823, "1024.0Mi"),
        ("262144k", "250Mi"),
        (0, "0"),
    ],
)
def test_a_size_is_said_exactly_or_in_mebibytes(size: object, said: str) -> None:
    assert memory(size) == said


@given(st.integers(min_value=MI, max_value=MI << 20))
def test_nobody_reads_bytes(size: int) -> None:
    assert re.fullmatch(r"\d+(Ki|Mi|Gi|Ti)|\d+\.\dMi", memory(size))


async def test_a_long_message_of_the_api_keeps_its_object_and_its_reason(tmp_path: Path) -> None:
    reason = "maximum memory usage per Container is 64Mi, but limit is 96Mi"
    message = f'pods "orders-1" is forbidden: [{"too much of this, " * 60}{reason}]'

    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"message": message}, status=422)

    app = web.Application()
    app.router.add_get("/pods", refuse)
    async with (
        served(tmp_path, app, {}) as kubeconfig,
        KubernetesClient(kubeconfig, "main") as client,
    ):
        with pytest.raises(BackendRefused) as refused:
            await client.get("/pods")
    said = str(refused.value)
    assert 'pods "orders-1" is forbidden' in said
    assert said.endswith(f"{reason}] (422)")
    assert len(said) <= SHOWN + len("main: ")
