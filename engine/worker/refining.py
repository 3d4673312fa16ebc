"""Calibration by real work: measured steps and decodes update costs, batch limits and announcements, and are saved.

`engine.refinement` weighs the measurements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from engine.calibration import Calibration
from engine.events import Ran
from engine.families.family import Family
from engine.job import Recipe
from engine.refinement import Refinement
from engine.shelf import Shelf
from engine.worker.roster import Roster

EVERY_SECONDS = 5.0


class Refining:
    """`stepped` runs in the engine's thread, `decoded` in the decode worker's, `refine` in the event loop."""

    def __init__(
        self, shelf: Shelf, roster: Roster, found: Mapping[str, Calibration], on_rows: Callable[[int], None]
    ) -> None:
        self._shelf, self._roster, self._on_rows = shelf, roster, on_rows
        self._known = {name: Refinement(one) for name, one in found.items()}
        self._since: list[tuple[Ran, float]] = []  # steps that may still be running on the device

    def stepped(self, ran: Ran | None, ms: float) -> None:
        """Record a step's time. A device runs asynchronously, so times count only after a synchronisation."""
        if ran is None or (self._since and self._since[0][0].alike != ran.alike):
            self._since.clear()
            return
        self._since.append((ran, ms))
        if ran.waited:
            took = sum(each for _, each in self._since) / sum(one.forwards for one, _ in self._since)
            self._since.clear()
            self._note(ran, took)

    def decoded(self, recipe: Recipe, ms: float) -> None:
        """Record the time of a finished picture."""
        family, known = self._shelf.families.get(recipe.model), self._known.get(recipe.model)
        if family is not None and known is not None and recipe.width == recipe.height == family.size:
            known.note_decode(ms)

    async def refine(self) -> None:
        """Apply new calibrations regularly, for ever."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            for name, known in self._known.items():
                if (found := known.renew()) is not None:
                    await self._tell(name, found)

    async def _tell(self, name: str, found: Calibration) -> None:
        await self._roster.thread.call(lambda engine: engine.adjust(name, found.row_ms, found.rows, found.bucket_ms))
        self._on_rows(found.rows)
        await asyncio.to_thread(self._shelf.refine, name, found)
        self._roster.changed.set()

    def _note(self, ran: Ran, ms: float) -> None:
        family, known = self._shelf.families.get(ran.model), self._known.get(ran.model)
        if family is not None and known is not None and _is_native(ran, family) and ran.dtype == known.found.dtype:
            known.note_forward(ran.rows, ms)


def _is_native(ran: Ran, family: Family) -> bool:
    return ran.shape == family.latent_shape(family.size, family.size) and not ran.loras
