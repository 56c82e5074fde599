"""Pages of a browser cannot act: what they send with a call is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from aiohttp import web

from remediator.api.auth import Access
from remediator.api.listener import listening
from remediator.api.origin import Names, host_fault, origin_fault
from remediator.api.routing import FORM, Call, Route, build_app
from remediator.model.access import Credential, Permission, Role

ONLY = Names(frozenset({"remediator.example.com"}), only=True)
ANN = {"Authorization": "Bearer ann"}


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:8080", True),
        ("127.1.2.3", True),
        ("[::1]:8080", True),
        ("10.2.3.4:8080", True),
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("shop.localhost:1", True),
        ("remediator.example.com", True),
        ("Remediator.Example.com.:443", True),
        (None, True),
        ("evil.example.com:8080", False),
        ("localhost.evil.example.com", False),
        ("127.0.0.1.evil.example.com", False),
        ("remediator.example.com@evil.example.com", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_on_loopback_only_known_names_and_addresses_are_answered(
    host: str | None, *, answered: bool
) -> None:
    assert (host_fault(host, ONLY) is None) is answered
    assert host_fault(host, Names()) is None


@pytest.mark.parametrize(
    ("origins", "sites", "own"),
    [
        ([], [], True),
        (["http://127.0.0.1:8080"], ["same-origin"], True),
        (["https://127.0.0.1:8080"], [], True),
        ([], ["none"], True),
        (["http://127.0.0.1:9090"], [], False),
        (["http://evil.example.com"], [], False),
        (["null"], [], False),
        ([""], [], False),
        (["http://127.0.0.1:8080", "http://evil.example.com"], [], False),
        ([], ["cross-site"], False),
        ([], ["same-site"], False),
        ([], ["something-new"], False),
        (["http://127.0.0.1:8080"], ["cross-site"], False),
        (["http://[::1"], [], False),
    ],
)
def test_only_a_page_of_our_own_origin_may_change_anything(
    origins: list[str], sites: list[str], *, own: bool
) -> None:
    assert (origin_fault("127.0.0.1:8080", origins, sites) is None) is own


@pytest.mark.parametrize(
    "origin", ["https://remediator.example.com", "http://remediator.example.com:80"]
)
def test_a_port_that_goes_without_saying_need_not_be_said(origin: str) -> None:
    assert origin_fault("remediator.example.com", [origin], []) is None


# --- over the wire ------------------------------------------------------------------------------


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async def done(_: Call) -> web.Response:
        return web.Response(text="done")

    routes = (
        Route("GET", "/read", Permission.READ, done, "Read"),
        Route("POST", "/change", Permission.OPERATE, done, "Change"),
        Route("POST", "/signed", None, done, "Take a form", takes=FORM),
        Route("DELETE", "/end", Permission.OPERATE, done, "End"),
    )
    app = build_app(routes, Access([Credential("ann", Role.OPERATOR, token="ann")]), names=ONLY)
    async with (
        listening(app, "127.0.0.1", 0) as (host, port),
        httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=ANN, verify=False) as made,
    ):
        yield made


FOREIGN = [
    {"Origin": "https://evil.example.com"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Host": "rebound.example.com"},
    {"Host": "rebound.example.com", "Origin": "http://rebound.example.com"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/change"), ("POST", "/signed"), ("DELETE", "/end")]
)
async def test_a_foreign_page_changes_nothing(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = await client.request(method, path, headers=headers)
    assert answer.status_code == 403
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.json()["detail"]


async def test_a_name_that_was_pointed_at_us_reads_nothing_either(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.get("/read", headers={"Host": "rebound.example.com"})
    assert answer.status_code == 403
    assert "http.hosts" in answer.json()["detail"]
    assert (await client.get("/read", headers={"Host": "remediator.example.com"})).is_success


async def test_a_program_changes_what_it_may(client: httpx.AsyncClient) -> None:
    assert (await client.post("/change")).is_success
    assert (await client.post("/change", json={})).is_success
    assert (await client.post("/signed", data={"payload": "{}"})).is_success
    assert (await client.delete("/end")).is_success


@pytest.mark.parametrize(
    "form", [FORM, "multipart/form-data; boundary=x", "text/plain", "text/plain;application/json"]
)
async def test_what_a_form_can_send_is_415(client: httpx.AsyncClient, form: str) -> None:
    for content in (b"", b"{}"):
        answer = await client.post("/change", content=content, headers={"Content-Type": form})
        assert answer.status_code == 415
    assert (await client.post("/signed", json={})).status_code == 415


async def test_a_browser_is_never_asked_for_a_password(client: httpx.AsyncClient) -> None:
    answer = await client.get("/read", headers={"Authorization": ""})
    assert answer.status_code == 401
    assert answer.headers.get_list("WWW-Authenticate") == ['Bearer realm="remediator"']
