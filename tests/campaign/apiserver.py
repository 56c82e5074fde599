"""What the API server recorded: every change that it took, by whoever made it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

_BACK = "/reverted"


@dataclass(frozen=True)
class Seen:
    """One change by the service: a patch with its annotation, or an eviction."""

    namespace: str
    at: datetime
    """When the request arrived."""
    effect: str = ""
    """What the patch says of itself."""
    back: bool = False
    """Whether the patch takes that effect back."""
    pod: str = ""
    """Which pod was evicted."""


def changes_in(audit: Path, namespaces: Collection[str]) -> list[Seen]:
    """Read the audit log for what was changed in ``namespaces``."""
    lines = audit.read_text().splitlines() if audit.exists() else ()
    return [
        seen for line in lines for seen in _seen(json.loads(line)) if seen.namespace in namespaces
    ]


def _seen(entry: dict[str, Any]) -> Iterator[Seen]:
    taken = entry.get("responseStatus", {}).get("code") in {200, 201}
    if not taken or "dryRun" in entry["requestURI"]:
        return
    about = entry["objectRef"]
    at = datetime.fromisoformat(entry["requestReceivedTimestamp"])
    if entry["verb"] == "create":
        yield Seen(about["namespace"], at, pod=about["name"])
        return
    metadata = (entry.get("requestObject") or {}).get("metadata") or {}
    effect = (metadata.get("annotations") or {}).get("remediator.dev/effect")
    if effect:
        made = effect.removesuffix(_BACK)
        yield Seen(about["namespace"], at, effect=made, back=made != effect)
