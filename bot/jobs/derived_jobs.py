"""What jobs from finished jobs share: they find their original, renew its recipe, and are admitted as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from bot.domain.dto import AcceptedJob, JobAction, Member
from bot.domain.errors import UserError
from bot.jobs.admission import Admission
from bot.jobs.beginnings import AliasLoader
from bot.jobs.init_images import InitImageLoader
from bot.jobs.model_catalog import CatalogEntry, ModelCatalog
from bot.jobs.recipe import renew_recipe
from bot.jobs.views import JobViews, check_original
from bot.pictures.gallery import Gallery
from bot.store import JobRecord, NewJob
from engine.contract import Recipe, UpscaleTask, recipe_at_end, settle_amendments

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


@dataclass(eq=False)
class DerivedJobs:
    """Callers check permissions first. Methods raise `UserError`; the same `key` again returns the same job."""

    catalog: ModelCatalog
    job_views: JobViews
    gallery: Gallery
    init_image_loader: InitImageLoader
    load_aliases: AliasLoader
    admission: Admission

    async def _find_original(
        self, action: JobAction, job: str, index: int | None, member: Member
    ) -> tuple[JobRecord, Recipe, int | None]:
        """Return the generated job, the recipe that the image ended with, and the image: of an upscale, its source."""
        record = await self.job_views.load_record(job)
        while isinstance(record.task, UpscaleTask) and record.parent:
            index = record.parent[1]
            record = await self.job_views.load_record(record.parent[0])
            check_original(action, member, record)
        if index is not None:
            await self.gallery.find_visible(record.id, index)
        if not isinstance(record.task, Recipe):
            raise UserError(f"This picture cannot be {PAST_PARTICIPLES[action]}.")
        recipe = record.task
        return record, recipe_at_end(recipe) if index is None else settle_amendments(recipe, index), index

    async def _find_picture(
        self, action: JobAction, job: str, index: int, member: Member
    ) -> tuple[JobRecord, Recipe, int]:
        record, recipe, image_index = await self._find_original(action, job, index, member)
        return record, recipe, image_index or 0

    def _find_entry(self, recipe: Recipe) -> CatalogEntry | None:
        """Return the catalogue entry of a recipe's model, None if no worker has ever offered it."""
        try:
            return self.catalog.find_entry_for(recipe)
        except KeyError:
            return None

    def _renew(
        self, recipe: Recipe, refusal: str = "No worker has ever offered {}."
    ) -> tuple[Recipe, tuple[str, ...], CatalogEntry]:
        """Return a recipe for the current weights of its model, notes on what changed, and the model's entry."""
        entry = self._find_entry(recipe)
        if entry is None:
            raise UserError(refusal.format(recipe.model))
        return *renew_recipe(recipe, entry), entry

    async def _reset_mixed(self, record: JobRecord, recipe: Recipe) -> Recipe:
        """Return the recipe for another prompt: `mixed` stays, unless an interpolation had set it."""
        was_interpolated = recipe.mixed and await self.job_views.is_from_interpolation(record)
        return msgspec.structs.replace(recipe, mixed=False) if was_interpolated else recipe

    async def _admit(self, new_job: NewJob, key: str | None, contents: dict[str, bytes] | None = None) -> AcceptedJob:
        return (await self.admission.admit([new_job], key, contents))[0]
