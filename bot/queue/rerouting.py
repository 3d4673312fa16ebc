"""Moves jobs out of pools that cannot run them any more, into a pool whose workers offer the same model and weights.

A job gets its pool at admission, but workers come and go. Knows the store, the board, the claims on the bus and the
live workers; `Models` chooses the best pool.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping

from bot.models import Crew, Models, crews
from bot.queue.board import Board, Run
from bot.queue.closing import Closing
from bot.store import Record, Store, Unavailable, rerouting
from engine.bus import Bus, Unreachable
from engine.job import Presence, Recipe

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
ANY = frozenset({""})  # the empty model name: any worker of the pool can run the job


class Rerouting:
    """Run `run` as a task."""

    def __init__(
        self, store: Store, bus: Bus, board: Board, closing: Closing, models: Models,
        workers: Callable[[], Mapping[str, Presence]], *, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._bus, self._board, self._closing = store, bus, board, closing
        self._models, self._workers, self._clock = models, workers, clock
        self._after: dict[str, str] = {}  # pool → job after which the next round continues: some can never move

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                await self.round()
            except (Unreachable, Unavailable) as error:
                log.warning("rerouting: %s", error)

    async def round(self) -> None:
        """Check all sent jobs, and one page of waiting jobs per pool. Raises `Unreachable` and `Unavailable`."""
        live = crews(self._workers())
        if not live:
            return
        for run in [run for run in self._board.runs.values() if run.record.pool not in live]:
            await self._come_back(run)
        ways = {pool: _ways(pool, live) for pool in await self._store.ask(rerouting.pools)}
        self._after = {pool: await self._page(pool, models) for pool, models in ways.items() if models}

    async def _page(self, pool: str, models: Collection[str]) -> str:
        """Move the movable jobs of one page. Return the job after which the next page begins, empty to start over."""
        records, after = await self._store.ask(rerouting.waiting, pool, models, self._after.get(pool, ""))
        for record in records:
            await self._move(record)
        return after

    async def _come_back(self, run: Run) -> None:
        """Queue a job again that was sent to a pool without workers and has no claim, if another pool can run it."""
        if self._elsewhere(run.record) is None or run.record.cancelling or self._board.behind > self._clock():
            return
        if await self._bus.holder(run.record.id) is None:
            why = f"nobody serves the pool {run.record.pool}"
            await self._closing.again(run.record.id, step=run.step, why=why, cause="lost")

    async def _move(self, record: Record) -> None:
        pool = self._elsewhere(record)
        if pool is not None and await self._store.reroute(record.id, pool, self._clock()) is not None:
            log.warning("job %s: from the pool %s to %s, where its model is offered", record.id, record.pool, pool)
            self._closing.freed()

    def _elsewhere(self, record: Record) -> str | None:
        """Return another pool that can run the job; None if there is none."""
        if isinstance(record.task, Recipe):
            pool = self._models.pool_of(record.task.model, record.task.revision)
        else:
            pool = self._models.any_pool(record.pool)
        return None if pool == record.pool else pool


def _ways(pool: str, live: Mapping[str, Crew]) -> frozenset[str]:
    """Return the models for which a job may leave a pool: offered in another pool and not in this one."""
    everywhere = frozenset[str]().union(*(crew.models for crew in live.values()))
    return everywhere - live[pool].models if pool in live else everywhere | ANY
