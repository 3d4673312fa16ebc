"""Originals: the finished jobs that other jobs are made from, with their recipes for the current weights."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from bot.domain.dto import JobAction, Member
from bot.domain.errors import UserError
from bot.jobs.model_catalog import CatalogEntry, ModelCatalog
from bot.jobs.recipe import renew_recipe
from bot.jobs.views import JobViews, check_original
from bot.pictures.gallery import Gallery
from bot.store import JobRecord
from engine.contract import Recipe, UpscaleTask, recipe_at_end, settle_amendments

NEVER_OFFERED = "No worker has ever offered {}."
PAST_PARTICIPLES: Mapping[JobAction, str] = MappingProxyType(
    {
        "vary": "varied",
        "remix": "remixed",
        "edit": "edited",
        "zoom": "zoomed out of",
        "pan": "continued",
        "branch": "branched from",
    }
)


class Originals:
    """Finds what a job is made from, and brings its recipe up to date. Methods raise `UserError`."""

    def __init__(self, catalog: ModelCatalog, job_views: JobViews, gallery: Gallery) -> None:
        self._catalog = catalog
        self._job_views = job_views
        self._gallery = gallery

    async def find_original(
        self, action: JobAction, job: str, index: int | None, member: Member
    ) -> tuple[JobRecord, Recipe, int | None]:
        """Return the generated job and image: of an upscale, those of its original, if the member may use that too.

        The recipe of a steered job is that which the image ended with.
        """
        record = await self._job_views.load_record(job)
        while isinstance(record.task, UpscaleTask) and record.parent:
            index = record.parent[1]
            record = await self._job_views.load_record(record.parent[0])
            check_original(action, member, record)
        if index is not None:
            await self._gallery.find_visible(record.id, index)
        if not isinstance(record.task, Recipe):
            raise UserError(f"This picture cannot be {PAST_PARTICIPLES[action]}.")
        recipe = record.task
        return record, recipe_at_end(recipe) if index is None else settle_amendments(recipe, index), index

    def find_entry(self, recipe: Recipe) -> CatalogEntry | None:
        """Return the catalogue entry of a recipe's model, with weights stored in the same way if a worker has them.

        None if no worker has ever offered it.
        """
        try:
            return self._catalog.find_entry_for(recipe)
        except KeyError:
            return None

    def renew(self, recipe: Recipe, refusal: str = NEVER_OFFERED) -> tuple[Recipe, tuple[str, ...], CatalogEntry]:
        """Return a recipe for the current weights of its model, notes on what changed, and the model's entry."""
        entry = self.find_entry(recipe)
        if entry is None:
            raise UserError(refusal.format(recipe.model))
        return *renew_recipe(recipe, entry), entry

    async def reset_mixed(self, record: JobRecord, recipe: Recipe) -> Recipe:
        """Return the recipe for another prompt: `mixed` stays, unless an interpolation had set it."""
        was_interpolated = recipe.mixed and await self._job_views.is_from_interpolation(record)
        return msgspec.structs.replace(recipe, mixed=False) if was_interpolated else recipe
