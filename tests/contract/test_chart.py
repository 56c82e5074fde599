"""The Helm chart: what it renders is valid, and gives the service what it needs and no more."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from remediator.backends.kubernetes.client import KubernetesClient
from remediator.backends.kubernetes.rbac import ON_SETS, READS, RIGHTS
from remediator.backends.kubernetes.reader import KubernetesReader
from remediator.config.settings import load_settings
from remediator.model.finding import SenseState
from remediator.service.rbac import (
    ROOM,
    Account,
    Wanted,
    chart_values,
    reader_rights,
    roles,
    writer_rights,
)
from tests.chart_rendering import (
    CHART,
    FOREIGN,
    LEAST,
    Chart,
    Values,
    binary,
    invalid,
    one,
    with_values,
)
from tests.kubernetes_fixtures import Cluster, until, write_kubeconfig
from tests.lever_trials import refused

STORES: list[Values] = [
    {},
    {"store": {"dsnSecret": {"name": "postgres"}}, "redis": {"urlSecret": {"name": "redis"}}},
]
WRITER: Values = {
    "writer": {"enabled": True},
    "config": {"backends": {"kubernetes": {"main": {"writer_kubeconfig": "/writer/kubeconfig"}}}},
    "rbac": {"namespaces": {"shop": {"levers": sorted(RIGHTS)}, "cart": {}}, "room": True},
}
WATCHED: Values = {name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule")} | {
    "dashboard": {"enabled": True}
}
FENCED: Values = {"networkPolicy": {"enabled": True}}
FORGETFUL: Values = {"persistence": {"enabled": False}}
COMBINATIONS = [
    with_values({"replicas": replicas}, store, *layers)
    for store, replicas, *layers in itertools.product(
        STORES, (1, 3), ({}, WRITER), ({}, WATCHED), ({}, FENCED), ({}, FORGETFUL)
    )
    if store or replicas == 1
]


@pytest.fixture
def chart(tmp_path: Path) -> Chart:
    return Chart(tmp_path)


def test_lint_finds_nothing(chart: Chart) -> None:
    for values in (LEAST, COMBINATIONS[-1]):
        ended = chart.helm("lint", "--strict", values=values)
        assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("values", COMBINATIONS, ids=range(len(COMBINATIONS)))
def test_every_combination_is_valid_for_every_version_of_kubernetes(
    chart: Chart, values: Values
) -> None:
    objects = chart.render(values)
    assert [said for o in objects if o["kind"] not in FOREIGN for said in invalid(o)] == []
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"replicas": 2}, "replicas: more than one needs PostgreSQL"),
        ({"config": {"credentials": []}}, "config.credentials: there are none"),
        ({"config": {"listen": "0.0.0.0:80"}}, "config.listen: is set by the chart"),
        ({"config": {"state_dir": "/x"}}, "config.state_dir: is set by the chart"),
        ({"config": {"store": {"dsn_file": "/x"}}}, "set store.dsnSecret.name instead"),
        ({"config": {"redis": {"url_env": "X"}}}, "set redis.urlSecret.name instead"),
        ({"secrets": []}, "refers to /secrets/keys, which is not mounted"),
        ({"writer": {"enabled": True}}, "no cluster uses the writer"),
        (with_values(WRITER, {"writer": {"enabled": False}}), "there is no writer"),
        (
            with_values(WRITER, {"rbac": {"namespaces": {"shop": {"levers": []}}}}),
            "rbac.namespaces lets it change nothing",
        ),
        ({"rbac": {"namespaces": {"shop": {"levers": ["scale"]}}}}, "no writer to pull them"),
        ({"rbac": {"namespaces": {"shop": {"levers": ["scael"]}}}}, "rbac.namespaces.shop.levers"),
        ({"replica": 2}, "Additional property replica is not allowed"),
        ({"image": {"tag": 1.5}}, "image.tag: Invalid type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_not_work_is_not_rendered_and_the_reason_is_said(
    chart: Chart, values: Values, reason: str
) -> None:
    assert reason in chart.refuses(with_values(values))


def test_without_credentials_nothing_is_rendered_by_default(chart: Chart) -> None:
    assert "create a Secret, name it in `secrets`" in chart.refuses({})


@pytest.mark.parametrize("values", [LEAST, with_values(WRITER, STORES[1])], ids=["least", "most"])
def test_the_pod_has_no_more_rights_on_its_node_than_it_needs(chart: Chart, values: Values) -> None:
    pod = one(chart.render(values), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(v.get("hostPath") is None for v in pod["volumes"])


@pytest.mark.parametrize(
    ("values", "strategy", "state"),
    [
        ({}, "Recreate", "persistentVolumeClaim"),
        (FORGETFUL, "Recreate", "emptyDir"),
        (STORES[1], "RollingUpdate", "emptyDir"),
    ],
    ids=["sqlite", "forgetful", "postgres"],
)
def test_two_pods_never_have_the_same_sqlite_file(
    chart: Chart, values: Values, strategy: str, state: str
) -> None:
    objects = chart.render(with_values(values))
    spec = one(objects, "Deployment")["spec"]
    volumes = {v["name"]: v for v in spec["template"]["spec"]["volumes"]}
    assert (spec["strategy"]["type"], state in volumes["state"]) == (strategy, True)
    claims = [o for o in objects if o["kind"] == "PersistentVolumeClaim"]
    assert bool(claims) == (state == "persistentVolumeClaim")


def test_a_change_of_the_configuration_replaces_the_pods(chart: Chart) -> None:
    seen = {
        one(chart.render(with_values(values)), "Deployment")["spec"]["template"]["metadata"][
            "annotations"
        ]["checksum/config"]
        for values in ({}, {"replicas": 0}, {"config": {"mode": "observe"}})
    }
    assert len(seen) == 2


def test_no_secret_stands_in_what_is_rendered(chart: Chart) -> None:
    secrets = [o for o in chart.render(COMBINATIONS[-1]) if o["kind"] == "Secret"]
    assert [found["type"] for found in secrets] == ["kubernetes.io/service-account-token"]
    assert not any({"data", "stringData"} & set(found) for found in secrets)


# --- the configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize("values", [LEAST, with_values(WRITER, STORES[1])], ids=["least", "most"])
def test_the_service_takes_the_configuration_that_is_mounted(
    chart: Chart, values: Values, tmp_path: Path
) -> None:
    values = with_values(values, {"config": {"max_body": 16777216}})
    objects = chart.render(values)
    (tmp_path / "mounted.yaml").write_text(one(objects, "ConfigMap")["data"]["remediator.yaml"])
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    environ = {variable["name"]: variable["value"] for variable in container["env"]}
    settings = load_settings(tmp_path / "mounted.yaml", environ | {"HOME": "/"}, tmp_path)
    settings.check_listen()
    assert (settings.listen.host, settings.listen.port) == ("0.0.0.0", 8080)
    assert settings.max_body == 16777216
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    named = [c.token_file for c in settings.credentials] + [settings.store.dsn_file]
    named.append(settings.redis.url_file)
    named += [b.writer_kubeconfig for b in settings.backends.kubernetes.values()]
    for file in (settings.state_dir, *filter(None, named)):
        assert any(str(file).startswith(f"{mount}/") for mount in mounts), file


# --- rights ---------------------------------------------------------------------------------------


def rights_of(rules: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    return {
        right
        for rule in rules
        for right in itertools.product(
            rule["verbs"], rule["apiGroups"], rule["resources"], rule.get("resourceNames", [""])
        )
    }


def test_the_chart_knows_the_same_rights_as_the_service() -> None:
    known = yaml.safe_load((CHART / "files" / "rights.yaml").read_text())

    def plain(rights: Any) -> set[tuple[str, str, str]]:
        return {(right.verb, right.group, right.resource) for right in rights}

    def listed(rights: list[dict[str, str]]) -> set[tuple[str, str, str]]:
        return {(right["verb"], right["group"], right["resource"]) for right in rights}

    assert listed(known["reader"]) == plain(reader_rights())
    assert listed(known["writer"]) == plain(READS)
    assert listed(known["room"]) == plain(ROOM)
    assert listed(known["reader"] + known["sets"]) == plain(reader_rights(sets=True))
    assert known["leversOnSets"].keys() == ON_SETS.keys()
    for kind, rights in known["leversOnSets"].items():
        assert listed(rights + known["sets"]) == plain(ON_SETS[kind])
    assert known["levers"].keys() == RIGHTS.keys()
    for kind, rights in known["levers"].items():
        assert listed(rights) | plain(READS) == plain(writer_rights([kind]))
    schema = json.loads((CHART / "values.schema.json").read_text())
    spaces = schema["properties"]["rbac"]["properties"]["namespaces"]["additionalProperties"]
    assert sorted(spaces["properties"]["levers"]["items"]["enum"]) == sorted(RIGHTS)


@pytest.mark.parametrize("kind", ["deployment", "statefulset"])
@pytest.mark.parametrize("mode", ["shadow", "approve"])
def test_its_roles_are_those_that_the_command_prints(
    chart: Chart, tmp_path: Path, mode: str, kind: str
) -> None:
    workload = {"cluster": "main", "namespace": "shop", kind: "orders"}
    service = {
        "match": {"service": "orders"},
        "targets": {"workload": workload},
        "playbooks": {"OOM": {"mode": mode}, "HighLatency": {}},
    }
    writer = {"writer_kubeconfig": "/writer/kubeconfig"} if mode == "approve" else {}
    config = {
        "backends": {"kubernetes": {"main": writer}},
        "systems": {"shop": {"match": {"system": "shop"}, "services": {"orders": service}}},
    }
    (tmp_path / "remediator.yaml").write_text(yaml.safe_dump(config))
    settings = load_settings(tmp_path / "remediator.yaml", {"HOME": "/"}, tmp_path)
    wanted = Wanted(Account("ops", "remediator"), Account("ops", "remediator-writer"))
    values = yaml.safe_load(chart_values(settings, wanted))
    values["rbac"]["room"] = True
    rendered = chart.render(with_values({"config": config}, values))
    printed = [found for found in yaml.safe_load_all(roles(settings, wanted)) if found]
    assert granted(rendered) == granted(printed)


def granted(objects: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """Return who may do what where, whatever the roles are called."""
    held = {}
    for found in objects:
        if found["kind"] in {"Role", "ClusterRole"}:
            meta = found["metadata"]
            held[found["kind"], meta.get("namespace"), meta["name"]] = rights_of(found["rules"])
    return {
        (subject["namespace"], subject["name"], binding["metadata"].get("namespace"), *right)
        for binding in objects
        if binding["kind"] in {"RoleBinding", "ClusterRoleBinding"}
        for subject in binding["subjects"]
        for right in held[
            binding["roleRef"]["kind"],
            binding["metadata"].get("namespace"),
            binding["roleRef"]["name"],
        ]
    }


# --- on a real API server -------------------------------------------------------------------------


@asynccontextmanager
async def installed(cluster: Cluster, chart: Chart, values: Values) -> AsyncIterator[None]:
    """Install a release in the cluster; take it out at the end."""
    where = ["--kubeconfig", str(cluster.kubeconfig), "--namespace", cluster.namespace]
    name = f"remediator-{cluster.namespace}"
    ended = await asyncio.to_thread(chart.helm, "install", name, *where, values=values)
    try:
        assert ended.returncode == 0, ended.stderr
        yield
    finally:
        process = await asyncio.create_subprocess_exec(
            *(binary(), "uninstall", name, *where), stdout=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0


async def writers_kubeconfig(cluster: Cluster) -> Path:
    """Lay out what is projected into the pod, with this server's address in place of the pod's."""
    name = f"remediator-{cluster.namespace}-writer"
    core = "/api/v1"
    folder = cluster.folder / "writer"
    folder.mkdir()

    async def issued() -> bool:
        secret = await cluster.admin.get(cluster.path(core, "secrets", name))
        return "token" in (secret.get("data") or {})

    await until(issued, "the writer's token is issued")
    secret = await cluster.admin.get(cluster.path(core, "secrets", name))
    mapped = await cluster.admin.get(cluster.path(core, "configmaps", name))
    (folder / "token").write_bytes(base64.b64decode(secret["data"]["token"]))
    content = yaml.safe_load(mapped["data"]["kubeconfig"])
    admin = yaml.safe_load(cluster.kubeconfig.read_text())
    return write_kubeconfig(
        folder / "kubeconfig", admin["clusters"][0]["cluster"], content["users"][0]["user"]
    )


@pytest.mark.parametrize("kind", sorted(RIGHTS))
async def test_the_account_that_it_makes_can_pull_every_lever(
    cluster: Cluster, chart: Chart, kind: str
) -> None:
    spaces = {cluster.namespace: {"levers": [kind]}}
    values = {**with_values(WRITER), "rbac": {"namespaces": spaces}}
    async with installed(cluster, chart, values):
        kubeconfig = await writers_kubeconfig(cluster)
        async with KubernetesClient(kubeconfig, "main") as client:

            async def granted_all() -> bool:
                needed = frozenset(writer_rights([kind]))
                return not await client.missing(needed, frozenset({cluster.namespace}))

            await until(granted_all, "the roles are in force")
            others = [
                right for right in writer_rights(RIGHTS) if right not in writer_rights([kind])
            ]
            wanting = await client.missing(frozenset(others), frozenset({cluster.namespace}))
            assert len(wanting) == len(others)
        assert await refused(cluster, kubeconfig, kind) == ""


async def test_the_pods_own_account_reads_all_and_changes_nothing(
    cluster: Cluster, chart: Chart
) -> None:
    values = with_values(WRITER)
    values["rbac"] = {"namespaces": {cluster.namespace: {"levers": ["scale"]}}, "room": True}
    spaces = frozenset({cluster.namespace})
    async with installed(cluster, chart, values):
        account = f"serviceaccounts/remediator-{cluster.namespace}/token"
        answer = await cluster.create("/api/v1", account, {"spec": {}})
        kubeconfig = cluster.as_user("reads", {"token": answer["status"]["token"]})
        async with KubernetesReader(kubeconfig, name="main", namespaces=spaces) as reader:

            async def sees_all() -> bool:
                return (await reader.probe()).state is SenseState.OK and not await reader.lacking()

            await until(sees_all, "the roles are in force")
        changes = frozenset(right for right in writer_rights(RIGHTS) if right.verb == "patch")
        async with KubernetesClient(kubeconfig, "main") as client:
            assert len(await client.missing(changes, spaces)) == len(changes)


async def test_a_cluster_takes_everything_that_is_rendered(cluster: Cluster, chart: Chart) -> None:
    values = with_values(
        WRITER, STORES[1], FENCED, {"dashboard": {"enabled": True}}, {"replicas": 2}
    )
    values["rbac"] = {"namespaces": {cluster.namespace: {"levers": ["scale"]}}}
    async with installed(cluster, chart, values):
        path = cluster.path("/apis/apps/v1", "deployments", f"remediator-{cluster.namespace}")
        assert (await cluster.admin.get(path))["spec"]["replicas"] == 2
        served = {v["version"] for v in (await cluster.admin.get("/apis/policy"))["versions"]}
        policy = f"/apis/policy/{'v1' if 'v1' in served else 'v1beta1'}"
        budgets = await cluster.admin.get(cluster.path(policy, "poddisruptionbudgets"))
        assert [b["spec"]["maxUnavailable"] for b in budgets["items"]] == [1]
