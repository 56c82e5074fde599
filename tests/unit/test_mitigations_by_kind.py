"""``mitigations``: single kinds are asked for or forbidden, and nothing is ever widened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from remediator.cli.playbook_page import _use
from remediator.config.settings import Settings, load_settings, settings_schema
from remediator.model.catalog import Service
from remediator.model.errors import ConfigError
from remediator.model.kinds import KINDS, ApprovalClass
from remediator.service.backends import open_backends
from remediator.service.capabilities import Reached, possible
from remediator.service.loading import load, views
from remediator.service.rbac import levers_by_namespace

WORKLOAD = {"cluster": "main", "namespace": "shop", "deployment": "orders"}
KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "x",
}


def configured(
    folder: Path,
    *,
    top: dict[str, str] | None = None,
    system: dict[str, str] | None = None,
    service: dict[str, str] | None = None,
    **more: Any,
) -> Settings:
    orders = {
        "match": {"service": "orders"},
        "targets": {"workload": WORKLOAD},
        "playbooks": {"OOM": {"memory_max": "1Gi"}},
        "mitigations": service or {},
    }
    shop = {
        "match": {"system": "shop"},
        "mitigations": system or {},
        "services": {"orders": orders},
    }
    (folder / "reader").write_text(yaml.safe_dump(KUBECONFIG))
    config = {
        "mode": "auto",
        "state_dir": "state",
        "backends": {
            "kubernetes": {"main": {"kubeconfig": "reader", "writer_kubeconfig": "reader"}}
        },
        "mitigations": top or {},
        "systems": {"shop": shop},
    }
    (folder / "remediator.yaml").write_text(yaml.safe_dump(config | more))
    return load_settings(None, {"HOME": "/home/ann"}, folder)


def orders(settings: Settings) -> Service:
    service = settings.catalogue().service("shop", "orders")
    assert service is not None
    return service


def test_the_strictest_word_of_all_levels_counts(tmp_path: Path) -> None:
    people = [{"name": name, "role": "operator", "token_env": "T"} for name in ("ann", "bob")]
    found = orders(
        configured(
            tmp_path,
            top={"set_memory": "never", "evict_pod": "one"},
            system={"set_memory": "auto", "evict_pod": "two", "scale": "one"},
            service={"evict_pod": "auto", "restart_rollout": "never"},
            credentials=people,
        )
    )
    assert {kind: found.approval(kind).value for kind in KINDS if kind in found.mitigations} == {
        "set_memory": "never",
        "evict_pod": "two",
        "scale": "one",
        "restart_rollout": "never",
    }
    assert found.approval("undo_rollout") is ApprovalClass.AUTO


@pytest.mark.parametrize(
    ("level", "key"),
    [
        ("top", "mitigations.evict_pot"),
        ("system", "systems.shop.mitigations.evict_pot"),
        ("service", "systems.shop.services.orders.mitigations.evict_pot"),
    ],
)
def test_an_unknown_kind_is_an_error_with_its_line(tmp_path: Path, level: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, **{level: {"evict_pot": "never"}})
    (said,) = str(caught.value).splitlines()
    lines = (tmp_path / "remediator.yaml").read_text().splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if "evict_pot" in line)
    assert said.startswith(f"remediator.yaml:{number}: {key}: there is no mitigation of the kind")
    assert "did you mean evict_pod?" in said


def test_an_unknown_word_and_two_where_one_person_may_approve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'auto', 'one', 'two' or 'never'"):
        configured(tmp_path, top={"evict_pod": "maybe"})
    with pytest.raises(ConfigError, match="two different persons must approve, but only operator"):
        configured(tmp_path, top={"evict_pod": "two"})


async def test_check_says_what_is_forbidden_and_what_is_asked(tmp_path: Path) -> None:
    settings = configured(tmp_path, top={"set_memory": "never"}, service={"evict_pod": "one"})
    _, playbooks = load(settings)
    playbook = playbooks.build("OOM", {"memory_max": "1Gi"})
    async with open_backends(settings, {}) as backends:
        reached = Reached(backends, frozenset())
        said = str(possible(orders(settings), playbook, reached, writes=True))
    assert said == (
        "could evict_pod (needs 1 to approve), restart_rollout; never set_memory (mitigations says"
        " never)"
    )


def test_the_list_of_playbooks_says_it_too(tmp_path: Path) -> None:
    settings = configured(tmp_path, top={"set_memory": "never", "scale": "never"})
    (oom,) = (view for view in views(*load(settings)) if view.name == "OOM")
    assert oom.services[0].mitigations == {"set_memory": ApprovalClass.NEVER}
    assert _use(oom.services[0]).endswith("; set_memory: never")


def test_no_right_is_asked_for_to_do_what_is_forbidden(tmp_path: Path) -> None:
    settings = configured(tmp_path, top={"set_memory": "never"})
    catalogue, playbooks = load(settings)
    assert levers_by_namespace(catalogue, playbooks, "main") == {
        "shop": frozenset({"evict_pod", "restart_rollout"})
    }


def test_the_schema_names_every_kind() -> None:
    named = settings_schema()["properties"]["mitigations"]["propertyNames"]
    assert named == {"enum": sorted(KINDS)}
