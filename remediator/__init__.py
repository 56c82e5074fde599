"""The playbook author's API: everything that a playbook may import.

The service that runs playbooks is the ``remediator`` command. What is asked for is loaded then, and
not before: a command that needs no playbook has not to wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remediator.playbook.api import *  # noqa: F403 - the names are listed there, once
else:

    def __getattr__(name: str) -> object:
        if name.startswith("_") and name != "__all__":  # what Python asks of every module
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("remediator.playbook.api"), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *import_module("remediator.playbook.api").__all__])
