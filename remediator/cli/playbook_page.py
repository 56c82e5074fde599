"""What the playbooks look like in a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from rich.console import Group
from rich.table import Table
from rich.text import Text

from remediator.cli import render
from remediator.cli.output import plain, styled
from remediator.model.kinds import KINDS, ApprovalClass
from remediator.model.views import ParameterView, PlaybookUse, PlaybookView


def _hurts(lever: str) -> str:
    kind = KINDS.get(lever)
    return "" if kind is None else f": {kind.usual_risk} risk; way back: {kind.way_back}"


def page(playbooks: Iterable[PlaybookView], *, parameters: bool = False) -> Group:
    """Draw the loaded playbooks, each with where it may do what, and what may be set for it."""
    return Group(*(_block(playbook, parameters=parameters) for playbook in playbooks))


def _block(playbook: PlaybookView, *, parameters: bool) -> Group:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=render.ASIDE)
    grid.add_column(overflow="fold")
    grid.add_row("  matches", styled(", ".join(playbook.matches)))
    for lever in playbook.levers:
        grid.add_row("  may", styled(f"{lever}{_hurts(lever)}"))
    grid.add_row("  from", styled(playbook.origin))
    for use in playbook.services:
        grid.add_row("  on", styled(_use(use)))
    if not playbook.services:
        grid.add_row("  on", styled("no service yet", render.DOUBT))
    for parameter in playbook.parameters if parameters else ():
        grid.add_row("  takes", _parameter(parameter))
    title = styled(playbook.name, "bold").append(f"  {plain(playbook.summary)}")
    return Group(title, grid)


def _parameter(parameter: ParameterView) -> Text:
    default = f"default {_setting(parameter.default)}"
    text = Text.assemble(styled(parameter.name, "bold"), "  ", styled(parameter.type, render.ASIDE))
    text.append(f", {plain(default)}", render.ASIDE)
    return text.append(f"\n{plain(parameter.description)}") if parameter.description else text


def _setting(value: object) -> str:
    """Write a value of the configuration in one line."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_setting(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _use(use: PlaybookUse) -> str:
    modes = ", ".join(f"{risk} risk: {mode}" for risk, mode in use.modes.items())
    kinds = "".join(f"; {kind}: {_agreed(word)}" for kind, word in use.mitigations.items())
    where = render.where(use.system, use.service)
    return f"{where}: {modes}; at most {render.budget(use.limits)}{kinds}"


def _agreed(word: ApprovalClass) -> str:
    return f"needs {word.approvals} to approve" if word.approvals else word
