"""What the routes work with. Built by `create_app`, found through the request: no globals."""

from __future__ import annotations

from fastapi import Request

from segue.api.doors import LogDoor, StoreDoor
from segue.api.edge import ApiMetrics
from segue.api.stream import Hub
from segue.settings import Settings


class Services:
    """The doors, the watches and the metrics of one API process. Opens nothing by itself."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = StoreDoor(settings)
        self.log = LogDoor(settings)
        self.hub = Hub(self.store)
        self.metrics = ApiMetrics()

    async def close(self) -> None:
        self.hub.close()
        await self.store.close()
        await self.log.close()


def services_of(request: Request) -> Services:
    found: Services = request.app.state.services
    return found
