"""The maintenance windows of the operator's API, from both places where they stand."""

from __future__ import annotations

from remediator.model.catalog import Catalogue
from remediator.model.errors import Refused
from remediator.model.maintenance import MaintenanceOrder
from remediator.model.views import WindowView
from remediator.store import Store


class Windows:
    """The maintenance windows of the file and those that were ordered, for the operator's API."""

    def __init__(self, store: Store, catalogue: Catalogue) -> None:
        self._store = store
        self._planned = catalogue.maintenance

    async def windows(self) -> list[WindowView]:
        """List what runs and what comes."""
        return await self._store.windows.listed(self._planned)

    async def start(self, order: MaintenanceOrder, by: str) -> WindowView:
        """Let a window begin, now or later."""
        return await self._store.commands.start_maintenance(order, by)

    async def end(self, window_id: str, by: str) -> WindowView:
        """End a window that was ordered; one of the file is ended there."""
        if any(plan.id == window_id for plan in self._planned):
            reason = "is in the configuration file: take it out there and restart the service"
            raise Refused(409, f"{window_id} {reason}")
        return await self._store.commands.end_maintenance(window_id, by)
