"""What is wrong with a value that somebody wrote, in the words of who wrote it.

The configuration's own keys and the parameters of playbooks are told in the same words. A message
repeats no value: any value may be a secret in the wrong place.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_MESSAGES = {
    "missing": "is missing",
    "string_type": "should be text; quote it",
    "time_delta_type": "should be a time with its unit, such as 30s, 5m or 1h30m",
    "byte_size": "should be bytes, or text such as 16MiB",
    "byte_size_unit": "should be bytes, or text such as 16MiB",
    "dict_type": "should be a mapping of keys to values",
    "model_type": "should be a mapping of keys to values",
    "tuple_type": "should be a list",
}


def worded(kind: str, message: str) -> str:
    """Say what pydantic found wrong: its ``kind`` of error, and its ``message``."""
    if "is not a duration" in message:
        kind = "time_delta_type"
    elif kind.startswith("greater_than") and "timedelta" in message:
        return "should be a longer time"
    plain = message.removeprefix("Value error, ").removeprefix("Input ")
    return _MESSAGES.get(kind, plain)


def did_you_mean(word: str, known: list[str]) -> str:
    """Return the hint for a mistyped ``word``: the nearest known ones, else all of them."""
    near = difflib.get_close_matches(word.lower(), known, n=2)
    if near:
        return f"did you mean {' or '.join(sorted(near))}?"
    return f"known are: {', '.join(known)}" if known else "none is known here"


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Say, a sentence each, what is wrong with values for ``model``, and at which key."""
    said = []
    for detail in error.errors(include_url=False, include_input=False):
        loc, message = detail["loc"], worded(detail["type"], detail["msg"])
        if detail["type"] == "extra_forbidden":
            message = f"unknown key; {did_you_mean(str(loc[-1]), _keys(model, loc[:-1]))}"
        key = ".".join(str(part)[:80] for part in loc)
        said.append(f"{key}: {message}" if key else message)
    return said


def _keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """List the keys that may stand at ``path``; none where they are of one's own choice."""
    inner: Any = model
    for part in path:
        found = _model_in(inner)
        fields = found.model_fields if found else {}
        if part in fields:
            inner = fields[str(part)].annotation
    found = _model_in(inner)
    return sorted(found.model_fields) if found else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that an annotation is, or holds: ``dict[str, Model]``, ``Model | None``."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
