"""What a change of a cluster does, in words for whoever reads the incident. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from remediator.backends.kubernetes.objects import Object, amount, written
from remediator.model.mitigation import Preparation

_Spec = Mapping[str, JsonValue]


def memory(size: object) -> str:
    """Write bytes, or a quantity of them, for whoever reads it: exact, or in mebibytes."""
    exact = written(int(amount(size)))
    return f"{amount(size) / (1 << 20):.1f}Mi" if exact.isdecimal() and exact != "0" else exact


def done(preparation: Preparation) -> str:
    """Say what was done: ``replicas 4 -> 6``, ``app: memory limit 256Mi -> 512Mi``."""
    before = preparation.before
    match preparation.mitigation.kind:
        case "evict_pod":
            return f"pod {before['name']} evicted"
        case "restart_rollout":
            return "restarted in turn"
        case "undo_rollout":
            return f"back to revision {_spec(before['change'])['revision']}"
        case _:
            return _from_to(preparation, _spec(before["was"]), _spec(before["change"]))


def put_back(preparation: Preparation, live: Object) -> str:
    """Say what taking back changes, from what the object says now."""
    asked, undo = _spec(preparation.before["change"]), _spec((preparation.undo or {})["change"])
    now = asked if "template" in asked else {field: live["spec"][field] for field in asked}
    return f"put back: {_from_to(preparation, now, undo)}"


def lowered(preparation: Preparation, new: int, old: int | None = None) -> str:
    """Say what taking back in steps has changed: since ``old``, or since all stood."""
    ((field, asked),) = _spec(preparation.before["change"]).items()
    return _from_to(preparation, {field: asked if old is None else old}, {field: new})


def _from_to(preparation: Preparation, old: _Spec, new: _Spec) -> str:
    if "template" in new:
        return _memory(old["template"], new["template"])
    ((field, figure),) = new.items()
    name = str(preparation.before["object"]).rpartition("/")[2]
    what = "replicas" if field == "replicas" else f"autoscaler {name}: minimum"
    return f"{what} {old[field]} -> {figure}"


def _memory(old: JsonValue, new: JsonValue) -> str:
    name, was = _container(old)
    _, will = _container(new)
    parts = [
        f"{word} {memory(_spec(was[key])['memory'])} -> {memory(_spec(will[key])['memory'])}"
        for key, word in (("limits", "limit"), ("requests", "request"))
        if key in will
    ]
    return f"{name}: memory {', '.join(parts)}"


def _container(template: JsonValue) -> tuple[JsonValue, _Spec]:
    """Return name and resources of the one container that a patch is about."""
    ((containers),) = _spec(_spec(template)["spec"]).values()
    container = _spec(containers[0] if isinstance(containers, list) else None)
    return container["name"], _spec(container["resources"])


def _spec(value: JsonValue) -> _Spec:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no part of an object")
    return value
