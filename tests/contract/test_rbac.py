"""``remediator rbac`` prints Roles that suffice, and holds no right that is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from remediator.backends.kubernetes.client import Change, KubernetesClient, Right
from remediator.backends.kubernetes.rbac import NAMED, RIGHTS
from remediator.backends.kubernetes.reader import KubernetesReader
from remediator.cli import main
from remediator.config.settings import Settings, load_settings
from remediator.model.errors import ConfigError
from remediator.model.finding import SenseState
from remediator.service import check
from remediator.service.rbac import (
    Account,
    Wanted,
    chart_values,
    reader_rights,
    roles,
    rules,
    writer_rights,
)
from tests.kubernetes_fixtures import Cluster, until
from tests.lever_trials import PLANNING, refused

RBAC = "/apis/rbac.authorization.k8s.io/v1"
NEEDED = sorted(writer_rights(RIGHTS))
WANTED = Wanted(Account("ops", "reads"), Account("ops", "writes"))


def configuration(folder: Path, **services: dict[str, Any]) -> Path:
    """Write a configuration of one cluster; a service is playbooks by name in a namespace."""
    system = {
        "match": {"system": "shop"},
        "services": {
            name.replace("_", "-"): {
                "match": {"service": name},
                "targets": {
                    "workload": {"cluster": "main", "namespace": name, "deployment": "orders"}
                },
                "playbooks": playbooks,
            }
            for name, playbooks in services.items()
        },
    }
    content = {"backends": {"kubernetes": {"main": {}}}, "systems": {"shop": system}}
    path = folder / "remediator.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def settings_of(folder: Path, **services: dict[str, Any]) -> Settings:
    return load_settings(configuration(folder, **services), {"HOME": str(folder)}, folder)


def printed(text: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    documents = [found for found in yaml.safe_load_all(text) if found]
    return {
        (d["kind"], d["metadata"].get("namespace", ""), d["metadata"]["name"]): d for d in documents
    }


def test_readers_read_everywhere_and_writers_write_where_a_playbook_may_act(
    tmp_path: Path,
) -> None:
    settings = settings_of(
        tmp_path,
        cart={"OOM": {"mode": "shadow"}},
        shop={"OOM": {"mode": {"low": "approve"}}, "HighLatency": {"mode": "observe"}},
        idle={},
    )
    found = printed(roles(settings, WANTED))
    spaces = {(kind, space) for kind, space, name in found if name == "remediator-writer"}
    assert spaces == {("Role", "shop"), ("RoleBinding", "shop")}
    for space in ("cart", "shop", "idle"):
        role = found["Role", space, "remediator-reader"]
        assert role["rules"] == rules(reader_rights())
    oom = {"evict_pod", "restart_rollout", "set_memory"}
    writer = found["Role", "shop", "remediator-writer"]["rules"]
    assert writer == rules(writer_rights(oom), {"deployment": frozenset({"orders"})})
    patching = [rule for rule in writer if "patch" in rule["verbs"]]
    assert [rule["resourceNames"] for rule in patching] == [["orders"]]
    binding = found["RoleBinding", "shop", "remediator-writer"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "namespace": "ops", "name": "writes"}]


def test_rights_on_stateful_sets_are_given_where_a_target_is_one(tmp_path: Path) -> None:
    text = configuration(tmp_path, cart={"OOM": {"mode": "auto"}}, shop={"OOM": {"mode": "auto"}})
    content = yaml.safe_load(text.read_text())
    target = content["systems"]["shop"]["services"]["shop"]["targets"]["workload"]
    target["statefulset"] = target.pop("deployment")
    text.write_text(yaml.safe_dump(content))
    settings = load_settings(text, {"HOME": str(tmp_path)}, tmp_path)
    found = printed(roles(settings, WANTED))
    oom = {"evict_pod", "restart_rollout", "set_memory"}
    for space, sets in (("cart", False), ("shop", True)):
        assert found["Role", space, "remediator-reader"]["rules"] == rules(reader_rights(sets=sets))
        writer = found["Role", space, "remediator-writer"]
        workloads = {"statefulset" if sets else "deployment": frozenset({"orders"})}
        assert writer["rules"] == rules(writer_rights(oom, sets=sets), workloads)
        patching = [rule for rule in writer["rules"] if "patch" in rule["verbs"]]
        (resource,) = (f"{key}s" for key in workloads)
        assert [(r["resources"], r["resourceNames"]) for r in patching] == [
            ([resource], ["orders"])
        ]
    spaces = yaml.safe_load(chart_values(settings, WANTED))["rbac"]["namespaces"]
    cart, shop = ({"workloads": {key: ["orders"]}} for key in ("deployments", "statefulsets"))
    assert spaces["cart"] == {"levers": sorted(oom)} | cart
    assert spaces["shop"] == {"levers": sorted(oom), "statefulSets": True} | shop


def test_no_right_is_a_wildcard_and_none_reads_secrets_or_runs_commands(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path, shop={"OOM": {"mode": "auto"}, "HighLatency": {"mode": "auto"}}
    )
    for document in printed(roles(settings, WANTED)).values():
        for rule in document.get("rules", ()):
            assert "*" not in {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}
            assert not {"secrets", "pods/exec", "configmaps"} & set(rule["resources"])
            assert set(rule["verbs"]) <= {"get", "list", "patch", "create"}


def test_only_the_namespaces_that_were_asked_for_are_printed(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, cart={"OOM": {}}, shop={"OOM": {}})
    only = replace(WANTED, namespaces=["cart"])
    assert {space for _, space, _ in printed(roles(settings, only))} == {"cart", ""}
    with pytest.raises(ConfigError, match=r"no target is in namespace elsewhere; .* cart, shop"):
        roles(settings, replace(WANTED, namespaces=["elsewhere"]))


def test_the_optional_part_is_marked_as_such(tmp_path: Path) -> None:
    text = roles(settings_of(tmp_path, shop={"OOM": {}}), WANTED)
    before, _, optional = text.partition("# Optional, ")
    assert "ClusterRole" not in before
    assert {kind for kind, _, _ in printed("# " + optional)} == {
        "ClusterRole",
        "ClusterRoleBinding",
    }


def test_values_of_the_chart_say_the_same(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, cart={"OOM": {}}, shop={"OOM": {"mode": "auto"}})
    levers = ["evict_pod", "restart_rollout", "set_memory"]
    shop = {"levers": levers, "workloads": {"deployments": ["orders"]}}
    assert yaml.safe_load(chart_values(settings, WANTED)) == {
        "rbac": {"namespaces": {"cart": {"levers": []}, "shop": shop}},
        "writer": {"enabled": True},
    }


def test_the_command_prints_yaml_for_the_accounts_that_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(tmp_path, shop={"OOM": {"mode": "approve"}})
    with pytest.raises(SystemExit) as ended:
        main(["rbac", "--config", str(config), "--reader", "a/r", "--writer", "b/w"])
    assert ended.value.code == 0
    found = printed(capsys.readouterr().out)
    subjects = {
        (name, one["namespace"], one["name"])
        for (_, _, name), document in found.items()
        for one in document.get("subjects", ())
    }
    assert subjects == {
        ("remediator-reader", "a", "r"),
        ("remediator-writer", "b", "w"),
        ("remediator-room", "a", "r"),
    }


@pytest.mark.parametrize("name", ["remediator", "a/b/c", "/x", "x/", ""])
def test_an_account_without_its_namespace_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="should be NAMESPACE/NAME"):
        Account.named(name)


def test_where_there_are_several_clusters_one_must_be_named(tmp_path: Path) -> None:
    path = configuration(tmp_path, shop={"OOM": {}})
    content = yaml.safe_load(path.read_text())
    content["backends"]["kubernetes"]["spare"] = {}
    path.write_text(yaml.safe_dump(content))
    settings = load_settings(path, {"HOME": str(tmp_path)}, tmp_path)
    with pytest.raises(ConfigError, match=r"--cluster; backends.kubernetes has: main, spare"):
        roles(settings, WANTED)
    with pytest.raises(ConfigError, match="no service has a target in the cluster spare"):
        roles(settings, replace(WANTED, cluster="spare"))
    assert roles(settings, replace(WANTED, cluster="main"))


# --- on a real API server -------------------------------------------------------------------------


async def grant(
    cluster: Cluster,
    *,
    only: Sequence[str] = ("OOM", "HighLatency"),
    without: Right | None = None,
) -> dict[str, Path]:
    """Apply what the command prints for this namespace; return the kubeconfigs of the accounts."""
    space = cluster.namespace
    wanted = Wanted(Account(space, "reads"), Account(space, "writes"))
    tokens = {}
    for name in ("reads", "writes"):
        await cluster.create("/api/v1", "serviceaccounts", {"metadata": {"name": name}})
        answer = await cluster.create("/api/v1", f"serviceaccounts/{name}/token", {"spec": {}})
        tokens[name] = cluster.as_user(name, {"token": answer["status"]["token"]})
    settings = settings_of(cluster.folder, **{space: {name: {"mode": "auto"} for name in only}})
    for (kind, _, name), document in printed(roles(settings, wanted)).items():
        document["metadata"]["name"] = f"{space}-{name}"
        if "roleRef" in document:
            document["roleRef"]["name"] = f"{space}-{name}"
        if (kind, name) == ("Role", "remediator-writer") and without is not None:
            document["rules"] = cut(document["rules"], without)
        resource = f"{kind.lower()}s"
        everywhere = kind.startswith("Cluster")
        path = f"{RBAC}/{resource}" if everywhere else cluster.path(RBAC, resource)
        await cluster.admin.send(Change("POST", path, document), dry_run=False)
    return tokens


def cut(given: list[dict[str, list[str]]], without: Right) -> list[dict[str, list[str]]]:
    """Return rules of one resource each without that right."""
    rights = {
        Right(verb, rule["apiGroups"][0], rule["resources"][0])
        for rule in given
        for verb in rule["verbs"]
    }
    assert without in rights
    return rules(rights - {without})


async def until_granted(cluster: Cluster, kubeconfig: Path, *rights: Right) -> None:
    async with KubernetesClient(kubeconfig, "main") as client:

        async def granted() -> bool:
            space, own = cluster.namespace, frozenset({"orders"})
            named = {(patch, space): own for patch in NAMED.values()}
            return not await client.missing(frozenset(rights), frozenset({space}), named)

        await until(granted, "the roles are in force")


def test_every_kind_of_change_is_tried_and_has_its_rights() -> None:
    assert PLANNING.keys() == RIGHTS.keys()


async def test_the_reader_lacks_nothing(cluster: Cluster) -> None:
    accounts = await grant(cluster)
    await until_granted(cluster, accounts["reads"], *reader_rights())
    spaces = [cluster.namespace]
    async with KubernetesReader(accounts["reads"], name="main", namespaces=spaces) as reader:
        assert (await reader.probe()).state is SenseState.OK
        assert await reader.lacking() == []


async def test_the_writer_can_change_no_workload_that_the_configuration_does_not_name(
    cluster: Cluster,
) -> None:
    accounts = await grant(cluster)
    await until_granted(cluster, accounts["writes"], *NEEDED)
    space, patch = cluster.namespace, NAMED["deployment"]
    async with KubernetesClient(accounts["writes"], "main") as client:
        for names, lacks in (({"orders"}, 0), ({"payments"}, 1), ({""}, 1)):
            named = {(patch, space): frozenset(names)}
            missing = await client.missing(frozenset({patch}), frozenset({space}), named)
            assert len(missing) == lacks, names


@pytest.mark.parametrize("kind", sorted(RIGHTS))
async def test_the_writer_can_make_every_kind_of_change(cluster: Cluster, kind: str) -> None:
    accounts = await grant(cluster)
    await until_granted(cluster, accounts["writes"], *NEEDED)
    assert await refused(cluster, accounts["writes"], kind) == ""


@pytest.mark.parametrize("right", NEEDED, ids=str)
async def test_no_right_of_the_writer_can_be_left_out(cluster: Cluster, right: Right) -> None:
    kind = next(kind for kind in sorted(RIGHTS) if right in writer_rights([kind]))
    accounts = await grant(cluster, without=right)
    await until_granted(cluster, accounts["writes"], *(one for one in NEEDED if one != right))
    said = await refused(cluster, accounts["writes"], kind)
    assert right.resource.partition("/")[0] in said


@pytest.mark.parametrize("enough", [True, False])
async def test_check_asks_for_the_rights_that_are_printed_and_for_no_others(
    cluster: Cluster, tmp_path: Path, *, enough: bool
) -> None:
    """Writers are cut to OOM, which is enabled; evicting is one of its levers."""
    space = cluster.namespace
    without = None if enough else Right("create", "", "pods/eviction")
    accounts = await grant(cluster, only=["OOM"], without=without)
    oom = writer_rights(["evict_pod", "restart_rollout", "set_memory"])
    await until_granted(cluster, accounts["reads"], *reader_rights())
    await until_granted(cluster, accounts["writes"], *(r for r in oom if r != without))
    path = configuration(tmp_path, **{space: {"OOM": {"mode": "auto"}}})
    content = yaml.safe_load(path.read_text())
    kubeconfigs = {"kubeconfig": "reads", "writer_kubeconfig": "writes"}
    content["backends"]["kubernetes"]["main"] = {
        k: str(accounts[v]) for k, v in kubeconfigs.items()
    }
    path.write_text(yaml.safe_dump(content))
    report = await check(load_settings(path, {"HOME": str(tmp_path)}, tmp_path), {})
    (level,) = [level for level, subject, _ in report.lines if subject.endswith("(writer)")]
    assert level == ("ok" if enough else "error")
    found = [(how, said) for how, subject, said in report.lines if " target " in subject]
    ((how, said),) = found  # the deployment that the configuration names was never made
    assert how == "error"
    assert "not found" in said
    assert any("cannot act: see" in said and "target workload" in said for *_, said in report.lines)
