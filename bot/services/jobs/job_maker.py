"""What all services that make jobs share: they find the original, update its recipe, and admit requests."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from bot.domain.dto import AcceptedJob, Destination, JobAction, Member
from bot.domain.errors import UserError
from bot.images.gallery import Gallery
from bot.queue.job_request import JobRequest, add_total_cost, renew_recipe
from bot.queue.model_catalog import CatalogEntry, ModelCatalog
from bot.services.admission.admission import Admission
from bot.services.init_images.loaded import LoadedInitImages
from bot.services.init_images.loader import InitImageLoader
from bot.services.job_permissions import check_original
from bot.services.job_views.job_views import JobViews
from bot.services.preferences import Preferences
from bot.store import JobRecord
from engine.contract import MAX_CANDIDATE_IMAGES, Recipe, UpscaleTask, recipe_at_end, settle_amendments

SEED_COUNT = 2**32 - MAX_CANDIDATE_IMAGES  # image i draws from seed + i
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


def draw_seed() -> int:
    """Return a random seed that is valid for a full grid."""
    return secrets.randbelow(SEED_COUNT)


class JobMaker:
    """Finds what a job is made from, and admits the requests. Methods raise `UserError`."""

    def __init__(
        self,
        catalog: ModelCatalog,
        job_views: JobViews,
        gallery: Gallery,
        admission: Admission,
        init_image_loader: InitImageLoader,
        preferences: Preferences,
    ) -> None:
        self._catalog = catalog
        self._job_views = job_views
        self._gallery = gallery
        self._admission = admission
        self._init_image_loader = init_image_loader
        self.preferences = preferences

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

    async def admit(
        self,
        requests: Sequence[JobRequest],
        member: Member,
        destination: Destination,
        key: str | None,
        loaded_images: LoadedInitImages | None = None,
    ) -> list[AcceptedJob]:
        """Admit requests; protect the files that they begin with while the jobs are written."""
        inputs = [file for request in requests for file in request.inputs]
        async with self._init_image_loader.protect_files(inputs, loaded_images.new_contents if loaded_images else None):
            return await self._admission.admit(add_total_cost(requests), member, destination, key)
