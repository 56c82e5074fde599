"""The files that ``remediator init`` writes, as text; nothing is read or written here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import yaml

from remediator.cli.init_proposal import commented
from remediator.cli.output import USAGE, Failure

READER, WRITER = "remediator_reader", "remediator_writer"
DATABASE = "orders-db"
"""Name of the database in the configuration."""


@dataclass(frozen=True)
class Postgres:
    """Where the database is."""

    host: str
    port: int
    name: str

    @classmethod
    def read(cls, text: str) -> Postgres:
        """Read ``HOST[:PORT]/DATABASE``; a socket's folder needs the form of a DSN instead."""
        place, slash, name = text.partition("/")
        host, _, port = place.partition(":")
        if not (slash and host and name) or "/" in name or not (port or "5432").isdigit():
            form = "should be HOST[:PORT]/DATABASE, such as 127.0.0.1:5432/orders"
            raise Failure(USAGE, f"--postgres {text!r} {form}")
        return cls(host, int(port or 5432), name)

    def dsn(self, user: str, password: str) -> str:
        """Write the URL that ``user`` connects with."""
        place = f"{self.host}:{self.port}/{quote(self.name, safe='')}"
        return f"postgresql://{user}:{quote(password, safe='')}@{place}"


@dataclass(frozen=True)
class Passwords:
    """Of the two roles in the database."""

    reader: str
    writer: str


def grants(postgres: Postgres, passwords: Passwords) -> str:
    """Write the SQL that makes both roles, with the rights that they need and no more."""
    name = '"' + postgres.name.replace('"', '""') + '"'
    return f"""\
-- The roles of the remediator. Run it once, as a superuser:
--   psql -h {postgres.host} -p {postgres.port} -d {postgres.name.splitlines()[0]} -f THIS_FILE
-- It holds passwords: delete it afterwards.

-- Sees sessions, locks and settings; no table.
CREATE ROLE {READER} LOGIN PASSWORD '{passwords.reader}';
GRANT pg_monitor TO {READER};
GRANT CONNECT ON DATABASE {name} TO {READER};

-- May also cancel queries and end sessions of other roles, but not of superusers.
CREATE ROLE {WRITER} LOGIN PASSWORD '{passwords.writer}';
GRANT pg_monitor, pg_signal_backend TO {WRITER};
GRANT CONNECT ON DATABASE {name} TO {WRITER};

-- PostgreSQL 16 or newer, with `reserved_connections` above 0: connect even when all are in use.
-- GRANT pg_use_reserved_connections TO {READER}, {WRITER};
"""


@dataclass(frozen=True)
class Backends:
    """What else can be read, as it was given on the command line."""

    prometheus: str | None = None
    alertmanager: str | None = None
    kubeconfig: Path | None = None


def configuration(backends: Backends, systems: Iterator[str], unplaced: list[str]) -> str:
    """Write remediator.yaml."""
    lines = [
        "# Written by `remediator init`. Every key: docs/configuration.md.",
        "# `remediator check` validates it, `remediator serve` runs it.",
        "",
        "# observe: only diagnose. shadow: decide and record, change nothing.",
        "# approve: ask a person before each change. auto: change within the limits.",
        "mode: shadow",
        "",
        "# Folder of the SQLite file and of the tokens that the first start generates.",
        "state_dir: state",
        "",
        "# What can be read. Nothing is changed where there is no writer.",
        "backends:",
        *_backends(backends),
        "",
        "# What is looked after. An alert is about a service that has all labels of its `match`.",
        *systems,
    ]
    if unplaced:
        lines += ["", "# Alert rules without a label that names a service; add one to each:"]
        lines += [f"#   {commented(name)}" for name in unplaced]
    return "\n".join(lines) + "\n"


def _backends(backends: Backends) -> Iterator[str]:
    yield "  postgres:"
    yield f"    {DATABASE}:  # `targets: {{database: {DATABASE}}}` gives it to a service"
    yield f"      dsn_file: secrets/{DATABASE}-reader-dsn"
    yield f"      writer_dsn_file: secrets/{DATABASE}-writer-dsn"
    given: Mapping[str, tuple[str, object]] = {
        "prometheus": ("url", backends.prometheus),
        "alertmanager": ("url", backends.alertmanager),
        "kubernetes": ("kubeconfig", backends.kubeconfig),
    }
    for kind, (key, value) in given.items():
        if value is not None:
            yield f"  {kind}:"
            yield f'    main: {{{key}: "{value}"}}'


RULE = """\
# A rule for Prometheus, to begin with; it needs postgres_exporter. The labels `system` and `service`
# are what remediator.yaml matches on. Name the file under `rule_files` of prometheus.yml.
groups:
  - name: remediator-example
    rules:
      - alert: DatabaseConnectionPoolExhausted
        expr: |-
          sum(pg_stat_activity_count)
          / (min(pg_settings_max_connections) - min(pg_settings_superuser_reserved_connections)) > 0.9
        for: 1m
        labels: {system: shop, service: orders, severity: critical}
        annotations:
          summary: "{{ $value | humanizePercentage }} of the database's connections are in use"
"""


def receiver(token: Path) -> str:
    """Write an alertmanager.yml that sends everything to the service on this machine."""
    webhook = {
        "url": "http://127.0.0.1:8080/webhooks/alertmanager",
        "send_resolved": True,
        "max_alerts": 0,
        "http_config": {"authorization": {"type": "Bearer", "credentials_file": str(token)}},
    }
    config = {
        "route": {
            "receiver": "remediator",
            "group_by": ["alertname", "system", "service"],
            "group_wait": "10s",
            "group_interval": "1m",
            "repeat_interval": "4h",
        },
        "receivers": [{"name": "remediator", "webhook_configs": [webhook]}],
    }
    head = (
        "# A complete alertmanager.yml. In one that you have, copy the receiver and, above your other\n"
        "# routes, `- {receiver: remediator, continue: true}`. The token is there after the first\n"
        "# `remediator serve`; the user that Alertmanager runs as must be able to read it: give it a copy.\n"
    )
    return head + yaml.safe_dump(config, sort_keys=False)
