"""How playbooks are found: built in, installed, or in a folder."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from remediator.model.errors import ConfigError
from remediator.model.validation import mistakes
from remediator.playbook.base import Playbook

ENTRY_POINTS = "remediator.playbooks"


class PlaybookSet:
    """The playbook classes that were found, by name."""

    def __init__(self, classes: Iterable[type[Playbook[Any]]]) -> None:
        """Keep ``classes``; two of one name are a ``ConfigError``."""
        self._classes: dict[str, type[Playbook[Any]]] = {}
        for cls in classes:
            other = self._classes.setdefault(cls.name, cls)
            if other is not cls:
                raise ConfigError(
                    f"two playbooks are named {cls.name}: {_origin(other)} and {_origin(cls)};"
                    " rename one of them"
                )

    def __iter__(self) -> Iterator[type[Playbook[Any]]]:
        """Iterate over the classes by name."""
        return iter(sorted(self._classes.values(), key=lambda cls: cls.name))

    def get(self, name: str) -> type[Playbook[Any]] | None:
        """Return the class of that name."""
        return self._classes.get(name)

    def build(self, name: str, parameters: Mapping[str, object]) -> Playbook[Any]:
        """Make the playbook ``name`` with a service's parameters.

        Raises ``ConfigError`` for an unknown name and for unknown or wrong parameters.
        """
        cls = self._classes.get(name)
        if cls is None:
            known = ", ".join(sorted(self._classes)) or "none"
            raise ConfigError(f"there is no playbook {name!r}; known are: {known}")
        try:
            return cls(cls.parameters_type.model_validate(dict(parameters)))
        except ValidationError as error:
            problems = "; ".join(mistakes(error, cls.parameters_type))
            raise ConfigError(f"parameters of playbook {name}: {problems}") from error


def load_playbooks(folders: Iterable[Path] = ()) -> PlaybookSet:
    """Load the built-in playbooks, those of ``folders`` and those of installed packages.

    Files are loaded by path, so a folder named ``playbooks`` in the working folder is never
    imported by accident. Raises ``ConfigError`` for a folder that is missing or a file that
    cannot be loaded.
    """
    classes: dict[str, type[Playbook[Any]]] = {}
    for folder in (builtin_folder(), *folders):
        if not folder.is_dir():
            raise ConfigError(f"playbook folder {folder} does not exist or is not a folder")
        for file in sorted(folder.glob("*.py")):
            if not file.name.startswith("_"):
                classes |= {f"{file}:{cls.__name__}": cls for cls in _load_file(file)}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        classes[f"{entry.value}"] = _load_entry(entry)
    return PlaybookSet(classes.values())


def builtin_folder() -> Path:
    """Return where the built-in playbooks are: in the wheel, or ``playbooks/`` of a checkout."""
    packaged = Path(__file__).parent.parent / "_builtin"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent.parent / "playbooks"


def _load_file(file: Path) -> list[type[Playbook[Any]]]:
    name = f"remediator_playbook_{file.stem}_{abs(hash(file.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic resolves annotations through it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    return [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls)
        and issubclass(cls, Playbook)
        and cls.__module__ == name
        and not inspect.isabstract(cls)
    ]


def _load_entry(entry: importlib.metadata.EntryPoint) -> type[Playbook[Any]]:
    try:
        cls = entry.load()
    except Exception as error:
        raise ConfigError(
            f"entry point {entry.name} ({entry.value}) cannot be loaded:"
            f" {type(error).__name__}: {error}"
        ) from error
    if not (inspect.isclass(cls) and issubclass(cls, Playbook)):
        raise ConfigError(f"entry point {entry.name} ({entry.value}) is not a Playbook class")
    return cls


def _origin(cls: type[Playbook[Any]]) -> str:
    return inspect.getsourcefile(cls) or cls.__module__
