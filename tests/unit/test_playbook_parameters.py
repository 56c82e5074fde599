"""What a service may set for a playbook is read from the playbook's own model."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ConfigDict, Field

from remediator.model.base import Value
from remediator.model.duration import Duration
from remediator.model.errors import ConfigError
from remediator.model.verdict import Verification
from remediator.playbook.base import Parameters, Playbook
from remediator.playbook.describe import parameters_of
from remediator.playbook.loader import load_playbooks


class Inner(Value):
    """A value of its own."""

    path: str


class Mine(Parameters):
    """What an author might write."""

    must: int
    """Has no default."""
    recent: Duration = timedelta(minutes=30)
    """Time that counts,
    in two lines."""
    how: Literal["evict", "restart"] = "evict"
    query: str | None = None
    roles: tuple[str, ...] = ("app",)
    calls: dict[str, Inner] = Field(default_factory=dict)
    share: float | bool = 0.5


def test_every_key_has_its_type_default_and_description() -> None:
    found = {view.name: (view.type, view.default, view.description) for view in parameters_of(Mine)}
    assert found.pop("verification")[0] == "Verification"
    assert found == {
        "must": ("integer", None, "Has no default."),
        "recent": ("duration", "30m", "Time that counts, in two lines."),
        "how": ("evict | restart", "evict", ""),
        "query": ("string", None, ""),
        "roles": ("list of string", ["app"], ""),
        "calls": ("map of Inner", {}, ""),
        "share": ("number | boolean", 0.5, ""),
    }


class Odd(Parameters):
    """What no JSON can say."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    call: Callable[[], int] | None = None
    """Something to call."""


def test_a_type_without_a_schema_is_named_all_the_same() -> None:
    named = {view.name: (view.type, view.description) for view in parameters_of(Odd)}
    assert named["call"] == ("anything", "Something to call.")


@pytest.mark.parametrize("playbook", list(load_playbooks()), ids=lambda playbook: playbook.name)
def test_every_parameter_of_a_built_in_playbook_is_described(
    playbook: type[Playbook[Any]],
) -> None:
    views = parameters_of(playbook.parameters_type)
    assert json.dumps([view.model_dump(mode="json") for view in views])
    assert [view.name for view in views if not view.description] == []
    assert "anything" not in {view.type for view in views}


async def test_a_playbook_of_the_operators_own_folder_is_described(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from remediator import Parameters, Playbook\n"
        "class P(Parameters):\n"
        "    limit: int = 3\n"
        '    """Most of them."""\n'
        "class Mine(Playbook[P]):\n"
        "    parameters_type = P\n"
        "    async def diagnose(self, context): ...\n"
        "    def propose(self, context, findings): ...\n"
        "    async def verify(self, context, mitigation): ...\n"
    )
    cls = load_playbooks([tmp_path]).get("Mine")
    assert cls is not None
    described = {view.name: view.description for view in parameters_of(cls.parameters_type)}
    assert described["limit"] == "Most of them."


# --- what is wrong with them -------------------------------------------------------------------

LATENCY = {"latency_query": "q", "latency_limit": 1}


def test_keys_of_verification_are_laid_over_the_playbooks_own_default() -> None:
    playbook = load_playbooks().build("OOM", {"verification": {"hold": "10m"}})
    assert playbook.parameters.verification == Verification(
        interval=timedelta(seconds=30),
        hold=timedelta(minutes=10),
        deadline=timedelta(minutes=25),
    )


def test_a_resolve_does_not_shorten_the_time_that_the_runbooks_want_to_see() -> None:
    rows = {  # TE-11, TS-21; TE-08, PCX-03; TM-03; TE-05, TS-14
        "PoolExhausted": timedelta(minutes=5),
        "HighLatency": timedelta(minutes=5),
        "CircuitBreakerOpen": timedelta(minutes=10),
        "OOM": timedelta(minutes=15),
    }
    given = {"HighLatency": LATENCY}
    for cls in load_playbooks():
        playbook = load_playbooks().build(cls.name, given.get(cls.name, {}))
        assert playbook.parameters.verification.held(resolved=True) >= rows[cls.name]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("HighLatency", {"scale_cpa": 3}, "scale_cpa: unknown key; did you mean scale_cap"),
        ("HighLatency", {"scale_step": 2}, "scale_step: should be less than or equal to 1"),
        ("HighLatency", {"hold": "soon"}, "hold: should be a time with its unit, such as 30s"),
        ("HighLatency", {"hold": "0s"}, "hold: should be greater than 0 s"),
        ("HighLatency", {"latency_limit": 1}, "latency_query, or latency_path with latency_field"),
        ("HighLatency", {"latency_query": "q"}, "HighLatency: latency_query needs latency_limit"),
        (
            "HighLatency",
            LATENCY | {"settle": "15m"},
            "HighLatency: settle should be below verification's deadline",
        ),
        (
            "OOM",
            {"verification": {"hld": "1m"}},
            "verification.hld: unknown key; did you mean hold",
        ),
        (
            "OOM",
            {"verification": {"deadline": "15m"}},
            "OOM: verification: hold (15m) should be below deadline (15m)",
        ),
        (
            "PoolExhausted",
            {"verification": {"hold": "10s"}},
            "verification: interval (15s) should be up to hold (10s)",
        ),
        (
            "CircuitBreakerOpen",
            {"upstreams": {"pay": {"rol": "bank"}}},
            "upstreams.pay.rol: unknown key; did you mean role?",
        ),
        (
            "CircuitBreakerOpen",
            {"manual_reasons": ["("]},
            "manual_reasons.0: should be a valid regular expression",
        ),
    ],
)
def test_a_wrong_parameter_is_told_in_the_words_of_the_configuration(
    name: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_playbooks().build(name, given)
    assert said in str(raised.value)
    assert ": :" not in str(raised.value)
    assert "Value error" not in str(raised.value)


def test_several_wrong_parameters_are_told_at_once_and_no_value_is_repeated() -> None:
    with pytest.raises(ConfigError) as raised:
        load_playbooks().build("HighLatency", {"hold": "s3cret", "max_kills": 6, "x": 1})
    assert all(key in str(raised.value) for key in ("hold: ", "max_kills: ", "x: unknown key"))
    assert "s3cret" not in str(raised.value)
