"""Loads a job's model before the engine takes the job, and reports the loading progress."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from engine.admit import elsewhere, prepare
from engine.bus import Bus, Unreachable
from engine.job import Job, Loading, ModelProgress, Recipe
from engine.shelf import Shelf
from engine.worker.roster import Roster
from engine.worker.run import Run

log = logging.getLogger(__name__)

EVERY_SECONDS = 0.5


class Fetching:
    """Holds a model in the cache for each run, until the run has left the worker and the engine."""

    def __init__(self, bus: Bus, shelf: Shelf, roster: Roster, name: str, pools: Sequence[str]) -> None:
        self._bus, self._shelf, self._roster = bus, shelf, roster
        self._name, self._pools = name, pools
        shelf.on_change = roster.changed.set
        roster.on_leave = self._left

    def elsewhere(self, job: Job) -> str:
        """Return why the models of this worker cannot run a job; empty: they can."""
        return elsewhere(job.task, self._shelf.warm())

    async def fetch(self, run: Run) -> None:
        """Return once the engine can take the run. Raises `Unfit` where its model cannot be loaded."""
        recipe = run.job.task
        assert isinstance(recipe, Recipe), "only a recipe has a model"
        telling = asyncio.create_task(self._tell(run, recipe.model))
        try:
            taken = await self._shelf.take(recipe.model, recipe.dtype)
        finally:
            telling.cancel()
        if run in self._roster:
            run.held = recipe.model if taken else ""
            await asyncio.to_thread(prepare, run.job, self._shelf.families)
        elif taken:
            self._shelf.let_go(recipe.model)

    async def tell(self) -> None:
        """Report in this worker's pools what it loads, and once that the model is ready."""
        last: ModelProgress | None = None
        while True:
            now = self._shelf.progress
            if now is not None and (now is not last or now.phase == "load"):
                last = now
                try:
                    await self._bus.publish_progress(self._name, self._pools, now)
                except Unreachable as error:
                    log.debug("%s", error)
            await asyncio.sleep(EVERY_SECONDS)

    async def _tell(self, run: Run, model: str) -> None:
        await run.announced.wait()
        while (done := self._shelf.done(model)) is not None:
            try:
                await self._bus.publish_loading(
                    Loading(job=run.job.id, epoch=run.claim.epoch, model=model, done=min(1.0, done))
                )
            except Unreachable as error:
                log.debug("job %s: %s", run.job.id, error)
            await asyncio.sleep(EVERY_SECONDS)

    def _left(self, run: Run) -> None:
        if run.held:
            self._roster.spawn(self._let_go(run))

    async def _let_go(self, run: Run) -> None:
        """Release the model once the engine has dropped the run: a lost run may stay there for a step."""
        await self._roster.thread.call(lambda engine: engine.cancel(run.job.id))
        self._shelf.let_go(run.held)
