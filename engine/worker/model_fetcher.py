"""Loads a job's model before the engine takes the job, and reports the loading progress."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from engine.batching.job_images import prepare_plan, reason_to_decline
from engine.bus import BrokerUnreachable, Bus
from engine.contract import Job, JobModelLoading, ModelProgress, Recipe
from engine.device.core_turns import compute_in_thread
from engine.model_cache.cache import ModelCache
from engine.worker.run import ActiveRuns, JobRun

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.5


class ModelFetcher:
    """Holds a model in the cache for each run, until the run has left the worker and the engine."""

    def __init__(
        self, bus: Bus, model_cache: ModelCache, active_runs: ActiveRuns, name: str, pools: Sequence[str]
    ) -> None:
        self._bus = bus
        self._model_cache = model_cache
        self._active_runs = active_runs
        self._name = name
        self._pools = pools
        model_cache.on_change = active_runs.presence_changed.set
        active_runs.on_remove = self._on_remove

    def find_rejection(self, job: Job) -> str:
        """Return why the models of this worker cannot run a job; empty: they can."""
        return reason_to_decline(job.task, self._model_cache.list_models())

    async def fetch_model(self, run: JobRun) -> None:
        """Return once the engine can take the run. Raises `JobRejected` where its model cannot be loaded."""
        recipe = run.job.task
        assert isinstance(recipe, Recipe), "only a recipe has a model"
        report_task = asyncio.create_task(self._report_loading(run, recipe.model))
        try:
            is_acquired = await self._model_cache.acquire(recipe.model, recipe.dtype, recipe)
        finally:
            report_task.cancel()
        if run in self._active_runs:
            run.model_in_use = recipe.model if is_acquired else ""
            await compute_in_thread(prepare_plan, run.job, self._model_cache.families)
        elif is_acquired:
            self._model_cache.release(recipe.model)

    async def report_progress(self) -> None:
        """Report in this worker's pools what it loads, and once that the model is ready."""
        last_progress: ModelProgress | None = None
        while True:
            progress = self._model_cache.progress
            if progress is not None and (progress is not last_progress or progress.phase == "load"):
                last_progress = progress
                try:
                    await self._bus.publish_progress(self._name, self._pools, progress)
                except BrokerUnreachable as error:
                    log.debug("%s", error)
            await asyncio.sleep(REPORT_SECONDS)

    async def _report_loading(self, run: JobRun, model: str) -> None:
        await run.start_announced.wait()
        while (fraction := self._model_cache.get_loaded_fraction(model)) is not None:
            try:
                await self._bus.publish_loading(
                    JobModelLoading(job=run.job.id, epoch=run.claim.epoch, model=model, loaded_share=min(1.0, fraction))
                )
            except BrokerUnreachable as error:
                log.debug("job %s: %s", run.job.id, error)
            await asyncio.sleep(REPORT_SECONDS)

    def _on_remove(self, run: JobRun) -> None:
        if run.model_in_use:
            self._active_runs.spawn(self._release_model(run))

    async def _release_model(self, run: JobRun) -> None:
        """Release the model once the engine has dropped the run: a lost run may stay there for a step."""
        await self._active_runs.thread.call(lambda engine: engine.cancel(run.job.id))
        self._model_cache.release(run.model_in_use)
