"""The configuration: what is taken, what is refused, and what the refusal says."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from remediator.config.credentials import spoken_for
from remediator.config.sections import SecretRef
from remediator.config.settings import Settings, load_settings, settings_schema
from remediator.model.access import Role
from remediator.model.catalog import Service
from remediator.model.errors import ConfigError
from remediator.model.limits import Limits
from remediator.model.maintenance import Recurring, Window
from remediator.model.target import Mode, Risk
from remediator.model.unmatched import RecordBound
from remediator.service.run import store_url

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "remediator.yaml"
SKELETON = """
listen: 127.0.0.1:8080
store: {dsn_env: null}
redis: {url_file: null}
mode: shadow
credentials:
  - {name: alertmanager, role: ingest, token_file: F}
  - {name: ann, role: operator, token_env: V}
slack: {channel: C, token_file: F, webhook_url_file: F, signing_secret_file: F, api_url: "http://u"}
pagerduty:
  signing_secret_files: [F]
  api_token_file: F
  routing_key_file: F
  api_url: http://u
  events_url: http://u
backends:
  prometheus: {main: {url: "http://u"}}
  kubernetes: {main: {kubeconfig: F, writer_kubeconfig: F}}
  postgres: {orders-db: {dsn_file: F, writer_dsn_file: F}}
  redis: {cache: {url_file: F}}
  http: {orders-admin: {url: "http://u", token_file: F}}
playbooks: {folders: [DIR]}
limits: {global: {budget: 10, window: 1h, cooldown: 5m, concurrency: 3}}
systems:
  shop:
    match: {system: shop}
    services:
      orders:
        match: {service: orders}
        prometheus: main
        targets:
          database: orders-db
          workload: {cluster: main, namespace: shop, deployment: orders}
          admin: orders-admin
        playbooks: {PoolExhausted: {mode: auto, max_kills: 5}}
"""

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str, **environ: str) -> Settings:
        (tmp_path / "remediator.yaml").write_text(textwrap.dedent(text))
        return load_settings(None, {"HOME": "/home/ann", **environ}, tmp_path)

    return load


def refusal(load: Load, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, **environ)
    return str(caught.value).splitlines()


def orders(loaded: Settings) -> Service:
    service = loaded.catalogue().service("shop", "orders")
    assert service is not None
    return service


# --- defaults and where the file is found -----------------------------------------------------


def test_nothing_configured_is_a_service_on_loopback_in_shadow(tmp_path: Path) -> None:
    loaded = load_settings(None, {"HOME": "/home/ann"}, tmp_path)
    assert str(loaded.listen) == "127.0.0.1:8080"
    assert loaded.state_dir == Path("/home/ann/.local/state/remediator")
    assert loaded.max_body == 16 * 1024 * 1024
    assert loaded.max_connections == 512
    assert loaded.body_timeout == loaded.header_timeout == timedelta(seconds=10)
    assert loaded.shutdown_within == timedelta(seconds=20)
    assert (loaded.log.format, loaded.log.level) == ("auto", "info")
    assert loaded.catalogue().limits == Limits(
        budget=10, window=timedelta(hours=1), cooldown=timedelta(minutes=5), concurrency=3
    )
    loaded.check_listen()


def test_the_state_folder_follows_the_variable_then_the_file_then_xdg(load: Load) -> None:
    xdg = {"XDG_STATE_HOME": "/xdg"}
    assert load("", **xdg).state_dir == Path("/xdg/remediator")
    assert load("state_dir: /file", **xdg).state_dir == Path("/file")
    assert load("state_dir: /file", REMEDIATOR_STATE_DIR="/env").state_dir == Path("/env")
    assert load("state_dir: ~/s").state_dir == Path("/home/ann/s")
    assert load("", XDG_STATE_HOME="relative").state_dir.is_relative_to("/home/ann")


def test_an_explicit_file_goes_before_the_variable_and_that_before_the_working_folder(
    tmp_path: Path,
) -> None:
    for name in ("remediator.yaml", "variable.yaml", "explicit.yaml"):
        (tmp_path / name).write_text(f"slack: {{channel: {name}, token_file: F}}")
    environ = {"REMEDIATOR_CONFIG": "variable.yaml"}
    found = [
        load_settings(None, {}, tmp_path),
        load_settings(None, environ, tmp_path),
        load_settings(tmp_path / "explicit.yaml", environ, tmp_path),
    ]
    channels = [loaded.slack and loaded.slack.channel for loaded in found]
    assert channels == ["remediator.yaml", "variable.yaml", "explicit.yaml"]


@pytest.mark.parametrize(
    ("config", "environ"), [(Path("no.yaml"), {}), (None, {"REMEDIATOR_CONFIG": "no.yaml"})]
)
def test_a_file_that_was_asked_for_and_is_missing_is_an_error(
    tmp_path: Path, config: Path | None, environ: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml.* does not exist"):
        load_settings(config, environ, tmp_path)


def test_the_example_loads_and_validates_against_the_schema(tmp_path: Path) -> None:
    loaded = load_settings(EXAMPLE, {}, tmp_path)
    service = orders(loaded)
    assert service.targets["workload"].key == "kubernetes/main/deployment=orders,namespace=shop"
    assert service.playbooks["PoolExhausted"].parameters == {"max_kills": 5}
    Draft202012Validator(settings_schema()).validate(yaml.safe_load(EXAMPLE.read_text()))


# --- what is refused --------------------------------------------------------------------------


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(load: Load) -> None:
    lines = refusal(
        load,
        """\
        lisen: 127.0.0.1:80
        mode: shadow
        mode: auto
        max_connections: "many"
        limits: {global: {budget: true}}
        backends:
          prometheus: {main: {url: ftp://x}}
          postgres: {orders-db: {dsn_file: F}}
        systems:
          shop:
            match: {system: shop}
            services:
              orders:
                prometheus: main
                targets:
                  database: orders_db
        """,
    )
    assert [line.split(": ")[:2] for line in lines] == [
        ["remediator.yaml:1", "lisen"],
        ["remediator.yaml:3", "mode"],
        ["remediator.yaml:4", "max_connections"],
        ["remediator.yaml:5", "limits.global.budget"],
        ["remediator.yaml:7", "backends.prometheus.main.url"],
        ["remediator.yaml:16", "systems.shop.services.orders.targets.database"],
    ]
    assert "did you mean listen?" in lines[0]
    assert "first in line 2" in lines[1]
    assert "did you mean orders-db?" in lines[5]


def test_one_broken_credential_does_not_hide_what_is_wrong_with_the_others(load: Load) -> None:
    lines = refusal(
        load,
        """\
        credentials:
          - {name: a, role: admn, token_file: F}
          - {name: a, role: ingest}
          - {name: b, role: viewer, token_file: F, basic_file: G}
        """,
    )
    assert [line.split(": ")[1] for line in lines] == [
        "credentials[0].role",
        "credentials[1]",
        "credentials[2]",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "slack: {token: hunter2, channel: c}",
        "store: {dsn: 'postgresql://u:hunter2@h/d'}",
        "store: {dsn_env: 'hunter2-x y'}",
        "backends: {prometheus: {main: {url: 'http://u:hunter2@h'}}}",
        "backends: {http: {main: {url: 'http://h/?key=hunter2'}}}",
        "backends: {http: {main: hunter2}}",
        "mode: hunter2",
        "listen: hunter2",
        "body_timeout: hunter2",
        "max_body: 5 hunter2",
        "log: {level: hunter2}",
        "limits: {global: {window: hunter2}}",
        "slack: *hunter2",
        "slack: !hunter2 x",
        "slack: 'hunter2",
        "slack: [hunter2",
        "systems: {s: {match: {a: b}, services: {x: {targets: {d: 'postgres://u:hunter2@h'}}}}}",
        "credentials: [{name: 'hunter2 x', role: admin, token_file: F}]",
    ],
)
def test_no_value_is_ever_repeated(load: Load, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [", 2),
        ("mode: auto\n\tx: 1", 2),
        ("mode: auto\n---\nmode: auto", 2),
        ("- mode", 1),
        ("mode: \x07", 1),
    ],
)
def test_what_is_not_a_yaml_mapping_is_refused_with_its_line(
    load: Load, text: str, line: int
) -> None:
    assert refusal(load, text)[0].startswith(f"remediator.yaml:{line}: ")


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: " + "[" * 900 + "]" * 900])
def test_endless_nesting_is_refused(load: Load, text: str) -> None:
    assert "nested too deeply" in refusal(load, text)[0]


def test_aliases_that_multiply_are_refused(load: Load) -> None:
    rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    text = "\n".join(["a0: &a0 [1, 2]", *rows])
    assert "more than 100000 values" in refusal(load, text)[0]


def test_aliases_spare_repetition(load: Load) -> None:
    loaded = load("limits: {global: &l {budget: 2}, system: *l}")
    assert loaded.limits.everywhere.budget == loaded.limits.system.budget == 2


def test_a_file_that_is_not_utf8_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"mode: \xe9")
    (tmp_path / "folder.yaml").mkdir()
    for name, message in (("latin.yaml", "not UTF-8"), ("folder.yaml", "cannot be read")):
        with pytest.raises(ConfigError, match=message):
            load_settings(Path(name), {}, tmp_path)


@pytest.mark.parametrize("value", ["10", "0s", "1 hour", "1:30", "-5s", "true"])
def test_a_time_needs_its_unit_and_may_not_be_zero(load: Load, value: str) -> None:
    assert "body_timeout: should be a" in refusal(load, f"body_timeout: {value}")[0]


@pytest.mark.parametrize(
    ("value", "size"), [("1024", 1024), ("16MiB", 16 << 20), ("1 kB", 1000), ("'2048'", 2048)]
)
def test_max_body_is_a_number_or_has_a_unit(load: Load, value: str, size: int) -> None:
    assert load(f"max_body: {value}").max_body == size


@pytest.mark.parametrize("value", ["0", "-1", "12 parsecs", "[]", "true"])
def test_max_body_of_nothing_is_refused(load: Load, value: str) -> None:
    assert "max_body" in refusal(load, f"max_body: {value}")[0]


def test_a_mapping_with_nothing_in_it_counts_as_not_written(load: Load) -> None:
    loaded = load("store:\nslack:\nbackends:\n  postgres:\nlimits:\n  global:\nmode:\nstate_dir:")
    assert loaded.slack is None
    assert loaded.state_dir == Path("/home/ann/.local/state/remediator")


def _mappings(value: object, key: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        yield key
        for name, inner in value.items():
            yield from _mappings(inner, (*key, name))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _mappings(inner, (*key, position))


def _closed(key: tuple[str | int, ...]) -> bool:
    """Whether the mapping takes only known keys: not names, labels, locators or parameters."""
    by_name = key in {("systems",), ("systems", "shop", "services")} or (
        len(key) == 2 and key[0] == "backends"
    )
    return not by_name and key[-1:] != ("match",) and not {"targets", "playbooks"} & set(key[1:])


CLOSED = [key for key in _mappings(yaml.safe_load(SKELETON)) if _closed(key)]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    key=st.sampled_from(CLOSED),
    unknown=st.from_regex(r"x_[a-z0-9_]{1,12}", fullmatch=True),
    value=st.sampled_from([None, 1, "hunter2", [], {}, {"hunter2": "hunter2"}]),
)
def test_an_unknown_key_anywhere_is_refused_with_its_line(
    load: Load, key: tuple[str | int, ...], unknown: str, value: object
) -> None:
    tree: Any = yaml.safe_load(SKELETON)
    mapping = tree
    for part in key:
        mapping = mapping[part]
    mapping[unknown] = value
    text = yaml.safe_dump(tree, sort_keys=False)
    line = next(n for n, row in enumerate(text.splitlines(), 1) if f"{unknown}:" in row)
    (message,) = refusal(load, text)
    assert message.startswith(f"remediator.yaml:{line}: ")
    assert f"{unknown}: unknown key; " in message
    assert "hunter2" not in message


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_is_either_loaded_or_refused_as_configuration(load: Load, text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(load(text), Settings)


# --- the environment --------------------------------------------------------------------------


def test_the_environment_wins_over_the_file(load: Load) -> None:
    loaded = load(
        "listen: 127.0.0.1:1\nlimits: {global: {budget: 1, concurrency: 2}}\nmode: {low: auto}",
        REMEDIATOR_LISTEN="127.0.0.1:2",
        REMEDIATOR_LIMITS__GLOBAL__BUDGET="7",
        REMEDIATOR_MODE__HIGH="observe",
        REMEDIATOR_STORE__DSN_ENV="REMEDIATOR_DSN",
        REMEDIATOR_DSN="a secret that the configuration names",
        REMEDIATOR_MAX_BODY="1MiB",
        REMEDIATOR_BACKENDS__PROMETHEUS='{"main": {"url": "http://p"}}',
        REMEDIATOR_LOG__LEVEL="",
    )
    assert loaded.listen.port == 2
    assert (loaded.limits.everywhere.budget, loaded.limits.everywhere.concurrency) == (7, 2)
    assert (loaded.mode.low, loaded.mode.high) == (Mode.AUTO, Mode.OBSERVE)
    assert loaded.store.secret("dsn") == SecretRef(env="REMEDIATOR_DSN")
    assert loaded.max_body == 1024 * 1024
    assert loaded.backends.prometheus["main"].url == "http://p"
    assert loaded.log.level == "info"


def test_an_unknown_variable_is_named_with_the_closest_known_one(load: Load) -> None:
    lines = refusal(load, "", REMEDIATOR_LISTN="hunter2", REMEDIATOR_STATE_DIRX="hunter2")
    assert lines == [
        "REMEDIATOR_LISTN: unknown variable; the closest known one is REMEDIATOR_LISTEN",
        "REMEDIATOR_STATE_DIRX: unknown variable; the closest known one is REMEDIATOR_STATE_DIR",
    ]


def test_variables_of_the_command_line_of_tests_and_of_kubernetes_are_left_alone(
    load: Load,
) -> None:
    load(
        "",
        REMEDIATOR_URL="x",
        REMEDIATOR_TOKEN="x",
        REMEDIATOR_TEST_POSTGRES="x",
        REMEDIATOR_SERVICE_HOST="10.0.0.1",
        REMEDIATOR_SERVICE_PORT="80",
        REMEDIATOR_SERVICE_PORT_HTTP="80",
        REMEDIATOR_PORT="tcp://10.0.0.1:80",
        REMEDIATOR_PORT_80_TCP="tcp://10.0.0.1:80",
        REMEDIATOR_PORT_80_TCP_PORT="80",
        REMEDIATOR_POSTGRES_PORT_5432_TCP_ADDR="10.0.0.2",
    )
    assert "REMEDIATOR_PORT" in refusal(load, "", REMEDIATOR_PORT="8080")[0]


def test_a_wrong_variable_is_blamed_by_its_name(load: Load) -> None:
    lines = refusal(
        load,
        "mode: auto",
        REMEDIATOR_MAX_CONNECTIONS="hunter2",
        REMEDIATOR_CREDENTIALS="[hunter2",
        REMEDIATOR_MODE__HIGH="shadow",
    )
    assert [line.split(": ")[0] for line in lines] == [
        "REMEDIATOR_CREDENTIALS",
        "REMEDIATOR_MAX_CONNECTIONS",
        "REMEDIATOR_MODE__HIGH",
    ]
    assert "remediator.yaml:1 sets as a whole" in lines[2]
    assert "hunter2" not in "".join(lines)


def test_paths_start_from_where_they_were_written(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "c.yaml").write_text(
        "store: {dsn_file: dsn}\nplaybooks: {folders: [mine, /abs]}\n"
        "pagerduty: {signing_secret_files: [../s]}"
    )
    loaded = load_settings(Path("etc/c.yaml"), {"REMEDIATOR_STATE_DIR": "state"}, tmp_path)
    assert loaded.store.dsn_file == folder / "dsn"
    assert loaded.playbooks.folders == (folder / "mine", Path("/abs"))
    assert loaded.pagerduty is not None
    assert loaded.pagerduty.signing_secrets == (SecretRef(file=folder / "../s"),)
    assert loaded.state_dir == tmp_path / "state"


# --- secrets and the door ---------------------------------------------------------------------


def test_a_secret_is_read_late_without_its_newline(tmp_path: Path) -> None:
    file = tmp_path / "token"
    reference = SecretRef(file=file)
    file.write_text("first\n")
    assert reference.read({}) == "first"
    file.write_text("second\r\n")
    assert reference.read({}) == "second"
    assert SecretRef(env="T").read({"T": "third\n"}) == "third"


def test_a_missing_or_empty_secret_names_its_place_and_nothing_else(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"hunter2\xff")
    for reference, message in (
        (SecretRef(file=tmp_path / "none"), "none cannot be read: No such file"),
        (SecretRef(file=empty), "empty is empty"),
        (SecretRef(file=binary), "binary is not UTF-8 text"),
        (SecretRef(env="T"), "environment variable T is not set"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            reference.read({})
        assert "hunter2" not in str(caught.value)


def test_credentials_are_read_by_scheme(load: Load) -> None:
    loaded = load(
        """
        credentials:
          - {name: a, role: ingest, secret_env: A}
          - {name: b, role: operator, basic_env: B}
        """
    )
    shared, basic = loaded.credentials
    assert (shared.role, shared.scheme, shared.read({"A": "s"})) == (Role.INGEST, "token", "s")
    assert (basic.scheme, basic.read({"B": "ann:pa:ss"})) == ("basic", "ann:pa:ss")
    with pytest.raises(ConfigError, match="should hold user:password") as caught:
        basic.read({"B": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_two_credentials_of_one_name_are_refused(load: Load) -> None:
    text = (
        "credentials: [{name: a, role: viewer, token_env: A}, {name: a, role: admin, token_env: B}]"
    )
    assert "name of another credential" in refusal(load, text)[0]


def test_a_sender_speaks_for_the_systems_that_it_names(load: Load) -> None:
    text = """
        systems: {shop: {}, bank: {}}
        credentials:
          - {name: a, role: ingest, token_env: A, systems: [shop]}
          - {name: b, role: ingest, token_env: B}
        """
    assert spoken_for(load(text).credentials) == {"a": frozenset({"shop"})}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: a, role: ingest, token_env: A, systems: [shop, shp]}", "there is no system 'shp'"),
        ("{name: a, role: viewer, token_env: A, systems: [shop]}", "for those who post alerts"),
        ("{name: a, role: ingest, token_env: A, systems: []}", "credentials[0].systems"),
    ],
)
def test_systems_of_a_credential_that_mean_nothing_are_refused(
    load: Load, entry: str, message: str
) -> None:
    (problem,) = refusal(load, f"systems: {{shop: {{}}}}\ncredentials: [{entry}]")
    assert message in problem


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.8.8.8:80", "localhost:80", "'[::1]:80'"])
def test_loopback_needs_no_credentials(load: Load, listen: str) -> None:
    load(f"listen: {listen}").check_listen()


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "'[::]:80'", "10.0.0.1:80", "shop.example:80"])
def test_anything_but_loopback_needs_credentials(load: Load, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"remediator\.yaml:1: .*no credentials"):
        load(f"listen: {listen}").check_listen()
    credential = "credentials: [{name: a, role: ingest, token_env: A}]"
    load(f"listen: {listen}\n{credential}").check_listen()


@pytest.mark.parametrize("listen", ["8080", "':8080'", "h:65536", "h", "http://h:80", "'::1:80'"])
def test_an_address_that_is_not_host_and_port_is_refused(load: Load, listen: str) -> None:
    assert "should be host:port" in refusal(load, f"listen: {listen}")[0]


def test_slack_needs_a_way_to_post(load: Load) -> None:
    assert "slack: needs token_file" in refusal(load, "slack: {channel: c}")[0]
    assert "slack: needs a channel" in refusal(load, "slack: {token_file: F}")[0]
    assert load("slack: {webhook_url_env: W}").slack is not None


# --- the catalogue ----------------------------------------------------------------------------


def test_modes_are_inherited_by_risk(load: Load) -> None:
    loaded = load(
        """
        mode: {low: auto}
        systems:
          shop:
            match: {system: shop}
            mode: {high: observe}
            services:
              orders:
                mode: {medium: approve}
                playbooks:
                  A:
                  B: {mode: auto}
                  C: {mode: {low: shadow}}
        """
    )
    use = orders(loaded).playbooks
    assert use["A"].modes == {
        Risk.LOW: Mode.AUTO,
        Risk.MEDIUM: Mode.APPROVE,
        Risk.HIGH: Mode.OBSERVE,
    }
    assert set(use["B"].modes.values()) == {Mode.AUTO}
    assert use["C"].modes == {**use["A"].modes, Risk.LOW: Mode.SHADOW}


def test_records_of_unmatched_alerts_are_bounded_as_the_file_says(load: Load) -> None:
    assert load("").limits.unmatched == RecordBound(count=20, window=timedelta(minutes=10))
    given = load("limits: {unmatched: {count: 5, window: 1h}}").limits.unmatched
    assert given == RecordBound(count=5, window=timedelta(hours=1))


@pytest.mark.parametrize(
    "wrong", ["count: 0", "count: 1001", "count: true", "window: 0s", "window: 25h", "budget: 1"]
)
def test_a_bound_of_records_without_meaning_is_refused(load: Load, wrong: str) -> None:
    key = wrong.partition(":")[0]
    with pytest.raises(ConfigError, match=f"limits.unmatched.{key}"):
        load(f"limits: {{unmatched: {{{wrong}}}}}")


def test_limits_are_defaults_by_scope_with_overrides_by_field(load: Load) -> None:
    loaded = load(
        """
        limits: {system: {window: 2h}, service: {budget: 4}, target: {cooldown: 1m}}
        systems:
          shop:
            match: {system: shop}
            limits: {concurrency: 2}
            services:
              orders:
                limits: {cooldown: 0s}
                playbooks: {A: {limits: {budget: 1}}}
        """
    )
    hour, pause = timedelta(hours=1), timedelta(minutes=5)
    service = orders(loaded)
    assert service.system_limits == Limits(
        budget=10, window=2 * hour, cooldown=pause, concurrency=2
    )
    assert service.limits == Limits(budget=4, window=hour, cooldown=timedelta(0), concurrency=1)
    assert service.target_limits == Limits(
        budget=5, window=hour, cooldown=timedelta(minutes=1), concurrency=1
    )
    own = Limits(budget=3, window=pause, cooldown=pause, concurrency=2)
    assert service.playbooks["A"].limits.over(own) == own.model_copy(update={"budget": 1})


def test_one_change_at_a_time_in_a_system_unless_configured(load: Load) -> None:
    text = "systems: {shop: {match: {system: shop}, services: {orders: {}}}}"
    assert orders(load(text)).system_limits.concurrency == 1
    wide = load(f"limits: {{system: {{concurrency: 3}}}}\n{text}")
    assert orders(wide).system_limits.concurrency == 3


def test_a_window_of_no_time_would_be_no_bound_and_is_refused(load: Load) -> None:
    assert "limits.global.window" in refusal(load, "limits: {global: {window: 0s}}")[0]


def test_maintenance_is_planned_for_everything_a_system_or_a_service(load: Load) -> None:
    loaded = load(
        """
        maintenance:
          - {cron: "0 2 * * 6", duration: 2h, timezone: Europe/Berlin, reason: patches}
        systems:
          shop:
            match: {system: shop}
            maintenance: [{cron: 0 3 * * 0, duration: 7d}]
            services:
              orders:
                match: {service: orders}
                maintenance:
                  - {from: 2026-12-01T22:00:00+01:00, until: 2026-12-01T22:00:00Z}
        """
    )
    everywhere, service, system = loaded.catalogue().maintenance
    at = datetime(2026, 12, 1, 21, tzinfo=UTC)
    assert (everywhere.scope, everywhere.reason) == ("global", "patches")
    assert isinstance(everywhere, Recurring)
    assert (everywhere.cron, everywhere.timezone) == ("0 2 * * 6", "Europe/Berlin")
    assert isinstance(system, Recurring)
    assert (system.scope, system.timezone, system.duration) == ("shop", "UTC", timedelta(days=7))
    assert isinstance(service, Window)
    assert (service.scope, service.since, service.until) == (
        "shop/orders",
        at,
        at + timedelta(hours=1),
    )
    assert len({plan.id for plan in (everywhere, service, system)}) == 3


@pytest.mark.parametrize(
    ("entry", "key", "said"),
    [
        ('{cron: "61 2 * * 6", duration: 2h}', ".cron", "should be five fields of cron"),
        ('{cron: "0 0 30 2 *", duration: 2h}', ".cron", "that come true"),
        ("{cron: 5, duration: 2h}", ".cron", "should be text"),
        ('{cron: "0 2 * * 6", duration: 8d}', ".duration", "should be at most 7d"),
        ('{cron: "0 2 * * 6", duration: 0s}', ".duration", "should be a longer time"),
        ('{cron: "0 2 * * 6", duration: 2h, timezone: Bonn}', ".timezone", "is no time zone"),
        ('{cron: "0 2 * * 6", duration: 2h, timezone: ../x}', ".timezone", "is no time zone"),
        ('{cron: "0 2 * * 6"}', "", "needs either cron and duration"),
        ("{until: 2026-12-01T22:00:00Z}", "", "or from and until"),
        ("{}", "", "needs either"),
        ("{from: 2026-12-01T22:00:00, until: 2026-12-02T22:00:00Z}", ".from", "with its offset"),
        ("{from: 2026-12-01T22:00:00Z, until: 2026-12-01T23:00:00+01:00}", ".until", "later than"),
        ("{from: 2026-12-01T22:00:00Z, until: 2026-12-31T22:00:00Z}", ".until", "at most 7d"),
        ("{from: 5, until: 2026-12-31T22:00:00Z}", ".from", "with its offset"),
    ],
)
def test_a_window_that_cannot_be_is_refused_with_its_line(
    load: Load, entry: str, key: str, said: str
) -> None:
    (line,) = refusal(load, f"log: {{}}\nmaintenance:\n  - {entry}\n")
    assert line.startswith(f"remediator.yaml:3: maintenance[0]{key}: ")
    assert said in line


def test_what_a_playbook_entry_does_not_know_is_a_parameter(load: Load) -> None:
    loaded = load(
        """
        systems:
          shop:
            match: {system: shop}
            services:
              orders:
                playbooks:
                  A: {alertnames: [X], max_kills: 5, verification: {hold: 3s}, on: no}
        """
    )
    use = orders(loaded).playbooks["A"]
    assert use.alertnames == ("X",)
    assert use.parameters == {"max_kills": 5, "verification": {"hold": "3s"}, "on": "no"}
    where = loaded.where("systems", "shop", "services", "orders", "playbooks", "A")
    assert where == "remediator.yaml:8: systems.shop.services.orders.playbooks.A"


def test_a_target_is_a_name_or_a_mapping(load: Load) -> None:
    loaded = load(
        """
        backends:
          kubernetes: {main: {}}
          postgres: {db: {dsn_env: D}, both: {dsn_env: D}}
          http: {both: {url: "http://h"}}
        systems:
          shop:
            match: {system: shop}
            services:
              orders:
                targets:
                  database: db
                  admin: {http: both, path: /admin}
                  workload: {cluster: main, namespace: n, deployment: d}
        """
    )
    targets = orders(loaded).targets
    assert {role: target.key for role, target in targets.items()} == {
        "database": "postgres/db",
        "admin": "http/both/path=/admin",
        "workload": "kubernetes/main/deployment=d,namespace=n",
    }
    assert targets["database"].role == "database"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("dbb", "there is no backend 'dbb'; did you mean db?"),
        ("both", "write {postgres: both} or {http: both}"),
        ("main", "say what in it is meant: {cluster: main"),
        ("{postgres: web}", "there is no 'web' in backends.postgres"),
        ("{cluster: main, deployment: d}", "needs its namespace"),
        ("{cluster: main, postgres: db, namespace: n}", "needs exactly one of"),
        ("{namespace: n}", "needs exactly one of"),
        ("{cluster: main, namespace: n, deployment: 5}", "should be text; quote it"),
    ],
)
def test_a_target_that_cannot_be_found_is_refused(load: Load, target: str, message: str) -> None:
    text = f"""
        backends:
          kubernetes: {{main: {{}}}}
          postgres: {{db: {{dsn_env: D}}, both: {{dsn_env: D}}}}
          http: {{both: {{url: "http://h"}}, web: {{url: "http://h"}}}}
        systems:
          shop:
            match: {{system: shop}}
            services:
              orders:
                targets:
                  x: {target}
    """
    (line,) = refusal(load, text)
    assert line.startswith("remediator.yaml:12: systems.shop.services.orders.targets.x")
    assert message in line


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        ("{s: {services: {a: {}}}}", "would take every alert"),
        ("{s: {match: {x: y}, services: {a: {}, b: {}}}}", "the same alerts as s/a"),
        ("{s: {match: {x: y}, services: {a: {match: {x: z}}}}}", "no alert can carry both"),
        ("{s: {match: {x: y}, services: {a: {prometheus: p}}}}", "backends.prometheus"),
        ("{s: {match: {x: ''}, services: {a: {}}}}", "at least 1 character"),
        ("{global: {match: {x: y}}}", "means all systems together"),
        ("{a/b: {match: {x: y}}}", "a name is made of"),
    ],
)
def test_services_that_cannot_be_told_apart_are_refused(
    load: Load, systems: str, message: str
) -> None:
    (line,) = refusal(load, f"systems: {systems}")
    assert message in line


def test_services_without_a_match_of_their_system_need_their_own(load: Load) -> None:
    loaded = load("systems: {s: {services: {a: {match: {x: y}}, b: {match: {x: z}}}}}")
    assert [service.match for service in loaded.catalogue().services] == [{"x": "y"}, {"x": "z"}]


def test_a_catalogue_of_settings_made_by_hand_is_checked_too() -> None:
    made = Settings.model_validate({"systems": {"s": {"services": {"a": {}}}}})
    with pytest.raises(ConfigError, match="would take every alert"):
        made.catalogue()


# --- the schema -------------------------------------------------------------------------------


def _objects(node: object) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            yield node
        for inner in node.values():
            yield from _objects(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _objects(inner)


def test_every_property_of_the_schema_has_a_description() -> None:
    bare = [
        name
        for node in _objects(settings_schema())
        for name, inner in node["properties"].items()
        if not inner.get("description")
    ]
    assert bare == []


def test_the_schema_takes_the_skeleton_and_refuses_unknown_keys(load: Load) -> None:
    validator = Draft202012Validator(settings_schema())
    Draft202012Validator.check_schema(settings_schema())
    validator.validate(yaml.safe_load(SKELETON))
    load(SKELETON)
    for key in CLOSED:
        tree: Any = yaml.safe_load(SKELETON)
        mapping = tree
        for part in key:
            mapping = mapping[part]
        mapping["x_unknown"] = 1
        assert not validator.is_valid(tree), key


def test_only_targets_and_playbooks_take_keys_of_their_own() -> None:
    open_ones = [
        node["title"]
        for node in _objects(settings_schema())
        if node.get("additionalProperties") is not False
    ]
    assert sorted(open_ones) == ["PlaybookEntry", "TargetEntry"]


def test_the_manual_tells_of_every_key() -> None:
    manual = (ROOT / "docs" / "configuration.md").read_text()
    missing = {
        name
        for node in _objects(settings_schema())
        for name in node["properties"]
        if f"`{name}`" not in manual
    }
    assert missing == set()


@pytest.mark.parametrize(
    "dsn",
    ["mysql://u:hunter2@h/d", "postgresql://u:hunter2@h:notaport/d", "postgresql://u:hunter2@[h/d"],
)
def test_a_dsn_of_the_store_that_cannot_be_read_is_named_and_not_shown(
    load: Load, dsn: str
) -> None:
    settings = load("store: {dsn_env: D}", D=dsn)
    with pytest.raises(ConfigError, match="variable D should hold a URL") as raised:
        store_url(settings, {"D": dsn})
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "dsn", ["postgresql:///d", "postgres://u@h:1,i:2/d", "postgresql://u:p%40@[::1]:5432/d?x=y"]
)
def test_a_dsn_of_the_store_is_taken_as_it_is(load: Load, dsn: str) -> None:
    assert store_url(load("store: {dsn_env: D}", D=dsn), {"D": dsn}) == dsn


def test_the_variable_that_shows_tracebacks_is_no_mistake(load: Load) -> None:
    load("", REMEDIATOR_DEBUG="1")
