"""Going back to an earlier revision of a deployment, pinned, and never twice. Pure.

``rollout undo`` goes to the revision before, whatever that is: the second one flips back to the
bad revision. So the revision is named, and what runs must be new and no undo itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import JsonValue

from remediator.backends.kubernetes.client import Change
from remediator.backends.kubernetes.objects import (
    Object,
    read_revision,
    revision_of,
    uid_of,
    workload_path,
)
from remediator.backends.kubernetes.preconditions import (
    Scene,
    UndoBounds,
    effect_on,
    forbid,
    in_turn,
    missing_at_once,
    patch_of,
    patching,
    read_bounds,
    steady,
)
from remediator.model.errors import BackendRefused
from remediator.model.mitigation import Item, Mitigation, Preparation

KIND = "undo_rollout"
NO_UNDO = "remediator.dev/no-undo"
"""Annotation of a deployment whose release must not be gone back from: it migrated a database."""
_HASH = "pod-template-hash"


def undo_rollout(mitigation: Mitigation, scene: Scene) -> Preparation:
    """Prepare going back to the revision that the one item pins."""
    bounds = read_bounds(mitigation, UndoBounds)
    steady(scene, bounds)
    in_turn(scene)
    forbid((len(mitigation.items) != 1, "exactly one item is needed: the revision to go back to"))
    _may_go_back(scene, bounds)
    kept = pinned(scene.replica_sets, mitigation.items[0])
    number = revision_of(kept)
    forbid(
        (number >= bounds.from_revision, f"revision {number} is not before the one that runs"),
        (uid_of(kept) == uid_of(_running(scene)), f"already so: revision {number} runs"),
    )
    path = workload_path(mitigation.target)
    preparation = patching(mitigation, scene.live, path, {"revision": number}, None)
    was: JsonValue = {"revision": bounds.from_revision}
    before = {**preparation.before, "was": was, "template": digest(kept)}
    whole = preparation.model_copy(update={"before": before})
    return whole.noting(instances=missing_at_once(scene))


def _may_go_back(scene: Scene, bounds: UndoBounds) -> None:
    found, running = scene.live, _running(scene)
    number, last = revision_of(found), effect_on(found) or ""
    annotations = found["metadata"].get("annotations") or {}
    since = read_revision(running).created_at
    others = [read_revision(kept) for kept in scene.replica_sets if kept is not running]
    newer = [kept.number for kept in others if kept.created_at >= since]
    forbid(
        (number != bounds.from_revision, f"revision {number} runs, not {bounds.from_revision}"),
        (
            annotations.get(NO_UNDO, "false") != "false",
            f"its annotation {NO_UNDO} forbids to go back: see what this release migrated",
        ),
        (
            f"/{KIND}/" in last,
            f"our last change of it was to go back already ({last}): a human decides from here",
        ),
        (
            scene.now - since >= timedelta(seconds=bounds.max_age_s),
            f"revision {number} is {_ago(scene.now, since)} old: beyond {bounds.max_age_s:g} s",
        ),
        (
            bool(newer),
            f"revision {number} is not the newest: to it somebody has gone back already",
        ),
    )


def _running(scene: Scene) -> Object:
    number = revision_of(scene.live)
    for kept in scene.replica_sets:
        if number and revision_of(kept) == number:
            return kept
    raise BackendRefused(f"the replica set of the running revision {number} is not to be found")


def _ago(now: datetime, since: datetime) -> str:
    return f"{(now - since).total_seconds():.0f} s"


def pinned(replica_sets: Sequence[Object], item: Item) -> Object:
    """Return the replica set that ``item`` pins by number, name and uid; refuse any other."""
    meant = item.identity
    for kept in replica_sets:
        seen = (revision_of(kept), kept["metadata"]["name"], uid_of(kept))
        if seen == (meant.get("revision"), meant.get("replica_set"), meant.get("uid")):
            return kept
    raise BackendRefused(
        f"revision {meant.get('revision')} is no longer kept as replica set"
        f" {meant.get('replica_set')} with the uid that was seen"
    )


def digest(kept: Object) -> str:
    """Return what a replica set's template is recognised by; it may hold secrets itself."""
    return hashlib.sha256(json.dumps(_template(kept), sort_keys=True).encode()).hexdigest()


def change_back(preparation: Preparation, effect: str, kept: Object) -> Change:
    """Make the one request that replaces the whole template by that of ``kept``."""
    before = preparation.before
    if digest(kept) != before["template"]:
        raise BackendRefused("the template to go back to has changed since it was looked at")
    spec = {"template": {"$patch": "replace", **_template(kept)}}
    return Change("PATCH", str(before["object"]), patch_of(KIND, before, effect, spec))


def _template(kept: Object) -> dict[str, object]:
    template = kept["spec"]["template"]
    metadata = template.get("metadata") or {}
    labels = {key: text for key, text in (metadata.get("labels") or {}).items() if key != _HASH}
    return {**template, "metadata": {**metadata, "labels": labels}}
