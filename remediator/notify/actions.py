"""What a mitigation does, as an engineer says it: ``end 3 sessions on postgres/orders-db``. Pure."""

from __future__ import annotations

from remediator.model.kinds import KINDS
from remediator.model.views import MitigationView


def action(mitigation: MitigationView) -> str:
    """Say what it does to what; a kind without words of its own by its name."""
    kind = KINDS.get(mitigation.kind)
    count = len(mitigation.items or mitigation.planned)
    if kind is None or not kind.action:
        return f"{mitigation.kind} on {mitigation.target}"
    does = kind.action if count == 1 else kind.actions or kind.action
    return f"{does.format(count or '')} on {mitigation.target}".replace("  ", " ")
