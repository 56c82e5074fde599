"""A real disk of a few megabytes, that can be filled."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_FILLER = "filler"


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own."""

    path: Path

    def fill(self) -> None:
        """Write until nothing fits any more."""
        with (self.path / _FILLER).open("ab", buffering=0) as file:
            for size in (65_536, 4_096, 1):
                while _takes(file, size):
                    pass

    def free(self) -> None:
        """Make room again."""
        (self.path / _FILLER).unlink()


def _takes(file: Any, size: int) -> bool:
    try:
        file.write(b"x" * size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


class NotMounted(Exception):
    """No small disk can be mounted here."""


@contextlib.contextmanager
def small_disk(path: Path, size: str = "4m") -> Iterator[SmallDisk]:
    """Mount a disk of ``size`` at ``path``; needs root, and is required when CI is set."""
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(mounted_disk(path, size))
        except NotMounted as error:
            if os.environ.get("CI"):
                pytest.fail(str(error))
            pytest.skip("mounting a small disk needs root")
        yield disk


@contextlib.contextmanager
def mounted_disk(path: Path, size: str) -> Iterator[SmallDisk]:
    """Mount a disk of ``size`` at ``path``; raises ``NotMounted`` where that is not permitted."""
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMounted(f"no small disk can be mounted: {done.stderr}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
