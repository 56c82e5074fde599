"""The configuration as it was written: plain values, and where each of them stands.

``settings`` gives the values their meaning. Here are YAML with its lines, the ``REMEDIATOR_*``
variables laid over it, and the wording of what is wrong. A message names places and keys but
repeats no value: any value may be a secret in the wrong place.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from remediator.model.errors import ConfigError
from remediator.model.validation import did_you_mean, worded

PREFIX = "REMEDIATOR_"
NOT_SETTINGS = frozenset(
    {"REMEDIATOR_CONFIG", "REMEDIATOR_URL", "REMEDIATOR_TOKEN", "REMEDIATOR_DEBUG"}
)
"""Variables of the command line, which no key of the file corresponds to."""
NOT_BUILT: Mapping[tuple[int | str, ...], str] = {
    ("backends", "docker"): "Docker is not supported yet: nothing there could be read or changed",
}
"""Keys that are planned, and what is said of them until then."""
MOST_VALUES = 100_000
"""Values that a file may hold once its aliases are written out."""

Key = tuple[str | int, ...]
"""Path of a value: the keys and list positions that lead to it."""

_TAG = "tag:yaml.org,2002:"
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_SERVICE_LINK = re.compile(
    r"REMEDIATOR_(\w+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written: a line of a file, or an environment variable."""

    name: str
    line: int = 0
    """Counted from 1; 0 for what has no lines."""
    base: Path = Path()
    """Folder that relative paths written there start from."""

    def __str__(self) -> str:
        return f"{self.name}:{self.line}" if self.line else self.name


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the configuration."""

    place: Place
    key: Key
    message: str

    def overlaps(self, other: Problem) -> bool:
        """Say whether one is about a part of what the other is about."""
        size = min(len(self.key), len(other.key))
        return self.key[:size] == other.key[:size]

    def __str__(self) -> str:
        return ": ".join(filter(None, (str(self.place), shown(self.key), self.message)))


def shown(key: Key) -> str:
    """Write a key as a person would: ``credentials[1].role``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:80]}" for part in key)
    return "".join(parts).removeprefix(".")


class WrongFile(ConfigError):
    """The configuration has problems; ``rest`` is what was sound of it, or None."""

    rest: object = None


def failure(problems: list[Problem], rest: object = None) -> WrongFile:
    """Make one error of all ``problems``, a line each, in the order of the file."""
    ordered = sorted(problems, key=lambda problem: (problem.place, problem.message))
    error = WrongFile("\n".join(dict.fromkeys(map(str, ordered))))
    error.rest = rest
    return error


class Shape:
    """The JSON Schema of the configuration, asked what may stand where."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Keep a schema whose references are all of the form ``#/$defs/NAME``."""
        self._schema = schema

    def keys(self, key: Key) -> list[str]:
        """List the fixed keys of the mapping at ``key``."""
        return sorted({name for node in self._at(key) for name in node.get("properties", {})})

    def takes(self, key: Key, word: str, value: str) -> bool:
        """Say whether the schema at ``key`` has ``word: value``, such as ``format: path``."""
        return any(node.get(word) == value for node in self._at(key))

    def variables(self) -> dict[str, Key]:
        """List the variables that stand for a key; names of one's own choice have none."""
        return {PREFIX + "__".join(map(str, key)).upper(): key for key in self._fixed(())}

    def _fixed(self, key: Key) -> Iterator[Key]:
        for name in self.keys(key):
            yield (*key, name)
            yield from self._fixed((*key, name))

    def _at(self, key: Key) -> list[Mapping[str, Any]]:
        nodes = list(self._choices(self._schema))
        for part in key:
            nodes = [choice for node in nodes for choice in self._choices(_child(node, part))]
        return nodes

    def _choices(self, node: object) -> Iterator[Mapping[str, Any]]:
        if not isinstance(node, Mapping):
            return
        yield node
        if "$ref" in node:
            yield from self._choices(self._schema["$defs"][node["$ref"].rpartition("/")[2]])
        for choice in node.get("anyOf", ()):
            yield from self._choices(choice)


def _child(node: Mapping[str, Any], part: str | int) -> object:
    if isinstance(part, int):
        return node.get("items")
    return node.get("properties", {}).get(part, node.get("additionalProperties"))


class Document:
    """Values of all sources, the later one winning, and where each of them was written."""

    def __init__(self) -> None:
        """Start empty."""
        self.values: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self._places: dict[Key, Place] = {}

    def place(self, key: Key) -> Place:
        """Return where the value at ``key`` was written, or what should have held it."""
        return self._places.get(self.written(key), Place("configuration"))

    def written(self, key: Key) -> Key:
        """Return as much of ``key`` as was written anywhere."""
        lengths = range(len(key), 0, -1)
        return next((key[:n] for n in lengths if key[:n] in self._places), ())

    def blame(self, key: Key, message: str) -> Problem:
        """Make the problem of the value at ``key``."""
        return Problem(self.place(key), key, message)

    def put(self, key: Key, value: object, place: Place) -> None:
        """Set one value; a mapping is merged into a mapping that is there."""
        parent: Any = self.values
        for depth, part in enumerate(key[:-1], start=1):
            if parent.get(part) is None:
                parent[part] = {}
                self._places[key[:depth]] = place
            parent = parent[part]
            if not isinstance(parent, dict):
                whole = f"sets a part of what {self.place(key[:depth])} sets as a whole"
                self.problems.append(Problem(place, key, f"{whole}; write it in one place"))
                return
        self._set(parent, key, value, place)

    def _set(self, parent: dict[Any, Any], key: Key, value: object, place: Place) -> None:
        if isinstance(value, dict) and isinstance(parent.get(key[-1]), dict):
            for name, inner in value.items():
                self.put((*key, name), inner, place)
            return
        size = len(key)
        self._places = {k: p for k, p in self._places.items() if k[:size] != key}
        self._places[key] = place
        parent[key[-1]] = value

    def drop(self, keys: Iterable[Key]) -> bool:
        """Take values out, a list as a whole; say whether there was any."""
        present = [self._present(_outside_lists(key)) for key in keys]
        for key in sorted(filter(None, present), key=len, reverse=True):
            _inside(self.values, key[:-1]).pop(key[-1], None)
        return any(present)

    def _present(self, key: Key) -> Key:
        value: Any = self.values
        for depth, part in enumerate(key):
            if not isinstance(value, dict) or part not in value:
                return key[:depth]
            value = value[part]
        return key

    def leaves(self) -> list[tuple[Key, Any]]:
        """List every value that is neither a mapping nor a list, with its key."""
        return list(_leaves((), self.values))

    def resolve_paths(self, shape: Shape, home: Path) -> None:
        """Make every path absolute: from where it was written, ``~`` from ``home``."""
        for key, value in self.leaves():
            if isinstance(value, str) and value and shape.takes(key, "format", "path"):
                start = home if value.startswith("~/") else self.place(key).base
                _inside(self.values, key[:-1])[key[-1]] = str(start / value.removeprefix("~/"))

    # --- YAML ---------------------------------------------------------------------------------

    def read_yaml(self, file: Path, name: str) -> None:
        """Read ``file``, called ``name`` in messages.

        Raises ``ConfigError`` when it cannot be read or is not YAML; what is wrong inside
        (a key written twice, a tag) is kept in ``problems``.
        """
        start = self._places[()] = Place(name, base=file.parent)
        try:
            root = yaml.compose(file.read_text("utf-8-sig"), Loader=yaml.BaseLoader)
            values = self._value(root, (), start) if root is not None else None
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}: is not UTF-8 at byte {error.start}") from None
        except RecursionError:
            raise ConfigError(f"{name}: is nested too deeply, or contains itself") from None
        except yaml.YAMLError as error:
            raise _not_yaml(name, error) from None
        if not isinstance(values, dict | None):
            raise ConfigError(f"{name}:1: should be a mapping of keys to values")
        self.values = values or {}

    def _value(self, node: yaml.Node, key: Key, start: Place) -> Any:
        if len(self._places) > MOST_VALUES:
            raise ConfigError(f"{start}: holds more than {MOST_VALUES} values, aliases written out")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, key, start)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return self._sequence(node, key, start)
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str":
            return _scalar(node.value) if node.style is None else node.value
        message = "YAML tags (!...) are not supported; quote a value that starts with !"
        self.problems.append(Problem(_line(node, start), key, message))
        return None

    def _mapping(self, node: yaml.MappingNode, key: Key, start: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            place = _line(name_node, start)
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "?"
            inner = (*key, name)
            if name in values:
                first = self._places[inner].line
                self.problems.append(Problem(place, inner, f"written twice, first in line {first}"))
                continue
            self._places[inner] = place
            values[name] = self._value(value_node, inner, start)
        return values

    def _sequence(self, node: yaml.SequenceNode, key: Key, start: Place) -> list[Any]:
        values = []
        for position, item in enumerate(node.value):
            self._places[*key, position] = _line(item, start)
            values.append(self._value(item, (*key, position), start))
        return values

    # --- the environment ----------------------------------------------------------------------

    def read_environment(self, environ: Mapping[str, str], shape: Shape, base: Path) -> None:
        """Lay the ``REMEDIATOR_*`` variables over what is there; empty ones count as not set.

        A variable that an ``*_env`` key of the configuration names is a secret and no key. Those
        that Kubernetes sets for a Service called remediator are left alone.
        """
        known = shape.variables()
        for name in sorted(known.keys() & environ.keys()):
            if environ[name]:
                self._put_variable(Place(name, base=base), known[name], environ[name], shape)
        legal = known.keys() | NOT_SETTINGS | self._named_secrets()
        for name in sorted(environ.keys() - legal):
            if name.startswith(PREFIX) and not _foreign(name, environ[name]):
                message = f"unknown variable; {_nearest(name, [*known, *NOT_SETTINGS])}"
                self.problems.append(Problem(Place(name), (), message))

    def _put_variable(self, place: Place, key: Key, text: str, shape: Shape) -> None:
        value: object = text
        if text[0] in "[{":
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                self.problems.append(Problem(place, key, "is neither plain text nor JSON"))
                return
        elif shape.takes(key, "type", "integer") and _INTEGER.fullmatch(text):
            value = int(text)
        self.put(key, value, place)

    def _named_secrets(self) -> set[str]:
        return {
            value
            for key, value in self.leaves()
            if isinstance(value, str)
            and any(isinstance(part, str) and part.endswith(("_env", "_envs")) for part in key[-2:])
        }


def explain(error: ValidationError, document: Document, shape: Shape) -> list[Problem]:
    """Say in the words of the file what pydantic found wrong with the values of ``document``."""
    problems = []
    for detail in error.errors(include_url=False, include_input=False):
        loc, kind = detail["loc"], detail["type"]
        message = worded(kind, detail["msg"])
        if kind == "extra_forbidden":
            known = did_you_mean(str(loc[-1]), shape.keys(loc[:-1]))
            message = NOT_BUILT.get(loc) or f"unknown key; {known}"
        key = loc if kind == "missing" else document.written(loc)
        problems.append(document.blame(key, message))
    return problems


def _outside_lists(key: Key) -> Key:
    return tuple(itertools.takewhile(lambda part: isinstance(part, str), key))


def _inside(value: Any, key: Key) -> Any:
    for part in key:
        value = value[part]
    return value


def _leaves(key: Key, value: object) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves((*key, name), inner)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _leaves((*key, position), inner)
    else:
        yield key, value


def _line(node: yaml.Node, start: Place) -> Place:
    return Place(start.name, node.start_mark.line + 1, start.base)


def _scalar(text: str) -> object:
    """Read a plain scalar as YAML 1.2 does: ``no``, ``1:30`` and dates are text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def _not_yaml(name: str, error: yaml.YAMLError) -> ConfigError:
    """Say what is wrong without the excerpt that the library would add."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "a character is not allowed"
    problem = _QUOTED.sub(lambda quoted: quoted[0] if _is_token(quoted[0]) else "...", problem)
    return ConfigError(f"{name}:{mark.line + 1 if mark else 1}: is not YAML: {problem}")


def _is_token(quoted: str) -> bool:
    """Say whether it is a sign or the name of one, and not a text of the user's."""
    return quoted[1:2] == "<" or len(quoted) <= len(r"'\x00'")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"the closest known one is {near[0]}"


def _foreign(name: str, value: str) -> bool:
    """Say whether tests or Kubernetes' service links set this variable."""
    if name.startswith("REMEDIATOR_TEST_") or _SERVICE_LINK.fullmatch(name):
        return True
    return name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))
