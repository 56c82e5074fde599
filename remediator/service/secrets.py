"""What ``check`` says of secrets that others can read or guess. Shows no secret."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from remediator.config.file import Key, shown
from remediator.config.settings import Credential, Settings
from remediator.model.errors import ConfigError

LEAST = 16
"""Characters of a token or password below which it can be guessed."""
LEAST_DIFFERENT = 6
"""Different characters below which it is a pattern."""
PLACEHOLDERS = ("change", "example", "password", "passwort", "secret", "token", "xxxx", "12345")
"""Beginnings of what documentation writes in the place of a secret."""

Warnings = Iterator[tuple[Literal["warning"], str, str]]


def exposed(settings: Settings, environ: Mapping[str, str]) -> Warnings:
    """Warn of secret files that others may read or change, and of credentials that are weak."""
    for key, file in _files((), settings):
        why = _open_to(file)
        if why:
            yield "warning", shown(key), f"{file} {why}; run: chmod 600 {file}"
    for position, credential in enumerate(settings.credentials):
        why = _weakness(credential, environ)
        if why:
            where = f"credentials[{position}]"
            yield "warning", where, f"the secret of {credential.name} {why}; generate a new one"


def _files(key: Key, value: object) -> Iterator[tuple[Key, Path]]:
    """Yield every file that holds a secret, with the key that names it."""
    named = any(str(part).endswith(("_file", "_files")) for part in key[-2:])
    if isinstance(value, Path) and named:
        yield key, value
    for name, inner in _inside(value):
        yield from _files((*key, name), inner)


def _inside(value: object) -> Iterable[tuple[str | int, object]]:
    if isinstance(value, BaseModel):
        return [(name, getattr(value, name)) for name in type(value).model_fields]
    if isinstance(value, Mapping):
        return [(str(name), inner) for name, inner in value.items()]
    return enumerate(value) if isinstance(value, tuple) else ()


def _open_to(file: Path) -> str:
    """Say to whom a file is open; nothing where it is not there: that is another's finding."""
    try:
        mode = os.stat(file).st_mode  # noqa: PTH116 - of what a link leads to
    except OSError:
        return ""
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be changed by other users of this machine"
    return "can be read by every user of this machine" if mode & stat.S_IROTH else ""


def _weakness(credential: Credential, environ: Mapping[str, str]) -> str:
    try:
        secret = credential.read(environ)
    except ConfigError:  # it is reported as missing
        return ""
    if credential.scheme == "basic":
        secret = secret.partition(":")[2]
    if len(secret) < LEAST:
        return f"has fewer than {LEAST} characters"
    if len(set(secret)) < LEAST_DIFFERENT:
        return f"is made of fewer than {LEAST_DIFFERENT} different characters"
    return "begins like a placeholder" if secret.lower().startswith(PLACEHOLDERS) else ""
