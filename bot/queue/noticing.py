"""Detects cancels and requeues that `darkroom jobs` made in SQL from another process.

SQL has the change already; this task tells the broker, the workers and the bot within a second or two. It reads the
outside changes from the audit, and decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from bot.queue.closing import Closing
from bot.states import State, over
from bot.store import Moved, Store, Unavailable, operating
from bot.store.records import Entry
from engine.bus import Unreachable
from engine.logline import about

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0


class Noticing:
    """Run `run` as a task. `cancel` cancels one job that a worker may have."""

    def __init__(self, store: Store, closing: Closing, cancel: Callable[[str], Awaitable[str]]) -> None:
        self._store, self._closing, self._cancel = store, closing, cancel
        self._last: int | None = None  # the last audit line that was handled
        self._seen: set[tuple[int, float]] = set()  # handled lines just before it: number and time

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        while True:
            try:
                await self.round()
            except (Unreachable, Unavailable) as error:
                log.warning("outside changes: %s", error)
            await asyncio.sleep(EVERY_SECONDS)

    async def prepare(self) -> None:
        """Start at the current audit line: the bot reads earlier changes from the tables."""
        self._last, found = await self._store.ask(operating.since, await self._store.ask(operating.newest))
        self._seen = _lines(found)

    async def round(self) -> None:
        """Handle all outside changes since the last round."""
        if self._last is None:
            await self.prepare()
            return
        last, found = await self._store.ask(operating.since, self._last)
        for number, entry in found.items():
            if (number, entry.at) not in self._seen:
                with about(entry.job):
                    await self._notice(entry)
                self._seen.add((number, entry.at))
        self._last, self._seen = last, self._seen & _lines(found)

    async def _notice(self, entry: Entry) -> None:
        record = await self._store.record(entry.job)
        if record is None:
            return
        self._store.version += 1  # another process changed the queue
        if entry.why == operating.CANCELLED:
            log.info("job %s: %s", entry.job, entry.why)
        if entry.why == operating.CANCELLED and record.state == "cancelled" and entry.target == "cancelled":
            self._closing.tell(Moved(record, cast(State, entry.source)))
            await self._closing.clear(record, tombstone=True)
        elif entry.why == operating.CANCELLED and not over(record.state):
            await self._cancel(entry.job)
        elif entry.why == operating.AGAIN and record.attempt == entry.attempt and not over(record.state):
            await self._closing.back(record, entry.why, "asked")
            if entry.epoch:  # the old claim; another worker may have a new one by now
                await self._closing.take_back(record.id, entry.epoch)


def _lines(found: Mapping[int, Entry]) -> set[tuple[int, float]]:
    return {(number, entry.at) for number, entry in found.items()}
