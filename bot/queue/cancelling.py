"""Cancels jobs: one UPDATE while a job waits; once sent, a flag in SQL and a tombstone on the broker for its worker.

Knows the store, the bus and the live workers; does not check permissions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from bot.models import crews
from bot.queue.board import Board
from bot.queue.closing import Closing
from bot.queue.patrol import spent
from bot.refused import Refused
from bot.states import over
from bot.store import Store
from engine.bus import Bus, Unreachable
from engine.job import Presence

log = logging.getLogger(__name__)


class Cancelling:
    """Cancels one job at a time."""

    def __init__(
        self, store: Store, bus: Bus, board: Board, closing: Closing, workers: Callable[[], Mapping[str, Presence]]
    ) -> None:
        self._store, self._bus, self._board, self._closing, self._workers = store, bus, board, closing, workers

    async def cancel(self, job: str) -> str:
        """Cancel a job, and return a sentence on the outcome. Raises `Refused` (404) for an unknown job."""
        record = await self._closing.wish(job)
        if record is None:
            raise Refused("There is no such job.", 404)
        if record.state == "cancelled":
            return "Cancelled before it began; nothing was charged." if record.started is None else "Cancelled."
        if over(record.state):
            return f"Too late: it has {record.state} already."
        run = self._board.runs.get(job)
        if run is not None:
            run.record = record
        try:
            await self._bus.cancel(job)
        except Unreachable as error:  # SQL has the flag, and the patrol repeats the tombstone
            log.warning("job %s: %s", job, error)
        if record.pool not in crews(self._workers()):
            await self._closing.cancel(job, spent(run) if run else 0.0, why="no worker is alive")
            return "Cancelled; no worker was online."
        return "Cancelling: it stops at its next step, and only the steps it ran are charged."
