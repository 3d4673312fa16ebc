"""Moves jobs out of pools that can no longer run them, into a pool whose workers offer the same model and weights.

A job gets its pool at admission, but workers come and go. Knows the store, the active jobs, the claims on the bus and
the live workers; `ModelCatalog` chooses the best pool.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping

from bot.domain.periodic import run_periodically
from bot.queue.active_jobs import ActiveJob, ActiveJobs
from bot.queue.job_completion import JobCompletion
from bot.queue.model_catalog import ModelCatalog, PoolSummary, group_by_pool
from bot.store import JobRecord, Store
from bot.store.transitions import pool_changes
from engine.bus import Bus
from engine.contract import Presence, Recipe

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
ANY_MODEL = frozenset({""})  # the empty model name: any worker of the pool can run the job


class JobRerouter:
    """Run `run` as a task."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        active_jobs: ActiveJobs,
        completion: JobCompletion,
        models: ModelCatalog,
        workers: Callable[[], Mapping[str, Presence]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._bus = bus
        self._active_jobs = active_jobs
        self._completion = completion
        self._models = models
        self._workers = workers
        self._clock = clock
        self._page_cursors: dict[str, str] = {}  # pool → job after which the next round continues: some can never move

    async def run(self) -> None:
        """Run rounds until cancelled. Retry after an outage of broker or database."""
        await run_periodically(self.run_round, INTERVAL_SECONDS, "rerouting", log, pauses_first=True)

    async def run_round(self) -> None:
        """Check all sent jobs, and one page of waiting jobs per pool. Raises `BrokerUnreachable` and
        `DatabaseUnavailable`.
        """
        live_pools = group_by_pool(self._workers())
        if not live_pools:
            return
        for active_job in [run for run in self._active_jobs.by_id.values() if run.record.pool not in live_pools]:
            await self._recall_job(active_job)
        movable_models = {
            pool: _find_movable_models(pool, live_pools)
            for pool in await self._store.query(pool_changes.list_waiting_pools)
        }
        self._page_cursors = {
            pool: await self._move_page(pool, models) for pool, models in movable_models.items() if models
        }

    async def _move_page(self, pool: str, models: Collection[str]) -> str:
        """Move the movable jobs of one page. Return the job after which the next page begins, empty to start over."""
        records, cursor = await self._store.query(
            pool_changes.list_waiting_jobs, pool, models, self._page_cursors.get(pool, "")
        )
        for record in records:
            await self._move_job(record)
        return cursor

    async def _recall_job(self, active_job: ActiveJob) -> None:
        """Queue a sent, unclaimed job again if its pool has no workers and another pool can run it."""
        if (
            self._find_other_pool(active_job.record) is None
            or active_job.record.cancelling
            or self._active_jobs.results_behind_until > self._clock()
        ):
            return
        if await self._bus.get_holder(active_job.record.id) is None:
            audit_note = f"nobody serves the pool {active_job.record.pool}"
            await self._completion.requeue(
                active_job.record.id, step=active_job.step, audit_note=audit_note, cause="lost"
            )

    async def _move_job(self, record: JobRecord) -> None:
        pool = self._find_other_pool(record)
        if pool is not None and await self._store.reroute_job(record.id, pool, self._clock()) is not None:
            log.warning("job %s: from the pool %s to %s, where its model is offered", record.id, record.pool, pool)
            self._completion.on_rows_freed()

    def _find_other_pool(self, record: JobRecord) -> str | None:
        """Return another pool that can run the job; None if there is none."""
        if isinstance(record.task, Recipe):
            pool = self._models.choose_pool(record.task.model, record.task.revision, recipe=record.task)
        else:
            pool = self._models.choose_live_pool(record.pool)
        return None if pool == record.pool else pool


def _find_movable_models(pool: str, live_pools: Mapping[str, PoolSummary]) -> frozenset[str]:
    """Return the models for which a job may leave a pool: offered in another pool and not in this one."""
    all_models = frozenset[str]().union(*(pool_info.models for pool_info in live_pools.values()))
    return all_models - live_pools[pool].models if pool in live_pools else all_models | ANY_MODEL
