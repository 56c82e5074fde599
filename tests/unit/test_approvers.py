"""Who may approve and how many must: as the file has it, what is refused, and what is said."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from remediator.config.settings import Settings, load_settings
from remediator.intake.slack_actions import PATH
from remediator.model.access import Role
from remediator.model.errors import ConfigError
from remediator.model.incident import Phase
from remediator.model.mitigation import MitigationState
from remediator.model.target import Risk
from remediator.notify.report import summarise
from remediator.service.loading import every_decider
from tests.incident_views import ID, START, mitigation, open_in

Load = Callable[[str], Settings]
PEOPLE = """
    credentials:
      - {name: ann, role: operator, token_env: A}
      - {name: wall, role: viewer, token_env: B}
    approvers:
      - {name: ann, slack: U0ANN}
      - {name: bob, slack: W0BOB, role: admin}
      - {name: eve, slack: U0EVE, role: viewer}
"""
TWO = "{approvals: {low: 2}}"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> Settings:
        (tmp_path / "remediator.yaml").write_text(textwrap.dedent(text))
        return load_settings(None, {"HOME": "/home/ann"}, tmp_path)

    return load


def shop(system: str = "{}", service: str = "{}", top: str = "{}") -> str:
    """Write a file with the people above, and what else the top, a system and its service say."""
    return f"""{PEOPLE}
    approvals: {top}
    systems:
      shop:
        match: {{system: shop}}
        approvals: {system}
        services:
          orders: {{approvals: {service}}}
"""


def needed(loaded: Settings) -> dict[Risk, int]:
    service = loaded.catalogue().service("shop", "orders")
    assert service is not None
    return service.approvals


def refusal(load: Load, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return str(caught.value)


def test_one_person_is_enough_by_default(load: Load) -> None:
    loaded = load("systems: {shop: {match: {system: shop}, services: {orders: {}}}}")
    assert needed(loaded) == dict.fromkeys(Risk, 1)
    assert every_decider(loaded.catalogue()) == {}


def test_numbers_are_inherited_by_risk(load: Load) -> None:
    loaded = load(shop(top="{high: 2}", system="{medium: 2}", service="{high: 1}"))
    assert needed(loaded) == {Risk.LOW: 1, Risk.MEDIUM: 2, Risk.HIGH: 1}


def test_a_person_is_one_name_with_a_role(load: Load) -> None:
    loaded = load(PEOPLE)
    assert [one.role for one in loaded.approvers] == [Role.OPERATOR, Role.ADMIN, Role.VIEWER]
    assert loaded.deciders == ["ann", "bob"]
    assert load("").deciders == ["operator"]


def test_the_narrowest_list_of_names_counts(load: Load) -> None:
    text = f"""{PEOPLE}
    systems:
      shop:
        match: {{system: shop}}
        approvers: [ann]
        services:
          orders: {{match: {{service: orders}}}}
          cart: {{match: {{service: cart}}, approvers: [bob, ann]}}
"""
    assert every_decider(load(text).catalogue()) == {
        "shop/orders": ("ann",),
        "shop/cart": ("bob", "ann"),
    }


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("approvals: {low: 0}", "approvals.low", "greater than or equal to 1"),
        ("approvals: {low: 11}", "approvals.low", "less than or equal to 10"),
        ("approvals: {low: true}", "approvals.low", "integer"),
        ("approvals: {lowest: 1}", "approvals.lowest", "did you mean low?"),
        ("approvers: [{slack: U1}]", "approvers[0].name", "is missing"),
        ("approvers: [{name: ann, slack: ann}]", "approvers[0].slack", "such as U024BE7LH"),
        (
            "approvers: [{name: ann, slack: U1}, {name: ann}]",
            "approvers[0].name",
            "another approver",
        ),
        (
            "approvers: [{name: ann, slack: U1A}, {name: bob, slack: U1A}]",
            "approvers[0].slack",
            "another approver",
        ),
        (shop(top="{high: 3}"), "systems.shop.services.orders.approvals", "only ann, bob may"),
        (shop(system="{low: 3}"), "systems.shop.services.orders", "3 different persons"),
        (
            f"{PEOPLE}\n    systems: {{shop: {{match: {{a: b}}, approvers: [an]}}}}",
            "systems.shop.approvers[0]",
            "no operator or admin called 'an'; did you mean ann?",
        ),
        (
            f"{PEOPLE}\n    systems: {{shop: {{match: {{a: b}}, approvers: [eve]}}}}",
            "systems.shop.approvers[0]",
            "no operator or admin called 'eve'",
        ),
        (
            f"{PEOPLE}\n    systems: {{s: {{match: {{a: b}}, services: {{x: {{approvers: []}}}}}}}}",
            "systems.s.services.x.approvers",
            "at least 1",
        ),
        (
            f"{PEOPLE}\n    systems: {{s: {{match: {{a: b}}, approvers: [ann], services: {{x: {TWO}}}}}}}",
            "systems.s.services.x.approvals",
            "only ann may",
        ),
    ],
)
def test_what_could_never_be_approved_is_refused_where_it_stands(
    load: Load, text: str, where: str, message: str
) -> None:
    said = refusal(load, text)
    assert where in said
    assert message in said


@pytest.mark.parametrize(
    ("agreed", "said"),
    [
        ([], "2 different operators must run"),
        (["ann"], "2 different operators must approve, and ann did: another one must run"),
    ],
)
def test_a_plan_for_two_says_who_is_missing(agreed: list[str], said: str) -> None:
    waiting = mitigation(
        MitigationState.AWAITING_APPROVAL,
        approvals_needed=2,
        approvals=[{"by": name, "via": "api", "at": START} for name in agreed],
    )
    report = summarise(open_in(Phase.APPROVAL, mitigations=[waiting]))
    assert report.next_step.startswith(f"{said} `remediator approve {ID}`")


def test_what_the_manual_has_to_paste_is_so(load: Load) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "slack.md").read_text()
    manifest, config, channels = (
        part.partition("```")[0] for part in re.split(r"```yaml\n", manual)[1:]
    )
    assert set(yaml.safe_load(channels)["slack"]["channels"]) <= {"sev1", "sev2", "sev3", "sev4"}
    app = yaml.safe_load(manifest)
    assert app["settings"]["interactivity"]["request_url"].endswith(f".com{PATH}")
    assert app["oauth_config"]["scopes"]["bot"] == ["chat:write"]
    loaded = load(config)
    assert (loaded.deciders, loaded.approvals.high) == (["ann", "bob", "operator"], 2)
