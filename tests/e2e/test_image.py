"""The image: built by a real Docker Engine, run as little trusted as it can be.

``REMEDIATOR_TEST_DOCKER_HOST`` names the engine and ``REMEDIATOR_TEST_BASE_IMAGE`` an image with
Python that it has; the tests are skipped without them, also in CI.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ENGINE, BASE = "REMEDIATOR_TEST_DOCKER_HOST", "REMEDIATOR_TEST_BASE_IMAGE"
BUILT_WITHIN = 1500
USER = 10001
TOKEN = "a-token-of-this-test"

pytestmark = [
    pytest.mark.timeout(BUILT_WITHIN + 300),
    pytest.mark.skipif(
        not (os.environ.get(ENGINE) and os.environ.get(BASE)),
        reason=f"{ENGINE} and {BASE} name no Docker Engine and no base image",
    ),
]

Docker = Callable[..., str]


@pytest.fixture(scope="module")
def docker() -> Docker:
    """Run a docker command; return what it wrote."""
    environ = os.environ | {"DOCKER_HOST": os.environ[ENGINE], "DOCKER_BUILDKIT": "0"}

    def run(*arguments: str, within: float = 120) -> str:
        ended = subprocess.run(
            ["docker", *arguments],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=within,
        )
        assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
        return (ended.stdout + ended.stderr).strip()

    return run


@pytest.fixture(scope="module")
def image(docker: Docker) -> Iterator[str]:
    """The image with the demo; ``REMEDIATOR_TEST_IMAGE`` is one that was built before."""
    given = os.environ.get("REMEDIATOR_TEST_IMAGE")
    if given:
        yield given
        return
    name = f"remediator-test:{secrets.token_hex(4)}"
    options = ["--build-arg", f"BASE={os.environ[BASE]}", "--build-arg", "EXTRAS=demo"]
    docker("build", "--network", "host", *options, "-t", name, ".", within=BUILT_WITHIN)
    try:
        yield name
    finally:
        docker("rmi", "--force", name)


@pytest.fixture
def container(docker: Docker) -> Iterator[str]:
    """A name for a container, which is removed at the end."""
    name = f"remediator-test-{secrets.token_hex(4)}"
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


UNTRUSTED = (
    *("--read-only", "--tmpfs", "/tmp", "--network", "host"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)


def until(look: Callable[[], Any], what: str, within: float = 90) -> Any:
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.5)
    return seen


def answer(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url, timeout=5, headers={"Authorization": f"Bearer {TOKEN}"})
    except httpx.TransportError:
        return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def configured(folder: Path) -> list[str]:
    """Write a configuration and an empty state folder; return the options that mount them."""
    credential = {"name": "am", "role": "operator", "token_file": "token"}
    conf, state = folder / "conf", folder / "state"
    conf.mkdir()
    state.mkdir()
    (conf / "remediator.yaml").write_text(yaml.safe_dump({"credentials": [credential]}))
    (conf / "token").write_text(TOKEN)
    conf.chmod(0o755)
    os.chown(state, USER, USER)
    mounts = [f"{conf}:/etc/remediator:ro", f"{state}:/var/lib/remediator"]
    config = "REMEDIATOR_CONFIG=/etc/remediator/remediator.yaml"
    return [option for mount in mounts for option in ("-v", mount)] + ["-e", config]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to the user of the image")
def test_it_serves_read_only_as_a_user_of_its_own_and_says_that_it_is_well(
    docker: Docker, image: str, container: str, tmp_path: Path
) -> None:
    port = free_port()
    options = [*UNTRUSTED, *configured(tmp_path), "-e", f"REMEDIATOR_LISTEN=0.0.0.0:{port}"]
    docker("run", "--detach", "--name", container, *options, image)
    url = f"http://127.0.0.1:{port}"
    healthy = until(lambda: answer(f"{url}/healthz"), "it answers")
    assert healthy.text == "ok\n"
    assert (answer(f"{url}/readyz") or healthy).text == "ready\n"
    assert (answer(f"{url}/api/v1/incidents") or healthy).json()["items"] == []
    assert httpx.get(f"{url}/api/v1/incidents").status_code == 401

    def health() -> bool:
        state = json.loads(docker("inspect", "--format", "{{json .State}}", container))
        return bool(state["Health"]["Status"] == "healthy")

    until(health, "the engine finds it healthy")
    assert docker("exec", container, "id", "-u") == str(USER)
    database = tmp_path / "state" / "state" / "remediator.db"
    assert database.stat().st_uid == USER
    docker("stop", "--time", "30", container)
    state = json.loads(docker("inspect", "--format", "{{json .State}}", container))
    assert state["ExitCode"] == 0


def test_without_credentials_it_says_what_to_do_and_ends(docker: Docker, image: str) -> None:
    with pytest.raises(AssertionError, match="no credentials are configured; add credentials"):
        docker("run", "--rm", *UNTRUSTED, image)


def test_it_is_labelled_and_holds_no_build_tools(docker: Docker, image: str) -> None:
    config = json.loads(docker("inspect", "--format", "{{json .Config}}", image))
    assert config["Labels"]["org.opencontainers.image.title"] == "remediator"
    assert config["User"] == f"{USER}:{USER}"
    python = ["--entrypoint", "/opt/remediator/bin/python3", image, "-c"]
    asked = "import importlib.util as u; print(u.find_spec('pip'), u.find_spec('pytest'))"
    assert docker("run", "--rm", "--network", "none", *python, asked) == "None None"


def test_the_demo_runs_in_it(docker: Docker, image: str) -> None:
    seen = docker("run", "--rm", *UNTRUSTED, image, "demo", "pool", within=300)
    assert "mitigated" in seen.lower()
