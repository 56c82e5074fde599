"""Who is let in, and how the generated tokens are kept."""

from __future__ import annotations

import base64
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.api.auth import Access, generate_credentials
from remediator.model.access import Credential, Permission, Principal, Role, permits
from remediator.model.errors import ConfigError

ANN = Credential("ann", Role.OPERATOR, token="ann-token")
OLD = Credential("alertmanager", Role.INGEST, token="old-token")
NEW = Credential("alertmanager", Role.INGEST, token="new-token")
PAIR = Credential("grafana", Role.INGEST, user="graf", password="p:ss wörd")


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Bearer ann-token", "ann"),
        ("bearer  ann-token ", "ann"),
        ("Bearer old-token", "alertmanager"),
        ("Bearer new-token", "alertmanager"),
        (basic("graf", "p:ss wörd"), "grafana"),
        (basic("anyone", "ann-token"), "ann"),
        (basic("", "ann-token"), "ann"),
    ],
)
def test_a_known_secret_is_let_in(header: str, name: str) -> None:
    principal = Access([ANN, OLD, NEW, PAIR]).authenticate(header)
    assert principal is not None
    assert principal.name == name


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "Bearer", "Bearer ", "Bearer ann-toke", "Bearer ann-token2", "ann-token"),
        *("Token ann-token", "Basic", "Basic %%%", "Basic YQ==", "Bearer graf:p:ss wörd"),
        *(basic("graf", "p:ss"), basic("other", "p:ss wörd"), basic("ann-token", "")),
    ],
)
def test_anything_else_is_nobody(header: str | None) -> None:
    assert Access([ANN, OLD, NEW, PAIR]).authenticate(header) is None


@given(st.text())
def test_no_header_breaks_it_and_without_credentials_nobody_is_let_in(header: str) -> None:
    for given_header in (header, f"Basic {header}", f"Bearer {header}"):
        assert Access([]).authenticate(given_header) is None
        assert Access([PAIR]).authenticate(given_header) is None


def test_each_role_may_do_what_it_is_for_and_no_more() -> None:
    allowed = {role: {p for p in Permission if permits(role, p)} for role in Role}
    assert allowed == {
        Role.INGEST: {Permission.POST_ALERTS},
        Role.VIEWER: {Permission.READ},
        Role.OPERATOR: {Permission.READ, Permission.OPERATE},
        Role.ADMIN: set(Permission),
    }
    assert Principal("x", Role.VIEWER).may(Permission.READ)


def test_a_secret_is_never_shown() -> None:
    for credential in (ANN, PAIR):
        for secret in ("ann-token", "p:ss", "graf'"):
            assert secret not in repr(credential)
            assert secret not in str(credential)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"token": ""},
        {"user": "u"},
        {"password": "p"},
        {"user": "u", "password": ""},
        {"token": "t", "user": "u", "password": "p"},
    ],
)
def test_a_credential_is_a_token_or_a_whole_pair(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="'x'"):
        Credential("x", Role.ADMIN, **fields)


def test_one_secret_under_two_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="'ann' and 'bob' are the same secret"):
        Access([ANN, Credential("bob", Role.VIEWER, token="ann-token")])


def test_two_roles_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two roles"):
        Access([ANN, Credential("ann", Role.ADMIN, token="other")])


def test_tokens_are_made_once_and_only_for_the_owner(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    ingest, operator = generate_credentials(state)
    assert (ingest.role, operator.role) == (Role.INGEST, Role.OPERATOR)
    assert ingest.token != operator.token
    for file in (state / "token", state / "operator-token"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(f.name for f in state.iterdir()) == ["operator-token", "token"]
    assert generate_credentials(state) == (ingest, operator)
    assert (state / "token").read_text().strip() == ingest.token


def test_processes_that_start_together_agree_on_the_tokens(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: generate_credentials(tmp_path), range(8)))
    assert len({(a.token, b.token) for a, b in made}) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    generate_credentials(tmp_path)
    file = tmp_path / "operator-token"
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {file}"):
        generate_credentials(tmp_path)


@pytest.mark.parametrize("content", [b"", b"  \n", b"\xff\xfe"])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=str(file)):
        generate_credentials(tmp_path)


def test_a_state_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        generate_credentials(tmp_path / "file" / "state")


def test_the_umask_does_not_open_the_tokens(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        generate_credentials(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
