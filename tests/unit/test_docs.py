"""What README and docs say of playbooks is so."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from remediator.api.audit import audit_routes
from remediator.api.events import live_routes
from remediator.api.operator import api_routes
from remediator.backends.postgres.mitigator import PostgresMitigator
from remediator.backends.postgres.reader import PostgresReader
from remediator.cli import app
from remediator.config.settings import load_settings
from remediator.model.access import Permission
from remediator.model.alert import Alert
from remediator.model.mitigation import MitigationState
from remediator.model.target import Target
from remediator.playbook.base import Playbook
from remediator.playbook.loader import load_playbooks
from remediator.service.loading import load
from remediator.testing import firing_alert, run_playbook
from tests.postgres_fixtures import Scene

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "writing-playbooks.md"
TARGET = Target(system="shop", service="orders", role="database", kind="postgres", name="orders-db")


def _alert() -> Alert:
    labels = {"system": "shop", "service": "orders"}
    return firing_alert("DatabaseForgottenTransactions", labels, datetime.now(UTC))


@pytest.mark.parametrize("playbook", list(load_playbooks()), ids=lambda playbook: playbook.name)
def test_the_parameters_of_a_playbook_are_those_of_its_section(
    playbook: type[Playbook[Any]],
) -> None:
    sections = (ROOT / "docs" / "playbooks.md").read_text().split("\n## ")
    (section,) = [text for text in sections if text.startswith(f"{playbook.name}\n")]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(named) == sorted(playbook.parameters_type.model_fields)


async def test_the_playbook_of_the_guide_ends_a_forgotten_transaction(
    scene: Scene, tmp_path: Path
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```\n", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "forgotten.py").write_text(code)
    playbooks = load_playbooks([tmp_path])
    playbook = playbooks.build("ForgottenTransactions", {"idle_s": 0.01, "app_roles": [scene.app]})
    leak = (await scene.leak()).get_server_pid()
    await scene.until(leak, "state_change < clock_timestamp() - interval '50 ms'")
    async with PostgresReader(scene.dsn_as("reader"), name="orders-db") as reader:
        seen = await run_playbook(
            playbook, alert=_alert(), targets={"database": TARGET}, ports={"database": reader}
        )
        (plan,) = seen.proposal.mitigations
        assert [item.key for item in plan.items] == [f"pid {leak}"]
        assert plan.kind in playbook.levers
        async with PostgresMitigator(scene.dsn_as("lever"), name="orders-db") as lever:
            outcome = await lever.apply(await lever.prepare(plan), "effect")
        assert outcome.state is MitigationState.APPLIED
        assert not await scene.is_(leak)
        after = await run_playbook(
            playbook, alert=_alert(), targets={"database": TARGET}, ports={"database": reader}
        )
    assert after.proposal.mitigations == ()


def test_every_route_of_the_api_is_in_its_table() -> None:
    table = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^\| `(\w+ /\S*)` \| (\S+) \|", table, re.MULTILINE))
    nothing: Any = None
    api = api_routes(nothing, nothing, nothing, nothing)
    routes = (*api, *audit_routes(nothing), *live_routes(nothing))
    least = {Permission.READ: "`viewer`", Permission.OPERATE: "`operator`"}
    wanted = {
        (f"{route.method} {route.path}", least[route.permission])
        for route in routes
        if route.permission
    }
    assert wanted <= listed


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def anchors(document: Path) -> set[str]:
    """Name the headings of a document as its links do."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_readme_is_short_and_names_every_document() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 200
    for document in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{document.name})" in readme


def test_every_command_is_in_its_table() -> None:
    table = (ROOT / "docs" / "commands.md").read_text()
    names = {c.name or (c.callback.__name__ if c.callback else "") for c in app.registered_commands}
    typers = (group.typer_instance for group in app.registered_groups)
    groups = {typer.info.name for typer in typers if typer is not None}
    assert len(names | groups) > 15
    for name in names | groups:
        assert re.search(rf"^\|.*`[^`]*\b{name}\b", table, re.MULTILINE), name


def test_the_configurations_of_the_readme_can_be_served(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```\n", (ROOT / "README.md").read_text(), re.DOTALL)
    served = [block for block in blocks if "systems:" in block]
    assert served
    for block in served:
        (tmp_path / "remediator.yaml").write_text(block)
        load(load_settings(tmp_path / "remediator.yaml", {}, tmp_path))
