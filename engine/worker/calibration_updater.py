"""Calibration by real work: times steps and decodes, updates costs, batch limits and announcements, and saves them.

`engine.calibration.calibration` weighs the measurements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from engine.batching.events import BatchRun
from engine.calibration.calibration import Calibration, Refinement
from engine.contract import Recipe
from engine.model_cache.cache import ModelCache
from engine.models.family import Family
from engine.worker.engine_thread import EngineThread
from engine.worker.run import ActiveRuns

UPDATE_SECONDS = 5.0


class CalibrationUpdater:
    """The engine's thread calls `record_step`, the decode worker's `record_decode`. The rest runs in the event loop."""

    def __init__(
        self,
        model_cache: ModelCache,
        active_runs: ActiveRuns,
        thread: EngineThread,
        calibrations: Mapping[str, Calibration],
        on_rows: Callable[[int], None],
    ) -> None:
        self._model_cache = model_cache
        self._active_runs = active_runs
        self._thread = thread
        self._on_rows = on_rows
        self._refinements = {name: Refinement(calibration) for name, calibration in calibrations.items()}
        self._unsynchronized_steps: list[tuple[BatchRun, float]] = []  # steps that may still be running on the device

    def record_step(self, batch: BatchRun | None, ms: float) -> None:
        """Record a step's time. A device runs asynchronously, so times count only after a synchronisation."""
        if batch is None or (
            self._unsynchronized_steps and self._unsynchronized_steps[0][0].timing_key != batch.timing_key
        ):
            self._unsynchronized_steps.clear()
            return
        self._unsynchronized_steps.append((batch, ms))
        if batch.is_synchronised:
            forward_ms = sum(each for _, each in self._unsynchronized_steps) / sum(
                batch_run.forward_count for batch_run, _ in self._unsynchronized_steps
            )
            self._unsynchronized_steps.clear()
            self._record_forward(batch, forward_ms)

    def record_decode(self, recipe: Recipe, ms: float) -> None:
        """Record the time of a finished picture."""
        family = self._model_cache.families.get(recipe.model)
        refinement = self._refinements.get(recipe.model)
        if family is not None and refinement is not None and recipe.width == recipe.height == family.size:
            refinement.note_decode(ms)

    async def update_regularly(self) -> None:
        """Apply new calibrations regularly, for ever."""
        while True:
            await asyncio.sleep(UPDATE_SECONDS)
            for name, refinement in self._refinements.items():
                if (calibration := refinement.refine()) is not None:
                    await self._apply_calibration(name, calibration)

    async def _apply_calibration(self, name: str, calibration: Calibration) -> None:
        await self._thread.call(
            lambda engine: engine.set_calibration(name, calibration.row_ms, calibration.rows, calibration.bucket_ms)
        )
        self._on_rows(calibration.rows)
        await asyncio.to_thread(self._model_cache.update_calibration, name, calibration)
        self._active_runs.presence_changed.set()

    def _record_forward(self, batch: BatchRun, ms: float) -> None:
        family = self._model_cache.families.get(batch.model)
        refinement = self._refinements.get(batch.model)
        if (
            family is not None
            and refinement is not None
            and _is_native(batch, family)
            and batch.dtype == refinement.calibration.dtype
        ):
            refinement.note_forward(batch.rows, ms)


def _is_native(batch: BatchRun, family: Family) -> bool:
    return batch.shape == family.latent_shape(family.size, family.size) and not batch.has_additions
