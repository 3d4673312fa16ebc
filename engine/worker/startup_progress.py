"""Publishes how far a worker's start is, while it finds, downloads and loads its models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from engine.bus import BrokerUnreachable, Bus
from engine.contract import ModelProgress

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5  # between two progress messages of a start


class StartupProgress:
    """Publishes this worker's start-up progress."""

    def __init__(self, bus: Bus, name: str, pools: Sequence[str]) -> None:
        self._bus = bus
        self._name = name
        self._pools = pools
        self._latest = ModelProgress()

    def update(self, progress: ModelProgress) -> None:
        """Store the newest progress; called in the loading thread."""
        self._latest = progress

    @asynccontextmanager
    async def publish_during(self) -> AsyncGenerator[None]:
        """Publish the progress repeatedly while the body runs, and once when it has succeeded."""
        task = asyncio.create_task(self._publish_repeatedly())
        try:
            yield
            await self._publish()
        finally:
            task.cancel()

    async def _publish_repeatedly(self) -> None:
        while True:
            await self._publish()
            await asyncio.sleep(PROGRESS_SECONDS)

    async def _publish(self) -> None:
        try:
            await self._bus.publish_progress(self._name, self._pools, self._latest)
        except BrokerUnreachable as error:
            log.debug("%s", error)
