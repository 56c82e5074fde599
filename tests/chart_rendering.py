"""The Helm chart as helm renders it, and what Kubernetes' own schemas say of that."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.postgres_fixtures import missing

CHART = Path(__file__).parents[1] / "charts" / "remediator"
VERSIONS = [f"1.{minor}" for minor in range(25, 37)]
"""Kubernetes, as far as there are schemas."""
FOREIGN = frozenset({"ServiceMonitor", "PrometheusRule"})
"""Kinds of the Prometheus operator, of which Kubernetes knows nothing."""

Values = dict[str, Any]
Object = dict[str, Any]

CREDENTIAL = {"name": "am", "role": "ingest", "token_file": "/secrets/keys/alertmanager"}
LEAST: Values = {"config": {"credentials": [CREDENTIAL]}, "secrets": ["keys"]}
"""Values without which nothing is rendered."""


def binary() -> str:
    """Find helm; where it is missing a laptop skips and CI fails."""
    found = shutil.which("helm")
    if found is None:
        missing("helm is not on PATH")
    return str(found)


class Chart:
    """Runs helm on the chart, with values written to a file."""

    def __init__(self, folder: Path) -> None:
        self._values = folder / "values.yaml"

    def helm(self, *arguments: str, values: Values) -> subprocess.CompletedProcess[str]:
        """Run a helm command whose last argument is the chart."""
        self._values.write_text(yaml.safe_dump(values))
        command = [binary(), *arguments, str(CHART), "--values", str(self._values)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def render(self, values: Values, *options: str, namespace: str = "ops") -> list[Object]:
        """Render it as release ``remediator``."""
        ended = self.helm(
            "template", "remediator", "--namespace", namespace, *options, values=values
        )
        assert ended.returncode == 0, ended.stderr
        return [found for found in yaml.safe_load_all(ended.stdout) if found]

    def refuses(self, values: Values) -> str:
        """Return why it is not rendered."""
        ended = self.helm("template", "remediator", values=values)
        assert ended.returncode != 0, ended.stdout
        return ended.stderr


def with_values(*layers: Mapping[str, Any]) -> Values:
    """Lay values over ``LEAST``, mapping by mapping."""
    merged: Values = LEAST
    for layer in layers:
        merged = _over(merged, layer)
    return merged


def _over(base: Mapping[str, Any], layer: Mapping[str, Any]) -> Values:
    merged = dict(base)
    for key, value in layer.items():
        deep = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _over(merged[key], value) if deep else value
    return merged


def one(objects: list[Object], kind: str, name: str = "remediator") -> Object:
    """Return the object of that kind and name."""
    (found,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def invalid(found: Object) -> list[str]:
    """Say, version by version, what Kubernetes does not take of an object."""
    text = json.dumps(found, sort_keys=True)
    return [said for version in VERSIONS if (said := _invalid(text, version))]


@functools.cache
def _invalid(text: str, version: str) -> str:
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return f"{version}: {getattr(error, 'message', error)}"
    return ""
