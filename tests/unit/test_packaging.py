"""What is built and installed: the wheel, the source distribution, and the pinned versions."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import remediator
from remediator.playbook import api as authoring

ROOT = Path(__file__).parents[2]
EXTRAS = ("demo", "test", "check")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both distributions, as an installation from this folder does."""
    if importlib.util.find_spec("hatchling") is None and not os.environ.get("CI"):
        pytest.skip("hatchling is not installed; it is in the extra `test`")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    return folder


def test_the_wheel_holds_the_playbooks_the_types_the_licence_and_the_migrations(
    built: Path,
) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        described = archive.read(about).decode()
    wanted = {f"remediator/_builtin/{file.name}" for file in (ROOT / "playbooks").glob("*.py")}
    versions = (ROOT / "remediator" / "store" / "migrations" / "versions").glob("*.py")
    wanted |= {f"remediator/store/migrations/versions/{file.name}" for file in versions}
    assert wanted | {"remediator/py.typed"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in described
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]


def test_the_source_distribution_holds_what_it_takes_to_build_and_to_read(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md"}
    wanted |= {"constraints.txt", "pyproject.toml", "remediator/py.typed"}
    wanted |= {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")}
    assert wanted <= names


def _needed(requirement: Requirement, seen: set[str]) -> Iterator[str]:
    """Yield what ``requirement`` brings here, by canonical name, itself included."""
    name = canonicalize_name(requirement.name)
    key = f"{name}[{','.join(sorted(requirement.extras))}]"
    if key in seen:
        return
    seen.add(key)
    try:
        more = metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # not in this environment
        return
    yield name
    for text in more:
        inner = Requirement(text)
        extras = requirement.extras or {""}
        if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
            yield from _needed(inner, seen)


def test_every_distribution_that_an_installation_brings_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in EXTRAS:
        asked += project["optional-dependencies"][extra]
    seen: set[str] = set()
    needed = {name for text in asked for name in _needed(Requirement(text), seen)}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    assert needed - pinned == set()


def test_the_pins_are_versions_and_no_addresses() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    wrong = [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin)]
    assert (wrong, "://" in "".join(lines)) == ([], False)


def test_the_licence_is_the_one_that_the_metadata_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_name_of_the_authors_api_is_there_for_those_who_ask() -> None:
    assert set(authoring.__all__) <= set(dir(remediator))
    for name in authoring.__all__:
        assert getattr(remediator, name) is getattr(authoring, name)
    assert not hasattr(remediator, "NoSuchName")
